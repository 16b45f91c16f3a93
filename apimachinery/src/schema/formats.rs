//! Owns the string formats schemas may ask for. Those Kubernetes does not validate are accepted.

use base64::Engine as _;

/// What is wrong with a string of a built-in kind's field, if anything.
pub(super) fn check_decoded(format: &str, text: &str) -> Option<String> {
    match format {
        // The calendar's end is in one time zone and not in another: what clients cannot read is refused.
        "date-time" if !is_date_time(text) || text.parse::<jiff::Timestamp>().is_err() => {
            Some(format!("parsing time {text:?}: must be an RFC 3339 time, like 2006-01-02T15:04:05Z"))
        }
        "byte" if !is_base64(text) => Some("must be base64 encoded".to_owned()),
        _ => None,
    }
}

/// Whether a string of a custom resource has its field's format (the list in the documentation of
/// `JSONSchemaProps.format`); unknown formats hold anything.
pub(super) fn holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => is_date_time(text),
        "date" => is_date(text),
        "duration" => is_duration(text),
        "byte" => is_base64(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some(b'3')),
        "uuid4" => is_uuid(text, Some(b'4')),
        "uuid5" => is_uuid(text, Some(b'5')),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "uri" => is_uri(text),
        "hexcolor" => is_hex_color(text),
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "isbn" => is_isbn(text, 10) || is_isbn(text, 13),
        "isbn10" => is_isbn(text, 10),
        "isbn13" => is_isbn(text, 13),
        _ => true,
    }
}

fn digits(text: &str, range: std::ops::Range<usize>) -> Option<u32> {
    let part = text.get(range)?;
    if part.bytes().all(|b| b.is_ascii_digit()) { part.parse().ok() } else { None }
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return false;
    }
    let (Some(year), Some(month), Some(day)) = (digits(text, 0..4), digits(text, 5..7), digits(text, 8..10)) else {
        return false;
    };
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

/// RFC 3339, as Go's `time.RFC3339` reads it: any number of fraction digits, `Z` or an offset.
pub(super) fn is_date_time(text: &str) -> bool {
    let (Some(date), Some(time)) = (text.get(..10), text.get(11..)) else { return false };
    if !is_date(date) || !matches!(text.as_bytes()[10], b'T' | b't') {
        return false;
    }
    let (Some(hour), Some(minute), Some(second)) = (digits(time, 0..2), digits(time, 3..5), digits(time, 6..8)) else {
        return false;
    };
    let bytes = time.as_bytes();
    if bytes[2] != b':' || bytes[5] != b':' || hour > 23 || minute > 59 || second > 60 {
        return false;
    }
    let mut zone = &bytes[8..];
    if let [b'.', rest @ ..] = zone {
        let fraction = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        if fraction == 0 {
            return false;
        }
        zone = &rest[fraction..];
    }
    match zone {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] => {
            [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit())
                && (h1 - b'0') * 10 + (h2 - b'0') < 24
                && (m1 - b'0') * 10 + (m2 - b'0') < 60
        }
        _ => false,
    }
}

/// Durations as Go writes them (`1h2m3.5s`), and Scala's (`3 days`), which Kubernetes takes as well.
fn is_duration(text: &str) -> bool {
    let body = text.trim_start_matches(['+', '-']);
    if body == "0" {
        return true;
    }
    let mut rest = body;
    let mut any = false;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit_text = &rest[number..];
        let unit = unit_text.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_text.len());
        let known = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&&unit_text[..unit]);
        if number == 0 || rest[..number].parse::<f64>().is_err() || !known {
            return is_scala_duration(body);
        }
        any = true;
        rest = &unit_text[unit..];
    }
    any
}

fn is_scala_duration(text: &str) -> bool {
    let text = text.trim();
    let number = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = text[number..].trim_start();
    let units = [
        "ns",
        "nano",
        "nanos",
        "nanosecond",
        "nanoseconds",
        "us",
        "µs",
        "micro",
        "micros",
        "microsecond",
        "microseconds",
        "ms",
        "milli",
        "millis",
        "millisecond",
        "milliseconds",
        "s",
        "sec",
        "secs",
        "second",
        "seconds",
        "m",
        "min",
        "mins",
        "minute",
        "minutes",
        "h",
        "hr",
        "hour",
        "hours",
        "d",
        "day",
        "days",
        "w",
        "wk",
        "week",
        "weeks",
    ];
    number > 0 && units.contains(&unit)
}

fn is_base64(text: &str) -> bool {
    // Go ignores line breaks inside base64.
    let engine = &base64::engine::general_purpose::STANDARD;
    if text.contains(['\n', '\r']) {
        engine.decode(text.replace(['\n', '\r'], "")).is_ok()
    } else {
        engine.decode(text).is_ok()
    }
}

fn is_uuid(text: &str, version: Option<u8>) -> bool {
    let plain: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
    plain.len() == 32
        && plain.iter().all(u8::is_ascii_hexdigit)
        && text.bytes().filter(|b| *b == b'-').count() <= 4
        && version.is_none_or(|version| {
            let variant = plain[16].to_ascii_lowercase();
            plain[12] == version && (version == b'3' || matches!(variant, b'8' | b'9' | b'a' | b'b'))
        })
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.len() <= 3 && bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u32>().is_ok_and(|b| b <= most)
}

fn is_mac(text: &str) -> bool {
    let groups = |separator: char, width: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        let hex = parts.iter().all(|p| p.len() == width && p.bytes().all(|b| b.is_ascii_hexdigit()));
        hex && [6, 8, 20].contains(&(parts.len() * width / 2))
    };
    groups(':', 2) || groups('-', 2) || groups('.', 4)
}

fn is_email(text: &str) -> bool {
    let address = match (text.rfind('<'), text.strip_suffix('>')) {
        (Some(start), Some(_)) => &text[start + 1..text.len() - 1],
        _ => text,
    };
    address.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty()
            && !domain.is_empty()
            && !address.contains(char::is_whitespace)
            && !local.starts_with('.')
            && !local.ends_with('.')
            && !domain.contains('@')
    })
}

fn is_hostname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text.trim_end_matches('.').split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_uri(text: &str) -> bool {
    if text.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return false;
    }
    if text.starts_with('/') {
        return true;
    }
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    })
}

fn is_hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_isbn(text: &str, length: usize) -> bool {
    let plain: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'-' | b' ')).collect();
    if plain.len() != length {
        return false;
    }
    let mut sum = 0_u32;
    for (index, byte) in (0_u32..).zip(&plain) {
        let digit = match byte {
            b'0'..=b'9' => u32::from(byte - b'0'),
            b'X' | b'x' if length == 10 && index == 9 => 10,
            _ => return false,
        };
        sum += match (length, index % 2) {
            (10, _) => (10 - index) * digit,
            (_, 0) => digit,
            _ => 3 * digit,
        };
    }
    sum.is_multiple_of(if length == 10 { 11 } else { 10 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_hold_what_they_should() {
        let table = [
            ("date-time", "2024-02-29T12:00:00Z", true),
            ("date-time", "2024-02-29T12:00:00.123456+02:00", true),
            ("date-time", "2023-02-29T12:00:00Z", false),
            ("date-time", "2024-02-29 12:00:00Z", false),
            ("date-time", "2024-02-29T12:00:00", false),
            ("date-time", "", false),
            ("date", "2024-13-01", false),
            ("duration", "1h2m3.5s", true),
            ("duration", "22 ns", true),
            ("duration", "soon", false),
            ("byte", "aGVsbG8=", true),
            ("byte", "aGVsbG8", false),
            ("uuid4", "2c5ea4c0-4067-41e9-8bad-9b1deb4d3b7d", true),
            ("uuid4", "2c5ea4c0-4067-31e9-8bad-9b1deb4d3b7d", false),
            ("ipv4", "10.0.0.256", false),
            ("cidr", "10.0.0.0/33", false),
            ("cidr", "fd00::/64", true),
            ("mac", "00:00:5e:00:53:01", true),
            ("mac", "00:00:5e:00:53", false),
            ("email", "a@b.c", true),
            ("email", "a b@c", false),
            ("hostname", "a.b-c", true),
            ("hostname", "-a", false),
            ("uri", "https://x/y", true),
            ("uri", "x y", false),
            ("isbn", "978-0321751041", true),
            ("isbn10", "0321751043", true),
            ("isbn13", "9780321751042", false),
            ("hexcolor", "#ABCDEF", true),
            ("whatever", "anything", true),
        ];
        for (format, text, expected) in table {
            assert_eq!(holds(format, text), expected, "{format} {text:?}");
        }
    }
}
