use super::*;
use crate::spec::{Resources, User};

fn host() -> Host {
    Host {
        capabilities: Capabilities::from_mask(0x1ff_feff_ffff), // everything but CAP_SYS_RESOURCE
        hard_limits: vec![("RLIMIT_NOFILE".into(), 4096)],
        ..Host::default()
    }
}

fn spec() -> ContainerSpec {
    ContainerSpec { id: "c1".into(), args: vec!["run".into()], ..ContainerSpec::default() }
}

fn made(spec: &ContainerSpec, sandbox: &SandboxSpec) -> (Value, Vec<String>) {
    let places = Places { rootfs: Path::new("/r"), sandbox_dir: Path::new("/s"), devices: &[], sources: &[] };
    config(spec, sandbox, &host(), &places)
}

#[test]
fn what_the_host_forbids_is_done_without_and_said() {
    let spec = ContainerSpec {
        capabilities: vec!["sys_resource".into(), "CAP_CHOWN".into(), "CAP_FLY".into()],
        rlimits: vec![Rlimit { name: "nofile".into(), soft: 8192, hard: 8192 }],
        ..spec()
    };
    let (config, warnings) = made(&spec, &SandboxSpec::default());
    assert_eq!(config["process"]["capabilities"]["effective"], json!(["CAP_CHOWN"]));
    assert_eq!(config["process"]["capabilities"]["inheritable"], json!([]));
    assert_eq!(config["process"]["rlimits"], json!([{ "type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096 }]));
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[test]
fn host_namespaces_are_those_not_named() {
    let names = |sandbox: &SandboxSpec| -> Vec<String> {
        let (config, _) = made(&spec(), sandbox);
        config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n["type"].as_str().unwrap().to_owned())
            .collect()
    };
    let own = SandboxSpec { netns: Some("/n".into()), ..SandboxSpec::default() };
    assert_eq!(names(&own), ["mount", "pid", "ipc", "network", "uts"]);
    let shared = SandboxSpec { host_pid: true, host_ipc: true, ..SandboxSpec::default() };
    assert_eq!(names(&shared), ["mount"]);
}

#[test]
fn an_own_mount_takes_the_place_of_a_default_one_and_outer_mounts_come_first() {
    let mount = |target: &str| Mount { source: "/x".into(), target: target.into(), ..Mount::default() };
    let spec = ContainerSpec { mounts: vec![mount("/data/deep"), mount("/data"), mount("/dev/shm")], ..spec() };
    let (config, _) = made(&spec, &SandboxSpec::default());
    let targets: Vec<&str> =
        config["mounts"].as_array().unwrap().iter().map(|m| m["destination"].as_str().unwrap()).collect();
    assert_eq!(targets.iter().filter(|t| **t == "/dev/shm").count(), 1);
    let at = |target: &str| targets.iter().position(|t| *t == target).unwrap();
    assert!(at("/data") < at("/data/deep") && at("/dev") < at("/dev/shm"));
}

#[test]
fn privileged_means_every_capability_we_hold_all_devices_and_nothing_masked() {
    let (config, warnings) = made(&ContainerSpec { privileged: true, ..spec() }, &SandboxSpec::default());
    assert_eq!(config["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 40);
    assert_eq!(config["linux"]["resources"]["devices"], json!([{ "allow": true, "access": "rwm" }]));
    assert!(config["linux"].get("maskedPaths").is_none());
    assert!(warnings.is_empty());
}

#[test]
fn the_last_value_of_a_variable_wins_and_path_has_a_default() {
    let env = |env: &[(&str, &str)]| {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        made(&ContainerSpec { env, ..spec() }, &SandboxSpec::default()).0["process"]["env"].clone()
    };
    assert_eq!(env(&[("A", "1"), ("A", "2")]), json!([format!("PATH={}", defaults::PATH), "A=2"]));
    assert_eq!(env(&[("PATH", "/p")]), json!(["PATH=/p"]));
}

#[test]
fn an_exec_is_the_container_with_differences() {
    let container = ContainerSpec {
        env: vec![("A".into(), "1".into())],
        cwd: "/work".into(),
        user: User { uid: 7, gid: 8, groups: vec![9] },
        ..spec()
    };
    let exec = ExecSpec { args: vec!["ls".into()], env: vec![("A".into(), "2".into())], ..ExecSpec::default() };
    let process = exec_process(&container, &exec, &host());
    assert_eq!(process["args"], json!(["ls"]));
    assert_eq!(process["cwd"], json!("/work"));
    assert_eq!(process["user"]["uid"], json!(7));
    assert!(process["env"].as_array().unwrap().contains(&json!("A=2")));
}

#[test]
fn limits_become_oci_resources() {
    let resources =
        Resources { memory_bytes: Some(1 << 20), cpu_quota_us: Some(1000), pids: Some(5), ..Resources::default() };
    let (config, _) = made(
        &ContainerSpec { resources, ..spec() },
        &SandboxSpec { cgroup_parent: "proa/x/podu".into(), ..SandboxSpec::default() },
    );
    let linux = &config["linux"];
    assert_eq!(linux["cgroupsPath"], json!("/proa/x/podu/c1"));
    assert_eq!(linux["resources"]["memory"], json!({ "limit": 1 << 20 }));
    assert_eq!(linux["resources"]["cpu"], json!({ "quota": 1000, "period": 100_000 }));
    assert_eq!(linux["resources"]["pids"], json!({ "limit": 5 }));
}
