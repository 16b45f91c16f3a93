//! `EncryptionConfiguration` (apiserver.config.k8s.io/v1): which providers each resource has. Refuses in Kubernetes'
//! words what Kubernetes refuses, and by name what is not supported here (key management services, 24-byte keys of
//! AES-GCM).

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::providers::{Cipher, Provider};

/// What is wrong with the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    path: String,
    problem: String,
}

fn wrong(path: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError { path: path.into(), problem: problem.into() }
}

/// The providers of every resource.
#[derive(Debug)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    masks: Vec<Mask>,
    providers: Arc<[Provider]>,
}

/// What an entry of `resources` names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mask {
    /// `*.*`
    Everything,
    /// `*.apps`, and `*.` for the core group.
    Group(String),
    /// `secrets`, `deployments.apps`.
    Resource(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Element>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Element {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<serde_json::Map<String, serde_json::Value>>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

impl Mask {
    fn parse(text: &str, path: &str) -> Result<Mask, ConfigError> {
        let refuse = |problem: &str| Err(wrong(path, format!("Invalid value: {text:?}: {problem}")));
        if text.is_empty() {
            return Err(wrong(path, "Required value"));
        }
        if text.chars().any(|c| c.is_ascii_uppercase()) {
            return refuse("resource name should not contain capital letters");
        }
        match text.split_once('.') {
            _ if text == "*" => {
                refuse("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources")
            }
            Some(("events" | "*", "events.k8s.io")) => refuse(
                "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
            ),
            Some(("*", "*")) => Ok(Mask::Everything),
            Some((_, "*")) => refuse("encrypting the same resource across groups is not supported"),
            Some(("*", group)) => Ok(Mask::Group(group.to_owned())),
            // `secrets.` is the core group spelled out.
            Some((resource, "")) => Ok(Mask::Resource(resource.to_owned())),
            _ => Ok(Mask::Resource(text.to_owned())),
        }
    }

    fn covers(&self, resource: &str) -> bool {
        match self {
            Mask::Everything => true,
            Mask::Group(group) => resource.split_once('.').map_or("", |(_, group)| group) == group,
            Mask::Resource(name) => name == resource,
        }
    }

    /// Whether an object can be meant by both.
    fn overlaps(&self, other: &Mask) -> bool {
        match (self, other) {
            (Mask::Everything, _) | (_, Mask::Everything) => true,
            (Mask::Resource(name), mask) | (mask, Mask::Resource(name)) => mask.covers(name),
            (Mask::Group(one), Mask::Group(other)) => one == other,
        }
    }
}

impl Rules {
    pub(super) fn parse(file: &[u8]) -> Result<Rules, ConfigError> {
        let documents = proa_apimachinery::yaml::from_yaml(file).map_err(|error| wrong("file", error.to_string()))?;
        let [document] = documents.as_slice() else { return Err(wrong("file", "must hold one document")) };
        let file: File = serde_json::from_value(document.clone()).map_err(|error| wrong("file", error.to_string()))?;
        if file.kind != "EncryptionConfiguration" || file.api_version != "apiserver.config.k8s.io/v1" {
            let what = format!("{} of {}", file.kind, file.api_version);
            return Err(wrong(
                "file",
                format!("is a {what}, not an EncryptionConfiguration of apiserver.config.k8s.io/v1"),
            ));
        }
        if file.resources.is_empty() {
            return Err(wrong("resources", "Required value: at least one resource is required"));
        }
        let rules = file.resources.into_iter().enumerate();
        Ok(Rules(rules.map(|(at, entry)| rule(entry, &format!("resources[{at}]"))).collect::<Result<_, _>>()?))
    }

    /// The providers of a stored resource, the one to write with first; none when it is not to be encrypted. Of several
    /// entries that name it the first counts.
    pub(super) fn providers(&self, resource: &str) -> &[Provider] {
        let found = self.0.iter().find(|rule| rule.masks.iter().any(|mask| mask.covers(resource)));
        found.map_or(&[], |rule| &rule.providers)
    }
}

fn rule(entry: Entry, path: &str) -> Result<Rule, ConfigError> {
    if entry.resources.is_empty() {
        return Err(wrong(format!("{path}.resources"), "Required value: at least one resource is required"));
    }
    let mut masks: Vec<Mask> = Vec::new();
    for (at, text) in entry.resources.iter().enumerate() {
        let here = format!("{path}.resources[{at}]");
        let mask = Mask::parse(text, &here)?;
        if masks.contains(&mask) {
            let why = "the same resource cannot be specified multiple times";
            return Err(wrong(here, format!("Invalid value: {text:?}: {why}")));
        }
        if masks.iter().any(|other| other.overlaps(&mask)) {
            let why = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed \
                       as they will be masked";
            return Err(wrong(here, format!("Invalid value: {text:?}: {why}")));
        }
        masks.push(mask);
    }
    if entry.providers.is_empty() {
        return Err(wrong(format!("{path}.providers"), "Required value: at least one provider is required"));
    }
    let mut providers = Vec::new();
    for (at, element) in entry.providers.into_iter().enumerate() {
        providers.extend(element_providers(element, &format!("{path}.providers[{at}]"))?);
    }
    Ok(Rule { masks, providers: providers.into() })
}

/// A cipher by the name of its provider.
type Make = fn(&[u8]) -> Option<Cipher>;

/// One element names one provider; each of its keys is tried.
fn element_providers(element: Element, path: &str) -> Result<Vec<Provider>, ConfigError> {
    if element.kms.is_some() {
        return Err(wrong(format!("{path}.kms"), "key management services are not supported by Proa"));
    }
    let keyed: [(&str, Option<Keys>, Make, &[usize]); 3] = [
        ("aesgcm", element.aesgcm, Cipher::gcm, &[16, 32]),
        ("aescbc", element.aescbc, Cipher::cbc, &[16, 24, 32]),
        ("secretbox", element.secretbox, Cipher::secretbox, &[32]),
    ];
    let named = keyed.iter().filter(|(_, keys, ..)| keys.is_some()).count() + usize::from(element.identity.is_some());
    match named {
        0 => {
            return Err(wrong(
                path,
                "Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            ));
        }
        1 => {}
        _ => {
            let why = "more than one provider specified in a single element, should split into different list elements";
            return Err(wrong(path, why));
        }
    }
    let Some((name, Some(keys), make, lengths)) = keyed.into_iter().find(|(_, keys, ..)| keys.is_some()) else {
        return Ok(vec![Provider::Identity]);
    };
    let path = format!("{path}.{name}.keys");
    if keys.keys.is_empty() {
        return Err(wrong(path, "Required value: at least one key is required"));
    }
    keys.keys.iter().enumerate().map(|(at, key)| provider(name, key, make, lengths, &format!("{path}[{at}]"))).collect()
}

fn provider(name: &str, key: &Key, make: Make, lengths: &[usize], path: &str) -> Result<Provider, ConfigError> {
    if key.name.is_empty() {
        return Err(wrong(
            format!("{path}.name"),
            format!("Required value: key.name is a required field for a {name}"),
        ));
    }
    // The envelope says where the name ends.
    if key.name.contains(':') {
        return Err(wrong(format!("{path}.name"), "Invalid value: must not hold a colon"));
    }
    let path = format!("{path}.secret");
    if key.secret.is_empty() {
        return Err(wrong(path, format!("Required value: key.secret is a required field for a {name}")));
    }
    let secret = STANDARD
        .decode(&key.secret)
        .map_err(|_| wrong(&path, "Invalid value: \"REDACTED\": secrets must be base64 encoded"))?;
    let length = secret.len();
    let cipher = make(&secret).filter(|_| lengths.contains(&length)).ok_or_else(|| {
        let why = format!("secret is not of the expected length, got {length}, expected one of {lengths:?}");
        wrong(&path, format!("Invalid value: \"REDACTED\": {why}"))
    })?;
    Ok(Provider::Keyed { prefix: format!("k8s:enc:{name}:v1:{}:", key.name).into_bytes(), cipher })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(resources: &str) -> Result<Rules, ConfigError> {
        let file =
            format!("kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources: {resources}\n");
        Rules::parse(file.as_bytes())
    }

    #[test]
    fn a_resource_has_the_providers_of_the_first_entry_that_covers_it() {
        let key = "{name: a, secret: BwcHBwcHBwcHBwcHBwcHBw==}";
        let rules = parse(&format!(
            "[{{resources: [secrets, deployments.apps], providers: [{{aescbc: {{keys: [{key}]}}}}]}}, \
             {{resources: [configmaps.], providers: [{{identity: {{}}}}, {{aesgcm: {{keys: [{key}]}}}}]}}, \
             {{resources: ['*.'], providers: [{{aesgcm: {{keys: [{key}, {key}]}}}}]}}, \
             {{resources: ['*.*'], providers: [{{identity: {{}}}}]}}]"
        ))
        .unwrap();
        let said = |resource: &str| format!("{:?}", rules.providers(resource));
        for (resource, providers) in [
            ("secrets", "[k8s:enc:aescbc:v1:a:]"),
            ("deployments.apps", "[k8s:enc:aescbc:v1:a:]"),
            ("configmaps", "[identity, k8s:enc:aesgcm:v1:a:]"),
            ("pods", "[k8s:enc:aesgcm:v1:a:, k8s:enc:aesgcm:v1:a:]"),
            ("statefulsets.apps", "[identity]"),
        ] {
            assert_eq!(said(resource), providers, "{resource}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_place() {
        let identity = "providers: [{identity: {}}]";
        let with = |provider: &str| format!("[{{resources: [secrets], providers: [{provider}]}}]");
        for (resources, expected) in [
            ("[]".to_owned(), "resources: Required value: at least one resource"),
            (format!("[{{resources: [], {identity}}}]"), "resources[0].resources: Required value"),
            (format!("[{{resources: ['*'], {identity}}}]"), "use '*.' to encrypt all"),
            (format!("[{{resources: [Secrets], {identity}}}]"), "should not contain capital letters"),
            (
                format!("[{{resources: [secrets, '*.'], {identity}}}]"),
                "resources[0].resources[1]: Invalid value: \"*.\": using overlapping",
            ),
            (format!("[{{resources: [secrets, secrets], {identity}}}]"), "specified multiple times"),
            (format!("[{{resources: ['secrets.*'], {identity}}}]"), "across groups"),
            (format!("[{{resources: ['*.events.k8s.io'], {identity}}}]"), "Use 'events' instead"),
            ("[{resources: [secrets]}]".to_owned(), "resources[0].providers: Required value"),
            (with("{}"), "does not contain any of the expected providers"),
            (with("{identity: {}, aesgcm: {keys: []}}"), "more than one provider specified in a single element"),
            (with("{kms: {name: a, apiVersion: v2}}"), "providers[0].kms: key management services are not supported"),
            (with("{aescbc: {keys: []}}"), "at least one key is required"),
            (with("{aescbc: {keys: [{name: '', secret: x}]}}"), "aescbc.keys[0].name: Required value"),
            (with("{aescbc: {keys: [{name: 'a:b', secret: x}]}}"), "must not hold a colon"),
            (with("{aescbc: {keys: [{name: a}]}}"), "keys[0].secret: Required value"),
            (with("{aescbc: {keys: [{name: a, secret: '???'}]}}"), "must be base64 encoded"),
            (with("{aescbc: {keys: [{name: a, secret: YWJj}]}}"), "got 3, expected one of [16, 24, 32]"),
            (
                with("{aesgcm: {keys: [{name: a, secret: BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH}]}}"),
                "got 24, expected one of [16, 32]",
            ),
            (with("{rot13: {}}"), "unknown field `rot13`"),
        ] {
            let error = parse(&resources).map(|_| ()).expect_err(&resources).to_string();
            assert!(error.contains(expected), "{resources}: {error}");
            assert!(!error.contains("???") && !error.contains("YWJj"), "a secret is never repeated: {error}");
        }
        let other = "kind: Config\napiVersion: v1\nresources: []";
        assert!(Rules::parse(other.as_bytes()).is_err());
    }
}
