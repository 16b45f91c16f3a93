//! The same stories on cgroup v2, wherever the tests run.

use std::path::Path;

use crate::guest::{self, Guest};
use crate::support::fixture;

#[test]
fn the_same_stories_on_a_machine_with_cgroup_v2() {
    if guest::host_is_on_cgroup_v2() {
        println!("this host is on cgroup v2: all the others have just shown it");
        return;
    }
    let mut guest = Guest::new();
    let tests = Path::new("/tests");
    guest.copy(&std::env::current_exe().expect("the tests themselves"), tests);
    // The tests know the path it has here.
    guest.copy(&fixture(), &fixture());
    // Left out is what takes long on an emulated processor and says nothing about control groups.
    let skipped = ["a_hundred_containers", "the_cost_of", "no_line_of", "terminal", "attachment", "bytes_go"];
    let skipped: String = skipped.iter().map(|name| format!(" --skip {name}")).collect();
    // Two mounts at once may both ask for a file system whose module is still being loaded, and one is then told that there
    // is none. `proa` asks once before anything else (preflight); here the script does.
    let said = guest.run(&format!("modprobe overlay\n/tests --test-threads=2{skipped}"));
    assert!(said.contains("life::going_beyond_the_memory_limit_is_an_oom_kill ... ok"), "{said}");
}
