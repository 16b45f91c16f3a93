//! Owns what CEL rules see: objects as CEL values, by their schema, and the functions Kubernetes adds.

use std::{collections::HashMap, sync::Arc};

use kube_cel::{
    KubeCelExt,
    cel::{
        Context, ExecutionError, IdedExpr, Value as Cel,
        common::ast::{CallExpr, EntryExpr, Expr, LiteralValue},
        context,
        extractors::{Arguments, This},
        functions,
        objects::{Key, Map as CelMap, OptionalValue},
    },
};
use serde_json::Value;

use super::{Additional, Schema, Type};

/// A string or list that a rule makes may not be bigger.
const MOST_MADE: usize = 1 << 20;
/// `lists.range` makes no more.
const LONGEST_RANGE: i64 = 10_000;

/// The names of types, for `type(x) == string`.
pub(super) const TYPE_NAMES: [&str; 11] = [
    "bool",
    "bytes",
    "double",
    "google.protobuf.Duration",
    "google.protobuf.Timestamp",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "uint",
];

/// The function `a.?b` and `a[?b]` become: the interpreter's own fails where `a` has no `b`.
const OPTIONAL: &str = "@optional";

thread_local! {
    // Several hundred registrations: made once per thread (a context may not be shared by threads).
    static BASE: Context<'static> = base();
}

/// Runs `body` with a fresh scope below the environment Kubernetes gives to rules.
pub(super) fn with_scope<T>(body: impl FnOnce(&mut context::Context<'_>) -> T) -> T {
    BASE.with(|base| body(&mut base.new_inner_scope()))
}

fn failed(function: &str, why: &str) -> ExecutionError {
    ExecutionError::function_error(function, why)
}

fn base() -> Context<'static> {
    let mut context = Context::default().with_all();
    for name in TYPE_NAMES {
        context.add_variable_from_value(name, Cel::String(Arc::new(name.to_owned())));
    }
    context.add_function("dyn", |value: Cel| -> Result<Cel, ExecutionError> { Ok(value) });
    context.add_function("type", |value: Cel| -> Result<Cel, ExecutionError> {
        Ok(Cel::String(Arc::new(type_name(&value).to_owned())))
    });
    // Strings are measured in characters, not bytes (CEL specification, size).
    context.add_function("size", |This(value): This<Cel>| -> Result<i64, ExecutionError> {
        let size = match &value {
            Cel::List(items) => items.len(),
            Cel::Map(map) => map.map.len(),
            Cel::String(text) => text.chars().count(),
            Cel::Bytes(bytes) => bytes.len(),
            _ => return Err(failed("size", "not a string, bytes, list or map")),
        };
        i64::try_from(size).map_err(|_| failed("size", "too big"))
    });
    context.add_function(OPTIONAL, optional);
    super::expression::authorizer::register(&mut context);
    context.add_function("replace", replace);
    context.add_function("join", join);
    context.add_function("lists.range", |count: i64| -> Result<Cel, ExecutionError> {
        if !(0..=LONGEST_RANGE).contains(&count) {
            return Err(failed("lists.range", "must be between 0 and 10000"));
        }
        Ok(Cel::List(Arc::new((0..count).map(Cel::Int).collect())))
    });
    context
}

/// Shows every expression directly below a node to `visit`.
pub(super) fn each_child(node: &mut IdedExpr, visit: &mut dyn FnMut(&mut IdedExpr)) {
    match &mut node.expr {
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| visit(target));
            call.args.iter_mut().for_each(visit);
        }
        Expr::Select(select) => visit(&mut select.operand),
        Expr::Comprehension(loops) => {
            let parts = [&mut loops.iter_range, &mut loops.accu_init, &mut loops.loop_cond];
            parts.into_iter().chain([&mut loops.loop_step, &mut loops.result]).for_each(|part| visit(part));
        }
        Expr::List(list) => list.elements.iter_mut().for_each(visit),
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    visit(&mut entry.key);
                    visit(&mut entry.value);
                }
            }
        }
        _ => {}
    }
}

/// Rewrites optional selection into calls of [`optional`]; what is selected from an optional is optional.
pub(super) fn rewrite_optionals(node: &mut IdedExpr) {
    let is_optional = |node: &IdedExpr| matches!(&node.expr, Expr::Call(call) if call.func_name == OPTIONAL);
    each_child(node, &mut rewrite_optionals);
    match &mut node.expr {
        Expr::Call(call) => {
            let selects = matches!(&*call.func_name, "_?._" | "_[?_]")
                || (call.func_name == "_[_]" && call.args.first().is_some_and(is_optional));
            if selects {
                call.func_name = OPTIONAL.to_owned();
            }
        }
        Expr::Select(select) if is_optional(&select.operand) && !select.test => {
            let field = LiteralValue::String(std::mem::take(&mut select.field).into());
            let field = IdedExpr { id: node.id, expr: Expr::Literal(field) };
            let args = vec![std::mem::take(&mut *select.operand), field];
            node.expr = Expr::Call(CallExpr { func_name: OPTIONAL.to_owned(), target: None, args });
        }
        _ => {}
    }
}

fn optional(Arguments(args): Arguments) -> Result<Cel, ExecutionError> {
    let [from, key] = &args[..] else { return Err(failed("optional", "wants a value and a key")) };
    let from = match <&OptionalValue>::try_from(from) {
        Ok(optional) => optional.value().cloned(),
        Err(_) => Some(from.clone()),
    };
    let found = match (from, key) {
        (None, _) => None,
        (Some(Cel::Map(map)), Cel::String(name)) => map.map.get(&Key::String(name.clone())).cloned(),
        (Some(Cel::List(items)), Cel::Int(index)) => usize::try_from(*index).ok().and_then(|i| items.get(i).cloned()),
        _ => return Err(failed("optional", "only maps and lists can be selected from")),
    };
    Ok(Cel::Opaque(Arc::new(found.map_or_else(OptionalValue::none, OptionalValue::of))))
}

fn type_name(value: &Cel) -> &'static str {
    match value {
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::Bool(_) => "bool",
        Cel::Duration(_) => "google.protobuf.Duration",
        Cel::Timestamp(_) => "google.protobuf.Timestamp",
        Cel::Null => "null_type",
        _ => "unknown",
    }
}

/// `string.replace(old, new [, count])`, with an end to how much it makes.
fn replace(This(this): This<Arc<String>>, Arguments(args): Arguments) -> Result<Cel, ExecutionError> {
    let (Some(Cel::String(old)), Some(Cel::String(new))) = (args.first(), args.get(1)) else {
        return Err(failed("replace", "wants two strings"));
    };
    let most = match args.get(2) {
        None => usize::MAX,
        Some(Cel::Int(count)) => usize::try_from(*count).unwrap_or(usize::MAX),
        Some(_) => return Err(failed("replace", "the count must be an int")),
    };
    let places = if old.is_empty() { this.len() + 1 } else { this.len() / old.len() };
    if this.len() + places.min(most).saturating_mul(new.len()) > MOST_MADE {
        return Err(failed("replace", "the result would be too long"));
    }
    Ok(Cel::String(Arc::new(this.replacen(old.as_str(), new, most))))
}

/// `list.join([separator])`, with an end to how much it makes.
fn join(This(this): This<Arc<Vec<Cel>>>, Arguments(args): Arguments) -> Result<Cel, ExecutionError> {
    let separator = match args.first() {
        None => "",
        Some(Cel::String(separator)) => separator.as_str(),
        Some(_) => return Err(failed("join", "the separator must be a string")),
    };
    let mut text = String::new();
    for (index, item) in this.iter().enumerate() {
        let Cel::String(item) = item else { return Err(failed("join", "only strings can be joined")) };
        if index > 0 {
            text.push_str(separator);
        }
        text.push_str(item);
        if text.len() > MOST_MADE {
            return Err(failed("join", "the result would be too long"));
        }
    }
    Ok(Cel::String(Arc::new(text)))
}

/// A JSON value as rules see it.
pub(super) fn convert(schema: &Schema, value: &Value) -> Cel {
    let node = schema.resolved();
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => match (number.as_i64(), node.kind) {
            (_, Type::Number) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
            (Some(int), _) => Cel::Int(int),
            (None, Type::Integer) => number.as_f64().map_or(Cel::Null, whole),
            (None, _) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => convert_string(node, text),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(|item| convert(node.element(), item)).collect())),
        Value::Object(fields) => {
            let is_map = !matches!(node.additional, Additional::Nothing);
            let mut map = HashMap::with_capacity(fields.len());
            for (name, child) in fields {
                let below = node.field(name).unwrap_or_else(|| Schema::any());
                // Keys of maps are data; names of fields must be spelled as CEL identifiers.
                let name = if is_map { name.clone() } else { escape(name) };
                map.insert(Key::String(Arc::new(name)), convert(below, child));
            }
            Cel::Map(CelMap { map: Arc::new(map) })
        }
    }
}

/// An integral float (`1.0`) of an integer field.
fn whole(number: f64) -> Cel {
    // In range by the check of types; what is not is clamped, which a cast does.
    #[allow(clippy::cast_possible_truncation)]
    Cel::Int(number as i64)
}

fn convert_string(node: &Schema, text: &str) -> Cel {
    let shared = || Arc::new(text.to_owned());
    let special = match node.format.as_deref().filter(|_| node.kind == Type::String) {
        Some("date-time") => functions::time::timestamp(shared()).ok(),
        Some("date") => functions::time::timestamp(Arc::new(format!("{text}T00:00:00Z"))).ok(),
        Some("duration") => functions::time::duration(shared()).ok(),
        Some("byte") => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).ok().map(|bytes| Cel::Bytes(Arc::new(bytes)))
        }
        _ => None,
    };
    special.unwrap_or_else(|| Cel::String(shared()))
}

const RESERVED: [&str; 20] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
];

/// A field name as rules write it (documentation of `x-kubernetes-validations`, escaping).
pub(super) fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_documented() {
        let table = [
            ("plain", "plain"),
            ("my_field", "my_field"),
            ("namespace", "__namespace__"),
            ("a-b", "a__dash__b"),
            ("a.b/c", "a__dot__b__slash__c"),
            ("a__b", "a__underscores__b"),
        ];
        for (name, escaped) in table {
            assert_eq!(escape(name), escaped);
        }
    }
}
