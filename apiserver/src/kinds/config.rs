//! Owns the strategies of ConfigMap, Secret and ServiceAccount.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proa_apimachinery::field::{FieldError, FieldErrors, Path};
use proa_apimachinery::{Object, names};
use serde_json::Value;

use super::at::{At, or_set};
use super::{Op, Rules, meta};

/// All data of a ConfigMap or Secret together, in bytes.
const DATA_MAX: usize = 1024 * 1024;

pub(super) const CONFIG_MAP: Rules = Rules {
    validate: |op, new, old, errors| {
        let (data, binary) = (At::of(new, "data"), At::of(new, "binaryData"));
        let mut size = 0;
        for (key, value) in data.entries() {
            keys(key, &value, errors);
            if binary.map().is_some_and(|m| m.contains_key(key)) {
                value.invalid(errors, "duplicate of key present in binaryData");
            }
            size += value.len();
        }
        for (key, value) in binary.entries() {
            keys(key, &value, errors);
            size += decoded_size(&value, errors);
        }
        if size > DATA_MAX {
            errors.push(FieldError::too_long(&Path::root(), DATA_MAX));
        }
        fixed(op, new, old, &["data", "binaryData"], errors);
    },
    ..Rules::GENERIC
};

pub(super) const SECRET: Rules = Rules {
    default: |object| {
        or_set(&mut object.0, "type", "Opaque");
        // Write-only convenience: what is stored and read back is `data`.
        if let Some(Value::Object(plain)) = object.0.shift_remove("stringData") {
            for (key, value) in plain {
                let text = value.as_str().unwrap_or_default();
                object.set(&["data", &key], STANDARD.encode(text));
            }
        }
    },
    validate: |op, new, old, errors| {
        let data = At::of(new, "data");
        let mut size = 0;
        for (key, value) in data.entries() {
            keys(key, &value, errors);
            size += decoded_size(&value, errors);
        }
        if size > DATA_MAX {
            errors.push(FieldError::too_long(&data.path, DATA_MAX));
        }
        by_type(new, &data, errors);
        if let (Op::Update, Some(old)) = (op, old) {
            meta::immutable(new.0.get("type"), old.0.get("type"), &Path::of("type"), errors);
        }
        fixed(op, new, old, &["data"], errors);
    },
    ..Rules::GENERIC
};

fn keys(key: &str, value: &At<'_>, errors: &mut FieldErrors) {
    for detail in names::is_config_map_key(key) {
        errors.push(FieldError::invalid(&value.path, key, detail));
    }
}

/// Bytes of a base64 value, without decoding it twice.
fn decoded_size(value: &At<'_>, errors: &mut FieldErrors) -> usize {
    match STANDARD.decode(value.str().as_bytes()) {
        Ok(bytes) => bytes.len(),
        Err(error) => {
            errors.push(FieldError::invalid(&value.path, "<value omitted>", format!("illegal base64 data: {error}")));
            0
        }
    }
}

fn by_type(secret: &Object, data: &At<'_>, errors: &mut FieldErrors) {
    let has = |key: &str| data.map().is_some_and(|m| m.contains_key(key));
    let mut need = |key: &str| {
        if !has(key) {
            errors.push(FieldError::required(&data.path.key(key), ""));
        }
    };
    match secret.get_str(&["type"]).unwrap_or_default() {
        "kubernetes.io/tls" => {
            need("tls.crt");
            need("tls.key");
        }
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            need("username");
            need("password");
        }
        "kubernetes.io/dockerconfigjson" => docker(data, ".dockerconfigjson", errors),
        "kubernetes.io/dockercfg" => docker(data, ".dockercfg", errors),
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            if secret.annotation(ACCOUNT).is_none_or(str::is_empty) {
                errors.push(FieldError::required(&Path::of("metadata.annotations").key(ACCOUNT), ""));
            }
        }
        _ => {}
    }
}

fn docker(data: &At<'_>, key: &str, errors: &mut FieldErrors) {
    let at = data.path.key(key);
    let Some(value) = data.map().and_then(|m| m.get(key)).and_then(Value::as_str) else {
        errors.push(FieldError::required(&at, ""));
        return;
    };
    let parsed = STANDARD.decode(value).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if parsed.is_none() {
        errors.push(FieldError::invalid(&at, "<secret contents redacted>", "must be valid JSON"));
    }
}

/// `immutable: true` is for ever.
fn fixed(op: Op, new: &Object, old: Option<&Object>, fields: &[&str], errors: &mut FieldErrors) {
    let (Op::Update, Some(old)) = (op, old) else { return };
    if old.get_bool(&["immutable"]) != Some(true) {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if new.get_bool(&["immutable"]) != Some(true) {
        errors.push(FieldError::forbidden(&Path::of("immutable"), detail));
    }
    for field in fields {
        if new.0.get(*field) != old.0.get(*field) {
            errors.push(FieldError::forbidden(&Path::of(*field), detail));
        }
    }
}

pub(super) const SERVICE_ACCOUNT: Rules = Rules::GENERIC;
