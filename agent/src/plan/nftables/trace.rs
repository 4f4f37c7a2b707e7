//! Follows packets through our nftables as a kernel was seen to hold them, and tells rule by rule what happens. Pure.
//!
//! The order is the kernel's: each hook's chains by priority, those of kind nat for the rewriting. A packet of the node to
//! itself comes in again through prerouting, where conntrack knows it and nothing is left to do: that pass is left out.
//! Clients that a map remembers are not read: [`Packet::remembered`] says whether this one is. INVARIANT: a rule that
//! `sentence` can't read ends in `End::Unknown`.

use crate::plan::nftables::op::element;
use crate::plan::nftables::sentence::{Field, Phrase, Side, Verdict, read};
use crate::plan::nftables::set::{Bytes, CLASS_SHIFT, POOL_MASK, Set, protocol_number};
use crate::plan::nftables::{Observed, Table};
use crate::plan::trace::{At, End, Journal, Packet, Traced, is_local};
use crate::plan::{Family, NodeFacts};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Where the kernel enters chains, as far as packets are followed.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];
/// Rules followed at most in one chain of a hook: a loop, which no kernel takes, ends here.
const RULES: usize = 100_000;

/// Follows packets.
#[must_use]
pub fn trace(observed: &Observed, facts: &NodeFacts, packets: &[Packet]) -> Vec<Traced> {
    let empty = Table::default();
    let programs = Family::ALL.map(|family| Program::of(family, observed.tables.get(&family).unwrap_or(&empty)));
    let follow = |packet: &Packet| {
        let program = &programs[usize::from(packet.destination.is_ipv6())];
        let mut tracer = Tracer { program, facts, packet, journal: Journal::default() };
        tracer.run();
        tracer.journal.done()
    };
    packets.iter().map(follow).collect()
}

/// A table whose rules were read.
struct Program<'a> {
    family: Family,
    table: &'a Table,
    chains: BTreeMap<&'a str, Vec<Line<'a>>>,
    hooks: Vec<Hook<'a>>,
    /// A chain that the kernel enters nobody knows where, and its first line.
    astray: Option<(&'a str, &'a str)>,
}

struct Line<'a> {
    text: &'a str,
    phrases: Option<Vec<Phrase>>,
}

/// A chain that the kernel enters.
struct Hook<'a> {
    kind: &'a str,
    hook: &'a str,
    priority: i32,
    drops: bool,
    chain: &'a str,
}

impl<'a> Program<'a> {
    fn of(family: Family, table: &'a Table) -> Self {
        let (mut chains, mut hooks, mut astray) = (BTreeMap::new(), Vec::new(), None);
        for (chain, lines) in &table.structure.chains {
            let begins = lines.first().is_some_and(|line| line.starts_with("type "));
            let line = |text: &'a String| Line { text, phrases: read(family, text) };
            if let Some(first) = lines.first().filter(|_| begins) {
                match Hook::read(chain, first) {
                    Some(hook) => hooks.push(hook),
                    None => astray = Some((chain.as_str(), first.as_str())),
                }
            }
            chains.insert(chain.as_str(), lines.iter().skip(usize::from(begins)).map(line).collect());
        }
        hooks.sort_by_key(|hook| hook.priority);
        Self { family, table, chains, hooks, astray }
    }

    fn element(&self, set: &str, key: &Bytes) -> Option<&Bytes> {
        self.table.elements.get(&(Set::named(set)?, key.clone()))
    }
}

impl<'a> Hook<'a> {
    /// `type nat hook prerouting priority dstnat + 1; policy accept;`
    fn read(chain: &'a str, line: &'a str) -> Option<Self> {
        let (first, policy) = line.strip_prefix("type ")?.split_once("; ")?;
        let (kind, rest) = first.split_once(" hook ")?;
        let (hook, priority) = rest.split_once(" priority ")?;
        HOOKS.contains(&hook).then_some(())?;
        let drops = match policy {
            "policy accept;" => false,
            "policy drop;" => true,
            _ => return None,
        };
        Some(Self { kind, hook, priority: self::priority(priority)?, drops, chain })
    }
}

fn priority(text: &str) -> Option<i32> {
    let named = [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    let (name, offset) = match text.split_once(' ') {
        Some((name, offset)) => (name, offset.replace(' ', "").parse::<i32>().ok()?),
        None => (text, 0),
    };
    let base = named.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    Some(base.or_else(|| name.parse().ok())? + offset)
}

/// What a packet has become.
#[derive(Clone)]
struct Walk {
    destination: SocketAddr,
    rewritten: bool,
    masqueraded: bool,
    /// The scratch word.
    word: u32,
    likely: f64,
}

/// A way through a hook: the packet, and the rules still before it, innermost chain last.
type Way<'a> = (Walk, Vec<(&'a str, usize)>);

/// What a rule leads to.
enum Turn {
    /// It doesn't apply, or has no verdict.
    Next,
    Verdict(Verdict),
    /// To endpoints, with the share of each; the rest goes on.
    Rewrite(BTreeMap<SocketAddr, f64>),
}

struct Tracer<'a> {
    program: &'a Program<'a>,
    facts: &'a NodeFacts,
    packet: &'a Packet,
    journal: Journal,
}

impl<'a> Tracer<'a> {
    fn is_local(&self, address: IpAddr) -> bool {
        is_local(self.facts, address)
    }

    fn run(&mut self) {
        if let Some((chain, rule)) = self.program.astray {
            self.journal.step(At { hook: "unknown", chain, rule }, "unknown hook: what it does can't be told", 1.0);
            self.journal.end(End::Unknown, 1.0);
            return;
        }
        let start =
            Walk { destination: self.packet.destination, rewritten: false, masqueraded: false, word: 0, likely: 1.0 };
        let from_here = self.is_local(self.packet.source);
        let walks = self.hook(vec![start], if from_here { "output" } else { "prerouting" });
        for arrives in [false, true] {
            let mut part: Vec<_> =
                walks.iter().filter(|walk| self.is_local(walk.destination.ip()) == arrives).cloned().collect();
            let hooks: &[&str] = match (from_here, arrives) {
                (true, true) => &["postrouting", "input"],
                (true, false) => &["postrouting"],
                (false, true) => &["input"],
                (false, false) => &["forward", "postrouting"],
            };
            for hook in hooks {
                part = self.hook(part, hook);
            }
            for walk in part {
                let end = End::Reaches { destination: walk.destination, masqueraded: walk.masqueraded };
                self.journal.end(end, walk.likely);
            }
        }
    }

    /// What comes out of a hook.
    fn hook(&mut self, mut walks: Vec<Walk>, name: &str) -> Vec<Walk> {
        let program = self.program;
        for hook in program.hooks.iter().filter(|hook| hook.hook == name) {
            let mut passed = Vec::new();
            for walk in walks {
                self.chain(walk, hook, &mut passed);
            }
            walks = passed;
        }
        walks
    }

    /// Every way through one of a hook's chains.
    fn chain(&mut self, walk: Walk, hook: &Hook<'a>, passed: &mut Vec<Walk>) {
        let label = format!("{} {}", hook.kind, hook.hook);
        let mut ways: Vec<Way<'a>> = vec![(walk, vec![(hook.chain, 0)])];
        let mut rules = 0;
        while let Some((walk, mut stack)) = ways.pop() {
            rules += 1;
            let Some((chain, at)) = stack.last_mut().map(|(chain, at)| {
                *at += 1;
                (*chain, *at - 1)
            }) else {
                if hook.drops {
                    self.journal.end(End::Dropped, walk.likely);
                } else {
                    passed.push(walk);
                }
                continue;
            };
            let line = self.program.chains.get(chain).map(|lines| lines.get(at));
            match line {
                _ if rules > RULES => self.journal.end(End::Unknown, walk.likely),
                Some(Some(line)) => {
                    let at = At { hook: &label, chain, rule: line.text };
                    self.rule((at, line), (walk, stack), (&mut ways, passed));
                }
                Some(None) => {
                    stack.pop();
                    ways.push((walk, stack));
                }
                None => self.journal.end(End::Unknown, walk.likely),
            }
        }
    }

    fn rule(
        &mut self,
        (at, line): (At<'_>, &'a Line<'a>),
        (mut walk, mut stack): Way<'a>,
        (ways, passed): (&mut Vec<Way<'a>>, &mut Vec<Walk>),
    ) {
        let Some(phrases) = &line.phrases else {
            self.journal.step(at, "unknown rule: what it does can't be told", walk.likely);
            self.journal.end(End::Unknown, walk.likely);
            return;
        };
        let mut effects = Vec::new();
        let turn = self.phrases(phrases, &mut walk, &mut effects);
        if !effects.is_empty() {
            self.journal.step(at, &effects.join("; "), walk.likely);
        }
        match turn {
            Turn::Next => ways.push((walk, stack)),
            Turn::Rewrite(shares) => {
                let missing = 1.0 - shares.values().sum::<f64>();
                if missing > 1e-9 {
                    ways.push((Walk { likely: walk.likely * missing, ..walk.clone() }, stack));
                }
                for (destination, share) in shares {
                    let likely = walk.likely * share;
                    passed.push(Walk { destination, rewritten: true, likely, ..walk.clone() });
                }
            }
            Turn::Verdict(Verdict::Jump(chain)) => {
                stack.extend(self.named(&chain).map(|chain| (chain, 0)));
                ways.push((walk, stack));
            }
            Turn::Verdict(Verdict::Goto(chain)) => {
                stack.pop();
                stack.extend(self.named(&chain).map(|chain| (chain, 0)));
                ways.push((walk, stack));
            }
            Turn::Verdict(Verdict::Return) => {
                stack.pop();
                ways.push((walk, stack));
            }
            Turn::Verdict(Verdict::Accept) => passed.push(walk),
            Turn::Verdict(Verdict::Masquerade) => passed.push(Walk { masqueraded: true, ..walk }),
            Turn::Verdict(Verdict::Drop) => self.journal.end(End::Dropped, walk.likely),
            Turn::Verdict(Verdict::Reject) => self.journal.end(End::Rejected, walk.likely),
        }
    }

    /// A chain's name for as long as the table lives.
    fn named(&self, chain: &str) -> Option<&'a str> {
        self.program.chains.get_key_value(chain).map(|(name, _)| *name)
    }

    /// What a rule's phrases do one after the other, until one doesn't hold.
    fn phrases(&self, phrases: &[Phrase], walk: &mut Walk, effects: &mut Vec<String>) -> Turn {
        for phrase in phrases {
            let holds = match phrase {
                Phrase::Load(key, map) => {
                    let key = self.key(walk, key, 0);
                    let found = self.program.element(map, &key).and_then(|data| data.number_at(0));
                    effects.push(self.look_up(map, (&key, found.is_some())));
                    walk.word = found.unwrap_or(walk.word);
                    found.is_some()
                }
                Phrase::In(key, set) => {
                    let key = self.key(walk, key, 0);
                    let holds = self.program.element(set, &key).is_some();
                    if holds {
                        effects.push(self.look_up(set, (&key, true)));
                    }
                    holds
                }
                Phrase::Clear => {
                    walk.word = 0;
                    effects.push("the scratch word is cleared".to_owned());
                    true
                }
                Phrase::Remember(_) => {
                    effects.push("remembers the client".to_owned());
                    true
                }
                Phrase::Pick(key, map) => return self.pick((walk, key), map, effects),
                Phrase::Rewrite(key, map) => return self.rewrite((walk, key), map, effects),
                Phrase::Verdict(verdict) => {
                    effects.push(said(verdict));
                    return Turn::Verdict(verdict.clone());
                }
                other => self.matches(other, walk),
            };
            if !holds {
                return Turn::Next;
            }
        }
        Turn::Next
    }

    fn matches(&self, phrase: &Phrase, walk: &Walk) -> bool {
        let address = |side: &Side| match side {
            Side::Source => self.packet.source,
            Side::Destination => walk.destination.ip(),
        };
        match phrase {
            Phrase::State(state, negated) => (state == "new") != *negated,
            Phrase::Rewritten => walk.rewritten,
            Phrase::HasClass => walk.word >> CLASS_SHIFT != 0,
            Phrase::Local(side, negated) => self.is_local(address(side)) != *negated,
            Phrase::Net(side, net, negated) => net.contains(&address(side)) != *negated,
            Phrase::Is(protocol) => self.packet.protocol == *protocol,
            _ => false,
        }
    }

    fn pick(&self, (walk, key): (&Walk, &[Field]), map: &str, effects: &mut Vec<String>) -> Turn {
        let class = self.key(walk, key, 0).number_at(0).unwrap_or_default() >> CLASS_SHIFT;
        let chain = u16::try_from(class).ok().and_then(|class| self.program.table.structure.picks.get(&class));
        match chain {
            Some(chain) => {
                effects.push(format!("class {class} of pool {} goes to {chain}", walk.word & POOL_MASK));
                Turn::Verdict(Verdict::Goto(chain.clone()))
            }
            None => {
                effects.push(format!("class {class} is not in {map}"));
                Turn::Next
            }
        }
    }

    fn rewrite(&self, (walk, key): (&Walk, &[Field]), map: &str, effects: &mut Vec<String>) -> Turn {
        let Some(Set::Endpoints(_)) = Set::named(map) else {
            return match self.packet.remembered {
                Some(endpoint) => {
                    effects.push(format!("the client is taken as remembered for {endpoint}"));
                    Turn::Rewrite(BTreeMap::from([(endpoint, 1.0)]))
                }
                None => {
                    effects.push(format!("the client is taken as not in {map}"));
                    Turn::Next
                }
            };
        };
        let pool = walk.word & POOL_MASK;
        let (slots, mut text) = self.slots(key);
        text.push_str(&format!(" of pool {pool}"));
        let all = f64::from(u32::try_from(slots.len()).unwrap_or(u32::MAX));
        let mut counts: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        let mut missing = 0_u32;
        for slot in slots {
            let data = self.program.element(map, &self.key(walk, key, slot));
            match data.and_then(|data| data.to_endpoint(self.program.family)) {
                Some(endpoint) => *counts.entry(endpoint).or_default() += 1,
                None => missing += 1,
            }
        }
        let endpoints = counts.iter().map(|(endpoint, count)| format!("{endpoint} in {count}"));
        for part in endpoints.chain((missing > 0).then(|| format!("nothing in {missing}"))) {
            text.push_str(", ");
            text.push_str(&part);
        }
        effects.push(text);
        Turn::Rewrite(counts.into_iter().map(|(endpoint, count)| (endpoint, f64::from(count) / all)).collect())
    }

    /// The slots that a key may mean, each as likely, and how that is said.
    fn slots(&self, key: &[Field]) -> (Vec<u32>, String) {
        for field in key {
            match field {
                Field::Draw(count) => return ((0..*count).collect(), format!("draws one of {count} slots")),
                Field::Hash(count, seed) => {
                    let slot = scaled(jhash(Bytes::address(self.packet.source).as_slice(), *seed), *count);
                    return (vec![slot], format!("the source's hash takes slot {slot} of {count}"));
                }
                _ => {}
            }
        }
        (vec![0], "takes slot 0".to_owned())
    }

    fn look_up(&self, set: &str, (key, found): (&Bytes, bool)) -> String {
        let family = self.program.family;
        let Some(known) = Set::named(set) else {
            return format!("{set} is not known");
        };
        let number = |bytes: &Bytes| bytes.number_at(0).unwrap_or_default();
        let data = number(self.program.element(set, key).unwrap_or(&Bytes::NONE));
        let shown = element(family, (known, key, &Bytes::NONE));
        let shown = match known {
            Set::Pools | Set::Sticky(_) => format!("pool {}", number(key) & POOL_MASK),
            _ => shown.split(" : ").next().unwrap_or_default().to_owned(),
        };
        match (found, known) {
            (true, Set::Pools) => format!("{shown} has class {}", data >> CLASS_SHIFT),
            (true, known) if known.is_map() => format!("{shown} in {set} has pool {data}"),
            (true, _) => format!("{shown} is in {set}"),
            (false, _) => format!("{shown} is not in {set}"),
        }
    }

    /// A key's bytes; `slot` stands for the number drawn.
    fn key(&self, walk: &Walk, fields: &[Field], slot: u32) -> Bytes {
        let mut bytes = Vec::new();
        let port = |port: u16| [port.to_be_bytes().as_slice(), &[0, 0]].concat();
        let address = |address: IpAddr| Bytes::address(address).as_slice().to_vec();
        for field in fields {
            bytes.extend(match field {
                Field::Source => address(self.packet.source),
                Field::SourceUnder(mask) => {
                    let both = address(self.packet.source).into_iter().zip(address(*mask));
                    both.map(|(source, mask)| source & mask).collect()
                }
                Field::SourceTail => address(self.packet.source).split_off(4),
                Field::Destination => address(walk.destination.ip()),
                Field::FirstDestination => address(self.packet.destination.ip()),
                Field::Protocol => vec![protocol_number(self.packet.protocol), 0, 0, 0],
                Field::Port => port(walk.destination.port()),
                Field::FirstPort => port(self.packet.destination.port()),
                Field::Word(mask) => (walk.word & mask).to_ne_bytes().to_vec(),
                Field::Draw(_) | Field::Hash(..) => slot.to_ne_bytes().to_vec(),
            });
        }
        Bytes::read(&bytes)
    }
}

/// A hash as a number below another one (the kernel's `reciprocal_scale`).
fn scaled(hash: u32, below: u32) -> u32 {
    u32::try_from((u64::from(hash) * u64::from(below)) >> 32).unwrap_or_default()
}

/// Bob Jenkins' hash as the kernel has it (include/linux/jhash.h), of bytes that are whole words.
fn jhash(bytes: &[u8], seed: u32) -> u32 {
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    let mut words: Vec<u32> =
        bytes.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect();
    let start = 0xdead_beef_u32.wrapping_add(length).wrapping_add(seed);
    let mut state = [start; 3];
    let add = |state: &mut [u32; 3], words: &[u32]| {
        for (sum, word) in state.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    };
    while words.len() > 3 {
        add(&mut state, &words);
        words.drain(..3);
        // Each step takes the word after, then the one before is added to: (a, c, b), (b, a, c), (c, b, a), twice.
        for (step, turn) in [4, 6, 8, 16, 19, 4].into_iter().enumerate() {
            let (one, two, three) = (step % 3, (step + 2) % 3, (step + 1) % 3);
            state[one] = state[one].wrapping_sub(state[two]) ^ state[two].rotate_left(turn);
            state[two] = state[two].wrapping_add(state[three]);
        }
    }
    if words.is_empty() {
        return state[2];
    }
    add(&mut state, &words);
    for (step, turn) in [14, 11, 25, 16, 4, 14, 24].into_iter().enumerate() {
        let (one, two) = ((step + 2) % 3, (step + 1) % 3);
        state[one] = (state[one] ^ state[two]).wrapping_sub(state[two].rotate_left(turn));
    }
    state[2]
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => format!("goes into {chain}"),
        Verdict::Return => "goes back".to_owned(),
        Verdict::Accept => "lets it through".to_owned(),
        Verdict::Drop => "drops it".to_owned(),
        Verdict::Reject => "refuses it".to_owned(),
        Verdict::Masquerade => "puts the node's address in the source's place".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What its C gives on a little-endian machine; the kernel tests ask the kernel itself.
    #[test]
    #[cfg(target_endian = "little")]
    fn hashes_are_the_kernels() {
        let mut six = [0; 16];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        six[15] = 2;
        assert_eq!(jhash(&[192, 0, 2, 2], 0xf4_1e4d), 0x46b4_6da9);
        assert_eq!(jhash(&[192, 0, 2, 2], 0), 0x36a1_c746);
        assert_eq!(jhash(&six, 0xf4_1e4d), 0x4810_c211);
        assert_eq!(jhash(&[], 0), 0xdead_beef);
        assert_eq!((scaled(0, 4_093), scaled(u32::MAX, 4_093), scaled(1 << 31, 4_093)), (0, 4_092, 2_046));
    }

    #[test]
    fn priorities_are_the_kernels_numbers() {
        for (text, number) in [
            ("dstnat", Some(-100)),
            ("dstnat - 10", Some(-110)),
            ("dstnat + 1", Some(-99)),
            ("-90", Some(-90)),
            ("srcnat", Some(100)),
            ("nowhere", None),
            ("dstnat - x", None),
        ] {
            assert_eq!(priority(text), number, "{text}");
        }
        assert!(Hook::read("x", "type filter hook input priority filter; policy accept;").is_some());
        assert!(Hook::read("x", "type filter hook input device eth0 priority 0; policy queue;").is_none());
    }
}
