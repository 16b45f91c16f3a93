//! Annotation and label names shared over crates: the one place for them.

/// On a workload or a Namespace: `on-failure` turns automatic rollback on, `off` (on a workload) turns it off again. The
/// short way of a [`crate::RolloutPolicy`].
pub const ROLLBACK: &str = "proa.dev/rollback";
/// The value of [`ROLLBACK`] that turns it on.
pub const ROLLBACK_ON_FAILURE: &str = "on-failure";
/// The value of [`ROLLBACK`] that turns it off.
pub const ROLLBACK_OFF: &str = "off";
/// On a workload: a new value starts a failed, refused revision again.
pub const RETRY: &str = "proa.dev/retry";
/// On a workload: `off` means that no configuration is kept with revisions.
pub const CONFIG_REVISIONS: &str = "proa.dev/config-revisions";
/// The value of [`CONFIG_REVISIONS`] that turns it off.
pub const CONFIG_REVISIONS_OFF: &str = "off";
/// On a ReplicaSet and its pods: the Secret that holds the configuration they read instead of the live objects.
pub const CONFIG_REVISION: &str = "proa.dev/config-revision";
/// The `type` of the Secrets that keep a revision's configuration.
pub const CONFIG_REVISION_SECRET_TYPE: &str = "proa.dev/config-revision";

/// On a ReplicaSet: its own name. `kubectl rollout undo` copies a ReplicaSet's annotations to the Deployment, so this
/// name found on a Deployment says that an undo arrived, and to which ReplicaSet.
pub const REVISION_OF: &str = "proa.dev/revision-of";
/// On a revision (ReplicaSet, ControllerRevision): when it first completed a rollout (RFC 3339). Gone again when it is found
/// to fail.
pub const HEALTHY: &str = "proa.dev/healthy";
/// On a revision (ReplicaSet, ControllerRevision): why it failed, a [`crate::Failure`] as JSON.
pub const FAILURE: &str = "proa.dev/failure";
/// On a ReplicaSet: the `last-applied-configuration` of the Deployment while this revision was current.
pub const APPLIED_CONFIGURATION: &str = "proa.dev/applied-configuration";
/// On a ReplicaSet: which template fields each server-side applier owned while this revision was current, as JSON.
pub const APPLIED_FIELDS: &str = "proa.dev/applied-fields";

/// On a workload: the templates that are known to fail and would not be rolled out, a list of [`crate::FailedTemplate`] as
/// JSON. The API server warns whoever applies one of them.
pub const FAILED_REVISIONS: &str = "proa.dev/failed-revisions";
/// On a revision: which step of a gradual rollout it has reached, as JSON.
pub const STEP: &str = "proa.dev/rollout-step";
/// On a revision: the Secret that keeps its configuration.
pub const CONFIG_COPY: &str = "proa.dev/config-copy";
/// In the template of a revision (ReplicaSet, ControllerRevision; in that of a workload only until its loop has seen the undo
/// that brought it): the digest of the configuration the revision is for, where the policy makes a change of configuration a
/// rollout.
pub const CONFIGURATION: &str = "proa.dev/configuration";
/// On a revision that was gone back to: the digest of the live configuration it was gone back from.
pub const CONFIGURATION_LEFT: &str = "proa.dev/configuration-left";
/// On a StatefulSet or DaemonSet whose policy makes a change of configuration a rollout: the digest of a template and, after a
/// slash, that of the configuration this template is to be rolled out with. A template it is not of is not rolled out yet.
pub const CONFIGURATION_WANTED: &str = "proa.dev/configuration-wanted";

/// On a StatefulSet or DaemonSet: its policy has steps, so that a revision reaches no pod before it has a [`ROLLOUT_LIMIT`].
pub const GRADUAL: &str = "proa.dev/gradual";
/// On a ControllerRevision of a gradual rollout: how many pods it may reach now; [`ROLLOUT_UNLIMITED`] once it is free.
pub const ROLLOUT_LIMIT: &str = "proa.dev/rollout-limit";
/// The value of [`ROLLOUT_LIMIT`] that sets none.
pub const ROLLOUT_UNLIMITED: &str = "all";
/// On a ControllerRevision: the number under which it became the current one last.
pub const CURRENT_AS: &str = "proa.dev/current-as";

/// The annotations that belong on ReplicaSets alone: never copied from a Deployment, removed from it after an undo.
pub const REPLICA_SET_ONLY: [&str; 9] = [
    REVISION_OF,
    HEALTHY,
    FAILURE,
    APPLIED_CONFIGURATION,
    APPLIED_FIELDS,
    CONFIG_REVISION,
    STEP,
    CONFIG_COPY,
    CONFIGURATION_LEFT,
];

/// The annotations that say how a Deployment is to be treated: of the Deployment, not of a revision. An undo of stock
/// kubectl replaces them with those of the ReplicaSet; the deployment loop puts them back.
pub const SETTINGS: [&str; 2] = [ROLLBACK, CONFIG_REVISIONS];

/// What client-side `kubectl apply` remembers.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The cause shown by `kubectl rollout history`.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// The revision number of a ReplicaSet, and the current one of a Deployment.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revision numbers of a ReplicaSet, comma-separated.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The size of the Deployment when the ReplicaSet was last scaled.
pub const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// Size plus surge of the Deployment when the ReplicaSet was last scaled.
pub const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// A rollback request of `extensions/v1beta1`; never copied.
pub const DEPRECATED_ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// On a pod: the cheaper, the sooner deleted by its ReplicaSet (KEP-2255).
pub const POD_DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// On a Node: SHA-256 of its agent's serving certificate (DER of the leaf), lower-case hexadecimal. The API server
/// knows the agent by it when its own CA did not sign the certificate.
pub const SERVING_CERTIFICATE: &str = "proa.dev/serving-certificate";

/// On a Node: the directory its agent keeps the volumes of [`LOCAL_PROVISIONER`] in.
pub const VOLUMES: &str = "proa.dev/volumes";
/// The provisioner of storage classes whose volumes are directories on a node.
pub const LOCAL_PROVISIONER: &str = "proa.dev/local";
/// The finalizer of a volume whose directory its node has not removed yet.
pub const LOCAL_VOLUME: &str = "proa.dev/local-volume";
/// The label of a node with its name, and of the volumes that lie on that node alone.
pub const HOSTNAME: &str = "kubernetes.io/hostname";
/// On a PersistentVolume: the provisioner that made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// The finalizer of a volume that is, or was not yet seen not to be, bound.
pub const VOLUME_IN_USE: &str = "kubernetes.io/pv-protection";
/// The finalizer of a claim that a pod uses, or was not yet seen not to use.
pub const CLAIM_IN_USE: &str = "kubernetes.io/pvc-protection";

/// The label that tells the ReplicaSets of one Deployment apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// On a Deployment, StatefulSet or DaemonSet: who wrote the template it has, as JSON (user, field manager, time). Set by
/// Proa's API server, whoever writes; it goes into the revision with the other annotations.
pub const CHANGED_BY: &str = "proa.dev/changed-by";

/// Label of the Secrets that keep the revisions of a release: the release's uid.
pub const RELEASE: &str = "proa.dev/release";
/// The `type` of those Secrets.
pub const RELEASE_SECRET_TYPE: &str = "proa.dev/release-content";
/// On the parent of an ApplySet: `off` for no release of its own, `proa.dev` for one that the controllers of the custom
/// family drive.
pub const RELEASE_OF_APPLY_SET: &str = "proa.dev/release";
/// The value of [`RELEASE_OF_APPLY_SET`] for none.
pub const RELEASE_OFF: &str = "off";

/// Label of the parent of an ApplySet: the set's id (KEP-3659).
pub const APPLY_SET_ID: &str = "applyset.kubernetes.io/id";
/// Label of the members of an ApplySet: the set's id.
pub const APPLY_SET_PART_OF: &str = "applyset.kubernetes.io/part-of";
/// On the parent of an ApplySet: `Kind.group` of its members, comma-separated.
pub const APPLY_SET_KINDS: &str = "applyset.kubernetes.io/contains-group-kinds";
/// The same as resources, as kubectl before 1.29 wrote it.
pub const APPLY_SET_RESOURCES: &str = "applyset.kubernetes.io/contains-group-resources";
/// On the parent of an ApplySet: the tool that applies it, and its version.
pub const APPLY_SET_TOOLING: &str = "applyset.kubernetes.io/tooling";
/// On the parent of an ApplySet: the other namespaces its members are in, comma-separated.
pub const APPLY_SET_NAMESPACES: &str = "applyset.kubernetes.io/additional-namespaces";
/// The field manager of kubectl's notes on the parent of an ApplySet.
pub const APPLY_SET_MANAGER: &str = "kubectl-applyset";
/// Label of a CustomResourceDefinition whose objects may be parents of ApplySets.
pub const APPLY_SET_PARENT_TYPE: &str = "applyset.kubernetes.io/is-parent-type";

/// The label that tells the pods of a StatefulSet or DaemonSet apart by revision: the name of the ControllerRevision with
/// the former, its hash with the latter. A DaemonSet's ControllerRevisions carry their hash under it too.
pub const CONTROLLER_REVISION_HASH: &str = "controller-revision-hash";
/// The label of every ControllerRevision that holds its hash.
pub const REVISION_HASH: &str = "controller.kubernetes.io/hash";
/// The label of a StatefulSet's pod that holds its name.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label of a StatefulSet's pod that holds its ordinal.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// What old clients of DaemonSets keep a generation of the template in; never copied.
pub const DEPRECATED_TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";
