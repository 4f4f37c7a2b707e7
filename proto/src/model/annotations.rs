//! Annotations in the `fairlead.io/` domain: what Kubernetes' schema has no field for. Their names, values and checks.
//!
//! An unknown one in our domain is refused: it is a misspelt wish, and silence would be a wrong answer to it.

use crate::model::Invalid;
use crate::v1::{Kind, ObjectMeta};

/// The domain.
pub const DOMAIN: &str = "fairlead.io/";
/// On a Pod: its share of new connections, 0 to 1000; 1 if absent. 0 gets none, and keeps those it has.
pub const WEIGHT: &str = "fairlead.io/weight";
/// On a Service: time over which an endpoint that became ready comes up to its full share, as `30s` or `2m`.
pub const SLOW_START: &str = "fairlead.io/slow-start";
/// On a Service: how an endpoint is chosen, by the name of IPVS' scheduler.
pub const SCHEDULER: &str = "fairlead.io/scheduler";
/// On a Node, `true`: it is being drained. Its pods' endpoints are as if the pods terminated: they get nothing new while any
/// other is ready, and keep what they have.
pub const DRAIN: &str = "fairlead.io/drain";

/// Greatest weight.
pub const MOST_WEIGHT: u32 = 1_000;
/// Longest slow start, seconds.
pub const LONGEST_SLOW_START: u32 = 3_600;

/// How an endpoint is chosen. Every mode balances by weight where it doesn't know the scheduler; `mh` is consistent in
/// modes ipvs and nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Scheduler {
    /// In turn.
    RoundRobin,
    /// In turn, by weight.
    WeightedRoundRobin,
    /// To the one with the fewest connections.
    LeastConnection,
    /// The same, by weight.
    WeightedLeastConnection,
    /// By locality of the destination.
    LocalityLeastConnection,
    /// The same, with replicas.
    LocalityReplicated,
    /// By a hash of the destination.
    DestinationHashing,
    /// By a hash of the source.
    SourceHashing,
    /// To the one with the shortest delay to be expected.
    ShortestDelay,
    /// To an idle one, else by shortest delay.
    NeverQueue,
    /// To the greatest weight that is up.
    WeightedFailover,
    /// The same, on to the next once it has as many connections as its weight.
    WeightedOverflow,
    /// Maglev: by a hash of the source that moves few clients when endpoints change (Eisenbud et al., NSDI 2016).
    Maglev,
}

impl Scheduler {
    /// All, with the names that IPVS gives them.
    pub const ALL: [(Self, &'static str); 13] = [
        (Self::RoundRobin, "rr"),
        (Self::WeightedRoundRobin, "wrr"),
        (Self::LeastConnection, "lc"),
        (Self::WeightedLeastConnection, "wlc"),
        (Self::LocalityLeastConnection, "lblc"),
        (Self::LocalityReplicated, "lblcr"),
        (Self::DestinationHashing, "dh"),
        (Self::SourceHashing, "sh"),
        (Self::ShortestDelay, "sed"),
        (Self::NeverQueue, "nq"),
        (Self::WeightedFailover, "fo"),
        (Self::WeightedOverflow, "ovf"),
        (Self::Maglev, "mh"),
    ];

    /// IPVS' name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(one, _)| *one == self).map_or("rr", |(_, name)| name)
    }

    /// By IPVS' name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, one)| *one == name).map(|(scheduler, _)| *scheduler)
    }
}

/// A weight as written.
#[must_use]
pub fn parse_weight(text: &str) -> Option<u32> {
    text.parse().ok().filter(|weight| *weight <= MOST_WEIGHT)
}

/// A time as written, in seconds.
#[must_use]
pub fn parse_slow_start(text: &str) -> Option<u32> {
    let (number, unit) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 60),
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit).filter(|seconds| *seconds <= LONGEST_SLOW_START)
}

/// Checks what an object of a kind says in our domain.
pub fn validate(kind: Kind, metadata: &ObjectMeta, problems: &mut Vec<Invalid>) {
    let known: &[&str] = match kind {
        Kind::Pod => &[WEIGHT],
        Kind::Service => &[SLOW_START, SCHEDULER],
        Kind::Node => &[DRAIN],
        _ => &[],
    };
    for (key, value) in metadata.annotations.iter().filter(|(key, _)| key.starts_with(DOMAIN)) {
        let field = format!("metadata.annotations[{key}]");
        let problem = match key.as_str() {
            other if !known.contains(&other) => {
                problems.push(Invalid::not_supported("metadata.annotations", key, known));
                continue;
            }
            WEIGHT if parse_weight(value).is_none() => "must be a whole number between 0 and 1000".to_owned(),
            SLOW_START if parse_slow_start(value).is_none() => {
                "must be a time such as 30s or 2m, at most 60m".to_owned()
            }
            SCHEDULER if Scheduler::named(value).is_none() => {
                let names: Vec<&str> = Scheduler::ALL.iter().map(|(_, name)| *name).collect();
                format!("must be one of {}", names.join(", "))
            }
            DRAIN if value != "true" => "must be true, or the annotation absent".to_owned(),
            _ => continue,
        };
        problems.push(Invalid::invalid(field, value, &problem));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(kind: Kind, key: &str, value: &str) -> Vec<String> {
        let annotations = [(key.to_owned(), value.to_owned())].into();
        let mut problems = Vec::new();
        validate(kind, &ObjectMeta { annotations, ..ObjectMeta::default() }, &mut problems);
        problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message)).collect()
    }

    #[test]
    fn values_are_checked_and_typos_refused() {
        for (kind, key, value) in [
            (Kind::Pod, WEIGHT, "0"),
            (Kind::Pod, WEIGHT, "1000"),
            (Kind::Service, SLOW_START, "30s"),
            (Kind::Service, SLOW_START, "60m"),
            (Kind::Service, SCHEDULER, "mh"),
            (Kind::Node, DRAIN, "true"),
            (Kind::Service, "example.com/weight", "heavy"),
        ] {
            assert_eq!(problems(kind, key, value), [""; 0], "{key}={value}");
        }
        for (kind, key, value) in [
            (Kind::Pod, WEIGHT, "-1"),
            (Kind::Pod, WEIGHT, "1001"),
            (Kind::Pod, WEIGHT, "1.5"),
            (Kind::Service, SLOW_START, "30"),
            (Kind::Service, SLOW_START, "61m"),
            (Kind::Service, SLOW_START, "99999999999m"),
            (Kind::Service, SCHEDULER, "random"),
            (Kind::Service, WEIGHT, "1"),
            (Kind::Pod, "fairlead.io/wieght", "1"),
            (Kind::Node, SCHEDULER, "rr"),
            (Kind::Node, DRAIN, "false"),
            (Kind::Pod, DRAIN, "true"),
        ] {
            assert_eq!(problems(kind, key, value).len(), 1, "{key}={value}");
        }
    }

    #[test]
    fn schedulers_are_found_by_their_names() {
        for (scheduler, name) in Scheduler::ALL {
            assert_eq!((Scheduler::named(name), scheduler.name()), (Some(scheduler), name));
        }
    }
}
