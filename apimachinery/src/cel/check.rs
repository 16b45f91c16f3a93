//! Owns what can be said of an expression before any value is there: which names mean what, which types meet (cel-spec,
//! type checking; the wording of cel-go's checker). Names with dots in them become one on the way.

use super::syntax::{Call, Expr, Index, Loop, Macro, Mode, Node, Select};
use super::types::{ObjectType, Type};
use super::{Environment, Issue, VARIABLES, library, values};
use crate::schema::{Additional, Schema};

/// What came of checking.
pub(super) struct Checked<'a> {
    /// The type of the whole.
    pub result: Type<'a>,
    /// The variables it refers to.
    pub uses: Vec<Box<str>>,
}

/// Checks an expression, and spells its names out.
pub(super) fn check<'a>(program: &mut Node, environment: &Environment<'a>) -> Result<Checked<'a>, Vec<Issue>> {
    let mut checker = Checker { environment, locals: Vec::new(), issues: Vec::new(), uses: Vec::new() };
    let result = checker.infer(program);
    if checker.issues.is_empty() {
        return Ok(Checked { result, uses: checker.uses });
    }
    checker.issues.sort_by_key(|issue| issue.at);
    Err(checker.issues)
}

struct Checker<'e, 'a> {
    environment: &'e Environment<'a>,
    /// The names of macros around, innermost last.
    locals: Vec<(Box<str>, Type<'a>)>,
    issues: Vec<Issue>,
    uses: Vec<Box<str>>,
}

/// What the parameters of an overload stand for so far.
type Bound<'a> = [Option<Type<'a>>; 2];

impl<'a> Checker<'_, 'a> {
    fn wrong(&mut self, at: u32, message: String) -> Type<'a> {
        self.issues.push(Issue { at: at as usize, message });
        Type::Error
    }

    fn undeclared(&mut self, at: u32, name: &str) -> Type<'a> {
        self.wrong(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    /// No overload takes these; `wanted` is for what is known of one operand alone.
    fn no_overload(&mut self, at: u32, name: &str, member: bool, args: &[Type<'a>]) -> Type<'a> {
        let shown = |types: &[Type<'a>]| types.iter().map(Type::to_string).collect::<Vec<_>>().join(", ");
        let applied = match args {
            [target, rest @ ..] if member => format!("{target}.({})", shown(rest)),
            all => format!("({})", shown(all)),
        };
        self.wrong(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn infer(&mut self, node: &mut Node) -> Type<'a> {
        let at = node.at;
        // A chain of names may be one name.
        if let Some((name, of)) = self.qualified(&node.expr) {
            node.expr = Expr::Ident(name.into());
            return of;
        }
        match &mut node.expr {
            Expr::Literal(value) => values::type_of(value),
            Expr::Ident(name) => {
                let name = name.clone();
                self.undeclared(at, &name)
            }
            Expr::Select(select) => self.select(at, select),
            Expr::Index(index) => self.index(at, index),
            Expr::Call(call) => self.call(at, call),
            Expr::List(elements) => {
                let mut joined = None;
                for element in elements {
                    let of = self.infer(&mut element.value);
                    let of = if element.optional { self.unwrapped(element.value.at, of) } else { of };
                    joined = Some(self.same(element.value.at, joined, of));
                }
                Type::list(joined.unwrap_or(Type::Dyn))
            }
            Expr::Map(entries) => {
                let (mut keys, mut held) = (None, None);
                for entry in entries {
                    let key = self.infer(&mut entry.key);
                    keys = Some(self.same(entry.key.at, keys, key));
                    let of = self.infer(&mut entry.value);
                    let of = if entry.optional { self.unwrapped(entry.value.at, of) } else { of };
                    held = Some(self.same(entry.value.at, held, of));
                }
                Type::map(keys.unwrap_or(Type::Dyn), held.unwrap_or(Type::Dyn))
            }
            Expr::Make(make) => {
                let known =
                    make.name.split('.').next().is_some_and(|root| root == "Object") || &*make.name == "JSONPatch";
                if !known || !self.environment.makes_objects {
                    let name = make.name.clone();
                    return self.undeclared(at, &name);
                }
                let json_patch = &*make.name == "JSONPatch";
                let name = make.name.clone();
                for (field, value, optional) in &mut make.fields {
                    let of = self.infer(value);
                    if *optional {
                        self.unwrapped(value.at, of);
                    } else if json_patch && !matches!(&**field, "op" | "path" | "from" | "value") {
                        self.wrong(value.at, format!("undefined field '{field}'"));
                    } else if json_patch && &**field != "value" && !of.is_dyn() && of != Type::String {
                        let message =
                            format!("expected type of field '{field}' is 'string' but provided type is '{of}'");
                        self.wrong(value.at, message);
                    }
                }
                Type::Made(name)
            }
            Expr::And(terms) => self.terms(at, "_&&_", terms),
            Expr::Or(terms) => self.terms(at, "_||_", terms),
            Expr::If(parts) => {
                let [condition, then, otherwise] = &mut **parts;
                let condition = self.infer(condition);
                let (then, otherwise) = (self.infer(then), self.infer(otherwise));
                let joined = join(&then, &otherwise);
                match joined {
                    Some(joined) if condition.is_dyn() || condition == Type::Bool => joined,
                    _ => self.no_overload(at, "_?_:_", false, &[condition, then, otherwise]),
                }
            }
            Expr::Loop(comprehension) => self.comprehension(at, comprehension),
            Expr::Bind(bind) => {
                let of = self.infer(&mut bind.value);
                self.locals.push((bind.name.clone(), of));
                let result = self.infer(&mut bind.body);
                self.locals.pop();
                result
            }
        }
    }

    /// The type of what a chain of names is declared as.
    fn qualified(&mut self, expr: &Expr) -> Option<(String, Type<'a>)> {
        let path = expr.path()?;
        let root = path.split('.').next().unwrap_or_default();
        if let Some((name, of)) = self.locals.iter().rev().find(|(name, _)| **name == *root) {
            return (path == root).then(|| (name.to_string(), of.clone()));
        }
        if path == VARIABLES && self.environment.composed.is_some() {
            self.uses.push(VARIABLES.into());
            return Some((path, Type::Variables));
        }
        if let Some((name, of)) = self.environment.variables.iter().find(|(name, _)| *name == path) {
            self.uses.push((*name).into());
            return Some((path, of.clone()));
        }
        values::is_type_name(&path).then_some((path, Type::Kind))
    }

    fn declared(&self, name: &str) -> bool {
        self.locals.iter().any(|(have, _)| **have == *name)
            || self.environment.variables.iter().any(|(have, _)| *have == name)
    }

    fn terms(&mut self, at: u32, name: &str, terms: &mut [Node]) -> Type<'a> {
        let types: Vec<_> = terms.iter_mut().map(|term| self.infer(term)).collect();
        if types.iter().all(|of| of.is_dyn() || *of == Type::Bool) {
            return Type::Bool;
        }
        self.no_overload(at, name, false, &types)
    }

    /// The type of elements that stand beside each other (`cel.HomogeneousAggregateLiterals`).
    fn same(&mut self, at: u32, joined: Option<Type<'a>>, of: Type<'a>) -> Type<'a> {
        let Some(joined) = joined else { return of };
        match join(&joined, &of) {
            Some(joined) => joined,
            None => self.wrong(at, format!("expected type '{joined}' but found '{of}'")),
        }
    }

    /// What an optional holds: of `?a`, `a` has to be one.
    fn unwrapped(&mut self, at: u32, of: Type<'a>) -> Type<'a> {
        match of {
            Type::Optional(inner) => *inner,
            of if of.is_dyn() => Type::Dyn,
            of => self.wrong(at, format!("expected type 'optional_type({of})' but found '{of}'")),
        }
    }

    fn select(&mut self, at: u32, select: &mut Select) -> Type<'a> {
        let from = self.infer(&mut select.from);
        let (from, optional) = match from {
            Type::Optional(inner) => (*inner, true),
            from => (from, select.mode == Mode::Optional),
        };
        let of = self.field(at, &from, &select.field);
        match select.mode {
            Mode::Test => Type::Bool,
            _ if optional => Type::Optional(Box::new(of)),
            _ => of,
        }
    }

    fn field(&mut self, at: u32, from: &Type<'a>, field: &str) -> Type<'a> {
        let found = match from {
            Type::Dyn | Type::Error | Type::Made(_) => Some(Type::Dyn),
            Type::Map(_, value) => Some((**value).clone()),
            Type::Object(ObjectType(schema)) => field_of(schema, field),
            Type::Named(message) => library::field(message, &values::unescape(field)),
            Type::Variables => {
                let composed = self.environment.composed.iter().flatten();
                composed.into_iter().find(|(name, _)| name == field).map(|(_, of)| of.clone())
            }
            other => return self.wrong(at, format!("type '{other}' does not support field selection")),
        };
        found.unwrap_or_else(|| self.wrong(at, format!("undefined field '{field}'")))
    }

    fn index(&mut self, at: u32, index: &mut Index) -> Type<'a> {
        let from = self.infer(&mut index.from);
        let key = self.infer(&mut index.key);
        let (inner, optional) = match &from {
            Type::Optional(inner) => ((**inner).clone(), true),
            from => (from.clone(), index.optional),
        };
        let fits = |wanted: &Type<'a>| join(wanted, &key).is_some() || (numeric(wanted) && numeric(&key));
        let of = match &inner {
            inner if inner.is_dyn() => Type::Dyn,
            Type::List(element) if fits(&Type::Int) => (**element).clone(),
            Type::Map(keys, value) if fits(keys) => (**value).clone(),
            Type::Object(ObjectType(schema)) if key == Type::String && open(schema) => Type::Dyn,
            _ => return self.no_overload(at, if index.optional { "_[?_]" } else { "_[_]" }, false, &[from, key]),
        };
        if optional { Type::Optional(Box::new(of)) } else { of }
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Type<'a> {
        // `sets.contains(a, b)` is a function of that name, unless `sets` is a variable.
        let spelled = call.target.as_ref().and_then(|target| target.expr.path());
        if let Some(spelled) = spelled.filter(|path| !self.declared(path.split('.').next().unwrap_or_default())) {
            let name = format!("{spelled}.{}", call.name);
            if library::overloads(&name).is_some() {
                call.name = name.into();
                call.target = None;
            }
        }
        let member = call.target.is_some();
        let mut args: Vec<Type<'a>> = call.target.iter_mut().map(|target| self.infer(target)).collect();
        // What is put into a text may be of different types (`ext.Strings`).
        let mixed = &*call.name == "format";
        for arg in &mut call.args {
            args.push(match &mut arg.expr {
                Expr::List(elements) if mixed => {
                    elements.iter_mut().for_each(|element| drop(self.infer(&mut element.value)));
                    Type::list(Type::Dyn)
                }
                _ => self.infer(arg),
            });
        }
        let Some(overloads) = library::overloads(&call.name) else {
            let name = call.name.clone();
            return self.undeclared(at, &name);
        };
        let mut result: Option<Type<'a>> = None;
        for overload in
            overloads.iter().filter(|overload| overload.member == member && overload.args.len() == args.len())
        {
            let mut bound = Bound::default();
            if !overload.args.iter().zip(&args).all(|(formal, actual)| unify(formal, actual, &mut bound)) {
                continue;
            }
            let this = filled(&overload.result, &bound);
            result = Some(match result {
                // Which one it is only an evaluation can tell.
                Some(before) if before != this => Type::Dyn,
                _ => this,
            });
        }
        result.unwrap_or_else(|| self.no_overload(at, &call.name, member, &args))
    }

    fn comprehension(&mut self, at: u32, comprehension: &mut Loop) -> Type<'a> {
        let range = self.infer(&mut comprehension.range);
        let two = comprehension.names.1.is_some();
        let of_optionals = matches!(comprehension.what, Macro::OptMap | Macro::OptFlatMap);
        let (first, second) = match &range {
            Type::Optional(inner) if of_optionals => ((**inner).clone(), Type::Dyn),
            other if other.is_dyn() => (Type::Dyn, Type::Dyn),
            Type::List(element) if !of_optionals && two => (Type::Int, (**element).clone()),
            Type::List(element) if !of_optionals => ((**element).clone(), Type::Dyn),
            Type::Map(key, value) if !of_optionals => ((**key).clone(), (**value).clone()),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                (self.wrong(at, message), Type::Error)
            }
        };
        let outer = self.locals.len();
        self.locals.push((comprehension.names.0.clone(), first.clone()));
        self.locals.extend(comprehension.names.1.clone().map(|name| (name, second.clone())));
        if let Some(filter) = &mut comprehension.filter {
            let of = self.infer(filter);
            self.must_be_bool(filter.at, of);
        }
        let body = self.infer(&mut comprehension.body);
        self.locals.truncate(outer);
        let body_at = comprehension.body.at;
        match comprehension.what {
            Macro::All | Macro::Exists | Macro::ExistsOne => {
                self.must_be_bool(body_at, body);
                Type::Bool
            }
            Macro::Filter => {
                self.must_be_bool(body_at, body);
                Type::list(first)
            }
            Macro::Map | Macro::TransformList => Type::list(body),
            Macro::TransformMap => Type::map(if matches!(range, Type::List(_)) { Type::Int } else { first }, body),
            Macro::TransformMapEntry => body,
            Macro::OptMap => Type::Optional(Box::new(body)),
            Macro::OptFlatMap => body,
        }
    }

    fn must_be_bool(&mut self, at: u32, of: Type<'a>) {
        if !of.is_dyn() && of != Type::Bool {
            self.wrong(at, format!("expected type 'bool' but found '{of}'"));
        }
    }
}

/// The type of a field of what a schema describes; fields may be spelled as CEL identifiers (`__namespace__`).
fn field_of<'a>(schema: &'a Schema, field: &str) -> Option<Type<'a>> {
    let found = schema.property(field).or_else(|| schema.property(&values::unescape(field)));
    let embedded = match field {
        "apiVersion" | "kind" if schema.embedded_resource => Some(Type::String),
        "metadata" if schema.embedded_resource => Some(Type::Dyn),
        _ => None,
    };
    found.map(Type::of).or(embedded).or_else(|| open(schema).then_some(Type::Dyn))
}

/// Whether there may be fields the schema does not name.
fn open(schema: &Schema) -> bool {
    schema.preserve_unknown || !matches!(schema.additional, Additional::Nothing)
}

fn numeric(of: &Type<'_>) -> bool {
    matches!(of, Type::Int | Type::Uint | Type::Double)
}

/// What may be null: messages, times, and what is not known.
fn nullable(of: &Type<'_>) -> bool {
    matches!(
        of,
        Type::Null
            | Type::Duration
            | Type::Timestamp
            | Type::Named(_)
            | Type::Object(_)
            | Type::Made(_)
            | Type::Optional(_)
    )
}

/// The type that both are, if there is one.
fn join<'a>(one: &Type<'a>, other: &Type<'a>) -> Option<Type<'a>> {
    match (one, other) {
        (Type::Error, known) | (known, Type::Error) => Some(known.clone()),
        (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
        (Type::Null, of) | (of, Type::Null) if nullable(of) => Some(of.clone()),
        (Type::List(one), Type::List(other)) => join(one, other).map(Type::list),
        (Type::Optional(one), Type::Optional(other)) => join(one, other).map(|inner| Type::Optional(Box::new(inner))),
        (Type::Map(key, value), Type::Map(other_key, other_value)) => {
            Some(Type::map(join(key, other_key)?, join(value, other_value)?))
        }
        _ => (one == other).then(|| one.clone()),
    }
}

/// Whether an argument fits what a function takes.
fn unify<'a>(formal: &Type<'static>, actual: &Type<'a>, bound: &mut Bound<'a>) -> bool {
    match (formal, actual) {
        (Type::Param(which), actual) => {
            let joined = match &bound[*which] {
                None => Some(actual.clone()),
                Some(before) => join(before, actual),
            };
            let fits = joined.is_some();
            bound[*which] = joined.or(bound[*which].take());
            fits
        }
        (Type::Dyn, _) | (_, Type::Dyn | Type::Error) => true,
        (formal, Type::Null) => nullable(formal),
        (Type::List(formal), Type::List(actual)) | (Type::Optional(formal), Type::Optional(actual)) => {
            unify(formal, actual, bound)
        }
        (Type::Map(key, value), Type::Map(actual_key, actual_value)) => {
            unify(key, actual_key, bound) && unify(value, actual_value, bound)
        }
        (formal, actual) => formal == actual,
    }
}

/// A result with its parameters filled in; anything where nothing is known.
fn filled<'a>(result: &Type<'static>, bound: &Bound<'a>) -> Type<'a> {
    match result {
        Type::Param(which) => bound[*which].clone().unwrap_or(Type::Dyn),
        Type::List(element) => Type::list(filled(element, bound)),
        Type::Optional(inner) => Type::Optional(Box::new(filled(inner, bound))),
        Type::Map(key, value) => Type::map(filled(key, bound), filled(value, bound)),
        other => other.clone(),
    }
}
