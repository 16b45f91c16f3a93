//! Owns the validation of a pod's volumes. Never looks for the objects they name.

use proa_apimachinery::field::FieldErrors;
use proa_apimachinery::names;
use proa_apimachinery::quantity::Quantity;

use super::super::at::At;
use super::super::storage;
use super::container::{field_ref, local_path, resource_ref};

const DOWNWARD: [&str; 5] =
    ["metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"];

/// `spec.volumes`.
pub(super) fn all(spec: &At<'_>, errors: &mut FieldErrors) {
    let mut seen = Vec::new();
    for volume in spec.child("volumes").items() {
        let name = volume.child("name");
        name.require(errors, names::is_dns1123_label);
        if !name.str().is_empty() && seen.contains(&name.str()) {
            name.duplicate(errors);
        }
        seen.push(name.str());
        source(&volume, errors);
    }
}

fn source(volume: &At<'_>, errors: &mut FieldErrors) {
    let mut sources =
        volume.map().into_iter().flatten().filter(|(k, v)| *k != "name" && !v.is_null()).map(|(k, _)| k.as_str());
    let Some(first) = sources.next() else {
        volume.missing(errors, "must specify a volume type");
        return;
    };
    for extra in sources {
        volume.child(extra).forbidden(errors, "may not specify more than 1 volume type");
    }
    let at = volume.child(first);
    match first {
        "emptyDir" => {
            at.child("medium").one_of(errors, &["", "HugePages", "Memory"]);
            let limit = at.child("sizeLimit");
            match limit.value.map(Quantity::from_value) {
                Some(Err(error)) => limit.invalid(errors, error.to_string()),
                Some(Ok(size)) if size.sign() < 0 => limit.invalid(errors, "must be greater than or equal to 0"),
                _ => {}
            }
        }
        "hostPath" => {
            let path = at.child("path");
            if path.required(errors) && path.str().split('/').any(|p| p == "..") {
                path.invalid(errors, "must not contain '..'");
            }
            at.child("type").one_of(
                errors,
                &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
            );
        }
        "secret" => {
            at.child("secretName").required(errors);
            mode(&at.child("defaultMode"), errors);
            items(&at.child("items"), errors);
        }
        "configMap" => {
            at.child("name").required(errors);
            mode(&at.child("defaultMode"), errors);
            items(&at.child("items"), errors);
        }
        "downwardAPI" => {
            mode(&at.child("defaultMode"), errors);
            downward(&at.child("items"), errors);
        }
        "persistentVolumeClaim" => {
            at.child("claimName").required(errors);
        }
        "ephemeral" => storage::template(&at, errors),
        "projected" => projected(&at, errors),
        "nfs" => {
            at.child("server").required(errors);
            at.child("path").required(errors);
        }
        _ => {}
    }
}

fn projected(at: &At<'_>, errors: &mut FieldErrors) {
    mode(&at.child("defaultMode"), errors);
    let mut paths = Vec::new();
    for source in at.child("sources").items() {
        let given = source.map().map_or(0, |m| m.values().filter(|v| !v.is_null()).count());
        if given > 1 {
            source.forbidden(errors, "may not specify more than 1 volume type");
        }
        for kind in ["secret", "configMap"] {
            let inner = source.child(kind);
            if inner.present() {
                inner.child("name").required(errors);
                items(&inner.child("items"), errors);
            }
        }
        if source.child("downwardAPI").present() {
            downward(&source.child("downwardAPI").child("items"), errors);
        }
        let token = source.child("serviceAccountToken");
        if token.present() {
            let seconds = token.child("expirationSeconds");
            if seconds.int().is_some_and(|s| s < 600) {
                seconds.invalid(errors, "may not specify a duration less than 10 minutes");
            }
            if seconds.int().is_some_and(|s| s > 1 << 32) {
                seconds.invalid(errors, "may not specify a duration larger than 2^32 seconds");
            }
            let path = token.child("path");
            if path.required(errors) {
                local_path(&path, errors);
                if paths.contains(&path.str()) {
                    path.invalid(errors, "conflicting duplicate paths");
                }
                paths.push(path.str());
            }
        }
    }
}

fn mode(mode: &At<'_>, errors: &mut FieldErrors) {
    if mode.int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        mode.invalid(errors, "must be a number between 0 and 0777 (octal), both inclusive");
    }
}

fn items(list: &At<'_>, errors: &mut FieldErrors) {
    for item in list.items() {
        item.child("key").required(errors);
        if item.child("path").required(errors) {
            local_path(&item.child("path"), errors);
        }
        mode(&item.child("mode"), errors);
    }
}

fn downward(list: &At<'_>, errors: &mut FieldErrors) {
    for item in list.items() {
        if item.child("path").required(errors) {
            local_path(&item.child("path"), errors);
        }
        let (field, resource) = (item.child("fieldRef"), item.child("resourceFieldRef"));
        match (field.present(), resource.present()) {
            (true, true) => item.invalid(errors, "fieldRef and resourceFieldRef can not be specified simultaneously"),
            (true, false) => field_ref(&field, &DOWNWARD, errors),
            (false, true) => {
                resource.child("containerName").required(errors);
                resource_ref(&resource, errors);
            }
            (false, false) => item.missing(errors, "one of fieldRef and resourceFieldRef is required"),
        }
        mode(&item.child("mode"), errors);
    }
}
