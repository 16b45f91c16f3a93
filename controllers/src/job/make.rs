//! The pods of a Job. Pure.

use super::{
    plan::Order,
    pods::{COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED_FAILURES, TRACKING_FINALIZER},
    tally::spec,
};
use crate::owners;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec},
};
use kube::{
    ResourceExt,
    core::{ApiResource, ObjectMeta, TypeMeta},
};
use proa_crds::Pod;

/// The variable in which a container finds its completion index.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// How much of a name stays when the server makes it unique.
const NAME_LIMIT: usize = 58;

/// The pod a Job's template describes, as ordered.
pub(super) fn pod_of(job: &Job, order: &Order, job_resource: &ApiResource, pod_resource: &ApiResource) -> Pod {
    let template = spec(job).template;
    let template_meta = template.metadata.unwrap_or_default();
    let mut pod = Pod {
        types: Some(TypeMeta { api_version: pod_resource.api_version.clone(), kind: pod_resource.kind.clone() }),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", job.name_any())),
            namespace: job.namespace(),
            labels: template_meta.labels,
            annotations: template_meta.annotations,
            finalizers: template_meta.finalizers,
            owner_references: Some(vec![owners::controller_reference(job, job_resource)]),
            ..Default::default()
        },
        spec: template.spec.unwrap_or_default(),
        status: None,
    };
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|held| held == TRACKING_FINALIZER) {
        finalizers.push(TRACKING_FINALIZER.to_owned());
    }
    if let Some(index) = order.index {
        let text = index.to_string();
        pod.metadata.generate_name = Some(generate_name(&job.name_any(), &text));
        pod.metadata.labels.get_or_insert_default().insert(COMPLETION_INDEX.to_owned(), text.clone());
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(COMPLETION_INDEX.to_owned(), text.clone());
        if let Some(failures) = order.failures {
            annotations.insert(INDEX_FAILURES.to_owned(), failures.counted.to_string());
            if failures.ignored > 0 {
                annotations.insert(INDEX_IGNORED_FAILURES.to_owned(), failures.ignored.to_string());
            }
        }
        pod.spec.hostname = Some(format!("{}-{text}", job.name_any()));
        tell_index(&mut pod.spec);
    }
    pod
}

/// `name-index-`, with as much of the name as fits.
fn generate_name(name: &str, index: &str) -> String {
    let suffix = format!("-{index}-");
    let kept: String = name.chars().take(NAME_LIMIT.saturating_sub(suffix.len())).collect();
    kept + &suffix
}

/// Every container that does not say otherwise finds the index in its environment.
fn tell_index(spec: &mut PodSpec) {
    let variable = EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{COMPLETION_INDEX}']"),
            }),
            ..Default::default()
        }),
    };
    let tell = |container: &mut Container| {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|held| held.name == INDEX_VARIABLE) {
            env.push(variable.clone());
        }
    };
    spec.init_containers.iter_mut().flatten().chain(&mut spec.containers).for_each(tell);
}
