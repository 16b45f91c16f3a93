//! Owns what functions do: those that look at values as such here, those of the libraries by way of `kube-cel`. Never
//! decides what may be called ([`super::library`] does).

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kube_cel::KubeCelExt;
use kube_cel::cel::common::ast::{CallExpr, Expr};
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Value as Cel};
use regex::{Regex, RegexBuilder};

use super::authorizer;
use super::machine::{Fault, Meter};
use super::operators::{binary, bounded, no_overload};
use super::values::{self, as_optional, list, optional, text};

/// `lists.range` makes no more.
const LONGEST_RANGE: i64 = 10_000;
/// What a question of authorization costs (`k8s.io/apiserver/pkg/cel/library`, cost).
const CHECK_COST: u64 = 350_000;
/// Compiled, no regular expression is bigger, in bytes; so many are kept for the next time.
const LARGEST_REGEX: usize = 1 << 20;
const REGEXES_KEPT: usize = 64;

/// The names operands have on their way to a library.
const OPERANDS: [&str; 10] = ["@0", "@1", "@2", "@3", "@4", "@5", "@6", "@7", "@8", "@9"];

thread_local! {
    // Several hundred registrations: made once per thread (a context may not be shared by threads).
    static LIBRARY: Context<'static> = {
        let mut context = Context::default().with_all();
        authorizer::register(&mut context);
        context
    };
    static REGEXES: RefCell<HashMap<String, Regex>> = RefCell::default();
}

/// Calls a function.
pub(super) fn apply(name: &str, member: bool, args: Vec<Cel>, meter: &mut Meter) -> Result<Cel, Fault> {
    meter.spend(cost(name, &args))?;
    match (name, args.as_slice()) {
        ("!_", [Cel::Bool(holds)]) => Ok(Cel::Bool(!holds)),
        ("-_", [Cel::Int(n)]) => {
            n.checked_neg().map(Cel::Int).ok_or_else(|| Fault::Failed("integer overflow".to_owned()))
        }
        ("-_", [Cel::Float(n)]) => Ok(Cel::Float(-n)),
        ("!_" | "-_", _) => Err(no_overload()),
        (operator, [one, other]) if operator.starts_with(['_', '@']) => binary(operator, one, other),
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Cel::Opaque(Arc::new(values::Kind(values::type_name(value).to_owned())))),
        ("size", [value]) => size(value),
        ("bool", [Cel::Bool(flag)]) => Ok(Cel::Bool(*flag)),
        ("bool", [Cel::String(word)]) => match word.as_str() {
            "1" | "t" | "true" | "TRUE" | "True" => Ok(Cel::Bool(true)),
            "0" | "f" | "false" | "FALSE" | "False" => Ok(Cel::Bool(false)),
            _ => Err(Fault::Failed(format!("type conversion error from {word:?} to 'bool'"))),
        },
        ("bool", _) => Err(no_overload()),
        // The library has the format itself, and null for what is none.
        ("format.named", [Cel::String(_)]) => {
            Ok(optional(library(name, member, args).ok().filter(|format| *format != Cel::Null)))
        }
        ("string", [Cel::Bool(flag)]) => Ok(text(flag.to_string())),
        ("string", [Cel::String(_)]) | ("bytes", [Cel::Bytes(_)]) => Ok(args[0].clone()),
        ("contains", [Cel::String(all), Cel::String(part)]) => Ok(Cel::Bool(all.contains(part.as_str()))),
        ("startsWith", [Cel::String(all), Cel::String(part)]) => Ok(Cel::Bool(all.starts_with(part.as_str()))),
        ("endsWith", [Cel::String(all), Cel::String(part)]) => Ok(Cel::Bool(all.ends_with(part.as_str()))),
        ("matches", [Cel::String(all), Cel::String(pattern)]) => Ok(Cel::Bool(matches(all, pattern)?)),
        ("replace", [Cel::String(all), Cel::String(old), Cel::String(new)]) => replace(all, old, new, -1),
        ("replace", [Cel::String(all), Cel::String(old), Cel::String(new), Cel::Int(most)]) => {
            replace(all, old, new, *most)
        }
        ("join", [Cel::List(parts)]) => join(parts, ""),
        ("join", [Cel::List(parts), Cel::String(separator)]) => join(parts, separator),
        ("lists.range", [Cel::Int(count)]) => {
            if !(0..=LONGEST_RANGE).contains(count) {
                return Err(Fault::Failed(format!("lists.range: must be between 0 and {LONGEST_RANGE}")));
            }
            Ok(list((0..*count).map(Cel::Int).collect()))
        }
        ("optional.none", []) => Ok(optional(None)),
        ("optional.of", [value]) => Ok(optional(Some(value.clone()))),
        ("optional.ofNonZeroValue", [value]) => Ok(optional(Some(value.clone()).filter(|value| !is_zero(value)))),
        ("hasValue", [value]) => as_optional(value).map(|held| Cel::Bool(held.is_some())).ok_or_else(no_overload),
        ("value", [value]) => {
            let held = as_optional(value).ok_or_else(no_overload)?;
            held.cloned().ok_or_else(|| Fault::Failed("optional.none() dereference".to_owned()))
        }
        _ => library(name, member, args).map_err(Fault::Failed),
    }
}

/// What a call costs: one, and what it has to look through.
fn cost(name: &str, args: &[Cel]) -> u64 {
    let sizes = || args.iter().map(shallow);
    1 + match name {
        "check" => CHECK_COST,
        "_==_" | "_!=_" => args.iter().map(deep).min().unwrap_or(0),
        "@in" => args.last().map_or(0, deep),
        "matches" | "find" | "findAll" => {
            let length = |at: usize| match args.get(at) {
                Some(Cel::String(text)) => text.len() as u64,
                _ => 0,
            };
            (length(0) / 10 + 1).saturating_mul(length(1) / 4 + 1)
        }
        "lists.range" => match args {
            [Cel::Int(count)] => u64::try_from(*count).unwrap_or(0),
            _ => 0,
        },
        "sets.contains" | "sets.equivalent" | "sets.intersects" => sizes().fold(1, u64::saturating_mul),
        "distinct" => sizes().next().unwrap_or(0).saturating_pow(2),
        "size" | "type" | "dyn" => 0,
        _ => sizes().fold(0, u64::saturating_add),
    }
}

fn shallow(value: &Cel) -> u64 {
    match value {
        Cel::String(text) => text.len() as u64 / 10,
        Cel::Bytes(bytes) => bytes.len() as u64 / 10,
        Cel::List(items) => items.len() as u64,
        Cel::Map(map) => map.map.len() as u64,
        _ => 0,
    }
}

fn deep(value: &Cel) -> u64 {
    let below = match value {
        Cel::List(items) => items.iter().map(deep).fold(0, u64::saturating_add),
        Cel::Map(map) => map.map.values().map(deep).fold(0, u64::saturating_add),
        _ => 0,
    };
    below.saturating_add(shallow(value))
}

/// Text is measured in characters (cel-spec, `size`).
fn size(value: &Cel) -> Result<Cel, Fault> {
    let size = match value {
        Cel::List(items) => items.len(),
        Cel::Map(map) => map.map.len(),
        Cel::String(text) => text.chars().count(),
        Cel::Bytes(bytes) => bytes.len(),
        _ => return Err(no_overload()),
    };
    Ok(Cel::Int(i64::try_from(size).unwrap_or(i64::MAX)))
}

fn is_zero(value: &Cel) -> bool {
    match value {
        Cel::Null | Cel::Bool(false) | Cel::Int(0) | Cel::UInt(0) => true,
        Cel::Float(n) => *n == 0.0,
        Cel::String(text) => text.is_empty(),
        Cel::Bytes(bytes) => bytes.is_empty(),
        Cel::List(items) => items.is_empty(),
        Cel::Map(map) => map.map.is_empty(),
        _ => false,
    }
}

fn matches(all: &str, pattern: &str) -> Result<bool, Fault> {
    REGEXES.with_borrow_mut(|kept| {
        if let Some(regex) = kept.get(pattern) {
            return Ok(regex.is_match(all));
        }
        let regex = RegexBuilder::new(pattern).size_limit(LARGEST_REGEX).build();
        let regex = regex.map_err(|error| Fault::Failed(format!("error parsing regexp: {error}")))?;
        let found = regex.is_match(all);
        if kept.len() >= REGEXES_KEPT {
            kept.clear();
        }
        kept.insert(pattern.to_owned(), regex);
        Ok(found)
    })
}

fn replace(all: &str, old: &str, new: &str, most: i64) -> Result<Cel, Fault> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let places = if old.is_empty() { all.len() + 1 } else { all.len() / old.len() };
    bounded(all.len().saturating_add(places.min(most).saturating_mul(new.len())))?;
    Ok(text(all.replacen(old, new, most)))
}

fn join(parts: &[Cel], separator: &str) -> Result<Cel, Fault> {
    let mut joined = String::new();
    for (at, part) in parts.iter().enumerate() {
        let Cel::String(part) = part else { return Err(no_overload()) };
        if at > 0 {
            joined.push_str(separator);
        }
        joined.push_str(part);
        bounded(joined.len())?;
    }
    Ok(text(joined))
}

/// Calls a function of a library. A panic in one is an error like any other.
pub(super) fn library(name: &str, member: bool, args: Vec<Cel>) -> Result<Cel, String> {
    let operand = |at: usize| IdedExpr { id: 0, expr: Expr::Ident(OPERANDS[at].to_owned()) };
    if args.len() > OPERANDS.len() {
        return Err("no such overload".to_owned());
    }
    let mut operands = (0..args.len()).map(operand);
    let target = if member { operands.next().map(Box::new) } else { None };
    let call = CallExpr { func_name: name.to_owned(), target, args: operands.collect() };
    let expression = IdedExpr { id: 0, expr: Expr::Call(call) };
    let called = catch_unwind(AssertUnwindSafe(|| {
        LIBRARY.with(|library| {
            let mut context = library.new_inner_scope();
            for (name, value) in OPERANDS.into_iter().zip(args) {
                context.add_variable_from_value(name, value);
            }
            context.resolve(&expression)
        })
    }));
    match called {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ExecutionError::FunctionError { message, .. })) => Err(short(&message)),
        Ok(Err(ExecutionError::NoSuchOverload | ExecutionError::UnsupportedBinaryOperator(..))) => {
            Err("no such overload".to_owned())
        }
        Ok(Err(error)) => Err(short(&error.to_string())),
        Err(_) => Err(format!("{name} cannot be evaluated")),
    }
}

/// Errors may quote the values they are about.
fn short(message: &str) -> String {
    message.chars().take(500).collect()
}
