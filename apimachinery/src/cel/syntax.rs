//! Owns the syntax tree of an expression (cel-spec, `doc/langdef.md`). Macros are nodes of their own: nothing that is
//! evaluated was written by nobody.

use kube_cel::cel::Value as Cel;

/// A node and where it is.
#[derive(Debug)]
pub(super) struct Node {
    /// Its place in the text, in bytes: that of the operator, the dot or the bracket, as cel-go has it.
    pub at: u32,
    /// The longest way down.
    pub depth: u16,
    pub expr: Expr,
}

/// What a node is.
#[derive(Debug)]
pub(super) enum Expr {
    /// A constant.
    Literal(Cel),
    /// A name; with dots where a variable or a type is called so.
    Ident(Box<str>),
    /// `a.b`, `a.?b`, `has(a.b)`.
    Select(Box<Select>),
    /// `a[b]`, `a[?b]`.
    Index(Box<Index>),
    /// A function or an operator that is none of the others.
    Call(Box<Call>),
    /// `[a, ?b]`.
    List(Vec<Element>),
    /// `{a: b, ?c: d}`.
    Map(Vec<Entry>),
    /// `Name{a: b}`.
    Make(Box<Make>),
    /// `a && b && …`: as one, so that a long one is not a deep one.
    And(Vec<Node>),
    /// `a || b || …`.
    Or(Vec<Node>),
    /// `a ? b : c`.
    If(Box<[Node; 3]>),
    /// A macro that looks at elements.
    Loop(Box<Loop>),
    /// `cel.bind(name, value, body)`.
    Bind(Box<Bind>),
}

#[derive(Debug)]
pub(super) struct Select {
    pub from: Node,
    pub field: Box<str>,
    pub mode: Mode,
}

/// What is asked of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its value.
    Value,
    /// Its value, if it is there.
    Optional,
    /// Whether it is there.
    Test,
}

#[derive(Debug)]
pub(super) struct Index {
    pub from: Node,
    pub key: Node,
    pub optional: bool,
}

#[derive(Debug)]
pub(super) struct Call {
    pub name: Box<str>,
    pub target: Option<Node>,
    pub args: Vec<Node>,
}

#[derive(Debug)]
pub(super) struct Element {
    pub value: Node,
    pub optional: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: Node,
    pub value: Node,
    pub optional: bool,
}

#[derive(Debug)]
pub(super) struct Make {
    pub name: Box<str>,
    pub fields: Vec<(Box<str>, Node, bool)>,
}

#[derive(Debug)]
pub(super) struct Loop {
    pub what: Macro,
    pub range: Node,
    /// The names of element and nothing, or of index and element, or of key and value.
    pub names: (Box<str>, Option<Box<str>>),
    /// Which elements `body` is about, where the macro has a condition beside it.
    pub filter: Option<Node>,
    pub body: Node,
}

/// Which macro (cel-spec macros; cel-go `ext` two-variable comprehensions and optional types).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Macro {
    All,
    Exists,
    ExistsOne,
    Map,
    Filter,
    TransformList,
    TransformMap,
    TransformMapEntry,
    OptMap,
    OptFlatMap,
}

#[derive(Debug)]
pub(super) struct Bind {
    pub name: Box<str>,
    pub value: Node,
    pub body: Node,
}

impl Expr {
    /// The dotted name a chain of selections spells: `a.b.c`.
    pub(super) fn path(&self) -> Option<String> {
        match self {
            Expr::Ident(name) => Some(name.to_string()),
            Expr::Select(select) if select.mode == Mode::Value => {
                Some(format!("{}.{}", select.from.expr.path()?, select.field))
            }
            _ => None,
        }
    }
}
