//! The whole system, as a user meets it: the real binary, the real kubectl, real containers and real packets, each test
//! on a platform of its own in a network namespace of its own. Needs root and kubectl.

mod access;
mod autoscaling;
mod bounds;
mod cgroup_v2;
mod cli;
mod clients;
mod command_line;
mod etcd;
mod family;
mod faults;
#[path = "../guest/mod.rs"]
mod guest;
mod harness;
mod history;
mod jobs;
mod kubectl;
mod machines;
mod network;
mod parts;
mod pods;
mod policy;
mod release;
mod replicas;
mod rollback;
mod rollout;
mod samples;
mod scheduling;
mod sets;
mod volumes;
