//! Owns the bytes of SPDY/3.1 frames. The header blocks of a direction share one zlib stream, so a decoder and an
//! encoder live as long as their connection.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;
use super::dictionary::dictionary;

const VERSION: u16 = 3;
const FIN: u8 = 0x01;
/// No header block of Kubernetes comes near.
const LONGEST_HEADERS: usize = 64 * 1024;

/// Names (lower case) and values.
pub(crate) type Headers = Vec<(String, String)>;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Syn {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// SETTINGS, WINDOW_UPDATE and what else may be ignored
    Other,
}

/// Reads frames.
pub(crate) struct Decoder {
    inflate: Decompress,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { inflate: Decompress::new(true) }
    }

    /// Takes one frame off the front of `input`, when it is there as a whole.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        if input.len() < 8 {
            return Ok(None);
        }
        let length = u32::from_be_bytes([0, input[5], input[6], input[7]]) as usize;
        if input.len() < 8 + length {
            input.reserve(8 + length - input.len());
            return Ok(None);
        }
        let mut head = input.split_to(8);
        let mut body = input.split_to(length).freeze();
        let flags = head[4];
        let word = head.get_u32();
        let fin = flags & FIN != 0;
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: word, fin, bytes: body }));
        }
        let version = (word >> 16) as u16 & 0x7FFF;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        let need = |n: usize, body: &Bytes| if body.len() < n { Err(SpdyError::Frame("too short")) } else { Ok(()) };
        let id = |body: &mut Bytes| body.get_u32() & 0x7FFF_FFFF;
        Ok(Some(match word & 0xFFFF {
            1 => {
                need(10, &body)?;
                let stream = id(&mut body);
                body.advance(6);
                Frame::Syn { stream, fin, headers: self.headers(&body)? }
            }
            2 => {
                need(4, &body)?;
                let stream = id(&mut body);
                Frame::SynReply { stream, fin, headers: self.headers(&body)? }
            }
            3 => {
                need(8, &body)?;
                Frame::Reset { stream: id(&mut body), status: body.get_u32() }
            }
            6 => {
                need(4, &body)?;
                Frame::Ping(body.get_u32())
            }
            7 => {
                need(8, &body)?;
                Frame::GoAway { last: id(&mut body), status: body.get_u32() }
            }
            8 => {
                need(4, &body)?;
                let stream = id(&mut body);
                Frame::Headers { stream, fin, headers: self.headers(&body)? }
            }
            _ => Frame::Other,
        }))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let plain = self.inflate(block)?;
        let mut plain = plain.as_slice();
        let number = |plain: &mut &[u8]| {
            if plain.len() < 4 { Err(SpdyError::Frame("headers too short")) } else { Ok(plain.get_u32() as usize) }
        };
        let count = number(&mut plain)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let mut pair = [String::new(), String::new()];
            for text in &mut pair {
                let length = number(&mut plain)?;
                if length > plain.len() {
                    return Err(SpdyError::Frame("headers too short"));
                }
                *text = String::from_utf8_lossy(&plain[..length]).into_owned();
                plain.advance(length);
            }
            let [name, value] = pair;
            headers.push((name.to_ascii_lowercase(), value));
        }
        Ok(headers)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut plain = Vec::with_capacity(1024);
        let mut taken = 0;
        loop {
            let before = (self.inflate.total_in(), plain.len());
            let result = self.inflate.decompress_vec(&block[taken..], &mut plain, FlushDecompress::Sync);
            taken += usize::try_from(self.inflate.total_in() - before.0).unwrap_or(0);
            match result {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|e| SpdyError::Headers(e.to_string()))?;
                    continue;
                }
                Err(error) => return Err(SpdyError::Headers(error.to_string())),
                Ok(Status::StreamEnd) => return Ok(plain),
                Ok(Status::Ok | Status::BufError) => {}
            }
            let full = plain.len() == plain.capacity();
            if taken >= block.len() && !full {
                return Ok(plain);
            }
            if plain.len() > LONGEST_HEADERS {
                return Err(SpdyError::Headers("too long".to_owned()));
            }
            if full {
                plain.reserve(plain.capacity());
            } else if before == (self.inflate.total_in(), plain.len()) {
                return Err(SpdyError::Headers("cut short".to_owned()));
            }
        }
    }
}

/// Writes frames.
pub(crate) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(crate) fn new() -> Result<Self, SpdyError> {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary()).map_err(|e| SpdyError::Headers(e.to_string()))?;
        Ok(Self { deflate })
    }

    pub(crate) fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        let control = |out: &mut BytesMut, kind: u16, fin: bool, body: &[u8]| {
            out.put_u16(0x8000 | VERSION);
            out.put_u16(kind);
            put_flags_and_length(out, fin, body.len());
            out.put_slice(body);
        };
        let mut body = BytesMut::new();
        match frame {
            Frame::Data { stream, fin, bytes } => {
                out.put_u32(*stream);
                put_flags_and_length(out, *fin, bytes.len());
                out.put_slice(bytes);
            }
            Frame::Syn { stream, fin, headers } => {
                body.put_u32(*stream);
                body.put_u32(0);
                body.put_u16(0);
                self.headers(headers, &mut body)?;
                control(out, 1, *fin, &body);
            }
            Frame::SynReply { stream, fin, headers } => {
                body.put_u32(*stream);
                self.headers(headers, &mut body)?;
                control(out, 2, *fin, &body);
            }
            Frame::Reset { stream, status } => {
                body.put_u32(*stream);
                body.put_u32(*status);
                control(out, 3, false, &body);
            }
            Frame::Ping(id) => {
                body.put_u32(*id);
                control(out, 6, false, &body);
            }
            Frame::GoAway { last, status } => {
                body.put_u32(*last);
                body.put_u32(*status);
                control(out, 7, false, &body);
            }
            Frame::Headers { stream, fin, headers } => {
                body.put_u32(*stream);
                self.headers(headers, &mut body)?;
                control(out, 8, *fin, &body);
            }
            Frame::Other => {}
        }
        Ok(())
    }

    fn headers(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<(), SpdyError> {
        let mut plain = BytesMut::new();
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        plain.put_u32(length(headers.len()));
        for (name, value) in headers {
            for text in [&name.to_ascii_lowercase(), value] {
                plain.put_u32(length(text.len()));
                plain.put_slice(text.as_bytes());
            }
        }
        let mut packed = Vec::with_capacity(plain.len() + 128);
        let mut taken = 0;
        loop {
            let before = self.deflate.total_in();
            self.deflate
                .compress_vec(&plain[taken..], &mut packed, FlushCompress::Sync)
                .map_err(|e| SpdyError::Headers(e.to_string()))?;
            taken += usize::try_from(self.deflate.total_in() - before).unwrap_or(0);
            if taken >= plain.len() && packed.len() < packed.capacity() {
                break;
            }
            packed.reserve(packed.capacity());
        }
        out.put_slice(&packed);
        Ok(())
    }
}

fn put_flags_and_length(out: &mut BytesMut, fin: bool, length: usize) {
    out.put_u8(if fin { FIN } else { 0 });
    // Writers cut data long before the 24 bits are full.
    out.put_uint(length as u64 & 0x00FF_FFFF, 3);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn frames_survive_the_wire_one_byte_at_a_time() {
        let frames = [
            Frame::Syn { stream: 1, fin: false, headers: headers(&[("streamtype", "error"), ("port", "8080")]) },
            Frame::SynReply { stream: 1, fin: false, headers: vec![] },
            Frame::Syn { stream: 3, fin: true, headers: headers(&[("streamtype", "data"), ("port", "8080")]) },
            Frame::Data { stream: 3, fin: false, bytes: Bytes::from_static(b"hello") },
            Frame::Data { stream: 3, fin: true, bytes: Bytes::new() },
            Frame::Ping(7),
            Frame::Reset { stream: 3, status: 5 },
            Frame::Headers { stream: 1, fin: false, headers: headers(&[("a", "b")]) },
            Frame::GoAway { last: 3, status: 0 },
        ];
        let mut wire = BytesMut::new();
        let mut encoder = Encoder::new().unwrap();
        for frame in &frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        let mut decoder = Decoder::new();
        let mut arrived = BytesMut::new();
        let mut seen = Vec::new();
        for byte in wire {
            arrived.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut arrived).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
    }

    #[test]
    fn another_version_is_refused() {
        let mut wire = BytesMut::from(&[0x80, 0x02, 0, 1, 0, 0, 0, 0][..]);
        assert!(matches!(Decoder::new().decode(&mut wire), Err(SpdyError::Version(2))));
    }

    proptest! {
        #[test]
        fn any_headers_round_trip(pairs in prop::collection::vec(("[a-z-]{0,40}", ".{0,300}"), 0..40)) {
            let mut encoder = Encoder::new().unwrap();
            let mut decoder = Decoder::new();
            // Twice: the second block goes on with the first one's zlib stream.
            for stream in [1, 3] {
                let frame = Frame::Syn { stream, fin: false, headers: pairs.clone() };
                let mut wire = BytesMut::new();
                encoder.encode(&frame, &mut wire).unwrap();
                prop_assert_eq!(decoder.decode(&mut wire).unwrap(), Some(frame));
            }
        }

        #[test]
        fn any_bytes_are_decoded_or_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut wire) {}
        }
    }
}
