//! A machine of one's own for each test: a thread in a new network namespace, with its own runtime, gone afterwards.
#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]

use std::fs::File;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use proa_network::{Cidr, NetConfig, PodNet, PodNetRequest, PodNetwork};
use tempfile::TempDir;

/// Runs `story` on a thread that has a network namespace to itself. Sockets and threads made inside belong to it.
pub fn machine<F: Future<Output = ()>>(story: impl FnOnce() -> F + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), story()).await.expect("the story ends within a minute");
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `work` on a thread inside the namespace pinned at `netns`.
pub fn inside<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(netns).expect("the pinned namespace");
    let thread = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
        work()
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn cidr(text: &str) -> Cidr {
    text.parse().unwrap()
}

/// A node's pod network in a state directory that is removed afterwards.
pub struct Node {
    pub dir: TempDir,
    pub config: NetConfig,
    pub pods: PodNetwork,
}

impl Node {
    pub fn new() -> Node {
        Node::at(tempfile::tempdir().unwrap())
    }

    pub fn at(dir: TempDir) -> Node {
        let config = config(dir.path());
        Node::with(dir, config)
    }

    pub fn with(dir: TempDir, config: NetConfig) -> Node {
        let pods = PodNetwork::open(config.clone()).unwrap();
        Node { dir, config, pods }
    }

    pub async fn pod(&self, id: &str) -> PodNet {
        self.pods.setup(id, PodNetRequest::default()).await.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Namespaces are pinned in the file system: they would outlive the test.
        let _ = proa_network::reset(&self.config.state_dir, &self.config.instance);
    }
}

pub fn config(dir: &Path) -> NetConfig {
    NetConfig {
        state_dir: dir.join("network"),
        instance: "test".into(),
        pod_cidr: cidr("10.244.0.0/24"),
        cluster_cidr: cidr("10.244.0.0/16"),
        service_cidr: Some(cidr("10.96.0.0/16")),
        mtu: None,
    }
}

/// TCP and UDP servers inside a namespace that answer with a name; they end when dropped.
pub mod serve {
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    pub struct Server {
        stop: Arc<AtomicBool>,
        pub address: SocketAddr,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Answers each line (TCP) or datagram (UDP) with `<name> <peer address>`.
    pub fn echo(netns: Option<&Path>, name: &str, address: SocketAddr) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let (name, flag) = (name.to_owned(), stop.clone());
        let start = move || {
            let tcp = TcpListener::bind(address).unwrap();
            let udp = UdpSocket::bind(address).unwrap();
            udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            tcp.set_nonblocking(true).unwrap();
            let (n, f) = (name.clone(), flag.clone());
            std::thread::spawn(move || {
                let mut buffer = [0; 512];
                while !f.load(Ordering::Relaxed) {
                    if let Ok((_, from)) = udp.recv_from(&mut buffer) {
                        let _ = udp.send_to(format!("{n} {}\n", from.ip()).as_bytes(), from);
                    }
                }
            });
            std::thread::spawn(move || {
                use std::os::fd::AsFd;
                while !flag.load(Ordering::Relaxed) {
                    let mut ready = [nix::poll::PollFd::new(tcp.as_fd(), nix::poll::PollFlags::POLLIN)];
                    let _ = nix::poll::poll(&mut ready, 100u16);
                    if let Ok((mut stream, peer)) = tcp.accept() {
                        stream.set_nonblocking(false).unwrap();
                        let name = name.clone();
                        std::thread::spawn(move || {
                            let mut buffer = [0; 512];
                            while stream.read(&mut buffer).is_ok_and(|n| n > 0) {
                                let _ = stream.write_all(format!("{name} {}\n", peer.ip()).as_bytes());
                            }
                        });
                    }
                }
            });
        };
        match netns {
            Some(netns) => super::inside(netns, start),
            None => {
                // The caller's own namespace: threads inherit it.
                start();
            }
        }
        Server { stop, address }
    }

    /// A TCP connection from inside a namespace (or the caller's own).
    pub fn connect(netns: Option<&Path>, to: SocketAddr) -> std::io::Result<std::net::TcpStream> {
        let work = move || {
            let stream = std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(stream)
        };
        match netns {
            Some(netns) => super::inside(netns, work),
            None => work(),
        }
    }

    /// Says something on a connection and returns the answer: who answered, and whom it saw.
    pub fn say(stream: &mut std::net::TcpStream) -> std::io::Result<(String, IpAddr)> {
        stream.write_all(b"hello\n")?;
        let mut buffer = [0; 512];
        let length = stream.read(&mut buffer)?;
        Ok(parse(&buffer[..length]))
    }

    /// Connects, says, closes.
    pub fn ask(netns: Option<&Path>, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
        say(&mut connect(netns, to)?)
    }

    /// A UDP socket inside a namespace.
    pub fn udp(netns: Option<&Path>) -> UdpSocket {
        let work = || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        };
        match netns {
            Some(netns) => super::inside(netns, work),
            None => work(),
        }
    }

    /// Sends a datagram on a connected or unconnected socket and returns the answer.
    pub fn ask_udp(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
        socket.send_to(b"hello", to)?;
        let mut buffer = [0; 512];
        let (length, _) = socket.recv_from(&mut buffer)?;
        Ok(parse(&buffer[..length]))
    }

    fn parse(bytes: &[u8]) -> (String, IpAddr) {
        let text = String::from_utf8_lossy(bytes);
        let (name, peer) = text.trim().split_once(' ').expect("name and peer");
        (name.to_owned(), peer.parse().unwrap())
    }
}
