//! A threshold on a metric in the Prometheus text format. Pure.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proa_apimachinery::quantity;
use proa_crds::policy::MetricCheck;
use std::{collections::BTreeMap, time::Duration};

/// Compares the mean over the pods with the bounds. A counter is compared from the second look on; what a pod does not
/// serve counts for nothing, and where none serves it, nothing is known and the answer has failed.
pub(super) fn judge(
    check: &MetricCheck,
    texts: &[(String, String)],
    counters: &mut BTreeMap<String, (f64, Timestamp)>,
    now: Timestamp,
) -> Result<(), String> {
    let sums: Vec<(&String, f64)> =
        texts.iter().filter_map(|(pod, text)| Some((pod, sum(text, &check.metric, &check.labels)?))).collect();
    if sums.is_empty() {
        return Err(format!("no pod serves the metric {:?}", check.metric));
    }
    let values: Vec<f64> = if check.per_second {
        let growth = |pod: &String, value: f64| {
            let (before, at) = counters.get(pod)?;
            let seconds = Duration::try_from(now.duration_since(*at)).ok()?.as_secs_f64();
            // A counter that shrank began anew.
            (seconds > 0.0).then(|| if value < *before { value / seconds } else { (value - before) / seconds })
        };
        let values = sums.iter().filter_map(|(pod, value)| growth(pod, *value)).collect();
        *counters = sums.iter().map(|(pod, value)| ((*pod).clone(), (*value, now))).collect();
        values
    } else {
        sums.iter().map(|(_, value)| *value).collect()
    };
    if values.is_empty() {
        return Ok(());
    }
    #[expect(clippy::cast_precision_loss, reason = "the number of pods")]
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let what = if check.per_second { format!("{} per second", check.metric) } else { check.metric.clone() };
    match (check.min.as_ref().and_then(number), check.max.as_ref().and_then(number)) {
        (_, Some(max)) if mean > max => Err(format!("{what} is {mean}, more than {max}")),
        (Some(min), _) if mean < min => Err(format!("{what} is {mean}, less than {min}")),
        _ if mean.is_nan() => Err(format!("{what} is no number")),
        _ => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "thresholds are rough")]
fn number(quantity: &Quantity) -> Option<f64> {
    quantity::Quantity::parse(&quantity.0).ok().map(|quantity| quantity.as_milli() as f64 / 1000.0)
}

/// The sum of the samples of that metric that have these labels; `None` when there is none.
fn sum(text: &str, metric: &str, labels: &BTreeMap<String, String>) -> Option<f64> {
    let values = text.lines().filter_map(|line| sample(line, metric, labels));
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// The value of a line `name{label="value",…} value [timestamp]`, if it is of that metric and has these labels.
fn sample(line: &str, metric: &str, labels: &BTreeMap<String, String>) -> Option<f64> {
    let rest = line.trim_start().strip_prefix(metric)?;
    let (held, rest) = match rest.strip_prefix('{') {
        Some(inside) => label_pairs(inside)?,
        None => (BTreeMap::new(), rest),
    };
    if !rest.starts_with([' ', '\t']) || !labels.iter().all(|(name, value)| held.get(name) == Some(value)) {
        return None;
    }
    let value = rest.split_whitespace().next()?;
    match value {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        value => value.parse().ok(),
    }
}

/// The labels up to the closing brace, and what follows it.
fn label_pairs(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut pairs = BTreeMap::new();
    loop {
        text = text.trim_start_matches([' ', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((pairs, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        pairs.insert(name.trim().to_owned(), value);
        text = rest.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TEXT: &str = "# HELP errors Errors.\n# TYPE errors counter\nerrors{code=\"500\",path=\"/a,\\\"b}\"} 3 1700000000\n\
                        errors{code=\"404\",path=\"/\"} 5\nerrors_total 99\nup 1\nload +Inf\n";

    fn check(edit: Value) -> MetricCheck {
        let mut check = json!({"port": 80, "metric": "errors"});
        crate::sim::merge(&mut check, &edit);
        serde_json::from_value(check).expect("a check")
    }

    fn texts(values: &[&str]) -> Vec<(String, String)> {
        values.iter().enumerate().map(|(at, text)| (format!("p{at}"), (*text).to_owned())).collect()
    }

    #[test]
    fn the_samples_of_a_metric_that_have_the_labels_are_summed() {
        let labels = |of: &[(&str, &str)]| of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(sum(TEXT, "errors", &labels(&[])), Some(8.0));
        assert_eq!(sum(TEXT, "errors", &labels(&[("code", "500")])), Some(3.0));
        assert_eq!(sum(TEXT, "errors", &labels(&[("path", "/a,\"b}")])), Some(3.0));
        assert_eq!(sum(TEXT, "errors", &labels(&[("code", "200")])), None);
        assert_eq!(sum(TEXT, "up", &labels(&[])), Some(1.0));
        assert_eq!(sum(TEXT, "load", &labels(&[])), Some(f64::INFINITY));
        assert_eq!(sum("errors{a=\"b", "errors", &labels(&[])), None);
    }

    #[test]
    fn the_mean_over_the_pods_is_compared_with_the_bounds() {
        let now = Timestamp::UNIX_EPOCH;
        let judge = |edit, texts: &[(String, String)]| judge(&check(edit), texts, &mut BTreeMap::new(), now);
        let two = texts(&["errors 2\n", "errors 4\n"]);
        assert_eq!(judge(json!({"max": "3"}), &two), Ok(()));
        assert_eq!(judge(json!({"max": "2500m"}), &two), Err("errors is 3, more than 2.5".into()));
        assert_eq!(judge(json!({"min": "4"}), &two), Err("errors is 3, less than 4".into()));
        assert_eq!(judge(json!({"max": "3"}), &texts(&["errors 2\n", "up 1\n"])), Ok(()));
        assert_eq!(judge(json!({"max": "3"}), &texts(&["up 1\n"])), Err("no pod serves the metric \"errors\"".into()));
    }

    #[test]
    fn a_counter_is_compared_by_its_growth_from_the_second_look_on() {
        let check = check(json!({"max": "1", "perSecond": true}));
        let mut counters = BTreeMap::new();
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let mut look = |text: &str, seconds| judge(&check, &texts(&[text]), &mut counters, at(seconds));
        assert_eq!(look("errors 100\n", 0), Ok(()));
        assert_eq!(look("errors 110\n", 10), Ok(()));
        assert_eq!(look("errors 140\n", 20), Err("errors per second is 3, more than 1".into()));
        assert_eq!(look("errors 5\n", 30), Ok(()), "it began anew");
    }
}
