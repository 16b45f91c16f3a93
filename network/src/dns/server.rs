//! The server: queries in, replies out, over UDP and TCP.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use super::answer::{Names, Reply};
use super::upstream::{Resolvers, Transport, Upstream};
use super::zone::Zone;

/// What we say we take over UDP: no fragments on any sane path (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
/// What a client without EDNS takes (RFC 1035, section 4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// Open TCP connections; more wait in the listener's queue.
const CONNECTIONS: usize = 256;
/// How long a TCP connection may be silent (RFC 7766, section 6.2.3).
const IDLE: Duration = Duration::from_secs(10);

/// What all sockets share.
pub(super) struct Server {
    zone: watch::Receiver<Arc<Zone>>,
    /// The names of the zone last seen, and how many zones there were.
    names: Mutex<(Arc<Names>, u32)>,
    servers: Vec<IpAddr>,
    upstream: Upstream,
    connections: Arc<Semaphore>,
    /// Turns the order of addresses, so that clients that take the first one spread.
    turn: AtomicUsize,
}

/// What is to be done about a query.
enum Step {
    /// Say nothing: it is no query.
    Ignore,
    /// Send this.
    Send(Vec<u8>),
    /// Ask upstream, as the client wrote it.
    Forward(Box<Message>),
    /// Ask upstream where an alias leads, and complete the reply.
    Follow(Box<Message>, Box<Message>, Name),
}

impl Server {
    pub(super) fn new(zone: watch::Receiver<Arc<Zone>>, servers: Vec<IpAddr>, upstream: Resolvers) -> Server {
        let names = Names::new(zone.borrow().clone(), 1, servers.clone());
        Server {
            zone,
            names: Mutex::new((Arc::new(names), 1)),
            servers,
            upstream: Upstream::new(upstream),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            turn: AtomicUsize::new(0),
        }
    }

    pub(super) async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 65_535];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // A client that went away: the kernel reports it on the next call.
                Err(error) => {
                    tracing::debug!(%error, "receiving a DNS query");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            match self.step(&buffer[..length], Transport::Udp) {
                Step::Ignore => {}
                Step::Send(reply) => {
                    let _ = socket.send_to(&reply, peer).await;
                }
                step => {
                    let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
                    tokio::spawn(async move {
                        if let Some(reply) = server.complete(step, &query, Transport::Udp).await {
                            let _ = socket.send_to(&reply, peer).await;
                        }
                    });
                }
            }
        }
    }

    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        let _ = server.serve_connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a DNS connection");
                    // Out of descriptors, most likely: waiting is all there is to do.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let read = async {
                let length = stream.read_u16().await?;
                let mut query = vec![0; usize::from(length)];
                stream.read_exact(&mut query).await?;
                std::io::Result::Ok(query)
            };
            let Ok(query) = tokio::time::timeout(IDLE, read).await else { return Ok(()) };
            let query = query?;
            let step = self.step(&query, Transport::Tcp);
            if let Some(reply) = self.complete(step, &query, Transport::Tcp).await {
                let length = u16::try_from(reply.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
                stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat()).await?;
            }
        }
    }

    /// What to do about a query, without waiting for anything.
    fn step(&self, bytes: &[u8], transport: Transport) -> Step {
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(_) => return malformed(bytes),
        };
        if query.metadata.message_type != MessageType::Query {
            return Step::Ignore;
        }
        let refuse = |code| Step::Send(self.encode(&query, self.reply_to(&query, code), transport));
        if query.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = query.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if question.query_class() != DNSClass::IN
            || matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR)
        {
            return refuse(ResponseCode::Refused);
        }
        let Some(reply) = self.names().answer(question.name(), question.query_type()) else {
            return match self.upstream.remembered(&query) {
                Some(remembered) => Step::Send(self.encode(&query, remembered, transport)),
                None if !self.upstream.exists() => refuse(ResponseCode::ServFail),
                None => Step::Forward(Box::new(query)),
            };
        };
        let Reply { code, mut answers, authorities, additionals, continues } = reply;
        let aliases = answers.iter().take_while(|r| r.record_type() == RecordType::CNAME).count();
        let addresses = &mut answers[aliases..];
        if addresses.len() > 1 {
            addresses.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len());
        }
        let mut message = self.reply_to(&query, code);
        message.metadata.authoritative = true;
        message.answers = answers;
        message.authorities = authorities;
        message.additionals = additionals;
        match continues.filter(|_| self.upstream.exists()) {
            Some(target) => Step::Follow(Box::new(query), Box::new(message), target),
            None => Step::Send(self.encode(&query, message, transport)),
        }
    }

    /// Carries a step through to the reply.
    async fn complete(&self, step: Step, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match step {
            Step::Ignore => None,
            Step::Send(reply) => Some(reply),
            Step::Forward(query) => match self.upstream.ask(bytes, transport).await {
                Some(answer) => {
                    self.upstream.remember(&query, &answer);
                    Some(answer)
                }
                None => Some(self.encode(&query, self.reply_to(&query, ResponseCode::ServFail), transport)),
            },
            Step::Follow(query, mut reply, target) => {
                let mut further = Message::query();
                further.metadata.recursion_desired = true;
                let kind = query.queries.first().map_or(RecordType::A, Query::query_type);
                further.add_query(Query::query(target, kind));
                match self.resolve(&further, transport).await {
                    Some(found) => {
                        reply.metadata.response_code = found.metadata.response_code;
                        reply.answers.extend(found.answers);
                        reply.authorities.extend(found.authorities);
                    }
                    // The alias itself is true whatever the resolver does: a client may follow it.
                    None => reply.metadata.response_code = ResponseCode::ServFail,
                }
                Some(self.encode(&query, *reply, transport))
            }
        }
    }

    async fn resolve(&self, query: &Message, transport: Transport) -> Option<Message> {
        if let Some(remembered) = self.upstream.remembered(query) {
            return Some(remembered);
        }
        let answer = self.upstream.ask(&query.to_vec().ok()?, transport).await?;
        self.upstream.remember(query, &answer);
        Message::from_vec(&answer).ok()
    }

    fn reply_to(&self, query: &Message, code: ResponseCode) -> Message {
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.checking_disabled = query.metadata.checking_disabled;
        reply.metadata.recursion_available = self.upstream.is_known();
        reply.metadata.response_code = code;
        reply.queries.clone_from(&query.queries);
        reply
    }

    /// The reply in bytes, within what the client takes. What does not fit is left out: additional records first, then
    /// answers, and those with the mark that tells the client to come by TCP.
    fn encode(&self, query: &Message, mut reply: Message, transport: Transport) -> Vec<u8> {
        reply.edns = query.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        if let (Some(edns), true) = (&mut reply.edns, reply.metadata.response_code.high() > 0) {
            edns.set_rcode_high(reply.metadata.response_code.high());
        }
        let limit = match (transport, &query.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_PAYLOAD, PAYLOAD),
            (Transport::Udp, None) => PLAIN_PAYLOAD,
        };
        loop {
            match reply.to_vec() {
                Ok(bytes) if bytes.len() <= usize::from(limit) => return bytes,
                // Nothing is left to leave out: a header alone always fits.
                _ if reply.additionals.is_empty() && reply.answers.is_empty() && reply.authorities.is_empty() => {
                    let mut bare = Message::response(query.metadata.id, query.metadata.op_code);
                    bare.metadata.response_code = ResponseCode::ServFail;
                    return bare.to_vec().unwrap_or_default();
                }
                _ if !reply.additionals.is_empty() => reply.additionals.clear(),
                _ => {
                    reply.metadata.truncation = true;
                    reply.authorities.clear();
                    reply.answers.truncate(reply.answers.len() * 3 / 4);
                }
            }
        }
    }

    /// The names of the zone as it is now.
    fn names(&self) -> Arc<Names> {
        let zone = self.zone.borrow().clone();
        let mut names = self.names.lock();
        if !Arc::ptr_eq(&names.0.zone, &zone) {
            let serial = names.1.wrapping_add(1);
            *names = (Arc::new(Names::new(zone, serial, self.servers.clone())), serial);
        }
        names.0.clone()
    }
}

/// Tells the sender of something unreadable so, when there is at least a number to say it under and it is a query.
fn malformed(bytes: &[u8]) -> Step {
    match bytes {
        [high, low, flags, _, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            let reply = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            reply.to_vec().map_or(Step::Ignore, Step::Send)
        }
        _ => Step::Ignore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server() -> Server {
        let (_, zone) = watch::channel(Arc::new(Zone::new("cluster.local")));
        Server::new(zone, vec![], Vec::new().into())
    }

    fn sent(step: Step) -> Option<Message> {
        match step {
            Step::Send(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn any_bytes_at_all_get_a_readable_reply_or_none(
            bytes in proptest::collection::vec(any::<u8>(), 0..80), plausible: bool) {
            let mut bytes = bytes;
            if plausible && bytes.len() >= 12 {
                // One question, no flags: gets further than noise.
                bytes[2..12].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            }
            let reply = sent(server().step(&bytes, Transport::Udp));
            if let Some(reply) = reply {
                prop_assert_eq!(&reply.metadata.id.to_be_bytes()[..], &bytes[..2]);
                prop_assert_eq!(reply.metadata.message_type, MessageType::Response);
            }
        }
    }

    #[test]
    fn what_is_not_served_is_refused_by_the_right_code() {
        let question = |class, kind| {
            let mut question = Query::query(Name::from_ascii("cluster.local.").unwrap(), kind);
            question.set_query_class(class);
            question
        };
        let ask = |change: &dyn Fn(&mut Message)| {
            let mut query = Message::query();
            query.add_query(question(DNSClass::IN, RecordType::A));
            change(&mut query);
            sent(server().step(&query.to_vec().unwrap(), Transport::Udp)).map(|r| r.metadata.response_code)
        };
        assert_eq!(ask(&|_| ()), Some(ResponseCode::NoError));
        assert_eq!(ask(&|q| q.metadata.op_code = OpCode::Status), Some(ResponseCode::NotImp));
        assert_eq!(ask(&|q| q.queries.clear()), Some(ResponseCode::FormErr));
        assert_eq!(ask(&|q| q.queries = vec![question(DNSClass::CH, RecordType::TXT)]), Some(ResponseCode::Refused));
        assert_eq!(ask(&|q| q.queries = vec![question(DNSClass::IN, RecordType::AXFR)]), Some(ResponseCode::Refused));
        assert_eq!(ask(&|q| q.metadata.message_type = MessageType::Response), None);
        let mut newer = Edns::new();
        newer.set_version(1);
        // BADVERS and BADSIG are the same number.
        assert_eq!(ask(&|q| q.edns = Some(newer.clone())).map(u16::from), Some(16));
        let unknown = |q: &mut Message| {
            q.queries = vec![Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A)];
        };
        assert_eq!(ask(&unknown), Some(ResponseCode::ServFail), "nobody to ask");
    }
}
