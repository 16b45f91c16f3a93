//! Further processes in the container.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, Signal, kill_process};

use super::executor::Program;
use super::launch::{LIBCONTAINER, NAME, chain, listen, read_report, receive_terminal};
use super::streams;
use crate::protocol::{Failure, FailureKind};
use crate::session::TerminalSize;

/// What an exec needs.
pub(super) struct Wanted<'a> {
    pub(super) dir: &'a Path,
    pub(super) exec: u64,
    pub(super) process: &'a serde_json::Value,
    pub(super) tty: bool,
    pub(super) size: Option<TerminalSize>,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// Starts it. Returns its process id, and the terminal if there is one.
pub(super) fn start(wanted: Wanted<'_>) -> Result<(i32, Option<OwnedFd>), Failure> {
    let dir = wanted.dir;
    let file = dir.join(format!("exec-{}.json", wanted.exec));
    let started = start_from(wanted, &file);
    let _ = fs::remove_file(file);
    started
}

fn start_from(wanted: Wanted<'_>, file: &Path) -> Result<(i32, Option<OwnedFd>), Failure> {
    let other = |what: &str, error: &dyn std::error::Error| Failure {
        kind: FailureKind::Other,
        message: format!("exec: {what}: {}", chain(error)),
    };
    fs::write(file, wanted.process.to_string()).map_err(|error| other("process file", &error))?;
    let (report, told) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| other("pipe", &error))?;
    let program = Program { report: told.as_raw_fd(), close: Vec::new(), die_with_shim: false };
    let mut builder = ContainerBuilder::new(NAME.to_owned(), SyscallType::default())
        .with_executor(program)
        .with_root_path(wanted.dir.join(LIBCONTAINER))
        .map_err(|error| other("state", &error))?;
    let mut console = None;
    if wanted.tty {
        let name = format!("exec-{}.sock", wanted.exec);
        console = Some(listen(wanted.dir, &name).map_err(|error| other("console socket", &error))?);
        builder = builder.with_console_socket(Some(wanted.dir.join(name)));
    } else {
        let null = |fd: Option<OwnedFd>| match fd {
            Some(fd) => Ok(fd),
            None => fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from),
        };
        let ends = null(wanted.stdin)
            .and_then(|stdin| Ok((stdin, null(wanted.stdout)?, null(wanted.stderr)?)))
            .map_err(|error| other("/dev/null", &error))?;
        builder = builder.with_stdin(ends.0).with_stdout(ends.1).with_stderr(ends.2);
    }
    let built = builder.as_tenant().with_process(Some(file)).with_detach(true).build();
    if wanted.tty {
        let _ = fs::remove_file(wanted.dir.join(format!("exec-{}.sock", wanted.exec)));
    }
    drop(told);
    let pid = built.map_err(|error| (chain(&error), ()));
    let pid = match (pid, read_report(report)) {
        (Ok(pid), None) => pid,
        (_, Some(program)) => {
            return Err(Failure { kind: FailureKind::Exec { code: program.code }, message: program.message });
        }
        (Err((message, ())), None) => {
            return Err(Failure { kind: FailureKind::Other, message: format!("exec: {message}") });
        }
    };
    let terminal = match console {
        None => None,
        Some(console) => {
            let terminal = receive_terminal(&console).map_err(|error| other("terminal", &error))?;
            if let Some(size) = wanted.size {
                let _ = streams::resize(&terminal, size);
            }
            Some(terminal)
        }
    };
    Ok((pid.as_raw(), terminal))
}

/// Kills an exec's process and what it started: its descendants, and its session (every exec leads one).
/// `members` are the processes of the container's cgroup.
pub(super) fn kill_tree(root: i32, members: &BTreeSet<i32>) {
    let mut parents = HashMap::new();
    let mut doomed: HashSet<i32> = HashSet::from([root]);
    for pid in members {
        if let Some((parent, session)) = parent_and_session(*pid) {
            parents.insert(*pid, parent);
            if session == root {
                doomed.insert(*pid);
            }
        }
    }
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, parent)| doomed.contains(parent) && !doomed.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            break;
        }
        doomed.extend(more);
    }
    for pid in doomed.into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Fields 4 and 6 of `/proc/<pid>/stat` (proc(5)).
fn parent_and_session(pid: i32) -> Option<(i32, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some((parent, session))
}
