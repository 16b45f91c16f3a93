//! Admission policies (admissionregistration.k8s.io/v1, KEP-3488 and KEP-3962): rules of the cluster's own in CEL, without
//! a server of anybody's to call.
//!
//! Owns what policies, bindings and parameters mean for a request. Which requests a rule is about is
//! [`super::matching`]'s to say, and what an expression comes to `proa_apimachinery::cel`'s.

mod active;
mod check_types;
mod find;
mod mutate;
mod params;
pub mod program;
mod refer;
mod validate;

pub use active::Policies;
pub use check_types::check_types;
pub use mutate::{Round, mutate};
pub use refer::may_refer;
pub use validate::validate;

/// How the failure of an expression is worded (`k8s.io/apiserver/pkg/admission/plugin/cel`).
fn resulted_in(text: &str, why: &str) -> String {
    if why == proa_apimachinery::cel::OUT_OF_BUDGET {
        return why.to_owned();
    }
    format!("expression '{text}' resulted in error: {why}")
}
