//! One webhook as its configuration says it, read once per change of the configurations.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use proa_apimachinery::object::Object;
use serde_json::Value;

use crate::admission::matching::{CONDITION_VARIABLES, Conditions, Matcher};
use crate::cache::{Cache, Caches};
use crate::outgoing::{ClientConfig, strings};

/// What becomes of a request whose webhook does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// It is refused.
    Fail,
    /// It goes on.
    Ignore,
}

/// A webhook.
#[derive(Debug)]
pub struct Hook {
    /// The configuration it is in.
    pub configuration: String,
    /// Its name, which messages say.
    pub name: String,
    /// Which requests it is for; or why that cannot be told.
    pub matcher: Result<Matcher, String>,
    /// Of those, which ones really.
    pub conditions: Conditions,
    /// Where it is; or why that cannot be told.
    pub client: Result<ClientConfig, String>,
    /// What becomes of the request when it fails.
    pub failure_policy: FailurePolicy,
    /// It does nothing but answer, or at least not in a dry run.
    pub fit_for_dry_run: bool,
    /// It wants to see again what others change after it.
    pub reinvoke: bool,
    /// How long it may take.
    pub timeout: Duration,
    /// The versions of AdmissionReview it understands, preferred first.
    pub versions: Vec<String>,
}

impl Hook {
    fn read(configuration: &str, value: &Value) -> Hook {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let seconds = value.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(10);
        Hook {
            configuration: configuration.to_owned(),
            name: text("name").to_owned(),
            matcher: Matcher::read(value),
            conditions: Conditions::read(value.get("matchConditions"), CONDITION_VARIABLES),
            client: ClientConfig::read(value.get("clientConfig").unwrap_or(&Value::Null)),
            failure_policy: if text("failurePolicy") == "Ignore" { FailurePolicy::Ignore } else { FailurePolicy::Fail },
            fit_for_dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoke: text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            versions: strings(value.get("admissionReviewVersions")),
        }
    }

    fn read_all(configuration: &Object) -> impl Iterator<Item = Arc<Hook>> {
        let hooks = configuration.get_list(&["webhooks"]).iter();
        hooks.map(|hook| Arc::new(Hook::read(configuration.name(), hook)))
    }
}

/// The webhooks of all configurations of one kind, in the order they are called: by the names of the configurations.
pub struct Index {
    cache: Arc<Cache>,
    read: ArcSwap<Read>,
}

/// What was read last.
#[derive(Default)]
struct Read {
    revision: u64,
    hooks: Arc<Vec<Arc<Hook>>>,
}

impl Index {
    fn new(caches: &Caches, resource: &str) -> Index {
        Index { cache: caches.resource(resource), read: ArcSwap::default() }
    }

    /// The webhooks as the configurations are now.
    pub fn hooks(&self) -> Arc<Vec<Arc<Hook>>> {
        let revision = self.cache.last_revision();
        let read = self.read.load();
        if read.revision == revision {
            return Arc::clone(&read.hooks);
        }
        // The items are read after the revision: they are at least as new, and then read once more at worst.
        let configurations: Vec<Object> = self.cache.items("").iter().map(|item| item.object()).collect();
        let hooks: Arc<Vec<Arc<Hook>>> = Arc::new(configurations.iter().flat_map(Hook::read_all).collect());
        self.read.store(Arc::new(Read { revision, hooks: Arc::clone(&hooks) }));
        hooks
    }
}

/// All webhooks.
pub struct Hooks {
    /// Those that may change what they see.
    pub mutating: Index,
    /// Those that may only refuse it.
    pub validating: Index,
}

impl Hooks {
    /// Over the configurations in the caches.
    pub fn new(caches: &Caches) -> Hooks {
        Hooks {
            mutating: Index::new(caches, "mutatingwebhookconfigurations.admissionregistration.k8s.io"),
            validating: Index::new(caches, "validatingwebhookconfigurations.admissionregistration.k8s.io"),
        }
    }
}
