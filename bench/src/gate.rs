//! The promises of `SPECIFICATION.md` as a gate: every figure that grew past its bound fails the run.
//!
//! Owns the bounds. Sizes are bounds as they are. Times are counted in *yardsticks*, the time this machine takes for a fixed
//! piece of work in the same run, so that a slow or busy machine does not fail what did not change.

use std::time::Instant;

use anyhow::{Context, bail};

use crate::report::Report;
use crate::{Target, api, coldstart, idle, podstart, rollout};

/// Hashed once for one yardstick: some 10 ms of one core.
const WORK: usize = 4 << 20;
/// Writers of the measurement of writes.
const CLIENTS: usize = 50;

/// How a bound is meant.
enum Bound {
    /// no more than this many of the figure's own unit
    AtMost(f64),
    /// milliseconds, no more than this many yardsticks
    Yardsticks(f64),
    /// per second, no less than this many in the time of one yardstick
    PerYardstick(f64),
}

pub(crate) async fn run(target: &Target) -> anyhow::Result<()> {
    let begun = yardstick();
    let mut figures = coldstart::measure(target).await?;
    figures.extend(idle::measure(target, 1, 5).await?);
    figures.extend(podstart::measure(target, 10).await?);
    figures.extend(rollout::measure(target, 50).await?);
    figures.extend(api::writes(target, &[CLIENTS], 3).await?);
    figures.extend(api::lists(target, 10_000).await?);
    // The slower of the two: what else the machine did may have begun or ended in between.
    let yardstick = begun.max(yardstick());

    let size = std::fs::metadata(&target.proa).with_context(|| target.proa.display().to_string())?.len();
    let mut binary = Report::new("MB");
    binary.add("binary", size as f64 / 1e6);
    figures.push(binary);
    for report in &mut figures {
        report.print();
    }
    println!("one yardstick is {yardstick:.2} ms");
    let broken: Vec<String> = bounds().iter().filter_map(|bound| broken(bound, &figures, yardstick)).collect();
    if broken.is_empty() {
        return Ok(());
    }
    bail!("promises of SPECIFICATION.md that do not hold:\n  {}", broken.join("\n  "))
}

/// By the beginning of a row's name. About three times what was measured when they were set: a gate is for what changed, not
/// for noise.
fn bounds() -> [(&'static str, Bound); 10] {
    use Bound::{AtMost, PerYardstick, Yardsticks};
    [
        ("binary", AtMost(40.0)),
        ("resident", AtMost(80.0)),
        ("start to API ready", Yardsticks(20.0)),
        ("start to first pod Running", Yardsticks(40.0)),
        ("apply to Running", Yardsticks(15.0)),
        ("CPU per pod start and stop", AtMost(0.1)),
        ("50 pods to all Ready", Yardsticks(400.0)),
        ("rolling update of 50 pods", Yardsticks(500.0)),
        ("creates of 1 KiB", PerYardstick(20.0)),
        ("list of all", Yardsticks(3.0)),
    ]
}

/// What to say when the promise is not kept.
fn broken((what, bound): &(&str, Bound), figures: &[Report], yardstick: f64) -> Option<String> {
    let Some(median) = figures.iter().find_map(|report| report.median(what)) else {
        return Some(format!("{what}: was not measured"));
    };
    let (kept, said) = match bound {
        Bound::AtMost(limit) => (median <= *limit, format!("at most {limit}")),
        Bound::Yardsticks(limit) => (median <= limit * yardstick, format!("at most {limit} yardsticks")),
        Bound::PerYardstick(limit) => {
            (median * yardstick / 1000.0 >= *limit, format!("at least {limit} in one yardstick"))
        }
    };
    (!kept).then(|| format!("{what}: {median:.3}, promised is {said}"))
}

/// Milliseconds of one core for a fixed piece of work, the median of several.
fn yardstick() -> f64 {
    let work = vec![7_u8; WORK];
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(ring::digest::digest(&ring::digest::SHA512, std::hint::black_box(&work)));
            begun.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
