//! One static program for the tests: as a shim, and as whatever a container runs. By its first argument.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::exit;
use std::time::Duration;

fn main() {
    if proa_runtime::is_shim() {
        proa_runtime::shim_main();
    }
    let args: Vec<String> = std::env::args().collect();
    let arg = |index: usize| args.get(index).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "true" => {}
        "exit" => exit(arg(2).parse().unwrap()),
        "echo" => println!("{}", args[2..].join(" ")),
        "both" => {
            println!("out");
            eprintln!("err");
        }
        "lines" => {
            let mut out = std::io::stdout().lock();
            for line in 0..arg(2).parse().unwrap() {
                writeln!(out, "line {line}").unwrap();
            }
        }
        "tick" => {
            for tick in 0.. {
                println!("tick {tick}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        "sleep" => std::thread::sleep(Duration::from_secs_f64(arg(2).parse().unwrap())),
        "forever" => forever(),
        "graceful" => graceful(),
        "stubborn" => stubborn(),
        "memory" => memory(arg(2).parse().unwrap()),
        "fork" => fork(arg(2).parse().unwrap()),
        "cat" => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap();
        }
        "env" => println!("{}", std::env::var(arg(2)).unwrap_or_else(|_| "unset".to_owned())),
        "read" => print!("{}", std::fs::read_to_string(arg(2)).unwrap_or_else(|error| format!("{error}\n"))),
        "ls" => {
            let mut names: Vec<_> =
                std::fs::read_dir(arg(2)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            println!("{}", names.join(" "));
        }
        "write" => match std::fs::write(arg(2), arg(3)) {
            Ok(()) => println!("written"),
            Err(error) => println!("{error}"),
        },
        "stat" => {
            let found = std::fs::metadata(arg(2)).unwrap();
            println!("{} {} {:o}", found.uid(), found.gid(), found.mode());
        }
        "whoami" => whoami(),
        "tty" => {
            let size = rustix::termios::tcgetwinsize(std::io::stdout());
            println!("{}", size.map_or("none".to_owned(), |size| format!("{}x{}", size.ws_col, size.ws_row)));
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            let size = rustix::termios::tcgetwinsize(std::io::stdout());
            println!("{}", size.map_or("none".to_owned(), |size| format!("{}x{}", size.ws_col, size.ws_row)));
        }
        "reopen-stdout" => {
            std::fs::OpenOptions::new().append(true).open("/dev/stdout").unwrap().write_all(b"reopened\n").unwrap();
        }
        "wait-stdin" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            println!("got {}", text.trim());
        }
        other => {
            eprintln!("fixture: unknown command {other:?}");
            exit(64);
        }
    }
}

fn forever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Ends with 0 on SIGTERM, after saying so.
fn graceful() {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().unwrap();
    println!("ready");
    set.wait().unwrap();
    println!("bye");
}

/// Does not end on SIGTERM.
fn stubborn() -> ! {
    use nix::sys::signal::{SigSet, Signal};
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().unwrap();
    println!("ready");
    forever()
}

/// Takes so many MiB and touches them.
fn memory(mib: usize) {
    let mut held = Vec::new();
    for _ in 0..mib {
        held.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
    println!("took {}", held.len());
}

/// Starts so many children that sleep.
fn fork(count: usize) {
    let mut started = 0;
    for _ in 0..count {
        match std::process::Command::new("/proc/self/exe").arg("forever").spawn() {
            Ok(_) => started += 1,
            Err(_) => break,
        }
    }
    println!("started {started}");
    forever()
}

fn whoami() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or_default()
            .split_whitespace()
            .next()
            .unwrap_or("")
            .to_owned()
    };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default().trim().to_owned();
    println!(
        "pid={} uid={} gid={} groups={} caps={} bound={} nnp={} cwd={} host={}",
        std::process::id(),
        field("Uid:"),
        field("Gid:"),
        groups,
        field("CapEff:"),
        field("CapBnd:"),
        field("NoNewPrivs:"),
        std::env::current_dir().unwrap().display(),
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(),
    );
}
