//! Owns CEL expressions over named values: the match conditions of webhooks (KEP-3716), and whatever else asks a
//! question of a request. Values are what JSON says they are; no schema, no escaped names. As with the rules of
//! schemas, cost is bounded before anything runs, and nothing here panics or hangs.

pub mod authorizer;

use std::sync::Arc;

use kube_cel::cel::common::ast::{Expr, LiteralValue};
use kube_cel::cel::{IdedExpr, Value as Cel};
use serde_json::Value;

use self::authorizer::{Authorizer, REQUEST_RESOURCE};
use super::Schema;
use super::cel::{compiled, resolve};
use super::cel_budget::Size;
use super::cel_values::{convert, each_child};

/// Evaluation steps all expressions asked of one request may take together, where Kubernetes has
/// `RuntimeCELCostBudgetMatchConditions`: a fourth of what the rules of a schema may cost on one object.
pub const REQUEST_BUDGET: u64 = 2_500_000;

/// The variable CEL's `authorizer` is.
pub const AUTHORIZER: &str = "authorizer";

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    text: Box<str>,
    program: IdedExpr,
}

/// What an expression came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `true` or `false`.
    Bool(bool),
    /// A string.
    Text(String),
    /// Anything else, by the name of its type.
    Other(&'static str),
}

/// The values expressions are evaluated over; made once for all that are asked of a request.
#[derive(Default)]
pub struct Scope {
    variables: Vec<(&'static str, Cel)>,
    size: Size,
}

impl Expression {
    /// Compiles an expression over these variables.
    ///
    /// # Errors
    ///
    /// Why it is no such expression, in the words API servers use (`compilation failed: …`).
    pub fn compile(text: &str, variables: &[&str]) -> Result<Expression, String> {
        let functions = if variables.contains(&AUTHORIZER) { authorizer::FUNCTIONS } else { "" };
        let (program, _) = compiled(text, variables, functions, request_resource)?;
        Ok(Expression { text: text.into(), program })
    }

    /// Compiles an expression that is either true or false.
    ///
    /// # Errors
    ///
    /// As [`Expression::compile`], and where it plainly is something else. (There is no checker of types: what only an
    /// evaluation can tell fails there.)
    pub fn condition(text: &str, variables: &[&str]) -> Result<Expression, String> {
        let expression = Expression::compile(text, variables)?;
        let other = match &expression.program.expr {
            Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
            Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => true,
            _ => false,
        };
        if other { Err("must evaluate to bool".to_owned()) } else { Ok(expression) }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it comes to; its cost is taken from `budget`.
    ///
    /// # Errors
    ///
    /// Why it comes to nothing: an error of its evaluation, or a budget that is used up.
    pub fn evaluate(&self, scope: &Scope, budget: &mut u64) -> Result<Answer, String> {
        Ok(match self.resolved(scope, budget)? {
            Cel::Bool(answer) => Answer::Bool(answer),
            Cel::String(text) => Answer::Text(text.to_string()),
            Cel::Null => Answer::Other("null"),
            Cel::Int(_) | Cel::UInt(_) | Cel::Float(_) => Answer::Other("number"),
            Cel::List(_) => Answer::Other("list"),
            Cel::Map(_) => Answer::Other("map"),
            _ => Answer::Other("unknown"),
        })
    }
}

impl Expression {
    /// What it comes to, as JSON.
    ///
    /// # Errors
    ///
    /// As [`Expression::evaluate`], and where it is something JSON has no form for.
    pub fn value(&self, scope: &Scope, budget: &mut u64) -> Result<Value, String> {
        json(&self.resolved(scope, budget)?)
    }

    fn resolved(&self, scope: &Scope, budget: &mut u64) -> Result<Cel, String> {
        let variables = scope.variables.iter().map(|(name, value)| (*name, value));
        let spent = "validation failed due to running out of cost budget, no further validation rules will be run";
        resolve(&self.program, variables, scope.size, budget, spent)
    }
}

fn json(value: &Cel) -> Result<Value, String> {
    Ok(match value {
        Cel::Null => Value::Null,
        Cel::Bool(answer) => (*answer).into(),
        Cel::Int(number) => (*number).into(),
        Cel::UInt(number) => (*number).into(),
        Cel::Float(number) => (*number).into(),
        Cel::String(text) => text.as_str().into(),
        Cel::List(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        Cel::Map(map) => {
            let entries = map.map.iter().map(|(key, value)| Ok((key.to_string(), json(value)?)));
            Value::Object(entries.collect::<Result<_, String>>()?)
        }
        other => return Err(format!("{other:?} has no form in JSON")),
    })
}

impl Scope {
    /// Gives a variable a value.
    pub fn bind(&mut self, name: &'static str, value: &Value) {
        self.size = self.size.and(Size::of(value));
        self.variables.push((name, convert(Schema::any(), value)));
    }

    /// Gives `authorizer` its meaning: questions go to `authorizer`; `authorizer.requestResource` asks about `request`.
    pub fn bind_authorizer(&mut self, authorizer: Arc<dyn Authorizer>, request: authorizer::Question) {
        self.variables.push((AUTHORIZER, authorizer::root(Arc::clone(&authorizer))));
        self.variables.push((REQUEST_RESOURCE, authorizer::about(authorizer, request)));
    }
}

/// `authorizer.requestResource` is a variable of its own with a dot in its name.
fn request_resource(node: &mut IdedExpr) {
    each_child(node, &mut request_resource);
    if let Expr::Select(select) = &node.expr
        && select.field == "requestResource"
        && matches!(&select.operand.expr, Expr::Ident(name) if name == AUTHORIZER)
    {
        node.expr = Expr::Ident(REQUEST_RESOURCE.to_owned());
    }
}

#[cfg(test)]
mod tests;
