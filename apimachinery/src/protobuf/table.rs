//! The messages of Kubernetes' API types, read once from `messages.tsv.gz` (written by `derive.py`) when the first of
//! them is needed: a server whose clients all speak JSON never holds them.

use std::collections::HashMap;
use std::io::Read;
use std::sync::OnceLock;

use super::special::Special;
use super::wire::{FIXED64, LENGTH, VARINT, put_bytes, put_tag};

const MESSAGES: &[u8] = include_bytes!("messages.tsv.gz");

/// A message: the form of a Go struct.
pub struct Message {
    pub(super) name: &'static str,
    pub(super) is_kind: bool,
    /// By number.
    pub(super) fields: Vec<Field>,
    /// By the name in JSON, those of inline messages included; sorted.
    names: Vec<(&'static str, Route)>,
    /// How it differs from an object in JSON.
    pub(super) special: Option<Special>,
    /// What is written for one nothing is set in.
    pub(super) zero: Box<[u8]>,
}

/// Where a name leads: the numbers of the inline messages on the way and that of the field, then zeros. In the order
/// of these, fields are written.
pub(super) type Route = [u8; 4];

/// One field.
pub(super) struct Field {
    pub(super) number: u8,
    pub(super) label: Label,
    pub(super) kind: Kind,
    pub(super) omit_empty: bool,
    pub(super) omit_zero: bool,
    /// Its own fields stand among the outer one's in JSON (Go's embedded structs).
    pub(super) inline: bool,
    pub(super) name: &'static str,
    /// What is written where it was not set.
    pub(super) absent: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    /// A Go value: always written.
    Value,
    /// A pointer, or a slice that counts as one value: written when it is not nil.
    Pointer,
    Many,
    Map,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Bytes,
    Bool,
    /// `int32` and `int64` are one on the wire.
    Int,
    Double,
    Message(u16),
}

impl Kind {
    pub(super) fn wire(self) -> u32 {
        match self {
            Kind::Bool | Kind::Int => VARINT,
            Kind::Double => FIXED64,
            Kind::String | Kind::Bytes | Kind::Message(_) => LENGTH,
        }
    }
}

#[derive(Default)]
struct Table {
    messages: Vec<Message>,
    by_name: HashMap<&'static str, u16>,
    /// Group and version to package.
    packages: HashMap<&'static str, &'static str>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut text = String::new();
        // It was read back when it was written: nothing can be wrong with it here, and the tests read all of it.
        let _ = flate2::read::GzDecoder::new(MESSAGES).read_to_string(&mut text);
        Table::parse(text.leak())
    })
}

impl Table {
    fn parse(text: &'static str) -> Table {
        let mut table = Table::default();
        for name in text.lines().filter_map(|line| line.strip_prefix("=\t")) {
            let (name, is_kind) = name.split_once('\t').map_or((name, false), |(name, _)| (name, true));
            table.by_name.insert(name, u16::try_from(table.messages.len()).unwrap_or(u16::MAX));
            let special = Special::of(name);
            let zero = Box::default();
            table.messages.push(Message { name, is_kind, fields: Vec::new(), names: Vec::new(), special, zero });
        }
        let mut at = 0;
        for line in text.lines() {
            let parts: Vec<&'static str> = line.split('\t').collect();
            match *parts {
                ["@", package, api_version] => drop(table.packages.insert(api_version, package)),
                ["~", alias, target] => {
                    if let Some(target) = table.by_name.get(target).copied() {
                        table.by_name.insert(alias, target);
                    }
                }
                ["=", ..] => at += 1,
                [number, kind, label, flags, name] => {
                    let field = Field {
                        number: number.parse().unwrap_or_default(),
                        label: match label {
                            "v" => Label::Value,
                            "r" => Label::Many,
                            "m" => Label::Map,
                            _ => Label::Pointer,
                        },
                        kind: table.kind_of(kind),
                        omit_empty: flags.contains('e'),
                        omit_zero: flags.contains('z'),
                        inline: flags.contains('i'),
                        name,
                        absent: Box::default(),
                    };
                    // Fields follow the message they belong to.
                    let message: &mut Message = &mut table.messages[at - 1];
                    message.fields.push(field);
                }
                _ => {}
            }
        }
        for index in 0..table.messages.len() {
            table.settle(index);
            let mut names = Vec::new();
            table.routes(index, [0; 4], 0, &mut names);
            names.sort_unstable();
            table.messages[index].names = names;
        }
        table
    }

    fn kind_of(&self, name: &str) -> Kind {
        match name {
            "string" => Kind::String,
            "bytes" => Kind::Bytes,
            "bool" => Kind::Bool,
            "int32" | "int64" => Kind::Int,
            "double" => Kind::Double,
            name => Kind::Message(self.by_name.get(name).copied().unwrap_or(u16::MAX)),
        }
    }

    /// Finds out what is written for fields that are not set. A Go value holds no value of its own type, so this ends.
    fn settle(&mut self, index: usize) {
        for at in 0..self.messages[index].fields.len() {
            let Field { number, label, kind, .. } = self.messages[index].fields[at];
            let mut absent = Vec::new();
            match (label, kind) {
                (Label::Value, Kind::Message(inner)) => {
                    let inner = usize::from(inner);
                    if self.messages[inner].zero.is_empty() {
                        self.settle(inner);
                    }
                    put_bytes(&mut absent, number, &self.messages[inner].zero);
                }
                (Label::Value, Kind::Double) => {
                    put_tag(&mut absent, number, FIXED64);
                    absent.extend_from_slice(&[0; 8]);
                }
                (Label::Value, kind) => {
                    put_tag(&mut absent, number, kind.wire());
                    absent.push(0);
                }
                (Label::Pointer | Label::Many | Label::Map, _) => {}
            }
            self.messages[index].fields[at].absent = absent.into();
        }
        let message = &mut self.messages[index];
        message.zero = match message.special {
            Some(special) => special.zero().into(),
            None => message.fields.iter().flat_map(|field| field.absent.iter().copied()).collect(),
        };
    }

    fn routes(&self, index: usize, before: Route, depth: usize, names: &mut Vec<(&'static str, Route)>) {
        for field in &self.messages[index].fields {
            let mut route = before;
            let Some(step) = route.get_mut(depth) else { return };
            *step = field.number;
            match field.kind {
                Kind::Message(inner) if field.inline => self.routes(usize::from(inner), route, depth + 1, names),
                _ => names.push((field.name, route)),
            }
        }
    }
}

impl Message {
    /// The message of an index; there is one for each the table gave out.
    pub(super) fn at(index: u16) -> &'static Message {
        &table().messages[usize::from(index)]
    }

    /// A message by its full name: `core.v1.Pod`.
    pub(super) fn named(name: &str) -> Option<&'static Message> {
        table().by_name.get(name).map(|index| Message::at(*index))
    }

    pub(super) fn route(&self, name: &str) -> Option<Route> {
        let at = self.names.binary_search_by(|(have, _)| (*have).cmp(name)).ok()?;
        Some(self.names[at].1)
    }

    pub(super) fn field(&self, number: u64) -> Option<usize> {
        self.fields.binary_search_by_key(&number, |field| u64::from(field.number)).ok()
    }

    /// The field at the end of a route that [`Message::route`] gave.
    pub(super) fn follow(&self, route: Route) -> Option<&Field> {
        let mut message = self;
        let mut steps = route.into_iter().take_while(|step| *step != 0).peekable();
        while let Some(step) = steps.next() {
            let field = &message.fields[message.field(u64::from(step))?];
            match field.kind {
                Kind::Message(inner) if steps.peek().is_some() => message = Message::at(inner),
                _ => return Some(field),
            }
        }
        None
    }

    /// Every message there is.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = &'static Message> {
        table().messages.iter()
    }

    /// Every group and version there is, and the messages of its package that are kinds.
    #[cfg(test)]
    pub(super) fn kinds() -> impl Iterator<Item = (&'static str, &'static Message)> {
        table().packages.iter().filter(|(api_version, _)| **api_version != "-").flat_map(|(api_version, package)| {
            Message::all()
                .filter(|message| message.is_kind && message.package() == *package)
                .map(|message| (*api_version, message))
        })
    }

    #[cfg(test)]
    fn package(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(package, _)| package)
    }
}

/// The message of a kind, if it has a form in protobuf.
///
/// `apps/v1` `Deployment` is one; custom resources have none. Options are the same in every group, and what belongs to
/// no group (`Status`, `APIGroup` …) is of version `v1`, as their Go types are registered (`metav1.AddToGroupVersion`).
pub fn kind(api_version: &str, kind: &str) -> Option<&'static Message> {
    let table = table();
    let find = |package: &str| Message::named(&format!("{package}.{kind}")).filter(|message| message.is_kind);
    let own = table.packages.get(api_version).and_then(|package| find(package));
    own.or_else(|| {
        // `/api` answers without a version.
        let unversioned = matches!(api_version, "v1" | "") || kind.ends_with("Options");
        if unversioned { find("meta.v1") } else { None }
    })
}
