//! Owns what a CEL rule may cost. The interpreter has no meter, so cost is bounded before a rule runs, from
//! its syntax tree and the size of the values it is given: loops within loops over long lists are refused,
//! and so is text that grows by being joined to itself.

use kube_cel::cel::{
    IdedExpr,
    common::ast::{EntryExpr, Expr},
};
use serde_json::Value;

use super::cel_values::TYPE_NAMES;

/// Rules are no longer than this, in bytes.
pub(super) const LONGEST_RULE: usize = 16 << 10;
/// Nor nest deeper, in brackets or in their syntax tree: interpreters recurse.
const DEEPEST: usize = 40;
const DEEPEST_TREE: usize = 160;
/// Operators in one rule, for the same reason: `a + b + c` nests to the left.
const MOST_OPERATORS: usize = 400;
/// Evaluation steps of all rules on one object together (a step takes about 100 ns).
pub(super) const OBJECT_BUDGET: u64 = 10_000_000;
/// Bytes any intermediate value may grow to.
const MOST_BYTES: f64 = (16 << 20) as f64;

/// Whether the text is too long or nests too deep even to be parsed.
pub(super) fn text_problem(rule: &str) -> Option<&'static str> {
    if rule.len() > LONGEST_RULE {
        return Some("must not be longer than 16384 bytes");
    }
    let (mut depth, mut operators, mut quote) = (0_usize, 0_usize, None);
    let mut bytes = rule.bytes();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => {
                bytes.next();
            }
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'(' | b'[' | b'{') => depth += 1,
            (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (None, b'+' | b'-' | b'*' | b'/' | b'%' | b'!' | b'?' | b':' | b'&' | b'|' | b'<' | b'>' | b'=' | b'.') => {
                operators += 1;
            }
            _ => {}
        }
        if depth > DEEPEST {
            return Some("nests too deep");
        }
    }
    (operators > MOST_OPERATORS * 2).then_some("has too many operators")
}

/// What a rule refers to and cannot have: variables and functions that do not exist.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) unknown_variables: Vec<String>,
    pub(super) unknown_functions: Vec<String>,
    pub(super) uses_old_self: bool,
    pub(super) too_deep: bool,
}

const NAMESPACES: [&str; 9] = ["base64", "format", "ip", "jsonpatch", "lists", "math", "optional", "sets", "strings"];

const FUNCTIONS: &str = " has add asApproximateFloat asInteger decode encode bytes charAt cidr compareTo contains containsCIDR \
containsIP distinct double duration dyn endsWith family find findAll first flatten format byte date datetime dns1035Label \
dns1035LabelPrefix dns1123Label dns1123LabelPrefix dns1123Subdomain dns1123SubdomainPrefix labelValue named qualifiedName uri \
uuid getDate getDayOfMonth getDayOfWeek getDayOfYear getEscapedPath getFullYear getHost getHostname getHours getMilliseconds \
getMinutes getMonth getPort getQuery getScheme getSeconds hasValue indexOf int ip isCanonical isCIDR isCIDRv4 isCIDRv6 \
isGlobalUnicast isGreaterThan isIP isIPv4 isIPv6 isInteger isLessThan isLinkLocalMulticast isLinkLocalUnicast isLoopback \
isQuantity isSemver isSorted isURL isUnspecified join escapeKey last lastIndexOf range lowerAscii major masked matches abs \
bitAnd bitNot bitOr bitShiftLeft bitShiftRight bitXor ceil floor greatest isFinite isInf isNaN least round sign sqrt trunc max \
min minor none of ofNonZeroValue or orValue patch prefixLength quantity replace reverse semver equivalent intersects size \
slice sort split startsWith string quote sub substring sum timestamp trim type uint upperAscii url validate value ";

/// Looks a rule over. `variables` are those it is given, `functions` those it may call beside the ones every rule
/// may: words between blanks.
pub(super) fn names(expression: &IdedExpr, variables: &[&str], functions: &str) -> Names {
    let mut names = Names::default();
    look(expression, &mut variables.to_vec(), functions, &mut names, 0);
    names
}

fn look<'a>(node: &'a IdedExpr, scope: &mut Vec<&'a str>, functions: &str, names: &mut Names, depth: usize) {
    if depth > DEEPEST_TREE {
        names.too_deep = true;
        return;
    }
    match &node.expr {
        Expr::Ident(name) => {
            names.uses_old_self |= name == "oldSelf";
            let known = scope.contains(&name.as_str())
                || TYPE_NAMES.contains(&name.as_str())
                || NAMESPACES.contains(&name.as_str())
                || name.starts_with('@');
            if !known {
                names.unknown_variables.push(name.clone());
            }
        }
        Expr::Call(call) => {
            let name = call.func_name.rsplit('.').next().unwrap_or_default();
            let is_word = name.starts_with(|c: char| c.is_ascii_alphabetic());
            let word = format!(" {name} ");
            if is_word && !FUNCTIONS.contains(&word) && !functions.contains(&word) {
                names.unknown_functions.push(call.func_name.clone());
            }
        }
        Expr::Comprehension(comprehension) => {
            look(&comprehension.iter_range, scope, functions, names, depth + 1);
            look(&comprehension.accu_init, scope, functions, names, depth + 1);
            let outer = scope.len();
            scope.extend([comprehension.iter_var.as_str(), comprehension.accu_var.as_str()]);
            scope.extend(comprehension.iter_var2.as_deref());
            for part in [&comprehension.loop_cond, &comprehension.loop_step, &comprehension.result] {
                look(part, scope, functions, names, depth + 1);
            }
            scope.truncate(outer);
            return;
        }
        _ => {}
    }
    for child in children(node) {
        look(child, scope, functions, names, depth + 1);
    }
}

fn children(node: &IdedExpr) -> Vec<&IdedExpr> {
    match &node.expr {
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(c) => vec![&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Struct(made) => made.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => Vec::new(),
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// How big the values are that a rule is given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Elements of the longest list or map.
    longest: u64,
    /// Bytes of all strings.
    bytes: u64,
}

impl Size {
    /// Measures a value.
    pub(super) fn of(value: &Value) -> Size {
        let below = |items: &mut dyn Iterator<Item = &Value>, count: usize| {
            items.map(Size::of).fold(Size { longest: count as u64, bytes: 0 }, Size::and)
        };
        match value {
            Value::String(text) => Size { longest: 0, bytes: text.len() as u64 },
            Value::Array(items) => below(&mut items.iter(), items.len()),
            Value::Object(map) => {
                let keys = map.keys().map(|k| k.len() as u64).sum();
                below(&mut map.values(), map.len()).and(Size { longest: 0, bytes: keys })
            }
            _ => Size::default(),
        }
    }

    /// Both together.
    pub(super) fn and(self, other: Size) -> Size {
        Size { longest: self.longest.max(other.longest), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

/// The most steps a rule can take on values of a size; `None` when a value it makes could outgrow memory.
pub(super) fn cost(expression: &IdedExpr, size: Size) -> Option<u64> {
    let growth = growth(expression, 0);
    if growth * (size.bytes as f64 + size.longest as f64 * 16.0 + 64.0) > MOST_BYTES.max(growth) {
        return None;
    }
    Some(steps(expression, size))
}

fn steps(node: &IdedExpr, size: Size) -> u64 {
    if let Expr::Comprehension(loops) = &node.expr {
        let rounds = rounds(&loops.iter_range, size);
        let each = steps(&loops.loop_cond, size).saturating_add(steps(&loops.loop_step, size));
        let once = steps(&loops.iter_range, size).saturating_add(steps(&loops.result, size));
        return once.saturating_add(rounds.saturating_mul(each)).saturating_add(2);
    }
    let own = match &node.expr {
        Expr::Call(call) => match call.func_name.rsplit('.').next().unwrap_or_default() {
            "matches" | "find" | "findAll" => 500 + size.bytes / 64,
            "sort" | "distinct" | "contains" | "equivalent" | "intersects" | "flatten" | "indexOf" | "@in" => {
                10 + size.longest.saturating_mul(if call.func_name.contains("sets.") { size.longest.max(1) } else { 4 })
            }
            "split" | "replace" | "join" | "_+_" | "_==_" | "size" | "reverse" => {
                2 + size.bytes / 256 + size.longest / 8
            }
            _ => 2,
        },
        _ => 1,
    };
    children(node).into_iter().fold(own, |sum, child| sum.saturating_add(steps(child, size)))
}

/// How often a loop over this runs at most.
fn rounds(range: &IdedExpr, size: Size) -> u64 {
    match &range.expr {
        Expr::List(list) => list.elements.len() as u64,
        Expr::Map(map) => map.entries.len() as u64,
        Expr::Comprehension(inner) => rounds(&inner.iter_range, size),
        Expr::Call(call) => {
            let mut most = size.longest.max(1);
            if call.func_name.ends_with("range") {
                most = most.max(10_000);
            }
            if matches!(&*call.func_name, "split" | "findAll" | "flatten" | "bytes") {
                most = most.max(size.bytes + 1);
            }
            if call.func_name == "_+_" {
                most = children(range).into_iter().map(|part| rounds(part, size)).fold(0, u64::saturating_add);
            }
            let inner = children(range).into_iter().filter(|c| matches!(c.expr, Expr::Call(_)));
            inner.map(|child| rounds(child, size)).fold(most, u64::max)
        }
        _ => size.longest.max(1),
    }
}

/// By what factor text can grow: each loop that joins may do so to the outcome of another.
fn growth(node: &IdedExpr, loops: usize) -> f64 {
    let mut factor = 1.0;
    let mut sums = 0.0;
    grow(node, loops, &mut factor, &mut sums);
    factor * (1.0 + sums)
}

fn grow(node: &IdedExpr, loops: usize, factor: &mut f64, sums: &mut f64) {
    match &node.expr {
        Expr::Comprehension(inner) => {
            let mut own = 0.0;
            grow(&inner.iter_range, loops, factor, sums);
            grow(&inner.loop_step, loops + 1, factor, &mut own);
            // `@result + [x]` is how the parser writes every map and filter: that one is no growth.
            *factor *= 1.0 + (own - 1.0_f64).max(0.0);
            return;
        }
        Expr::Call(call) => match call.func_name.rsplit('.').next().unwrap_or_default() {
            "_+_" => *sums += 1.0,
            // Bounded by themselves (see cel_values), but not by how often they are looped over.
            "replace" | "join" | "format" if loops > 0 => *factor *= 16.0,
            "split" | "quote" | "encode" | "bytes" => *factor *= 2.0,
            _ => {}
        },
        _ => {}
    }
    for child in children(node) {
        grow(child, loops, factor, sums);
    }
}
