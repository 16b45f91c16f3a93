//! API groups that servers of others answer for (APIService objects with a service; KEP-1 of the kube-aggregator).
//!
//! Owns which group and version is whose, passing requests on with the caller's identity, and what discovery and OpenAPI
//! say of them. Whether such a server can be asked is found out in [`availability`].

pub mod availability;
pub mod discovery;
pub mod registration;

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use proa_apimachinery::object::Object;
use proa_apimachinery::status::ApiError;

use self::discovery::Seen;
use crate::cache::{Cache, Caches};
use crate::core::Core;
use crate::http::{Request, Response, text};
use crate::outgoing::{self, CallError, Endpoint, Trust};
use crate::proxy;
use crate::user::User;

/// The stored resource.
const RESOURCE: &str = "apiservices.apiregistration.k8s.io";

/// A group and version that another server answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The APIService's name: `v1.example.com`.
    pub name: String,
    /// The group.
    pub group: String,
    /// The version.
    pub version: String,
    /// Where the server is.
    pub endpoint: Endpoint,
    /// By what it is known.
    pub trust: Trust,
    /// The group's place among groups: larger first.
    pub group_priority: i64,
    /// The version's place in its group: larger first.
    pub version_priority: i64,
    /// Whether its condition says that it can be asked.
    pub available: bool,
}

impl Remote {
    /// Reads an APIService; none for what this server answers for itself.
    pub fn read(service: &Object) -> Option<Remote> {
        let endpoint =
            Endpoint::service(service.get(&["spec", "service"]).filter(|service| service.is_object())?).ok()?;
        // What cannot be decoded is no certificate either: then nobody is trusted, rather than the system's authorities.
        let bundle = service.get_str(&["spec", "caBundle"]).unwrap_or_default();
        let bundle = STANDARD.decode(bundle).unwrap_or_else(|_| bundle.as_bytes().to_vec());
        let trust = match (service.get_bool(&["spec", "insecureSkipTLSVerify"]), bundle.is_empty()) {
            (Some(true), _) => Trust::Anybody,
            (_, true) => Trust::System,
            (_, false) => Trust::Bundle(bundle),
        };
        let text = |field: &str| service.get_str(&["spec", field]).unwrap_or_default().to_owned();
        let number = |field: &str| service.get_i64(&["spec", field]).unwrap_or(0);
        let conditions = service.get_list(&["status", "conditions"]).iter();
        let mut available = conditions.filter(|condition| condition["type"] == "Available");
        Some(Remote {
            name: service.name().to_owned(),
            group: text("group"),
            version: text("version"),
            endpoint,
            trust,
            group_priority: number("groupPriorityMinimum"),
            version_priority: number("versionPriority"),
            available: available.any(|condition| condition["status"] == "True"),
        })
    }

    /// `/apis/group/version`
    pub fn root(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }
}

/// Who answers for what.
pub struct Aggregation {
    cache: Arc<Cache>,
    read: ArcSwap<Read>,
    /// What the servers last said of themselves, by the APIService's name.
    seen: Mutex<HashMap<String, Arc<Seen>>>,
}

#[derive(Default)]
struct Read {
    revision: u64,
    remotes: Arc<Vec<Arc<Remote>>>,
}

impl Aggregation {
    /// Over the APIServices in the caches.
    pub fn new(caches: &Caches) -> Aggregation {
        Aggregation { cache: caches.resource(RESOURCE), read: ArcSwap::default(), seen: Mutex::default() }
    }

    /// All that others answer for.
    pub fn remotes(&self) -> Arc<Vec<Arc<Remote>>> {
        let revision = self.cache.last_revision();
        let read = self.read.load();
        if read.revision == revision {
            return Arc::clone(&read.remotes);
        }
        let services = self.cache.items("");
        let remotes = services.iter().filter_map(|item| Remote::read(&item.object())).map(Arc::new);
        let remotes: Arc<Vec<Arc<Remote>>> = Arc::new(remotes.collect());
        self.read.store(Arc::new(Read { revision, remotes: Arc::clone(&remotes) }));
        remotes
    }

    /// What the server of an APIService last said of itself.
    pub fn seen(&self, name: &str) -> Option<Arc<Seen>> {
        self.seen.lock().get(name).cloned()
    }

    /// Who answers for a path, if it is somebody else: `/apis/group/version` and below.
    pub fn of_path(&self, path: &str) -> Option<Arc<Remote>> {
        let remotes = self.remotes();
        if remotes.is_empty() {
            return None;
        }
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version) = (parts.next()?, parts.next().filter(|version| !version.is_empty())?);
        remotes.iter().find(|remote| remote.group == group && remote.version == version).cloned()
    }
}

/// Passes a request on to the server that answers for it.
///
/// # Errors
///
/// When it cannot be reached.
pub async fn pass_on(core: &Arc<Core>, request: &Request, remote: &Remote) -> Result<Response, ApiError> {
    if !remote.available {
        return Ok(unavailable());
    }
    let path = if request.query.raw().is_empty() {
        request.path.clone()
    } else {
        format!("{}?{}", request.path, request.query.raw())
    };
    ask(core, request, remote, path).await
}

async fn ask(core: &Arc<Core>, request: &Request, remote: &Remote, path: String) -> Result<Response, ApiError> {
    let call = outgoing::Call {
        endpoint: &remote.endpoint,
        trust: &remote.trust,
        identify: true,
        method: request.method.clone(),
        path,
        headers: headers(request),
        body: request.body.clone(),
    };
    match outgoing::send(core, call).await {
        Ok((answer, lease)) => {
            let connection = (Arc::clone(core), lease);
            proxy::relay(core, request, answer, connection, |(core, lease)| core.outgoing.give_back(lease))
        }
        Err(CallError::Unreachable(why)) => {
            tracing::warn!(apiservice = remote.name, why, "an aggregated API server cannot be reached");
            Ok(unavailable())
        }
        Err(error) => Err(ApiError::internal(format!("error trying to reach service: {error}"))),
    }
}

fn unavailable() -> Response {
    text(StatusCode::SERVICE_UNAVAILABLE, "service unavailable\n")
}

/// The document of OpenAPI v3 that a server has of its group and version.
///
/// # Errors
///
/// When it cannot be reached.
pub async fn openapi(core: &Arc<Core>, request: &Request, remote: &Remote) -> Result<Response, ApiError> {
    let path = core.aggregation.seen(&remote.name).and_then(|seen| seen.openapi.clone());
    match path.filter(|_| remote.available) {
        Some(path) => ask(core, request, remote, path).await,
        None => Err(ApiError::no_such_resource()),
    }
}

/// The headers of a request as it goes on: the caller's credential stays here, who the caller is goes along (authenticating
/// proxy, `--requestheader-…` of the other server).
fn headers(request: &Request) -> HeaderMap {
    let mut headers = proxy::passed_headers(&request.headers, request.headers.contains_key(header::UPGRADE));
    let forged: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
    for (name, value) in identity(&request.user) {
        headers.append(name, value);
    }
    headers
}

/// A user as headers. What no header can hold is left out: the caller then is less than they are, never more.
fn identity(user: &User) -> Vec<(HeaderName, HeaderValue)> {
    let mut all = vec![("x-remote-user".to_owned(), user.name.clone())];
    if !user.uid.is_empty() {
        all.push(("x-remote-uid".to_owned(), user.uid.clone()));
    }
    all.extend(user.groups.iter().map(|group| ("x-remote-group".to_owned(), group.clone())));
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        all.extend(values.iter().map(|value| (name.clone(), value.clone())));
    }
    let header = |(name, value): (String, String)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(&value).ok()?))
    };
    all.into_iter().filter_map(header).collect()
}

/// A key in the name of a header: what is no letter of a token (RFC 9110 §5.6.2) is percent-encoded.
fn escaped(key: &str) -> String {
    let mut name = String::new();
    for byte in key.to_ascii_lowercase().bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        match plain {
            true => name.push(char::from(byte)),
            false => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_api_service_with_a_service_is_somebody_elses() {
        let read = |spec: Value, status: &str| {
            let condition = json!([{"type": "Available", "status": status}]);
            let object = json!({"metadata": {"name": "v1.g"}, "spec": spec, "status": {"conditions": condition}});
            Remote::read(&Object::from_value(object).unwrap())
        };
        assert_eq!(read(json!({"group": "g", "version": "v1"}), "True"), None);
        let spec = json!({"group": "g", "version": "v1", "groupPriorityMinimum": 5, "versionPriority": 6,
            "service": {"name": "s", "namespace": "n"}, "insecureSkipTLSVerify": true});
        let remote = read(spec.clone(), "True").unwrap();
        assert_eq!((remote.root().as_str(), remote.endpoint.authority().as_str()), ("/apis/g/v1", "s.n.svc:443"));
        assert_eq!((remote.trust.clone(), remote.available), (Trust::Anybody, true));
        assert!(!read(spec, "False").unwrap().available);
    }

    #[test]
    fn who_the_caller_is_goes_along_in_headers() {
        let mut user = User::new("jane", &["devs"]);
        user.extra.insert("example.com/Scopes".into(), vec!["a".into(), "b".into()]);
        let told: Vec<(String, String)> = identity(&user)
            .into_iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let expected = [
            ("x-remote-user", "jane"),
            ("x-remote-group", "devs"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-example.com%2fscopes", "a"),
            ("x-remote-extra-example.com%2fscopes", "b"),
        ];
        assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
