//! An image as its users see it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration: what `docker images` calls the image id.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Full names, sorted: `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// Bytes of its (compressed) layers and configuration.
    pub size: u64,
    /// When it was built, where it says so.
    pub created: Option<Timestamp>,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Names of its unpacked layers, bottom first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// What an image says about how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments (or the program, without an entrypoint).
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<(String, String)>,
    /// `name`, `name:group`, `uid`, `uid:gid` or empty.
    pub user: String,
    /// Empty: `/`.
    pub working_dir: String,
    /// `SIGQUIT`, `3`, or nothing.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths of anonymous volumes.
    pub volumes: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Docker's health check; Kubernetes ignores it.
    pub healthcheck: Option<Healthcheck>,
}

/// Docker's `HEALTHCHECK`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    pub test: Vec<String>,
    /// Between checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Failures before they count.
    pub start_period: Duration,
    /// Consecutive failures that make it unhealthy.
    pub retries: u32,
}

/// `config` of the configuration blob, in its own spelling. `null` for a list or map is common.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(crate) struct RawConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<RawHealthcheck>,
}

/// Durations are nanoseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RawHealthcheck {
    test: Vec<String>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    retries: u32,
}

impl From<RawConfig> for ImageConfig {
    fn from(raw: RawConfig) -> ImageConfig {
        let keys = |map: Option<BTreeMap<String, serde_json::Value>>| map.unwrap_or_default().into_keys().collect();
        ImageConfig {
            entrypoint: raw.entrypoint.unwrap_or_default(),
            cmd: raw.cmd.unwrap_or_default(),
            env: raw
                .env
                .unwrap_or_default()
                .into_iter()
                .map(|entry| match entry.split_once('=') {
                    Some((name, value)) => (name.to_owned(), value.to_owned()),
                    None => (entry, String::new()),
                })
                .collect(),
            user: raw.user.unwrap_or_default(),
            working_dir: raw.working_dir.unwrap_or_default(),
            stop_signal: raw.stop_signal.filter(|signal| !signal.is_empty()),
            exposed_ports: keys(raw.exposed_ports),
            volumes: keys(raw.volumes),
            labels: raw.labels.unwrap_or_default(),
            healthcheck: raw.healthcheck.map(|raw| Healthcheck {
                test: raw.test,
                interval: Duration::from_nanos(raw.interval),
                timeout: Duration::from_nanos(raw.timeout),
                start_period: Duration::from_nanos(raw.start_period),
                retries: raw.retries,
            }),
        }
    }
}

impl From<ImageConfig> for RawConfig {
    fn from(config: ImageConfig) -> RawConfig {
        let list = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let text = |text: String| (!text.is_empty()).then_some(text);
        let keys = |keys: Vec<String>| {
            (!keys.is_empty()).then(|| keys.into_iter().map(|key| (key, serde_json::json!({}))).collect())
        };
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        RawConfig {
            user: text(config.user),
            exposed_ports: keys(config.exposed_ports),
            env: list(config.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            entrypoint: list(config.entrypoint),
            cmd: list(config.cmd),
            volumes: keys(config.volumes),
            working_dir: text(config.working_dir),
            labels: (!config.labels.is_empty()).then_some(config.labels),
            stop_signal: config.stop_signal,
            healthcheck: config.healthcheck.map(|check| RawHealthcheck {
                test: check.test,
                interval: nanos(check.interval),
                timeout: nanos(check.timeout),
                start_period: nanos(check.start_period),
                retries: check.retries,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_survives_writing_and_reading_and_nulls_are_nothing() {
        let raw: RawConfig = serde_json::from_str(
            r#"{"User":"web","Env":["A=b=c","EMPTY"],"Cmd":null,"Entrypoint":["/x"],"ExposedPorts":{"80/tcp":{}},
                "Volumes":null,"WorkingDir":"/w","Labels":null,"StopSignal":"SIGQUIT","OnBuild":null,
                "Healthcheck":{"Test":["CMD","x"],"Interval":5000000000,"Retries":3}}"#,
        )
        .unwrap();
        let config = ImageConfig::from(raw);
        assert_eq!(config.env, [("A".into(), "b=c".into()), ("EMPTY".into(), String::new())]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.healthcheck.as_ref().unwrap().interval, Duration::from_secs(5));
        let text = serde_json::to_string(&RawConfig::from(config.clone())).unwrap();
        assert_eq!(ImageConfig::from(serde_json::from_str::<RawConfig>(&text).unwrap()), config);
    }
}
