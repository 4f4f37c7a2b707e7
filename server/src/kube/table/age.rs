//! How long ago something was, for people: two or three digits that matter (apimachinery's util/duration).

use jiff::Timestamp;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// How long before `now` (seconds since 1970) an RFC 3339 instant was; `<unknown>` if it is none, `<invalid>` if it is later.
#[must_use]
pub fn age(instant: &str, now: i64) -> String {
    seconds(instant).map_or_else(|| "<unknown>".to_owned(), |then| human_duration(now.saturating_sub(then)))
}

/// An RFC 3339 instant as seconds since 1970.
pub(super) fn seconds(instant: &str) -> Option<i64> {
    instant.parse().ok().map(Timestamp::as_second)
}

/// A number of seconds as Kubernetes' `HumanDuration` prints it. One second less than none still counts as none, since clocks
/// differ; less than that is `<invalid>`.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    let two = |whole: i64, part: i64, units: [&str; 2]| match (whole, part, units) {
        (whole, 0, [unit, _]) => format!("{whole}{unit}"),
        (whole, part, [unit, smaller]) => format!("{whole}{unit}{part}{smaller}"),
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 2 * MINUTE => format!("{seconds}s"),
        _ if seconds < 10 * MINUTE => two(seconds / MINUTE, seconds % MINUTE, ["m", "s"]),
        _ if seconds < 3 * HOUR => format!("{}m", seconds / MINUTE),
        _ if seconds < 8 * HOUR => two(seconds / HOUR, seconds % HOUR / MINUTE, ["h", "m"]),
        _ if seconds < 2 * DAY => format!("{}h", seconds / HOUR),
        _ if seconds < 8 * DAY => two(seconds / DAY, seconds % DAY / HOUR, ["d", "h"]),
        _ if seconds < 2 * YEAR => format!("{}d", seconds / DAY),
        _ if seconds < 8 * YEAR => two(seconds / YEAR, seconds % YEAR / DAY, ["y", "d"]),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_kubernetes() {
        for (seconds, expected) in [
            (i64::MIN, "<invalid>"),
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (121, "2m1s"),
            (599, "9m59s"),
            (600, "10m"),
            (3 * HOUR - 1, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 59, "3h"),
            (3 * HOUR + 60, "3h1m"),
            (8 * HOUR - 1, "7h59m"),
            (8 * HOUR, "8h"),
            (8 * HOUR + MINUTE, "8h"),
            (2 * DAY - 1, "47h"),
            (2 * DAY, "2d"),
            (5 * DAY + 3 * HOUR, "5d3h"),
            (8 * DAY - 1, "7d23h"),
            (8 * DAY, "8d"),
            (2 * YEAR - 1, "729d"),
            (2 * YEAR, "2y"),
            (2 * YEAR + DAY, "2y1d"),
            (8 * YEAR - 1, "7y364d"),
            (8 * YEAR, "8y"),
            (30 * YEAR, "30y"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn ages_are_of_the_instant_that_is_given() {
        let instant = "2023-11-14T22:13:20Z";
        for (now, expected) in [
            (1_700_000_000, "0s"),
            (1_700_000_090, "90s"),
            (1_699_999_999, "0s"),
            (1_699_999_990, "<invalid>"),
            (i64::MIN, "<invalid>"),
        ] {
            assert_eq!(age(instant, now), expected);
        }
        assert_eq!(age("2023-11-14T23:13:20.5+01:00", 1_700_000_007), "7s");
        for unknown in ["", "yesterday", "2023-11-14"] {
            assert_eq!(age(unknown, 0), "<unknown>", "{unknown}");
        }
    }

    /// Reads a duration back.
    fn read(text: &str) -> i64 {
        let mut total = 0;
        let mut digits = 0;
        for letter in text.chars() {
            let unit = match letter {
                's' => 1,
                'm' => MINUTE,
                'h' => HOUR,
                'd' => DAY,
                'y' => YEAR,
                digit => {
                    digits = digits * 10 + i64::from(digit.to_digit(10).unwrap());
                    continue;
                }
            };
            total += digits * unit;
            digits = 0;
        }
        total
    }

    proptest! {
        #[test]
        fn what_is_said_is_at_most_an_eighth_too_little(seconds in 0i64..20 * YEAR) {
            let said = read(&human_duration(seconds));
            prop_assert!(said <= seconds && (seconds - said) * 8 <= seconds, "{}", human_duration(seconds));
        }

        #[test]
        fn a_longer_time_is_never_said_to_be_shorter(one in 0i64..20 * YEAR, more in 0i64..DAY) {
            prop_assert!(read(&human_duration(one)) <= read(&human_duration(one + more)));
        }
    }
}
