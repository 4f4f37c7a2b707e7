//! The broken behaviours of a build with the feature `mutants`, and the scenario that must find each.

/// Name and scenario.
pub const ALL: [(&str, &str); 25] = [
    ("StaleRead", "pause"),
    ("StaleList", "pause"),
    ("StaleWatchStart", "partition"),
    ("ReadBeforeApply", "pause"),
    ("LateRound", "pause"),
    ("TornList", "members"),
    ("NoDedupe", "kill"),
    ("RetryAsNew", "kill"),
    ("UnknownAsRefused", "kill"),
    ("AckBeforeWrite", "kill"),
    ("NoSync", "power"),
    ("LeaderRestore", "kill"),
    ("BlindCas", "members"),
    ("SilentDelete", "members"),
    ("AddressTwice", "members"),
    ("PortsNotLoaded", "members"),
    ("ClockInApply", "members"),
    ("WatchResumesLate", "members"),
    ("WatchRepeats", "members"),
    ("EarlyBookmark", "members"),
    ("WatchForgetsDeletes", "members"),
    ("DnsFromMemory", "pause"),
    ("DnsUnmarked", "partition"),
    ("FlushOnStart", "agents"),
    ("FlushOnDisconnect", "agents"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_of_the_program_is_looked_for() {
        let source = include_str!("../../proto/src/mutant.rs");
        let body = source.split("pub enum Mutant {").nth(1).unwrap().split('}').next().unwrap();
        let names = body.lines().map(str::trim).filter(|line| line.ends_with(',') && !line.starts_with("//"));
        let mut there: Vec<&str> = names.map(|line| line.trim_end_matches(',')).collect();
        let mut looked_for: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        there.sort_unstable();
        looked_for.sort_unstable();
        assert_eq!(looked_for, there);
        for (name, scenario) in ALL {
            assert!(crate::scenario::named(scenario).is_some(), "{name} in {scenario}");
        }
    }
}
