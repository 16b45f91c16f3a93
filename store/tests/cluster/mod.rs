//! An etcd for a test: Debian's, in a directory and with ports of its own, gone with the test.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proa_store::{Etcd, EtcdOptions, EtcdServers, Form, Key, Value};

/// A member of a cluster.
pub(crate) struct Member {
    child: Child,
    pub(crate) client: String,
    arguments: Vec<String>,
}

/// Members on loopback.
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    dir: tempfile::TempDir,
}

/// A port nobody listens on now. etcd has to be told one before it starts.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("an address").port()
}

impl Cluster {
    /// Starts `count` members over HTTP.
    pub(crate) fn start(count: usize) -> Cluster {
        Cluster::start_with(count, "http", &[])
    }

    pub(crate) fn start_with(count: usize, scheme: &str, more: &[String]) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let all = ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}"));
        let all = all.collect::<Vec<_>>().join(",");
        let members = ports.iter().enumerate().map(|(n, (client, peer))| {
            let data: PathBuf = dir.path().join(format!("m{n}"));
            let client = format!("{scheme}://127.0.0.1:{client}");
            let mut arguments: Vec<String> = [
                ("--name", format!("m{n}")),
                ("--data-dir", data.display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client.clone()),
                ("--listen-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-advertise-peer-urls", format!("http://127.0.0.1:{peer}")),
                ("--initial-cluster", all.clone()),
                ("--heartbeat-interval", "50".to_owned()),
                ("--election-timeout", "500".to_owned()),
                ("--log-level", "error".to_owned()),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
            arguments.extend_from_slice(more);
            Member { child: spawn(&arguments), client, arguments }
        });
        Cluster { members: members.collect(), dir }
    }

    pub(crate) fn servers(&self) -> EtcdServers {
        EtcdServers {
            urls: self.members.iter().map(|member| member.client.clone()).collect(),
            ..EtcdServers::default()
        }
    }

    /// A client of it, which compacts nothing by itself.
    pub(crate) async fn open(&self, form: impl Form) -> Etcd {
        let options = EtcdOptions { compact_every: None, ..EtcdOptions::new(self.servers()) };
        Etcd::open(options, form).await.expect("an etcd that has just been started")
    }

    /// Kills a member, as a power failure does.
    pub(crate) fn kill(&mut self, at: usize) {
        self.members[at].end();
    }

    pub(crate) fn revive(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.child = spawn(&member.arguments);
    }

    /// The member that leads, as etcd's own tool sees it.
    pub(crate) fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            let leads = |member: &Member| {
                let mut command = Command::new("etcdctl");
                command.args(["--endpoints", &member.client, "endpoint", "status"]).env("ETCDCTL_API", "3");
                let said = command.output().expect("etcdctl, of Debian's etcd-client");
                // endpoint, id, version, size, leads, …
                String::from_utf8_lossy(&said.stdout).split(", ").nth(4) == Some("true")
            };
            if let Some(leader) = self.members.iter().position(leads) {
                return leader;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no member leads");
        }
    }
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new("etcd");
    command.args(arguments).env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH).stderr(Stdio::null());
    command.stdout(Stdio::null()).spawn().expect("etcd, of Debian's etcd-server")
}

impl Member {
    fn end(&mut self) {
        let pid = Pid::from_raw(self.child.id().try_into().expect("a pid"));
        // It may have been killed before.
        let _ = kill(pid, Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

/// Keys below a prefix of a test's own, values behind the place of their revision.
#[derive(Clone)]
pub(crate) struct Below(pub(crate) String);

impl Form for Below {
    fn key_out(&self, key: &str) -> String {
        format!("{}:{key}", self.0)
    }

    fn key_in(&self, key: &str) -> Option<Key> {
        key.strip_prefix(&self.0)?.strip_prefix(':').filter(|key| !key.starts_with('\0')).map(Key::from)
    }

    fn value_out(&self, value: &Value) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u32(value.revision_at.map_or(u32::MAX, |at| at as u32));
        out.put_slice(&value.bytes);
        out.freeze()
    }

    fn value_in(&self, _key: &str, kept: &Bytes) -> Result<Value, String> {
        let (at, bytes) = kept.split_at_checked(4).ok_or("it is too short")?;
        let at = u32::from_be_bytes(at.try_into().expect("four bytes"));
        Ok(Value { bytes: Bytes::copy_from_slice(bytes), revision_at: (at != u32::MAX).then_some(at as usize) })
    }

    fn mark(&self) -> String {
        format!("{}:\0mark", self.0)
    }
}
