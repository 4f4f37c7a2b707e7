//! Rules of our tables, read: the words that `structure` writes, and no others. Not a parser of nftables.
//!
//! INVARIANT: a rule with a word that isn't ours is no sentence at all, so that nobody mistakes a part for the whole.

use crate::plan::Family;
use crate::plan::nftables::set::family_name;
use crate::plan::service::Protocol;
use ipnet::IpNet;
use std::net::IpAddr;

/// A part of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// Source address.
    Source,
    /// Its network of this mask.
    SourceUnder(IpAddr),
    /// The last 12 bytes of an IPv6 source address.
    SourceTail,
    /// Destination address.
    Destination,
    /// Destination address before rewriting.
    FirstDestination,
    /// Transport protocol.
    Protocol,
    /// Destination port.
    Port,
    /// Destination port before rewriting.
    FirstPort,
    /// The scratch word under this mask.
    Word(u32),
    /// A random number below this one.
    Draw(u32),
    /// A hash of the source below a number, with a seed.
    Hash(u32, u32),
}

/// Where a rule sends a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To a chain and back.
    Jump(String),
    /// To a chain, not back.
    Goto(String),
    /// Back.
    Return,
    /// Through this hook.
    Accept,
    /// Nowhere.
    Drop,
    /// Refused.
    Reject,
    /// Through, with the node's address as its source.
    Masquerade,
}

/// A match or an act of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phrase {
    /// The connection is in (or not in) a state.
    State(String, bool),
    /// Its destination was rewritten.
    Rewritten,
    /// The scratch word has a class.
    HasClass,
    /// The source (or destination) is an address of the node, or is not.
    Local(Side, bool),
    /// It is in a network, or is not.
    Net(Side, IpNet, bool),
    /// It has this protocol.
    Is(Protocol),
    /// A set has the key.
    In(Vec<Field>, String),
    /// The scratch word becomes what a map has.
    Load(Vec<Field>, String),
    /// The scratch word becomes empty.
    Clear,
    /// A map of chains has the key.
    Pick(Vec<Field>, String),
    /// The destination becomes what a map has.
    Rewrite(Vec<Field>, String),
    /// A client is remembered in a map.
    Remember(String),
    /// The rule ends.
    Verdict(Verdict),
}

/// End of a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A rule's phrases; `None`: it isn't one that we write.
#[must_use]
pub fn read(family: Family, rule: &str) -> Option<Vec<Phrase>> {
    let words = words(rule);
    let (mut rest, mut phrases) = (words.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (phrase, after) = phrase(family, rest)?;
        phrases.push(phrase);
        rest = after;
    }
    Some(phrases)
}

/// Words; a colon behind a map's name is one.
fn words(rule: &str) -> Vec<&str> {
    let split = |word: &'_ str| -> bool { word.starts_with('@') && word.contains(':') };
    let mut words = Vec::new();
    for word in rule.split_ascii_whitespace() {
        match word.split_once(':').filter(|_| split(word)) {
            Some((map, next)) => words.extend([map, ":", next]),
            None => words.push(word),
        }
    }
    words
}

type Rest<'a, 'b> = &'b [&'a str];

fn phrase<'a, 'b>(family: Family, words: Rest<'a, 'b>) -> Option<(Phrase, Rest<'a, 'b>)> {
    Some(match words {
        ["ct", "state", "!=", state, rest @ ..] => (Phrase::State((*state).to_owned(), true), rest),
        ["ct", "state", state, rest @ ..] => (Phrase::State((*state).to_owned(), false), rest),
        ["ct", "status", "dnat", rest @ ..] => (Phrase::Rewritten, rest),
        ["fib", side, "type", "!=", "local", rest @ ..] => (Phrase::Local(self::side(side)?, true), rest),
        ["fib", side, "type", "local", rest @ ..] => (Phrase::Local(self::side(side)?, false), rest),
        ["meta", "priority", "&", "fff0:0", "!=", "none", rest @ ..] => (Phrase::HasClass, rest),
        ["meta", "priority", "set", "none", rest @ ..] => (Phrase::Clear, rest),
        ["meta", "priority", "set", rest @ ..] => {
            let (key, map, rest) = mapped(family, rest)?;
            (Phrase::Load(key, map), rest)
        }
        ["dnat", of, "to", rest @ ..] if *of == family_name(family) => {
            let (key, map, rest) = mapped(family, rest)?;
            (Phrase::Rewrite(key, map), rest)
        }
        ["dnat", "to", rest @ ..] => {
            let (key, map, rest) = mapped(family, rest)?;
            let (same, _, rest) = mapped(family, rest.strip_prefix(&[":"])?)?;
            (Phrase::Rewrite(key.clone(), map), (same == key).then_some(rest)?)
        }
        ["update", map, "{", rest @ ..] => {
            let end = rest.iter().position(|word| *word == "}")?;
            (Phrase::Remember(name(map)?), rest.get(end + 1..)?)
        }
        _ => return verdict(words).or_else(|| compared(family, words)),
    })
}

fn side(word: &str) -> Option<Side> {
    match word {
        "saddr" => Some(Side::Source),
        "daddr" => Some(Side::Destination),
        _ => None,
    }
}

fn name(word: &str) -> Option<String> {
    word.strip_prefix('@').map(str::to_owned)
}

fn verdict<'a, 'b>(words: Rest<'a, 'b>) -> Option<(Phrase, Rest<'a, 'b>)> {
    let (verdict, rest) = match words {
        ["jump", chain, rest @ ..] => (Verdict::Jump((*chain).to_owned()), rest),
        ["goto", chain, rest @ ..] => (Verdict::Goto((*chain).to_owned()), rest),
        ["return", rest @ ..] => (Verdict::Return, rest),
        ["accept", rest @ ..] => (Verdict::Accept, rest),
        ["drop", rest @ ..] => (Verdict::Drop, rest),
        ["reject", "with", "tcp", "reset", rest @ ..] | ["reject", rest @ ..] => (Verdict::Reject, rest),
        ["masquerade", "fully-random", rest @ ..] => (Verdict::Masquerade, rest),
        _ => return None,
    };
    Some((Phrase::Verdict(verdict), rest))
}

/// A key, and what it is compared with.
fn compared<'a, 'b>(family: Family, words: Rest<'a, 'b>) -> Option<(Phrase, Rest<'a, 'b>)> {
    let (key, rest) = key(family, words)?;
    let (negated, rest) = match rest {
        ["!=", rest @ ..] => (true, rest),
        ["==", rest @ ..] => (false, rest),
        ["vmap", map, rest @ ..] => return Some((Phrase::Pick(key, name(map)?), rest)),
        _ => (false, rest),
    };
    let (value, rest) = rest.split_first()?;
    let phrase = match (key.as_slice(), name(value)) {
        (_, Some(set)) if !negated => Phrase::In(key, set),
        ([Field::Source], None) => Phrase::Net(Side::Source, net(value)?, negated),
        ([Field::Destination], None) => Phrase::Net(Side::Destination, net(value)?, negated),
        ([Field::Protocol], None) if !negated => Phrase::Is(protocol(value)?),
        _ => return None,
    };
    Some((phrase, rest))
}

fn net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn protocol(text: &str) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.name() == text)
}

/// `KEY map @MAP`.
fn mapped<'a, 'b>(family: Family, words: Rest<'a, 'b>) -> Option<(Vec<Field>, String, Rest<'a, 'b>)> {
    let (key, rest) = key(family, words)?;
    match rest {
        ["map", map, rest @ ..] => Some((key, name(map)?, rest)),
        _ => None,
    }
}

fn key<'a, 'b>(family: Family, words: Rest<'a, 'b>) -> Option<(Vec<Field>, Rest<'a, 'b>)> {
    let (first, mut rest) = field(family, words)?;
    let mut key = vec![first];
    while let [".", more @ ..] = rest {
        let (next, after) = field(family, more)?;
        key.push(next);
        rest = after;
    }
    Some((key, rest))
}

fn field<'a, 'b>(family: Family, words: Rest<'a, 'b>) -> Option<(Field, Rest<'a, 'b>)> {
    let ours = |of: &str| of == family_name(family);
    Some(match words {
        [of, "saddr", "&", mask, rest @ ..] if ours(of) => (Field::SourceUnder(mask.parse().ok()?), rest),
        [of, "saddr", rest @ ..] if ours(of) => (Field::Source, rest),
        [of, "daddr", rest @ ..] if ours(of) => (Field::Destination, rest),
        ["@nh,96,96", rest @ ..] if family == Family::V6 => (Field::SourceTail, rest),
        ["meta", "l4proto", rest @ ..] => (Field::Protocol, rest),
        ["th", "dport", rest @ ..] => (Field::Port, rest),
        ["ct", "original", of, "daddr", rest @ ..] if ours(of) => (Field::FirstDestination, rest),
        ["ct", "original", "proto-dst", rest @ ..] => (Field::FirstPort, rest),
        ["meta", "priority", "&", "f:ffff", rest @ ..] => (Field::Word(0x000f_ffff), rest),
        ["meta", "priority", "&", "fff0:0", rest @ ..] => (Field::Word(0xfff0_0000), rest),
        ["meta", "priority", rest @ ..] => (Field::Word(u32::MAX), rest),
        ["numgen", "random", "mod", count, rest @ ..] => (Field::Draw(count.parse().ok()?), rest),
        ["jhash", of, "saddr", "mod", count, "seed", seed, rest @ ..] if ours(of) => {
            let seed = u32::from_str_radix(seed.strip_prefix("0x")?, 16).ok()?;
            (Field::Hash(count.parse().ok()?, seed), rest)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::NodeFacts;
    use crate::plan::nftables::class::Class;
    use crate::plan::nftables::structure::{Needs, structure};
    use std::collections::BTreeSet;

    /// One of everything that `structure` can write.
    fn everything(family: Family) -> Vec<String> {
        let plain = Class { protocol: Protocol::Sctp, slots: 3, maglev: false, affinity: None };
        let classes = [plain, Class { affinity: Some(90), ..plain }, Class { maglev: true, ..plain }];
        let needs = Needs {
            classes: (1..).zip(classes).collect(),
            affinities: BTreeSet::from([90]),
            ranges: BTreeSet::from([0, 24, 32, 128]),
            node_port_ranges: BTreeSet::from([0, 24, 32, 128]),
        };
        let facts = |masquerade_all| NodeFacts {
            local_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap(), "fd00:96::/108".parse().unwrap()],
            masquerade_all,
            ..NodeFacts::default()
        };
        let tables = [false, true].map(|all| structure(family, &facts(all), &needs));
        let chains = tables.into_iter().flat_map(|table| table.chains.into_values());
        chains.flatten().filter(|line| !line.starts_with("type ")).collect()
    }

    #[test]
    fn every_rule_that_is_written_can_be_read() {
        for family in Family::ALL {
            let rules = everything(family);
            assert!(rules.len() > 80, "{}", rules.len());
            for rule in rules {
                assert!(read(family, &rule).is_some(), "{rule}");
            }
        }
    }

    #[test]
    fn a_rule_that_says_more_is_no_sentence() {
        for rule in [
            "counter packets 0 bytes 0 drop",
            "ip daddr @cluster-ips counter goto reject-it",
            "ip6 daddr @cluster-ips drop",
            "dnat ip to 10.0.0.1:80",
            "meta mark set 0x1",
            "drop comment \"x\"",
            "update @clients-60 { ip saddr : ip daddr",
            "ip daddr != @cluster-ips drop",
            "ip daddr",
        ] {
            assert_eq!(read(Family::V4, rule), None, "{rule}");
        }
        assert_eq!(read(Family::V4, ""), Some(Vec::new()));
    }

    #[test]
    fn parts_are_what_they_say() {
        let drawn = "meta l4proto tcp dnat ip to meta priority & f:ffff . numgen random mod 3 map @endpoints-tcp";
        assert_eq!(
            read(Family::V4, drawn).unwrap(),
            [
                Phrase::Is(Protocol::Tcp),
                Phrase::Rewrite(vec![Field::Word(0xf_ffff), Field::Draw(3)], "endpoints-tcp".into())
            ]
        );
        let guarded = "ip daddr != 127.0.0.0/8 meta l4proto . th dport @guarded-node-ports jump guard-node-ports";
        assert_eq!(
            read(Family::V4, guarded).unwrap(),
            [
                Phrase::Net(Side::Destination, "127.0.0.0/8".parse().unwrap(), true),
                Phrase::In(vec![Field::Protocol, Field::Port], "guarded-node-ports".into()),
                Phrase::Verdict(Verdict::Jump("guard-node-ports".into())),
            ]
        );
    }
}
