//! Which form of an answer the client wants, read from `Accept`.
//!
//! The rules are those of Kubernetes' `NegotiateMediaTypeOptions`: clauses by quality and then as they were written, the
//! first that names something we have wins, and one that asks for what cannot be had is passed over.

use http::{HeaderMap, header};
use proa_apimachinery::protobuf;
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
    /// Kubernetes' protobuf.
    Protobuf,
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

impl Encoding {
    const ALL: [Encoding; 3] = [Encoding::Json, Encoding::Yaml, Encoding::Protobuf];

    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
            Encoding::Protobuf => protobuf::MEDIA_TYPE,
        }
    }

    /// The media type of a watch, if there can be one.
    pub const fn stream_type(self) -> Option<&'static str> {
        match self {
            // A JSON stream has always had the type of its lines.
            Encoding::Json => Some("application/json"),
            Encoding::Yaml => None,
            Encoding::Protobuf => Some(protobuf::WATCH_MEDIA_TYPE),
        }
    }
}

/// What answers can be asked for as, in the order Kubernetes names them.
pub const ACCEPTED: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// What watches can be asked for as.
pub const STREAMS: &[&str] = &["application/json;stream=watch", protobuf::WATCH_MEDIA_TYPE];

/// One clause of `Accept`.
struct Clause<'a> {
    media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn takes(&self, encoding: Encoding) -> bool {
        matches!(self.media_type, "*/*" | "application/*") || self.media_type == encoding.media_type()
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(have, _)| *have == name).map(|(_, value)| *value)
    }
}

/// The clauses, those the client likes best first.
fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut clauses: Vec<Clause<'_>> = values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|clause| !clause.is_empty())
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for (name, value) in parts.map(|part| part.split_once('=').unwrap_or((part, ""))) {
                match name {
                    // RFC 9110 §12.4.2; what is no number says nothing.
                    "q" => quality = value.parse().unwrap_or(1.0),
                    _ => parameters.push((name, value)),
                }
            }
            Clause { media_type, parameters, quality }
        })
        .collect();
    // Equally liked, what is named goes before what is meant by a star. The sort keeps the order of the rest.
    let stars = |clause: &Clause<'_>| (clause.media_type.starts_with('*'), clause.media_type.ends_with('*'));
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality).then_with(|| stars(a).cmp(&stars(b))));
    clauses
}

/// The best form the client lists that we have. `protobuf` says whether the objects themselves have one in protobuf:
/// custom resources have none, but their tables and metadata do not depend on that.
pub fn choose(headers: &HeaderMap, protobuf: impl Fn() -> bool) -> Result<Chosen, ApiError> {
    let clauses = clauses(headers);
    let plain = Chosen { shape: Shape::Object, encoding: Encoding::Json, version: "v1" };
    if clauses.is_empty() {
        return Ok(plain);
    }
    for clause in &clauses {
        for encoding in Encoding::ALL.into_iter().filter(|encoding| clause.takes(*encoding)) {
            match clause.parameter("stream") {
                None | Some("") => {}
                Some("watch") if encoding.stream_type().is_some() => {}
                Some(_) => continue,
            }
            let asked = ["as", "v", "g"].map(|name| clause.parameter(name));
            let version = if asked[1] == Some("v1beta1") { "v1beta1" } else { "v1" };
            let shape = match asked {
                [None, None, None] if encoding != Encoding::Protobuf || protobuf() => Shape::Object,
                [Some("Table"), Some("v1" | "v1beta1"), Some("meta.k8s.io")] if encoding != Encoding::Protobuf => {
                    Shape::Table
                }
                [
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                    Some("v1" | "v1beta1"),
                    Some("meta.k8s.io"),
                ] => Shape::Partial,
                _ => continue,
            };
            return Ok(Chosen { shape, encoding, version });
        }
    }
    Err(ApiError::not_acceptable(ACCEPTED))
}

/// The encoding of an answer that has one shape: a Status, a review, discovery.
pub fn encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    let chosen = choose(headers, || true)?;
    if chosen.shape == Shape::Object {
        return Ok(chosen.encoding);
    }
    // A transformation was preferred; these objects have none, so what else is listed counts.
    let plain = clauses(headers).into_iter().filter(|clause| clause.parameter("as").is_none());
    let found = plain.into_iter().find_map(|clause| Encoding::ALL.into_iter().find(|encoding| clause.takes(*encoding)));
    found.ok_or_else(|| ApiError::not_acceptable(ACCEPTED))
}

/// The aggregated discovery version the client prefers, if any, and its encoding: `v2` or `v2beta1`.
pub fn aggregated_discovery(headers: &HeaderMap) -> Option<(&'static str, Encoding)> {
    for clause in clauses(headers) {
        let asked = ["as", "v", "g"].map(|name| clause.parameter(name));
        for encoding in Encoding::ALL.into_iter().filter(|encoding| clause.takes(*encoding)) {
            match asked {
                [Some("APIGroupDiscoveryList"), Some("v2"), Some("apidiscovery.k8s.io")] => {
                    return Some(("v2", encoding));
                }
                [Some("APIGroupDiscoveryList"), Some("v2beta1"), Some("apidiscovery.k8s.io")] => {
                    return Some(("v2beta1", encoding));
                }
                [None, None, None] => return None,
                _ => {}
            }
        }
    }
    None
}

/// Whether the client takes gzip (Kubernetes' `negotiateContentEncoding`: named, whatever its quality).
pub fn gzip(headers: &HeaderMap) -> bool {
    let values = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    values.is_some_and(|values| values.split(',').any(|value| value.trim() == "gzip"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())])
    }

    #[test]
    fn the_best_form_we_have_wins() {
        const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
        const PARTIAL: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let table = [
            ("", Some((Shape::Object, Encoding::Json))),
            ("*/*", Some((Shape::Object, Encoding::Json))),
            ("application/*", Some((Shape::Object, Encoding::Json))),
            ("application/yaml", Some((Shape::Object, Encoding::Yaml))),
            ("application/vnd.kubernetes.protobuf", Some((Shape::Object, Encoding::Protobuf))),
            ("application/vnd.kubernetes.protobuf,application/json", Some((Shape::Object, Encoding::Protobuf))),
            ("application/vnd.kubernetes.protobuf;q=0.5, application/json", Some((Shape::Object, Encoding::Json))),
            ("application/json;q=0.1,application/yaml;q=0.9", Some((Shape::Object, Encoding::Yaml))),
            ("*/*, application/yaml", Some((Shape::Object, Encoding::Yaml))),
            ("application/vnd.kubernetes.protobuf;stream=watch", Some((Shape::Object, Encoding::Protobuf))),
            ("application/yaml;stream=watch,application/json", Some((Shape::Object, Encoding::Json))),
            ("application/json;stream=tail", None),
            (TABLE, Some((Shape::Table, Encoding::Json))),
            ("application/yaml;as=Table;v=v1;g=meta.k8s.io", Some((Shape::Table, Encoding::Yaml))),
            // There is no table in protobuf: what is listed next is taken.
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
                Some((Shape::Table, Encoding::Json)),
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/vnd.kubernetes.protobuf",
                Some((Shape::Object, Encoding::Protobuf)),
            ),
            (PARTIAL, Some((Shape::Partial, Encoding::Protobuf))),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", None),
            (
                "application/json;as=Whatever;v=v1;g=meta.k8s.io, application/json",
                Some((Shape::Object, Encoding::Json)),
            ),
            ("application/cbor", None),
            ("application/cbor, application/json", Some((Shape::Object, Encoding::Json))),
            ("text/html", None),
        ];
        for (accept, want) in table {
            let chosen = choose(&headers(accept), || true);
            assert_eq!(chosen.as_ref().ok().map(|chosen| (chosen.shape, chosen.encoding)), want, "{accept}");
            assert!(chosen.err().is_none_or(|error| error.code == 406));
        }
        assert_eq!(
            choose(&headers("application/json;as=Table;v=v1beta1;g=meta.k8s.io"), || true).unwrap().version,
            "v1beta1"
        );
        assert_eq!(choose(&HeaderMap::new(), || true).unwrap().encoding, Encoding::Json);
    }

    #[test]
    fn custom_resources_are_never_in_protobuf_but_their_metadata_is() {
        let choose = |accept: &str| choose(&headers(accept), || false);
        assert_eq!(choose("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
        assert_eq!(choose("application/vnd.kubernetes.protobuf,application/json").unwrap().encoding, Encoding::Json);
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(choose(partial).unwrap().encoding, Encoding::Protobuf);
    }

    #[test]
    fn an_error_is_told_in_the_encoding_that_was_asked_for() {
        assert_eq!(
            encoding(&headers("application/vnd.kubernetes.protobuf,application/json")).unwrap(),
            Encoding::Protobuf
        );
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/yaml";
        assert_eq!(encoding(&headers(table)).unwrap(), Encoding::Yaml);
        assert_eq!(encoding(&headers("text/html")).unwrap_err().code, 406);
    }

    #[test]
    fn old_and_new_kubectl_find_their_discovery() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_discovery(&headers(new)), Some(("v2", Encoding::Json)));
        assert_eq!(
            aggregated_discovery(&headers(
                "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
            )),
            Some(("v2beta1", Encoding::Json))
        );
        assert_eq!(aggregated_discovery(&headers("application/json")), None);
        let protobuf = "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        assert_eq!(aggregated_discovery(&headers(protobuf)), Some(("v2", Encoding::Protobuf)));
    }

    #[test]
    fn gzip_is_taken_where_it_is_named() {
        let named =
            |encodings: &str| gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, encodings.parse().unwrap())]));
        assert!(named("gzip") && named("deflate, gzip"));
        assert!(!named("identity") && !named("x-gzip") && !gzip(&HeaderMap::new()));
    }
}
