//! Owns which columns each built-in kind shows, in the order and with the headings kubectl users know
//! (`pkg/printers/internalversion`). How cells are computed is in `cells` and `pod_cells`.

use jiff::Timestamp;
use proa_apimachinery::Object;
use proa_apimachinery::jsonpath::JsonPath;
use serde_json::Value;

use super::cells as x;
use super::pod_cells as p;
use super::{Cell, Column};

/// A column in short, as constants can hold it.
pub(super) struct Col {
    pub(super) name: &'static str,
    pub(super) type_: &'static str,
    pub(super) description: &'static str,
    pub(super) wide: bool,
    pub(super) cell: Source,
}

impl Col {
    /// The column with its path parsed.
    pub(super) fn column(&self) -> Column {
        let cell = match self.cell {
            Source::Call(call) => Cell::Call(call),
            // Holds because every path in the rows is parsed by the test `every_row_has_a_schema_and_a_name_of_its_own`.
            Source::Path(path) => Cell::Path(JsonPath::parse(path).expect("a column's path parses")),
        };
        Column {
            name: self.name.into(),
            type_: self.type_.into(),
            format: if self.name == "Name" { "name".into() } else { "".into() },
            description: self.description.into(),
            priority: i32::from(self.wide),
            cell,
        }
    }
}

/// Where a cell comes from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Path(&'static str),
    Call(fn(&Object, Timestamp) -> Value),
}

const fn col(name: &'static str, type_: &'static str, cell: Source) -> Col {
    Col { name, type_, description: "", wide: false, cell }
}
const fn text(name: &'static str, path: &'static str) -> Col {
    col(name, "string", Source::Path(path))
}
const fn call(name: &'static str, f: fn(&Object, Timestamp) -> Value) -> Col {
    col(name, "string", Source::Call(f))
}
const fn int(name: &'static str, f: fn(&Object, Timestamp) -> Value) -> Col {
    col(name, "integer", Source::Call(f))
}
const fn wide(mut column: Col) -> Col {
    column.wide = true;
    column
}

const NAME: Col =
    Col { description: "Name must be unique within a namespace.", ..col("Name", "string", Source::Call(x::name)) };
const AGE: Col =
    Col { description: "Time since the object was created.", ..col("Age", "string", Source::Call(x::age)) };
const CONTAINERS: Col = wide(call("Containers", x::template_containers));
const IMAGES: Col = wide(call("Images", x::template_images));
const SELECTOR: Col = wide(call("Selector", x::selector));

pub(super) const NAME_AND_CREATED: &[Col] = &[NAME, col("Created At", "date", Source::Call(x::created_at))];
pub(super) const NAME_AND_AGE: &[Col] = &[NAME, AGE];

pub(super) const POD: &[Col] = &[
    NAME,
    Col { description: "Containers that are ready, of all.", ..call("Ready", p::ready) },
    Col { description: "What the pod is doing, or why it cannot.", ..call("Status", p::status) },
    Col { description: "How often containers were started again, and when last.", ..call("Restarts", p::restarts) },
    AGE,
    wide(call("IP", p::ip)),
    wide(call("Node", p::node)),
    wide(call("Nominated Node", p::nominated_node)),
    wide(call("Readiness Gates", p::readiness_gates)),
];
pub(super) const POD_TEMPLATE: &[Col] = &[
    NAME,
    call("Containers", x::own_template_containers),
    call("Images", x::own_template_images),
    call("Pod Labels", x::own_template_labels),
];
pub(super) const REPLICA_SET: &[Col] = &[
    NAME,
    int("Desired", |o, _| x::count(o, &["spec", "replicas"])),
    int("Current", |o, _| x::count(o, &["status", "replicas"])),
    int("Ready", |o, _| x::count(o, &["status", "readyReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const DEPLOYMENT: &[Col] = &[
    NAME,
    call("Ready", x::ready_of_desired),
    int("Up-to-date", |o, _| x::count(o, &["status", "updatedReplicas"])),
    int("Available", |o, _| x::count(o, &["status", "availableReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const STATEFUL_SET: &[Col] = &[NAME, call("Ready", x::ready_of_desired), AGE, CONTAINERS, IMAGES];
pub(super) const DAEMON_SET: &[Col] = &[
    NAME,
    int("Desired", |o, _| x::count(o, &["status", "desiredNumberScheduled"])),
    int("Current", |o, _| x::count(o, &["status", "currentNumberScheduled"])),
    int("Ready", |o, _| x::count(o, &["status", "numberReady"])),
    int("Up-to-date", |o, _| x::count(o, &["status", "updatedNumberScheduled"])),
    int("Available", |o, _| x::count(o, &["status", "numberAvailable"])),
    call("Node Selector", |o, _| x::labels_or_none(o, &["spec", "template", "spec", "nodeSelector"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CONTROLLER_REVISION: &[Col] =
    &[NAME, call("Controller", x::controller), int("Revision", |o, _| x::count(o, &["revision"])), AGE];
pub(super) const JOB: &[Col] = &[
    NAME,
    call("Status", x::job_status),
    call("Completions", x::job_completions),
    call("Duration", x::job_duration),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
pub(super) const CRON_JOB: &[Col] = &[
    NAME,
    text("Schedule", ".spec.schedule"),
    call("Timezone", |o, _| x::text_or(o, &["spec", "timeZone"], "<none>")),
    call("Suspend", x::cron_suspend),
    int("Active", |o, _| x::length(o, &["status", "active"])),
    call("Last Schedule", |o, now| x::age_at(o, &["status", "lastScheduleTime"], "<none>", now)),
    AGE,
    wide(call("Containers", x::cron_containers)),
    wide(call("Images", x::cron_images)),
    wide(call("Selector", x::cron_selector)),
];
pub(super) const SERVICE: &[Col] = &[
    NAME,
    text("Type", ".spec.type"),
    call("Cluster-IP", x::cluster_ip),
    call("External-IP", x::external_ip),
    call("Port(s)", x::service_ports),
    AGE,
    wide(call("Selector", |o, _| x::labels_or_none(o, &["spec", "selector"]))),
];
pub(super) const ENDPOINTS: &[Col] = &[NAME, call("Endpoints", x::endpoints), AGE];
pub(super) const ENDPOINT_SLICE: &[Col] = &[
    NAME,
    text("AddressType", ".addressType"),
    call("Ports", x::slice_ports),
    call("Endpoints", x::slice_endpoints),
    AGE,
];
pub(super) const NODE: &[Col] = &[
    NAME,
    call("Status", x::node_status),
    call("Roles", x::node_roles),
    AGE,
    text("Version", ".status.nodeInfo.kubeletVersion"),
    wide(call("Internal-IP", |o, _| x::node_address(o, "InternalIP"))),
    wide(call("External-IP", |o, _| x::node_address(o, "ExternalIP"))),
    wide(call("OS-Image", |o, _| x::text_or(o, &["status", "nodeInfo", "osImage"], "<unknown>"))),
    wide(call("Kernel-Version", |o, _| x::text_or(o, &["status", "nodeInfo", "kernelVersion"], "<unknown>"))),
    wide(call("Container-Runtime", |o, _| {
        x::text_or(o, &["status", "nodeInfo", "containerRuntimeVersion"], "<unknown>")
    })),
];
pub(super) const NAMESPACE: &[Col] = &[NAME, text("Status", ".status.phase"), AGE];
pub(super) const CONFIG_MAP: &[Col] = &[NAME, int("Data", x::config_map_size), AGE];
pub(super) const SECRET: &[Col] = &[NAME, text("Type", ".type"), int("Data", |o, _| x::length(o, &["data"])), AGE];
pub(super) const SERVICE_ACCOUNT: &[Col] = &[NAME, int("Secrets", |o, _| x::length(o, &["secrets"])), AGE];
pub(super) const EVENT: &[Col] = &[
    call("Last Seen", x::event_last_seen),
    text("Type", ".type"),
    text("Reason", ".reason"),
    call("Object", |o, _| x::event_object(o, "involvedObject")),
    wide(text("Subobject", ".involvedObject.fieldPath")),
    wide(call("Source", x::event_source)),
    call("Message", |o, _| x::trimmed(o, &["message"])),
    wide(call("First Seen", x::event_first_seen)),
    wide(int("Count", x::event_count)),
    wide(NAME),
];
pub(super) const NEW_EVENT: &[Col] = &[
    call("Last Seen", x::event_last_seen),
    text("Type", ".type"),
    text("Reason", ".reason"),
    call("Object", |o, _| x::event_object(o, "regarding")),
    wide(text("Subobject", ".regarding.fieldPath")),
    wide(call("Source", x::event_source)),
    call("Message", |o, _| x::trimmed(o, &["note"])),
    wide(call("First Seen", x::event_first_seen)),
    wide(int("Count", x::event_count)),
    wide(NAME),
];
pub(super) const RESOURCE_QUOTA: &[Col] =
    &[NAME, call("Request", |o, _| x::quota(o, false)), call("Limit", |o, _| x::quota(o, true)), AGE];
pub(super) const PERSISTENT_VOLUME: &[Col] = &[
    NAME,
    call("Capacity", |o, _| x::text_or(o, &["spec", "capacity", "storage"], "")),
    call("Access Modes", |o, _| x::access_modes(o, &["spec", "accessModes"])),
    text("Reclaim Policy", ".spec.persistentVolumeReclaimPolicy"),
    call("Status", x::volume_status),
    call("Claim", x::volume_claim),
    call("StorageClass", |o, _| x::text_or(o, &["spec", "storageClassName"], "")),
    call("VolumeAttributesClass", |o, _| x::text_or(o, &["spec", "volumeAttributesClassName"], "<unset>")),
    text("Reason", ".status.reason"),
    AGE,
    wide(text("VolumeMode", ".spec.volumeMode")),
];
pub(super) const PERSISTENT_VOLUME_CLAIM: &[Col] = &[
    NAME,
    call("Status", x::volume_status),
    text("Volume", ".spec.volumeName"),
    call("Capacity", |o, _| x::text_or(o, &["status", "capacity", "storage"], "")),
    call("Access Modes", |o, _| x::access_modes(o, &["status", "accessModes"])),
    call("StorageClass", |o, _| x::text_or(o, &["spec", "storageClassName"], "")),
    call("VolumeAttributesClass", |o, _| x::text_or(o, &["spec", "volumeAttributesClassName"], "<unset>")),
    AGE,
    wide(text("VolumeMode", ".spec.volumeMode")),
];
pub(super) const COMPONENT_STATUS: &[Col] = &[
    NAME,
    text("Status", ".conditions[0].status"),
    text("Message", ".conditions[0].message"),
    text("Error", ".conditions[0].error"),
];
pub(super) const HPA: &[Col] = &[
    NAME,
    call("Reference", x::hpa_reference),
    call("Targets", x::hpa_targets),
    call("MinPods", |o, _| x::text_or(o, &["spec", "minReplicas"], "<unset>")),
    int("MaxPods", |o, _| x::count(o, &["spec", "maxReplicas"])),
    int("Replicas", |o, _| x::count(o, &["status", "currentReplicas"])),
    AGE,
];
pub(super) const PDB: &[Col] = &[
    NAME,
    call("Min Available", |o, _| x::text_or(o, &["spec", "minAvailable"], "N/A")),
    call("Max Unavailable", |o, _| x::text_or(o, &["spec", "maxUnavailable"], "N/A")),
    int("Allowed Disruptions", |o, _| x::count(o, &["status", "disruptionsAllowed"])),
    AGE,
];
pub(super) const INGRESS: &[Col] = &[
    NAME,
    call("Class", |o, _| x::text_or(o, &["spec", "ingressClassName"], "<none>")),
    call("Hosts", x::ingress_hosts),
    call("Address", x::load_balancer_address),
    call("Ports", x::ingress_ports),
    AGE,
];
pub(super) const INGRESS_CLASS: &[Col] =
    &[NAME, text("Controller", ".spec.controller"), call("Parameters", x::ingress_class_parameters), AGE];
pub(super) const NETWORK_POLICY: &[Col] =
    &[NAME, call("Pod-Selector", |o, _| x::format_selector(o.get(&["spec", "podSelector"]))), AGE];
pub(super) const IP_ADDRESS: &[Col] = &[NAME, call("ParentRef", x::parent_ref), AGE];
pub(super) const SERVICE_CIDR: &[Col] = &[NAME, text("CIDRs", ".spec.cidrs[*]"), AGE];
pub(super) const BINDING: &[Col] = &[
    NAME,
    call("Role", x::binding_role),
    AGE,
    wide(call("Users", |o, _| x::subjects(o, "User"))),
    wide(call("Groups", |o, _| x::subjects(o, "Group"))),
    wide(call("ServiceAccounts", |o, _| x::subjects(o, "ServiceAccount"))),
];
pub(super) const STORAGE_CLASS: &[Col] = &[
    col("Name", "string", Source::Call(x::storage_class_name)),
    text("Provisioner", ".provisioner"),
    text("ReclaimPolicy", ".reclaimPolicy"),
    text("VolumeBindingMode", ".volumeBindingMode"),
    col("AllowVolumeExpansion", "boolean", Source::Call(|o, _| x::flag(o, &["allowVolumeExpansion"]))),
    AGE,
];
pub(super) const VOLUME_ATTACHMENT: &[Col] = &[
    NAME,
    text("Attacher", ".spec.attacher"),
    text("PV", ".spec.source.persistentVolumeName"),
    text("Node", ".spec.nodeName"),
    col("Attached", "boolean", Source::Call(|o, _| x::flag(o, &["status", "attached"]))),
    AGE,
];
pub(super) const VOLUME_ATTRIBUTES_CLASS: &[Col] = &[NAME, text("DriverName", ".driverName"), AGE];
pub(super) const CSI_DRIVER: &[Col] = &[
    NAME,
    col("AttachRequired", "boolean", Source::Path(".spec.attachRequired")),
    col("PodInfoOnMount", "boolean", Source::Path(".spec.podInfoOnMount")),
    col("StorageCapacity", "boolean", Source::Call(|o, _| x::flag(o, &["spec", "storageCapacity"]))),
    call("TokenRequests", |o, _| x::joined(o, &["spec", "tokenRequests"], Some("audience"), "<unset>")),
    col("RequiresRepublish", "boolean", Source::Call(|o, _| x::flag(o, &["spec", "requiresRepublish"]))),
    call("Modes", |o, _| x::joined(o, &["spec", "volumeLifecycleModes"], None, "<none>")),
    AGE,
];
pub(super) const CSI_NODE: &[Col] = &[NAME, int("Drivers", |o, _| x::length(o, &["spec", "drivers"])), AGE];
pub(super) const CSI_STORAGE_CAPACITY: &[Col] =
    &[NAME, text("StorageClassName", ".storageClassName"), text("Capacity", ".capacity"), AGE];
pub(super) const PRIORITY_CLASS: &[Col] = &[
    NAME,
    int("Value", |o, _| x::count(o, &["value"])),
    col("Global-Default", "boolean", Source::Call(|o, _| x::flag(o, &["globalDefault"]))),
    AGE,
    text("PreemptionPolicy", ".preemptionPolicy"),
];
pub(super) const LEASE: &[Col] = &[NAME, text("Holder", ".spec.holderIdentity"), AGE];
pub(super) const RUNTIME_CLASS: &[Col] = &[NAME, text("Handler", ".handler"), AGE];
pub(super) const CSR: &[Col] = &[
    NAME,
    AGE,
    text("SignerName", ".spec.signerName"),
    text("Requestor", ".spec.username"),
    call("RequestedDuration", x::csr_duration),
    call("Condition", x::csr_condition),
];
pub(super) const WEBHOOKS: &[Col] = &[NAME, int("Webhooks", |o, _| x::length(o, &["webhooks"])), AGE];
pub(super) const VALIDATING_POLICY: &[Col] =
    &[NAME, int("Validations", |o, _| x::length(o, &["spec", "validations"])), call("ParamKind", x::param_kind), AGE];
pub(super) const MUTATING_POLICY: &[Col] =
    &[NAME, int("Mutations", |o, _| x::length(o, &["spec", "mutations"])), call("ParamKind", x::param_kind), AGE];
pub(super) const POLICY_BINDING: &[Col] =
    &[NAME, text("PolicyName", ".spec.policyName"), call("ParamRef", x::param_ref), AGE];
pub(super) const API_SERVICE: &[Col] =
    &[NAME, call("Service", x::api_service_target), call("Available", x::api_service_available), AGE];
pub(super) const FLOW_SCHEMA: &[Col] = &[
    NAME,
    text("PriorityLevel", ".spec.priorityLevelConfiguration.name"),
    int("MatchingPrecedence", |o, _| x::count(o, &["spec", "matchingPrecedence"])),
    call("DistinguisherMethod", |o, _| x::text_or(o, &["spec", "distinguisherMethod", "type"], "<none>")),
    AGE,
    call("MissingPL", |o, _| x::condition_status(o, "Dangling", "?")),
];
pub(super) const PRIORITY_LEVEL: &[Col] = &[
    NAME,
    text("Type", ".spec.type"),
    call("NominalConcurrencyShares", |o, _| x::text_or(o, &["spec", "limited", "nominalConcurrencyShares"], "<none>")),
    call("Queues", |o, _| x::text_or(o, &["spec", "limited", "limitResponse", "queuing", "queues"], "<none>")),
    call("HandSize", |o, _| x::text_or(o, &["spec", "limited", "limitResponse", "queuing", "handSize"], "<none>")),
    call("QueueLengthLimit", |o, _| {
        x::text_or(o, &["spec", "limited", "limitResponse", "queuing", "queueLengthLimit"], "<none>")
    }),
    AGE,
];
pub(super) const RESOURCE_CLAIM: &[Col] = &[NAME, call("State", x::claim_state), AGE];
pub(super) const RESOURCE_SLICE: &[Col] =
    &[NAME, text("Node", ".spec.nodeName"), text("Driver", ".spec.driver"), text("Pool", ".spec.pool.name"), AGE];
