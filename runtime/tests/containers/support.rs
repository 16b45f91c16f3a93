//! A bench for containers: a state directory, an image of one static file, a sandbox.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proa_runtime::{ContainerSpec, Embedded, Exit, Runtime, SandboxSpec};

/// How long any single step may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    pub(crate) runtime: std::sync::Arc<Embedded>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cgroup: String,
}

pub(crate) fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_proa-runtime-fixture"))
}

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

async fn open(dir: &Path, cgroup: &str) -> std::sync::Arc<Embedded> {
    Embedded::open(&dir.join("state"), fixture(), cgroup).await.unwrap().into()
}

impl Bench {
    pub(crate) async fn new() -> Bench {
        assert!(rustix::process::geteuid().is_root(), "these tests run real containers: they need root");
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        for made in ["bin", "etc", "tmp", "data"] {
            std::fs::create_dir_all(image.join(made)).unwrap();
        }
        let program = image.join("bin/fixture");
        if std::fs::hard_link(fixture(), &program).is_err() {
            std::fs::copy(fixture(), &program).unwrap();
        }
        std::fs::write(image.join("etc/passwd"), "root:x:0:0::/root:\nweb:x:33:34::/var/www:\n").unwrap();
        std::fs::write(image.join("etc/not-a-program"), "x").unwrap();
        let cgroup = format!("proa-test/{}", name());
        let runtime = open(dir.path(), &cgroup).await;
        let bench = Bench { runtime, dir, cgroup };
        bench.runtime.run_sandbox(bench.sandbox("pod")).await.unwrap();
        bench
    }

    /// A second agent takes the same directory, and the first is dropped.
    pub(crate) async fn agent_returns(&mut self) {
        self.runtime = open(self.dir.path(), &self.cgroup).await;
    }

    pub(crate) fn sandbox(&self, id: &str) -> SandboxSpec {
        SandboxSpec {
            id: id.to_owned(),
            hostname: id.to_owned(),
            cgroup_parent: format!("{}/{id}", self.cgroup),
            ..SandboxSpec::default()
        }
    }

    pub(crate) fn spec(&self, id: &str, args: &[&str]) -> ContainerSpec {
        let mut command = vec!["fixture".to_owned()];
        command.extend(args.iter().map(|arg| (*arg).to_owned()));
        ContainerSpec {
            id: id.to_owned(),
            name: id.to_owned(),
            layers: vec![self.dir.path().join("image")],
            args: command,
            log_path: self.log(id),
            capabilities: ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "NET_BIND_SERVICE", "KILL"]
                .map(str::to_owned)
                .to_vec(),
            ..ContainerSpec::default()
        }
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(format!("{id}.log"))
    }

    /// What a stream of the log says, put together.
    pub(crate) fn said(&self, id: &str, stream: proa_runtime::logs::LogStream) -> String {
        let text = std::fs::read(self.log(id)).unwrap_or_default();
        let mut said = String::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = proa_runtime::logs::parse(line).expect("a log in CRI's format");
            if line.stream == stream {
                said += &String::from_utf8_lossy(line.text);
                if !line.partial {
                    said.push('\n');
                }
            }
        }
        said
    }

    pub(crate) fn out(&self, id: &str) -> String {
        self.said(id, proa_runtime::logs::LogStream::Stdout)
    }

    pub(crate) async fn launch(&self, spec: ContainerSpec) -> String {
        let id = spec.id.clone();
        self.runtime.create("pod", spec).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        id
    }

    /// From create to exit.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> Exit {
        let id = self.launch(spec).await;
        self.exit(&id).await
    }

    pub(crate) async fn exit(&self, id: &str) -> Exit {
        use futures::StreamExt;
        let mut events = self.runtime.events();
        let wait = async {
            loop {
                if let proa_runtime::ContainerState::Exited(exit) = self.runtime.status(id).await.unwrap().state {
                    return exit;
                }
                events.next().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the container does not end")
    }

    /// Until the log of a container holds a text.
    pub(crate) async fn until_said(&self, id: &str, text: &str) {
        let wait = async {
            while !self.out(id).contains(text) {
                // A file has no event that works on every file system.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("{id} never said {text:?} but {:?}", self.out(id)));
    }

    /// Cgroup directories and mounts that exist because of this bench.
    pub(crate) fn traces(&self) -> Vec<String> {
        let mut traces = Vec::new();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        traces.extend(mounts.lines().filter(|line| line.contains(dir)).map(str::to_owned));
        for group in self.groups("") {
            traces.extend(dirs(&group).iter().map(|child| child.display().to_string()));
        }
        traces
    }

    /// Directories of a control group of this bench, in whatever hierarchy it exists.
    pub(crate) fn groups(&self, name: &str) -> Vec<PathBuf> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = dirs(&root).into_iter().chain([root]);
        hierarchies.map(|hierarchy| hierarchy.join(&self.cgroup).join(name)).filter(|group| group.is_dir()).collect()
    }

    /// Processes that have this bench's directory in their command line: shims, and what is about to be a container.
    pub(crate) fn shims(&self) -> Vec<i32> {
        let dir = self.dir.path().to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.contains(dir)))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    }

    pub(crate) async fn done(self) {
        self.runtime.remove_sandbox("pod").await.unwrap();
        // The shims' group stays for those to come.
        let left: Vec<String> = self.traces().into_iter().filter(|trace| !trace.ends_with("/shims")).collect();
        assert_eq!(left, Vec::<String>::new(), "left behind");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Also after a failed test nothing may be left running.
        let _ = proa_runtime::reset(&self.dir.path().join("state"), &self.cgroup);
        for hierarchy in std::iter::once(PathBuf::from("/sys/fs/cgroup")).chain(dirs(Path::new("/sys/fs/cgroup"))) {
            let _ = std::fs::remove_dir(hierarchy.join(&self.cgroup));
            let _ = std::fs::remove_dir(hierarchy.join("proa-test"));
        }
    }
}

fn dirs(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// How many processes live in the pid namespace of a process.
pub(crate) fn alive_beside(pid: u32) -> usize {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(&pid.to_string());
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(|name| own.is_some() && namespace(name) == own)
        .filter(|name| std::fs::read_to_string(format!("/proc/{name}/stat")).is_ok_and(|stat| !stat.contains(") Z ")))
        .count()
}
