//! Owns quantities (`500m`, `1Gi`, `2`, `1e3`): parsing, canonical printing, order and sums, as
//! `k8s.io/apimachinery/pkg/api/resource` does. Never knows what a quantity measures.
//!
//! A value is kept as an integer of billionths, rounded up, and capped at 2^63-1 units: the limits
//! the Kubernetes API promises.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

/// How a quantity likes to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `m`, none, `k`, `M` …
    DecimalSi,
    /// `Ki`, `Mi` …
    BinarySi,
    /// `e3`, `e6` …
    DecimalExponent,
}

/// A fixed-point number with a unit suffix.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

const DECIMAL: [(&str, i32); 9] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// Whole units.
    pub fn from_units(units: i64) -> Quantity {
        Quantity { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths.
    pub fn from_milli(milli: i64) -> Quantity {
        Quantity { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Whole bytes, printed with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Quantity {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Quantity, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseError);
        }
        let (scale, format) = scale_of(suffix)?;
        let magnitude = magnitude(whole, fraction, scale);
        let nanos = if negative { -magnitude } else { magnitude };
        Ok(Quantity { nanos, format })
    }

    /// Reads a quantity in JSON: a string or a number.
    pub fn from_value(value: &Value) -> Result<Quantity, ParseError> {
        match value {
            Value::String(text) => Quantity::parse(text),
            Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => Err(ParseError),
        }
    }

    /// Thousandths, rounded up.
    pub fn as_milli(&self) -> i128 {
        div_ceil(self.nanos, NANO / 1000)
    }

    /// Whole units, rounded up.
    pub fn as_int_ceil(&self) -> i64 {
        i64::try_from(div_ceil(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// True when there is no fraction of a unit.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// How it was written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// True for zero.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    fn with(self, other: Quantity, nanos: i128) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: nanos.clamp(-MAX, MAX), format }
    }
}

enum Scale {
    Decimal(i32),
    Binary(u32),
}

fn scale_of(suffix: &str) -> Result<(Scale, Format), ParseError> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Ok((Scale::Decimal(*exponent), Format::DecimalSi));
    }
    if let Some((_, shift)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Ok((Scale::Binary(*shift), Format::BinarySi));
    }
    if suffix == "E" {
        return Ok((Scale::Decimal(18), Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseError);
    }
    // Past a thousand every value is either capped or rounded: the exact number no longer matters.
    let exponent: i32 = exponent.parse().unwrap_or(if exponent.starts_with('-') { -1000 } else { 1000 });
    Ok((Scale::Decimal(exponent.clamp(-1000, 1000)), Format::DecimalExponent))
}

/// Billionths of `whole.fraction * scale`, rounded up, capped.
fn magnitude(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    match scale {
        Scale::Decimal(exponent) => {
            // Move the decimal point by `exponent + 9` over the digits.
            let mut digits = String::with_capacity(whole.len() + fraction.len());
            digits.push_str(whole);
            digits.push_str(fraction);
            if digits.bytes().all(|b| b == b'0') {
                return 0;
            }
            let point = whole.len() as i64 + i64::from(exponent) + 9;
            if point <= 0 {
                return 1; // something smaller than a billionth rounds up to one
            }
            let point = point as usize;
            let leading = digits.bytes().take_while(|b| *b == b'0').count();
            if point.saturating_sub(leading) > 36 {
                return MAX;
            }
            let kept: i128 = digits.bytes().take(point).fold(0, |n, b| n * 10 + i128::from(b - b'0'));
            let kept = kept * 10i128.pow(point.saturating_sub(digits.len()) as u32);
            let lost = digits.bytes().skip(point).any(|b| b != b'0');
            (kept + i128::from(lost)).min(MAX)
        }
        Scale::Binary(shift) => {
            if whole.len() > 19 {
                return MAX;
            }
            let whole: i128 = whole.bytes().fold(0, |n, b| n * 10 + i128::from(b - b'0'));
            let units = whole.checked_mul(1 << shift).unwrap_or(MAX);
            if units > i128::from(i64::MAX) {
                return MAX;
            }
            // 18 digits of a fraction are beyond what a billionth of the largest unit can show.
            let kept = &fraction[..fraction.len().min(18)];
            let part: i128 = kept.bytes().fold(0, |n, b| n * 10 + i128::from(b - b'0'));
            // part < 10^18 < 2^60 and shift <= 60: below 2^120. Times NANO would overflow, so divide in two steps.
            let denominator = 10i128.pow(kept.len() as u32);
            let shifted = part << shift;
            let (quotient, remainder) = (shifted / denominator, shifted % denominator);
            let nanos = quotient * NANO + div_ceil(remainder * NANO, denominator);
            let lost = fraction.len() > kept.len();
            (units * NANO + nanos + i128::from(lost)).min(MAX)
        }
    }
}

fn div_ceil(a: i128, b: i128) -> i128 {
    let quotient = a.div_euclid(b);
    if a.rem_euclid(b) == 0 { quotient } else { quotient + 1 }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO;
        if binary {
            // Fractions of a byte do not exist in this form: rounded away from zero.
            let mut units = div_ceil(self.nanos.abs(), NANO) * self.nanos.signum();
            let mut steps = 0;
            while units % 1024 == 0 && steps < BINARY.len() {
                units /= 1024;
                steps += 1;
            }
            let suffix = if steps == 0 { "" } else { BINARY[steps - 1].0 };
            return write!(f, "{units}{suffix}");
        }
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("E", |(s, _)| s);
        write!(f, "{number}{suffix}")
    }
}

impl FromStr for Quantity {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        Quantity::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}
impl Add for Quantity {
    type Output = Quantity;
    fn add(self, other: Quantity) -> Quantity {
        self.with(other, self.nanos + other.nanos)
    }
}
impl Sub for Quantity {
    type Output = Quantity;
    fn sub(self, other: Quantity) -> Quantity {
        self.with(other, self.nanos - other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        Quantity::parse(text).map_or_else(|_| "error".to_owned(), |q| q.to_string())
    }

    #[test]
    fn canonical_forms() {
        let table = [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1.5G", "1500M"),
            ("1024Ki", "1Mi"),
            ("1.5Ki", "1536"),
            ("1.5Mi", "1536Ki"),
            ("100", "100"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1E", "1E"),
            ("12e5", "1200e3"),
            ("+1", "1"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("0.1n", "1n"),
            ("9Ei", "9223372036854775807"),
            ("1e1000", "9223372036854775807"),
            ("100m", "100m"),
            ("0Ki", "0"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("007", "7"),
            ("", "error"),
            ("a", "error"),
            ("1.2.3", "error"),
            ("1x", "error"),
            ("1 ", "error"),
            ("--1", "error"),
            ("1e", "error"),
            ("1K", "error"),
            ("1ki", "error"),
            (".", "error"),
        ];
        for (text, want) in table {
            let got = canonical(text);
            // The cap prints in whatever form was asked for; only its value is promised.
            if want.starts_with("922") {
                assert_eq!(Quantity::parse(text).unwrap().as_int_ceil(), i64::MAX, "{text}");
            } else {
                assert_eq!(got, want, "{text}");
            }
        }
    }

    #[test]
    fn rounding_is_up() {
        assert_eq!(Quantity::parse("1.0001").unwrap().as_milli(), 1001);
        assert_eq!(Quantity::parse("1m").unwrap().as_int_ceil(), 1);
        assert_eq!(Quantity::parse("64Mi").unwrap().as_int_ceil(), 64 << 20);
    }

    proptest! {
        #[test]
        fn printing_then_parsing_gives_the_same_number(n in -1_000_000_000i64..1_000_000_000, s in 0usize..16) {
            let suffix = ["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3", "E2", "T", "Ti", "P"][s];
            let q = Quantity::parse(&format!("{n}{suffix}")).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            prop_assert_eq!(q, again);
            prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn order_is_the_order_of_numbers(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            let (qa, qb) = (Quantity::from_milli(a), Quantity::from_milli(b));
            prop_assert_eq!(qa.cmp(&qb), a.cmp(&b));
            prop_assert_eq!((qa + qb).as_milli(), i128::from(a + b));
            prop_assert_eq!((qa - qb).as_milli(), i128::from(a - b));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text).map(|q| q.to_string());
        }

        #[test]
        fn long_numbers_do_not_panic(text in "[-+]?[0-9]{0,60}\\.?[0-9]{0,60}(Ki|Ei|E|e[0-9]{1,12}|e-[0-9]{1,12}|n)?") {
            let _ = Quantity::parse(&text).map(|q| q.to_string());
        }
    }
}
