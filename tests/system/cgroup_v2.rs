//! The whole platform on cgroup v2 and on Debian's own kernel, none of whose modules anybody has loaded.

use std::path::Path;

use crate::guest::{self, Guest};
use crate::harness::PROA;

const SCRIPT: &str = r#"
cat > /limited.yaml <<'END'
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  containers:
  - {name: main, image: 'example/echo:v1', resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 250m}}}
END
touch /up.log
tail -f /up.log &
/proa up --node-name node-1 --data-dir /data --apply /quickstart.yaml --apply /limited.yaml >/up.log 2>&1 &
platform=$!
until grep -q '^Ready in' /up.log; do sleep 0.1; done
# The pods are ready; the rules that lead to them may be a moment behind.
until wget -q -O - http://127.0.0.1:30080/; do sleep 0.1; done
group=/sys/fs/cgroup/proa/*/burstable
until grep -qs 67108864 $group/pod*/*/memory.max && grep -qs . $group/pod*/*/cgroup.procs; do sleep 0.1; done
container=$(dirname $(grep -l 67108864 $group/pod*/*/memory.max))
for file in memory.max cpu.max; do
    echo "container $file $(cat $container/$file)"
    echo "pod $file $(cat $container/../$file)"
done
kill $platform
wait $platform
[ -n "$(cat $container/cgroup.procs)" ] && echo "the container goes on"
/proa reset --data-dir /data
[ ! -e /sys/fs/cgroup/proa ]
"#;

#[test]
fn pods_run_within_their_limits_on_cgroup_v2() {
    if guest::host_is_on_cgroup_v2() {
        println!("this host is on cgroup v2: all the other tests ran on it");
        return;
    }
    let mut guest = Guest::new();
    guest.copy(Path::new(PROA), Path::new("/proa"));
    let quickstart = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/quickstart.yaml");
    guest.copy(Path::new(quickstart), Path::new("/quickstart.yaml"));
    let said = guest.run(SCRIPT);
    for wanted in [
        "echo v1 pod=web-",
        "container memory.max 67108864",
        "pod memory.max 67108864",
        "container cpu.max 50000 100000",
        "pod cpu.max 50000 100000",
        "the container goes on",
    ] {
        assert!(said.contains(wanted), "{wanted:?} is not in\n{said}");
    }
}
