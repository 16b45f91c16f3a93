//! Label and field selectors of lists and watches, evaluated on cached metadata.

use std::borrow::Cow;

use proa_apimachinery::object::Object;
use proa_apimachinery::part::Part;
use proa_apimachinery::selector::{FieldSelector, LabelSelector};
use proa_apimachinery::status::ApiError;

use crate::cache::{Item, Meta};
use crate::request_info::Query;
use crate::resources::Resource;

/// Which objects a request is about.
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// `metadata.namespace` when the request names one.
    namespace: String,
    /// `metadata.name` when a field selector (or a watch of one object) asks for exactly one.
    pub name: Option<String>,
    selectable: Vec<String>,
    /// Labels or other fields than those in the key are asked for: this part of an object holds them.
    looks_at: Option<Part>,
}

impl Selection {
    /// Reads the selectors of a request.
    pub fn read(resource: &Resource, query: &Query, namespace: &str) -> Result<Selection, ApiError> {
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default())
            .map_err(|error| ApiError::bad_request(error.to_string()))?;
        let selectable: Vec<String> =
            resource.kind.selectable_fields.iter().map(|field| field.name.to_string()).collect();
        let mut name = None;
        for requirement in fields.requirements() {
            let field = requirement.field.as_str();
            let known =
                matches!(field, "metadata.name" | "metadata.namespace") || selectable.iter().any(|have| have == field);
            if !known {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            if field == "metadata.name" && requirement.equal {
                name = Some(requirement.value.clone());
            }
        }
        // Names are in the key: only other fields and labels need the object decoded.
        let needs_meta = !labels.is_everything()
            || fields.requirements().iter().any(|requirement| !requirement.field.starts_with("metadata.n"));
        let looks_at = needs_meta.then(|| {
            let paths = resource.kind.selectable_fields.iter().map(|field| field.path.fields());
            Part::at(paths.chain([vec!["metadata", "labels"]]))
        });
        Ok(Selection { labels, fields, namespace: namespace.to_owned(), name, selectable, looks_at })
    }

    /// The same, narrowed to one name.
    pub fn with_name(mut self, name: &str) -> Selection {
        self.name = Some(name.to_owned());
        self
    }

    /// Whether every object of the namespace is meant.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && self.name.is_none()
    }

    /// Whether an object is meant.
    pub fn matches(&self, resource: &Resource, item: &Item) -> bool {
        if !self.namespace.is_empty() && item.namespace() != self.namespace {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        if self.name.as_ref().is_some_and(|name| name != item.name()) {
            return false;
        }
        let Some(part) = &self.looks_at else {
            return self.fields.matches(|field| from_key(field, item));
        };
        // A converted version has other field names than the cached ones: they are read anew.
        let own;
        let meta = if resource.serves_as_stored(&item.bytes) {
            item.meta(part, &|object| fields_of(resource, object))
        } else {
            own = Meta::of(&resource.to_served(item.object()), &|object| fields_of(resource, object));
            &own
        };
        if !self.labels.matches(|key| meta.label(key)) {
            return false;
        }
        self.fields.matches(|field| {
            let selectable = || self.selectable.iter().position(|have| have == field);
            from_key(field, item).or_else(|| selectable().map(|at| Cow::Borrowed(meta.field(at))))
        })
    }
}

fn from_key<'a>(field: &str, item: &'a Item) -> Option<Cow<'a, str>> {
    match field {
        "metadata.name" => Some(Cow::Borrowed(item.name())),
        "metadata.namespace" => Some(Cow::Borrowed(item.namespace())),
        _ => None,
    }
}

fn fields_of(resource: &Resource, object: &Object) -> Box<[Box<str>]> {
    let kind = &resource.kind;
    let value = |name: &str| Box::from(&*kind.field(object, name).unwrap_or_default());
    kind.selectable_fields.iter().map(|field| value(&field.name)).collect()
}
