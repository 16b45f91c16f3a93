//! Owns evaluation (cel-spec, evaluation): a walk over the tree, with a meter that ends it. What an expression costs is
//! counted as cel-go counts it (`interpreter/runtimecost.go`), so that a budget means here what it means there.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::Key;

use super::made::Made;
use super::operators::{element, field, key, key_value, missing, no_overload};
use super::syntax::{Call, Element, Entry, Expr, Index, Loop, Macro, Make, Mode, Node, Select};
use super::values::{self, as_optional, optional};
use super::{Scope, VARIABLES, functions};

/// How deep evaluation goes, composed variables included: it recurses.
const DEEPEST: u16 = 260;
/// What it costs to make a list, a map, an object.
const MAKE_LIST: u64 = 10;
const MAKE_MAP: u64 = 30;
const MAKE_OBJECT: u64 = 40;

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// An error, which `&&`, `||` and their like may take back.
    Failed(String),
    /// The meter has run out: nothing takes that back.
    Spent,
}

/// Counts what evaluation costs.
#[derive(Debug)]
pub(super) struct Meter {
    left: u64,
    depth: u16,
}

impl Meter {
    pub(super) fn new(left: u64) -> Meter {
        Meter { left, depth: 0 }
    }

    /// What may still be spent.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Takes a cost.
    pub(super) fn spend(&mut self, cost: u64) -> Result<(), Fault> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Fault::Spent)
            }
        }
    }
}

/// One evaluation.
pub(super) struct Machine<'p, 'm> {
    scope: &'p Scope,
    meter: &'m mut Meter,
    /// The names of macros around, innermost last.
    locals: Vec<(&'p str, Cel)>,
}

type Evaluated = Result<Cel, Fault>;

impl<'p, 'm> Machine<'p, 'm> {
    pub(super) fn new(scope: &'p Scope, meter: &'m mut Meter) -> Machine<'p, 'm> {
        Machine { scope, meter, locals: Vec::new() }
    }

    /// What a node comes to.
    pub(super) fn evaluate(&mut self, node: &'p Node) -> Evaluated {
        self.meter.depth += 1;
        let value = if self.meter.depth > DEEPEST {
            Err(Fault::Failed("expression recursion limit exceeded".to_owned()))
        } else {
            self.node(node)
        };
        self.meter.depth -= 1;
        value
    }

    fn node(&mut self, node: &'p Node) -> Evaluated {
        match &node.expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select),
            Expr::Index(index) => self.index(index),
            Expr::Call(call) => self.call(call),
            Expr::List(elements) => self.list(elements),
            Expr::Map(entries) => self.map(entries),
            Expr::Make(make) => self.make(make),
            Expr::And(terms) => self.terms(terms, false),
            Expr::Or(terms) => self.terms(terms, true),
            Expr::If(parts) => {
                let [condition, then, otherwise] = &**parts;
                let holds = self.truth(condition)?;
                self.evaluate(if holds { then } else { otherwise })
            }
            Expr::Loop(comprehension) => self.comprehension(comprehension),
            Expr::Bind(bind) => {
                let value = self.evaluate(&bind.value)?;
                self.within(&bind.name, value, |machine| machine.evaluate(&bind.body))
            }
        }
    }

    fn truth(&mut self, node: &'p Node) -> Result<bool, Fault> {
        match self.evaluate(node)? {
            Cel::Bool(holds) => Ok(holds),
            _ => Err(no_overload()),
        }
    }

    /// Evaluates with one more name.
    fn within<T>(
        &mut self,
        name: &'p str,
        value: Cel,
        body: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let outer = self.locals.len();
        self.locals.push((name, value));
        let made = body(self);
        self.locals.truncate(outer);
        made
    }

    fn ident(&mut self, name: &str) -> Evaluated {
        self.meter.spend(1)?;
        if let Some((_, value)) = self.locals.iter().rev().find(|(have, _)| *have == name) {
            return Ok(value.clone());
        }
        if let Some(value) = self.scope.variable(name) {
            return Ok(value.clone());
        }
        if values::is_type_name(name) {
            return Ok(Cel::Opaque(Arc::new(values::Kind(name.to_owned()))));
        }
        Err(Fault::Failed(format!("no such attribute(s): {name}")))
    }

    /// A variable of a policy: worked out once.
    fn composed(&mut self, name: &str) -> Evaluated {
        let known = self.scope.composed.iter().find(|composed| &*composed.name == name);
        let composed = known.ok_or_else(|| Fault::Failed(format!("no such key: {name}")))?;
        let failed = |why: String| Fault::Failed(format!("composited variable {name:?} fails to evaluate: {why}"));
        if let Some(value) = composed.value.get() {
            return value.clone().map_err(failed);
        }
        let value = match Machine::new(self.scope, self.meter).evaluate(&composed.expression.program) {
            Ok(value) => Ok(value),
            Err(Fault::Failed(why)) => Err(why),
            Err(Fault::Spent) => return Err(Fault::Spent),
        };
        composed.value.get_or_init(|| value).clone().map_err(failed)
    }

    fn select(&mut self, select: &'p Select) -> Evaluated {
        self.meter.spend(1)?;
        let name = &*select.field;
        if matches!(&select.from.expr, Expr::Ident(from) if &**from == VARIABLES) {
            return match select.mode {
                Mode::Value => self.composed(name),
                Mode::Optional => self.composed(name).map(|value| optional(Some(value))),
                Mode::Test => Ok(Cel::Bool(self.scope.composed.iter().any(|composed| &*composed.name == name))),
            };
        }
        let from = self.evaluate(&select.from)?;
        let through = as_optional(&from);
        let found = match through {
            Some(None) => None,
            Some(Some(inner)) => field(inner, name)?,
            None => field(&from, name)?,
        };
        match select.mode {
            Mode::Test => Ok(Cel::Bool(found.is_some())),
            Mode::Optional => Ok(optional(found)),
            Mode::Value if through.is_some() => Ok(optional(found)),
            Mode::Value => found.ok_or_else(|| missing(&from, &values::text(name))),
        }
    }

    fn index(&mut self, index: &'p Index) -> Evaluated {
        self.meter.spend(1)?;
        let from = self.evaluate(&index.from)?;
        let at = self.evaluate(&index.key)?;
        let through = as_optional(&from);
        let found = match through {
            Some(None) => None,
            Some(Some(inner)) => element(inner, &at)?,
            None => element(&from, &at)?,
        };
        if index.optional || through.is_some() {
            return Ok(optional(found));
        }
        found.ok_or_else(|| missing(&from, &at))
    }

    fn call(&mut self, call: &'p Call) -> Evaluated {
        let mut args = Vec::with_capacity(call.args.len() + 1);
        if let Some(target) = &call.target {
            let target = self.evaluate(target)?;
            // What an optional holds makes its alternative not even looked at.
            if let (Some(held), "or" | "orValue", 1) = (as_optional(&target), &*call.name, call.args.len()) {
                self.meter.spend(1)?;
                return match held {
                    Some(value) if &*call.name == "orValue" => Ok(value.clone()),
                    Some(_) => Ok(target.clone()),
                    None => self.evaluate(&call.args[0]),
                };
            }
            args.push(target);
        }
        for arg in &call.args {
            args.push(self.evaluate(arg)?);
        }
        functions::apply(&call.name, call.target.is_some(), args, self.meter)
    }

    fn list(&mut self, elements: &'p [Element]) -> Evaluated {
        self.meter.spend(MAKE_LIST)?;
        let mut items = Vec::with_capacity(elements.len());
        for element in elements {
            let value = self.evaluate(&element.value)?;
            items.extend(given(value, element.optional)?);
        }
        Ok(values::list(items))
    }

    fn map(&mut self, entries: &'p [Entry]) -> Evaluated {
        self.meter.spend(MAKE_MAP)?;
        let mut made = HashMap::with_capacity(entries.len());
        for entry in entries {
            let at = key(&self.evaluate(&entry.key)?)?;
            let value = self.evaluate(&entry.value)?;
            if let Some(value) = given(value, entry.optional)?
                && made.insert(at.clone(), value).is_some()
            {
                return Err(Fault::Failed(format!("Failed with repeated key: {at}")));
            }
        }
        Ok(values::map(made))
    }

    fn make(&mut self, make: &'p Make) -> Evaluated {
        self.meter.spend(MAKE_OBJECT)?;
        let mut fields = Vec::with_capacity(make.fields.len());
        for (name, value, optional) in &make.fields {
            let value = self.evaluate(value)?;
            // A null is no value: the field is not set.
            if let Some(value) = given(value, *optional)?.filter(|value| *value != Cel::Null) {
                fields.push((values::unescape(name).into(), value));
            }
        }
        Ok(Cel::Opaque(Arc::new(Made { name: make.name.clone(), fields })))
    }

    /// `&&` and `||`: a term that decides does so whatever the others failed with.
    fn terms(&mut self, terms: &'p [Node], decisive: bool) -> Evaluated {
        let mut failed = None;
        for term in terms {
            match self.truth(term) {
                Ok(holds) if holds == decisive => return Ok(Cel::Bool(decisive)),
                Ok(_) => {}
                Err(Fault::Spent) => return Err(Fault::Spent),
                Err(fault) => failed = failed.or(Some(fault)),
            }
        }
        failed.map_or(Ok(Cel::Bool(!decisive)), Err)
    }

    fn comprehension(&mut self, comprehension: &'p Loop) -> Evaluated {
        let range = self.evaluate(&comprehension.range)?;
        if matches!(comprehension.what, Macro::OptMap | Macro::OptFlatMap) {
            let Some(held) = as_optional(&range) else { return Err(no_overload()) };
            let Some(held) = held.cloned() else { return Ok(optional(None)) };
            let made = self.within(&comprehension.names.0, held, |machine| machine.evaluate(&comprehension.body))?;
            return Ok(if comprehension.what == Macro::OptMap { optional(Some(made)) } else { made });
        }
        let range = Range::of(range)?;
        let mut fold = Fold::of(comprehension.what);
        for at in 0..range.len() {
            self.meter.spend(1)?;
            let (first, second) = range.get(at, comprehension.names.1.is_some());
            let outer = self.locals.len();
            self.locals.push((&comprehension.names.0, first.clone()));
            if let (Some(name), Some(second)) = (&comprehension.names.1, second) {
                self.locals.push((name, second));
            }
            let wanted = comprehension.filter.as_ref().map_or(Ok(true), |filter| self.truth(filter));
            let body = match wanted {
                Ok(true) => self.evaluate(&comprehension.body).map(Some),
                Ok(false) => Ok(None),
                Err(fault) => Err(fault),
            };
            self.locals.truncate(outer);
            let body = match body {
                Ok(None) => continue,
                Ok(Some(value)) => Ok(value),
                Err(fault) => Err(fault),
            };
            if fold.step(first, body)? {
                break;
            }
        }
        fold.end()
    }
}

/// What an element or field is given: of `?a`, what `a` holds.
fn given(value: Cel, is_optional: bool) -> Result<Option<Cel>, Fault> {
    if !is_optional {
        return Ok(Some(value));
    }
    as_optional(&value).map(Option::<&Cel>::cloned).ok_or_else(no_overload)
}

/// What a macro goes over.
enum Range {
    List(Arc<Vec<Cel>>),
    Map(Vec<(Cel, Cel)>),
}

impl Range {
    fn of(value: Cel) -> Result<Range, Fault> {
        match value {
            Cel::List(items) => Ok(Range::List(items)),
            Cel::Map(map) => {
                let mut entries: Vec<_> = map.map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                Ok(Range::Map(entries.into_iter().map(|(key, value)| (key_value(key), value.clone())).collect()))
            }
            _ => Err(no_overload()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Range::List(items) => items.len(),
            Range::Map(entries) => entries.len(),
        }
    }

    /// The element or key alone, or index or key with what is there.
    fn get(&self, at: usize, both: bool) -> (Cel, Option<Cel>) {
        match self {
            Range::List(items) if both => (Cel::Int(i64::try_from(at).unwrap_or(i64::MAX)), Some(items[at].clone())),
            Range::List(items) => (items[at].clone(), None),
            Range::Map(entries) => (entries[at].0.clone(), both.then(|| entries[at].1.clone())),
        }
    }
}

/// What a macro has come to so far.
enum Fold {
    /// `all` (false decides) and `exists` (true does); and the first failure.
    Decide(bool, Option<Fault>),
    Decided(bool),
    One(usize),
    Filter(Vec<Cel>),
    List(Vec<Cel>),
    Map(HashMap<Key, Cel>),
    Entries(HashMap<Key, Cel>),
}

impl Fold {
    fn of(what: Macro) -> Fold {
        match what {
            Macro::All => Fold::Decide(false, None),
            Macro::Exists => Fold::Decide(true, None),
            Macro::ExistsOne => Fold::One(0),
            Macro::Filter => Fold::Filter(Vec::new()),
            Macro::TransformMap => Fold::Map(HashMap::new()),
            Macro::TransformMapEntry => Fold::Entries(HashMap::new()),
            Macro::Map | Macro::TransformList | Macro::OptMap | Macro::OptFlatMap => Fold::List(Vec::new()),
        }
    }

    /// Takes what the body came to for an element; whether that settles it.
    fn step(&mut self, element: Cel, body: Evaluated) -> Result<bool, Fault> {
        let holds = |body: Evaluated| match body? {
            Cel::Bool(holds) => Ok(holds),
            _ => Err(no_overload()),
        };
        match self {
            Fold::Decide(decisive, failed) => match holds(body) {
                Ok(holds) if holds == *decisive => {
                    *self = Fold::Decided(holds);
                    return Ok(true);
                }
                Ok(_) => {}
                Err(Fault::Spent) => return Err(Fault::Spent),
                Err(fault) => *failed = failed.take().or(Some(fault)),
            },
            Fold::Decided(_) => return Ok(true),
            Fold::One(count) => *count += usize::from(holds(body)?),
            Fold::Filter(items) => {
                if holds(body)? {
                    items.push(element);
                }
            }
            Fold::List(items) => items.push(body?),
            Fold::Map(entries) => drop(entries.insert(key(&element)?, body?)),
            Fold::Entries(entries) => {
                let Cel::Map(one) = body? else { return Err(no_overload()) };
                for (key, value) in one.map.iter() {
                    if entries.insert(key.clone(), value.clone()).is_some() {
                        return Err(Fault::Failed(format!("insert failed: key {key} already exists")));
                    }
                }
            }
        }
        Ok(false)
    }

    fn end(self) -> Evaluated {
        Ok(match self {
            Fold::Decide(_, Some(fault)) => return Err(fault),
            Fold::Decide(decisive, None) => Cel::Bool(!decisive),
            Fold::Decided(holds) => Cel::Bool(holds),
            Fold::One(count) => Cel::Bool(count == 1),
            Fold::Filter(items) | Fold::List(items) => values::list(items),
            Fold::Map(entries) | Fold::Entries(entries) => values::map(entries),
        })
    }
}
