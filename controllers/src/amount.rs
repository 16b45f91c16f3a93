//! Numbers that may be a percentage of another one (`IntOrString`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a part of one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// As one.
    Up,
    /// As none.
    Down,
}

/// The number, or that many percent of `total`; never negative. What is neither a number nor a percentage is none.
pub(crate) fn resolve(value: &IntOrString, total: i32, round: Round) -> i32 {
    match value {
        IntOrString::Int(n) => (*n).max(0),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()).unwrap_or(0).max(0);
            let product = percent.saturating_mul(i64::from(total));
            let part = match round {
                Round::Up => product.saturating_add(99) / 100,
                Round::Down => product / 100,
            };
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}
