//! Owns the operators (cel-spec, standard definitions): arithmetic that does not overflow, equality of whatever with
//! whatever, order within a type and among numbers.

use std::cmp::Ordering;
use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::{Key, Map};

use super::functions;
use super::machine::Fault;
use super::made::Made;
use super::values::{self, as_optional, text, unescape};

/// A string or list that an expression makes may not be longer, in bytes or elements.
pub(super) const LONGEST_MADE: usize = 1 << 20;

/// No such operation on such values.
pub(super) fn no_overload() -> Fault {
    Fault::Failed("no such overload".to_owned())
}

fn failed(why: &str) -> Fault {
    Fault::Failed(why.to_owned())
}

/// `a == b`: what is of different types differs, but numbers are numbers.
pub(super) fn equal(one: &Cel, other: &Cel) -> bool {
    match (one, other) {
        (Cel::Int(_) | Cel::UInt(_) | Cel::Float(_), Cel::Int(_) | Cel::UInt(_) | Cel::Float(_)) => {
            numbers(one, other) == Some(Ordering::Equal)
        }
        (Cel::String(one), Cel::String(other)) => one == other,
        (Cel::Bool(one), Cel::Bool(other)) => one == other,
        (Cel::Bytes(one), Cel::Bytes(other)) => one == other,
        (Cel::Null, Cel::Null) => true,
        (Cel::List(one), Cel::List(other)) => {
            one.len() == other.len() && one.iter().zip(other.iter()).all(|(one, other)| equal(one, other))
        }
        (Cel::Map(one), Cel::Map(other)) => {
            let same = |(key, value): (&Key, &Cel)| lookup(other, key).is_some_and(|have| equal(value, have));
            one.map.len() == other.map.len() && one.map.iter().all(same)
        }
        (Cel::Opaque(a), Cel::Opaque(b)) => match (as_optional(one), as_optional(other)) {
            (Some(one), Some(other)) => match (one, other) {
                (Some(one), Some(other)) => equal(one, other),
                (one, other) => one.is_none() && other.is_none(),
            },
            _ => a.opaque_eq(&**b),
        },
        (Cel::Duration(_), Cel::Duration(_)) | (Cel::Timestamp(_), Cel::Timestamp(_)) => one == other,
        _ => false,
    }
}

/// The order of two numbers, exactly.
fn numbers(one: &Cel, other: &Cel) -> Option<Ordering> {
    Some(match (one, other) {
        (Cel::Int(a), Cel::Int(b)) => a.cmp(b),
        (Cel::UInt(a), Cel::UInt(b)) => a.cmp(b),
        (Cel::Int(a), Cel::UInt(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Cel::UInt(a), Cel::Int(b)) => i128::from(*a).cmp(&i128::from(*b)),
        (Cel::Float(a), Cel::Float(b)) => return a.partial_cmp(b),
        (Cel::Float(a), b) => return double_with(*a, b),
        (a, Cel::Float(b)) => return double_with(*b, a).map(Ordering::reverse),
        _ => return None,
    })
}

fn double_with(double: f64, whole: &Cel) -> Option<Ordering> {
    // Integers past 2^53 lose their last digits on the way: then the integers are compared instead.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let (near, exact) = match whole {
        Cel::Int(n) => (*n as f64, i128::from(*n)),
        Cel::UInt(n) => (*n as f64, i128::from(*n)),
        _ => return None,
    };
    match double.partial_cmp(&near)? {
        #[allow(clippy::cast_possible_truncation)]
        Ordering::Equal if double.fract() == 0.0 => Some((double as i128).cmp(&exact)),
        order => Some(order),
    }
}

fn order(one: &Cel, other: &Cel) -> Result<Option<Ordering>, Fault> {
    Ok(match (one, other) {
        (Cel::String(a), Cel::String(b)) => Some(a.cmp(b)),
        (Cel::Bool(a), Cel::Bool(b)) => Some(a.cmp(b)),
        (Cel::Bytes(a), Cel::Bytes(b)) => Some(a.cmp(b)),
        (Cel::Duration(_), Cel::Duration(_)) | (Cel::Timestamp(_), Cel::Timestamp(_)) => one.partial_cmp(other),
        (Cel::Int(_) | Cel::UInt(_) | Cel::Float(_), Cel::Int(_) | Cel::UInt(_) | Cel::Float(_)) => numbers(one, other),
        _ => return Err(no_overload()),
    })
}

/// What a key finds: whole numbers are the same whatever their type.
fn lookup<'m>(map: &'m Map, key: &Key) -> Option<&'m Cel> {
    map.map.get(key).or_else(|| match key {
        Key::Int(n) => map.map.get(&Key::Uint(u64::try_from(*n).ok()?)),
        Key::Uint(n) => map.map.get(&Key::Int(i64::try_from(*n).ok()?)),
        _ => None,
    })
}

/// A value as the key of a map.
pub(super) fn key(value: &Cel) -> Result<Key, Fault> {
    Ok(match value {
        Cel::String(name) => Key::String(Arc::clone(name)),
        Cel::Int(n) => Key::Int(*n),
        Cel::UInt(n) => Key::Uint(*n),
        Cel::Bool(flag) => Key::Bool(*flag),
        #[allow(clippy::cast_possible_truncation)]
        Cel::Float(n) if n.fract() == 0.0 && n.abs() < 9e15 => Key::Int(*n as i64),
        _ => return Err(Fault::Failed(format!("unsupported key type: {}", values::type_name(value)))),
    })
}

/// A key as a value.
pub(super) fn key_value(key: &Key) -> Cel {
    match key {
        Key::String(name) => Cel::String(Arc::clone(name)),
        Key::Int(n) => Cel::Int(*n),
        Key::Uint(n) => Cel::UInt(*n),
        Key::Bool(flag) => Cel::Bool(*flag),
    }
}

/// The field of a value, if it is there.
pub(super) fn field(from: &Cel, name: &str) -> Result<Option<Cel>, Fault> {
    match from {
        Cel::Map(map) => {
            let get = |name: &str| map.map.get(&Key::from(name)).cloned();
            // An object as it is sent has its own names; those who spell them as CEL identifiers find them too.
            Ok(get(name).or_else(|| if name.contains("__") { get(&unescape(name)) } else { None }))
        }
        Cel::Opaque(opaque) => match opaque.downcast_ref::<Made>() {
            Some(made) => Ok(made.field(name).cloned()),
            None => Err(no_overload()),
        },
        _ => Err(no_overload()),
    }
}

/// `a[b]`, if it is there.
pub(super) fn element(from: &Cel, at: &Cel) -> Result<Option<Cel>, Fault> {
    match from {
        Cel::Map(map) => Ok(lookup(map, &key(at)?).cloned()),
        Cel::List(items) => {
            let Key::Int(index) = (match key(at)? {
                Key::Uint(n) => Key::Int(i64::try_from(n).unwrap_or(-1)),
                other => other,
            }) else {
                return Err(no_overload());
            };
            Ok(usize::try_from(index).ok().and_then(|index| items.get(index).cloned()))
        }
        Cel::Opaque(_) => match at {
            Cel::String(name) => field(from, name),
            _ => Err(no_overload()),
        },
        _ => Err(no_overload()),
    }
}

/// What is said when nothing is at `at`.
pub(super) fn missing(from: &Cel, at: &Cel) -> Fault {
    match (from, key(at)) {
        (Cel::List(_), Ok(index)) => Fault::Failed(format!("index out of bounds: {index}")),
        (_, Ok(key)) => Fault::Failed(format!("no such key: {key}")),
        (_, Err(fault)) => fault,
    }
}

/// An operator of two operands.
pub(super) fn binary(name: &str, one: &Cel, other: &Cel) -> Result<Cel, Fault> {
    let compared = |holds: fn(Ordering) -> bool| Ok(Cel::Bool(order(one, other)?.is_some_and(holds)));
    match name {
        "_==_" => Ok(Cel::Bool(equal(one, other))),
        "_!=_" => Ok(Cel::Bool(!equal(one, other))),
        "_<_" => compared(Ordering::is_lt),
        "_<=_" => compared(Ordering::is_le),
        "_>_" => compared(Ordering::is_gt),
        "_>=_" => compared(Ordering::is_ge),
        "@in" => match other {
            Cel::List(items) => Ok(Cel::Bool(items.iter().any(|item| equal(item, one)))),
            Cel::Map(map) => Ok(Cel::Bool(key(one).is_ok_and(|key| lookup(map, &key).is_some()))),
            _ => Err(no_overload()),
        },
        _ => arithmetic(name, one, other),
    }
}

fn arithmetic(name: &str, one: &Cel, other: &Cel) -> Result<Cel, Fault> {
    let zero = || if name == "_%_" { failed("modulus by zero") } else { failed("division by zero") };
    match (one, other) {
        (Cel::Int(_), Cel::Int(0)) | (Cel::UInt(_), Cel::UInt(0)) if matches!(name, "_/_" | "_%_") => Err(zero()),
        (Cel::Int(a), Cel::Int(b)) => {
            let made = match name {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" => a.checked_div(*b),
                "_%_" => a.checked_rem(*b),
                _ => return Err(no_overload()),
            };
            made.map(Cel::Int).ok_or_else(|| failed("integer overflow"))
        }
        (Cel::UInt(a), Cel::UInt(b)) => {
            let made = match name {
                "_+_" => a.checked_add(*b),
                "_-_" => a.checked_sub(*b),
                "_*_" => a.checked_mul(*b),
                "_/_" => a.checked_div(*b),
                "_%_" => a.checked_rem(*b),
                _ => return Err(no_overload()),
            };
            made.map(Cel::UInt).ok_or_else(|| failed("unsigned integer overflow"))
        }
        (Cel::Float(a), Cel::Float(b)) => Ok(Cel::Float(match name {
            "_+_" => a + b,
            "_-_" => a - b,
            "_*_" => a * b,
            "_/_" => a / b,
            _ => return Err(no_overload()),
        })),
        (Cel::String(a), Cel::String(b)) if name == "_+_" => {
            bounded(a.len() + b.len())?;
            Ok(text(format!("{a}{b}")))
        }
        (Cel::Bytes(a), Cel::Bytes(b)) if name == "_+_" => {
            bounded(a.len() + b.len())?;
            Ok(Cel::Bytes(Arc::new([a.as_slice(), b].concat())))
        }
        (Cel::List(a), Cel::List(b)) if name == "_+_" => {
            bounded(a.len() + b.len())?;
            Ok(values::list(a.iter().chain(b.iter()).cloned().collect()))
        }
        (Cel::Duration(_) | Cel::Timestamp(_), Cel::Duration(_) | Cel::Timestamp(_)) => {
            functions::library(name, false, vec![one.clone(), other.clone()]).map_err(Fault::Failed)
        }
        _ => Err(no_overload()),
    }
}

/// Refuses what would be too long.
pub(super) fn bounded(length: usize) -> Result<(), Fault> {
    if length > LONGEST_MADE { Err(failed("the result would be too long")) } else { Ok(()) }
}
