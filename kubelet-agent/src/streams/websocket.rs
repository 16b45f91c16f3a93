//! Owns the WebSocket forms: channels of exec and attach (`v4.channel.k8s.io`, `v5.channel.k8s.io`), and a byte
//! stream within binary messages (`SPDY/3.1+portforward.k8s.io`).

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::remote_command::{Incoming, Outgoing, Wire, size};

/// Subprotocols of exec and attach, the best first.
pub(crate) const REMOTE_COMMAND: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// SPDY frames within messages (KEP-4006).
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// Channels per port.
pub(crate) const PORT_CHANNELS: &str = "v4.channel.k8s.io";

const LONGEST_MESSAGE: usize = 16 << 20;

mod channel {
    pub(super) const STDIN: u8 = 0;
    pub(super) const STDOUT: u8 = 1;
    pub(super) const STDERR: u8 = 2;
    pub(super) const ERROR: u8 = 3;
    pub(super) const RESIZE: u8 = 4;
    /// v5: the next byte names a channel that ends
    pub(super) const CLOSE: u8 = 255;
}

/// The server's end of an upgraded connection.
pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config =
        WebSocketConfig::default().max_message_size(Some(LONGEST_MESSAGE)).max_frame_size(Some(LONGEST_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A message on a channel.
pub(crate) fn on(channel: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    Message::Binary(message.into())
}

/// kubectl takes anything but code 1000 for a failure.
pub(crate) fn normal_close() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// What a client's message means to exec and attach.
fn meaning(message: &[u8]) -> Option<Incoming> {
    let (channel, rest) = message.split_first()?;
    match *channel {
        channel::STDIN => Some(Incoming::Stdin(Bytes::copy_from_slice(rest))),
        channel::RESIZE => size(rest).map(Incoming::Resize),
        channel::CLOSE if rest == [channel::STDIN] => Some(Incoming::StdinEnd),
        _ => None,
    }
}

/// A client of exec or attach.
pub(crate) fn remote_command<S>(socket: WebSocketStream<S>) -> Wire
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut stream) = socket.split();
    let (sender, incoming) = mpsc::channel(16);
    let (outgoing, mut messages) = mpsc::channel::<Outgoing>(16);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let known = match message {
                Message::Binary(bytes) => meaning(&bytes),
                Message::Text(text) => meaning(text.as_bytes()),
                Message::Close(_) => return,
                _ => None,
            };
            if let Some(known) = known
                && sender.send(known).await.is_err()
            {
                // The command is over; what is left is the client's answer to our closing.
                while let Some(Ok(_)) = stream.next().await {}
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let (message, last) = match message {
                Outgoing::Stdout(bytes) => (on(channel::STDOUT, &bytes), false),
                Outgoing::Stderr(bytes) => (on(channel::STDERR, &bytes), false),
                Outgoing::Status(bytes) => (on(channel::ERROR, &bytes), true),
            };
            if sink.send(message).await.is_err() {
                return;
            }
            if last {
                break;
            }
        }
        // The client may have closed first.
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    });
    Wire { incoming, outgoing }
}

/// The byte stream within a socket's binary messages.
pub(crate) fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (mut read, mut write) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            match message {
                Message::Binary(bytes) => match write.write_all(&bytes).await {
                    Ok(()) => {}
                    Err(_) => return,
                },
                Message::Close(_) => break,
                _ => {}
            }
        }
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                return;
            }
        }
        let _ = sink.send(normal_close()).await;
        let _ = sink.close().await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::super::remote_command::{serve, tests::echo};
    use super::*;
    use proa_runtime::TerminalSize;

    #[test]
    fn channels_have_their_meanings() {
        assert_eq!(meaning(b"\0hi"), Some(Incoming::Stdin(Bytes::from_static(b"hi"))));
        assert_eq!(meaning(&[255, 0]), Some(Incoming::StdinEnd));
        assert_eq!(
            meaning(b"\x04{\"Width\":2,\"Height\":3}"),
            Some(Incoming::Resize(TerminalSize { width: 2, height: 3 }))
        );
        for odd in [&b""[..], b"\x04x", &[255], &[255, 1], &[9, 9]] {
            assert_eq!(meaning(odd), None);
        }
    }

    #[tokio::test]
    async fn a_websocket_client_talks_to_a_process_and_the_close_is_normal() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let server = accept(far).await;
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let (session, _) = echo(7);
        tokio::spawn(serve(session, remote_command(server)));
        client.send(on(0, b"hello")).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap(), on(1, b"hello"));
        client.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
        let status = client.next().await.unwrap().unwrap().into_data();
        assert_eq!(status[0], 3);
        assert!(String::from_utf8_lossy(&status).contains("\"message\":\"7\""));
        let Message::Close(Some(frame)) = client.next().await.unwrap().unwrap() else { panic!() };
        assert_eq!(frame.code, CloseCode::Normal);
    }
}
