//! The response body: owns how bytes leave. Never copies an object it can share.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::negotiate::Encoding;
use crate::cache::Item;

/// How much of a list is joined into one frame. Large enough that the cost per frame disappears,
/// small enough that a list of any size holds only this much beyond the objects themselves.
const LIST_FRAME: usize = 128 * 1024;

/// What a response carries.
pub enum Body {
    /// Everything at once.
    Full(Bytes),
    /// An object of the API, as JSON. [`super::form::finish`] puts it into the form the client wants.
    Object(Bytes, Option<Encoding>),
    /// Pieces that are there already.
    Pieces(Pieces),
    /// Any of these, compressed as it is sent.
    Gzip(Gzip),
    /// A list: the committed bytes of its items between a head and a tail, joined as they are sent.
    List(ListBody),
    /// A watch, a log, a proxied answer. The mutex is never locked (only `get_mut`): it makes the
    /// stream `Sync`, which warp asks of bodies.
    Stream(Mutex<BoxStream<'static, io::Result<Bytes>>>),
}

/// The pieces of a list that is being sent.
pub struct ListBody {
    head: Option<Bytes>,
    items: VecDeque<Arc<Item>>,
    tail: Option<Bytes>,
    first: bool,
    left: u64,
    /// The form the client wants it in.
    pub encoding: Encoding,
}

/// Pieces of a body, in order.
pub struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

/// A body that is compressed piece by piece.
pub struct Gzip {
    inner: Box<Body>,
    /// Nothing when all has been sent.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Body::Full(Bytes::new())
    }

    /// A stream of chunks; an error cuts the connection.
    pub fn stream(stream: impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Body::Stream(Mutex::new(stream.boxed()))
    }

    /// `head`, the items separated by commas, `tail`: a list in JSON, for a client that wants it in `encoding`.
    pub fn list(head: Bytes, items: Vec<Arc<Item>>, tail: Bytes, encoding: Encoding) -> Self {
        let commas = items.len().saturating_sub(1);
        let left = head.len() + tail.len() + commas + items.iter().map(|item| item.bytes.len()).sum::<usize>();
        Body::List(ListBody {
            head: Some(head),
            items: items.into(),
            tail: Some(tail),
            first: true,
            left: left as u64,
            encoding,
        })
    }

    /// Pieces, one after the other.
    pub fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        // An empty piece would end the body.
        let pieces: VecDeque<Bytes> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Body::Pieces(Pieces { pieces, left })
    }

    /// This body, compressed.
    pub fn gzip(self) -> Self {
        // In pieces, so that nobody waits for all of it to be compressed.
        let inner = match self {
            Body::Full(bytes) | Body::Object(bytes, _) => {
                let starts = (0..bytes.len()).step_by(LIST_FRAME);
                Body::pieces(starts.map(|at| bytes.slice(at..bytes.len().min(at + LIST_FRAME))))
            }
            body => body,
        };
        // The level of `defaultGzipContentEncodingLevel`: the cheapest.
        Body::Gzip(Gzip { inner: Box::new(inner), encoder: Some(GzEncoder::new(Vec::new(), Compression::new(1))) })
    }

    /// Everything at once, where it is not a stream: a list is joined.
    pub fn whole(&mut self) -> Option<Bytes> {
        if let Body::List(list) = self {
            let mut all = BytesMut::with_capacity(list.left as usize);
            while let Some(frame) = list.next_frame() {
                all.extend_from_slice(&frame);
            }
            *self = Body::Object(all.freeze(), Some(list.encoding));
        }
        match self {
            Body::Full(bytes) | Body::Object(bytes, _) => Some(bytes.clone()),
            Body::List(_) | Body::Pieces(_) | Body::Gzip(_) | Body::Stream(_) => None,
        }
    }

    /// The same; `held` is dropped with it.
    pub fn holding(self, held: impl Send + 'static) -> Self {
        let Body::Stream(stream) = self else { return self };
        Body::stream(stream.into_inner().map(move |chunk| {
            let _ = &held;
            chunk
        }))
    }

    /// The exact length, where it is known before sending.
    pub fn length(&self) -> Option<u64> {
        match self {
            Body::Full(bytes) | Body::Object(bytes, _) => Some(bytes.len() as u64),
            Body::List(list) => Some(list.left),
            Body::Pieces(pieces) => Some(pieces.left),
            Body::Stream(_) | Body::Gzip(_) => None,
        }
    }

    /// The next frame of a body that is there already; nothing at its end.
    fn next_frame(&mut self) -> Option<Bytes> {
        match self {
            Body::Full(bytes) | Body::Object(bytes, _) => Some(std::mem::take(bytes)).filter(|bytes| !bytes.is_empty()),
            Body::List(list) => list.next_frame(),
            Body::Pieces(pieces) => {
                let piece = pieces.pieces.pop_front()?;
                pieces.left -= piece.len() as u64;
                Some(piece)
            }
            Body::Gzip(gzip) => gzip.next_frame(),
            Body::Stream(_) => None,
        }
    }
}

impl Gzip {
    fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(piece) = self.inner.next_frame() else {
                // Writing into memory cannot fail.
                return self.encoder.take()?.finish().ok().map(Bytes::from);
            };
            let _ = encoder.write_all(&piece);
            if !encoder.get_ref().is_empty() {
                return Some(Bytes::from(std::mem::take(encoder.get_mut())));
            }
        }
    }
}

impl ListBody {
    /// The JSON of the list without its items, and the items.
    pub fn into_parts(self) -> (Bytes, VecDeque<Arc<Item>>) {
        let (head, tail) = (self.head.unwrap_or_default(), self.tail.unwrap_or_default());
        (Bytes::from([head, tail].concat()), self.items)
    }

    fn next_frame(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let mut frame = BytesMut::with_capacity(LIST_FRAME.min(self.left as usize));
        if let Some(head) = self.head.take() {
            frame.extend_from_slice(&head);
        }
        while frame.len() < LIST_FRAME {
            let Some(item) = self.items.pop_front() else {
                if let Some(tail) = self.tail.take() {
                    frame.extend_from_slice(&tail);
                }
                break;
            };
            if !std::mem::replace(&mut self.first, false) {
                frame.extend_from_slice(b",");
            }
            frame.extend_from_slice(&item.bytes);
        }
        self.left = self.left.saturating_sub(frame.len() as u64);
        Some(frame.freeze())
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Body::Full(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Body::Full(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Body::Full(text.into())
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Body::Stream(stream) => {
                stream.get_mut().poll_next_unpin(cx).map(|next| next.map(|chunk| chunk.map(Frame::data)))
            }
            body => Poll::Ready(body.next_frame().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) | Body::Object(bytes, _) => bytes.is_empty(),
            Body::List(list) => list.left == 0,
            Body::Pieces(pieces) => pieces.left == 0,
            Body::Gzip(gzip) => gzip.encoder.is_none(),
            Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
