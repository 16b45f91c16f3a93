//! Which form of an answer the client wants, read from `Accept`.

use http::{HeaderMap, header};
use proa_apimachinery::status::ApiError;

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object or list itself.
    Object,
    /// A `meta.k8s.io` Table.
    Table,
    /// `PartialObjectMetadata` or its list.
    Partial,
}

/// The encoding of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The shape.
    pub shape: Shape,
    /// The encoding.
    pub encoding: Encoding,
    /// The version of the `meta.k8s.io` group, for tables and partial objects.
    pub version: &'static str,
}

const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

/// Chooses the first form the client lists that we have.
pub fn choose(headers: &HeaderMap) -> Result<Chosen, ApiError> {
    let plain = Chosen { shape: Shape::Object, encoding: Encoding::Json, version: "v1" };
    let mut seen = false;
    for value in headers.get_all(header::ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for choice in value.split(',').map(str::trim).filter(|choice| !choice.is_empty()) {
            seen = true;
            let mut parts = choice.split(';').map(str::trim);
            let encoding = match parts.next().unwrap_or_default() {
                "application/json" | "*/*" | "application/*" => Encoding::Json,
                "application/yaml" | "application/x-yaml" | "text/yaml" => Encoding::Yaml,
                _ => continue,
            };
            let (mut shape, mut version, mut stream) = (Some(Shape::Object), "v1", true);
            for part in parts {
                match part.split_once('=').unwrap_or((part, "")) {
                    ("as", "Table") => shape = Some(Shape::Table),
                    ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => shape = Some(Shape::Partial),
                    ("as", _) => shape = None,
                    ("v", "v1") => version = "v1",
                    ("v", "v1beta1") => version = "v1beta1",
                    ("g", group) if group != "meta.k8s.io" => shape = None,
                    ("stream", kind) => stream = kind == "watch",
                    _ => {}
                }
            }
            if let Some(shape) = shape.filter(|_| stream) {
                return Ok(Chosen { shape, encoding, version });
            }
        }
    }
    if seen { Err(ApiError::not_acceptable(ACCEPTED)) } else { Ok(plain) }
}

/// The aggregated discovery version the client prefers, if any: `v2` or `v2beta1`.
pub fn aggregated_discovery(headers: &HeaderMap) -> Option<&'static str> {
    for value in headers.get_all(header::ACCEPT) {
        let Ok(value) = value.to_str() else { continue };
        for choice in value.split(',').map(str::trim) {
            if choice.contains("as=APIGroupDiscoveryList") && choice.starts_with("application/json") {
                if choice.contains("v=v2beta1") {
                    return Some("v2beta1");
                }
                if choice.contains("v=v2") {
                    return Some("v2");
                }
            } else if choice == "application/json" {
                return None;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())])
    }

    #[test]
    fn the_first_form_we_have_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(choose(&headers(table)).unwrap().shape, Shape::Table);
        assert_eq!(
            choose(&headers("application/vnd.kubernetes.protobuf, application/json")).unwrap().shape,
            Shape::Object
        );
        assert_eq!(choose(&headers("application/vnd.kubernetes.protobuf")).unwrap_err().code, 406);
        assert_eq!(choose(&HeaderMap::new()).unwrap().encoding, Encoding::Json);
        assert_eq!(choose(&headers("application/yaml")).unwrap().encoding, Encoding::Yaml);
    }

    #[test]
    fn old_and_new_kubectl_find_their_discovery() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_discovery(&headers(new)), Some("v2"));
        assert_eq!(
            aggregated_discovery(&headers(
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
            )),
            Some("v2beta1")
        );
        assert_eq!(aggregated_discovery(&headers("application/json")), None);
    }
}
