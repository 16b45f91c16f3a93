//! Owns what every cluster starts with: namespaces, roles and bindings, priority classes, the
//! `kubernetes` Service. Data only; writing what is missing of it is the core's.

use proa_apimachinery::Object;

use crate::config::Config;

/// Everything, in an order that can be written from the front.
pub fn objects(config: &Config) -> Vec<Object> {
    let _ = config;
    Vec::new()
}
