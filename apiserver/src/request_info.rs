//! What a request asks for, read from its method, path and query alone.
//!
//! Owns Kubernetes' mapping of paths to verbs and resources. Never looks at the table of kinds, so
//! authorization happens before anything is looked up.

use http::Method;
use proa_apimachinery::selector::{FieldSelector, LabelSelector, Operator};

/// A request's meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path is under `/api/v1` or `/apis/<group>/<version>` and names a resource.
    pub is_resource: bool,
    /// The path as sent.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; the method in
    /// lower case for other paths.
    pub verb: &'static str,
    /// The API group; empty for the core one.
    pub group: String,
    /// The version.
    pub version: String,
    /// The namespace, if the path has one.
    pub namespace: String,
    /// The resource's plural.
    pub resource: String,
    /// The object's name.
    pub name: String,
    /// The subresource.
    pub subresource: String,
    /// What follows a `proxy` subresource.
    pub tail: String,
    /// The fields, and their values, to which the field selector of a list or watch narrows it.
    pub selected: Vec<(String, String)>,
    /// The labels, and their values, to which the label selector of a list or watch narrows it.
    pub labelled: Vec<(String, String)>,
}

impl RequestInfo {
    /// Reads a request. `query` gives decoded pairs.
    pub fn parse(method: &Method, path: &str, query: &Query) -> RequestInfo {
        let mut info = RequestInfo { path: path.to_owned(), verb: method_verb(method), ..RequestInfo::default() };
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut rest: &[&str] = match parts.as_slice() {
            ["api", version, rest @ ..] => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return info,
        };
        if rest.is_empty() {
            return info;
        }
        let mut forced_watch = false;
        if let ["watch", more @ ..] = rest {
            forced_watch = !more.is_empty();
            rest = more;
        }
        if let ["namespaces", namespace, more @ ..] = rest {
            info.namespace = decode(namespace);
            if !more.is_empty() && !matches!(more, ["status"] | ["finalize"]) {
                rest = more;
            }
        }
        let Some((resource, more)) = rest.split_first() else { return info };
        info.is_resource = true;
        info.resource = decode(resource);
        if let Some((name, more)) = more.split_first() {
            info.name = decode(name);
            if let Some((subresource, more)) = more.split_first() {
                info.subresource = decode(subresource);
                if info.subresource == "proxy" {
                    // The proxied path goes through untouched, its trailing slash included.
                    info.tail = proxied_path(path, more);
                }
            }
        }
        info.verb = verb(method, &info, query, forced_watch);
        if matches!(info.verb, "list" | "watch" | "deletecollection") {
            info.selected = query.get("fieldSelector").map(selected).unwrap_or_default();
            info.labelled = query.get("labelSelector").map(labelled).unwrap_or_default();
            // A list narrowed to one name is authorized as that name.
            if let Some((_, name)) = info.selected.iter().find(|(field, _)| field == "metadata.name")
                && info.name.is_empty()
            {
                info.name = name.clone();
            }
        }
        info
    }
}

fn proxied_path(path: &str, more: &[&str]) -> String {
    let slash = if path.ends_with('/') && !more.is_empty() { "/" } else { "" };
    format!("/{}{slash}", more.join("/"))
}

/// The equalities of a field selector, read by the very parser that selects with it: what is authorized is what is
/// listed. One that does not parse selects nothing; the request fails on it later.
pub fn selected(selector: &str) -> Vec<(String, String)> {
    let requirements = FieldSelector::parse(selector).unwrap_or_default();
    let equal =
        requirements.requirements().iter().filter(|requirement| requirement.equal && !requirement.value.is_empty());
    equal.map(|requirement| (requirement.field.clone(), requirement.value.clone())).collect()
}

/// The labels a label selector fixes to one value, read by the parser that selects with it.
pub fn labelled(selector: &str) -> Vec<(String, String)> {
    let selector = LabelSelector::parse(selector).unwrap_or_default();
    let fixed = selector.requirements().iter().filter_map(|requirement| match requirement.values.as_slice() {
        [value] if requirement.operator == Operator::In => Some((requirement.key.clone(), value.clone())),
        _ => None,
    });
    fixed.collect()
}

fn method_verb(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "get",
        "HEAD" => "head",
        "POST" => "post",
        "PUT" => "put",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "OPTIONS" => "options",
        _ => "unknown",
    }
}

fn verb(method: &Method, info: &RequestInfo, query: &Query, forced_watch: bool) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if info.name.is_empty() => "deletecollection",
        "DELETE" => "delete",
        "GET" | "HEAD" if forced_watch || (info.subresource.is_empty() && query.flag("watch")) => "watch",
        "GET" | "HEAD" if info.name.is_empty() => "list",
        "GET" | "HEAD" => "get",
        _ => method_verb(method),
    }
}

/// The decoded pairs of a query string.
#[derive(Clone, Debug, Default)]
pub struct Query {
    raw: String,
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a raw query. Empty pairs, which kubectl sends, are skipped.
    pub fn parse(raw: &str) -> Query {
        let pairs = raw
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
            })
            .collect();
        Query { raw: raw.to_owned(), pairs }
    }

    /// The query as sent.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The first non-empty value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(have, value)| have == key && !value.is_empty()).map(|(_, value)| value.as_str())
    }

    /// All values of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(have, _)| have == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is set to true, as Go's ParseBool reads it.
    pub fn flag(&self, key: &str) -> bool {
        self.pairs
            .iter()
            .any(|(have, value)| have == key && matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

/// Percent-decodes; what is not valid stays as it is.
pub fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: &str, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method.parse().unwrap(), path, &Query::parse(query))
    }

    #[test]
    fn paths_mean_what_they_mean_on_kubernetes() {
        for (method, uri, verb, group, namespace, resource, name, subresource) in [
            ("GET", "/api/v1/namespaces", "list", "", "", "namespaces", "", ""),
            ("GET", "/api/v1/namespaces/a", "get", "", "a", "namespaces", "a", ""),
            ("PUT", "/api/v1/namespaces/a/finalize", "update", "", "a", "namespaces", "a", "finalize"),
            ("GET", "/api/v1/namespaces/a/pods", "list", "", "a", "pods", "", ""),
            ("GET", "/api/v1/namespaces/a/pods?watch=1", "watch", "", "a", "pods", "", ""),
            ("GET", "/api/v1/watch/namespaces/a/pods/b", "watch", "", "a", "pods", "b", ""),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list", "", "", "pods", "x", ""),
            ("POST", "/apis/apps/v1/namespaces/a/deployments", "create", "apps", "a", "deployments", "", ""),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/w/scale",
                "patch",
                "apps",
                "a",
                "deployments",
                "w",
                "scale",
            ),
            ("DELETE", "/api/v1/nodes/n", "delete", "", "", "nodes", "n", ""),
            ("DELETE", "/api/v1/nodes", "deletecollection", "", "", "nodes", "", ""),
        ] {
            let got = info(method, uri);
            assert!(got.is_resource, "{uri}");
            assert_eq!(
                (got.verb, &*got.group, &*got.namespace, &*got.resource, &*got.name, &*got.subresource),
                (verb, group, namespace, resource, name, subresource),
                "{method} {uri}"
            );
        }
        // An escaped comma ends no term: this list is not narrowed to a name.
        assert_eq!(info("GET", "/api/v1/secrets?fieldSelector=type!%3Dx%5C%2Cmetadata.name%3Dmine").name, "");
        let of_node = info("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Da,status.phase!%3DFailed");
        assert_eq!(of_node.selected, [("spec.nodeName".to_owned(), "a".to_owned())]);
        let of_host = info("GET", "/api/v1/persistentvolumes?labelSelector=kubernetes.io/hostname%3Da,zone!%3Dz,x");
        assert_eq!(of_host.labelled, [("kubernetes.io/hostname".to_owned(), "a".to_owned())]);
        assert!(!info("GET", "/healthz").is_resource);
        assert!(!info("GET", "/apis/apps/v1").is_resource);
        assert_eq!(info("GET", "/api/v1/namespaces/a/pods/p:80/proxy/x/y/").tail, "/x/y/");
    }
}
