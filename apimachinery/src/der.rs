//! DER (X.690) written from the inside out: what certificates and keys are made of. Reading it is `x509-parser`'s work.
//!
//! Pure. A value is its bytes, tag and length included.

/// An encoded value.
pub type Der = Vec<u8>;

/// A value of that tag (the identifier octet, class and form included).
pub fn tagged(tag: u8, content: &[u8]) -> Der {
    let mut out = Vec::with_capacity(content.len() + 6);
    out.push(tag);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let from = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1);
        out.push(0x80 | (bytes.len() - from) as u8);
        out.extend_from_slice(&bytes[from..]);
    }
    out.extend_from_slice(content);
    out
}

/// `SEQUENCE`.
pub fn sequence(parts: &[Der]) -> Der {
    tagged(0x30, &parts.concat())
}

/// `SET OF`: in the order of the encodings.
pub fn set_of(mut parts: Vec<Der>) -> Der {
    parts.sort();
    tagged(0x31, &parts.concat())
}

/// `[n]`, explicit.
pub fn explicit(n: u8, value: &[u8]) -> Der {
    tagged(0xa0 | n, value)
}

/// `[n]`, implicit, of a primitive value.
pub fn implicit(n: u8, content: &[u8]) -> Der {
    tagged(0x80 | n, content)
}

/// `BOOLEAN` true.
pub fn yes() -> Der {
    vec![0x01, 0x01, 0xff]
}

/// `NULL`.
pub fn null() -> Der {
    vec![0x05, 0x00]
}

/// A non-negative `INTEGER`, big-endian.
pub fn unsigned(bytes: &[u8]) -> Der {
    let from = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    let mut content = Vec::with_capacity(bytes.len() + 1);
    // A leading one would make it negative; nothing at all is no integer.
    if bytes.get(from).is_none_or(|first| first & 0x80 != 0) {
        content.push(0);
    }
    content.extend_from_slice(&bytes[from..]);
    tagged(0x02, &content)
}

/// `OBJECT IDENTIFIER`.
pub fn oid(arcs: &[u32]) -> Der {
    let mut content = Vec::new();
    let (first, rest) = match arcs {
        [first, second, rest @ ..] => (first * 40 + second, rest),
        _ => (0, &[][..]),
    };
    for arc in std::iter::once(&first).chain(rest) {
        let groups = (0..5).rev().map(|at| ((arc >> (7 * at)) & 0x7f) as u8).collect::<Vec<_>>();
        let from = groups.iter().position(|group| *group != 0).unwrap_or(4);
        content.extend(groups[from..4].iter().map(|group| group | 0x80));
        content.push(groups[4]);
    }
    tagged(0x06, &content)
}

/// `OCTET STRING`.
pub fn octets(content: &[u8]) -> Der {
    tagged(0x04, content)
}

/// `BIT STRING` of whole bytes.
pub fn bits(content: &[u8]) -> Der {
    named_bits(content, 0)
}

/// `BIT STRING` whose last `unused` bits are not part of it.
pub fn named_bits(content: &[u8], unused: u8) -> Der {
    let mut all = Vec::with_capacity(content.len() + 1);
    all.push(unused);
    all.extend_from_slice(content);
    tagged(0x03, &all)
}

/// A point in time as certificates have it (RFC 5280 §4.1.2.5): `UTCTime` up to 2049, `GeneralizedTime` after.
pub fn time(at: jiff::Timestamp) -> Der {
    let civil = at.to_zoned(jiff::tz::TimeZone::UTC);
    if (1950..2050).contains(&civil.year()) {
        tagged(0x17, civil.strftime("%y%m%d%H%M%SZ").to_string().as_bytes())
    } else {
        tagged(0x18, civil.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_as_x690_says() {
        assert_eq!(tagged(0x04, &[7; 3]), [4, 3, 7, 7, 7]);
        assert_eq!(tagged(0x04, &[0; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tagged(0x04, &[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(unsigned(&[]), [2, 1, 0]);
        assert_eq!(unsigned(&[0, 0, 0x7f]), [2, 1, 0x7f]);
        assert_eq!(unsigned(&[0x80]), [2, 2, 0, 0x80]);
        // The example of X.690 §8.19.5, and RSA's.
        assert_eq!(oid(&[2, 999, 3]), [6, 3, 0x88, 0x37, 3]);
        assert_eq!(oid(&[1, 2, 840, 113_549]), [6, 6, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d]);
        assert_eq!(set_of(vec![octets(b"b"), octets(b"a")]), [0x31, 6, 4, 1, b'a', 4, 1, b'b']);
        let at = |text: &str| time(text.parse().unwrap());
        assert_eq!(at("2026-11-21T20:15:00Z"), tagged(0x17, b"261121201500Z"));
        assert_eq!(at("2050-01-01T00:00:00Z"), tagged(0x18, b"20500101000000Z"));
    }
}
