//! Spans of time as people type them (Go's `1h30m`, kubectl's bare seconds) and as kubectl's AGE column shows them.
//!
//! Pure: now is an argument.

use jiff::Timestamp;
use std::time::Duration;

/// Longest span taken at its word, seconds: a hundred years.
const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;

/// "300ms", "1.5h", "2h45m", "-1s" or "0" as seconds.
///
/// # Errors
/// What is wrong, as Go's time.ParseDuration says it.
pub fn parse_seconds(text: &str) -> Result<f64, String> {
    let invalid = || format!("invalid duration {text:?}");
    let (sign, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) if text.starts_with('-') => (-1.0, rest),
        Some(rest) => (1.0, rest),
        None => (1.0, text),
    };
    if rest == "0" {
        return Ok(0.0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..letters] {
                "" => return Err(format!("missing unit in duration {text:?}")),
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                unit => return Err(format!("unknown unit {unit:?} in duration {text:?}")),
            };
        rest = &rest[letters..];
    }
    if total > LONGEST { Err(invalid()) } else { Ok(sign * total) }
}

/// A span that can't be negative, for flags.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Duration, String> {
    let seconds = parse_seconds(text)?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("invalid duration {text:?}: must not be negative"))
}

/// A request's time-out: kubectl also takes bare seconds.
///
/// # Errors
/// kubectl's sentence.
pub fn parse_timeout(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    parse(text).map_err(|_| {
        "Invalid timeout value. Timeout must be a single integer in seconds, or an integer followed by a corresponding time unit (e.g. 1s | 2m | 3h)".to_owned()
    })
}

/// A flag's wait: 0 = look once, negative = a week (kubectl's rules).
///
/// # Errors
/// What is wrong with it.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    let seconds = parse_seconds(text)?;
    let week = Duration::from_secs(7 * 86_400);
    Ok(if seconds < 0.0 { week } else { Duration::try_from_secs_f64(seconds).unwrap_or(week) })
}

/// How long ago, as the AGE column shows it; `<unknown>` without a time.
pub fn age(rfc3339: &str, now: Timestamp) -> String {
    if rfc3339.is_empty() {
        return "<unknown>".to_owned();
    }
    match rfc3339.parse::<Timestamp>() {
        Ok(then) => human(now.as_millisecond() - then.as_millisecond()),
        Err(_) => "<invalid>".to_owned(),
    }
}

/// Kubernetes' HumanDuration: two units where the second says something, else one.
pub fn human(millis: i64) -> String {
    let seconds = millis / 1000;
    // Clocks differ: up to two seconds in the future count as now.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    if seconds < 0 || millis < 0 {
        return "0s".to_owned();
    }
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let years = days / 365;
    let two = |large: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{rest}{small}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if years < 2 => format!("{days}d"),
        () if years < 8 => two(years, "y", days % 365, "d"),
        () => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubernetes() {
        const M: i64 = 60;
        const H: i64 = 3600;
        const D: i64 = 24 * H;
        const Y: i64 = 365 * D;
        let table = [
            (-5, "<invalid>"),
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (1, "1s"),
            (70, "70s"),
            (119, "119s"),
            (2 * M, "2m"),
            (2 * M + 5, "2m5s"),
            (9 * M + 59, "9m59s"),
            (10 * M + 59, "10m"),
            (179 * M, "179m"),
            (3 * H, "3h"),
            (3 * H + 5 * M, "3h5m"),
            (7 * H + 59 * M, "7h59m"),
            (8 * H + 59 * M, "8h"),
            (47 * H + 59 * M, "47h"),
            (2 * D, "2d"),
            (2 * D + 3 * H, "2d3h"),
            (7 * D + 23 * H, "7d23h"),
            (8 * D + 23 * H, "8d"),
            (729 * D, "729d"),
            (2 * Y, "2y"),
            (2 * Y + 10 * D, "2y10d"),
            (7 * Y + 364 * D, "7y364d"),
            (8 * Y + 3 * D, "8y"),
        ];
        for (seconds, expect) in table {
            assert_eq!(human(seconds * 1000), expect, "{seconds}");
        }
    }

    #[test]
    fn the_age_column_needs_a_time() {
        let now = "2026-01-01T00:05:00Z".parse().unwrap();
        assert_eq!(age("2026-01-01T00:00:00Z", now), "5m");
        assert_eq!(age("", now), "<unknown>");
        assert_eq!(age("yesterday", now), "<invalid>");
    }

    #[test]
    fn spans_are_typed_as_in_go() {
        for (text, expect) in [
            ("1s", 1.0),
            ("2h45m", 9900.0),
            ("1.5h", 5400.0),
            ("300ms", 0.3),
            ("0", 0.0),
            ("-1s", -1.0),
            ("+2m", 120.0),
        ] {
            assert!((parse_seconds(text).unwrap() - expect).abs() < 1e-9, "{text}");
        }
        for (text, says) in [
            ("5", "missing unit"),
            ("", "invalid"),
            ("x", "invalid"),
            ("1d", "unknown unit"),
            ("1..s", "invalid"),
            ("9999999999999h", "invalid"),
        ] {
            assert!(parse_seconds(text).unwrap_err().contains(says), "{text}");
        }
        assert_eq!(parse_timeout("7"), Ok(Duration::from_secs(7)));
        assert!(parse_timeout("xx").unwrap_err().starts_with("Invalid timeout value"));
        assert_eq!(parse_wait("-1s"), Ok(Duration::from_secs(604_800)));
        assert!(parse("-1s").is_err());
    }
}
