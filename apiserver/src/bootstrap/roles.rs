//! Owns the cluster roles every cluster starts with, as lines of text: `verbs group resources [names]`, or
//! `verbs url paths`. `core` is the core group; `R` and `W` stand for the reading and writing verbs.
//!
//! Source: the bootstrap policy of Kubernetes 1.36 (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`), and the
//! platform's own kinds of `proa.dev`.

/// A role: its name, labels to aggregate it by, and its rules.
pub(super) struct Role {
    pub(super) name: &'static str,
    /// `view`, `edit`, `admin`: the role this one is a part of.
    pub(super) part_of: &'static str,
    /// The role is the sum of those that are part of this one.
    pub(super) sum_of: &'static str,
    pub(super) rules: &'static str,
}

const fn role(name: &'static str, rules: &'static str) -> Role {
    Role { name, part_of: "", sum_of: "", rules }
}
const fn part(name: &'static str, part_of: &'static str, rules: &'static str) -> Role {
    Role { name, part_of, sum_of: "", rules }
}
const fn sum(name: &'static str, sum_of: &'static str, part_of: &'static str) -> Role {
    Role { name, part_of, sum_of, rules: "" }
}

pub(super) const ROLES: &[Role] = &[
    role("cluster-admin", "* * *\n* url *"),
    role(
        "system:discovery",
        "get url /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/",
    ),
    role("system:public-info-viewer", "get url /healthz,/livez,/readyz,/version,/version/"),
    role(
        "system:basic-user",
        "create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews\n\
         create authentication.k8s.io selfsubjectreviews",
    ),
    role("system:monitoring", "get url /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"),
    sum("admin", "admin", ""),
    sum("edit", "edit", "admin"),
    sum("view", "view", "edit"),
    part(
        "system:aggregate-to-admin",
        "admin",
        "create authorization.k8s.io localsubjectaccessreviews\n\
         RW rbac.authorization.k8s.io roles,rolebindings",
    ),
    part(
        "system:aggregate-to-edit",
        "edit",
        "R core pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy\n\
         impersonate core serviceaccounts\n\
         W core pods,pods/attach,pods/exec,pods/portforward,pods/proxy\n\
         create core pods/eviction,serviceaccounts/token\n\
         W core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy\n\
         W apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale\n\
         W autoscaling horizontalpodautoscalers\n\
         W batch cronjobs,jobs\n\
         W policy poddisruptionbudgets\n\
         W networking.k8s.io ingresses,networkpolicies\n\
         RW coordination.k8s.io leases\n\
         W resource.k8s.io resourceclaims,resourceclaimtemplates\n\
         W proa.dev releases,rolloutpolicies",
    ),
    part(
        "system:aggregate-to-view",
        "view",
        "R core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status\n\
         R core bindings,events,limitranges,namespaces,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status\n\
         R discovery.k8s.io endpointslices\n\
         R apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status\n\
         R autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status\n\
         R batch cronjobs,cronjobs/status,jobs,jobs/status\n\
         R policy poddisruptionbudgets,poddisruptionbudgets/status\n\
         R networking.k8s.io ingresses,ingresses/status,networkpolicies\n\
         R resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates\n\
         R proa.dev releases,releases/status,rolloutpolicies",
    ),
    part("system:aggregated-metrics-reader", "view", "R metrics.k8s.io nodes,pods"),
    role(
        "system:node",
        "create authentication.k8s.io tokenreviews\n\
         create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews\n\
         R core services,configmaps,secrets\n\
         create,get,list,watch,patch,update core nodes\n\
         patch,update core nodes/status\n\
         create,patch,update core events\n\
         get,list,watch,create,delete core pods\n\
         patch,update core pods/status\n\
         create core pods/eviction\n\
         get,list,watch core persistentvolumeclaims,persistentvolumes,endpoints,namespaces\n\
         R discovery.k8s.io endpointslices\n\
         create core serviceaccounts/token\n\
         get core serviceaccounts\n\
         create,get,list,watch certificates.k8s.io certificatesigningrequests\n\
         get,create,update,patch,delete,list,watch coordination.k8s.io leases\n\
         get storage.k8s.io volumeattachments\n\
         R storage.k8s.io csidrivers\n\
         R node.k8s.io runtimeclasses",
    ),
    role(
        "system:node-proxier",
        "list,watch core services,endpoints\n\
         get,list,watch core nodes\n\
         create,patch,update core events\n\
         create,patch,update events.k8s.io events\n\
         list,watch discovery.k8s.io endpointslices\n\
         list,watch networking.k8s.io servicecidrs",
    ),
    role(
        "system:kube-scheduler",
        "create,patch,update core events\n\
         create,patch,update events.k8s.io events\n\
         create,get,update,patch,list,watch coordination.k8s.io leases\n\
         R core nodes,namespaces\n\
         get,list,watch,delete core pods\n\
         create core pods/binding,bindings\n\
         patch,update core pods/status\n\
         R core replicationcontrollers,services,persistentvolumeclaims,persistentvolumes\n\
         R apps replicasets,statefulsets\n\
         R policy poddisruptionbudgets\n\
         R storage.k8s.io csinodes,csidrivers,csistoragecapacities,storageclasses,volumeattachments\n\
         R scheduling.k8s.io priorityclasses\n\
         R resource.k8s.io deviceclasses,resourceclaims,resourceslices\n\
         create authentication.k8s.io tokenreviews\n\
         create authorization.k8s.io subjectaccessreviews",
    ),
    role(
        "system:volume-scheduler",
        "get,list,patch,update,watch core persistentvolumes\n\
         R storage.k8s.io storageclasses\n\
         get,list,patch,update,watch core persistentvolumeclaims",
    ),
    role(
        "system:kube-controller-manager",
        "create,patch,update core events\n\
         create,patch,update events.k8s.io events\n\
         create,get,update,list,watch coordination.k8s.io leases\n\
         create,delete,get,update core secrets,serviceaccounts\n\
         get core configmaps,namespaces\n\
         create core serviceaccounts/token\n\
         create authentication.k8s.io tokenreviews\n\
         create authorization.k8s.io subjectaccessreviews\n\
         list,watch * *",
    ),
    role("system:kube-dns", "list,watch core endpoints,services"),
    role(
        "system:auth-delegator",
        "create authentication.k8s.io tokenreviews\ncreate authorization.k8s.io subjectaccessreviews",
    ),
    role(
        "system:kubelet-api-admin",
        "get,list,watch,proxy core nodes\n\
         * core nodes/proxy,nodes/metrics,nodes/stats,nodes/log,nodes/spec,nodes/configz,nodes/healthz,nodes/pods",
    ),
    role("system:node-bootstrapper", "create,get,list,watch certificates.k8s.io certificatesigningrequests"),
    role(
        "system:node-problem-detector",
        "get core nodes\npatch core nodes/status\ncreate,patch,update core events\ncreate,patch,update events.k8s.io events",
    ),
    role(
        "system:persistent-volume-provisioner",
        "create,delete,get,list,watch core persistentvolumes\n\
         get,list,update,watch core persistentvolumeclaims\n\
         R storage.k8s.io storageclasses\n\
         create,get,list,patch,update,watch core events",
    ),
    role(
        "system:service-account-issuer-discovery",
        "get url /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/",
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        "create certificates.k8s.io certificatesigningrequests/nodeclient",
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        "create certificates.k8s.io certificatesigningrequests/selfnodeclient",
    ),
];

/// What each control loop may do; the roles are called `system:controller:<name>`.
pub(super) const CONTROLLERS: &[(&str, &str)] = &[
    (
        "deployment-controller",
        "get,list,watch,update,patch apps deployments\n\
         update,patch apps deployments/status,deployments/finalizers\n\
         RW apps replicasets\n\
         get,list,update,watch core pods\n\
         get,list,watch,create,update,patch,delete core secrets\n\
         R core configmaps,namespaces\n\
         get core pods/log",
    ),
    (
        "replicaset-controller",
        "get,list,update,watch apps replicasets\n\
         update,patch apps replicasets/status,replicasets/finalizers\n\
         create,delete,get,list,patch,update,watch core pods",
    ),
    (
        "endpoint-controller",
        "R core pods,services\n\
         create,delete,get,list,update,watch,patch core endpoints\n\
         create core endpoints/restricted\n\
         update core services/finalizers",
    ),
    (
        "endpointslice-controller",
        "R core nodes,pods,services\n\
         update core services/finalizers\n\
         create,delete,get,list,update,watch,patch discovery.k8s.io endpointslices\n\
         create discovery.k8s.io endpointslices/restricted",
    ),
    (
        "namespace-controller",
        "get,list,delete,watch core namespaces\nupdate core namespaces/finalize,namespaces/status\ndelete,deletecollection,get,list,watch * *",
    ),
    ("generic-garbage-collector", "delete,get,list,patch,update,watch * *"),
    (
        "certificate-controller",
        "get,list,watch,delete certificates.k8s.io certificatesigningrequests\n\
         patch,update certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status\n\
         approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet\n\
         sign certificates.k8s.io signers kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown\n\
         create authorization.k8s.io subjectaccessreviews",
    ),
    ("service-account-controller", "create,get,list,watch core serviceaccounts\nR core namespaces"),
    ("root-ca-cert-publisher", "create,update,get,list,watch core configmaps\nR core namespaces"),
    (
        "node-controller",
        "delete,get,list,patch,update,watch core nodes\n\
         patch,update core nodes/status,pods/status\n\
         delete,list,get,watch core pods\n\
         get,list,watch,create,update coordination.k8s.io leases",
    ),
    ("resourcequota-controller", "list,watch * *\nget,patch,update core resourcequotas,resourcequotas/status"),
    ("pod-garbage-collector", "delete,list,watch,get core pods\nget,list,watch core nodes\npatch core pods/status"),
    (
        "clusterrole-aggregation-controller",
        "escalate,get,list,patch,update,watch rbac.authorization.k8s.io clusterroles",
    ),
    (
        "persistent-volume-binder",
        "create,delete,get,list,patch,update,watch core persistentvolumes\n\
         patch,update core persistentvolumes/status,persistentvolumeclaims/status\n\
         get,list,patch,update,watch core persistentvolumeclaims\n\
         R storage.k8s.io storageclasses\n\
         R core nodes,pods",
    ),
    (
        "ephemeral-volume-controller",
        "R core pods\nupdate core pods/finalizers\nget,list,watch,create core persistentvolumeclaims",
    ),
    (
        "statefulset-controller",
        "get,list,watch apps statefulsets\n\
         update apps statefulsets/status,statefulsets/finalizers\n\
         create,delete,get,patch,update,list,watch core pods\n\
         create,delete,get,list,patch,update,watch apps controllerrevisions\n\
         create,get,list,watch,update,delete core persistentvolumeclaims",
    ),
    (
        "daemon-set-controller",
        "get,list,watch apps daemonsets\n\
         update apps daemonsets/status,daemonsets/finalizers\n\
         list,watch core nodes\n\
         create,delete,get,list,patch,watch core pods\n\
         create core pods/binding\n\
         create,delete,get,list,patch,update,watch apps controllerrevisions",
    ),
    (
        "disruption-controller",
        "get,list,watch apps deployments,replicasets,statefulsets\n\
         get,list,watch core replicationcontrollers\n\
         get,list,watch core pods\n\
         patch,update core pods/status\n\
         get,list,watch policy poddisruptionbudgets\n\
         patch,update policy poddisruptionbudgets/status\n\
         get * */scale",
    ),
    (
        "horizontal-pod-autoscaler",
        "get,list,watch autoscaling horizontalpodautoscalers\n\
         patch,update autoscaling horizontalpodautoscalers/status\n\
         get,patch,update * */scale\n\
         get,list,watch core pods\n\
         list metrics.k8s.io pods\n\
         get,list custom.metrics.k8s.io *\n\
         get,list external.metrics.k8s.io *",
    ),
    (
        "job-controller",
        "get,list,patch,update,watch batch jobs\n\
         update batch jobs/status,jobs/finalizers\n\
         create,delete,list,patch,watch core pods",
    ),
    (
        "cronjob-controller",
        "get,list,update,watch batch cronjobs\n\
         create,delete,get,list,patch,update,watch batch jobs\n\
         update batch cronjobs/status,cronjobs/finalizers\n\
         delete,list core pods",
    ),
];
