//! The DNS server over real sockets: on loopback, and from inside a pod.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Node, at, inside, ip, machine};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proa_network::dns::{ServicePortName, ZoneEndpoint, ZoneService};
use proa_network::{Dns, DnsConfig, Protocol, Zone};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn zone(address: &str) -> Arc<Zone> {
    let mut zone = Zone::new("cluster.local");
    let ports = vec![ServicePortName { name: Some("http".into()), protocol: Protocol::Tcp, port: 80 }];
    zone.insert("default", "web", ZoneService::Cluster { ips: vec![ip(address)], ports });
    let endpoint = |i: u8| ZoneEndpoint { ip: IpAddr::from([10, 244, 1, i]), hostname: None, ports: vec![] };
    zone.insert("default", "many", ZoneService::Headless { endpoints: (1..=100).map(endpoint).collect() });
    zone.insert("default", "away", ZoneService::External("www.example.org".into()));
    zone.into()
}

/// A running server; ends when dropped.
struct Running {
    address: SocketAddr,
    zone: watch::Sender<Arc<Zone>>,
    _stop: tokio_util::sync::DropGuard,
}

async fn running(upstream: Vec<SocketAddr>) -> Running {
    let (sender, receiver) = watch::channel(zone("10.96.0.7"));
    let dns =
        Dns::bind(DnsConfig { listen: vec![at("127.0.0.1:0")], upstream: upstream.into() }, receiver).await.unwrap();
    let address = dns.addresses()[0];
    let stop = CancellationToken::new();
    tokio::spawn(dns.serve(stop.clone()));
    Running { address, zone: sender, _stop: stop.drop_guard() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask_udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&query.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.expect("a reply");
    let message = Message::from_vec(&buffer[..received.unwrap()]).unwrap();
    assert_eq!(message.metadata.id, query.metadata.id);
    message
}

async fn ask_tcp(stream: &mut TcpStream, query: &Message) -> Message {
    let bytes = query.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

/// A resolver that answers every A question with 192.0.2.<questions so far>, over UDP and TCP.
async fn resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let reply = {
        let count = count.clone();
        move |bytes: &[u8]| {
            let query = Message::from_vec(bytes).unwrap();
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            let name = query.queries[0].name().clone();
            let mut reply = query.into_response();
            if name.to_ascii().starts_with("nothing.") {
                reply.metadata.response_code = ResponseCode::NXDomain;
            } else {
                reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, number as u8)))));
            }
            reply.to_vec().unwrap()
        }
    };
    let over_tcp = reply.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            let _ = udp.send_to(&reply(&buffer[..length]), peer).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            let reply = over_tcp(&query);
            stream.write_all(&[&(reply.len() as u16).to_be_bytes(), reply.as_slice()].concat()).await.unwrap();
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_swapped_zone_is_answered_from_at_once_over_udp_and_tcp() {
    let server = running(vec![]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let web = query("web.default.svc.cluster.local.", RecordType::A);
    for address in ["10.96.0.7", "10.96.0.8", "10.96.0.9"] {
        server.zone.send_replace(zone(address));
        let reply = ask_udp(server.address, &web).await;
        assert_eq!(data(&reply), [address]);
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired);
        assert_eq!(data(&ask_tcp(&mut stream, &web).await), [address], "one connection serves many queries");
    }
}

#[tokio::test]
async fn what_does_not_fit_is_cut_marked_and_whole_over_tcp() {
    let server = running(vec![]).await;
    let mut many = query("many.default.svc.cluster.local.", RecordType::A);
    let cut = ask_udp(server.address, &many).await;
    assert!(cut.metadata.truncation && cut.to_vec().unwrap().len() <= 512 && !cut.answers.is_empty());
    many.set_edns(Edns::new()).edns.as_mut().unwrap().set_max_payload(4096);
    let cut = ask_udp(server.address, &many).await;
    assert!(cut.metadata.truncation && cut.answers.len() > 40 && cut.edns.is_some());
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let whole = ask_tcp(&mut stream, &many).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
    let again = ask_tcp(&mut stream, &many).await;
    assert_ne!(data(&again), data(&whole), "the order turns");
}

#[tokio::test]
async fn other_names_are_asked_upstream_once_and_then_remembered() {
    let (upstream, count) = resolver().await;
    // The first resolver is dead (nobody listens there): the second one answers.
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = running(vec![dead, upstream]).await;
    let other = query("www.example.com.", RecordType::A);
    let first = ask_udp(server.address, &other).await;
    assert_eq!(data(&first), ["192.0.2.1"]);
    assert!(!first.metadata.authoritative);
    let again = ask_udp(server.address, &query("WWW.example.com.", RecordType::A)).await;
    assert_eq!(data(&again), ["192.0.2.1"]);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(data(&ask_tcp(&mut stream, &query("tcp.example.com.", RecordType::A)).await), ["192.0.2.2"]);
    let nothing = ask_udp(server.address, &query("nothing.example.com.", RecordType::A)).await;
    assert_eq!(nothing.metadata.response_code, ResponseCode::NXDomain);
    let web = ask_udp(server.address, &query("web.default.svc.cluster.local.", RecordType::A)).await;
    assert!(web.metadata.recursion_available);
    assert_eq!(count.load(Ordering::Relaxed), 3, "names of the cluster never leave it");
}

#[tokio::test]
async fn an_external_name_is_followed_upstream() {
    let (upstream, _) = resolver().await;
    let server = running(vec![upstream]).await;
    let reply = ask_udp(server.address, &query("away.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&reply), ["www.example.org.", "192.0.2.1"]);
}

#[tokio::test]
async fn without_a_living_resolver_a_query_fails_and_the_cluster_still_answers() {
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let server = running(vec![dead]).await;
    let failed = ask_udp(server.address, &query("www.example.com.", RecordType::A)).await;
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    let web = ask_udp(server.address, &query("web.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(data(&web), ["10.96.0.7"]);
}

#[tokio::test]
async fn an_address_that_is_not_ours_cannot_be_listened_on_and_says_so() {
    let (_sender, receiver) = watch::channel(zone("10.96.0.7"));
    let listen = vec![at("203.0.113.1:53")];
    let error = Dns::bind(DnsConfig { listen, upstream: Vec::new().into() }, receiver).await.err().unwrap().to_string();
    assert!(error.contains("203.0.113.1:53"), "{error}");
}

#[test]
fn a_pod_asks_the_cluster_dns_at_its_service_address() {
    machine(|| async {
        let node = Node::new();
        node.pods.add_local_address(ip("10.96.0.10")).await.unwrap();
        let (_sender, receiver) = watch::channel(zone("10.96.0.7"));
        let config = DnsConfig { listen: vec![at("10.96.0.10:53")], upstream: Vec::new().into() };
        let dns = Dns::bind(config, receiver).await.unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(dns.serve(stop.clone()));
        let pod = node.pod("a").await;
        let bytes = query("web.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
        let asking = tokio::task::spawn_blocking(move || {
            inside(&pod.netns, move || {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let begun = Instant::now();
                socket.send_to(&bytes, "10.96.0.10:53").unwrap();
                let mut buffer = [0; 512];
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                eprintln!("answered in {:?}", begun.elapsed());
                (buffer[..length].to_vec(), from)
            })
        });
        let (reply, from) = asking.await.unwrap();
        assert_eq!(from, at("10.96.0.10:53"));
        assert_eq!(data(&Message::from_vec(&reply).unwrap()), ["10.96.0.7"]);
        stop.cancel();
        serving.await.unwrap();
    });
}
