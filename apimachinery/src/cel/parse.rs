//! Owns the grammar: from text to a tree (cel-spec, syntax), with an end to how deep and how long.
//!
//! Our own because of what no parser at hand gives: places in the text for the messages people know from Kubernetes, an
//! end to recursion, and no panic.

use std::sync::Arc;

use kube_cel::cel::Value as Cel;

use super::Issue;
use super::lex::{Token, tokens};
use super::syntax::{Bind, Call, Element, Entry, Expr, Index, Loop, Macro, Make, Mode, Node, Select};

/// Expressions are no longer than this, in bytes.
pub(super) const LONGEST: usize = 16 << 10;
/// Brackets within brackets: the parser recurses.
const DEEPEST_BRACKETS: usize = 40;
/// The tree: checker and evaluator recurse.
const DEEPEST_TREE: u16 = 160;

/// Words no variable is called (cel-spec, `RESERVED`); fields may be.
const RESERVED: [&str; 17] = [
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
    "while",
];

/// Parses an expression.
///
/// # Errors
///
/// Where and why it is none.
pub(super) fn parse(text: &str) -> Result<Node, Issue> {
    if text.len() > LONGEST {
        return Err(Issue { at: 0, message: format!("must not be longer than {LONGEST} bytes") });
    }
    let mut parser = Parser { tokens: tokens(text)?, next: 0, brackets: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        other => Err(parser.issue(format!("extraneous input '{}' expecting <EOF>", other.shown()))),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    brackets: usize,
}

type Parsed = Result<Node, Issue>;

/// How tight binary operators bind, loosest first; `||` and `&&` are told apart by their level.
fn precedence(token: &Token) -> Option<(u8, &'static str)> {
    Some(match token {
        Token::Sign("||") => (1, "_||_"),
        Token::Sign("&&") => (2, "_&&_"),
        Token::Sign("==") => (3, "_==_"),
        Token::Sign("!=") => (3, "_!=_"),
        Token::Sign("<") => (3, "_<_"),
        Token::Sign("<=") => (3, "_<=_"),
        Token::Sign(">") => (3, "_>_"),
        Token::Sign(">=") => (3, "_>=_"),
        Token::Ident(word) if word == "in" => (3, "@in"),
        Token::Sign("+") => (4, "_+_"),
        Token::Sign("-") => (4, "_-_"),
        Token::Sign("*") => (5, "_*_"),
        Token::Sign("/") => (5, "_/_"),
        Token::Sign("%") => (5, "_%_"),
        _ => return None,
    })
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn place(&self) -> usize {
        self.tokens[self.next].0
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].1.clone();
        // The last token stays: it ends everything.
        self.next = (self.next + 1).min(self.tokens.len() - 1);
        token
    }

    fn issue(&self, message: impl Into<String>) -> Issue {
        Issue { at: self.place(), message: format!("Syntax error: {}", message.into()) }
    }

    fn eat(&mut self, sign: &'static str) -> bool {
        let found = *self.peek() == Token::Sign(sign);
        if found {
            self.take();
        }
        found
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Issue> {
        if self.eat(sign) {
            return Ok(());
        }
        Err(self.issue(format!("mismatched input '{}' expecting '{sign}'", self.peek().shown())))
    }

    fn node(&self, at: usize, depth: u16, expr: Expr) -> Parsed {
        let depth = depth + 1;
        if depth > DEEPEST_TREE {
            return Err(Issue { at, message: "expression recursion limit exceeded".into() });
        }
        Ok(Node { at: u32::try_from(at).unwrap_or(u32::MAX), depth, expr })
    }

    /// Whatever stands in brackets, or on its own.
    fn expression(&mut self) -> Parsed {
        self.brackets += 1;
        if self.brackets > DEEPEST_BRACKETS {
            return Err(self.issue("expression recursion limit exceeded"));
        }
        let condition = self.binary(1)?;
        let at = self.place();
        let node = if self.eat("?") {
            let then = self.binary(1)?;
            self.expect(":")?;
            let otherwise = self.expression()?;
            let depth = condition.depth.max(then.depth).max(otherwise.depth);
            self.node(at, depth, Expr::If(Box::new([condition, then, otherwise])))?
        } else {
            condition
        };
        self.brackets -= 1;
        Ok(node)
    }

    fn binary(&mut self, loosest: u8) -> Parsed {
        let mut left = self.unary()?;
        while let Some((level, name)) = precedence(self.peek()).filter(|(level, _)| *level >= loosest) {
            let at = self.place();
            self.take();
            let right = self.binary(level + 1)?;
            left = match name {
                "_&&_" | "_||_" => self.joined(at, name == "_&&_", left, right)?,
                _ => {
                    let depth = left.depth.max(right.depth);
                    let call = Call { name: name.into(), target: None, args: vec![left, right] };
                    self.node(at, depth, Expr::Call(Box::new(call)))?
                }
            };
        }
        Ok(left)
    }

    /// Terms of one conjunction or disjunction stand beside each other.
    fn joined(&self, at: usize, and: bool, left: Node, right: Node) -> Parsed {
        let (mut terms, deepest) = match (and, left.expr) {
            (true, Expr::And(terms)) | (false, Expr::Or(terms)) => (terms, left.depth - 1),
            (_, expr) => (vec![Node { expr, ..left }], left.depth),
        };
        let deepest = deepest.max(right.depth);
        terms.push(right);
        self.node(at, deepest, if and { Expr::And(terms) } else { Expr::Or(terms) })
    }

    fn unary(&mut self) -> Parsed {
        let at = self.place();
        let (sign, name) = match self.peek() {
            Token::Sign("!") => ("!", "!_"),
            Token::Sign("-") => ("-", "-_"),
            _ => return self.member(),
        };
        let mut count = 0_u32;
        while self.eat(sign) {
            count += 1;
        }
        if sign == "-" && count == 1 {
            match self.peek() {
                Token::Int(n) if *n <= 1 << 63 => {
                    let negative = 0_i64.wrapping_sub_unsigned(*n);
                    self.take();
                    let literal = self.node(at, 0, Expr::Literal(Cel::Int(negative)))?;
                    return self.suffixes(literal);
                }
                Token::Double(n) => {
                    let negative = -n;
                    self.take();
                    let literal = self.node(at, 0, Expr::Literal(Cel::Float(negative)))?;
                    return self.suffixes(literal);
                }
                _ => {}
            }
        }
        let operand = self.member()?;
        // Two of them take each other back.
        if count.is_multiple_of(2) {
            return Ok(operand);
        }
        let depth = operand.depth;
        self.node(at, depth, Expr::Call(Box::new(Call { name: name.into(), target: None, args: vec![operand] })))
    }

    fn member(&mut self) -> Parsed {
        let first = self.primary()?;
        self.suffixes(first)
    }

    fn suffixes(&mut self, mut node: Node) -> Parsed {
        loop {
            let at = self.place();
            node = match self.peek() {
                Token::Sign(".") => {
                    self.take();
                    let optional = self.eat("?");
                    let Token::Ident(field) = self.take() else {
                        return Err(Issue { at, message: "Syntax error: no viable alternative at input '.'".into() });
                    };
                    if !optional && *self.peek() == Token::Sign("(") {
                        let at = self.place();
                        let args = self.args()?;
                        self.member_call(at, node, &field, args)?
                    } else {
                        let mode = if optional { Mode::Optional } else { Mode::Value };
                        let depth = node.depth;
                        let select = Select { from: node, field: field.into(), mode };
                        self.node(at, depth, Expr::Select(Box::new(select)))?
                    }
                }
                Token::Sign("[") => {
                    self.take();
                    let optional = self.eat("?");
                    let key = self.expression()?;
                    self.expect("]")?;
                    let depth = node.depth.max(key.depth);
                    self.node(at, depth, Expr::Index(Box::new(Index { from: node, key, optional })))?
                }
                Token::Sign("{") => match node.expr.path() {
                    Some(name) => self.make(at, name)?,
                    None => return Ok(node),
                },
                _ => return Ok(node),
            };
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.place();
        match self.take() {
            Token::Int(n) => match i64::try_from(n) {
                Ok(n) => self.node(at, 0, Expr::Literal(Cel::Int(n))),
                Err(_) => Err(Issue { at, message: "Syntax error: invalid int literal".into() }),
            },
            Token::Uint(n) => self.node(at, 0, Expr::Literal(Cel::UInt(n))),
            Token::Double(n) => self.node(at, 0, Expr::Literal(Cel::Float(n))),
            Token::Text(text) => self.node(at, 0, Expr::Literal(Cel::String(Arc::new(text)))),
            Token::Bytes(bytes) => self.node(at, 0, Expr::Literal(Cel::Bytes(Arc::new(bytes)))),
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                // What was in brackets is not joined with what follows them.
                Ok(inner)
            }
            Token::Sign("[") => self.list(at),
            Token::Sign("{") => self.map(at),
            Token::Sign(".") => self.primary(),
            Token::Ident(word) => self.word(at, word),
            other => {
                let message = format!(
                    "Syntax error: mismatched input '{}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', 'false', 'null', \
                     NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}",
                    other.shown()
                );
                Err(Issue { at, message })
            }
        }
    }

    fn word(&mut self, at: usize, word: String) -> Parsed {
        let literal = match word.as_str() {
            "true" => Some(Cel::Bool(true)),
            "false" => Some(Cel::Bool(false)),
            "null" => Some(Cel::Null),
            "in" => return Err(Issue { at, message: "Syntax error: mismatched input 'in'".into() }),
            _ => None,
        };
        if let Some(literal) = literal {
            return self.node(at, 0, Expr::Literal(literal));
        }
        if *self.peek() == Token::Sign("(") {
            let at = self.place();
            let args = self.args()?;
            return self.call(at, word, args);
        }
        if RESERVED.contains(&word.as_str()) {
            return Err(Issue { at, message: format!("Syntax error: reserved identifier: {word}") });
        }
        self.node(at, 0, Expr::Ident(word.into()))
    }

    fn args(&mut self) -> Result<Vec<Node>, Issue> {
        self.expect("(")?;
        let mut args = Vec::new();
        if self.eat(")") {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if !self.eat(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut elements = Vec::new();
        let mut depth = 0;
        while !self.eat("]") {
            let optional = self.eat("?");
            let value = self.expression()?;
            depth = depth.max(value.depth);
            elements.push(Element { value, optional });
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        self.node(at, depth, Expr::List(elements))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        let mut depth = 0;
        while !self.eat("}") {
            let optional = self.eat("?");
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            depth = depth.max(key.depth).max(value.depth);
            entries.push(Entry { key, value, optional });
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, depth, Expr::Map(entries))
    }

    fn make(&mut self, at: usize, name: String) -> Parsed {
        self.expect("{")?;
        let mut fields = Vec::new();
        let mut depth = 0;
        while !self.eat("}") {
            let optional = self.eat("?");
            let Token::Ident(field) = self.peek().clone() else {
                return Err(self.issue(format!("mismatched input '{}' expecting IDENTIFIER", self.peek().shown())));
            };
            self.take();
            self.expect(":")?;
            let value = self.expression()?;
            depth = depth.max(value.depth);
            fields.push((field.into(), value, optional));
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, depth, Expr::Make(Box::new(Make { name: name.into(), fields })))
    }

    /// `f(…)`: `has` is a macro.
    fn call(&mut self, at: usize, name: String, args: Vec<Node>) -> Parsed {
        let depth = args.iter().map(|arg| arg.depth).max().unwrap_or(0);
        if name == "has" && args.len() == 1 {
            for arg in args {
                if let Expr::Select(select) = arg.expr
                    && select.mode != Mode::Test
                {
                    let select = Select { mode: Mode::Test, ..*select };
                    return self.node(at, depth, Expr::Select(Box::new(select)));
                }
            }
            return Err(Issue { at, message: "invalid argument to has() macro".into() });
        }
        self.node(at, depth, Expr::Call(Box::new(Call { name: name.into(), target: None, args })))
    }

    /// `a.f(…)`, where `f` may be a macro.
    fn member_call(&mut self, at: usize, target: Node, name: &str, args: Vec<Node>) -> Parsed {
        let depth = args.iter().map(|arg| arg.depth).chain([target.depth]).max().unwrap_or(0);
        if name == "bind" && args.len() == 3 && matches!(&target.expr, Expr::Ident(name) if &**name == "cel") {
            let Ok([variable, value, body]) = <[Node; 3]>::try_from(args) else { return Err(self.issue("bind")) };
            let name = simple_name(&variable)?;
            return self.node(at, depth, Expr::Bind(Box::new(Bind { name, value, body })));
        }
        let Some((what, names, filtered)) = macro_of(name, args.len()) else {
            let call = Call { name: name.into(), target: Some(target), args };
            return self.node(at, depth, Expr::Call(Box::new(call)));
        };
        let mut args = args.into_iter();
        let mut name = || args.next().as_ref().map(simple_name).transpose();
        let first = name()?;
        let second = if names == 2 { name()? } else { None };
        let filter = if filtered { args.next() } else { None };
        let (Some(first), Some(body)) = (first, args.next()) else { return Err(self.issue("macro without arguments")) };
        let comprehension = Loop { what, range: target, names: (first, second), filter, body };
        self.node(at, depth, Expr::Loop(Box::new(comprehension)))
    }
}

/// Which macro a name is with so many arguments; how many of them are names, and whether one is a condition.
fn macro_of(name: &str, args: usize) -> Option<(Macro, usize, bool)> {
    Some(match (name, args) {
        ("all", 2 | 3) => (Macro::All, args - 1, false),
        ("exists", 2 | 3) => (Macro::Exists, args - 1, false),
        ("exists_one" | "existsOne", 2 | 3) => (Macro::ExistsOne, args - 1, false),
        ("map", 2 | 3) => (Macro::Map, 1, args == 3),
        ("filter", 2) => (Macro::Filter, 1, false),
        ("transformList", 3 | 4) => (Macro::TransformList, 2, args == 4),
        ("transformMap", 3 | 4) => (Macro::TransformMap, 2, args == 4),
        ("transformMapEntry", 3 | 4) => (Macro::TransformMapEntry, 2, args == 4),
        ("optMap", 2) => (Macro::OptMap, 1, false),
        ("optFlatMap", 2) => (Macro::OptFlatMap, 1, false),
        _ => return None,
    })
}

fn simple_name(node: &Node) -> Result<Box<str>, Issue> {
    match &node.expr {
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err(Issue { at: node.at as usize, message: "argument must be a simple name".into() }),
    }
}
