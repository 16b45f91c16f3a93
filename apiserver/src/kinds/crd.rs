//! Owns CustomResourceDefinitions: their own rules, and the rows they become ([`from_crd`]). Taking the
//! rows up and writing the definition's status is the core's.

use std::borrow::Cow;
use std::sync::Arc;

use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::jsonpath::JsonPath;
use proa_apimachinery::schema::{self, Schema};
use proa_apimachinery::{Object, names};
use serde_json::Value;

use super::at::{At, map_at, map_in, maps_at, or_set, spec_mut};
use super::columns::NAME_AND_AGE;
use super::{
    Cell, Column, Convert, Kind, Op, Rules, ScalePaths, SchemaRef, Scope, SelectableField, Storage, Strategy,
    Subresource, admissionregistration, meta, rules, settings, twins,
};
use crate::conversion::ConversionWebhook;

/// Holds a deleted definition until its instances are gone. Kubernetes' own name for it has no slash, which
/// the validation of finalizers asks of everybody.
pub const FINALIZER: &str = "apiextensions.k8s.io/customresourcecleanup";

pub(super) const RULES: Rules = Rules { default, prepare, validate, ..Rules::WITH_STATUS };

fn default(object: &mut Object) {
    let spec = spec_mut(object);
    let names = map_in(spec, "names");
    let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !kind.is_empty() {
        or_set(names, "singular", kind.to_lowercase());
        or_set(names, "listKind", format!("{kind}List"));
    }
    let conversion = map_in(spec, "conversion");
    or_set(conversion, "strategy", "None");
    let client = map_at(conversion, "webhook").and_then(|webhook| map_at(webhook, "clientConfig"));
    if let Some(service) = client.and_then(|client| map_at(client, "service")) {
        or_set(service, "port", 443);
    }
    for version in maps_at(spec, "versions") {
        for flag in ["served", "storage"] {
            version.entry(flag).or_insert(Value::Bool(false));
        }
    }
}

/// A definition is never without the finalizer while it lives: one deleted in the moment it was made has
/// instances all the same. A version is remembered as stored before anything is stored in it.
fn prepare(op: Op, new: &mut Object, old: Option<&Object>) {
    if matches!(op, Op::Create | Op::Update) {
        remember_storage_version(new);
    }
    let lives = old.is_none_or(|old| old.deletion_timestamp().is_none());
    if !matches!(op, Op::Create | Op::Update) || !lives || new.finalizers().any(|name| name == FINALIZER) {
        return;
    }
    let mut finalizers: Vec<Value> = new.get_list(&["metadata", "finalizers"]).to_vec();
    finalizers.push(FINALIZER.into());
    new.metadata_mut().insert("finalizers".into(), finalizers.into());
}

fn remember_storage_version(new: &mut Object) {
    let versions = new.get_list(&["spec", "versions"]).iter();
    let storage = versions.filter(|version| version.get("storage").and_then(Value::as_bool) == Some(true));
    let Some(storage) = storage.filter_map(|version| version.get("name")).next().cloned() else { return };
    let mut stored = new.get_list(&["status", "storedVersions"]).to_vec();
    if !stored.contains(&storage) {
        stored.push(storage);
        new.set(&["status", "storedVersions"], stored);
    }
}

/// `spec.conversion` (`ValidateCustomResourceConversion`).
fn conversion(at: &At<'_>, errors: &mut FieldErrors) {
    let (strategy, webhook) = (at.child("strategy"), at.child("webhook"));
    strategy.one_of(errors, &["None", "Webhook"]);
    if strategy.str() != "Webhook" {
        if webhook.present() {
            webhook.forbidden(errors, "should not be set when strategy is not set to Webhook");
        }
        return;
    }
    let config = webhook.child("clientConfig");
    if config.present() {
        admissionregistration::client(&config, errors);
    } else {
        config.missing(errors, "required when strategy is set to Webhook");
    }
    admissionregistration::review_versions(&webhook.child("conversionReviewVersions"), errors);
}

fn validate(op: Op, new: &Object, old: Option<&Object>, errors: &mut FieldErrors) {
    let spec = At::of(new, "spec");
    let (group, names_at) = (spec.child("group"), spec.child("names"));
    if group.required(errors) {
        group.check(errors, names::is_dns1123_subdomain);
        if !group.str().contains('.') {
            group.invalid(errors, "should be a domain with at least one dot");
        }
    }
    let plural = names_at.child("plural");
    plural.require(errors, names::is_dns1035_label);
    names_at.child("singular").check(errors, names::is_dns1035_label);
    for field in ["kind", "listKind"] {
        let at = names_at.child(field);
        if at.required(errors) {
            for detail in names::is_dns1035_label(&at.str().to_lowercase()) {
                at.invalid(errors, format!("may have mixed case, but should otherwise match: {detail}"));
            }
        }
    }
    if names_at.child("kind").str() == names_at.child("listKind").str() {
        names_at.child("listKind").invalid(errors, "kind and listKind may not be the same");
    }
    for list in ["shortNames", "categories"] {
        for name in names_at.child(list).items() {
            name.check(errors, names::is_dns1035_label);
        }
    }
    let wanted = format!("{}.{}", plural.str(), group.str());
    if op == Op::Create && new.name() != wanted {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        errors.push(FieldError::invalid(&Path::of("metadata.name"), new.name(), detail));
    }
    let scope = spec.child("scope");
    if scope.required(errors) {
        scope.one_of(errors, &["Cluster", "Namespaced"]);
    }
    versions(&spec.child("versions"), errors);
    conversion(&spec.child("conversion"), errors);
    if let Some(old) = old {
        for path in
            [&["spec", "group"][..], &["spec", "scope"], &["spec", "names", "plural"], &["spec", "names", "kind"]]
        {
            meta::immutable(new.get(path), old.get(path), &Path::of(path.join(".")), errors);
        }
        let served: Vec<&str> = spec.child("versions").items().map(|v| v.child("name").str()).collect();
        for stored in At::of(new, "status").child("storedVersions").items() {
            if !served.contains(&stored.str()) {
                stored.invalid(errors, "missing from spec.versions; it was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in it and removes it from status.storedVersions");
            }
        }
    }
}

fn versions(list: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    let mut storing = 0;
    for version in list.items() {
        let name = version.child("name");
        name.require(errors, names::is_dns1035_label);
        if seen.contains(&name.str()) {
            list.invalid(errors, "must contain unique version names");
        }
        seen.push(name.str());
        storing += usize::from(version.child("storage").bool());
        let schema = version.child("schema").child("openAPIV3Schema");
        match schema.value {
            None => schema.missing(errors, "schemas are required"),
            Some(value) => {
                if let Err(problems) = schema::crd::from_openapi_v3(value) {
                    errors.extend(problems.into_iter().map(|e| below(&schema.path, e)));
                }
            }
        }
        columns_rules(&version.child("additionalPrinterColumns"), errors);
        scale_rules(&version.child("subresources").child("scale"), errors);
        for field in version.child("selectableFields").items() {
            let path = field.child("jsonPath");
            if path.required(errors) && !JsonPath::parse(path.str()).is_ok_and(|p| p.is_simple()) {
                path.invalid(errors, "is an invalid path: must be a simple path");
            }
        }
    }
    if storing != 1 {
        list.invalid(errors, "must have exactly one version marked as storage version");
    }
}

/// An error of a schema, at its place in the definition.
fn below(base: &Path, mut error: FieldError) -> FieldError {
    let inner = error.path.as_str();
    error.path = match inner {
        "" => base.clone(),
        text if text.starts_with('[') => Path::of(format!("{base}{text}")),
        text => base.child(text),
    };
    error
}

fn columns_rules(list: &At<'_>, errors: &mut FieldErrors) {
    for column in list.items() {
        column.child("name").required(errors);
        let type_ = column.child("type");
        if type_.required(errors) {
            type_.one_of(errors, &["boolean", "date", "integer", "number", "string"]);
        }
        let path = column.child("jsonPath");
        if path.required(errors)
            && let Err(error) = JsonPath::parse(path.str())
        {
            path.invalid(errors, error.to_string());
        }
    }
}

fn scale_rules(scale: &At<'_>, errors: &mut FieldErrors) {
    if !scale.present() {
        return;
    }
    for (field, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let path = scale.child(field);
        if path.required(errors) && !path.str().starts_with(root) {
            path.invalid(errors, format!("should be a json path under {root}"));
        }
    }
}

/// The rows of a definition: one per served version, the preferred one first. Versions whose schema is
/// not readable are left out; validation let none of them in.
pub fn from_crd(definition: &Object) -> Vec<Kind> {
    let text = |path: &[&str]| definition.get_str(path).unwrap_or_default().to_owned();
    let group = text(&["spec", "group"]);
    let versions = definition.get_list(&["spec", "versions"]);
    let flag = |v: &Value, field: &str| v.get(field).and_then(Value::as_bool).unwrap_or(false);
    let name = |v: &Value| v.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let stored = versions.iter().find(|v| flag(v, "storage")).map(name).unwrap_or_default();
    let mut served: Vec<&Value> = versions.iter().filter(|v| flag(v, "served")).collect();
    served.sort_by_key(|v| std::cmp::Reverse(priority(&name(v))));
    served.into_iter().filter_map(|v| row(definition, &group, &name(v), &stored, v)).collect()
}

fn row(definition: &Object, group: &str, version: &str, stored: &str, spec: &Value) -> Option<Kind> {
    let schema = schema::crd::from_openapi_v3(spec.pointer("/schema/openAPIV3Schema")?).ok()?;
    let schema = Arc::new(schema);
    let text = |field: &str| definition.get_str(&["spec", "names", field]).unwrap_or_default().to_owned();
    let list = |field: &str| -> Vec<Cow<'static, str>> {
        let items = definition.get_list(&["spec", "names", field]).iter();
        items.filter_map(Value::as_str).map(|s| Cow::Owned(s.to_owned())).collect()
    };
    let kind = text("kind");
    let or = |text: String, default: String| if text.is_empty() { default } else { text };
    let status = spec.pointer("/subresources/status").is_some_and(Value::is_object);
    let mut subresources = Vec::new();
    if status {
        subresources.push(Subresource::Status);
    }
    if let Some(scale) = spec.pointer("/subresources/scale").and_then(Value::as_object) {
        let path = |field: &str| scale.get(field).and_then(Value::as_str).map(str::to_owned);
        subresources.push(Subresource::Scale(ScalePaths {
            spec_replicas: path("specReplicasPath").unwrap_or_default(),
            status_replicas: path("statusReplicasPath").unwrap_or_default(),
            label_selector: path("labelSelectorPath").filter(|p| !p.is_empty()),
        }));
    }
    subresources.extend(twins::subresources(group, &kind).iter().map(|name| Subresource::Named(name)));
    let namespaced = definition.get_str(&["spec", "scope"]) == Some("Namespaced");
    // What is stored may be of any of the versions there are or were.
    let several = definition.get_list(&["spec", "versions"]).len() > 1;
    let webhook = ConversionWebhook::read(definition.get(&["spec", "conversion"])).filter(|_| several).map(Arc::new);
    let convert = (several && webhook.is_none())
        .then(|| Convert::ApiVersion { stored: format!("{group}/{stored}"), served: format!("{group}/{version}") });
    Some(Kind {
        group: group.to_owned().into(),
        version: version.to_owned().into(),
        list_kind: or(text("listKind"), format!("{kind}List")).into(),
        plural: text("plural").into(),
        singular: or(text("singular"), kind.to_lowercase()).into(),
        short_names: list("shortNames"),
        categories: list("categories"),
        scope: if namespaced { Scope::Namespaced } else { Scope::Cluster },
        subresources,
        columns: columns(spec),
        selectable_fields: selectable(spec),
        schema: SchemaRef::Custom(schema.clone()),
        strategy: Arc::new(Custom { schema, status }),
        storage: Storage {
            group: group.to_owned().into(),
            plural: text("plural").into(),
            api_version: Some(format!("{group}/{stored}").into()),
            convert,
            webhook,
        },
        unconditional_update: false,
        returns_deleted: false,
        is_virtual: false,
        verbs: super::STORED,
        kind: kind.into(),
    })
}

fn columns(version: &Value) -> Vec<Column> {
    let mut columns: Vec<Column> = NAME_AND_AGE.iter().map(super::columns::Col::column).collect();
    let Some(own) = version.get("additionalPrinterColumns").and_then(Value::as_array).filter(|l| !l.is_empty()) else {
        return columns;
    };
    columns.truncate(1);
    for column in own {
        let text = |field: &str| column.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let Ok(path) = JsonPath::parse(&text("jsonPath")) else { continue };
        columns.push(Column {
            name: text("name").into(),
            type_: text("type").into(),
            format: text("format").into(),
            description: text("description").into(),
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0) as i32,
            cell: Cell::Path(path),
        });
    }
    columns
}

fn selectable(version: &Value) -> Vec<SelectableField> {
    let fields = version.get("selectableFields").and_then(Value::as_array);
    fields
        .into_iter()
        .flatten()
        .filter_map(|f| f.get("jsonPath").and_then(Value::as_str))
        .filter_map(|text| {
            let path = JsonPath::parse(text).ok()?;
            Some(SelectableField { name: text.trim_start_matches('.').to_owned().into(), path, default: "" })
        })
        .collect()
}

/// Kubernetes' order of version names: stable before beta before alpha, larger before smaller, anything
/// else last and by name (`version.CompareKubeAwareVersionStrings`). Greater is preferred.
pub fn priority(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let other = (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else { return other };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..end].parse::<u64>() else { return other };
    let (stage, minor) = match &rest[end..] {
        "" => (3, "0"),
        tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
            (Some(minor), _) => (2, minor),
            (_, Some(minor)) => (1, minor),
            _ => return other,
        },
    };
    let Ok(minor) = minor.parse::<u64>() else { return other };
    (stage, major, minor, std::cmp::Reverse(String::new()))
}

/// The strategy of custom resources: what their schema says.
struct Custom {
    schema: Arc<Schema>,
    status: bool,
}

impl Strategy for Custom {
    fn default(&self, object: &mut Object) {
        let mut value = std::mem::take(object).into_value();
        self.schema.default(&mut value);
        // Defaulting changes fields, never an object into something else.
        *object = Object::from_value(value).unwrap_or_default();
    }

    fn prepare(&self, op: Op, new: &mut Object, old: Option<&Object>) {
        if op == Op::UpdateStatus && !self.status {
            return;
        }
        rules::prepare(op, new, old, self.status, true);
        if let (Op::UpdateStatus, Some(old)) = (op, old) {
            rules::keep_user_metadata(new, old);
        }
    }

    fn validate(&self, op: Op, new: &Object, old: Option<&Object>) -> FieldErrors {
        let mut errors = FieldErrors::new();
        if op == Op::Delete {
            return errors;
        }
        meta::validate(op, new, old, names::is_dns1123_subdomain, &mut errors);
        let before = old.map(Object::to_value);
        errors.extend(self.schema.validate(&new.to_value(), before.as_ref()));
        errors
    }

    fn warnings(&self, new: &Object) -> Vec<String> {
        settings::warnings(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_preferred_as_on_kubernetes() {
        let mut versions = ["foo1", "v1alpha1", "v2", "v1beta2", "v10", "v1", "v1beta10", "foo10"];
        versions.sort_by_key(|v| std::cmp::Reverse(priority(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta10", "v1beta2", "v1alpha1", "foo1", "foo10"]);
    }
}
