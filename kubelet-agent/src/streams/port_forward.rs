//! Owns port-forward: connections to `localhost` inside a pod, over SPDY streams or WebSocket channels.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::{Session, SpdyError, Stream, Writer};
use super::websocket::{normal_close, on};

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to ports inside a pod.
#[derive(Clone, Debug)]
pub(crate) struct Dialer {
    /// `None`: the host's
    pub(crate) netns: Option<PathBuf>,
    /// for messages: `namespace/name`
    pub(crate) pod: String,
}

impl Dialer {
    /// Connects to `localhost:port` in the pod's network namespace. The namespace is a property of a thread: a
    /// thread of its own enters it, makes the socket, and ends. The socket stays where it was made.
    async fn dial(&self, port: u16) -> Result<TcpStream, String> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let netns = self.netns.clone();
        std::thread::Builder::new()
            .name("port-forward".to_owned())
            .spawn(move || {
                // The client may have left while we dialed.
                let _ = sender.send(dial_here(netns.as_deref(), port));
            })
            .map_err(|e| e.to_string())?;
        let stream = receiver.await.map_err(|_| "the dialing thread ended".to_owned())?;
        let stream =
            stream.map_err(|why| format!("failed to connect to localhost:{port} inside pod {}: {why}", self.pod))?;
        TcpStream::from_std(stream).map_err(|e| e.to_string())
    }
}

fn dial_here(netns: Option<&std::path::Path>, port: u16) -> Result<std::net::TcpStream, String> {
    if let Some(path) = netns {
        let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    let mut last = String::new();
    for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        match std::net::TcpStream::connect_timeout(&SocketAddr::new(ip, port), DIAL_TIMEOUT) {
            Ok(stream) => {
                stream.set_nonblocking(true).map_err(|e| e.to_string())?;
                return Ok(stream);
            }
            Err(error) if last.is_empty() => last = error.to_string(),
            Err(_) => {}
        }
    }
    Err(last)
}

/// Serves a client that speaks SPDY, until it leaves.
pub(crate) async fn over_spdy<S>(io: S, dialer: Dialer) -> Result<(), SpdyError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(io)?;
    let mut halves: HashMap<String, (Option<Stream>, Option<Stream>)> = HashMap::new();
    while let Some(stream) = session.accept().await {
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        // Clients before 1.3 sent no id: a data stream follows its error stream.
        let request = match stream.header("requestid") {
            Some(id) => id.to_owned(),
            None if kind == "data" => stream.id.saturating_sub(2).to_string(),
            None => stream.id.to_string(),
        };
        let pair = halves.entry(request.clone()).or_default();
        match kind.as_str() {
            "error" => pair.0 = Some(stream),
            "data" => pair.1 = Some(stream),
            _ => {
                stream.writer.finish().await;
                continue;
            }
        }
        if let (Some(_), Some(_)) = pair
            && let Some((Some(error), Some(data))) = halves.remove(&request)
        {
            tokio::spawn(forward(error, data, dialer.clone()));
        }
    }
    Ok(())
}

async fn forward(error: Stream, data: Stream, dialer: Dialer) {
    let port = data.header("port").and_then(|p| p.parse().ok()).unwrap_or(0);
    let connected = if port == 0 {
        Err(format!("{:?} is not a port", data.header("port").unwrap_or_default()))
    } else {
        dialer.dial(port).await
    };
    match connected {
        Ok(stream) => splice(stream, data).await,
        Err(why) => {
            let text = format!("error forwarding port {port} to pod {}: {why}", dialer.pod);
            error.writer.send(text.into()).await;
            data.writer.finish().await;
        }
    }
    error.writer.finish().await;
}

/// How long a client may go on sending to a server that has said its last word.
const LINGER: Duration = Duration::from_millis(500);

/// Copies both ways. A client may half-close and wait for its answer; when the server has ended, so does the connection
/// soon: kubectl closes the local connection only after the error stream has ended.
async fn splice(stream: TcpStream, data: Stream) {
    // Small answers are not to wait for more.
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let Stream { data: input, writer, .. } = data;
    let (ended, server_ended) = tokio::sync::oneshot::channel();
    let outgoing = async {
        pump_out(read, writer).await;
        // The other way may be over already.
        let _ = ended.send(());
    };
    let incoming = async {
        let patience = async {
            let _ = server_ended.await;
            tokio::time::sleep(LINGER).await;
        };
        tokio::select! { () = pump_in(input, write) => {}, () = patience => {} }
    };
    tokio::join!(outgoing, incoming);
}

async fn pump_out(mut read: impl AsyncRead + Unpin, writer: Writer) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(n @ 1..) = read.read(&mut buffer).await {
        if !writer.send(Bytes::copy_from_slice(&buffer[..n])).await {
            return;
        }
    }
    writer.finish().await;
}

async fn pump_in(mut input: mpsc::Receiver<Bytes>, mut write: impl AsyncWrite + Unpin) {
    while let Some(bytes) = input.recv().await {
        if write.write_all(&bytes).await.is_err() {
            // Further data has nowhere to go; it is read so that other streams are not held up.
            while input.recv().await.is_some() {}
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// Serves a client that speaks WebSocket channels: two for each port of the query, data and error, each beginning
/// with the port's number in two bytes, low byte first.
pub(crate) async fn over_channels<S>(socket: WebSocketStream<S>, ports: &[u16], dialer: Dialer)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = socket.split();
    let (outgoing, mut messages) = mpsc::channel::<Message>(64);
    let mut inputs = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let channel = u8::try_from(index * 2).unwrap_or(u8::MAX - 1);
        for channel in [channel, channel + 1] {
            if sink.send(on(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
        }
        let (sender, input) = mpsc::channel::<Bytes>(16);
        inputs.push(sender);
        let (outgoing, dialer, port) = (outgoing.clone(), dialer.clone(), *port);
        tokio::spawn(async move {
            match dialer.dial(port).await {
                Ok(stream) => {
                    let (mut read, write) = stream.into_split();
                    let out = async {
                        let mut buffer = vec![0; 32 * 1024];
                        while let Ok(n @ 1..) = read.read(&mut buffer).await {
                            if outgoing.send(on(channel, &buffer[..n])).await.is_err() {
                                return;
                            }
                        }
                    };
                    tokio::select! { () = out => {}, () = async { pump_in(input, write).await; std::future::pending().await } => {} }
                }
                Err(why) => {
                    let _ = outgoing.send(on(channel + 1, why.as_bytes())).await;
                }
            }
        });
    }
    drop(outgoing);
    let reader = async move {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else { continue };
            if let Some((channel, rest)) = bytes.split_first()
                && channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(*channel) / 2)
            {
                let _ = input.send(Bytes::copy_from_slice(rest)).await;
            }
        }
    };
    let writer = async move {
        while let Some(message) = messages.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_close()).await;
    };
    tokio::select! { () = reader => {}, () = writer => {} }
}

#[cfg(test)]
mod tests {
    use super::super::spdy::tests_client::{Client, Frame};
    use super::super::websocket::{accept, tunnel};
    use super::*;
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::protocol::Role;

    async fn shout() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = String::new();
                stream.read_to_string(&mut text).await.unwrap();
                stream.write_all(text.to_uppercase().as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn here() -> Dialer {
        Dialer { netns: None, pod: "d/p".into() }
    }

    async fn one_request<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, port: u16) -> (String, String) {
        let port = port.to_string();
        client.open(1, &[("streamtype", "error"), ("port", &port), ("requestid", "0")]).await;
        client.open(3, &[("streamtype", "data"), ("port", &port), ("requestid", "0")]).await;
        client.data(1, "", true).await;
        client.data(3, "hello", true).await;
        let (mut text, mut error, mut open) = (Vec::new(), Vec::new(), 2);
        while open > 0 {
            if let Frame::Data { stream, fin, bytes } = client.next().await.unwrap() {
                if stream == 1 { &mut error } else { &mut text }.extend_from_slice(&bytes);
                open -= u8::from(fin);
            }
        }
        (String::from_utf8(text).unwrap(), String::from_utf8(error).unwrap())
    }

    #[tokio::test]
    async fn a_spdy_client_reaches_a_port() {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(over_spdy(far, here()));
        let answer = one_request(&mut Client::new(near), shout().await).await;
        assert_eq!(answer, ("HELLO".into(), String::new()));
    }

    #[tokio::test]
    async fn a_closed_port_is_told_on_the_error_stream() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(over_spdy(far, here()));
        let (text, error) = one_request(&mut Client::new(near), port).await;
        assert!(text.is_empty());
        assert!(error.contains("Connection refused") && error.contains("d/p"), "{error}");
    }

    #[tokio::test]
    async fn spdy_travels_within_a_websocket() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = tunnel(accept(far).await);
        tokio::spawn(over_spdy(server, here()));
        // The client's end of a tunnel is the same as ours.
        let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let answer = one_request(&mut Client::new(tunnel(socket)), shout().await).await;
        assert_eq!(answer.0, "HELLO");
    }
}
