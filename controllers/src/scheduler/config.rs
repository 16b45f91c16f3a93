//! The scheduler's configuration: `KubeSchedulerConfiguration` of `kubescheduler.config.k8s.io/v1`. What is in it and not
//! honoured is refused by name. Pure.

use super::{
    cluster::terms::Constraint,
    plugins::{self, Args, ResourceWeight, Row, SpreadArgs, Strategy},
    preempt::PreemptionArgs,
    profile::{DEFAULT, Profile},
    queue,
};
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// Parts of every profile that cannot be taken out, and have nothing to set.
const FIXED: [&str; 3] = ["SchedulingGates", "PrioritySort", "DefaultBinder"];
const PREEMPTION: &str = "DefaultPreemption";

/// How the scheduler decides.
#[derive(Clone, Debug)]
pub struct Configuration {
    pub(super) profiles: Vec<Profile>,
    /// First and longest pause of a pod that could not be placed.
    pub(super) backoff: (Duration, Duration),
}

impl Default for Configuration {
    /// Kubernetes' default profile; only pauses are shorter.
    fn default() -> Self {
        Configuration { profiles: vec![Profile::default_named(DEFAULT)], backoff: queue::BACKOFF }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ConfigError {
    path: String,
    why: String,
}

fn error(path: impl Into<String>, why: impl ToString) -> ConfigError {
    ConfigError { path: path.into(), why: why.to_string() }
}

fn read<T: DeserializeOwned>(path: &str, value: &Value) -> Result<T, ConfigError> {
    T::deserialize(value).map_err(|why| error(path, why))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<ProfileFile>,
    percentage_of_nodes_to_score: Option<usize>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<usize>,
    #[serde(default)]
    plugins: PluginSets,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginSets {
    #[serde(default)]
    multi_point: PluginSet,
    #[serde(default)]
    filter: PluginSet,
    #[serde(default)]
    post_filter: PluginSet,
    #[serde(default)]
    score: PluginSet,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<PluginName>,
    #[serde(default)]
    disabled: Vec<PluginName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginName {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

impl PluginSet {
    fn takes_out(&self, name: &str) -> bool {
        self.disabled.iter().any(|plugin| plugin.name == name || plugin.name == "*")
            && !self.enabled.iter().any(|plugin| plugin.name == name)
    }

    fn weight(&self, name: &str) -> Option<i64> {
        let plugin = self.enabled.iter().find(|plugin| plugin.name == name)?;
        Some(plugin.weight.max(1))
    }
}

impl Configuration {
    /// Reads a configuration file's document.
    ///
    /// # Errors
    /// Where it says what is not understood, or not honoured.
    pub fn from_value(value: &Value) -> Result<Configuration, ConfigError> {
        let file: File = read("KubeSchedulerConfiguration", value)?;
        if file.api_version != API_VERSION || file.kind != KIND {
            return Err(error("apiVersion, kind", format!("must be {API_VERSION}, {KIND}")));
        }
        let profiles = if file.profiles.is_empty() { vec![ProfileFile::default()] } else { file.profiles };
        let mut configuration = Configuration { profiles: Vec::new(), backoff: queue::BACKOFF };
        for (at, profile) in profiles.into_iter().enumerate() {
            let path = format!("profiles[{at}]");
            let percentage = profile.percentage_of_nodes_to_score.or(file.percentage_of_nodes_to_score).unwrap_or(0);
            if percentage > 100 {
                return Err(error(format!("{path}.percentageOfNodesToScore"), "must be from 0 to 100"));
            }
            let profile = profile.read(&path, percentage)?;
            if configuration.profiles.iter().any(|held| held.name == profile.name) {
                return Err(error(format!("{path}.schedulerName"), format!("Duplicate value: \"{}\"", profile.name)));
            }
            configuration.profiles.push(profile);
        }
        let seconds = |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_secs);
        let first = seconds(file.pod_initial_backoff_seconds, queue::BACKOFF.0);
        let longest = seconds(file.pod_max_backoff_seconds, queue::BACKOFF.1);
        if first.is_zero() || longest < first {
            return Err(error("podInitialBackoffSeconds", "must be greater than 0 and at most podMaxBackoffSeconds"));
        }
        configuration.backoff = (first, longest);
        Ok(configuration)
    }
}

impl ProfileFile {
    fn read(self, path: &str, percentage: usize) -> Result<Profile, ConfigError> {
        let mut args = Args::default();
        let mut preemption = PreemptionArgs::default();
        let mut volumes_within = Duration::from_secs(600);
        for (at, config) in self.plugin_config.iter().enumerate() {
            let path = format!("{path}.pluginConfig[{at}].args");
            match config.name.as_str() {
                "NodeResourcesFit" => args.fit = fit(&path, &config.args)?,
                "NodeResourcesBalancedAllocation" => {
                    let read: BalancedFile = read_args(&path, &config.args)?;
                    if !read.resources.is_empty() {
                        args.balanced.0 = weights(read.resources);
                    }
                }
                "InterPodAffinity" => {
                    let read: InterPodFile = read_args(&path, &config.args)?;
                    args.inter_pod.hard_weight = read.hard_pod_affinity_weight.unwrap_or(1);
                    args.inter_pod.ignore_preferences_of_others = read.ignore_preferred_terms_of_existing_pods;
                    if !(0..=100).contains(&args.inter_pod.hard_weight) {
                        return Err(error(format!("{path}.hardPodAffinityWeight"), "not in valid range [0, 100]"));
                    }
                }
                "PodTopologySpread" => args.spread = spread(&path, &config.args)?,
                "NodeAffinity" => {
                    args.added_affinity = read_args::<NodeAffinityFile>(&path, &config.args)?.added_affinity
                }
                PREEMPTION => {
                    let read: PreemptionFile = read_args(&path, &config.args)?;
                    preemption.percentage = read.min_candidate_nodes_percentage.unwrap_or(preemption.percentage);
                    preemption.absolute = read.min_candidate_nodes_absolute.unwrap_or(preemption.absolute);
                }
                "VolumeBinding" => {
                    let read: VolumeBindingFile = read_args(&path, &config.args)?;
                    volumes_within = Duration::from_secs(read.bind_timeout_seconds.unwrap_or(600));
                }
                other => return Err(error(path, format!("arguments of plugin {other} are not supported by Proa"))),
            }
        }
        let rows = plugins::table(&args);
        self.plugins.check(&format!("{path}.plugins"), &rows)?;
        let sets = &self.plugins;
        let stays = |set: &PluginSet, name: &str| {
            !set.takes_out(name) && (!sets.multi_point.takes_out(name) || set.weight(name).is_some())
        };
        let weight = |row: &Row| {
            let name = row.plugin.name();
            sets.score.weight(name).or(sets.multi_point.weight(name)).unwrap_or(row.weight)
        };
        let scores = rows.iter().filter(|row| row.weight > 0 && stays(&sets.score, row.plugin.name()));
        let scores = scores.map(|row| (row.plugin.clone(), weight(row))).collect();
        let filters = rows.iter().filter(|row| row.filters && stays(&sets.filter, row.plugin.name()));
        Ok(Profile {
            name: self.scheduler_name.filter(|name| !name.is_empty()).unwrap_or_else(|| DEFAULT.to_owned()),
            percentage,
            filters: filters.map(|row| row.plugin.clone()).collect(),
            scores,
            preemption: stays(&sets.post_filter, PREEMPTION).then_some(preemption),
            volumes_within,
        })
    }
}

impl PluginSets {
    fn check(&self, path: &str, rows: &[Row]) -> Result<(), ConfigError> {
        let sets = [
            ("multiPoint", &self.multi_point),
            ("filter", &self.filter),
            ("postFilter", &self.post_filter),
            ("score", &self.score),
        ];
        for (point, set) in sets {
            for plugin in &set.disabled {
                if FIXED.contains(&plugin.name.as_str()) {
                    return Err(error(
                        format!("{path}.{point}.disabled"),
                        format!("{} cannot be disabled", plugin.name),
                    ));
                }
            }
            for plugin in set.enabled.iter().chain(&set.disabled).filter(|plugin| plugin.name != "*") {
                let name = plugin.name.as_str();
                let known = match point {
                    "multiPoint" => {
                        name == PREEMPTION || FIXED.contains(&name) || rows.iter().any(|r| r.plugin.name() == name)
                    }
                    "filter" => rows.iter().any(|row| row.filters && row.plugin.name() == name),
                    "score" => rows.iter().any(|row| row.weight > 0 && row.plugin.name() == name),
                    _ => name == PREEMPTION,
                };
                if !known {
                    return Err(error(
                        format!("{path}.{point}"),
                        format!("plugin {name} is not supported by Proa there"),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Arguments; they may name their own kind.
fn read_args<T: DeserializeOwned + Default>(path: &str, value: &Value) -> Result<T, ConfigError> {
    let Value::Object(fields) = value else {
        return if value.is_null() { Ok(T::default()) } else { Err(error(path, "must be an object")) };
    };
    let fields = fields.iter().filter(|(key, _)| *key != "apiVersion" && *key != "kind");
    read(path, &Value::Object(fields.map(|(key, value)| (key.clone(), value.clone())).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceFile {
    name: String,
    #[serde(default)]
    weight: i64,
}

fn weights(resources: Vec<ResourceFile>) -> Vec<ResourceWeight> {
    resources.into_iter().map(|r| ResourceWeight { name: r.name, weight: r.weight.max(1) }).collect()
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FitFile {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<StrategyFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StrategyFile {
    #[serde(rename = "type")]
    type_: String,
    #[serde(default)]
    resources: Vec<ResourceFile>,
    #[serde(default)]
    requested_to_capacity_ratio: ShapeFile,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapeFile {
    #[serde(default)]
    shape: Vec<PointFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PointFile {
    utilization: i64,
    score: i64,
}

fn fit(path: &str, value: &Value) -> Result<plugins::FitArgs, ConfigError> {
    let read: FitFile = read_args(path, value)?;
    let mut args = plugins::FitArgs {
        ignored: read.ignored_resources.into_iter().collect(),
        ignored_groups: read.ignored_resource_groups.into_iter().collect(),
        ..plugins::FitArgs::default()
    };
    let Some(strategy) = read.scoring_strategy else { return Ok(args) };
    args.strategy = match strategy.type_.as_str() {
        "LeastAllocated" => Strategy::LeastAllocated,
        "MostAllocated" => Strategy::MostAllocated,
        "RequestedToCapacityRatio" => {
            let shape = strategy.requested_to_capacity_ratio.shape;
            let points: Vec<(i64, i64)> = shape.iter().map(|point| (point.utilization, point.score)).collect();
            let in_range = |(x, y): &(i64, i64)| (0..=100).contains(x) && (0..=10).contains(y);
            let rising = points.windows(2).all(|pair| pair[0].0 < pair[1].0);
            if points.is_empty() || !points.iter().all(in_range) || !rising {
                let path = format!("{path}.scoringStrategy.requestedToCapacityRatio.shape");
                return Err(error(
                    path,
                    "at least one point, utilization from 0 to 100 and rising, score from 0 to 10",
                ));
            }
            Strategy::Shape(points)
        }
        other => return Err(error(format!("{path}.scoringStrategy.type"), format!("Unsupported value: \"{other}\""))),
    };
    if !strategy.resources.is_empty() {
        args.resources = weights(strategy.resources);
    }
    Ok(args)
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BalancedFile {
    resources: Vec<ResourceFile>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct InterPodFile {
    hard_pod_affinity_weight: Option<i64>,
    ignore_preferred_terms_of_existing_pods: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct SpreadFile {
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

fn spread(path: &str, value: &Value) -> Result<SpreadArgs, ConfigError> {
    let read: SpreadFile = read_args(path, value)?;
    match read.defaulting_type.as_deref() {
        Some("List") => {
            if read.default_constraints.iter().any(|constraint| constraint.label_selector.is_some()) {
                let why = "constraint must not define a selector, as they deduced for each pod";
                return Err(error(format!("{path}.defaultConstraints"), why));
            }
            let constraint = |constraint| Constraint::of(constraint, &BTreeMap::new());
            Ok(SpreadArgs::List(read.default_constraints.iter().map(constraint).collect()))
        }
        None | Some("System") if read.default_constraints.is_empty() => Ok(SpreadArgs::System),
        None | Some("System") => Err(error(
            format!("{path}.defaultConstraints"),
            "when .defaultingType is System, the constraints must be empty",
        )),
        Some(other) => Err(error(format!("{path}.defaultingType"), format!("Unsupported value: \"{other}\""))),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct NodeAffinityFile {
    added_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PreemptionFile {
    min_candidate_nodes_percentage: Option<usize>,
    min_candidate_nodes_absolute: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct VolumeBindingFile {
    bind_timeout_seconds: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn configured(extra: Value) -> Result<Configuration, String> {
        let mut file = json!({"apiVersion": API_VERSION, "kind": KIND});
        file.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Configuration::from_value(&file).map_err(|error| error.to_string())
    }

    fn names(profile: &Profile) -> (Vec<&str>, Vec<(&str, i64)>) {
        let scores = profile.scores.iter().map(|(plugin, weight)| (plugin.name(), *weight));
        (profile.filters.iter().map(|plugin| plugin.name()).collect(), scores.collect())
    }

    #[test]
    fn without_a_word_the_profile_is_kubernetes_own() {
        let configuration = configured(json!({})).unwrap();
        let (filters, scores) = names(&configuration.profiles[0]);
        assert_eq!(configuration.profiles[0].name, "default-scheduler");
        assert_eq!(
            filters,
            [
                "NodeUnschedulable",
                "NodeName",
                "TaintToleration",
                "NodeAffinity",
                "NodePorts",
                "NodeResourcesFit",
                "VolumeRestrictions",
                "NodeVolumeLimits",
                "VolumeBinding",
                "VolumeZone",
                "PodTopologySpread",
                "InterPodAffinity",
            ]
        );
        let weights = [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1),
        ];
        assert_eq!(scores, weights);
        assert_eq!(names(&Configuration::default().profiles[0]), (filters, scores));
    }

    #[test]
    fn profiles_take_plugins_out_and_weigh_them_anew() {
        let configuration = configured(json!({"profiles": [
            {"schedulerName": "default-scheduler"},
            {"schedulerName": "packer", "percentageOfNodesToScore": 100,
             "plugins": {
                 "multiPoint": {"disabled": [{"name": "InterPodAffinity"}]},
                 "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 7}]},
                 "postFilter": {"disabled": [{"name": "DefaultPreemption"}]}},
             "pluginConfig": [{"name": "NodeResourcesFit", "args": {"apiVersion": API_VERSION, "kind": "NodeResourcesFitArgs",
                 "scoringStrategy": {"type": "MostAllocated", "resources": [{"name": "memory", "weight": 3}]}}}]},
        ]}));
        let configuration = configuration.unwrap();
        let packer = &configuration.profiles[1];
        let (filters, scores) = names(packer);
        assert!(!filters.contains(&"InterPodAffinity") && filters.contains(&"PodTopologySpread"));
        assert_eq!(scores, [("NodeResourcesFit", 7)]);
        assert_eq!((packer.preemption, packer.percentage), (None, 100));
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (extra, expected) in [
            (json!({"parallelism": 4}), "KubeSchedulerConfiguration: unknown field `parallelism`"),
            (json!({"apiVersion": "other/v1"}), "apiVersion, kind: must be"),
            (json!({"profiles": [{"plugins": {"bind": {"disabled": [{"name": "*"}]}}}]}), "unknown field `bind`"),
            (
                json!({"profiles": [{"plugins": {"filter": {"enabled": [{"name": "Coscheduling"}]}}}]}),
                "profiles[0].plugins.filter: plugin Coscheduling is not supported by Proa there",
            ),
            (
                json!({"profiles": [{"plugins": {"multiPoint": {"disabled": [{"name": "PrioritySort"}]}}}]}),
                "profiles[0].plugins.multiPoint.disabled: PrioritySort cannot be disabled",
            ),
            (
                json!({"profiles": [{"pluginConfig": [{"name": "DynamicResources", "args": {}}]}]}),
                "profiles[0].pluginConfig[0].args: arguments of plugin DynamicResources are not supported by Proa",
            ),
            (
                json!({"profiles": [{"pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 101}}]}]}),
                "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: not in valid range [0, 100]",
            ),
            (
                json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]}),
                "profiles[1].schedulerName: Duplicate value: \"a\"",
            ),
            (json!({"podInitialBackoffSeconds": 0}), "podInitialBackoffSeconds: must be greater than 0"),
        ] {
            let error = configured(extra.clone()).expect_err("refused");
            assert!(error.contains(expected), "{extra}: {error}");
        }
    }
}
