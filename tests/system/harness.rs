//! A whole platform for one test: the real binary in a network namespace of its own, a data directory of its own, the
//! real kubectl beside it. Everything is removed when the test ends, however it ends.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

/// The binary under test.
pub(crate) const PROA: &str = env!("CARGO_BIN_EXE_proa");
/// How long a start may take before the test gives up.
const START: Duration = Duration::from_secs(60);

/// A network namespace, gone with its last holder.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// One with nothing but `lo`.
    pub(crate) fn new() -> Namespace {
        assert!(nix::unistd::geteuid().is_root(), "the system tests run real containers: run them as root");
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            bring_up_loopback();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").expect("the namespace's file"))
        });
        Namespace(Arc::new(fd.join().expect("the namespace's thread")))
    }

    /// The one pinned at `path`.
    pub(crate) fn at(path: &Path) -> Namespace {
        Namespace(Arc::new(OwnedFd::from(std::fs::File::open(path).expect("the pinned namespace"))))
    }

    /// A command that runs in the namespace.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let fd = self.0.as_raw_fd();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only the async-signal-safe setns is called, on a descriptor that is open as long as `self`.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                setns(fd, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)
            });
        }
        command
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                    work()
                })
                .join()
                .expect("the work in the namespace")
        })
    }
}

fn bring_up_loopback() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    // SAFETY: an all-zero ifreq is valid; both ioctls read and write within it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request), 0);
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request), 0);
    }
}

/// A running `proa up`.
pub(crate) struct Cluster {
    pub(crate) namespace: Namespace,
    dir: tempfile::TempDir,
    data: PathBuf,
    child: Option<Child>,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts the platform with nothing applied.
    pub(crate) fn up() -> Cluster {
        Cluster::up_with(&[])
    }

    /// Starts the platform with more arguments to `up`; returns when it says that it is ready.
    pub(crate) fn up_with(arguments: &[&str]) -> Cluster {
        let mut cluster = Cluster::prepared();
        cluster.start(arguments);
        cluster
    }

    /// A place for a platform, nothing started.
    pub(crate) fn prepared() -> Cluster {
        let dir = tempfile::Builder::new().prefix("proa-test-").tempdir().expect("a directory");
        let data = dir.path().join("data");
        Cluster { namespace: Namespace::new(), dir, data, child: None, kubectl: newest_kubectl() }
    }

    /// The data directory; made by the first command that needs it.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// A folder for the test's own files.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Starts (or starts again) on the same data directory; the lines it printed until ready.
    pub(crate) fn start(&mut self, arguments: &[&str]) -> String {
        let mut child = self
            .proa(&["up", "--node-name", "node-1"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .expect("proa up starts");
        let (lines, told) = mpsc::channel();
        let stderr = child.stderr.take().expect("stderr is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                eprintln!("[up] {line}");
                // Nobody listens after the start: the lines are still shown above.
                let _ = lines.send(line);
            }
        });
        self.child = Some(child);
        let deadline = Instant::now() + START;
        let mut said = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match told.recv_timeout(left) {
                Ok(line) => {
                    said.push_str(&line);
                    said.push('\n');
                    if line.starts_with("Ready in") {
                        return said;
                    }
                }
                Err(_) => panic!("proa up did not become ready; it said:\n{said}"),
            }
        }
    }

    /// A `proa` command in this cluster's namespace, on its data directory.
    pub(crate) fn proa(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(PROA);
        command.args(arguments).arg("--data-dir").arg(self.data());
        command
    }

    /// A `proa` command of the platform's user; whether it succeeded, and what it said.
    pub(crate) fn command_line(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.namespace.command(PROA);
        let output = command.args(arguments).arg("--kubeconfig").arg(self.kubeconfig()).output().expect("proa runs");
        (output.status.success(), text(&output))
    }

    /// The process id of `proa up`.
    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        let child = self.child.as_ref().expect("proa up runs");
        nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"))
    }

    /// Sends a signal to `proa up` and waits for its end; how long that took.
    pub(crate) fn stop(&mut self, signal: nix::sys::signal::Signal) -> (std::process::ExitStatus, Duration) {
        nix::sys::signal::kill(self.pid(), signal).expect("proa up runs");
        let begun = Instant::now();
        let status = self.child.take().expect("proa up runs").wait().expect("its exit status");
        (status, begun.elapsed())
    }

    /// Processes that keep the containers of this platform.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let data = self.data();
        let data = data.to_str().expect("a path");
        let processes = std::fs::read_dir("/proc").expect("proc").flatten();
        processes
            .filter_map(|entry| {
                let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
                (line.contains("shim") && line.contains(data)).then(|| entry.file_name().to_str()?.parse().ok())?
            })
            .collect()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data().join("admin.kubeconfig")
    }

    /// The same cluster through another kubectl.
    pub(crate) fn use_kubectl(&mut self, kubectl: PathBuf) {
        self.kubectl = kubectl;
    }

    /// A kubectl command, not yet started.
    pub(crate) fn kubectl_command(&self, arguments: &[&str]) -> Command {
        self.command_of(&self.kubectl, arguments)
    }

    /// A command of another kubectl, not yet started.
    pub(crate) fn command_of(&self, kubectl: &Path, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(kubectl);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.scratch())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A shell script in which `kubectl` is this cluster's; it runs in `dir` and ends at the first command that fails.
    pub(crate) fn shell(&self, script: &str, dir: &Path) -> Output {
        let script = format!("kubectl() {{ {} \"$@\"; }}\n{script}", self.kubectl.display());
        let mut shell = self.namespace.command("sh");
        shell.args(["-ec", &script]).current_dir(dir).env("KUBECONFIG", self.kubeconfig()).env("HOME", self.data());
        shell.stdin(Stdio::null()).output().expect("sh runs")
    }

    /// Runs kubectl; its output whatever it says.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command(arguments).output().expect("kubectl runs")
    }

    /// Runs kubectl, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(output.status.success(), "kubectl {}\n{}", arguments.join(" "), text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs kubectl, which must fail; what it said.
    #[track_caller]
    pub(crate) fn kubectl_fails(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        assert!(!output.status.success(), "kubectl {} succeeded:\n{}", arguments.join(" "), text(&output));
        text(&output)
    }

    /// Runs kubectl with `manifest` on standard input.
    #[track_caller]
    pub(crate) fn kubectl_stdin(&self, arguments: &[&str], manifest: &str) -> String {
        let output = self.try_kubectl_stdin(arguments, manifest);
        assert!(output.status.success(), "kubectl {}\n{}\n{manifest}", arguments.join(" "), text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs kubectl with `manifest` on standard input, whatever it says.
    pub(crate) fn try_kubectl_stdin(&self, arguments: &[&str], manifest: &str) -> Output {
        let mut child = self.kubectl_command(arguments).stdin(Stdio::piped()).spawn().expect("kubectl runs");
        child.stdin.take().expect("stdin is piped").write_all(manifest.as_bytes()).expect("kubectl reads");
        child.wait_with_output().expect("kubectl ends")
    }

    #[track_caller]
    pub(crate) fn apply(&self, manifest: &str) -> String {
        self.kubectl_stdin(&["apply", "-f", "-"], manifest)
    }

    /// Waits with `kubectl wait` for a jsonpath to have a value.
    #[track_caller]
    pub(crate) fn wait_for(&self, object: &str, jsonpath: &str, value: &str) {
        self.kubectl(&["wait", object, &format!("--for=jsonpath={{{jsonpath}}}={value}"), "--timeout=60s"]);
    }

    /// The platform's own parts, the agent with a node's rights among them, were refused nothing they asked for.
    #[track_caller]
    pub(crate) fn assert_nothing_was_forbidden(&self) {
        let metrics = self.kubectl(&["get", "--raw", "/metrics"]);
        let answers = metrics.lines().filter(|line| line.starts_with("apiserver_request_total"));
        let refused: Vec<&str> = answers.filter(|line| line.contains("code=\"403\"")).collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }

    /// Makes and loads the image `test/busybox:1` from the machine's static busybox.
    pub(crate) fn load_busybox(&self) {
        let archive = self.scratch().join("busybox.tar");
        std::fs::write(&archive, busybox_archive()).expect("the archive is written");
        let output = self.proa(&["image", "load"]).arg(&archive).output().expect("proa image load runs");
        assert!(output.status.success(), "{}", text(&output));
    }

    /// One `GET` over a new connection from inside the namespace; status and body.
    pub(crate) fn get(&self, address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
        self.namespace.enter(|| get(address, path))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Already gone is as good as killed; `wait` reaps either way.
            let _ = child.kill();
            let _ = child.wait();
        }
        let output = self.proa(&["reset"]).output();
        if !std::thread::panicking() {
            let output = output.expect("proa reset runs");
            assert!(output.status.success(), "proa reset: {}", text(&output));
        }
    }
}

/// A part of the platform in a process of its own, ended with the test.
pub(crate) struct Part(pub(crate) Child);

impl Part {
    /// SIGKILL: what a crash is like.
    pub(crate) fn kill(mut self) {
        self.0.kill().expect("the part runs");
        self.0.wait().expect("its exit status");
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SIGTERM first, as a user would: the agent leaves its containers to `reset`. Killed already is as good: `wait`
        // knows the status.
        if self.0.try_wait().ok().flatten().is_none() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.0.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
        }
        let _ = self.0.wait();
    }
}

/// One `GET` over a new connection; status and body.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no HTTP answer: {answer:?}")))?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    Ok((status, body))
}

/// Tries until `probe` says yes: for what the platform announces by no event, such as the answer of a port.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Every kubectl of the machine, oldest first: `kubectl.1.27` … beside the dispatcher, else the one on the PATH.
pub(crate) fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/lib/google-cloud-sdk/bin")]);
    let mut plain = None;
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for folder in folders {
        let Ok(real) = folder.join("kubectl").canonicalize() else { continue };
        plain.get_or_insert_with(|| real.clone());
        let beside = real.parent().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        for entry in beside {
            let minor = entry.file_name().to_str().and_then(|name| name.strip_prefix("kubectl.1.")?.parse().ok());
            versions.extend(minor.map(|minor| (minor, entry.path())));
        }
    }
    versions.sort();
    versions.dedup();
    if versions.is_empty() {
        return vec![plain.expect(
            "the system tests need kubectl on the PATH: https://kubernetes.io/docs/tasks/tools/install-kubectl-linux/",
        )];
    }
    versions.into_iter().map(|(_, path)| path).collect()
}

fn newest_kubectl() -> PathBuf {
    kubectls().pop().expect("at least one kubectl")
}

/// A docker archive of one layer: busybox and its commands.
fn busybox_archive() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox")
        .expect("the tests' image is made from /bin/busybox: apt-get install busybox-static");
    let interpreter = b"/ld-linux";
    assert!(
        !program.windows(interpreter.len()).any(|bytes| bytes == interpreter),
        "/bin/busybox needs libraries that the tests' image has not: apt-get install busybox-static"
    );
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin/", "tmp/", "etc/", "home/"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer.append_data(&mut header, folder, std::io::empty()).expect("a folder");
    }
    add_file(&mut layer, "bin/busybox", 0o755, &program);
    add_file(&mut layer, "etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n");
    add_file(&mut layer, "etc/group", 0o644, b"root:x:0:\nuser:x:1000:\n");
    let list = Command::new("/bin/busybox").arg("--list").output().expect("busybox runs").stdout;
    for name in String::from_utf8_lossy(&list).lines().filter(|name| *name != "busybox") {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").expect("a link");
    }
    let layer = layer.into_inner().expect("a layer");
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    });
    let config = serde_json::to_vec(&config).expect("a config");
    let config_name = format!("{}.json", sha256(&config));
    let manifest =
        serde_json::json!([{"Config": config_name, "RepoTags": ["test/busybox:1"], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, &config_name, 0o644, &config);
    add_file(&mut archive, "layer.tar", 0o644, &layer);
    add_file(&mut archive, "manifest.json", 0o644, manifest.to_string().as_bytes());
    archive.into_inner().expect("an archive")
}

fn add_file(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, path, bytes).expect("a file");
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
