//! Pods on the node: what runs, what it sees, and how a user looks into it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Cluster, eventually, kubectls, text};

fn busybox() -> Cluster {
    let cluster = Cluster::up();
    cluster.load_busybox();
    cluster
}

fn log_of(cluster: &Cluster, pod: &str) -> String {
    cluster.kubectl(&["wait", &format!("pod/{pod}"), "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s"]);
    cluster.kubectl(&["logs", pod])
}

#[test]
fn init_containers_run_in_order_and_share_volumes_with_the_others() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  restartPolicy: Never
  volumes: [{name: shared, emptyDir: {}}, {name: memory, emptyDir: {medium: Memory}}]
  initContainers:
  - {name: one, image: 'test/busybox:1', command: [sh, -c, 'echo one >> /shared/log'], volumeMounts: [{name: shared, mountPath: /shared}]}
  - {name: two, image: 'test/busybox:1', command: [sh, -c, 'echo two >> /shared/log'], volumeMounts: [{name: shared, mountPath: /shared}]}
  containers:
  - {name: main, image: 'test/busybox:1', command: [sh, -c, 'cat /shared/log; mount | grep -c \"/memory type tmpfs\"'], volumeMounts: [{name: shared, mountPath: /shared}, {name: memory, mountPath: /memory}]}
",
    );
    assert_eq!(log_of(&cluster, "order"), "one\ntwo\n1\n");
}

#[test]
fn environment_and_files_come_from_config_maps_secrets_and_the_pod_itself() {
    let cluster = busybox();
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=colour=blue",
        "--from-literal=file.txt=content",
    ]);
    cluster.kubectl(&["create", "secret", "generic", "keys", "--from-literal=password=hunter2"]);
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: env, labels: {tier: front}}
spec:
  restartPolicy: Never
  volumes:
  - {name: config, configMap: {name: settings}}
  - {name: secret, secret: {secretName: keys, defaultMode: 0400}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c]
    args:
    - echo $COLOUR $PREFIX_colour $PASSWORD $NAME $(IP_KNOWN) $CPU $COMBINED;
      cat /config/file.txt; echo; stat -L -c %a /secret/password; cat /info/labels; echo;
      test -s /var/run/secrets/kubernetes.io/serviceaccount/token && test -s /var/run/secrets/kubernetes.io/serviceaccount/ca.crt && cat /var/run/secrets/kubernetes.io/serviceaccount/namespace; echo;
      echo $KUBERNETES_SERVICE_HOST; hostname; grep -c svc.cluster.local /etc/resolv.conf
    resources: {limits: {cpu: 500m, memory: 64Mi}}
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: keys, key: password}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: COMBINED, value: '$(COLOUR)-$(NAME)'}
    - {name: IP_KNOWN, value: 'echo known'}
    envFrom: [{prefix: PREFIX_, configMapRef: {name: settings}}]
    volumeMounts: [{name: config, mountPath: /config}, {name: secret, mountPath: /secret}, {name: info, mountPath: /info}]
",
    );
    assert_eq!(
        log_of(&cluster, "env"),
        "blue blue hunter2 env echo known 500 blue-env\ncontent\n400\ntier=\"front\"\ndefault\n10.96.0.1\nenv\n1\n"
    );
    cluster.assert_nothing_was_forbidden();
}

#[test]
fn a_missing_key_is_named_and_the_pod_starts_when_it_comes() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  restartPolicy: Never
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'echo $V'], env: [{name: V, valueFrom: {configMapKeyRef: {name: late, key: v}}}]}]
",
    );
    cluster.wait_for("pod/waits", ".status.containerStatuses[0].state.waiting.reason", "CreateContainerConfigError");
    assert!(cluster.kubectl(&["describe", "pod", "waits"]).contains("configmap \"late\" not found"));
    cluster.kubectl(&["create", "configmap", "late", "--from-literal=v=here"]);
    assert_eq!(log_of(&cluster, "waits"), "here\n");
}

#[test]
fn security_context_and_limits_hold() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: locked}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000]}
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: main
    image: test/busybox:1
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    command: [sh, -c, 'id -u; id -g; id -G; touch /x 2>&1; stat -c %g /v; touch /v/x && echo wrote; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status']
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: greedy}
spec:
  restartPolicy: Never
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'tail /dev/zero'], resources: {limits: {memory: 32Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: hoarder}
spec:
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'head -c 2000000 /dev/zero > /hoard; exec sleep 1000'], resources: {limits: {ephemeral-storage: 1Mi}}}]
",
    );
    let log = log_of(&cluster, "locked");
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..2], ["1000", "3000"], "{log}");
    for group in ["3000", "2000", "4000"] {
        assert!(lines[2].split(' ').any(|id| id == group), "{log}");
    }
    assert!(lines[3].contains("Read-only file system"), "{log}");
    assert_eq!(lines[4..6], ["2000", "wrote"], "{log}");
    assert!(lines[6].ends_with("0000000000000000") && lines[7].ends_with('1'), "{log}");
    cluster.wait_for("pod/greedy", ".status.containerStatuses[0].state.terminated.reason", "OOMKilled");
    cluster.wait_for("pod/hoarder", ".status.reason", "Evicted");
}

#[test]
fn a_failing_container_is_restarted_with_back_off_and_its_last_words_are_kept() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'echo attempt; echo bye > /dev/termination-log; exit 3']}]
",
    );
    cluster.wait_for("pod/crash", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff");
    let terminated = "jsonpath={.status.containerStatuses[0].lastState.terminated.exitCode} {.status.containerStatuses[0].lastState.terminated.message}";
    assert_eq!(cluster.kubectl(&["get", "pod", "crash", "-o", terminated]).trim(), "3 bye");
    assert_eq!(cluster.kubectl(&["logs", "crash", "--previous"]), "attempt\n");
    assert!(cluster.kubectl(&["get", "pod", "crash"]).contains("CrashLoopBackOff"));
}

#[test]
fn probes_gate_traffic_and_restart_what_is_dead() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, 'touch /tmp/alive; sleep 3600']
    startupProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [cat, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: [cat, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}
",
    );
    cluster.wait_for("pod/probed", ".status.containerStatuses[0].started", "true");
    assert_eq!(
        cluster.kubectl(&["get", "pod", "probed", "-o", "jsonpath={.status.containerStatuses[0].ready}"]),
        "false"
    );
    cluster.kubectl(&["exec", "probed", "--", "touch", "/tmp/ready"]);
    cluster.kubectl(&["wait", "pod/probed", "--for=condition=Ready", "--timeout=30s"]);
    cluster.kubectl(&["exec", "probed", "--", "rm", "/tmp/alive"]);
    cluster.wait_for("pod/probed", ".status.containerStatuses[0].restartCount", "1");
    assert!(cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=probed"]).contains("Unhealthy"));
}

#[test]
fn hooks_run_and_the_grace_period_ends() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 2
  volumes: [{name: out, hostPath: {path: OUT, type: DirectoryOrCreate}}]
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, \"trap 'echo term >> /out/log' TERM; while true; do sleep 0.1; done\"]
    volumeMounts: [{name: out, mountPath: /out}]
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo started >> /out/log']}}
      preStop: {exec: {command: [sh, -c, 'echo stopping >> /out/log']}}
"
        .replace("OUT", cluster.scratch().join("out").to_str().expect("a path"))
        .as_str(),
    );
    cluster.kubectl(&["wait", "pod/stubborn", "--for=condition=Ready", "--timeout=30s"]);
    let begun = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "stubborn", "--timeout=30s"]);
    assert!(
        begun.elapsed() > Duration::from_secs(2) && begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        std::fs::read_to_string(cluster.scratch().join("out/log")).expect("the log"),
        "started\nstopping\nterm\n"
    );
}

#[test]
fn every_kubectl_looks_into_a_pod() {
    let mut cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: 'test/busybox:1', command: [sh, -c, 'echo first; echo second; cat'], stdin: true}
  - {name: web, image: 'example/echo:v1'}
",
    );
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);
    let all = kubectls();
    for (round, kubectl) in [&all[0], &all[all.len() - 1]].into_iter().enumerate() {
        cluster.use_kubectl(kubectl.clone());
        assert_eq!(cluster.kubectl(&["logs", "box", "-c", "main", "--tail=1"]).lines().count(), 1);
        let stamped = cluster.kubectl(&["logs", "box", "-c", "main", "--timestamps"]);
        assert!(stamped.lines().next().is_some_and(|line| line.contains("T") && line.ends_with(" first")), "{stamped}");
        assert_eq!(cluster.kubectl(&["exec", "box", "-c", "main", "--", "echo", "hello"]), "hello\n");
        let failed =
            cluster.try_kubectl(&["exec", "box", "-c", "main", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((failed.status.code(), failed.stdout.as_slice()), (Some(7), &b"out\n"[..]), "{}", text(&failed));
        assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"), "{}", text(&failed));
        assert_eq!(cluster.kubectl_stdin(&["exec", "-i", "box", "-c", "main", "--", "cat"], "through\n"), "through\n");

        let file = cluster.scratch().join(format!("file-{round}"));
        let back = cluster.scratch().join(format!("back-{round}"));
        let content: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&file, &content).expect("a file");
        cluster.kubectl(&["cp", file.to_str().expect("a path"), "box:/tmp/file", "-c", "main"]);
        cluster.kubectl(&["cp", "box:/tmp/file", back.to_str().expect("a path"), "-c", "main"]);
        assert!(std::fs::read(&back).expect("the copy") == content, "the copy differs");

        let mut forward =
            cluster.kubectl_command(&["port-forward", "pod/box", "18080:8080"]).spawn().expect("kubectl runs");
        let body = eventually("the forwarded port answers", || {
            cluster.namespace.enter(|| {
                let mut stream = TcpStream::connect("127.0.0.1:18080").ok()?;
                stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).ok()?;
                answer.contains("echo v1").then_some(answer)
            })
        });
        assert!(body.contains("pod=box"), "{body}");
        forward.kill().expect("kubectl runs");
        forward.wait().expect("kubectl ends");
    }
}

#[test]
fn logs_follow_until_the_container_ends() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: talks}
spec:
  restartPolicy: Never
  containers: [{name: main, image: 'test/busybox:1', command: [sh, -c, 'for i in 1 2 3 4 5; do echo $i; sleep 0.2; done']}]
",
    );
    cluster.kubectl(&[
        "wait",
        "pod/talks",
        "--for=jsonpath={.status.containerStatuses[0].state.running}",
        "--timeout=30s",
    ]);
    let follow =
        cluster.kubectl_command(&["logs", "-f", "talks"]).stdout(Stdio::piped()).output().expect("kubectl runs");
    assert_eq!(String::from_utf8_lossy(&follow.stdout), "1\n2\n3\n4\n5\n");
}

#[test]
fn probes_over_http_and_tcp_pass_and_early_failures_are_not_told() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, 'echo hello > /tmp/index.html; sleep 0.5; exec httpd -f -p 8080 -h /tmp']
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {tcpSocket: {port: http}, periodSeconds: 5}
    livenessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {httpGet: {path: /ready, port: 8080, httpHeaders: [{name: X-Why, value: probe}]}, periodSeconds: 1}
",
    );
    cluster.wait_for("pod/slow", ".status.containerStatuses[0].started", "true");
    let events = cluster.kubectl(&["get", "events", "--field-selector=involvedObject.name=slow"]);
    assert!(!events.contains("Startup probe failed"), "a container that is just starting is not unhealthy:\n{events}");
    cluster.kubectl(&["exec", "slow", "--", "touch", "/tmp/ready"]);
    cluster.kubectl(&["wait", "pod/slow", "--for=condition=Ready", "--timeout=30s"]);
    cluster.kubectl(&["exec", "slow", "--", "rm", "/tmp/ready"]);
    cluster.kubectl(&["wait", "pod/slow", "--for=condition=Ready=false", "--timeout=30s"]);
    assert!(
        cluster
            .kubectl(&["describe", "pod", "slow"])
            .contains("Readiness probe failed: HTTP probe failed with statuscode: 404")
    );
    assert_eq!(
        cluster.kubectl(&["get", "pod", "slow", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"]),
        "0"
    );
}

#[test]
fn a_program_in_a_pod_speaks_to_the_api_as_its_service_account() {
    let cluster = busybox();
    let kubectl = kubectls().pop().expect("a kubectl").display().to_string();
    cluster.kubectl(&["create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount=default:default"]);
    cluster.apply(
        &"
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  volumes: [{name: kubectl, hostPath: {path: KUBECTL, type: File}}]
  containers:
  - name: main
    image: test/busybox:1
    command: [sh, -c, 'kubectl auth whoami -o jsonpath={.status.userInfo.username}; echo; kubectl get pods -o name; kubectl delete pod client 2>&1 | cut -d: -f1']
    volumeMounts: [{name: kubectl, mountPath: /bin/kubectl, readOnly: true}]
"
        .replace("KUBECTL", &kubectl),
    );
    assert_eq!(
        log_of(&cluster, "client"),
        "system:serviceaccount:default:default\npod/client\nError from server (Forbidden)\n"
    );
}

#[test]
fn a_pod_that_can_never_fit_on_its_node_fails_and_says_why() {
    let cluster = Cluster::up();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: giant}
spec: {nodeName: node-1, containers: [{name: main, image: 'example/echo:v1', resources: {requests: {cpu: 4096}}}]}
",
    );
    cluster.wait_for("pod/giant", ".status.phase", "Failed");
    let status = cluster.kubectl(&["get", "pod", "giant", "-o", "jsonpath={.status.reason} {.status.message}"]);
    assert!(
        status.starts_with("OutOfcpu Pod was rejected: Node didn't have enough resource: cpu, requested: 4096000,"),
        "{status}"
    );
    cluster.kubectl(&["delete", "pod", "giant", "--timeout=30s"]);
}

#[test]
fn privileges_are_what_was_asked_for() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: caps}
spec:
  restartPolicy: Never
  containers:
  - {name: plain, image: 'test/busybox:1', command: [sh, -c, 'grep CapEff /proc/self/status; mount -t tmpfs x /tmp 2>/dev/null || echo refused']}
  - {name: added, image: 'test/busybox:1', command: [sh, -c, 'grep CapEff /proc/self/status'], securityContext: {capabilities: {add: [NET_ADMIN], drop: [CHOWN]}}}
  - {name: privileged, image: 'test/busybox:1', command: [sh, -c, 'mount -t tmpfs x /tmp && echo mounted'], securityContext: {privileged: true}}
",
    );
    cluster.wait_for("pod/caps", ".status.phase", "Succeeded");
    let log = |container: &str| cluster.kubectl(&["logs", "caps", "-c", container]);
    assert_eq!(log("plain"), "CapEff:\t00000000a80425fb\nrefused\n");
    assert_eq!(log("added"), "CapEff:\t00000000a80435fa\n");
    assert_eq!(log("privileged"), "mounted\n");
}

#[test]
fn a_terminal_follows_its_window_and_attach_and_port_forward_reach_what_runs() {
    let cluster = busybox();
    cluster.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: 'test/busybox:1', command: [sh, -c, 'while read line; do echo got $line; done'], stdin: true}
  - {name: web, image: 'example/echo:v1'}
---
apiVersion: v1
kind: Service
metadata: {name: box}
spec: {selector: {app: box}, ports: [{name: http, port: 80, targetPort: 8080}]}
",
    );
    cluster.kubectl(&["wait", "pod/box", "--for=condition=Ready", "--timeout=30s"]);

    let mut terminal = Terminal::new(24, 80);
    // The first size comes a moment after the program: until then there is none.
    let command = "until stty size 2>/dev/null | grep '30 100'; do stty size 2>/dev/null; sleep 0.1; done; exit 3";
    let mut shell =
        terminal.run(cluster.kubectl_command(&["exec", "-it", "box", "-c", "main", "--", "sh", "-c", command]));
    terminal.read_until("24 80");
    terminal.resize(30, 100);
    // The signal goes to those who have the terminal; kubectl here has it only as its input.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shell.id().try_into().expect("a pid")),
        nix::sys::signal::Signal::SIGWINCH,
    )
    .expect("kubectl runs");
    terminal.read_until("30 100");
    assert_eq!(shell.wait().expect("kubectl ends").code(), Some(3));

    let mut attached = cluster
        .kubectl_command(&["attach", "-i", "box", "-c", "main"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kubectl runs");
    attached.stdin.as_mut().expect("stdin").write_all(b"hello\n").expect("kubectl reads");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(attached.stdout.as_mut().expect("stdout")), &mut line)
        .expect("kubectl says");
    assert_eq!(line, "got hello\n");
    attached.kill().expect("kubectl runs");
    attached.wait().expect("kubectl ends");
    assert_eq!(cluster.kubectl(&["logs", "box", "-c", "main", "--since=1m"]), "got hello\n");
    let later = cluster.kubectl(&["logs", "box", "-c", "main", "--since-time=2100-01-01T00:00:00Z"]);
    assert_eq!(later, "");

    let mut forward =
        cluster.kubectl_command(&["port-forward", "service/box", "18081:http"]).spawn().expect("kubectl runs");
    let address = "127.0.0.1:18081".parse().expect("an address");
    let (_, body) = eventually("the service answers", || cluster.get(address, "/").ok());
    assert!(body.contains("pod=box"), "{body}");
    forward.kill().expect("kubectl runs");
    forward.wait().expect("kubectl ends");
}

/// A pseudo terminal, and what was read from it.
struct Terminal {
    ours: std::fs::File,
    theirs: std::os::fd::OwnedFd,
    said: String,
}

impl Terminal {
    fn new(rows: u16, columns: u16) -> Terminal {
        let size = nix::pty::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = nix::pty::openpty(&size, None).expect("a pseudo terminal");
        Terminal { ours: pair.master.into(), theirs: pair.slave, said: String::new() }
    }

    fn run(&self, mut command: std::process::Command) -> std::process::Child {
        let end = || Stdio::from(self.theirs.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("kubectl runs")
    }

    fn read_until(&mut self, text: &str) {
        let mut buffer = [0; 1024];
        while !self.said.contains(text) {
            let read = self.ours.read(&mut buffer).expect("the terminal");
            self.said.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }

    fn resize(&self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd;
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the ioctl reads one winsize, which lives until it returns.
        assert_eq!(unsafe { libc::ioctl(self.ours.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    }
}
