//! Owns what may be called, with what, and what comes out: CEL's standard definitions, and the libraries Kubernetes adds
//! (`k8s.io/apiserver/pkg/cel/library`, `cel-go/ext`). A function that is not here does not exist.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::types::Type;

/// One way to call a function.
#[derive(Debug)]
pub(super) struct Overload {
    /// The first of the arguments stands before the dot.
    pub member: bool,
    pub args: Vec<Type<'static>>,
    pub result: Type<'static>,
}

/// A function a line: `name: overload; overload …`, an overload being `[target.](args) result`.
const FUNCTIONS: &str = "\
!_: (bool) bool
-_: (int) int; (double) double
_==_: (A, A) bool
_!=_: (A, A) bool
_+_: (int, int) int; (uint, uint) uint; (double, double) double; (string, string) string; (bytes, bytes) bytes; \
(list(A), list(A)) list(A); (Timestamp, Duration) Timestamp; (Duration, Timestamp) Timestamp; (Duration, Duration) Duration
_-_: (int, int) int; (uint, uint) uint; (double, double) double; (Timestamp, Timestamp) Duration; \
(Timestamp, Duration) Timestamp; (Duration, Duration) Duration
_*_: (int, int) int; (uint, uint) uint; (double, double) double
_/_: (int, int) int; (uint, uint) uint; (double, double) double
_%_: (int, int) int; (uint, uint) uint
@in: (A, list(A)) bool; (A, map(A, B)) bool
size: (string) int; (bytes) int; (list(A)) int; (map(A, B)) int; string.() int; bytes.() int; list(A).() int; map(A, B).() int
dyn: (A) dyn
type: (A) type
bool: (bool) bool; (string) bool
bytes: (bytes) bytes; (string) bytes
double: (double) double; (int) double; (uint) double; (string) double
int: (int) int; (uint) int; (double) int; (string) int; (Timestamp) int; (Duration) int
uint: (uint) uint; (int) uint; (double) uint; (string) uint
string: (string) string; (bool) string; (int) string; (uint) string; (double) string; (bytes) string; (Timestamp) string; \
(Duration) string; (net.IP) string; (net.CIDR) string
duration: (Duration) Duration; (string) Duration; (int) Duration
timestamp: (Timestamp) Timestamp; (string) Timestamp; (int) Timestamp
matches: (string, string) bool; string.(string) bool
contains: string.(string) bool
startsWith: string.(string) bool
endsWith: string.(string) bool
charAt: string.(int) string
indexOf: string.(string) int; string.(string, int) int; list(A).(A) int
lastIndexOf: string.(string) int; string.(string, int) int; list(A).(A) int
lowerAscii: string.() string
upperAscii: string.() string
replace: string.(string, string) string; string.(string, string, int) string
split: string.(string) list(string); string.(string, int) list(string)
substring: string.(int) string; string.(int, int) string
trim: string.() string
join: list(string).() string; list(string).(string) string
format: string.(list(dyn)) string
reverse: string.() string; list(A).() list(A)
strings.quote: (string) string
find: string.(string) string
findAll: string.(string) list(string); string.(string, int) list(string)
isSorted: list(A).() bool
sum: list(A).() A
min: list(A).() A
max: list(A).() A
distinct: list(A).() list(A)
flatten: list(A).() list(dyn); list(A).(int) list(dyn)
sort: list(A).() list(A)
slice: list(A).(int, int) list(A)
first: list(A).() optional(A)
last: list(A).() optional(A)
lists.range: (int) list(int)
sets.contains: (list(A), list(A)) bool
sets.equivalent: (list(A), list(A)) bool
sets.intersects: (list(A), list(A)) bool
getFullYear: Timestamp.() int; Timestamp.(string) int
getMonth: Timestamp.() int; Timestamp.(string) int
getDayOfYear: Timestamp.() int; Timestamp.(string) int
getDayOfMonth: Timestamp.() int; Timestamp.(string) int
getDate: Timestamp.() int; Timestamp.(string) int
getDayOfWeek: Timestamp.() int; Timestamp.(string) int
getHours: Timestamp.() int; Timestamp.(string) int; Duration.() int
getMinutes: Timestamp.() int; Timestamp.(string) int; Duration.() int
getSeconds: Timestamp.() int; Timestamp.(string) int; Duration.() int
getMilliseconds: Timestamp.() int; Timestamp.(string) int; Duration.() int
math.ceil: (double) double
math.floor: (double) double
math.round: (double) double
math.trunc: (double) double
math.abs: (int) int; (uint) uint; (double) double
math.sign: (int) int; (uint) uint; (double) double
math.sqrt: (int) double; (uint) double; (double) double
math.isInf: (double) bool
math.isNaN: (double) bool
math.isFinite: (double) bool
math.bitAnd: (int, int) int; (uint, uint) uint
math.bitOr: (int, int) int; (uint, uint) uint
math.bitXor: (int, int) int; (uint, uint) uint
math.bitNot: (int) int; (uint) uint
math.bitShiftLeft: (int, int) int; (uint, int) uint
math.bitShiftRight: (int, int) int; (uint, int) uint
base64.encode: (bytes) string
base64.decode: (string) bytes
isURL: (string) bool
url: (string) kubernetes.URL
getScheme: kubernetes.URL.() string
getHost: kubernetes.URL.() string
getHostname: kubernetes.URL.() string
getPort: kubernetes.URL.() string
getEscapedPath: kubernetes.URL.() string
getQuery: kubernetes.URL.() map(string, list(string))
isQuantity: (string) bool
quantity: (string) kubernetes.Quantity
sign: kubernetes.Quantity.() int
isInteger: kubernetes.Quantity.() bool
asInteger: kubernetes.Quantity.() int
asApproximateFloat: kubernetes.Quantity.() double
add: kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity; kubernetes.Quantity.(int) kubernetes.Quantity
sub: kubernetes.Quantity.(kubernetes.Quantity) kubernetes.Quantity; kubernetes.Quantity.(int) kubernetes.Quantity
isLessThan: kubernetes.Quantity.(kubernetes.Quantity) bool; kubernetes.Semver.(kubernetes.Semver) bool
isGreaterThan: kubernetes.Quantity.(kubernetes.Quantity) bool; kubernetes.Semver.(kubernetes.Semver) bool
compareTo: kubernetes.Quantity.(kubernetes.Quantity) int; kubernetes.Semver.(kubernetes.Semver) int
isSemver: (string) bool; (string, bool) bool
semver: (string) kubernetes.Semver; (string, bool) kubernetes.Semver
major: kubernetes.Semver.() int
minor: kubernetes.Semver.() int
patch: kubernetes.Semver.() int
isIP: (string) bool
ip: (string) net.IP; net.CIDR.() net.IP
ip.isCanonical: (string) bool
family: net.IP.() int
isUnspecified: net.IP.() bool
isLoopback: net.IP.() bool
isLinkLocalMulticast: net.IP.() bool
isLinkLocalUnicast: net.IP.() bool
isGlobalUnicast: net.IP.() bool
isCIDR: (string) bool
cidr: (string) net.CIDR
containsIP: net.CIDR.(net.IP) bool; net.CIDR.(string) bool
containsCIDR: net.CIDR.(net.CIDR) bool; net.CIDR.(string) bool
masked: net.CIDR.() net.CIDR
prefixLength: net.CIDR.() int
format.named: (string) optional(kubernetes.NamedFormat)
format.dns1123Label: () kubernetes.NamedFormat
format.dns1123Subdomain: () kubernetes.NamedFormat
format.dns1035Label: () kubernetes.NamedFormat
format.dns1123LabelPrefix: () kubernetes.NamedFormat
format.dns1123SubdomainPrefix: () kubernetes.NamedFormat
format.dns1035LabelPrefix: () kubernetes.NamedFormat
format.qualifiedName: () kubernetes.NamedFormat
format.labelValue: () kubernetes.NamedFormat
format.uri: () kubernetes.NamedFormat
format.uuid: () kubernetes.NamedFormat
format.byte: () kubernetes.NamedFormat
format.date: () kubernetes.NamedFormat
format.datetime: () kubernetes.NamedFormat
validate: kubernetes.NamedFormat.(string) optional(list(string))
optional.none: () optional(dyn)
optional.of: (A) optional(A)
optional.ofNonZeroValue: (A) optional(A)
hasValue: optional(A).() bool
value: optional(A).() A
or: optional(A).(optional(A)) optional(A)
orValue: optional(A).(A) A
jsonpatch.escapeKey: (string) string
path: kubernetes.authorization.Authorizer.(string) kubernetes.authorization.PathCheck
group: kubernetes.authorization.Authorizer.(string) kubernetes.authorization.GroupCheck
serviceAccount: kubernetes.authorization.Authorizer.(string, string) kubernetes.authorization.Authorizer
resource: kubernetes.authorization.GroupCheck.(string) kubernetes.authorization.ResourceCheck
subresource: kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
namespace: kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
name: kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
fieldSelector: kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
labelSelector: kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.ResourceCheck
check: kubernetes.authorization.PathCheck.(string) kubernetes.authorization.Decision; \
kubernetes.authorization.ResourceCheck.(string) kubernetes.authorization.Decision
allowed: kubernetes.authorization.Decision.() bool
reason: kubernetes.authorization.Decision.() string
errored: kubernetes.authorization.Decision.() bool
error: kubernetes.authorization.Decision.() string
";

/// The fields of the request and of its namespace (`k8s.io/apiserver/pkg/admission/plugin/cel`, `BuildRequestType`,
/// `BuildNamespaceType`), a type a line.
const MESSAGES: &str = "\
kubernetes.GroupVersionKind: group string; version string; kind string
kubernetes.GroupVersionResource: group string; version string; resource string
kubernetes.UserInfo: username string; uid string; groups list(string); extra map(string, list(string))
kubernetes.AdmissionRequest: kind kubernetes.GroupVersionKind; resource kubernetes.GroupVersionResource; subResource string; \
requestKind kubernetes.GroupVersionKind; requestResource kubernetes.GroupVersionResource; requestSubResource string; \
name string; namespace string; operation string; userInfo kubernetes.UserInfo; dryRun bool; options dyn
kubernetes.NamespaceMetadata: name string; generateName string; namespace string; labels map(string, string); \
annotations map(string, string); uid string; UID string; creationTimestamp Timestamp; deletionGracePeriodSeconds int; \
deletionTimestamp Timestamp; generation int; resourceVersion string; finalizers list(string)
kubernetes.NamespaceSpec: finalizers list(string)
kubernetes.NamespaceStatus: phase string
kubernetes.Namespace: metadata kubernetes.NamespaceMetadata; spec kubernetes.NamespaceSpec; status kubernetes.NamespaceStatus
";

/// The comparisons, which numbers of different types may be in together (`cel.CrossTypeNumericComparisons`).
const COMPARISONS: [&str; 4] = ["_<_", "_<=_", "_>_", "_>=_"];

type Functions = HashMap<&'static str, Vec<Overload>>;

fn functions() -> &'static Functions {
    static FUNCTIONS_READ: OnceLock<Functions> = OnceLock::new();
    FUNCTIONS_READ.get_or_init(|| {
        let mut functions: Functions =
            lines(FUNCTIONS).map(|(name, overloads)| (name, overloads.split(';').map(overload).collect())).collect();
        for name in COMPARISONS {
            functions.insert(name, comparisons());
        }
        for name in ["math.greatest", "math.least"] {
            functions.insert(name, extremes());
        }
        functions
    })
}

fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    table.lines().filter_map(|line| line.split_once(": "))
}

/// `[target.](args) result`.
fn overload(text: &'static str) -> Overload {
    let text = text.trim();
    // The arguments' bracket is the one at the beginning or after a dot; types have theirs after their names.
    let open = if text.starts_with('(') { 0 } else { text.find(".(").map_or(0, |at| at + 1) };
    let (target, rest) = text.split_at(open);
    let mut depth = 0;
    let close = rest.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    let (args, result) = rest.split_at(close.map_or(rest.len(), |at| at + 1));
    let args = args.trim_start_matches('(').strip_suffix(')').unwrap_or(args);
    let target = target.strip_suffix('.');
    let mut types: Vec<Type<'static>> = target.map(Type::read).into_iter().collect();
    types.extend(split(args).into_iter().map(Type::read));
    Overload { member: target.is_some(), args: types, result: Type::read(result) }
}

/// Parts at commas outside of brackets.
fn split(text: &'static str) -> Vec<&'static str> {
    let (mut parts, mut depth, mut begun) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[begun..at]);
                begun = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begun..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn comparisons() -> Vec<Overload> {
    let numbers = [Type::Int, Type::Uint, Type::Double];
    let others = [Type::Bool, Type::String, Type::Bytes, Type::Duration, Type::Timestamp];
    let mixed = numbers.iter().flat_map(|left| numbers.iter().map(move |right| (left.clone(), right.clone())));
    let same = others.into_iter().map(|one| (one.clone(), one));
    let all = mixed.chain(same);
    all.map(|(left, right)| Overload { member: false, args: vec![left, right], result: Type::Bool }).collect()
}

/// The greatest or least of some numbers, or of a list of them.
fn extremes() -> Vec<Overload> {
    let one = |args: Vec<Type<'static>>, result| Overload { member: false, args, result };
    let mut all = vec![one(vec![Type::list(Type::Param(0))], Type::Param(0))];
    for count in 1..=8 {
        for number in [Type::Int, Type::Uint, Type::Double] {
            all.push(one(vec![number.clone(); count], number));
        }
        all.push(one(vec![Type::Dyn; count], Type::Dyn));
    }
    all
}

/// The ways to call a function; none when there is no such function.
pub(super) fn overloads(name: &str) -> Option<&'static [Overload]> {
    functions().get(name).map(Vec::as_slice)
}

/// All functions.
#[cfg(test)]
pub(super) fn every() -> impl Iterator<Item = (&'static str, &'static [Overload])> {
    functions().iter().map(|(name, overloads)| (*name, overloads.as_slice()))
}

/// The type of a field of a named type: none when it has no such field, or no fields at all.
pub(super) fn field(message: &str, name: &str) -> Option<Type<'static>> {
    type Messages = HashMap<&'static str, HashMap<&'static str, Type<'static>>>;
    static MESSAGES_READ: OnceLock<Messages> = OnceLock::new();
    let messages = MESSAGES_READ.get_or_init(|| {
        let fields = |text: &'static str| {
            let fields = text.split(';').filter_map(|field| field.trim().split_once(' '));
            fields.map(|(name, of)| (name, Type::read(of))).collect()
        };
        lines(MESSAGES).map(|(name, text)| (name, fields(text))).collect()
    });
    messages.get(message)?.get(name).cloned()
}
