//! The name of one process among all that ever were: under which it leads, and by which its end is known.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// `HOST_BOOT_NAMESPACE_PID_START`: the machine and its boot, the namespace of process ids, the process and its start.
pub(crate) fn of_this_process(host: &str) -> String {
    let pid = std::process::id();
    format!("{}_{pid}_{}", machine(host), started(pid).unwrap_or_default())
}

/// Whether the process of that name has certainly ended: it was one of this machine, seen from here, and is no more.
pub(crate) fn has_ended(host: &str, name: &str) -> bool {
    let Some((pid, start)) =
        name.strip_prefix(&machine(host)).and_then(|rest| rest.strip_prefix('_')).and_then(|rest| rest.split_once('_'))
    else {
        return false;
    };
    let Ok(pid) = pid.parse() else { return false };
    started(pid).as_deref() != Some(start)
}

fn machine(host: &str) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::metadata("/proc/self/ns/pid").map(|meta| meta.ino()).unwrap_or_default();
    format!("{host}_{}_{namespace}", boot.get(..8).unwrap_or_default())
}

/// When a process started, in clock ticks since boot (proc(5), field 22 of stat); `None` when there is none, or only
/// what is left of one until its parent asks.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_of_this_machine_that_is_no_more_has_ended() {
        let name = of_this_process("host");
        assert!(!has_ended("host", &name));
        assert!(!has_ended("host", "other_12345678_4026531836_1_1"));
        assert!(!has_ended("host", "up-node-1"));
        let mut child = std::process::Command::new("/bin/true").spawn().expect("a process");
        let start = started(child.id()).unwrap_or_else(|| "1".to_owned());
        let name = format!("{}_{}_{start}", machine("host"), child.id());
        child.wait().expect("its end");
        assert!(has_ended("host", &name));
    }
}
