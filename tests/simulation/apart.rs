//! Each story is told in a process of its own, forked off after everything that is made once has been made.
//!
//! Owns: the two ways in which chance still reaches a thread of virtual time. The standard library seeds its hash maps,
//! and tokio the order in which it wakes equals, from the operating system and from counters of the process; a fork
//! has the same counters each time, and [`getrandom`] below answers the same in every fresh thread.

use crate::scenario::{Story, play};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};

thread_local! {
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// What the standard library asks for chance: it looks for this symbol, so that it can be replaced.
///
/// # Safety
///
/// As getrandom(2): `buffer` is writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    let drawn = DRAWN.get();
    DRAWN.set(drawn.wrapping_add(length as u64));
    for at in 0..length {
        let mixed = (drawn + at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // SAFETY: `at` is below `length`, for which the caller vouches.
        unsafe { buffer.add(at).write((mixed >> 56) as u8) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Tells the story of a seed in a process of its own.
pub(crate) fn tell(seed: u64, with_trace: bool) -> Story {
    let prepared = &*crate::PREPARED;
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // SAFETY: the child uses nothing another thread could hold: it starts a thread of its own, writes to its pipe and
    // ends; glibc keeps its allocator usable over a fork.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // Without fast bins, whose emptying walks the heap: a tenth less work.
            // SAFETY: sets a parameter of the allocator; this thread is the only one.
            unsafe { libc::mallopt(libc::M_MXFAST, 0) };
            let mut story = std::thread::spawn(move || play(prepared, seed)).join().unwrap_or_else(|panic| {
                let said = panic.downcast_ref::<String>().cloned();
                let said = said.or_else(|| panic.downcast_ref::<&str>().map(|said| said.to_string()));
                Story { broken: vec![format!("panicked: {}", said.unwrap_or_default())], ..Story::default() }
            });
            if !with_trace {
                story.trace.clear();
            }
            let mut line = serde_json::to_vec(&story).expect("a story is JSON");
            line.push(b'\n');
            let _ = writer.write_all(&line);
            // SAFETY: ends this process at once; nothing of its parent's is run.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop(writer);
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).expect("the child's story");
            let mut status = 0;
            // SAFETY: the pid is of the child just forked, which nobody else waits for; `status` is valid.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            serde_json::from_str(&line).unwrap_or_else(|_| Story {
                broken: vec![format!("the process that told it ended with status {status}")],
                ..Story::default()
            })
        }
    }
}
