//! The custom resource definitions of the `proa.dev` family.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The six kinds of the custom family.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    Vec::new()
}

/// The same as YAML documents.
pub fn custom_resource_definitions_yaml() -> String {
    String::new()
}
