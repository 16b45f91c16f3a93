//! Framing: messages one after another in one buffer, and the attributes inside them. Pure.

const HEADER: usize = 16;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// Netlink header flags, from `linux/netlink.h`.
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x01;
    pub(crate) const MULTI: u16 = 0x02;
    pub(crate) const ACK: u16 = 0x04;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const CREATE: u16 = 0x400;
    /// On an acknowledgement: the offending request is not repeated in full.
    pub(crate) const CAPPED: u16 = 0x100;
    /// On an acknowledgement: attributes with the kernel's own words follow.
    pub(crate) const ACK_TLVS: u16 = 0x200;
}

/// Writes messages one after another. Sequence numbers are 1, 2, 3 … in order of writing.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    /// Where each message starts.
    starts: Vec<usize>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Starts a message; the one before is complete. `flags` always get REQUEST.
    pub fn begin(&mut self, kind: u16, flags: u16) -> &mut Writer {
        self.pad();
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&(HEADER as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&(self.starts.len() as u32).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self
    }

    /// Sets further header flags on the message being written.
    pub fn add_flags(&mut self, flags: u16) {
        if let Some(&start) = self.starts.last() {
            let old = u16::from_ne_bytes([self.bytes[start + 6], self.bytes[start + 7]]);
            self.bytes[start + 6..start + 8].copy_from_slice(&(old | flags).to_ne_bytes());
        }
    }

    /// Appends a fixed header (`ifinfomsg`, `nfgenmsg` …) as it is.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self.patch();
        self
    }

    /// Appends an attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Writer {
        self.pad();
        self.bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.patch();
        self
    }

    /// Appends a NUL-terminated text attribute.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Writer {
        self.pad();
        self.bytes.extend_from_slice(&((5 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.patch();
        self
    }

    /// Appends a 32-bit attribute in host order (rtnetlink).
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Writer {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a 32-bit attribute in network order (netfilter).
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Writer {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends a 64-bit attribute in network order (netfilter).
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Writer {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Appends a nested attribute holding whatever `inside` writes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Writer)) -> &mut Writer {
        let start = self.open_nest(kind);
        inside(self);
        self.close_nest(start);
        self
    }

    /// Opens a nested attribute; to be closed with what it returns.
    pub(crate) fn open_nest(&mut self, kind: u16) -> usize {
        self.pad();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&4u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        self.patch();
        start
    }

    pub(crate) fn close_nest(&mut self, start: usize) {
        self.pad();
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.patch();
    }

    /// Bytes written since `start`; a nested attribute must stay below 64 KiB.
    pub(crate) fn len_since(&self, start: usize) -> usize {
        self.bytes.len() - start
    }

    /// Number of messages.
    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// The messages as sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message with that sequence number.
    pub(crate) fn message(&self, sequence: u32) -> Option<&[u8]> {
        let index = (sequence as usize).checked_sub(1)?;
        let start = *self.starts.get(index)?;
        let end = self.starts.get(index + 1).copied().unwrap_or(self.bytes.len());
        self.bytes.get(start..end)
    }

    fn pad(&mut self) {
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        self.patch();
    }

    /// Brings the length in the current message's header up to date.
    fn patch(&mut self) {
        if let Some(&start) = self.starts.last() {
            let length = (self.bytes.len() - start) as u32;
            self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// The attributes of a message or of a nested attribute: (type, value) pairs. Ends at the first malformed one.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first attribute of that type.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.into_iter().find(|(k, _)| *k == kind).map(|(_, value)| value)
    }

    /// The attributes nested in the first one of that type; none when it is absent.
    pub fn nested(self, kind: u16) -> Attributes<'a> {
        Attributes(self.get(kind).unwrap_or(&[]))
    }

    /// A 32-bit value in host order.
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_ne_bytes(self.get(kind)?.get(..4)?.try_into().ok()?))
    }

    /// A 32-bit value in network order.
    pub fn be32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.get(..4)?.try_into().ok()?))
    }

    /// A 16-bit value in network order.
    pub fn be16(self, kind: u16) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(kind)?.get(..2)?.try_into().ok()?))
    }

    /// A text, without its NUL.
    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// One received message.
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits a datagram into messages; ends at the first malformed one.
pub(crate) fn split(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER)?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(0) as usize;
        let payload = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Received {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: word(8),
            payload,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_is_framed_as_netlink_wants_it() {
        let mut writer = Writer::new();
        writer.begin(0x0a01, flags::ACK).raw(&[2, 0, 0, 10]).text(1, "a").nest(2, |w| {
            w.be32(3, 7);
        });
        let mut expected = Vec::new();
        expected.extend_from_slice(&40u32.to_ne_bytes());
        expected.extend_from_slice(&0x0a01u16.to_ne_bytes());
        expected.extend_from_slice(&5u16.to_ne_bytes());
        expected.extend_from_slice(&1u32.to_ne_bytes());
        expected.extend_from_slice(&[0; 4]);
        expected.extend_from_slice(&[2, 0, 0, 10]);
        expected.extend_from_slice(&[6, 0, 1, 0, b'a', 0, 0, 0]);
        expected.extend_from_slice(&[12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 0, 7]);
        assert_eq!(writer.bytes(), expected);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(messages in proptest::collection::vec(
            proptest::collection::vec((1u16..100, proptest::collection::vec(any::<u8>(), 0..40)), 0..6), 0..6)) {
            let mut writer = Writer::new();
            for attributes in &messages {
                writer.begin(7, 0);
                for (kind, value) in attributes {
                    writer.attr(*kind, value);
                }
            }
            let read: Vec<Vec<(u16, Vec<u8>)>> = split(writer.bytes())
                .map(|m| Attributes(m.payload).map(|(k, v)| (k, v.to_vec())).collect())
                .collect();
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn any_bytes_at_all_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in split(&bytes) {
                Attributes(message.payload).for_each(drop);
            }
            Attributes(&bytes).for_each(drop);
        }
    }
}
