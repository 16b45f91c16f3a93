//! The runtime's public face, with real containers: needs root.

mod cgroup_v2;
mod faults;
#[path = "../../../tests/guest/mod.rs"]
mod guest;
mod life;
mod sessions;
mod support;
