//! The form an answer leaves in: JSON as it is, YAML, protobuf; compressed or not.
//!
//! Handlers answer in JSON, whose bytes are those of the store. What they answer with is put into another form here,
//! behind all of them, when the client asked for one. Never touches what is no object of the API: logs, documents,
//! proxied answers.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use proa_apimachinery::protobuf::{self, ProtobufError};
use proa_apimachinery::status::ApiError;
use proa_apimachinery::yaml;

use super::body::ListBody;
use super::negotiate::{self, Encoding};
use super::{Body, Response};

/// Smaller answers are not compressed (`defaultGzipThresholdBytes`).
const GZIP_FROM: u64 = 128 * 1024;

/// How much of a list is written before others get a turn, and how much is sent at once.
const PIECE: usize = 128 * 1024;

/// What a request says of the form of its answer.
pub struct Wanted(HeaderMap);

impl Wanted {
    /// Keeps what counts of a request's headers.
    pub fn of(headers: &HeaderMap) -> Wanted {
        let mut kept = HeaderMap::new();
        for name in [header::ACCEPT, header::ACCEPT_ENCODING] {
            for value in headers.get_all(&name) {
                kept.append(&name, value.clone());
            }
        }
        Wanted(kept)
    }
}

/// Puts an answer into the form its client wants.
pub async fn finish(response: Response, wanted: &Wanted) -> Response {
    let (mut parts, body) = response.into_parts();
    let (body, encoding) = match body {
        Body::Object(json, Some(encoding)) => (Body::Full(json), encoding),
        Body::Object(json, None) => match negotiate::encoding(&wanted.0) {
            Ok(encoding) => (Body::Full(json), encoding),
            // An error is told all the same; anything else is not to be had in a form that was not asked for.
            Err(_) if !parts.status.is_success() => (Body::Full(json), Encoding::Json),
            Err(error) => {
                parts.status = StatusCode::NOT_ACCEPTABLE;
                (Body::Full(error.to_status().to_string().into()), Encoding::Json)
            }
        },
        Body::List(list) => {
            let encoding = list.encoding;
            (Body::List(list), encoding)
        }
        body => return Response::from_parts(parts, body),
    };
    let encoded = match (encoding, body) {
        (Encoding::Json, body) => Ok(body),
        (_, Body::List(list)) => list_in(encoding, list).await,
        (_, Body::Full(json)) => object_in(encoding, &json),
        (_, body) => Ok(body),
    };
    let mut response = match encoded {
        Ok(body) => {
            if encoding != Encoding::Json {
                set_type(&mut parts.headers, encoding);
            }
            Response::from_parts(parts, body)
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be encoded");
            let error = ApiError::internal(error);
            super::respond(StatusCode::INTERNAL_SERVER_ERROR, "application/json", error.to_status().to_string())
        }
    };
    if negotiate::gzip(&wanted.0) && response.body().length().is_some_and(|length| length > GZIP_FROM) {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        response = response.map(Body::gzip);
    }
    response
}

/// The media type of another encoding, with the parameters the answer has.
fn set_type(headers: &mut HeaderMap, encoding: Encoding) {
    let have = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parameters = have.find(';').map_or("", |at| &have[at..]);
    if let Ok(value) = HeaderValue::from_str(&format!("{}{parameters}", encoding.media_type())) {
        headers.insert(header::CONTENT_TYPE, value);
    }
}

fn object_in(encoding: Encoding, json: &Bytes) -> Result<Body, ProtobufError> {
    Ok(match encoding {
        Encoding::Json => Body::Full(json.clone()),
        Encoding::Yaml => yaml_of(json)?.into(),
        Encoding::Protobuf => protobuf::encode(json)?.into(),
    })
}

fn yaml_of(json: &[u8]) -> Result<String, ProtobufError> {
    let value = serde_json::from_slice(json).map_err(|error| ProtobufError::Json(error.to_string()))?;
    Ok(yaml::to_yaml(&value))
}

async fn list_in(encoding: Encoding, list: ListBody) -> Result<Body, ProtobufError> {
    let (json, items) = list.into_parts();
    if encoding != Encoding::Protobuf {
        let mut value: serde_json::Value =
            serde_json::from_slice(&json).map_err(|error| ProtobufError::Json(error.to_string()))?;
        let items: Result<Vec<serde_json::Value>, _> =
            items.iter().map(|item| serde_json::from_slice(&item.bytes)).collect();
        value["items"] = items.map_err(|error| ProtobufError::Json(error.to_string()))?.into();
        return Ok(yaml::to_yaml(&value).into());
    }
    let mut list = protobuf::List::new(&json)?;
    let mut pieces = vec![Bytes::new()];
    let mut piece = Vec::with_capacity(PIECE + PIECE / 8);
    for item in items {
        list.item(&item.bytes, &mut piece)?;
        if piece.len() >= PIECE {
            pieces.push(std::mem::replace(&mut piece, Vec::with_capacity(PIECE + PIECE / 8)).into());
            // A long list takes longer to write than others should wait.
            tokio::task::yield_now().await;
        }
    }
    pieces.push(piece.into());
    let (head, tail) = list.finish();
    pieces[0] = head.into();
    pieces.push(Bytes::from_static(tail));
    Ok(Body::pieces(pieces))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::http::object;

    fn wanted(accept: &'static str, encodings: &'static str) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(encodings));
        Wanted::of(&headers)
    }

    async fn bytes(response: Response) -> Bytes {
        response.into_body().collect().await.unwrap().to_bytes()
    }

    fn header(response: &Response, name: header::HeaderName) -> &str {
        response.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn an_object_leaves_in_the_encoding_that_was_asked_for() {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": 404});
        let answer = || object(StatusCode::NOT_FOUND, status.to_string(), None);
        let response = finish(answer(), &wanted("application/vnd.kubernetes.protobuf, application/json", "")).await;
        assert_eq!(header(&response, header::CONTENT_TYPE), protobuf::MEDIA_TYPE);
        let read = protobuf::decode(&bytes(response).await).unwrap();
        assert_eq!((&read["kind"], &read["code"]), (&"Status".into(), &404.into()));
        // An error is told though nothing of what was asked for can be had; what went well is not.
        let response = finish(answer(), &wanted("text/html", "")).await;
        assert_eq!(
            (response.status(), header(&response, header::CONTENT_TYPE)),
            (StatusCode::NOT_FOUND, "application/json")
        );
        let response = finish(object(StatusCode::OK, status.to_string(), None), &wanted("text/html", "")).await;
        assert_eq!(response.status(), StatusCode::NOT_ACCEPTABLE);
        let response = finish(answer(), &wanted("application/yaml", "")).await;
        assert!(String::from_utf8(bytes(response).await.to_vec()).unwrap().contains("kind: Status\n"));
    }

    #[tokio::test]
    async fn the_parameters_of_the_media_type_stay() {
        let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "items": []});
        let mut answer = object(StatusCode::OK, list.to_string(), Some(Encoding::Protobuf));
        let with = HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList");
        answer.headers_mut().insert(header::CONTENT_TYPE, with);
        let response = finish(answer, &wanted("*/*", "")).await;
        assert_eq!(
            header(&response, header::CONTENT_TYPE),
            "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        );
    }

    #[tokio::test]
    async fn what_is_longer_than_128_kib_is_compressed_for_those_who_take_it() {
        let big = |length: usize| {
            json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "x".repeat(length)}}).to_string()
        };
        for (length, encodings, compressed) in [(200_000, "gzip", true), (200_000, "", false), (1_000, "gzip", false)] {
            let answer = object(StatusCode::OK, big(length), Some(Encoding::Json));
            let response = finish(answer, &wanted("*/*", encodings)).await;
            assert_eq!(header(&response, header::CONTENT_ENCODING) == "gzip", compressed);
            assert_eq!(header(&response, header::VARY) == "Accept-Encoding", compressed);
            let bytes = bytes(response).await;
            let mut plain = Vec::new();
            if compressed {
                assert!(bytes.len() < 10_000);
                flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
            } else {
                plain = bytes.to_vec();
            }
            assert!(serde_json::from_slice::<Value>(&plain).is_ok());
        }
    }

    #[tokio::test]
    async fn what_is_no_object_of_the_api_stays_as_it_is() {
        let text = super::super::text(StatusCode::OK, "a log line");
        let response = finish(text, &wanted("application/vnd.kubernetes.protobuf", "gzip")).await;
        assert_eq!(header(&response, header::CONTENT_TYPE), "text/plain; charset=utf-8");
        assert_eq!(&bytes(response).await[..], b"a log line");
    }
}
