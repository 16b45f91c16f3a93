//! Stories of talking to containers: exec, attach, terminals.

use std::time::Duration;

use crate::support::{Bench, PATIENCE};
use proa_runtime::{AttachSpec, ContainerSpec, ExecSpec, Runtime, RuntimeError, Session, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn command(args: &[&str]) -> ExecSpec {
    let mut all = vec!["fixture".to_owned()];
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    ExecSpec { args: all, stdout: true, stderr: true, ..ExecSpec::default() }
}

/// Everything a session says, and its exit code.
async fn outcome(mut session: Session) -> (String, String, i32) {
    drop(session.stdin.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let read = async {
        if let Some(stdout) = &mut session.stdout {
            stdout.read_to_end(&mut out).await.unwrap();
        }
        if let Some(stderr) = &mut session.stderr {
            stderr.read_to_end(&mut err).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    let code = tokio::time::timeout(PATIENCE, session.wait()).await.unwrap().unwrap();
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), code)
}

#[tokio::test]
async fn an_exec_runs_inside_with_its_own_streams_and_code() {
    let bench = Bench::new().await;
    bench.launch(ContainerSpec { env: vec![("A".into(), "1".into())], ..bench.spec("c", &["forever"]) }).await;
    let said = outcome(bench.runtime.exec("c", command(&["both"])).await.unwrap()).await;
    assert_eq!(said, ("out\n".to_owned(), "err\n".to_owned(), 0));
    let said = outcome(bench.runtime.exec("c", command(&["exit", "42"])).await.unwrap()).await;
    assert_eq!(said.2, 42);
    let said = outcome(bench.runtime.exec("c", command(&["env", "A"])).await.unwrap()).await;
    assert_eq!(said.0, "1\n");
    let changed = ExecSpec { env: vec![("A".into(), "2".into())], ..command(&["env", "A"]) };
    assert_eq!(outcome(bench.runtime.exec("c", changed).await.unwrap()).await.0, "2\n");
    assert_eq!(bench.out("c"), "", "an exec's output is not the container's");
    bench.done().await;
}

#[tokio::test]
async fn an_exec_of_a_missing_program_says_so_with_the_shells_codes() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    for (program, expected) in [("nosuch", 127), ("/bin/nosuch", 127), ("/etc/not-a-program", 126)] {
        let spec = ExecSpec { args: vec![program.to_owned()], ..ExecSpec::default() };
        match bench.runtime.exec("c", spec).await.unwrap_err() {
            RuntimeError::Exec { code, message } => {
                assert_eq!(code, expected);
                assert!(message.starts_with(&format!("exec: {program:?}: ")), "{message}");
            }
            other => panic!("{other}"),
        }
    }
    let said = outcome(bench.runtime.exec("c", command(&["true"])).await.unwrap()).await;
    assert_eq!(said.2, 0, "and the container is none the worse");
    bench.done().await;
}

#[tokio::test]
async fn bytes_go_through_an_exec_unchanged() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    let mut session = bench.runtime.exec("c", ExecSpec { stdin: true, ..command(&["cat"]) }).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let (mut stdin, mut stdout) = (session.stdin.take().unwrap(), session.stdout.take().unwrap());
    let given = sent.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&given).await.unwrap();
    });
    let mut back = Vec::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut back)).await.unwrap().unwrap();
    writer.await.unwrap();
    assert!(back == sent);
    assert_eq!(session.wait().await.unwrap(), 0);
    bench.done().await;
}

#[tokio::test]
async fn an_exec_that_takes_too_long_is_killed_with_its_children() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    let spec = ExecSpec { timeout: Some(Duration::from_millis(300)), ..command(&["fork", "3"]) };
    let session = bench.runtime.exec("c", spec).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, session.wait()).await.unwrap().unwrap_err();
    assert!(matches!(&error, RuntimeError::Exec { code: 124, message } if message == "command timed out after 0.3 s"));
    // Zombies do not count: the orphans of an exec are the container's init's to reap.
    let pid = bench.runtime.status("c").await.unwrap().pid.unwrap();
    let gone = async {
        while crate::support::alive_beside(pid) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    bench.done().await;
}

#[tokio::test]
async fn a_terminal_of_an_exec_has_a_size_that_changes() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    let size = TerminalSize { width: 91, height: 31 };
    let spec = ExecSpec { tty: true, stdin: true, size: Some(size), ..command(&["tty"]) };
    let mut session = bench.runtime.exec("c", spec).await.unwrap();
    let mut stdout = session.stdout.take().unwrap();
    session.resize(TerminalSize { width: 92, height: 32 }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let mut out = Vec::new();
    tokio::time::timeout(PATIENCE, stdout.read_to_end(&mut out)).await.unwrap().unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(out.ends_with("92x32\r\n"), "{out:?}");
    assert!(out.contains("go\r\n"), "a terminal echoes: {out:?}");
    assert_eq!(session.wait().await.unwrap(), 0);
    bench.done().await;
}

#[tokio::test]
async fn an_attachment_feeds_and_hears_the_main_process() {
    let bench = Bench::new().await;
    let spec = ContainerSpec { stdin: true, stdin_once: true, ..bench.spec("c", &["cat"]) };
    bench.launch(spec).await;
    let wanted = AttachSpec { stdin: true, stdout: true, stderr: true };
    let mut session = bench.runtime.attach("c", wanted).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
    let mut heard = [0; 6];
    tokio::time::timeout(PATIENCE, session.stdout.as_mut().unwrap().read_exact(&mut heard)).await.unwrap().unwrap();
    assert_eq!(&heard, b"hello\n");
    let (out, _, code) = outcome(session).await;
    assert_eq!((out.as_str(), code), ("", 0), "the end of its input ends it");
    assert_eq!(bench.out("c"), "hello\n");
    bench.done().await;
}

#[tokio::test]
async fn an_attachment_hears_more_than_pipes_hold() {
    let bench = Bench::new().await;
    bench.runtime.create("pod", bench.spec("c", &["lines", "50000"])).await.unwrap();
    let wanted = AttachSpec { stdout: true, ..AttachSpec::default() };
    let session = bench.runtime.attach("c", wanted).await.unwrap();
    bench.runtime.start("c").await.unwrap();
    let (out, _, code) = outcome(session).await;
    assert_eq!((out.lines().count(), code), (50_000, 0));
    bench.done().await;
}

#[tokio::test]
async fn a_container_with_a_terminal_is_resized_and_logged() {
    let bench = Bench::new().await;
    bench.runtime.create("pod", ContainerSpec { tty: true, stdin: true, ..bench.spec("c", &["tty"]) }).await.unwrap();
    let wanted = AttachSpec { stdin: true, stdout: true, stderr: true };
    let mut session = bench.runtime.attach("c", wanted).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize(TerminalSize { width: 70, height: 20 }).await.unwrap();
    bench.runtime.start("c").await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"x\n").await.unwrap();
    let (out, _, code) = outcome(session).await;
    assert!(out.contains("70x20\r\n"), "{out:?}");
    assert_eq!(code, 0);
    assert!(bench.out("c").contains("70x20"));
    bench.done().await;
}

#[tokio::test]
async fn a_rotated_log_goes_on_in_a_new_file() {
    let bench = Bench::new().await;
    bench.launch(ContainerSpec { stdin: true, ..bench.spec("c", &["cat"]) }).await;
    let mut session = bench.runtime.attach("c", AttachSpec { stdin: true, stdout: true, stderr: false }).await.unwrap();
    let mut say = async |text: &[u8]| {
        session.stdin.as_mut().unwrap().write_all(text).await.unwrap();
        let mut heard = vec![0; text.len()];
        session.stdout.as_mut().unwrap().read_exact(&mut heard).await.unwrap();
    };
    say(b"before\n").await;
    std::fs::rename(bench.log("c"), bench.dir.path().join("rotated")).unwrap();
    bench.runtime.reopen_log("c").await.unwrap();
    say(b"after\n").await;
    assert_eq!(bench.out("c"), "after\n");
    assert!(std::fs::read_to_string(bench.dir.path().join("rotated")).unwrap().ends_with("stdout F before\n"));
    bench.done().await;
}
