//! Owns one SPDY connection: streams the peer opens, their data in both directions. The accepting side only:
//! kubectl opens every stream.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::SpdyError;
use super::frame::{Decoder, Encoder, Frame, Headers};

/// Chunks that wait for a slow reader of one stream.
const READ_AHEAD: usize = 64;
const LONGEST_DATA: usize = 32 * 1024;

/// A stream the peer opened. Already accepted.
pub(crate) struct Stream {
    pub(crate) id: u32,
    headers: Headers,
    /// its data; closed at its end
    pub(crate) data: mpsc::Receiver<Bytes>,
    pub(crate) writer: Writer,
}

impl Stream {
    /// A header, by its lower case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// The sending half of a stream.
#[derive(Clone)]
pub(crate) struct Writer {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Writer {
    /// Sends data; false when the connection is gone.
    pub(crate) async fn send(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(LONGEST_DATA));
            if self.frames.send(Frame::Data { stream: self.id, fin: false, bytes: chunk }).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends this direction.
    pub(crate) async fn finish(&self) {
        // A connection that is gone has ended every direction already.
        let _ = self.frames.send(Frame::Data { stream: self.id, fin: true, bytes: Bytes::new() }).await;
    }
}

/// A connection. Dropping it and every [`Writer`] sends what is queued and closes it.
pub(crate) struct Session {
    streams: mpsc::Receiver<Stream>,
}

impl Session {
    /// Takes an upgraded connection over.
    pub(crate) fn start<S>(io: S) -> Result<Self, SpdyError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (frames, outgoing) = mpsc::channel(64);
        let (opened, streams) = mpsc::channel(16);
        tokio::spawn(write_frames(write, Encoder::new()?, outgoing));
        tokio::spawn(async move {
            if let Err(error) = read_frames(read, frames, opened).await {
                tracing::debug!(%error, "SPDY connection ended");
            }
        });
        Ok(Self { streams })
    }

    /// The next stream the peer opens; `None` when the connection is over.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

async fn write_frames(mut write: impl AsyncWrite + Unpin, mut encoder: Encoder, mut frames: mpsc::Receiver<Frame>) {
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        buffer.clear();
        let mut next = Some(frame);
        while let Some(frame) = next {
            if encoder.encode(&frame, &mut buffer).is_err() {
                return;
            }
            next = if buffer.len() < 256 * 1024 { frames.try_recv().ok() } else { None };
        }
        if write.write_all(&buffer).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    // Everybody who could send is gone. The peer may have hung up first; then there is nobody to tell.
    let _ = write.shutdown().await;
}

async fn read_frames(
    mut read: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Frame>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), SpdyError> {
    // Reading alone does not keep the connection open: a strong sender is held only while streams are accepted.
    let mut state = Reader { weak: frames.downgrade(), keep: Some(frames), opened, open: HashMap::new() };
    let mut decoder = Decoder::new();
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    loop {
        while let Some(frame) = decoder.decode(&mut buffer)? {
            if !state.take(frame).await {
                return Ok(());
            }
        }
        tokio::select! {
            n = read.read_buf(&mut buffer) => if n? == 0 { return Ok(()) },
            () = state.opened.closed(), if state.keep.is_some() => state.keep = None,
        }
    }
}

struct Reader {
    weak: mpsc::WeakSender<Frame>,
    /// kept while further streams are accepted
    keep: Option<mpsc::Sender<Frame>>,
    opened: mpsc::Sender<Stream>,
    open: HashMap<u32, mpsc::Sender<Bytes>>,
}

impl Reader {
    fn sender(&self) -> Option<mpsc::Sender<Frame>> {
        self.keep.clone().or_else(|| self.weak.upgrade())
    }

    /// Does what a frame asks for; false ends the connection.
    async fn take(&mut self, frame: Frame) -> bool {
        match frame {
            Frame::Syn { stream: id, fin, headers } => {
                let Some(frames) = self.sender() else { return false };
                let (sender, data) = mpsc::channel(READ_AHEAD);
                if !fin {
                    self.open.insert(id, sender);
                }
                let reply = Frame::SynReply { stream: id, fin: false, headers: Headers::new() };
                if frames.send(reply).await.is_err() {
                    return false;
                }
                let stream = Stream { id, headers, data, writer: Writer { id, frames } };
                // Nobody accepts any more: the stream ends as it is dropped.
                let _ = self.opened.send(stream).await;
            }
            Frame::Data { stream, fin, bytes } => {
                if !bytes.is_empty()
                    && let Some(data) = self.open.get(&stream)
                {
                    // A reader that has left does not care for more.
                    let _ = data.send(bytes).await;
                }
                if fin {
                    self.open.remove(&stream);
                }
            }
            Frame::Headers { stream, fin: true, .. }
            | Frame::SynReply { stream, fin: true, .. }
            | Frame::Reset { stream, .. } => {
                self.open.remove(&stream);
            }
            Frame::Ping(id) => {
                if let Some(frames) = self.sender() {
                    let _ = frames.send(Frame::Ping(id)).await;
                }
            }
            Frame::GoAway { .. } => {
                // No new streams; the open ones go on until the peer closes the connection.
                self.keep = None;
            }
            Frame::Headers { .. } | Frame::SynReply { .. } | Frame::Other => {}
        }
        true
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The other side of a connection, for tests: what kubectl does.
    pub(crate) struct Client<S> {
        io: S,
        encoder: Encoder,
        decoder: Decoder,
        buffer: BytesMut,
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
        pub(crate) fn new(io: S) -> Self {
            Self { io, encoder: Encoder::new().unwrap(), decoder: Decoder::new(), buffer: BytesMut::new() }
        }

        pub(crate) async fn send(&mut self, frame: Frame) {
            let mut out = BytesMut::new();
            self.encoder.encode(&frame, &mut out).unwrap();
            self.io.write_all(&out).await.unwrap();
        }

        pub(crate) async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
            let headers = headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            self.send(Frame::Syn { stream, fin: false, headers }).await;
        }

        pub(crate) async fn data(&mut self, stream: u32, text: &'static str, fin: bool) {
            self.send(Frame::Data { stream, fin, bytes: Bytes::from_static(text.as_bytes()) }).await;
        }

        pub(crate) async fn next(&mut self) -> Option<Frame> {
            loop {
                if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(frame);
                }
                if self.io.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    return None;
                }
            }
        }
    }

    #[tokio::test]
    async fn streams_are_accepted_carry_data_and_end() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut session = Session::start(far).unwrap();
        let mut client = Client::new(near);
        client.open(1, &[("streamType", "data"), ("port", "80")]).await;
        let mut stream = session.accept().await.unwrap();
        assert_eq!((stream.id, stream.header("streamtype")), (1, Some("data")));
        assert_eq!(client.next().await, Some(Frame::SynReply { stream: 1, fin: false, headers: vec![] }));
        client.data(1, "ping", true).await;
        assert_eq!(stream.data.recv().await.unwrap(), "ping");
        assert!(stream.data.recv().await.is_none());
        client.send(Frame::Ping(5)).await;
        assert_eq!(client.next().await, Some(Frame::Ping(5)));
        stream.writer.send(Bytes::from_static(b"pong")).await;
        stream.writer.finish().await;
        drop((stream, session));
        assert_eq!(
            client.next().await,
            Some(Frame::Data { stream: 1, fin: false, bytes: Bytes::from_static(b"pong") })
        );
        assert_eq!(client.next().await, Some(Frame::Data { stream: 1, fin: true, bytes: Bytes::new() }));
        assert_eq!(client.next().await, None);
    }
}
