//! Owns how conflicts of an apply are told to people and tools.

use std::{collections::BTreeMap, fmt};

use super::{Operation, entries::Id, set::Set};

/// One field the configuration wants to change and someone else owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Name of the owner.
    pub manager: String,
    /// How the owner got it.
    pub operation: Operation,
    /// The version the owner wrote it in.
    pub api_version: String,
    /// The subresource the owner wrote it through, or "".
    pub subresource: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

impl Conflict {
    /// The owner, in words: `"kubectl" using apps/v1`.
    pub fn owner(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }

    /// What the cause `FieldManagerConflict` of the Status says; its field is [`Conflict::field`].
    pub fn message(&self) -> String {
        format!("conflict with {}", self.owner())
    }
}

/// All conflicts of an apply; `Display` is the message of the Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl Conflicts {
    pub(super) fn add(&mut self, owner: &Id, fields: &Set) {
        fields.each(&mut |path| {
            self.0.push(Conflict {
                manager: owner.manager.clone(),
                operation: owner.operation,
                api_version: owner.api_version.clone(),
                subresource: owner.subresource.clone(),
                field: path.iter().map(ToString::to_string).collect(),
            });
        });
    }
}

impl fmt::Display for Conflicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [conflict] = &self.0[..] {
            return write!(f, "Apply failed with 1 conflict: {}: {}", conflict.message(), conflict.field);
        }
        let mut by_owner: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for conflict in &self.0 {
            by_owner.entry(conflict.owner()).or_default().push(&conflict.field);
        }
        let mut lines = Vec::new();
        for (owner, fields) in by_owner {
            lines.push(format!("conflicts with {owner}:"));
            lines.extend(fields.into_iter().map(|field| format!("- {field}")));
        }
        write!(f, "Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}
