//! Names outside the cluster: asked of the host's own resolvers, remembered for a short while.
//!
//! A query travels as the client wrote it (flags, EDNS, size limits) under a number and a port of our own choosing, and
//! its answer travels back as it came: records unknown here pass through. Never asks by itself.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Each resolver is asked this often before the query fails.
const ROUNDS: usize = 2;
/// Queries under way at once; more are refused at once (SERVFAIL) rather than queued behind a dead resolver.
const UNDER_WAY: usize = 512;
const CACHE_ENTRIES: usize = 4096;
/// As in CoreDNS' usual configuration: long enough to spare the resolver, short enough for a change to be seen.
const CACHE_SECONDS: u32 = 30;

/// The transport the client used; the resolver is asked the same way, so that sizes fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// A question with everything that changes its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    name: Name,
    kind: RecordType,
    class: DNSClass,
    dnssec: bool,
    checking_disabled: bool,
}

struct Remembered {
    message: Message,
    since: Instant,
    seconds: u32,
}

/// Who is asked for names outside the cluster, in order of preference: a list, or a function that knows the list as it is
/// now. The function is called for every question that leaves the cluster: it must be quick.
#[derive(Clone)]
pub struct Resolvers(Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>);

impl Resolvers {
    /// Resolvers that may change.
    pub fn new(now: impl Fn() -> Vec<SocketAddr> + Send + Sync + 'static) -> Resolvers {
        Resolvers(Arc::new(now))
    }
}

impl From<Vec<SocketAddr>> for Resolvers {
    fn from(list: Vec<SocketAddr>) -> Resolvers {
        Resolvers::new(move || list.clone())
    }
}

impl std::fmt::Debug for Resolvers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Resolvers").field(&(self.0)()).finish()
    }
}

/// The resolvers outside.
pub(super) struct Upstream {
    resolvers: Resolvers,
    /// whether there were any when they were last looked at
    known: AtomicBool,
    slots: Semaphore,
    cache: Mutex<HashMap<Key, Remembered>>,
}

impl Upstream {
    pub(super) fn new(resolvers: Resolvers) -> Upstream {
        let known = AtomicBool::new(!(resolvers.0)().is_empty());
        Upstream { resolvers, known, slots: Semaphore::new(UNDER_WAY), cache: Mutex::default() }
    }

    /// Whether there is anybody to ask.
    pub(super) fn exists(&self) -> bool {
        !self.now().is_empty()
    }

    /// Whether there was anybody to ask lately; costs nothing.
    pub(super) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    fn now(&self) -> Vec<SocketAddr> {
        let resolvers = (self.resolvers.0)();
        self.known.store(!resolvers.is_empty(), Ordering::Relaxed);
        resolvers
    }

    /// The remembered answer to `query`, times to live counted down.
    pub(super) fn remembered(&self, query: &Message) -> Option<Message> {
        let key = Key::of(query)?;
        let cache = self.cache.lock();
        let found = cache.get(&key)?;
        let age = u32::try_from(found.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= found.seconds {
            return None;
        }
        let mut message = found.message.clone();
        drop(cache);
        message.metadata.id = query.metadata.id;
        message.queries.clone_from(&query.queries);
        for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Asks the resolvers in turn; the answer carries the id of `query`. `None` when none of them answered in time or
    /// too much is under way.
    pub(super) async fn ask(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let _slot = self.slots.try_acquire().ok()?;
        let resolvers = self.now();
        for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(*resolver, query).await,
                    Transport::Tcp => ask_tcp(*resolver, query).await,
                }
            };
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_) => tracing::debug!(%resolver, "resolver did not answer in time"),
            }
        }
        None
    }

    /// Remembers an answer for as long as its records allow.
    pub(super) fn remember(&self, query: &Message, answer: &[u8]) {
        let (Some(key), Ok(message)) = (Key::of(query), Message::from_vec(answer)) else { return };
        let seconds = lifetime(&message);
        if seconds == 0 {
            return;
        }
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES {
            cache.retain(|_, r| r.since.elapsed().as_secs() < u64::from(r.seconds));
            if cache.len() >= CACHE_ENTRIES {
                cache.clear();
            }
        }
        cache.insert(key, Remembered { message, since: Instant::now(), seconds });
    }
}

impl Key {
    /// `None` for queries with options that may shape the answer (client subnet, cookies).
    fn of(query: &Message) -> Option<Key> {
        let [question] = query.queries.as_slice() else { return None };
        let edns = query.edns.as_ref();
        if edns.is_some_and(|e| !e.options().as_ref().is_empty()) {
            return None;
        }
        Some(Key {
            name: question.name().to_lowercase(),
            kind: question.query_type(),
            class: question.query_class(),
            dnssec: edns.is_some_and(|e| e.flags().dnssec_ok),
            checking_disabled: query.metadata.checking_disabled,
        })
    }
}

/// For how many seconds an answer may be remembered: the shortest time to live of what it says; a negative one as its
/// SOA says (RFC 2308, section 5); anything broken or cut not at all.
fn lifetime(message: &Message) -> u32 {
    let answered = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    if !answered || message.metadata.truncation {
        return 0;
    }
    let records = if message.answers.is_empty() { &message.authorities } else { &message.answers };
    records.iter().map(|r| r.ttl).min().unwrap_or(0).min(CACHE_SECONDS)
}

async fn ask_udp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match resolver {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A new socket each time: the port is a secret that a forger would have to guess.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    let (asked, id) = renumbered(query)?;
    socket.send(&asked).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(&buffer[..length], &asked) {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(&id);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(resolver: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await?;
    let (asked, id) = renumbered(query)?;
    let length = u16::try_from(asked.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), asked.as_slice()].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if !is_answer(&answer, &asked) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    answer[..2].copy_from_slice(&id);
    Ok(answer)
}

/// The query under a random number, and the number it had.
fn renumbered(query: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let id = [*query.first().ok_or(io::ErrorKind::InvalidInput)?, *query.get(1).ok_or(io::ErrorKind::InvalidInput)?];
    let mut asked = query.to_vec();
    asked[..2].copy_from_slice(&Message::query().metadata.id.to_be_bytes());
    Ok((asked, id))
}

/// Whether `answer` answers `query`: same number, marked as an answer, same question (letter case included).
fn is_answer(answer: &[u8], query: &[u8]) -> bool {
    let Some(end) = question_end(query) else { return false };
    answer.len() >= end && answer[..2] == query[..2] && answer[2] & 0x80 != 0 && answer[12..end] == query[12..end]
}

/// Where the (only, uncompressed) question of a query ends.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = 12;
    loop {
        match *query.get(at)? {
            0 => return (query.len() >= at + 5).then_some(at + 5),
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record};

    fn query(name: &str) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        message
    }

    fn answered(query: &Message, seconds: u32) -> Vec<u8> {
        let mut answer = query.clone().into_response();
        let name = query.queries[0].name().clone();
        answer.add_answer(Record::from_rdata(name, seconds, RData::A(A(Ipv4Addr::LOCALHOST))));
        answer.to_vec().unwrap()
    }

    #[test]
    fn an_answer_is_remembered_for_its_own_time_and_for_its_own_question() {
        let upstream = Upstream::new(Vec::new().into());
        let asked = query("example.org.");
        assert!(upstream.remembered(&asked).is_none());
        upstream.remember(&asked, &answered(&asked, 20));
        let again = query("EXAMPLE.org.");
        let found = upstream.remembered(&again).unwrap();
        assert_eq!(found.metadata.id, again.metadata.id);
        assert_eq!(found.queries, again.queries, "the question comes back as it was written");
        assert!(found.answers[0].ttl <= 20);
        assert!(upstream.remembered(&query("example.com.")).is_none());
        let short = query("short.org.");
        upstream.remember(&short, &answered(&short, 0));
        assert!(upstream.remembered(&short).is_none());
    }

    #[test]
    fn only_the_answer_to_the_question_asked_counts() {
        let asked = query("example.org.");
        let bytes = asked.to_vec().unwrap();
        let good = answered(&asked, 5);
        assert!(is_answer(&good, &bytes));
        assert!(!is_answer(&bytes, &bytes), "a query is not an answer");
        let mut other_id = good.clone();
        other_id[0] ^= 1;
        assert!(!is_answer(&other_id, &bytes));
        assert!(!is_answer(&answered(&query("example.com."), 5), &bytes));
        for cut in 0..good.len().min(28) {
            assert!(!is_answer(&good[..cut], &bytes));
        }
    }
}
