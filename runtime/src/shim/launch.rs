//! Setting a container up: everything but executing its program.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::{Program, ProgramError};
use super::rootfs;
use crate::cgroup::Cgroups;
use crate::host;
use crate::oci::{self, Places};
use crate::protocol::Record;

/// libcontainer's own state, below the container's state directory.
pub(super) const LIBCONTAINER: &str = "oci";
/// The name libcontainer knows the container by.
pub(super) const NAME: &str = "c";

/// A container whose init waits for its start.
pub(super) struct Launched {
    /// `Err`: the program cannot be executed; everything else was fine.
    pub(super) init: Result<Init, ProgramError>,
    pub(super) stdio: Stdio,
    pub(super) cgroups: Cgroups,
    pub(super) warnings: Vec<String>,
}

pub(super) struct Init {
    pub(super) container: Container,
    pub(super) pid: i32,
    /// See [`Program::report`].
    pub(super) report: OwnedFd,
}

/// The shim's ends.
#[derive(Default)]
pub(super) struct Stdio {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
    /// With a terminal, all of the above in one.
    pub(super) terminal: Option<OwnedFd>,
}

/// The error is for people.
pub(super) fn launch(dir: &Path, record: &Record, keep_from_container: &[RawFd]) -> Result<Launched, String> {
    let spec = &record.spec;
    let cgroups = Cgroups::detect().map_err(|error| error.to_string())?;
    let host = host::host(&cgroups, spec.privileged);
    let sources = rootfs::enter_namespace(spec, dir).map_err(|error| format!("mount namespace: {error}"))?;
    let root = rootfs::mount(&spec.layers, dir).map_err(|error| error.to_string())?;
    rootfs::make_working_directory(spec, &root).map_err(|error| error.to_string())?;
    let devices: Vec<_> = spec
        .devices
        .iter()
        .map(|device| host::device(&device.host_path))
        .collect::<io::Result<_>>()
        .map_err(|error| error.to_string())?;
    if let Some(missing) = spec.mounts.iter().find(|m| m.kind == crate::spec::MountKind::Bind && !m.source.exists()) {
        return Err(format!("mount source {} does not exist", missing.source.display()));
    }

    let places = Places { rootfs: &root, sandbox_dir: &record.sandbox_dir, devices: &devices, sources: &sources };
    let (config, mut warnings) = oci::config(spec, &record.sandbox, &host, &places);
    fs::write(dir.join("config.json"), config.to_string()).map_err(|error| format!("config.json: {error}"))?;
    fs::create_dir_all(dir.join(LIBCONTAINER)).map_err(|error| error.to_string())?;

    let before = spec.oom_score_adj.map(|wanted| set_oom_score(wanted, &mut warnings));
    let (init, stdio) = build(dir, record, keep_from_container)?;
    if let Some(Some(before)) = before {
        let _ = fs::write(OOM_SCORE, before);
    }
    // SAFETY: malloc_trim only gives free pages back.
    unsafe { nix::libc::malloc_trim(0) };
    Ok(Launched { init, stdio, cgroups, warnings })
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// The container inherits the score; the shim's own is put back afterwards. Returns what it was.
fn set_oom_score(wanted: i32, warnings: &mut Vec<String>) -> Option<String> {
    let before = fs::read_to_string(OOM_SCORE).ok()?;
    if fs::write(OOM_SCORE, wanted.to_string()).is_err() {
        warnings.push(format!(
            "oomScoreAdj {wanted} needs CAP_SYS_RESOURCE, which Proa does not hold; {} was kept",
            before.trim()
        ));
    }
    Some(before)
}

type Built = (Result<Init, ProgramError>, Stdio);

fn build(dir: &Path, record: &Record, keep_from_container: &[RawFd]) -> Result<Built, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let spec = &record.spec;
    let (report, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| text(&error))?;
    let program = Program { report: told.as_raw_fd(), close: keep_from_container.to_vec(), die_with_shim: true };
    let mut builder = ContainerBuilder::new(NAME.to_owned(), SyscallType::default())
        .with_executor(program)
        .with_root_path(dir.join(LIBCONTAINER))
        .map_err(|error| text(&error))?;
    let mut stdio = Stdio::default();
    let mut console = None;
    if spec.tty {
        let path = dir.join("console.sock");
        console = Some(listen(dir, "console.sock").map_err(|error| format!("console socket: {error}"))?);
        builder = builder.with_console_socket(Some(path));
    } else {
        let ends = pipes(spec.stdin, spec.user.uid, spec.user.gid).map_err(|error| format!("stdio: {error}"))?;
        stdio = ends.0;
        let [stdin, stdout, stderr] = ends.1;
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let built = builder.as_init(dir).with_systemd(false).with_detach(true).build();
    drop(told);
    match built {
        Ok(container) => {
            let pid =
                container.pid().map(|pid| pid.as_raw()).ok_or("libcontainer made a container without a process")?;
            if let Some(console) = console {
                stdio.terminal = Some(receive_terminal(&console).map_err(|error| format!("terminal: {error}"))?);
            }
            Ok((Ok(Init { container, pid, report }), stdio))
        }
        Err(error) => match read_report(report) {
            Some(program) => Ok((Err(program), Stdio::default())),
            None => Err(chain(&error)),
        },
    }
}

/// Shim's ends and the container's: stdin, stdout, stderr.
fn pipes(stdin: bool, uid: u32, gid: u32) -> io::Result<(Stdio, [OwnedFd; 3])> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let mut ours = Stdio::default();
    let input: OwnedFd = if stdin {
        let (theirs, mine) = pipe()?;
        ours.stdin = Some(mine);
        theirs
    } else {
        fs::File::open("/dev/null")?.into()
    };
    let (out, their_out) = pipe()?;
    let (err, their_err) = pipe()?;
    ours.stdout = Some(out);
    ours.stderr = Some(err);
    for end in [&input, &their_out, &their_err] {
        if stdin || !std::ptr::eq(end, &input) {
            // So that a program that is not root may open /dev/stdout again.
            let user = (rustix::process::Uid::from_raw(uid), rustix::process::Gid::from_raw(gid));
            let _ = rustix::fs::fchown(end, Some(user.0), Some(user.1));
        }
    }
    Ok((ours, [input, their_out, their_err]))
}

/// Binds a socket in a directory whose path may be longer than a socket address.
pub(super) fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    let _ = fs::remove_file(dir.join(name));
    let dir = fs::File::open(dir)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// libcontainer sends the master of the terminal it made inside the container.
pub(super) fn receive_terminal(console: &UnixListener) -> io::Result<OwnedFd> {
    let (socket, _) = console.accept()?;
    let mut fds = Vec::new();
    crate::fds::receive(&socket, &mut [0; 4096], &mut fds)?;
    fds.pop().ok_or_else(|| io::Error::other("libcontainer sent no terminal"))
}

/// What the program's process said, if anything. Blocks until it runs or has given up.
pub(super) fn read_report(report: OwnedFd) -> Option<ProgramError> {
    let mut text = Vec::new();
    let _ = fs::File::from(report).read_to_end(&mut text);
    if text.is_empty() {
        return None;
    }
    // Told twice (when checked and when executed) is still the first one.
    serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()
}

/// An error with its causes, each said once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
