//! The words between the agent and a shim. Owns the wire form; never does anything about a word.
//!
//! Frames: four bytes big-endian length, then JSON. File descriptors travel beside the first byte of
//! their frame (`SCM_RIGHTS`); a frame says how many are its own. A shim outlives an upgrade of the
//! agent, so words are only ever added, and the shim's greeting says which version it speaks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::session::TerminalSize;
use crate::spec::{AttachSpec, ContainerSpec, SandboxSpec};

/// The version this build speaks.
pub(crate) const PROTOCOL: u32 = 1;
/// A longer frame is nonsense.
pub(crate) const FRAME_LIMIT: usize = 4 << 20;

/// What the agent leaves on disk for the shim, and for its own next life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) spec: ContainerSpec,
    pub(crate) sandbox: SandboxSpec,
    /// The sandbox's directory, where its namespaces are pinned.
    pub(crate) sandbox_dir: std::path::PathBuf,
    /// The control group the shim itself goes into; empty in records of old: it stays where it was started.
    #[serde(default)]
    pub(crate) shims: String,
    pub(crate) created_at: Timestamp,
}

/// Agent to shim.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) id: u64,
    /// Descriptors that come with it.
    #[serde(default)]
    pub(crate) fds: usize,
    pub(crate) request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Start,
    Signal {
        signal: i32,
    },
    /// Kills every process of the container.
    Kill,
    /// Descriptors, in order, as far as wanted: stdin, stdout, stderr. With a terminal none comes in
    /// and the terminal's master goes back.
    Exec {
        exec: u64,
        /// An OCI process.
        process: serde_json::Value,
        tty: bool,
        size: Option<TerminalSize>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    ExecKill {
        exec: u64,
    },
    /// Descriptors, in order, as far as wanted: stdin, stdout, stderr.
    Attach {
        attach: u64,
        spec: AttachSpec,
    },
    Detach {
        attach: u64,
    },
    Resize {
        size: TerminalSize,
    },
    ReopenLog,
}

/// Shim to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// First word on every connection.
    Hello(Hello),
    /// Setting up failed; the shim is gone.
    CreateFailed {
        message: String,
    },
    Reply {
        id: u64,
        #[serde(default)]
        fds: usize,
        result: Result<Reply, Failure>,
    },
    Started {
        at: Timestamp,
    },
    Exited(Exit),
    ExecExited {
        exec: u64,
        code: i32,
    },
    /// The attachment is over: its container ended, or it did not keep up.
    Detached {
        attach: u64,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    /// Absent when the program could not be found: `Start` will say so.
    pub(crate) pid: Option<u32>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Exec { pid: u32 },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FailureKind {
    Start,
    /// The program of an exec could not be executed; 126 or 127.
    Exec {
        code: i32,
    },
    NotRunning,
    Other,
}

/// Wraps a word into a frame.
pub(crate) fn frame<T: Serialize>(word: &T) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    // Plain data with string keys: serialising into a vector cannot fail.
    serde_json::to_writer(&mut bytes, word).expect("a protocol word is plain data");
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Takes the first whole frame off a buffer. `Err` says the peer talks nonsense.
pub(crate) fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Vec<u8>>, String> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*head) as usize;
    if length > FRAME_LIMIT {
        return Err(format!("a frame of {length} bytes is longer than {FRAME_LIMIT}"));
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let rest = buffer.split_off(4 + length);
    let mut frame = std::mem::replace(buffer, rest);
    frame.drain(..4);
    Ok(Some(frame))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(words in prop::collection::vec(".{0,40}", 0..8), cut in 1usize..7) {
            let stream: Vec<u8> = words.iter().flat_map(frame).collect();
            let mut buffer = Vec::new();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = take_frame(&mut buffer).unwrap() {
                    seen.push(serde_json::from_slice::<String>(&frame).unwrap());
                }
            }
            prop_assert_eq!(seen, words);
            prop_assert!(buffer.is_empty());
        }
    }

    #[test]
    fn an_absurd_length_is_refused_before_it_is_waited_for() {
        assert!(take_frame(&mut vec![0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
