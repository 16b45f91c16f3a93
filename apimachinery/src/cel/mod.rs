//! Owns CEL, the language of Kubernetes' expressions: the rules of custom resources (KEP-2876), match conditions
//! (KEP-3716), admission policies (KEP-3488, KEP-3962). From text to a tree whose names and types are checked, and from a
//! tree and values to an answer within a budget. What is declared for which use is an [`Environment`].
//!
//! Never panics, hangs or grows past its budget, whatever it is given; knows no object by its kind.

pub mod authorizer;
mod check;
mod functions;
mod lex;
mod library;
mod machine;
mod made;
mod operators;
mod parse;
mod syntax;
mod types;
pub mod values;

use std::cell::OnceCell;
use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use serde_json::Value;

use self::authorizer::Authorizer;
use self::machine::{Fault, Machine, Meter};
use self::syntax::Node;
pub use self::types::Type;

/// What the expressions of one policy may cost on one object together, and the rules of one schema
/// (`k8s.io/apiserver/pkg/apis/cel`, `RuntimeCELCostBudget`).
pub const BUDGET: u64 = 10_000_000;
/// What the match conditions of one webhook or policy may (`RuntimeCELCostBudgetMatchConditions`).
pub const CONDITIONS_BUDGET: u64 = 2_500_000;
/// What a single expression may (`PerCallLimit`).
const CALL_BUDGET: u64 = 1_000_000;

/// What is said when a budget is used up.
pub const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// The variable that answers questions of authorization.
pub const AUTHORIZER: &str = "authorizer";
/// The variable that is asked about the request itself.
const REQUEST_RESOURCE: &str = "authorizer.requestResource";
/// The variables a policy composes of expressions.
const VARIABLES: &str = "variables";

/// Something wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Issue {
    /// In bytes.
    at: usize,
    message: String,
}

impl Issue {
    /// As cel-go words it: place, message, and the line with a pointer below.
    fn report(&self, text: &str) -> String {
        let before = text.get(..self.at).unwrap_or(text);
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let shown = text.lines().nth(line).unwrap_or_default().replace('\t', " ");
        let message = &self.message;
        format!("ERROR: <input>:{}:{}: {message}\n | {shown}\n | {}^", line + 1, column + 1, ".".repeat(column))
    }
}

/// What is declared: the variables an expression may refer to, and their types.
#[derive(Clone, Debug, Default)]
pub struct Environment<'a> {
    variables: Vec<(&'a str, Type<'a>)>,
    composed: Option<Vec<(String, Type<'a>)>>,
    makes_objects: bool,
}

impl<'a> Environment<'a> {
    /// These variables, each of the type it has wherever it is declared (`k8s.io/apiserver/pkg/admission/plugin/cel`):
    /// objects are of any, as they are until a schema is known.
    pub fn of(names: &[&'a str]) -> Environment<'a> {
        let mut variables = Vec::new();
        for name in names {
            variables.push((
                *name,
                match *name {
                    "request" => Type::Named("kubernetes.AdmissionRequest"),
                    "user" => Type::Named("kubernetes.UserInfo"),
                    "namespaceObject" => Type::Named("kubernetes.Namespace"),
                    AUTHORIZER => Type::Named("kubernetes.authorization.Authorizer"),
                    _ => Type::Dyn,
                },
            ));
            if *name == AUTHORIZER {
                variables.push((REQUEST_RESOURCE, Type::Named("kubernetes.authorization.ResourceCheck")));
            }
        }
        Environment { variables, ..Environment::default() }
    }

    /// Gives a variable a type of its own.
    #[must_use]
    pub fn typed(mut self, name: &str, of: Type<'a>) -> Environment<'a> {
        if let Some((_, known)) = self.variables.iter_mut().find(|(have, _)| *have == name) {
            *known = of;
        }
        self
    }

    /// Declares `variables`, for now with none in it.
    #[must_use]
    pub fn composing(mut self) -> Environment<'a> {
        self.composed = Some(Vec::new());
        self
    }

    /// Adds to `variables`.
    pub fn compose(&mut self, name: &str, of: Type<'a>) {
        let composed = self.composed.get_or_insert_default();
        composed.retain(|(have, _)| have != name);
        composed.push((name.to_owned(), of));
    }

    /// Lets expressions make `Object{…}` and `JSONPatch{…}` (KEP-3962).
    #[must_use]
    pub fn making_objects(mut self) -> Environment<'a> {
        self.makes_objects = true;
        self
    }
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    text: Box<str>,
    program: Node,
    uses: Vec<Box<str>>,
}

/// What an expression came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `true` or `false`.
    Bool(bool),
    /// A string.
    Text(String),
    /// `null`.
    Null,
    /// Anything else, by the name of its type.
    Other(String),
}

impl Expression {
    /// Compiles an expression, whatever it comes to; and the type of that.
    ///
    /// # Errors
    ///
    /// Why it is no such expression, in the words API servers use (`compilation failed: ERROR: <input>:1:1: …`).
    pub fn typed<'a>(text: &str, environment: &Environment<'a>) -> Result<(Expression, Type<'a>), String> {
        let failed = |issues: &[Issue]| {
            let reports: Vec<_> = issues.iter().map(|issue| issue.report(text)).collect();
            format!("compilation failed: {}", reports.join("\n"))
        };
        let mut program = parse::parse(text).map_err(|issue| failed(&[issue]))?;
        let checked = check::check(&mut program, environment).map_err(|issues| failed(&issues))?;
        Ok((Expression { text: text.into(), program, uses: checked.uses }, checked.result))
    }

    /// Compiles an expression that comes to one of these types, as far as can be told.
    ///
    /// # Errors
    ///
    /// As [`Expression::typed`], and where it plainly is of another type.
    pub fn compile(text: &str, environment: &Environment<'_>, wanted: &[Type<'_>]) -> Result<Expression, String> {
        let (expression, result) = Expression::typed(text, environment)?;
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted.admits(&result)) {
            return Ok(expression);
        }
        match wanted {
            [one] => Err(format!("must evaluate to {one}")),
            several => {
                let names: Vec<_> = several.iter().map(Type::to_string).collect();
                Err(format!("must evaluate to one of [{}]", names.join(" ")))
            }
        }
    }

    /// Compiles an expression over these variables that is either true or false.
    ///
    /// # Errors
    ///
    /// As [`Expression::compile`].
    pub fn condition(text: &str, variables: &[&str]) -> Result<Expression, String> {
        Expression::compile(text, &Environment::of(variables), &[Type::Bool])
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it refers to the variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.uses.iter().any(|used| &**used == variable)
    }

    /// What it comes to; its cost is taken from `budget`.
    ///
    /// # Errors
    ///
    /// Why it comes to nothing: an error of its evaluation, or a budget that is used up ([`OUT_OF_BUDGET`]; `budget` is
    /// nothing then).
    pub fn evaluate(&self, scope: &Scope, budget: &mut u64) -> Result<Answer, String> {
        Ok(match self.run(scope, budget)? {
            Cel::Bool(answer) => Answer::Bool(answer),
            Cel::String(text) => Answer::Text(text.to_string()),
            Cel::Null => Answer::Null,
            other => Answer::Other(values::type_name(&other).to_owned()),
        })
    }

    /// What it comes to, as JSON.
    ///
    /// # Errors
    ///
    /// As [`Expression::evaluate`], and where it is nothing JSON can say.
    pub fn value(&self, scope: &Scope, budget: &mut u64) -> Result<Value, String> {
        values::to_json(&self.run(scope, budget)?)
    }

    /// What it comes to, as the value it is.
    pub(crate) fn run(&self, scope: &Scope, budget: &mut u64) -> Result<Cel, String> {
        let allowed = CALL_BUDGET.min(*budget);
        let mut meter = Meter::new(allowed);
        let outcome = Machine::new(scope, &mut meter).evaluate(&self.program);
        let spent = meter.left() == 0 && allowed == *budget;
        *budget -= allowed - meter.left();
        match outcome {
            Ok(value) => Ok(value),
            Err(Fault::Failed(why)) => Err(why),
            Err(Fault::Spent) if spent => Err(OUT_OF_BUDGET.to_owned()),
            Err(Fault::Spent) => Err("operation cancelled: actual cost limit exceeded".to_owned()),
        }
    }
}

/// The values expressions are evaluated over; made once for all that are asked of a request.
#[derive(Clone, Default)]
pub struct Scope {
    variables: Vec<(&'static str, Cel)>,
    composed: Vec<Composed>,
}

/// A variable that is worked out when somebody first wants to know, and then known.
#[derive(Clone)]
struct Composed {
    name: Box<str>,
    expression: Arc<Expression>,
    value: OnceCell<Result<Cel, String>>,
}

impl Scope {
    /// Gives a variable a value.
    pub fn bind(&mut self, name: &'static str, value: &Value) {
        self.bind_value(name, values::from_json(value));
    }

    /// Gives a variable a value that is one already.
    pub(crate) fn bind_value(&mut self, name: &'static str, value: Cel) {
        self.variables.retain(|(have, _)| *have != name);
        self.variables.push((name, value));
    }

    /// Gives `variables.name` its meaning.
    pub fn compose(&mut self, name: &str, expression: &Arc<Expression>) {
        let expression = Arc::clone(expression);
        self.composed.push(Composed { name: name.into(), expression, value: OnceCell::new() });
    }

    /// Gives `authorizer` its meaning: questions go to `authorizer`; `authorizer.requestResource` asks about `request`.
    pub fn bind_authorizer(&mut self, authorizer: Arc<dyn Authorizer>, request: authorizer::Question) {
        self.bind_value(AUTHORIZER, authorizer::root(Arc::clone(&authorizer)));
        self.bind_value(REQUEST_RESOURCE, authorizer::about(authorizer, request));
    }

    fn variable(&self, name: &str) -> Option<&Cel> {
        self.variables.iter().find(|(have, _)| *have == name).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests;
