//! The part of OpenAPI v2 that kubectl up to 1.27 needs: which query parameters a PATCH of each kind
//! understands (`fieldValidation`, `dryRun`). Those clients read it as a gnostic `Document` in protobuf;
//! schemas are in v3 alone.

use crate::resources::{Resource, Table};

/// The media type of the answer. Clients ask for `…v2@v1.0+protobuf`, which is not a media type by
/// RFC 9110 and which they cannot parse themselves: Kubernetes answers with a dot, too.
pub const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    // Field numbers here are below 16, so a key is one byte: number, then wire type 2 (length-delimited).
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
}

fn message(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, bytes) in fields {
        field(&mut out, *number, bytes);
    }
    out
}

/// The document: one path per kind with its PATCH. The numbers are those of gnostic's `OpenAPIv2.proto`.
pub fn document(table: &Table) -> Vec<u8> {
    let mut paths = Vec::new();
    for resource in table.all().filter(|resource| !resource.kind.is_virtual) {
        let item = message(&[(8, &patch_operation(resource))]);
        let path = path(resource);
        field(&mut paths, 2, &message(&[(1, path.as_bytes()), (2, &item)]));
    }
    let info = message(&[(1, b"Proa"), (2, b"v1.36.0+proa")]);
    message(&[(1, b"2.0"), (2, &info), (8, &paths)])
}

fn path(resource: &Resource) -> String {
    let kind = &resource.kind;
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let place = if resource.namespaced() { "/namespaces/{namespace}" } else { "" };
    format!("{root}{place}/{}/{{name}}", kind.plural)
}

fn patch_operation(resource: &Resource) -> Vec<u8> {
    let mut operation = Vec::new();
    for name in ["dryRun", "fieldManager", "fieldValidation", "force"] {
        let query = message(&[(2, b"query"), (4, name.as_bytes()), (6, b"string")]);
        let parameter = message(&[(2, &message(&[(3, &query)]))]);
        field(&mut operation, 8, &message(&[(1, &parameter)]));
    }
    let kind = &resource.kind;
    let yaml = format!("group: \"{}\"\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
    let any = message(&[(2, yaml.as_bytes())]);
    field(&mut operation, 13, &message(&[(1, b"x-kubernetes-group-version-kind"), (2, &any)]));
    operation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_past_127_take_more_bytes() {
        let mut out = Vec::new();
        field(&mut out, 1, &[0; 300]);
        assert_eq!(out[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(out.len(), 303);
    }
}
