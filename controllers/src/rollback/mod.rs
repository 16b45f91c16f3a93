//! Automatic rollback of any workload that has revisions: when a revision has failed, what is remembered of it, and what its
//! pods read when somebody goes back to it. Pure, but for [`evidence`] and [`checks`], which ask the API server.
//!
//! Owns: the judgement (`verdict`, `surroundings`), the marks on revisions (`marks`), the policy that holds for an object
//! (`policy`), the copies of configuration (`config`), what appliers remember (`applied`). Never rolls anything: a loop of
//! one kind asks here and acts in its own way.
//!
//! A revision is whatever carries the marks: a ReplicaSet of a Deployment, a ControllerRevision of a StatefulSet or
//! DaemonSet. Only its metadata, its template and its pods are looked at.

pub(crate) mod applied;
pub(crate) mod checks;
pub(crate) mod config;
pub(crate) mod evidence;
pub(crate) mod marks;
pub(crate) mod policy;
pub(crate) mod sight;
pub(crate) mod steps;
pub(crate) mod surroundings;
pub(crate) mod verdict;

pub use config::{Live, Reference, references};
pub use marks::Revision;
pub use policy::effective;
pub use surroundings::Surroundings;
