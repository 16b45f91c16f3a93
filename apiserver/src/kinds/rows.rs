//! Owns the rows of the built-in kinds: every kind Kubernetes 1.36 serves in a stable version. Never
//! holds a rule: those are in the strategies the rows point to.

use std::borrow::Cow;
use std::sync::Arc;

use proa_apimachinery::jsonpath::JsonPath;

use super::columns::{self as c, Col};
use super::{
    Convert, Kind, Rules, STORED, ScalePaths, SchemaRef, Scope, SelectableField, Storage, Subresource,
    admissionregistration, apps, autoscaling, batch, bounds, certificates, config, crd, discovery, events, namespace,
    networking, node, pod, policies, rbac, service, storage, template,
};

/// A row in short. What most kinds share is in [`Row::namespaced`] and [`Row::cluster`].
struct Row {
    definition: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    /// `status` and the named ones; `scale` means the usual three paths.
    subresources: &'static [&'static str],
    columns: &'static [Col],
    /// Name, and what absence reads as.
    fields: &'static [(&'static str, &'static str)],
    rules: Rules,
    stored: Option<(&'static str, &'static Convert)>,
    unconditional_update: bool,
    returns_deleted: bool,
    is_virtual: bool,
}

impl Row {
    const fn new(definition: &'static str, group: &'static str, kind: &'static str, plural: &'static str) -> Row {
        Row {
            definition,
            group,
            version: "v1",
            kind,
            plural,
            scope: Scope::Namespaced,
            short: &[],
            categories: &[],
            subresources: &[],
            columns: c::NAME_AND_CREATED,
            fields: &[],
            rules: Rules::GENERIC,
            stored: None,
            unconditional_update: true,
            returns_deleted: false,
            is_virtual: false,
        }
    }
    const fn cluster(mut self) -> Row {
        self.scope = Scope::Cluster;
        self
    }
    const fn version(mut self, version: &'static str) -> Row {
        self.version = version;
        self
    }
    const fn short(mut self, short: &'static [&'static str]) -> Row {
        self.short = short;
        self
    }
    const fn all(mut self) -> Row {
        self.categories = &["all"];
        self
    }
    const fn extensions(mut self) -> Row {
        self.categories = &["api-extensions"];
        self
    }
    const fn subs(mut self, subresources: &'static [&'static str]) -> Row {
        self.subresources = subresources;
        self
    }
    const fn columns(mut self, columns: &'static [Col]) -> Row {
        self.columns = columns;
        self
    }
    const fn fields(mut self, fields: &'static [(&'static str, &'static str)]) -> Row {
        self.fields = fields;
        self
    }
    const fn rules(mut self, rules: Rules) -> Row {
        self.rules = rules;
        self
    }
    const fn inert(mut self) -> Row {
        self.rules.inert = Some(self.kind);
        self
    }
    const fn stored(mut self, api_version: &'static str, convert: &'static Convert) -> Row {
        self.stored = Some((api_version, convert));
        self
    }
    /// A PUT must say which state it replaces.
    const fn conditional(mut self) -> Row {
        self.unconditional_update = false;
        self
    }
    /// The answer to its delete is what it was: `ReturnDeletedObject` of its registry.
    const fn returned(mut self) -> Row {
        self.returns_deleted = true;
        self
    }
    /// Create-only and never stored.
    const fn answered(mut self) -> Row {
        self.is_virtual = true;
        self
    }

    fn kind(&self) -> Kind {
        let subresources = self.subresources.iter().map(|name| match *name {
            "status" => Subresource::Status,
            "scale" => Subresource::Scale(ScalePaths {
                spec_replicas: ".spec.replicas".to_owned(),
                status_replicas: ".status.replicas".to_owned(),
                label_selector: Some(".spec.selector".to_owned()),
            }),
            name => Subresource::Named(name),
        });
        let (group, api_version, convert) = match self.stored {
            Some((api_version, convert)) => {
                let group = api_version.split_once('/').map_or("", |(group, _)| group);
                (group, Some(Cow::Borrowed(api_version)), Some(convert.clone()))
            }
            None => (self.group, None, None),
        };
        let mut rules = self.rules;
        rules.status = rules.status || self.subresources.contains(&"status");
        Kind {
            group: self.group.into(),
            version: self.version.into(),
            kind: self.kind.into(),
            list_kind: format!("{}List", self.kind).into(),
            plural: self.plural.into(),
            singular: self.kind.to_ascii_lowercase().into(),
            short_names: self.short.iter().map(|s| (*s).into()).collect(),
            categories: self.categories.iter().map(|s| (*s).into()).collect(),
            scope: self.scope,
            subresources: subresources.collect(),
            columns: self.columns.iter().map(Col::column).collect(),
            selectable_fields: self.fields.iter().map(|(name, default)| field(name, default)).collect(),
            schema: SchemaRef::Builtin(self.definition),
            strategy: Arc::new(rules),
            storage: Storage { group: group.into(), plural: self.plural.into(), api_version, convert, webhook: None },
            unconditional_update: self.unconditional_update,
            returns_deleted: self.returns_deleted,
            is_virtual: self.is_virtual,
            verbs: if self.is_virtual { &["create"] } else { STORED },
        }
    }
}

fn field(name: &'static str, default: &'static str) -> SelectableField {
    // Holds because names in the rows are dotted paths, all parsed by the test `every_row_has_a_schema_and_a_name_of_its_own`.
    let path = JsonPath::parse(&format!(".{name}")).expect("a field name is a path");
    SelectableField { name: name.into(), path, default }
}

macro_rules! core {
    ($kind:literal, $plural:literal) => {
        Row::new(concat!("io.k8s.api.core.v1.", $kind), "", $kind, $plural)
    };
}
macro_rules! row {
    ($package:literal, $group:literal, $kind:literal, $plural:literal) => {
        Row::new(concat!("io.k8s.api.", $package, ".v1.", $kind), $group, $kind, $plural)
    };
}

const ROWS: &[Row] = &[
    // core
    core!("Pod", "pods")
        .returned()
        .short(&["po"])
        .all()
        .subs(&[
            "status",
            "log",
            "exec",
            "attach",
            "portforward",
            "proxy",
            "binding",
            "eviction",
            "resize",
            "ephemeralcontainers",
        ])
        .columns(c::POD)
        .fields(&[
            ("spec.nodeName", ""),
            ("spec.restartPolicy", ""),
            ("spec.schedulerName", ""),
            ("spec.serviceAccountName", ""),
            ("spec.hostNetwork", "false"),
            ("status.phase", ""),
            ("status.podIP", ""),
            ("status.nominatedNodeName", ""),
        ])
        .rules(pod::RULES),
    core!("PodTemplate", "podtemplates").returned().columns(c::POD_TEMPLATE).rules(template::POD_TEMPLATE),
    core!("ReplicationController", "replicationcontrollers")
        .short(&["rc"])
        .all()
        .subs(&["status", "scale"])
        .columns(c::REPLICA_SET)
        .fields(&[("status.replicas", "0")])
        .rules(apps::REPLICATION_CONTROLLER),
    core!("Service", "services")
        .returned()
        .short(&["svc"])
        .all()
        .subs(&["status", "proxy"])
        .columns(c::SERVICE)
        .fields(&[("spec.clusterIP", ""), ("spec.type", "")])
        .rules(service::SERVICE),
    core!("Endpoints", "endpoints").short(&["ep"]).columns(c::ENDPOINTS).rules(discovery::ENDPOINTS),
    core!("Node", "nodes")
        .cluster()
        .short(&["no"])
        .subs(&["status", "proxy"])
        .columns(c::NODE)
        .fields(&[("spec.unschedulable", "false")])
        .rules(node::NODE),
    core!("Namespace", "namespaces")
        .cluster()
        .short(&["ns"])
        .subs(&["status", "finalize"])
        .columns(c::NAMESPACE)
        .fields(&[("status.phase", "")])
        .rules(namespace::NAMESPACE),
    core!("ConfigMap", "configmaps").short(&["cm"]).columns(c::CONFIG_MAP).rules(config::CONFIG_MAP),
    core!("Secret", "secrets").columns(c::SECRET).fields(&[("type", "")]).rules(config::SECRET),
    core!("ServiceAccount", "serviceaccounts")
        .returned()
        .short(&["sa"])
        .subs(&["token"])
        .columns(c::SERVICE_ACCOUNT)
        .rules(config::SERVICE_ACCOUNT),
    core!("Event", "events")
        .short(&["ev"])
        .columns(c::EVENT)
        .fields(&[
            ("involvedObject.kind", ""),
            ("involvedObject.namespace", ""),
            ("involvedObject.name", ""),
            ("involvedObject.uid", ""),
            ("involvedObject.apiVersion", ""),
            ("involvedObject.resourceVersion", ""),
            ("involvedObject.fieldPath", ""),
            ("reason", ""),
            ("reportingComponent", ""),
            ("source", ""),
            ("type", ""),
        ])
        .rules(events::CORE_EVENT),
    core!("LimitRange", "limitranges").short(&["limits"]).rules(bounds::LIMIT_RANGE),
    core!("ResourceQuota", "resourcequotas")
        .returned()
        .short(&["quota"])
        .subs(&["status"])
        .columns(c::RESOURCE_QUOTA)
        .rules(bounds::RESOURCE_QUOTA),
    core!("PersistentVolume", "persistentvolumes")
        .returned()
        .cluster()
        .short(&["pv"])
        .subs(&["status"])
        .columns(c::PERSISTENT_VOLUME)
        .rules(storage::PERSISTENT_VOLUME),
    core!("PersistentVolumeClaim", "persistentvolumeclaims")
        .returned()
        .short(&["pvc"])
        .subs(&["status"])
        .columns(c::PERSISTENT_VOLUME_CLAIM)
        .rules(storage::PERSISTENT_VOLUME_CLAIM),
    core!("Binding", "bindings").answered(),
    core!("ComponentStatus", "componentstatuses").cluster().short(&["cs"]).columns(c::COMPONENT_STATUS).answered(),
    // apps
    row!("apps", "apps", "Deployment", "deployments")
        .short(&["deploy"])
        .all()
        .subs(&["status", "scale"])
        .columns(c::DEPLOYMENT)
        .rules(apps::DEPLOYMENT),
    row!("apps", "apps", "ReplicaSet", "replicasets")
        .short(&["rs"])
        .all()
        .subs(&["status", "scale"])
        .columns(c::REPLICA_SET)
        .fields(&[("status.replicas", "0")])
        .rules(apps::REPLICA_SET),
    row!("apps", "apps", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .all()
        .subs(&["status", "scale"])
        .columns(c::STATEFUL_SET)
        .rules(apps::STATEFUL_SET),
    row!("apps", "apps", "DaemonSet", "daemonsets")
        .short(&["ds"])
        .all()
        .subs(&["status"])
        .columns(c::DAEMON_SET)
        .rules(apps::DAEMON_SET),
    row!("apps", "apps", "ControllerRevision", "controllerrevisions")
        .columns(c::CONTROLLER_REVISION)
        .rules(apps::CONTROLLER_REVISION),
    // batch
    row!("batch", "batch", "Job", "jobs")
        .all()
        .subs(&["status"])
        .columns(c::JOB)
        .fields(&[("status.successful", "0")])
        .rules(batch::JOB),
    row!("batch", "batch", "CronJob", "cronjobs")
        .short(&["cj"])
        .all()
        .subs(&["status"])
        .columns(c::CRON_JOB)
        .rules(batch::CRON_JOB),
    // autoscaling: one stored kind in two versions
    Row::new(
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        "autoscaling",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
    )
    .version("v2")
    .short(&["hpa"])
    .all()
    .subs(&["status"])
    .columns(c::HPA)
    .rules(autoscaling::V2),
    row!("autoscaling", "autoscaling", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .all()
        .subs(&["status"])
        .columns(c::HPA)
        .rules(autoscaling::V1)
        .stored("autoscaling/v2", &autoscaling::CONVERT),
    // networking
    row!("networking", "networking.k8s.io", "Ingress", "ingresses")
        .short(&["ing"])
        .subs(&["status"])
        .columns(c::INGRESS)
        .rules(networking::INGRESS)
        .inert(),
    row!("networking", "networking.k8s.io", "IngressClass", "ingressclasses")
        .cluster()
        .columns(c::INGRESS_CLASS)
        .rules(networking::INGRESS_CLASS),
    row!("networking", "networking.k8s.io", "NetworkPolicy", "networkpolicies")
        .short(&["netpol"])
        .columns(c::NETWORK_POLICY)
        .rules(networking::NETWORK_POLICY)
        .inert(),
    row!("networking", "networking.k8s.io", "IPAddress", "ipaddresses")
        .cluster()
        .short(&["ip"])
        .columns(c::IP_ADDRESS)
        .fields(&[
            ("spec.parentRef.group", ""),
            ("spec.parentRef.resource", ""),
            ("spec.parentRef.namespace", ""),
            ("spec.parentRef.name", ""),
        ])
        .rules(networking::IP_ADDRESS),
    row!("networking", "networking.k8s.io", "ServiceCIDR", "servicecidrs")
        .cluster()
        .subs(&["status"])
        .columns(c::SERVICE_CIDR)
        .rules(networking::SERVICE_CIDR),
    // policy
    row!("policy", "policy", "PodDisruptionBudget", "poddisruptionbudgets")
        .short(&["pdb"])
        .subs(&["status"])
        .columns(c::PDB)
        .rules(autoscaling::PDB)
        .conditional(),
    // rbac
    row!("rbac", "rbac.authorization.k8s.io", "Role", "roles").rules(rbac::ROLE),
    row!("rbac", "rbac.authorization.k8s.io", "RoleBinding", "rolebindings")
        .columns(c::BINDING)
        .rules(rbac::ROLE_BINDING),
    row!("rbac", "rbac.authorization.k8s.io", "ClusterRole", "clusterroles").cluster().rules(rbac::CLUSTER_ROLE),
    row!("rbac", "rbac.authorization.k8s.io", "ClusterRoleBinding", "clusterrolebindings")
        .cluster()
        .columns(c::BINDING)
        .rules(rbac::CLUSTER_ROLE_BINDING),
    // storage
    row!("storage", "storage.k8s.io", "StorageClass", "storageclasses")
        .returned()
        .cluster()
        .short(&["sc"])
        .columns(c::STORAGE_CLASS)
        .rules(storage::STORAGE_CLASS),
    row!("storage", "storage.k8s.io", "VolumeAttachment", "volumeattachments")
        .returned()
        .cluster()
        .subs(&["status"])
        .columns(c::VOLUME_ATTACHMENT)
        .conditional()
        .rules(storage::VOLUME_ATTACHMENT),
    row!("storage", "storage.k8s.io", "VolumeAttributesClass", "volumeattributesclasses")
        .returned()
        .cluster()
        .short(&["vac"])
        .columns(c::VOLUME_ATTRIBUTES_CLASS)
        .rules(storage::VOLUME_ATTRIBUTES_CLASS),
    row!("storage", "storage.k8s.io", "CSIDriver", "csidrivers")
        .returned()
        .cluster()
        .columns(c::CSI_DRIVER)
        .conditional()
        .rules(storage::CSI_DRIVER),
    row!("storage", "storage.k8s.io", "CSINode", "csinodes")
        .returned()
        .cluster()
        .columns(c::CSI_NODE)
        .conditional()
        .rules(storage::CSI_NODE),
    row!("storage", "storage.k8s.io", "CSIStorageCapacity", "csistoragecapacities")
        .columns(c::CSI_STORAGE_CAPACITY)
        .conditional()
        .rules(storage::CSI_STORAGE_CAPACITY),
    // scheduling, coordination, node, discovery, events
    row!("scheduling", "scheduling.k8s.io", "PriorityClass", "priorityclasses")
        .cluster()
        .short(&["pc"])
        .columns(c::PRIORITY_CLASS)
        .rules(node::PRIORITY_CLASS),
    row!("coordination", "coordination.k8s.io", "Lease", "leases").columns(c::LEASE).rules(node::LEASE).conditional(),
    row!("node", "node.k8s.io", "RuntimeClass", "runtimeclasses")
        .cluster()
        .columns(c::RUNTIME_CLASS)
        .conditional()
        .rules(node::RUNTIME_CLASS),
    row!("discovery", "discovery.k8s.io", "EndpointSlice", "endpointslices")
        .columns(c::ENDPOINT_SLICE)
        .rules(discovery::ENDPOINT_SLICE),
    row!("events", "events.k8s.io", "Event", "events")
        .short(&["ev"])
        .columns(c::NEW_EVENT)
        .fields(&[
            ("regarding.kind", ""),
            ("regarding.namespace", ""),
            ("regarding.name", ""),
            ("regarding.uid", ""),
            ("reason", ""),
            ("reportingController", ""),
            ("type", ""),
        ])
        .rules(events::NEW_EVENT)
        .stored("v1", &events::CONVERT),
    // certificates
    row!("certificates", "certificates.k8s.io", "CertificateSigningRequest", "certificatesigningrequests")
        .cluster()
        .short(&["csr"])
        .subs(&["status", "approval"])
        .columns(c::CSR)
        .fields(&[("spec.signerName", "")])
        .rules(certificates::CSR),
    // admission
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations"
    )
    .cluster()
    .extensions()
    .columns(c::WEBHOOKS)
    .rules(admissionregistration::WEBHOOKS)
    .conditional(),
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations"
    )
    .cluster()
    .extensions()
    .columns(c::WEBHOOKS)
    .rules(admissionregistration::WEBHOOKS)
    .conditional(),
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies"
    )
    .cluster()
    .extensions()
    .subs(&["status"])
    .columns(c::VALIDATING_POLICY)
    .rules(policies::VALIDATING_POLICY)
    .conditional(),
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings"
    )
    .cluster()
    .extensions()
    .columns(c::POLICY_BINDING)
    .rules(policies::POLICY_BINDING)
    .conditional(),
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies"
    )
    .cluster()
    .extensions()
    .columns(c::MUTATING_POLICY)
    .rules(policies::MUTATING_POLICY)
    .conditional(),
    row!(
        "admissionregistration",
        "admissionregistration.k8s.io",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings"
    )
    .cluster()
    .extensions()
    .columns(c::POLICY_BINDING)
    .rules(policies::POLICY_BINDING)
    .conditional(),
    // extension of the API itself
    Row::new(
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition",
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    )
    .cluster()
    .short(&["crd", "crds"])
    .extensions()
    .subs(&["status"])
    .rules(crd::RULES)
    .conditional(),
    Row::new(
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
        "apiregistration.k8s.io",
        "APIService",
        "apiservices",
    )
    .cluster()
    .extensions()
    .subs(&["status"])
    .columns(c::API_SERVICE)
    .fields(&[("spec.service.name", ""), ("spec.service.namespace", "")])
    .rules(admissionregistration::API_SERVICE)
    .conditional(),
    // flow control
    row!("flowcontrol", "flowcontrol.apiserver.k8s.io", "FlowSchema", "flowschemas")
        .cluster()
        .subs(&["status"])
        .columns(c::FLOW_SCHEMA)
        .rules(admissionregistration::FLOW_SCHEMA)
        .inert(),
    row!("flowcontrol", "flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", "prioritylevelconfigurations")
        .cluster()
        .subs(&["status"])
        .columns(c::PRIORITY_LEVEL)
        .rules(admissionregistration::PRIORITY_LEVEL)
        .inert(),
    // dynamic resource allocation
    row!("resource", "resource.k8s.io", "DeviceClass", "deviceclasses")
        .returned()
        .cluster()
        .columns(c::NAME_AND_AGE)
        .rules(node::DEVICE_CLASS)
        .inert(),
    row!("resource", "resource.k8s.io", "ResourceClaim", "resourceclaims")
        .returned()
        .subs(&["status"])
        .columns(c::RESOURCE_CLAIM)
        .rules(node::RESOURCE_CLAIM)
        .inert(),
    row!("resource", "resource.k8s.io", "ResourceClaimTemplate", "resourceclaimtemplates")
        .returned()
        .columns(c::NAME_AND_AGE)
        .rules(node::RESOURCE_CLAIM_TEMPLATE)
        .inert(),
    row!("resource", "resource.k8s.io", "ResourceSlice", "resourceslices")
        .returned()
        .cluster()
        .columns(c::RESOURCE_SLICE)
        .fields(&[("spec.nodeName", ""), ("spec.driver", "")])
        .rules(node::DEVICE_CLASS)
        .inert(),
    // reviews: answered, never stored
    row!("authentication", "authentication.k8s.io", "TokenReview", "tokenreviews").cluster().answered(),
    row!("authentication", "authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews").cluster().answered(),
    // `kubectl auth whoami` up to 1.27 asks in this version alone.
    row!("authentication", "authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews")
        .version("v1beta1")
        .cluster()
        .answered(),
    row!("authorization", "authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews").cluster().answered(),
    row!("authorization", "authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews")
        .cluster()
        .answered(),
    row!("authorization", "authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews")
        .cluster()
        .answered(),
    row!("authorization", "authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews").answered(),
];

/// Every built-in kind, the preferred version of a group before its others.
pub fn builtin() -> Vec<Kind> {
    ROWS.iter().map(Row::kind).collect()
}
