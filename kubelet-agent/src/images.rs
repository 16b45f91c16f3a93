//! Owns the agent's view of images: present or pulled, by policy, with Kubernetes' reasons and events.
//! Never stores a byte: [`ImageSource`] is the store, and a small table in tests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use k8s_openapi::api::core::v1::{Container, Secret};
use kube::Api;
use parking_lot::Mutex;
use serde_json::Value;

use crate::events::{Recorder, Severity};
use crate::pods::Pod;

/// An image as a container needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LocalImage {
    /// digest of its configuration
    pub(crate) id: String,
    /// names and digests it is known by
    pub(crate) references: Vec<String>,
    pub(crate) size: u64,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    /// signal number that asks it to stop
    pub(crate) stop_signal: Option<i32>,
    /// directories it declares as volumes
    pub(crate) volumes: Vec<String>,
}

/// User and password of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    pub(crate) username: String,
    pub(crate) password: String,
}

/// Why an image could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PullFailure {
    /// the name is not one
    InvalidName(String),
    /// anything else
    Failed(String),
}

/// Where images come from.
pub(crate) trait ImageSource: Send + Sync + 'static {
    /// The image, when it is here.
    fn get<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Option<LocalImage>>;
    /// Fetches it. Dropping the future stops that.
    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<Credentials>,
    ) -> BoxFuture<'a, Result<LocalImage, PullFailure>>;
    /// Its unpacked layers, top first.
    fn layers<'a>(&'a self, image: &'a LocalImage) -> BoxFuture<'a, Result<Vec<PathBuf>, String>>;
    /// All that are here.
    fn list(&self) -> BoxFuture<'_, Vec<LocalImage>>;
}

/// Why a container has no image yet: a waiting reason and its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoImage {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What `imagePullPolicy` means when it is not given.
pub(crate) fn policy(container: &Container, image: &str) -> &'static str {
    match container.image_pull_policy.as_deref() {
        Some("Always") => "Always",
        Some("Never") => "Never",
        Some("IfNotPresent") => "IfNotPresent",
        _ => {
            let last = image.rsplit('/').next().unwrap_or(image);
            let latest = !image.contains('@') && (last.ends_with(":latest") || !last.contains(':'));
            if latest { "Always" } else { "IfNotPresent" }
        }
    }
}

type Pulled = Result<LocalImage, PullFailure>;
/// An image, and as whom it is asked for.
type Wanted = (String, Vec<Option<Credentials>>);

/// Gets images for containers; pulls of one image at the same time become one, and a pull nobody waits for any more
/// stops.
pub(crate) struct Images {
    source: Arc<dyn ImageSource>,
    /// Held by those who wait: with the last of them a pull is dropped.
    pulls: Mutex<HashMap<Wanted, WeakShared<BoxFuture<'static, Pulled>>>>,
}

impl Images {
    pub(crate) fn new(source: Arc<dyn ImageSource>) -> Self {
        Self { source, pulls: Mutex::default() }
    }

    pub(crate) fn source(&self) -> &Arc<dyn ImageSource> {
        &self.source
    }

    /// The image of a container, pulled when its policy asks for that.
    pub(crate) async fn ensure(
        &self,
        client: &kube::Client,
        recorder: &Recorder,
        pod: &Pod,
        container: &Container,
    ) -> Result<LocalImage, NoImage> {
        let reference = container.image.as_deref().unwrap_or_default();
        if let Err(why) = check_name(reference) {
            let message = format!(
                "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}"
            );
            recorder.pod(pod, Some(&container.name), Severity::Warning, "InspectFailed", message.clone());
            return Err(NoImage { reason: "InvalidImageName", message });
        }
        let present = self.source.get(reference).await;
        let policy = policy(container, reference);
        if policy != "Always"
            && let Some(image) = present
        {
            let message = format!("Container image \"{reference}\" already present on machine");
            recorder.pod(pod, Some(&container.name), Severity::Normal, "Pulled", message);
            return Ok(image);
        }
        if policy == "Never" {
            let message = format!("Container image \"{reference}\" is not present with pull policy of Never");
            recorder.pod(pod, Some(&container.name), Severity::Warning, "ErrImageNeverPull", message.clone());
            return Err(NoImage { reason: "ErrImageNeverPull", message });
        }
        self.pull(client, recorder, pod, container, reference, present).await
    }

    /// The pull of an image that is under way for the same users, or a new one.
    fn join(&self, reference: &str, tries: Vec<Option<Credentials>>) -> Shared<BoxFuture<'static, Pulled>> {
        let wanted = (reference.to_owned(), tries);
        let mut pulls = self.pulls.lock();
        pulls.retain(|_, pull| pull.upgrade().is_some());
        if let Some(pull) = pulls.get(&wanted).and_then(WeakShared::upgrade) {
            return pull;
        }
        let pull = pull_as(self.source.clone(), wanted.clone()).boxed().shared();
        pulls.extend(pull.downgrade().map(|weak| (wanted, weak)));
        pull
    }

    async fn pull(
        &self,
        client: &kube::Client,
        recorder: &Recorder,
        pod: &Pod,
        container: &Container,
        reference: &str,
        present: Option<LocalImage>,
    ) -> Result<LocalImage, NoImage> {
        let name = Some(container.name.as_str());
        recorder.pod(pod, name, Severity::Normal, "Pulling", format!("Pulling image \"{reference}\""));
        let began = std::time::Instant::now();
        let tries = credentials(client, pod, reference).await;
        match self.join(reference, tries).await {
            Ok(image) => {
                let message = format!(
                    "Successfully pulled image \"{reference}\" in {}ms ({}ms including waiting). Image size: {} bytes.",
                    began.elapsed().as_millis(),
                    began.elapsed().as_millis(),
                    image.size
                );
                recorder.pod(pod, name, Severity::Normal, "Pulled", message);
                Ok(image)
            }
            Err(PullFailure::InvalidName(why)) => {
                let message = format!(
                    "Failed to apply default image tag \"{reference}\": couldn't parse image name \"{reference}\": {why}"
                );
                recorder.pod(pod, name, Severity::Warning, "InspectFailed", message.clone());
                Err(NoImage { reason: "InvalidImageName", message })
            }
            Err(PullFailure::Failed(why)) => {
                // An image made or loaded on this machine is its own registry: with policy Always and no
                // registry that knows the name, the copy that is here runs.
                if let Some(image) = present {
                    let message = format!(
                        "Container image \"{reference}\" already present on machine; pulling it anew failed: {why}"
                    );
                    recorder.pod(pod, name, Severity::Normal, "Pulled", message);
                    return Ok(image);
                }
                let message = format!("Failed to pull image \"{reference}\": {why}");
                recorder.pod(pod, name, Severity::Warning, "Failed", message.clone());
                recorder.pod(pod, name, Severity::Warning, "Failed", "Error: ErrImagePull");
                Err(NoImage { reason: "ErrImagePull", message })
            }
        }
    }
}

/// Tries one user after the other.
async fn pull_as(source: Arc<dyn ImageSource>, (reference, tries): Wanted) -> Pulled {
    let mut result = Err(PullFailure::Failed("no credentials tried".to_owned()));
    for credentials in tries {
        result = source.pull(&reference, credentials).await;
        if !matches!(result, Err(PullFailure::Failed(_))) {
            break;
        }
    }
    result
}

/// The rough shape of an image reference: the store's parser has the last word.
fn check_name(reference: &str) -> Result<(), &'static str> {
    let name = reference.split('@').next().unwrap_or_default();
    if name.is_empty() {
        return Err("invalid reference format");
    }
    let repository = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    };
    let path = match repository.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        _ => repository,
    };
    if path.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("invalid reference format: repository name must be lowercase");
    }
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    if path.is_empty() || !path.chars().all(fine) || path.starts_with('/') || path.ends_with('/') {
        return Err("invalid reference format");
    }
    Ok(())
}

/// Credentials to try, in order: those of the pull secrets that name the registry, then none.
async fn credentials(client: &kube::Client, pod: &Pod, reference: &str) -> Vec<Option<Credentials>> {
    let mut tries = Vec::new();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for secret in pod.spec.image_pull_secrets.iter().flatten() {
        match api.get_opt(&secret.name).await {
            Ok(Some(object)) => {
                for (key, value) in object.data.into_iter().flatten() {
                    if let Ok(json) = serde_json::from_slice::<Value>(&value.0) {
                        tries.extend(matching(&key, &json, reference).into_iter().map(Some));
                    }
                }
            }
            Ok(None) => tracing::debug!(secret = secret.name, "image pull secret not found"),
            Err(error) => tracing::debug!(secret = secret.name, %error, "image pull secret not read"),
        }
    }
    tries.push(None);
    tries
}

/// The credentials for `reference` in a docker configuration, the longest matching registry first.
fn matching(key: &str, json: &Value, reference: &str) -> Vec<Credentials> {
    let auths = match key {
        ".dockerconfigjson" => json.get("auths"),
        ".dockercfg" => Some(json),
        _ => None,
    };
    let full = match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => reference.to_owned(),
        _ => format!("docker.io/{reference}"),
    };
    let mut found: Vec<(usize, Credentials)> = Vec::new();
    for (registry, entry) in auths.and_then(Value::as_object).into_iter().flatten() {
        let bare = registry.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let bare = if bare == "index.docker.io" { "docker.io" } else { bare };
        let hit = full.strip_prefix(bare).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
        if hit && let Some(credentials) = entry_credentials(entry) {
            found.push((bare.len(), credentials));
        }
    }
    found.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    found.into_iter().map(|(_, c)| c).collect()
}

fn entry_credentials(entry: &Value) -> Option<Credentials> {
    use base64::Engine as _;
    let text = |name: &str| entry.get(name).and_then(Value::as_str).map(str::to_owned);
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(Credentials { username, password });
    }
    let bytes = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
    let decoded = String::from_utf8(bytes).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(Credentials { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Counts the pulls under way; none ends.
    struct Endless(Arc<()>);

    impl ImageSource for Endless {
        fn get<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Option<LocalImage>> {
            Box::pin(async { None })
        }

        fn pull<'a>(&'a self, _: &'a str, _: Option<Credentials>) -> BoxFuture<'a, Pulled> {
            let one = self.0.clone();
            Box::pin(async move {
                let _alive = one;
                std::future::pending().await
            })
        }

        fn layers<'a>(&'a self, _: &'a LocalImage) -> BoxFuture<'a, Result<Vec<PathBuf>, String>> {
            Box::pin(async { Ok(vec![]) })
        }

        fn list(&self) -> BoxFuture<'_, Vec<LocalImage>> {
            Box::pin(async { vec![] })
        }
    }

    #[test]
    fn a_pull_is_shared_and_stops_with_the_last_who_waits() {
        let alive = Arc::new(());
        let images = Images::new(Arc::new(Endless(alive.clone())));
        let under_way = || Arc::strong_count(&alive) - 2;
        let mut first = images.join("a:1", vec![None]);
        let mut second = images.join("a:1", vec![None]);
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        assert_eq!(under_way(), 1);
        drop(first);
        assert_eq!(under_way(), 1, "somebody waits for it");
        // Who may see an image is the registry's to say: another user asks for himself.
        let user = Credentials { username: "u".into(), password: "p".into() };
        let mut other = images.join("a:1", vec![Some(user), None]);
        assert!((&mut other).now_or_never().is_none());
        assert_eq!(under_way(), 2);
        drop((second, other));
        assert_eq!(under_way(), 0);
    }

    #[test]
    fn latest_and_untagged_images_are_always_pulled() {
        let container = Container::default();
        for (image, want) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("example/echo:v1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(policy(&container, image), want, "{image}");
        }
    }

    #[test]
    fn names_that_cannot_be_are_told_before_any_pull() {
        for good in ["nginx", "example/echo:v1", "localhost:5000/a/b:c", "REG.example:5000/a", "a@sha256:00"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "Nginx", "a b", "/a", "a/", "exam ple/x:1", "UPPER/x"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_most_specific_registry_entry_comes_first() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "reg.example": {"username": "wide", "password": "1"},
            "reg.example/team": {"username": "near", "password": "2"},
            "reg.example.org": {"username": "no", "password": "3"}
        }});
        let names = |r: &str| -> Vec<String> {
            matching(".dockerconfigjson", &config, r).into_iter().map(|c| c.username).collect()
        };
        assert_eq!(names("reg.example/team/app:1"), ["near", "wide"]);
        assert_eq!(names("nginx"), ["u"]);
        assert!(names("other.example/x").is_empty());
    }
}
