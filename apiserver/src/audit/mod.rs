//! The audit log: who did what, when, and how it went, as events of audit.k8s.io/v1.
//!
//! Owns what is written of which request ([`policy`]), the events, and where they go ([`sink`]). Without a policy
//! nothing here runs: a [`Trail`] is then an empty option. Never refuses a request, but in the mode that asks for it.

pub mod policy;
pub mod sink;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use jiff::Timestamp;
use parking_lot::Mutex;
use proa_apimachinery::protobuf;
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value, json};

use crate::authz::Attributes;
use crate::http::{Body, Response};
use crate::outside::Clock;
use crate::request_info::RequestInfo;
use crate::user::User;
use policy::{Decision, Level, Policy, Stage};
use sink::Sink;

/// Says whether the request was let through.
pub const DECISION: &str = "authorization.k8s.io/decision";
/// Says why.
pub const REASON: &str = "authorization.k8s.io/reason";

/// The log of one server.
pub struct Audit {
    policy: Policy,
    sink: Arc<Sink>,
    clock: Clock,
}

/// What is noted about one request on its way. Cloned by whoever goes on answering after the headers are out; the event
/// that the response is complete is written when the last of them is done.
#[derive(Clone, Default)]
pub struct Trail(Option<Arc<Record>>);

struct Record {
    decision: Decision,
    sink: Arc<Sink>,
    clock: Clock,
    noted: Mutex<Noted>,
}

/// The event so far.
#[derive(Default)]
struct Noted {
    event: Map<String, Value>,
    annotations: BTreeMap<String, String>,
    /// The answer is on its way: what is left to be said is that it has arrived.
    answering: bool,
}

/// What is known of a request before it is answered.
pub struct Seen<'a> {
    /// The id, also in the answer's header `Audit-Id`.
    pub id: &'a str,
    /// Path and query.
    pub uri: String,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Where the connection comes from.
    pub from: IpAddr,
    /// When it came.
    pub received: Timestamp,
}

impl Audit {
    /// A log by a policy.
    pub fn new(policy: Policy, sink: Sink, clock: Clock) -> Audit {
        Audit { policy, sink: Arc::new(sink), clock }
    }

    /// How many events could not be written.
    pub fn lost(&self) -> u64 {
        self.sink.lost()
    }

    /// Begins the trail of a request of a known user, and writes that it was received.
    ///
    /// # Errors
    /// When that must be written before anything is done, and cannot be.
    pub fn begin(&self, user: &User, info: &RequestInfo, seen: &Seen<'_>) -> Result<Trail, ApiError> {
        let decision = self.policy.decide(user, info.is_resource, &Attributes::from(info));
        if decision.level == Level::None {
            return Ok(Trail::default());
        }
        let trail = self.trail(decision, described(decision.level, user, info, seen));
        let written = trail.0.as_ref().map_or(Ok(()), |record| record.write(Stage::RequestReceived));
        written.map_err(|error| ApiError::internal(format!("auditing failed: {error}")))?;
        Ok(trail)
    }

    /// Writes that somebody came with a credential that does not hold.
    pub fn refused(&self, info: &RequestInfo, seen: &Seen<'_>, tried: &str) {
        let nobody = User::default();
        let decision = self.policy.decide(&nobody, info.is_resource, &Attributes::from(info));
        if decision.level == Level::None {
            return;
        }
        let mut event = described(decision.level, &nobody, info, seen);
        let message = format!("Authentication failed, attempted: {tried}");
        event.insert("responseStatus".into(), json!({"metadata": {}, "message": message, "code": 401}));
        let trail = self.trail(decision, event);
        if let Some(record) = &trail.0 {
            // Reported where it is lost; there is no request to stop.
            let _ = record.write(Stage::ResponseStarted);
        }
    }

    fn trail(&self, decision: Decision, event: Map<String, Value>) -> Trail {
        let noted = Mutex::new(Noted { event, ..Noted::default() });
        Trail(Some(Arc::new(Record { decision, sink: Arc::clone(&self.sink), clock: self.clock.clone(), noted })))
    }
}

impl Trail {
    /// Whether anything is noted.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Notes something under a key that has nothing yet.
    pub fn annotate(&self, key: &str, value: impl FnOnce() -> String) {
        if let Some(record) = &self.0 {
            record.noted.lock().annotations.entry(key.to_owned()).or_insert_with(value);
        }
    }

    /// Notes as whom the request goes on.
    pub fn impersonates(&self, user: &User) {
        if let Some(record) = &self.0 {
            record.noted.lock().event.insert("impersonatedUser".into(), user_info(user));
        }
    }

    /// Notes the body, and of a new object what it is called.
    pub fn request_body(&self, headers: &HeaderMap, body: &Bytes) {
        let Some(record) = &self.0 else { return };
        let Some(mut object) = decoded(headers, body) else { return };
        let mut noted = record.noted.lock();
        if let Some(Value::Object(reference)) = noted.event.get_mut("objectRef") {
            for field in ["name", "namespace", "uid", "resourceVersion"] {
                let missing = reference.get(field).and_then(Value::as_str).unwrap_or_default().is_empty();
                let value = object.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
                if let (true, Some(value)) = (missing, value.filter(|value| !value.is_empty())) {
                    reference.insert(field.to_owned(), value.into());
                }
            }
        }
        if record.decision.level >= Level::Request {
            if record.decision.omit_managed_fields {
                without_managed_fields(&mut object);
            }
            noted.event.insert("requestObject".into(), object);
        }
    }

    /// Notes the answer. What takes its time has an event at its start too; that it is complete is written when the last
    /// clone of this trail is dropped, and the body of a stream holds one.
    pub fn answered(self, response: &mut Response) {
        let Some(record) = &self.0 else { return };
        let code = response.status().as_u16();
        let wanted = code >= 400 || record.decision.level >= Level::RequestResponse;
        let whole = if wanted { response.body_mut().whole() } else { None };
        let mut object = whole.and_then(|body| decoded(response.headers(), &body));
        let status = match &object {
            Some(Value::Object(status)) if code >= 400 => {
                let said = status.iter().filter(|(field, _)| !matches!(field.as_str(), "kind" | "apiVersion"));
                said.map(|(field, value)| (field.clone(), value.clone())).collect()
            }
            _ => json!({"metadata": {}, "code": code}),
        };
        {
            let mut noted = record.noted.lock();
            noted.answering = true;
            noted.event.insert("responseStatus".into(), status);
            if let (Some(object), Level::RequestResponse) = (&mut object, record.decision.level) {
                if record.decision.omit_managed_fields {
                    without_managed_fields(object);
                }
                noted.event.insert("responseObject".into(), object.take());
            }
        }
        let streams = matches!(response.body(), Body::Stream(_));
        if streams || response.status() == http::StatusCode::SWITCHING_PROTOCOLS {
            // Reported where it is lost: the request is done.
            let _ = record.write(Stage::ResponseStarted);
        }
        if streams {
            let body = std::mem::replace(response.body_mut(), Body::empty());
            *response.body_mut() = body.holding(self);
        }
    }

    /// Writes that a handler panicked.
    pub fn panicked(self) {
        let Some(record) = &self.0 else { return };
        let message = "APIServer panic'd: the server failed to answer this request";
        let status =
            json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500});
        record.noted.lock().event.insert("responseStatus".into(), status);
        let _ = record.write(Stage::Panic);
    }
}

impl Record {
    fn write(&self, stage: Stage) -> std::io::Result<()> {
        if !self.decision.tells(stage) {
            return Ok(());
        }
        let line = {
            let mut noted = self.noted.lock();
            let now = micros(self.clock.now());
            let annotations = json!(noted.annotations);
            let event = &mut noted.event;
            event.insert("stage".into(), stage.name().into());
            event.insert("stageTimestamp".into(), now.into());
            if annotations.as_object().is_some_and(|all| !all.is_empty()) {
                event.insert("annotations".into(), annotations);
            }
            let mut line = serde_json::to_vec(event).unwrap_or_default();
            line.push(b'\n');
            line
        };
        self.sink.take(line)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.noted.lock().answering {
            let _ = self.write(Stage::ResponseComplete);
        }
    }
}

/// What an event says from the start.
fn described(level: Level, user: &User, info: &RequestInfo, seen: &Seen<'_>) -> Map<String, Value> {
    let header = |name: &str| seen.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // What proxies in front say comes first, the connection's own end last.
    let mut from: Vec<String> = Vec::new();
    for name in ["x-forwarded-for", "x-real-ip"] {
        for address in header(name).split(',').filter_map(|text| text.trim().parse::<IpAddr>().ok()) {
            if !from.contains(&address.to_string()) {
                from.push(address.to_string());
            }
        }
    }
    let own = seen.from.to_string();
    if from.last() != Some(&own) {
        from.push(own);
    }
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level.name(), "auditID": seen.id,
        "stage": "", "requestURI": seen.uri, "verb": info.verb, "user": user_info(user), "sourceIPs": from,
        "userAgent": header("user-agent"), "requestReceivedTimestamp": micros(seen.received),
    });
    if info.is_resource {
        let parts = [
            ("resource", &info.resource),
            ("namespace", &info.namespace),
            ("name", &info.name),
            ("apiGroup", &info.group),
            ("apiVersion", &info.version),
            ("subresource", &info.subresource),
        ];
        let said = parts.into_iter().filter(|(_, value)| !value.is_empty());
        event["objectRef"] = said.map(|(field, value)| (field.to_owned(), Value::from(value.as_str()))).collect();
    }
    match event {
        Value::Object(event) => event,
        _ => Map::new(),
    }
}

fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// A `MicroTime`.
fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// A body as JSON; `None` for what is no object (text, nothing).
fn decoded(headers: &HeaderMap, body: &Bytes) -> Option<Value> {
    let type_ = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let value: Value = match type_.split(';').next().unwrap_or_default().trim() {
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body).ok()?,
        type_ if type_.contains("yaml") => proa_apimachinery::yaml::from_yaml(body).ok()?.into_iter().next()?,
        _ => serde_json::from_slice(body).ok()?,
    };
    (value.is_object() || value.is_array()).then_some(value)
}

/// Takes `metadata.managedFields` out of an object, and out of those of a list.
fn without_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(without_managed_fields);
    }
}
