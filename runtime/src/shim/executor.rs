//! The last steps inside the container: find the program, then become it.
//!
//! Runs in the container's init (or an exec's process), never in the shim itself. What goes wrong is
//! written to a pipe of our own, so that the shim need not read it out of libcontainer's prose.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::libc;
use rustix::fs::Access;
use serde::{Deserialize, Serialize};

/// Why a program cannot be executed, in runc's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProgramError {
    /// The shell's convention: 127 not found, 126 found but not executable.
    pub(super) code: i32,
    pub(super) message: String,
}

/// libcontainer calls this.
#[derive(Clone)]
pub(super) struct Program {
    /// Where a [`ProgramError`] goes. Close-on-exec: its end of file says that the program runs.
    pub(super) report: RawFd,
    /// Descriptors of the shim that a container waiting for its start must not hold open.
    pub(super) close: Vec<RawFd>,
    /// A container's init dies with its shim; an exec's process dies with the container.
    pub(super) die_with_shim: bool,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        for fd in &self.close {
            // SAFETY: these are copies, made by clone, of descriptors that only the shim's own code
            // uses; this process never returns into that code.
            unsafe { libc::close(*fd) };
        }
        if self.die_with_shim {
            // SAFETY: prctl with PR_SET_PDEATHSIG takes plain numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        }
        self.locate(spec).map(|_| ()).map_err(|error| {
            self.tell(&error);
            ExecutorValidationError::ArgValidationError(error.message)
        })
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = match self.locate(spec) {
            Ok((path, args)) => become_program(&path, &args),
            Err(error) => error,
        };
        self.tell(&error);
        Err(ExecutorError::Other(error.message))
    }
}

impl Program {
    fn locate(&self, spec: &Spec) -> Result<(PathBuf, Vec<String>), ProgramError> {
        let process = spec.process().as_ref();
        let args = process.and_then(|process| process.args().clone()).unwrap_or_default();
        let search = process
            .and_then(|process| process.env().as_ref())
            .and_then(|env| env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")))
            .unwrap_or_default();
        let Some(name) = args.first().filter(|name| !name.is_empty()) else {
            return Err(ProgramError { code: 127, message: "exec: no command specified".to_owned() });
        };
        Ok((find(name, search)?, args))
    }

    fn tell(&self, error: &ProgramError) {
        // SAFETY: the descriptor was inherited from the shim and stays open until the program runs.
        let report = unsafe { BorrowedFd::borrow_raw(self.report) };
        let _ = rustix::io::write(report, &serde_json::to_vec(error).unwrap_or_default());
    }
}

/// Looks a program up as execvp(3) does, but says what is wrong.
fn find(name: &str, search: &str) -> Result<PathBuf, ProgramError> {
    let failed = |code, why: &str| ProgramError { code, message: format!("exec: {name:?}: {why}") };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match executable(&path) {
            Ok(()) => Ok(path),
            Err(Refusal::Absent) => Err(failed(127, &format!("stat {name}: no such file or directory"))),
            Err(Refusal::Directory) => Err(failed(126, "is a directory")),
            Err(Refusal::Denied) => Err(failed(126, "permission denied")),
        };
    }
    let mut denied = false;
    for dir in search.split(':') {
        let path = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(Refusal::Denied) => denied = true,
            Err(Refusal::Absent | Refusal::Directory) => {}
        }
    }
    Err(if denied { failed(126, "permission denied") } else { failed(127, "executable file not found in $PATH") })
}

enum Refusal {
    Absent,
    Directory,
    Denied,
}

fn executable(path: &Path) -> Result<(), Refusal> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Refusal::Directory),
        Ok(_) => rustix::fs::access(path, Access::EXEC_OK).map_err(|_| Refusal::Denied),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(Refusal::Denied),
        Err(_) => Err(Refusal::Absent),
    }
}

/// Returns only when it fails.
fn become_program(path: &Path, args: &[String]) -> ProgramError {
    let failed = |why: String| ProgramError { code: 126, message: format!("exec: {:?}: {why}", args[0]) };
    let (Ok(file), Ok(args)) = (
        CString::new(path.as_os_str().as_encoded_bytes()),
        args.iter().map(|arg| CString::new(arg.as_str())).collect::<Result<Vec<_>, _>>(),
    ) else {
        return failed("argument holds a NUL byte".to_owned());
    };
    // What the shim ignores or blocks for itself must not be inherited: a container whose `yes | head`
    // never ends is hard to explain.
    for signal in 1..=64 {
        // SAFETY: setting the default disposition has no preconditions; the C library refuses its own signals.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    let Err(error) = nix::unistd::execv(&file, &args);
    match error {
        nix::Error::ENOEXEC => failed("exec format error".to_owned()),
        nix::Error::ENOENT => ProgramError {
            // The file was there a moment ago: what is missing is its interpreter.
            code: 127,
            message: format!(
                "exec: {:?}: no such file or directory (is its interpreter in the image?)",
                args[0].to_string_lossy()
            ),
        },
        error => failed(error.desc().to_lowercase()),
    }
}
