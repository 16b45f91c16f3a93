//! OpenAPI v3 (KEP-2896): an index with one document per group and version, each made when first asked
//! for, kept compressed, addressed by a hash so that clients cache it.
//!
//! Version 2 is made of the same ([`crate::openapi_v2`]).

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use proa_apimachinery::schema;
use proa_apimachinery::status::ApiError;
use serde_json::{Map, Value, json};

use crate::aggregation::Remote;
use crate::core::Core;
use crate::http::{Request, Response, json as answer, respond};
use crate::kinds::{SchemaRef, Subresource};
use crate::openapi_v2;
use crate::resources::{GroupVersion, Resource, Table};

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// The documents made so far.
#[derive(Default)]
pub struct OpenApi {
    /// By path (`apis/apps/v1`): the hash and the compressed document.
    made: Mutex<HashMap<String, (String, Bytes)>>,
}

/// Answers `/openapi/…`; nothing when the path is not below it.
pub fn find(core: &Core, request: &Request) -> Option<Result<Response, ApiError>> {
    let rest = request.path.strip_prefix("/openapi/")?;
    let table = core.resources.table();
    Some(match rest.trim_end_matches('/').split_once('/') {
        None if rest.trim_end_matches('/') == "v3" => Ok(answer(StatusCode::OK, &index(core, &table))),
        None if rest.trim_end_matches('/') == "v2" => v2(core, &table, request),
        Some(("v3", path)) => document(core, &table, path, request),
        _ => Err(ApiError::no_such_resource()),
    })
}

/// Whose document of version 3 a path is, if it is another server's.
pub fn of_remote(core: &Core, path: &str) -> Option<Arc<Remote>> {
    core.aggregation.of_path(path.strip_prefix("/openapi/v3")?)
}

/// Version 2 in protobuf for old kubectls; in JSON for tools that read definitions (Terraform, `kustomize`).
fn v2(core: &Core, table: &Table, request: &Request) -> Result<Response, ApiError> {
    if request.header(header::ACCEPT).is_some_and(|accept| accept.contains("proto-openapi.spec.v2")) {
        return Ok(respond(StatusCode::OK, openapi_v2::MEDIA_TYPE, openapi_v2::document(table)));
    }
    let mut hash: String = documents(table).map(|(_, version)| hash(version)).collect();
    let remotes = core.aggregation.remotes();
    let available = remotes.iter().filter(|remote| remote.available);
    let others: Vec<_> =
        available.filter_map(|remote| core.aggregation.seen(&remote.name)?.openapi_v2.clone()).collect();
    others.iter().for_each(|(digest, _)| hash.push_str(digest));
    let hash = hex(ring::digest::digest(&ring::digest::SHA256, hash.as_bytes()).as_ref());
    let build = || {
        let mut document = openapi_v2::from_v3(documents(table).map(|(_, version)| build(version)));
        others.iter().for_each(|(_, other)| openapi_v2::add(&mut document, other));
        document
    };
    let compressed = compressed(core, "v2", &hash, build)?;
    send(request, &hash, compressed)
}

fn documents(table: &Table) -> impl Iterator<Item = (String, &GroupVersion)> {
    table.groups.iter().flat_map(|group| {
        group.versions.iter().map(|version| {
            let path = if group.name.is_empty() {
                format!("api/{}", version.version)
            } else {
                format!("apis/{}/{}", group.name, version.version)
            };
            (path, version)
        })
    })
}

fn index(core: &Core, table: &Table) -> Value {
    let mut paths: Map<String, Value> = documents(table)
        .map(|(path, version)| {
            let url = format!("/openapi/v3/{path}?hash={}", hash(version));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    for remote in core.aggregation.remotes().iter() {
        let path = format!("apis/{}/{}", remote.group, remote.version);
        let url = core.aggregation.seen(&remote.name).and_then(|seen| seen.openapi.clone());
        match url.filter(|_| remote.available) {
            Some(url) => drop(paths.insert(path, json!({"serverRelativeURL": url}))),
            None => drop(paths.shift_remove(&path)),
        }
    }
    json!({"paths": paths})
}

/// Changes when the document would: with this program, and with the definitions of custom kinds.
fn hash(version: &GroupVersion) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(env!("CARGO_PKG_VERSION").as_bytes());
    for resource in &version.resources {
        context.update(resource.kind.plural.as_bytes());
        context.update(resource.kind.version.as_bytes());
        if let Some(custom) = &resource.custom {
            context.update(&custom.revision.to_be_bytes());
        }
    }
    hex(context.finish().as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn document(core: &Core, table: &Table, path: &str, request: &Request) -> Result<Response, ApiError> {
    let accept = request.header(header::ACCEPT).unwrap_or("*/*");
    if !accept.is_empty() && !["application/json", "*/*", "application/*"].iter().any(|have| accept.contains(have)) {
        return Err(ApiError::not_acceptable(&["application/json"]));
    }
    let (_, version) = documents(table).find(|(have, _)| have == path).ok_or_else(ApiError::no_such_resource)?;
    let hash = hash(version);
    let compressed = compressed(core, path, &hash, || build(version))?;
    send(request, &hash, compressed)
}

fn send(request: &Request, hash: &str, compressed: Bytes) -> Result<Response, ApiError> {
    let gzip = request.header(header::ACCEPT_ENCODING).is_some_and(|encodings| encodings.contains("gzip"));
    let etag = HeaderValue::from_str(&format!("\"{hash}\"")).map_err(ApiError::internal)?;
    let mut response = if request.header(header::IF_NONE_MATCH).is_some_and(|have| have.contains(hash)) {
        respond(StatusCode::NOT_MODIFIED, "application/json", Bytes::new())
    } else if gzip {
        let mut response = respond(StatusCode::OK, "application/json", compressed);
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut plain = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&compressed[..]), &mut plain).map_err(ApiError::internal)?;
        respond(StatusCode::OK, "application/json", plain)
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, etag);
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if request.query.get("hash") == Some(hash) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    } else {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    Ok(response)
}

fn compressed(core: &Core, path: &str, hash: &str, build: impl FnOnce() -> Value) -> Result<Bytes, ApiError> {
    if let Some((have, document)) = core.openapi.made.lock().get(path)
        && have == hash
    {
        return Ok(document.clone());
    }
    let document = build();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    serde_json::to_writer(&mut encoder, &document).map_err(ApiError::internal)?;
    encoder.flush().map_err(ApiError::internal)?;
    let document = Bytes::from(encoder.finish().map_err(ApiError::internal)?);
    core.openapi.made.lock().insert(path.to_owned(), (hash.to_owned(), document.clone()));
    Ok(document)
}

fn build(version: &GroupVersion) -> Value {
    let mut names: BTreeSet<&str> =
        version.resources.iter().filter_map(|resource| resource.kind.schema.definition()).collect();
    names.extend([OBJECT_META, DELETE_OPTIONS, LIST_META, STATUS]);
    let mut schemas = schema::openapi_components(names);
    let mut paths = Map::new();
    for resource in &version.resources {
        let name = definition_name(resource);
        add_schemas(resource, &name, &mut schemas);
        add_paths(resource, &name, &mut paths);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Proa", "version": "v1.36.0+proa"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

/// `io.k8s.api.apps.v1.Deployment`; for custom kinds the group reversed, as Kubernetes does.
fn definition_name(resource: &Resource) -> String {
    match &resource.kind.schema {
        SchemaRef::Builtin(name) => (*name).to_owned(),
        SchemaRef::Custom(_) => {
            let mut parts: Vec<&str> = resource.kind.group.split('.').collect();
            parts.reverse();
            format!("{}.{}.{}", parts.join("."), resource.kind.version, resource.kind.kind)
        }
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn gvk(resource: &Resource, kind: &str) -> Value {
    json!({"group": resource.kind.group, "version": resource.kind.version, "kind": kind})
}

fn add_schemas(resource: &Arc<Resource>, name: &str, schemas: &mut Map<String, Value>) {
    if resource.kind.schema.definition().is_none() {
        let mut schema = resource.kind.schema.to_openapi();
        schema["properties"]["apiVersion"] =
            json!({"type": "string", "description": "The versioned schema of this object."});
        schema["properties"]["kind"] = json!({"type": "string", "description": "The kind of this object."});
        schema["properties"]["metadata"] =
            json!({"allOf": [reference(OBJECT_META)], "description": "Standard object metadata."});
        schemas.insert(name.to_owned(), schema);
    }
    if let Some(schema) = schemas.get_mut(name) {
        schema["x-kubernetes-group-version-kind"] = json!([gvk(resource, &resource.kind.kind)]);
    }
    schemas.insert(
        format!("{name}List"),
        json!({
            "type": "object", "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"allOf": [reference(LIST_META)]},
                "items": {"type": "array", "items": {"allOf": [reference(name)], "default": {}}},
            },
            "x-kubernetes-group-version-kind": [gvk(resource, &resource.kind.list_kind)],
        }),
    );
}

fn parameter(name: &str, kind: &str, place: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}})
}

fn query(names: &[(&str, &str)]) -> Vec<Value> {
    names.iter().map(|(name, kind)| parameter(name, kind, "query")).collect()
}

const LIST: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE: &[(&str, &str)] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// The paths of a resource. kubectl reads from them which query parameters a verb understands
/// (`fieldValidation`, `dryRun`) and which kind a path is of.
fn add_paths(resource: &Resource, name: &str, paths: &mut Map<String, Value>) {
    let kind = &resource.kind;
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let base = if resource.namespaced() {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let body = |content: &[&str]| {
        let content: Map<String, Value> =
            content.iter().map(|media| ((*media).to_owned(), json!({"schema": reference(name)}))).collect();
        json!({"required": true, "content": content})
    };
    let operation = |action: &str, parameters: &[(&str, &str)], body: Option<Value>, answer: &str| {
        let mut operation = json!({
            "operationId": format!("{action}{}", kind.kind),
            "parameters": query(parameters),
            "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference(answer)}}}},
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk(resource, &kind.kind),
        });
        if let Some(body) = body {
            operation["requestBody"] = body;
        }
        operation
    };
    let shared = |named: bool| {
        let mut parameters = Vec::new();
        if resource.namespaced() {
            parameters.push(parameter("namespace", "string", "path"));
        }
        if named {
            parameters.push(parameter("name", "string", "path"));
        }
        Value::from(parameters)
    };
    let list_name = format!("{name}List");
    let listed = |paths: &mut Map<String, Value>| {
        if resource.namespaced() {
            paths.insert(format!("{root}/{}", kind.plural), json!({"get": operation("list", LIST, None, &list_name)}));
        }
    };
    if !kind.verbs.contains(&"create") {
        let collection = json!({"parameters": shared(false), "get": operation("list", LIST, None, &list_name)});
        let object = json!({"parameters": shared(true), "get": operation("get", &[], None, name)});
        paths.extend([(base.clone(), collection), (format!("{base}/{{name}}"), object)]);
        return listed(paths);
    }
    let mut collection = json!({"parameters": shared(false), "post": operation("post", WRITE, Some(body(&["application/json", "application/yaml"])), name)});
    if kind.is_virtual {
        paths.insert(base, collection);
        return;
    }
    collection["get"] = operation("list", LIST, None, &list_name);
    collection["delete"] = operation("deletecollection", DELETE, None, STATUS);
    listed(paths);
    let mut patches =
        vec!["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
    // What is offered here is what kubectl sends: custom resources have no merge keys to merge by.
    if resource.custom.is_none() {
        patches.push("application/strategic-merge-patch+json");
    }
    let object = |verbs: &[&str]| {
        let mut item = json!({"parameters": shared(true)});
        for verb in verbs {
            item[*verb] = match *verb {
                "get" => operation("get", &[], None, name),
                "put" => operation("put", WRITE, Some(body(&["application/json", "application/yaml"])), name),
                "patch" => operation("patch", PATCH, Some(body(&patches)), name),
                _ => operation(
                    "delete",
                    DELETE,
                    Some(json!({"content": {"application/json": {"schema": reference(DELETE_OPTIONS)}}})),
                    if kind.returns_deleted { name } else { STATUS },
                ),
            };
        }
        item
    };
    paths.insert(base.clone(), collection);
    if kind.subresources.contains(&Subresource::Status) {
        paths.insert(format!("{base}/{{name}}/status"), object(&["get", "put", "patch"]));
    }
    paths.insert(format!("{base}/{{name}}"), object(&["get", "put", "patch", "delete"]));
}
