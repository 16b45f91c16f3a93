//! A machine of its own for one test: QEMU boots Debian's kernel, whose one control group hierarchy is cgroup v2, with a
//! file system made here and kept in memory. For what depends on the host's kernel and cannot be had beside it.
//!
//! Owns the file system, the boot and the machine's end; never knows what is tested.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const QEMU: &str = "qemu-system-x86_64";
/// Emulating takes some twenty times as long as running.
const PATIENCE: Duration = Duration::from_secs(400);
/// Where a tree like that of Debian's kernel package (`boot/vmlinuz-*`, `lib/modules/*`) lies. Else it is looked for in `/`.
const KERNEL_VARIABLE: &str = "PROA_TEST_KERNEL";
/// What containers, their network and services need and Debian builds as modules; with what these need themselves.
const MODULES: [&str; 13] = [
    "overlay",
    "veth",
    "vxlan",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_ipv4",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_ipv4",
    "nf_conntrack_netlink",
];

/// Whether this very host is on cgroup v2: then every test that runs containers is a test of it.
pub(crate) fn host_is_on_cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A machine that is not started yet.
pub(crate) struct Guest {
    kernel: PathBuf,
    files: Archive,
}

impl Guest {
    /// A machine with busybox and the modules containers need.
    ///
    /// # Panics
    /// When this host lacks what such a machine is made of; it says what to install.
    pub(crate) fn new() -> Guest {
        let (kernel, modules) = kernel().unwrap_or_else(|missing| {
            panic!(
                "this host is on cgroup v1, so cgroup v2 is tested in a virtual machine, and there is no {missing}.\n\
                 Wanted: busybox-static, qemu-system-x86, and Debian's package linux-image-*-cloud-amd64, installed or \
                 unpacked (dpkg-deb -x) into a directory that ${KERNEL_VARIABLE} names. `.ci/run` does all of this."
            )
        });
        let mut files = Archive::default();
        files.file("init", include_bytes!("init.sh"));
        files.file("bin/busybox", &fs::read("/bin/busybox").expect("busybox"));
        files.link("sbin/modprobe", "/bin/busybox");
        files.folder("new");
        let version = modules.file_name().expect("the modules of one version").to_string_lossy().into_owned();
        for module in with_dependencies(&modules) {
            let name = module.file_name().expect("a file").to_string_lossy().into_owned();
            files.file(&format!("lib/modules/{version}/{name}"), &fs::read(&module).expect("a module"));
        }
        Guest { kernel, files }
    }

    /// Takes a copy of a file of the host along, under an absolute path of the guest.
    pub(crate) fn copy(&mut self, from: &Path, to: &Path) {
        let bytes = fs::read(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self.files.file(to.to_str().expect("a plain path").trim_start_matches('/'), &bytes);
    }

    /// Boots, runs a shell script in which every busybox command is known, and stops; what it printed. The script must
    /// succeed.
    #[track_caller]
    pub(crate) fn run(mut self, script: &str) -> String {
        self.files.file("script", format!("set -e\n{script}").as_bytes());
        let folder = tempfile::tempdir().expect("a directory");
        let initrd = folder.path().join("initrd");
        fs::write(&initrd, self.files.finish()).expect("the guest's file system is written");
        let said = boot(&self.kernel, &initrd);
        assert!(said.contains("guest: the script ended with 0"), "the guest said:\n{said}");
        said
    }
}

fn boot(kernel: &Path, initrd: &Path) -> String {
    let mut command = Command::new(QEMU);
    command
        // One processor: emulated ones now and then miss that another has patched the kernel's code, and hang.
        .args(["-accel", "tcg", "-smp", "1", "-m", "1536", "-nographic", "-nic", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 quiet loglevel=1 panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    // SAFETY: between fork and exec only prctl is called. The machine ends with the thread that waits for it.
    unsafe {
        command.pre_exec(|| match nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut machine = command.spawn().expect("qemu starts");
    let mut console = machine.stdout.take().expect("stdout is piped");
    let (ended, end) = mpsc::channel();
    let hearing = std::thread::spawn(move || {
        let mut said = Vec::new();
        // A machine that is killed has said what it has said.
        let _ = console.read_to_end(&mut said);
        let _ = ended.send(());
        String::from_utf8_lossy(&said).into_owned()
    });
    let in_time = end.recv_timeout(PATIENCE).is_ok();
    let _ = machine.kill();
    let _ = machine.wait();
    let said = hearing.join().expect("the console was read");
    assert!(in_time, "the guest did not end in {} s; it said:\n{said}", PATIENCE.as_secs());
    said
}

/// The newest kernel with its modules, or what is missing.
fn kernel() -> Result<(PathBuf, PathBuf), &'static str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(QEMU).exists()) {
        return Err(QEMU);
    }
    if !Path::new("/bin/busybox").exists() {
        return Err("/bin/busybox");
    }
    let root = std::env::var_os(KERNEL_VARIABLE).map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let kernels = fs::read_dir(root.join("boot")).into_iter().flatten().flatten();
    let mut found: Vec<(PathBuf, PathBuf)> = kernels
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let modules = root.join("lib/modules").join(name.strip_prefix("vmlinuz-")?);
            modules.is_dir().then(|| (entry.path(), modules))
        })
        .collect();
    found.sort();
    found.pop().ok_or("kernel with its modules")
}

/// The files of [`MODULES`] and of the modules these name as their dependencies. What a kernel has built in has no file.
fn with_dependencies(modules: &Path) -> BTreeSet<PathBuf> {
    let mut all = Vec::new();
    walk(modules, &mut all);
    let named = |name: &str| {
        let stem =
            |path: &&PathBuf| path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name);
        all.iter().find(stem)
    };
    let mut wanted: Vec<String> = MODULES.map(str::to_owned).to_vec();
    let mut found = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if let Some(file) = named(&name)
            && found.insert(file.clone())
        {
            wanted.extend(dependencies(&fs::read(file).expect("a module")));
        }
    }
    found
}

/// `depends=` of a module's `.modinfo` section: strings that end with NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list).replace('-', "_");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), found),
            Ok(kind) if kind.is_file() && entry.path().extension().is_some_and(|end| end == "ko") => {
                found.push(entry.path());
            }
            _ => {}
        }
    }
}

/// A file system as the kernel unpacks it: cpio's "newc" format (initramfs-buffer-format in the kernel's documentation).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, path: &str) {
        self.folders_above(path);
        if self.folders.insert(PathBuf::from(path)) {
            self.entry(path, 0o040_755, &[]);
        }
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        self.folders_above(path);
        self.entry(path, 0o100_755, bytes);
    }

    fn link(&mut self, path: &str, target: &str) {
        self.folders_above(path);
        self.entry(path, 0o120_777, target.as_bytes());
    }

    fn folders_above(&mut self, path: &str) {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.folder(above);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, bytes: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(bytes.len()).expect("less than 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("a short path");
        // Inode, mode, user, group, links, time, size, device and its own device (two numbers each), name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").expect("a vector takes everything");
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
