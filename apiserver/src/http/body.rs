//! The response body: owns how bytes leave. Never copies an object it can share.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use crate::cache::Item;

/// How much of a list is joined into one frame. Large enough that the cost per frame disappears,
/// small enough that a list of any size holds only this much beyond the objects themselves.
const LIST_FRAME: usize = 128 * 1024;

/// What a response carries.
pub enum Body {
    /// Everything at once.
    Full(Bytes),
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

    /// `head`, the items separated by commas, `tail`.
    pub fn list(head: Bytes, items: Vec<Arc<Item>>, tail: Bytes) -> Self {
        let commas = items.len().saturating_sub(1);
        let left = head.len() + tail.len() + commas + items.iter().map(|item| item.bytes.len()).sum::<usize>();
        Body::List(ListBody { head: Some(head), items: items.into(), tail: Some(tail), first: true, left: left as u64 })
    }

    /// Everything at once, where it is not a stream: a list is joined.
    pub fn whole(&mut self) -> Option<Bytes> {
        if let Body::List(list) = self {
            let mut all = BytesMut::with_capacity(list.left as usize);
            while let Some(frame) = list.next_frame() {
                all.extend_from_slice(&frame);
            }
            *self = Body::Full(all.freeze());
        }
        match self {
            Body::Full(bytes) => Some(bytes.clone()),
            Body::List(_) | Body::Stream(_) => None,
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
            Body::Full(bytes) => Some(bytes.len() as u64),
            Body::List(list) => Some(list.left),
            Body::Stream(_) => None,
        }
    }
}

impl ListBody {
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
            Body::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::List(list) => Poll::Ready(list.next_frame().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => {
                stream.get_mut().poll_next_unpin(cx).map(|next| next.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_empty(),
            Body::List(list) => list.left == 0,
            Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
