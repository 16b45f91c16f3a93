//! Stories of single containers: how they start, what they see, how they end.

use crate::support::Bench;
use proa_runtime::logs::LogStream;
use proa_runtime::{
    ContainerSpec, ContainerState, ExitReason, Mount, MountKind, Resources, Runtime, RuntimeError, User,
};
use std::time::Duration;

#[tokio::test]
async fn a_container_runs_says_its_piece_and_ends() {
    let bench = Bench::new().await;
    let exit = bench.run(bench.spec("c", &["both"])).await;
    assert_eq!((exit.code, exit.reason, exit.signal), (0, ExitReason::Completed, None));
    assert_eq!(bench.out("c"), "out\n");
    assert_eq!(bench.said("c", LogStream::Stderr), "err\n");
    let status = bench.runtime.status("c").await.unwrap();
    assert!(status.started_at.unwrap() >= status.created_at && exit.finished_at >= status.started_at.unwrap());
    bench.runtime.remove("c").await.unwrap();
    assert!(matches!(bench.runtime.status("c").await, Err(RuntimeError::ContainerNotFound(_))));
    bench.runtime.remove("c").await.unwrap();
    bench.done().await;
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    let bench = Bench::new().await;
    let exit = bench.run(bench.spec("code", &["exit", "7"])).await;
    assert_eq!((exit.code, exit.reason), (7, ExitReason::Error));
    bench.launch(bench.spec("killed", &["forever"])).await;
    bench.runtime.kill("killed", 9).await.unwrap();
    let exit = bench.exit("killed").await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(matches!(bench.runtime.kill("killed", 9).await, Err(RuntimeError::NotRunning { .. })));
    bench.done().await;
}

#[tokio::test]
async fn no_line_of_a_talkative_container_is_lost() {
    let bench = Bench::new().await;
    bench.run(bench.spec("c", &["lines", "20000"])).await;
    let out = bench.out("c");
    assert_eq!(out.lines().count(), 20_000);
    assert!(out.ends_with("line 19999\n"));
    bench.done().await;
}

#[tokio::test]
async fn a_missing_program_is_a_start_error_with_128() {
    let bench = Bench::new().await;
    let table = [
        ("nosuch", "exec: \"nosuch\": executable file not found in $PATH"),
        ("/bin/nosuch", "exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory"),
        ("/etc/not-a-program", "exec: \"/etc/not-a-program\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ];
    for (index, (program, message)) in table.into_iter().enumerate() {
        let id = format!("c{index}");
        let spec = ContainerSpec { args: vec![program.to_owned()], ..bench.spec(&id, &[]) };
        bench.runtime.create("pod", spec).await.unwrap();
        let error = bench.runtime.start(&id).await.unwrap_err();
        assert_eq!(error.to_string(), format!("failed to start container: {message}"));
        let exit = bench.exit(&id).await;
        assert_eq!((exit.code, exit.reason, exit.message.as_str()), (128, ExitReason::StartError, message));
    }
    bench.done().await;
}

#[tokio::test]
async fn what_cannot_be_set_up_is_a_create_error_and_leaves_nothing() {
    let bench = Bench::new().await;
    let mount = Mount { source: "/nosuch".into(), target: "/data".into(), ..Mount::default() };
    let spec = ContainerSpec { mounts: vec![mount], ..bench.spec("c", &["true"]) };
    let error = bench.runtime.create("pod", spec).await.unwrap_err();
    assert!(error.to_string().contains("/nosuch does not exist"), "{error}");
    assert!(bench.runtime.list().await.unwrap().is_empty());
    assert!(matches!(
        bench.runtime.create("nopod", bench.spec("c", &["true"])).await,
        Err(RuntimeError::SandboxNotFound(_))
    ));
    bench.launch(bench.spec("c", &["forever"])).await;
    assert!(matches!(
        bench.runtime.create("pod", bench.spec("c", &["true"])).await,
        Err(RuntimeError::AlreadyExists(_))
    ));
    bench.done().await;
}

#[tokio::test]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("kind", &["graceful"])).await;
    bench.until_said("kind", "ready").await;
    let exit = bench.runtime.stop("kind", 15, Duration::from_secs(30)).await.unwrap();
    assert_eq!(exit.code, 0);
    assert_eq!(bench.out("kind"), "ready\nbye\n");

    bench.launch(bench.spec("stubborn", &["stubborn"])).await;
    bench.until_said("stubborn", "ready").await;
    let exit = bench.runtime.stop("stubborn", 15, Duration::from_millis(200)).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));

    bench.runtime.create("pod", bench.spec("never-started", &["true"])).await.unwrap();
    assert_eq!(bench.runtime.status("never-started").await.unwrap().state, ContainerState::Created);
    let exit = bench.runtime.stop("never-started", 15, Duration::from_secs(30)).await.unwrap();
    assert_eq!(exit.code, 137);
    bench.done().await;
}

#[tokio::test]
async fn user_groups_capabilities_directory_and_environment_are_as_asked() {
    let bench = Bench::new().await;
    let spec = ContainerSpec {
        user: User { uid: 33, gid: 34, groups: vec![50, 60] },
        cwd: "/made/for/it".into(),
        no_new_privileges: true,
        capabilities: vec!["NET_BIND_SERVICE".into(), "SYS_RESOURCE".into()],
        oom_score_adj: Some(-500),
        ..bench.spec("c", &["whoami"])
    };
    let created = bench.runtime.create("pod", spec).await.unwrap();
    bench.runtime.start("c").await.unwrap();
    bench.exit("c").await;
    let out = bench.out("c");
    for part in ["pid=1 ", "uid=33 gid=34 groups=50 60 ", "caps=0000000000000000", "nnp=1", "cwd=/made/for/it "] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert!(out.contains("bound=0000000000000400") || out.contains("bound=0000000001000400"), "{out}");
    let privileged_host = out.contains("bound=0000000001000400");
    assert_eq!(created.warnings.len(), if privileged_host { 0 } else { 2 }, "{:?}", created.warnings);

    let spec =
        ContainerSpec { env: vec![("GREETING".into(), "a=b c".into())], ..bench.spec("env", &["env", "GREETING"]) };
    bench.run(spec).await;
    assert_eq!(bench.out("env"), "a=b c\n");
    let spec =
        ContainerSpec { user: User { uid: 33, gid: 34, groups: vec![] }, ..bench.spec("re", &["reopen-stdout"]) };
    assert_eq!(bench.run(spec).await.code, 0);
    assert_eq!(bench.out("re"), "reopened\n");
    bench.done().await;
}

#[tokio::test]
async fn a_root_may_be_read_only_and_is_never_shared() {
    let bench = Bench::new().await;
    let spec = ContainerSpec { readonly_rootfs: true, ..bench.spec("ro", &["write", "/data/x", "1"]) };
    bench.run(spec).await;
    assert!(bench.out("ro").contains("Read-only file system"), "{}", bench.out("ro"));
    bench.run(bench.spec("rw", &["write", "/data/x", "1"])).await;
    assert_eq!(bench.out("rw"), "written\n");
    bench.run(bench.spec("other", &["ls", "/data"])).await;
    assert_eq!(bench.out("other"), "\n");
    assert!(!bench.dir.path().join("image/data/x").exists());
    bench.run(bench.spec("proc", &["write", "/proc/sys/kernel/panic", "1"])).await;
    assert!(bench.out("proc").contains("Read-only file system"), "{}", bench.out("proc"));
    bench.run(bench.spec("masked", &["read", "/proc/timer_list"])).await;
    assert_eq!(bench.out("masked"), "");
    bench.done().await;
}

#[tokio::test]
async fn mounts_bring_files_directories_and_memory() {
    let bench = Bench::new().await;
    let volume = bench.dir.path().join("volume");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    std::fs::write(volume.join("file"), "from the host\n").unwrap();
    let mounts = vec![
        Mount { source: volume.clone(), target: "/vol".into(), ..Mount::default() },
        Mount { source: volume.join("file"), target: "/etc/resolv.conf".into(), readonly: true, ..Mount::default() },
        Mount { target: "/scratch".into(), kind: MountKind::Tmpfs, size_bytes: Some(1 << 20), ..Mount::default() },
    ];
    let with = |id: &str, args: &[&str]| ContainerSpec { mounts: mounts.clone(), ..bench.spec(id, args) };
    bench.run(with("a", &["read", "/etc/resolv.conf"])).await;
    assert_eq!(bench.out("a"), "from the host\n");
    bench.run(with("b", &["write", "/etc/resolv.conf", "x"])).await;
    assert!(bench.out("b").contains("Read-only file system"));
    bench.run(with("c", &["write", "/vol/sub/new", "x"])).await;
    assert_eq!(std::fs::read_to_string(volume.join("sub/new")).unwrap(), "x");
    bench.run(with("d", &["write", "/scratch/new", "x"])).await;
    assert_eq!(bench.out("d"), "written\n");
    bench.done().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_host_name_ipc_and_shm() {
    let bench = Bench::new().await;
    bench.launch(ContainerSpec { ..bench.spec("writer", &["write", "/dev/shm/x", "shared"]) }).await;
    bench.exit("writer").await;
    bench.run(bench.spec("reader", &["read", "/dev/shm/x"])).await;
    assert_eq!(bench.out("reader"), "shared\n");
    bench.done().await;
}

#[tokio::test]
async fn going_beyond_the_memory_limit_is_an_oom_kill() {
    let bench = Bench::new().await;
    let resources = Resources { memory_bytes: Some(32 << 20), ..Resources::default() };
    let exit = bench.run(ContainerSpec { resources: resources.clone(), ..bench.spec("big", &["memory", "256"]) }).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OOMKilled));
    let exit = bench.run(ContainerSpec { resources, ..bench.spec("small", &["memory", "4"]) }).await;
    assert_eq!(exit.reason, ExitReason::Completed);
    bench.done().await;
}

#[tokio::test]
async fn limits_hold_can_be_changed_and_use_is_told() {
    let bench = Bench::new().await;
    let resources =
        Resources { pids: Some(8), cpu_shares: Some(512), cpu_quota_us: Some(50_000), ..Resources::default() };
    bench.launch(ContainerSpec { resources, ..bench.spec("c", &["fork", "100"]) }).await;
    bench.until_said("c", "started").await;
    let stats = bench.runtime.stats("c").await.unwrap();
    assert!(stats.pids <= 8 && stats.pids >= 4, "{stats:?}");
    assert!(stats.memory_bytes > 0 && stats.cpu_ns > 0, "{stats:?}");
    let more = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    bench.runtime.update("c", more).await.unwrap();
    let less = Resources { memory_bytes: Some(48 << 20), pids: Some(20), ..Resources::default() };
    bench.runtime.update("c", less).await.unwrap();
    bench.runtime.stop("c", 15, Duration::from_millis(50)).await.unwrap();
    bench.done().await;
}

#[tokio::test]
async fn limits_are_where_the_kernel_reads_them() {
    let bench = Bench::new().await;
    let resources = Resources {
        cpu_shares: Some(1024),
        cpu_quota_us: Some(50_000),
        cpu_period_us: None,
        memory_bytes: Some(64 << 20),
        pids: Some(20),
    };
    bench.launch(ContainerSpec { resources, ..bench.spec("c", &["forever"]) }).await;
    let holds = |file: &str, value: &str| {
        let mut texts =
            bench.groups("pod/c").into_iter().filter_map(|dir| std::fs::read_to_string(dir.join(file)).ok());
        assert_eq!(texts.next().as_deref().map(str::trim), Some(value), "{file}");
    };
    if crate::guest::host_is_on_cgroup_v2() {
        holds("cpu.weight", "100");
        holds("cpu.max", "50000 100000");
        holds("memory.max", "67108864");
    } else {
        holds("cpu.shares", "1024");
        holds("cpu.cfs_quota_us", "50000");
        holds("memory.limit_in_bytes", "67108864");
    }
    holds("pids.max", "20");
    let more = Resources { memory_bytes: Some(96 << 20), cpu_shares: Some(1024), ..Resources::default() };
    bench.runtime.update("c", more).await.unwrap();
    if crate::guest::host_is_on_cgroup_v2() {
        holds("cpu.weight", "100");
        holds("memory.max", "100663296");
    } else {
        holds("memory.limit_in_bytes", "100663296");
    }
    bench.done().await;
}
