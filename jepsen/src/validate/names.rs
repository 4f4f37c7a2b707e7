//! What DNS promises: a question that comes after an acknowledgement is answered from a state that has it, by any server,
//! unless the answer says that it is stale. No answer, and "can't tell", are never wrong.

use super::{anomaly, verdict};
use crate::history::Verdict;
use crate::workload::names::{Lookup, Record, Said};
use std::collections::BTreeMap;

/// Judges every question about a name whose life is known.
#[must_use]
pub fn names(lookups: &[Lookup], records: &[Record]) -> Verdict {
    let lives: BTreeMap<&str, &Record> = records.iter().map(|record| (record.name.as_str(), record)).collect();
    let mut found = Vec::new();
    let mut judged = 0;
    for lookup in lookups.iter().filter(|lookup| !lookup.stale) {
        let Some(record) = lives.get(lookup.name.as_str()) else { continue };
        let there = record.created <= lookup.asked && lookup.answered < record.removing;
        let gone = record.removed <= lookup.asked;
        let wrong = match &lookup.said {
            Said::Addresses(_) if gone => Some("removed before it was asked for"),
            Said::Nothing if there => Some("created before it was asked for, and not removed"),
            Said::Addresses(addresses) if addresses.as_slice() != [record.address] => Some("another address"),
            Said::Addresses(_) | Said::Nothing => None,
            Said::Failure | Said::Silence => continue,
        };
        judged += 1;
        if let Some(why) = wrong {
            let what =
                format!("n{} said {:?} of {}: {why} ({record:?}, {lookup:?})", lookup.node, lookup.said, lookup.name);
            found.push(anomaly("stale-dns", what));
        }
    }
    if judged == 0 { Verdict::Unknown("no answer of DNS could be judged".to_owned()) } else { verdict(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_was_acknowledged_before_they_were_asked_for() {
        let address = "10.96.0.7".parse().unwrap();
        let record = Record { name: "d".into(), address, created: 10, removing: 50, removed: 60 };
        let ask = |asked, said, stale| {
            let lookup = Lookup { name: "d".into(), node: 1, asked, answered: asked + 1, said, stale };
            matches!(names(&[lookup], std::slice::from_ref(&record)), Verdict::Broken(_))
        };
        let found = || Said::Addresses(vec![address]);
        let other = || Said::Addresses(vec!["10.96.0.8".parse().unwrap()]);
        assert!(!ask(5, Said::Nothing, false) && !ask(5, found(), false), "being created");
        assert!(!ask(20, found(), false) && ask(20, Said::Nothing, false) && !ask(20, Said::Nothing, true));
        assert!(ask(20, other(), false) && !ask(20, Said::Failure, false));
        assert!(!ask(55, found(), false) && !ask(55, Said::Nothing, false), "being removed");
        assert!(ask(70, found(), false) && !ask(70, found(), true) && !ask(70, Said::Nothing, false));
    }
}
