//! Stories of processes that die at bad moments, and of many containers at once.

use std::time::{Duration, Instant};

use crate::support::{Bench, PATIENCE};
use proa_runtime::{ContainerState, ExitReason, Runtime, SandboxSpec, SandboxState};

/// The shim of a container: the parent of its init.
fn shim_of(pid: u32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn pid_of(bench: &Bench, id: &str) -> u32 {
    bench.runtime.status(id).await.unwrap().pid.unwrap()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_new_agent_takes_containers_back_with_their_logs_and_exit_codes() {
    let mut bench = Bench::new().await;
    bench.launch(bench.spec("ticks", &["tick"])).await;
    bench.launch(bench.spec("ends", &["sleep", "0.3"])).await;
    bench.launch(bench.spec("ended", &["exit", "3"])).await;
    bench.exit("ended").await;
    bench.runtime.create("pod", bench.spec("created", &["true"])).await.unwrap();
    let before = bench.runtime.status("ticks").await.unwrap();

    bench.agent_returns().await;

    assert_eq!(bench.runtime.status("ticks").await.unwrap(), before);
    assert_eq!(bench.exit("ended").await.code, 3);
    assert_eq!(bench.exit("ends").await.code, 0);
    bench.runtime.start("created").await.unwrap();
    assert_eq!(bench.exit("created").await.code, 0);
    let ticks = bench.out("ticks").lines().count();
    bench.until_said("ticks", &format!("tick {}\n", ticks + 5)).await;
    let numbers: Vec<String> = bench.out("ticks").lines().map(str::to_owned).collect();
    for (number, line) in numbers.iter().enumerate() {
        assert_eq!(*line, format!("tick {number}"), "no tick is lost");
    }
    assert_eq!(bench.runtime.list_sandboxes().await.unwrap().len(), 1);
    bench.runtime.run_sandbox(bench.sandbox("pod")).await.unwrap();
    let exit = bench.runtime.stop("ticks", 15, Duration::ZERO).await.unwrap();
    assert_eq!(exit.code, 137);
    bench.done().await;
}

#[tokio::test]
async fn a_container_whose_shim_is_killed_ends_with_137_and_a_reason() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    let pid = pid_of(&bench, "c").await;
    kill(shim_of(pid));
    let exit = bench.exit("c").await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::ContainerStatusUnknown));
    assert!(exit.message.contains("shim"), "{}", exit.message);
    assert!(!is_alive(pid));
    bench.runtime.remove("c").await.unwrap();
    bench.done().await;
}

#[tokio::test]
async fn a_shim_killed_while_no_agent_looked_is_found_out() {
    let mut bench = Bench::new().await;
    bench.launch(bench.spec("running", &["forever"])).await;
    bench.runtime.create("pod", bench.spec("created", &["forever"])).await.unwrap();
    let pids = [pid_of(&bench, "running").await, pid_of(&bench, "created").await];
    for pid in pids {
        kill(shim_of(pid));
    }
    bench.agent_returns().await;
    for (id, pid) in ["running", "created"].into_iter().zip(pids) {
        let ContainerState::Exited(exit) = bench.runtime.status(id).await.unwrap().state else { panic!("{id}") };
        assert_eq!((exit.code, exit.reason), (137, ExitReason::ContainerStatusUnknown));
        assert!(!is_alive(pid));
    }
    bench.done().await;
}

#[tokio::test]
async fn a_hundred_containers_at_once_all_run_and_leave_nothing() {
    let bench = Bench::new().await;
    let runs = (0..100).map(|n| {
        let (runtime, spec) = (bench.runtime.clone(), bench.spec(&format!("c{n}"), &["exit", &(n % 7).to_string()]));
        tokio::spawn(async move {
            let id = spec.id.clone();
            runtime.create("pod", spec).await.unwrap();
            runtime.start(&id).await.unwrap();
        })
    });
    let runs: Vec<_> = runs.collect();
    for run in runs {
        tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
    }
    for n in 0..100 {
        assert_eq!(bench.exit(&format!("c{n}")).await.code, n % 7);
    }
    for n in 0..50 {
        bench.runtime.remove(&format!("c{n}")).await.unwrap();
    }
    assert_eq!(bench.runtime.list().await.unwrap().len(), 50);
    bench.done().await;
}

/// An agent of its own that dies: what it was about goes no further.
struct Agent(tokio::runtime::Runtime);

impl Agent {
    fn new() -> (Agent, Bench) {
        let agent = Agent(tokio::runtime::Runtime::new().unwrap());
        let bench = agent.0.block_on(Bench::new());
        (agent, bench)
    }

    fn creates(&self, bench: &Bench, spec: proa_runtime::ContainerSpec) {
        let runtime = bench.runtime.clone();
        self.0.spawn(async move { runtime.create("pod", spec).await });
    }

    fn dies(self) {
        self.0.shutdown_timeout(PATIENCE);
    }
}

fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !seen() {
        assert!(begin.elapsed() < PATIENCE, "never {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
fn reset_leaves_nothing(bench: &Bench) {
    proa_runtime::reset(&bench.dir.path().join("state"), &bench.cgroup).unwrap();
    assert_eq!(bench.shims(), Vec::<i32>::new(), "processes are left");
    assert_eq!(bench.traces(), Vec::<String>::new());
}

#[test]
fn reset_ends_everything_and_removes_every_trace() {
    let (agent, bench) = Agent::new();
    let pid = agent.0.block_on(async {
        bench.launch(bench.spec("a", &["forever"])).await;
        bench.runtime.create("pod", bench.spec("b", &["forever"])).await.unwrap();
        pid_of(&bench, "a").await
    });
    agent.dies();
    assert!(is_alive(pid));
    reset_leaves_nothing(&bench);
    assert!(!is_alive(pid));
    assert!(!bench.dir.path().join("state").exists());
}

#[test]
fn an_agent_that_stops_in_order_ends_no_container() {
    let (agent, bench) = Agent::new();
    let pids = agent.0.block_on(async {
        let mut pids = Vec::new();
        for n in 0..8 {
            bench.launch(bench.spec(&format!("c{n}"), &["forever"])).await;
            pids.push(pid_of(&bench, &format!("c{n}")).await);
        }
        // A thread that waits for work like what a lost connection to a shim means.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        pids
    });
    agent.dies();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    reset_leaves_nothing(&bench);
}

#[test]
fn reset_ends_a_shim_that_hangs_before_its_first_word() {
    let (agent, bench) = Agent::new();
    // The log is opened when the container is set up and before the agent is told; a pipe that nobody reads does not open.
    std::fs::create_dir_all(bench.log("c").parent().unwrap()).unwrap();
    nix::unistd::mkfifo(&bench.log("c"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    agent.creates(&bench, bench.spec("c", &["forever"]));
    until("in its group", || {
        let procs =
            |group: &std::path::PathBuf| std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        bench.groups("pod/c").iter().any(|group| !procs(group).is_empty())
    });
    agent.dies();
    reset_leaves_nothing(&bench);
}

#[test]
fn reset_ends_shims_wherever_they_are_in_setting_up() {
    for _ in 0..3 {
        let (agent, bench) = Agent::new();
        for n in 0..16 {
            agent.creates(&bench, bench.spec(&format!("c{n}"), &["forever"]));
        }
        until("several shims", || bench.shims().len() > 4);
        agent.dies();
        reset_leaves_nothing(&bench);
    }
}

#[tokio::test]
async fn a_sandbox_that_the_machine_lost_is_made_again() {
    let mut bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    // What a reboot leaves: files, but no processes, no mounts, no groups.
    kill(shim_of(pid_of(&bench, "c").await));
    bench.exit("c").await;
    for pin in ["ipc", "shm"] {
        nix::mount::umount(&bench.dir.path().join("state/sandboxes/pod").join(pin)).unwrap();
    }
    bench.agent_returns().await;
    assert_eq!(bench.runtime.list_sandboxes().await.unwrap()[0].state, SandboxState::NotReady);

    let sandbox = bench.runtime.run_sandbox(bench.sandbox("pod")).await.unwrap();
    assert_eq!(sandbox.state, SandboxState::Ready);
    assert!(bench.runtime.list().await.unwrap().is_empty(), "its containers went with it");
    assert_eq!(bench.run(bench.spec("c", &["exit", "3"])).await.code, 3);
    bench.done().await;
}

#[tokio::test]
async fn a_sandbox_of_an_earlier_boot_is_not_ready_even_without_namespaces_of_its_own() {
    let mut bench = Bench::new().await;
    let spec = SandboxSpec { host_ipc: true, host_pid: true, ..bench.sandbox("host") };
    bench.runtime.run_sandbox(spec.clone()).await.unwrap();
    let file = bench.dir.path().join("state/sandboxes/host/sandbox.json");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let record = std::fs::read_to_string(&file).unwrap().replace(boot.trim(), "another");
    std::fs::write(&file, record).unwrap();
    bench.agent_returns().await;
    let state =
        |sandboxes: Vec<proa_runtime::Sandbox>| sandboxes.into_iter().find(|s| s.spec.id == "host").unwrap().state;
    assert_eq!(state(bench.runtime.list_sandboxes().await.unwrap()), SandboxState::NotReady);
    assert_eq!(bench.runtime.run_sandbox(spec).await.unwrap().state, SandboxState::Ready);
    bench.runtime.remove_sandbox("host").await.unwrap();
    bench.done().await;
}

/// `systemctl restart` ends whatever is in the service's group.
#[tokio::test]
async fn a_shim_leaves_the_control_groups_of_its_agent() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    let shim = shim_of(pid_of(&bench, "c").await).to_string();
    let groups = bench.groups("shims");
    assert!(!groups.is_empty());
    for group in &groups {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(procs.lines().any(|pid| pid == shim), "{shim} is not in {}", group.display());
    }
    // The hierarchies by which systemd knows whose process is whose.
    for hierarchy in ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"].map(std::path::Path::new) {
        if hierarchy.join("cgroup.procs").exists() {
            assert!(groups.iter().any(|group| group.starts_with(hierarchy)), "{}", hierarchy.display());
        }
    }
    bench.done().await;
}

#[tokio::test]
async fn a_stopped_sandbox_takes_no_more_containers() {
    let bench = Bench::new().await;
    bench.launch(bench.spec("c", &["forever"])).await;
    bench.runtime.stop_sandbox("pod").await.unwrap();
    assert_eq!(bench.exit("c").await.code, 137);
    assert!(bench.runtime.create("pod", bench.spec("d", &["true"])).await.is_err());
    bench.runtime.stop_sandbox("pod").await.unwrap();
    bench.runtime.remove_sandbox("nosuch").await.unwrap();
    bench.done().await;
}

/// No bound is asserted: a shared machine decides. The numbers are printed for `--nocapture`.
#[tokio::test]
async fn the_cost_of_a_container() {
    let bench = Bench::new().await;
    let mut times = Vec::new();
    let mut cpu = Duration::ZERO;
    for n in 0..20 {
        let spec = bench.spec(&format!("c{n}"), &["forever"]);
        let id = spec.id.clone();
        let begin = Instant::now();
        bench.runtime.create("pod", spec).await.unwrap();
        let created = begin.elapsed();
        bench.runtime.start(&id).await.unwrap();
        times.push((begin.elapsed(), created));
    }
    let pss: u64 = {
        let shim = shim_of(pid_of(&bench, "c3").await);
        let text = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        text.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    };
    for n in 0..20 {
        let pid = pid_of(&bench, &format!("c{n}")).await;
        cpu += cpu_of(shim_of(pid)) + cpu_of(pid as i32);
        bench.runtime.remove(&format!("c{n}")).await.unwrap();
    }
    times.sort();
    println!(
        "create+start p50 {:?} (create {:?}); cpu of shim and container to the start {:?}; shim pss {pss} KiB",
        times[10].0,
        times[10].1,
        cpu / 20
    );
    bench.done().await;
}

/// Processor time of a process and of its children that have ended.
fn cpu_of(pid: i32) -> Duration {
    let own = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let own = Duration::from_nanos(own.split_whitespace().next().unwrap().parse().unwrap());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let ticks = |nth: usize| -> u64 {
        stat[stat.rfind(')').unwrap() + 1..].split_whitespace().nth(nth).unwrap().parse().unwrap()
    };
    own + Duration::from_millis((ticks(13) + ticks(14)) * 10)
}
