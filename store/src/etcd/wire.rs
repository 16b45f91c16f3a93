//! Protocol buffers' wire format, as far as etcd's messages need it: variable-length integers and bytes. Pure.
//!
//! Source: the protobuf encoding guide. Fields at their default are left out, unknown ones are skipped, as proto3 asks.

use bytes::{Buf, Bytes};

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not a protocol buffer")]
pub(crate) struct Malformed;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// A message being written.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// An integer, enum or boolean.
    pub(crate) fn number(mut self, field: u64, value: u64) -> Message {
        if value != 0 {
            self.varint(field << 3 | VARINT);
            self.varint(value);
        }
        self
    }

    /// Bytes or text.
    pub(crate) fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        if !value.is_empty() {
            self.put(field, value);
        }
        self
    }

    /// A message inside; also an empty one says which of several it is.
    pub(crate) fn message(mut self, field: u64, inner: Message) -> Message {
        self.put(field, &inner.0);
        self
    }

    fn put(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | BYTES);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Number(u64),
    Bytes(Bytes),
}

impl Field {
    pub(crate) fn number(self) -> Result<u64, Malformed> {
        match self {
            Field::Number(value) => Ok(value),
            Field::Bytes(_) => Err(Malformed),
        }
    }

    pub(crate) fn bytes(self) -> Result<Bytes, Malformed> {
        match self {
            Field::Bytes(value) => Ok(value),
            Field::Number(_) => Err(Malformed),
        }
    }

    pub(crate) fn text(self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?.into()).map_err(|_| Malformed)
    }
}

/// Hands each field of a message to `take`, in the order they were written.
pub(crate) fn read(
    mut message: Bytes,
    mut take: impl FnMut(u64, Field) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while message.has_remaining() {
        let tag = varint(&mut message)?;
        let field = match tag & 7 {
            VARINT => Field::Number(varint(&mut message)?),
            BYTES => {
                let len = usize::try_from(varint(&mut message)?).map_err(|_| Malformed)?;
                if len > message.len() {
                    return Err(Malformed);
                }
                Field::Bytes(message.split_to(len))
            }
            fixed @ (FIXED32 | FIXED64) => {
                let len = if fixed == FIXED32 { 4 } else { 8 };
                if len > message.len() {
                    return Err(Malformed);
                }
                message.advance(len);
                continue;
            }
            _ => return Err(Malformed),
        };
        take(tag >> 3, field)?;
    }
    Ok(())
}

fn varint(input: &mut Bytes) -> Result<u64, Malformed> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *input.first().ok_or(Malformed)?;
        input.advance(1);
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(bytes: Vec<u8>) -> Result<Vec<(u64, Field)>, Malformed> {
        let mut fields = Vec::new();
        read(bytes.into(), |number, field| {
            fields.push((number, field));
            Ok(())
        })?;
        Ok(fields)
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(number in 1u64.., bytes in proptest::collection::vec(any::<u8>(), 1..300)) {
            let inner = Message::default().number(1, number);
            let message = Message::default().number(3, number).bytes(16, &bytes).message(5, inner).finish();
            let read = fields(message).unwrap();
            prop_assert_eq!(&read[..2], &[(3, Field::Number(number)), (16, Field::Bytes(bytes.into()))]);
            prop_assert_eq!(fields(read[2].1.clone().bytes().unwrap().into()), Ok(vec![(1, Field::Number(number))]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = fields(bytes);
        }
    }

    #[test]
    fn defaults_are_left_out_and_cut_messages_are_refused() {
        assert!(Message::default().number(1, 0).bytes(2, b"").finish().is_empty());
        assert_eq!(fields(vec![0x0a, 5, 1]), Err(Malformed));
        assert_eq!(fields(vec![0x08]), Err(Malformed));
    }
}
