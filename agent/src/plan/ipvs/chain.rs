//! The fixed rules around IPVS: whom it may take, who is masqueraded, what is refused. They look into sets, so services
//! come and go without a rule being written.
//!
//! Netfilter's order decides where a rule stands. What comes from elsewhere meets PREROUTING, INPUT, then IPVS, OUTPUT and
//! POSTROUTING; what the node itself sends meets mangle and nat OUTPUT, then IPVS, and filter OUTPUT only if IPVS left it.

use crate::plan::iptables::rule::MASQUERADE_MARK;
use crate::plan::ipvs::set::Set;
use crate::plan::{Family, NodeFacts};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A table of the packet filter, in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Marks and early drops.
    Mangle,
    /// Masquerading.
    Nat,
    /// Refusals.
    Filter,
}

impl Table {
    /// All.
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Nat, Self::Filter];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Match {
    /// Comes from elsewhere than there.
    NotFrom(IpNet),
    /// Goes there.
    To(IpNet),
    /// Is TCP.
    Tcp,
    /// Is the first of a connection.
    New,
    /// Belongs to one.
    Known,
    /// What the words say of it is in a set.
    In(Set, &'static str),
    /// It isn't.
    NotIn(Set, &'static str),
    /// Doesn't ask for masquerading.
    Unmarked,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Let through.
    Accept,
    /// Lost.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Refused by a TCP reset.
    Reset,
    /// Refused by ICMP.
    Reject,
    /// Asks for masquerading.
    Mark,
    /// Doesn't any more.
    Unmark,
    /// Its source becomes this node.
    Masquerade,
    /// Takes the mark that a set has for it.
    TakeMark(Set),
    /// Goes on in another chain.
    Jump(&'static str),
}

/// A rule: all conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions.
    pub matches: Vec<Match>,
    /// Target.
    pub target: Target,
}

impl Rule {
    /// Everything behind `-A CHAIN `, as `iptables-save` prints it.
    #[must_use]
    pub fn text(&self, family: Family) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        for one in &self.matches {
            let _ = match one {
                Match::NotFrom(net) => write!(text, "! -s {net} "),
                Match::To(net) => write!(text, "-d {net} "),
                Match::Tcp => write!(text, "-p tcp "),
                Match::New => write!(text, "-m conntrack --ctstate NEW "),
                Match::Known => write!(text, "-m conntrack --ctstate RELATED,ESTABLISHED "),
                Match::In(set, words) => write!(text, "-m set --match-set {} {words} ", set.name(family)),
                Match::NotIn(set, words) => write!(text, "-m set ! --match-set {} {words} ", set.name(family)),
                Match::Unmarked => write!(text, "-m mark ! --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} "),
            };
        }
        let _ = match self.target {
            Target::Accept => write!(text, "-j ACCEPT"),
            Target::Drop => write!(text, "-j DROP"),
            Target::Return => write!(text, "-j RETURN"),
            Target::Reset => write!(text, "-j REJECT --reject-with tcp-reset"),
            Target::Reject if family == Family::V4 => write!(text, "-j REJECT --reject-with icmp-port-unreachable"),
            Target::Reject => write!(text, "-j REJECT --reject-with icmp6-port-unreachable"),
            Target::Mark => write!(text, "-j MARK --set-xmark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x}"),
            Target::Unmark => write!(text, "-j MARK --set-xmark {MASQUERADE_MARK:#x}/0x0"),
            Target::Masquerade => write!(text, "-j MASQUERADE --random-fully"),
            Target::TakeMark(set) => write!(text, "-j SET --map-set {} dst,dst --map-mark", set.name(family)),
            Target::Jump(chain) => write!(text, "-j {chain}"),
        };
        text
    }
}

const OUTSIDE: &str = "FAIRLEAD-OUTSIDE";
const GUARD: &str = "FAIRLEAD-GUARD";
const MARK: &str = "FAIRLEAD-MARK";
const MARK_NODE: &str = "FAIRLEAD-MARK-NODE";
const POSTROUTING: &str = "FAIRLEAD-POSTROUTING";
const INPUT: &str = "FAIRLEAD-INPUT";
const OUTPUT: &str = "FAIRLEAD-OUTPUT";
const FORWARD: &str = "FAIRLEAD-FORWARD";
const REJECT: &str = "FAIRLEAD-REJECT";

/// Where the packet goes is in the set.
const TO: &str = "dst";
const TO_PORT: &str = "dst,dst";
/// And where it comes from.
const TO_PORT_FROM: &str = "dst,dst,src";

fn rule(matches: &[Match], target: Target) -> Rule {
    Rule { matches: matches.to_vec(), target }
}

/// Chains with their rules, by table.
pub type Chains = BTreeMap<(Table, String), Vec<Rule>>;

/// Our chains.
#[must_use]
pub fn chains(family: Family, facts: &NodeFacts) -> Chains {
    use Match::{In, New, NotIn, Tcp, To, Unmarked};
    let outside: Vec<Match> = facts.local_cidr(family).map(Match::NotFrom).into_iter().collect();
    let dropped = |drop: Match| rule(&[New, drop], Target::Drop);
    let guarded = rule(&[New, In(Set::Guarded, TO_PORT), NotIn(Set::Admitted, TO_PORT_FROM)], Target::Drop);
    let refused = |set, words| rule(&[New, In(set, words)], Target::Jump(REJECT));
    let unserved = || {
        let mut rules = vec![refused(Set::ClusterIps, TO), refused(Set::Addresses, TO)];
        let ranges = facts.service_cidrs.iter().filter(|net| Family::of(net.addr()) == family);
        rules.extend(ranges.map(|net| rule(&[To(*net), New], Target::Drop)));
        rules
    };
    let mut input = vec![guarded.clone(), refused(Set::Refused, TO_PORT), dropped(In(Set::Dropped, TO_PORT))];
    let from_outside = [&outside[..], &[New, In(Set::OutsideDropped, TO_PORT)]].concat();
    input.push(rule(&from_outside, Target::Drop));
    // For hosts that let nothing in: what is served is IPVS' to take, health checks are the agent's.
    input.extend([Set::Served, Set::Health].map(|set| rule(&[In(set, TO_PORT)], Target::Accept)));
    input.extend(unserved());
    let mut output = vec![refused(Set::Refused, TO_PORT)];
    output.extend(unserved());

    let mut mark = Vec::new();
    if facts.masquerade_all || !outside.is_empty() {
        // Traffic from outside to a ClusterIP may bounce off this node, so its answer must come back through it.
        let who = if facts.masquerade_all { &[][..] } else { &outside[..] };
        mark.push(rule(&[who, &[In(Set::ClusterIps, TO)]].concat(), Target::Mark));
    }
    mark.push(rule(&[In(Set::Masquerade, TO_PORT)], Target::Mark));
    // The node's own traffic is inside, but its address would not lead an answer back by the way it went.
    let node = [Set::Local, Set::OutsideDropped].map(|set| rule(&[In(set, TO_PORT)], Target::Mark));
    let all = [
        ((Table::Mangle, OUTSIDE), vec![rule(&[&outside[..], &[New]].concat(), Target::TakeMark(Set::Local))]),
        ((Table::Mangle, GUARD), vec![guarded, dropped(In(Set::Dropped, TO_PORT))]),
        ((Table::Nat, MARK), mark),
        ((Table::Nat, MARK_NODE), node.to_vec()),
        (
            (Table::Nat, POSTROUTING),
            vec![
                // A pod that reaches itself through a service must not see its own address as the source.
                rule(&[In(Set::Hairpin, TO_PORT_FROM)], Target::Masquerade),
                rule(&[Unmarked], Target::Return),
                // Cleared, lest the packet be masqueraded again if it traverses the stack once more.
                rule(&[], Target::Unmark),
                rule(&[], Target::Masquerade),
            ],
        ),
        ((Table::Filter, INPUT), input),
        ((Table::Filter, OUTPUT), output),
        // Answers are forwarded; so are connections that another mode began.
        ((Table::Filter, FORWARD), vec![rule(&[Match::Known], Target::Accept)]),
        ((Table::Filter, REJECT), vec![rule(&[Tcp], Target::Reset), rule(&[], Target::Reject)]),
    ];
    all.into_iter().map(|((table, name), rules)| ((table, name.to_owned()), rules)).collect()
}

/// Jumps from built-in chains to ours: each stands at the head of its chain.
pub const JUMPS: [(Table, &str, &str); 9] = [
    (Table::Mangle, "PREROUTING", OUTSIDE),
    (Table::Mangle, "OUTPUT", GUARD),
    (Table::Nat, "PREROUTING", MARK),
    (Table::Nat, "OUTPUT", MARK),
    (Table::Nat, "OUTPUT", MARK_NODE),
    (Table::Nat, "POSTROUTING", POSTROUTING),
    (Table::Filter, "INPUT", INPUT),
    (Table::Filter, "OUTPUT", OUTPUT),
    (Table::Filter, "FORWARD", FORWARD),
];

/// A jump's text.
#[must_use]
pub fn jump(chain: &str) -> String {
    format!("-j {chain}")
}
