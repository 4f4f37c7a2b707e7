//! The fixed part of a table: sets, chains and rules, as `nft` lists them. Services are elements only; what grows with
//! use is one chain a class, one rule an affinity time-out, and one a prefix length.
//!
//! How an endpoint is chosen (nat, prerouting and output): the frontend gives a pool, the pool gives a word (its class and
//! itself), the class gives a chain, and the chain draws a slot: (pool, slot) gives the endpoint. The word travels in
//! `meta priority`, the one scratch that lists cleanly; the packet mark is never written. It is put back right after.
//! A packet that reads a pool's word before a change and its slot after it finds slot 0: the second rule of each chain.

use crate::plan::nftables::class::Class;
use crate::plan::nftables::diff;
use crate::plan::nftables::op::Op;
use crate::plan::nftables::set::{Set, address_type, family_name};
use crate::plan::service::Protocol;
use crate::plan::{Family, NodeFacts};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Name of our tables.
pub const TABLE: &str = "fairlead";
/// Map of classes to chains.
pub const PICKS: &str = "picks";
/// Clients remembered at most, for each affinity time-out.
pub const MOST_CLIENTS: u32 = 262_144;

/// The same on every node, so that a client finds its endpoint by way of any of them.
const MAGLEV_SEED: &str = "0xf41e4d";

/// What services need beside elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Classes and their numbers.
    pub classes: BTreeMap<u16, Class>,
    /// Affinity time-outs, seconds.
    pub affinities: BTreeSet<u32>,
    /// Prefix lengths of source ranges.
    pub ranges: BTreeSet<u8>,
    /// The same of NodePorts.
    pub node_port_ranges: BTreeSet<u8>,
}

/// Sets and chains of a table: lines as `nft --terse list table` prints them, without indentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    /// Sets and maps.
    pub sets: BTreeMap<String, Vec<String>>,
    /// Chains; of a base chain the first line is its hook.
    pub chains: BTreeMap<String, Vec<String>>,
    /// Class → chain.
    pub picks: BTreeMap<u16, String>,
}

/// What a family's table should be.
#[must_use]
pub fn structure(family: Family, facts: &NodeFacts, needs: &Needs) -> Structure {
    let writer = Writer { family, facts, needs };
    let mut structure = Structure::default();
    writer.sets(&mut structure.sets);
    writer.fixed_chains(&mut structure.chains);
    for (number, class) in &needs.classes {
        structure.chains.insert(class.chain(), writer.pick(*class));
        structure.picks.insert(*number, class.chain());
    }
    structure
}

/// Ops that make a table with one of everything: for a kernel to be asked whether it would take it.
#[must_use]
pub fn sample(family: Family) -> Vec<Op> {
    let plain = Class { protocol: Protocol::Tcp, slots: 2, maglev: false, affinity: None };
    let needs = Needs {
        classes: BTreeMap::from([
            (1, plain),
            (2, Class { affinity: Some(60), ..plain }),
            (3, Class { maglev: true, ..plain }),
        ]),
        affinities: BTreeSet::from([60]),
        ranges: BTreeSet::from([24]),
        node_port_ranges: BTreeSet::from([24]),
    };
    let mut ops = vec![Op::Table { family }];
    diff::build(family, &Structure::default(), &structure(family, &NodeFacts::default(), &needs), &mut ops);
    ops
}

/// Name of the map of a time-out's clients to endpoints' addresses, and to their ports.
#[must_use]
pub fn client_maps(seconds: u32) -> [String; 2] {
    [format!("clients-{seconds}"), format!("client-ports-{seconds}")]
}

struct Writer<'a> {
    family: Family,
    facts: &'a NodeFacts,
    needs: &'a Needs,
}

impl Writer<'_> {
    fn sets(&self, sets: &mut BTreeMap<String, Vec<String>>) {
        let sticky = self.needs.affinities.iter().map(|seconds| Set::Sticky(*seconds));
        let ranges = self.needs.ranges.iter().map(|length| Set::Ranges(*length));
        let node_ports = self.needs.node_port_ranges.iter().map(|length| Set::NodePortRanges(*length));
        for set in Set::FIXED.into_iter().chain(sticky).chain(ranges).chain(node_ports) {
            sets.insert(set.name(), set.declaration(self.family));
        }
        sets.insert(PICKS.to_owned(), vec!["type classid : verdict".to_owned()]);
        let address = address_type(self.family);
        for seconds in &self.needs.affinities {
            for (name, data) in client_maps(*seconds).into_iter().zip([address, "inet_service"]) {
                let kind = match self.family {
                    Family::V4 => format!("type classid . {address} : {data}"),
                    Family::V6 if data == address => "typeof meta priority . @nh,96,96 : ip6 daddr".to_owned(),
                    Family::V6 => "typeof meta priority . @nh,96,96 : th dport".to_owned(),
                };
                let lines = [
                    kind,
                    format!("size {MOST_CLIENTS}"),
                    "flags dynamic,timeout".to_owned(),
                    format!("timeout {}", duration(*seconds)),
                ];
                sets.insert(name, lines.to_vec());
            }
        }
    }

    fn fixed_chains(&self, chains: &mut BTreeMap<String, Vec<String>>) {
        let mut base = |name: &str, hook: &str, rules: Vec<String>| {
            let line = format!("type {hook}; policy accept;");
            chains.insert(name.to_owned(), std::iter::once(line).chain(rules).collect());
        };
        let one = |rule: &str| vec![rule.to_owned()];
        base("check-prerouting", "filter hook prerouting priority dstnat - 10", one("ct state new jump check"));
        base("check-output", "filter hook output priority -110", one("ct state new jump check"));
        base("nat-prerouting", "nat hook prerouting priority dstnat", one("jump services"));
        base("nat-output", "nat hook output priority -100", one("jump services"));
        base("settle-prerouting", "filter hook prerouting priority dstnat + 1", one("ct state new jump settle"));
        base("settle-output", "filter hook output priority -99", one("ct state new jump settle"));
        base("filter-prerouting", "filter hook prerouting priority dstnat + 10", one("jump refuse"));
        base("filter-output", "filter hook output priority -90", one("jump refuse"));
        base("filter-forward", "filter hook forward priority filter", one("ct state invalid drop"));
        base("nat-postrouting", "nat hook postrouting priority srcnat", one("ct status dnat jump masquerading"));
        chains.insert("check".to_owned(), self.check());
        chains.insert("guard".to_owned(), self.guard());
        chains.insert("guard-node-ports".to_owned(), self.guard_node_ports());
        chains.insert("services".to_owned(), self.services());
        chains.insert("settle".to_owned(), self.settle());
        chains.insert("refuse".to_owned(), self.refuse());
        // ICMP is rationed, and Linux's IPv6 takes it as a hint that a second SYN must confirm; a reset is at once.
        let reject = ["meta l4proto tcp reject with tcp reset", "reject"];
        chains.insert("reject-it".to_owned(), reject.map(str::to_owned).to_vec());
        chains.insert("masquerading".to_owned(), self.masquerading());
    }

    fn ip(&self) -> &'static str {
        family_name(self.family)
    }

    fn frontend(&self) -> String {
        format!("{} daddr . meta l4proto . th dport", self.ip())
    }

    fn loopback(&self) -> &'static str {
        match self.family {
            Family::V4 => "127.0.0.0/8",
            Family::V6 => "::1",
        }
    }

    /// Matches sources outside of the cluster; the node itself is inside.
    fn outsiders(&self) -> String {
        let cidr = self.facts.local_cidr(self.family).map(|cidr| format!("{} saddr != {} ", self.ip(), shown(cidr)));
        format!("{}fib saddr type != local", cidr.unwrap_or_default())
    }

    fn check(&self) -> Vec<String> {
        vec![
            format!("{} @guarded jump guard", self.frontend()),
            format!(
                "fib daddr type local {} daddr != {} meta l4proto . th dport @guarded-node-ports jump guard-node-ports",
                self.ip(),
                self.loopback()
            ),
        ]
    }

    fn guard(&self) -> Vec<String> {
        let admitted = |length: &u8| {
            format!("{} . {} @{} return", self.frontend(), self.source(*length), Set::Ranges(*length).name())
        };
        self.needs.ranges.iter().map(admitted).chain(["drop".to_owned()]).collect()
    }

    fn guard_node_ports(&self) -> Vec<String> {
        let admitted = |length: &u8| {
            let set = Set::NodePortRanges(*length).name();
            format!("meta l4proto . th dport . {} @{set} return", self.source(*length))
        };
        self.needs.node_port_ranges.iter().map(admitted).chain(["drop".to_owned()]).collect()
    }

    /// The source's network of a prefix length.
    fn source(&self, length: u8) -> String {
        let zero = match self.family {
            Family::V4 => IpNet::new_assert(std::net::Ipv4Addr::UNSPECIFIED.into(), length.min(32)),
            Family::V6 => IpNet::new_assert(std::net::Ipv6Addr::UNSPECIFIED.into(), length.min(128)),
        };
        if length == zero.max_prefix_len() {
            format!("{} saddr", self.ip())
        } else {
            format!("{} saddr & {}", self.ip(), zero.netmask())
        }
    }

    fn services(&self) -> Vec<String> {
        let (outsiders, frontend) = (self.outsiders(), self.frontend());
        let draw = |key: &str, map: Set| {
            format!(
                "meta priority set {key} map @{} meta priority set meta priority map @pools meta priority & fff0:0 vmap @{PICKS}",
                map.name()
            )
        };
        let node_port = "meta l4proto . th dport";
        vec![
            format!("{outsiders} {frontend} @dropped drop"),
            format!("{outsiders} {}", draw(&frontend, Set::Outside)),
            draw(&frontend, Set::Frontends),
            "fib daddr type != local return".to_owned(),
            format!("{} daddr {} return", self.ip(), self.loopback()),
            format!("{outsiders} {node_port} @dropped-node-ports drop"),
            format!("{outsiders} {}", draw(node_port, Set::OutsideNodePorts)),
            draw(node_port, Set::NodePorts),
        ]
    }

    /// What a client is remembered by: its pool and its address. Of an IPv6 address the last 12 bytes: `nft` 1.0.6 gives a
    /// key that is to be updated 16 bytes, and writes the data over the rest of a longer one.
    fn client(&self) -> &'static str {
        match self.family {
            Family::V4 => "meta priority & f:ffff . ip saddr",
            Family::V6 => "meta priority & f:ffff . @nh,96,96",
        }
    }

    fn pick(&self, class: Class) -> Vec<String> {
        let protocol = format!("meta l4proto {}", class.protocol.name());
        let (ip, map) = (self.ip(), Set::Endpoints(class.protocol).name());
        let at = |slot: &str| format!("{protocol} dnat {ip} to meta priority & f:ffff . {slot} map @{map}");
        let drawn = |slots: u32| at(&format!("numgen random mod {slots}"));
        let mut rules = Vec::new();
        if let Some(seconds) = class.affinity {
            let key = self.client();
            let [addresses, ports] = client_maps(seconds);
            rules.push(format!("{protocol} dnat to {key} map @{addresses}:{key} map @{ports}"));
        }
        rules.push(if class.maglev {
            at(&format!("jhash {ip} saddr mod {} seed {MAGLEV_SEED}", class.slots))
        } else {
            drawn(class.slots)
        });
        rules.push(drawn(1));
        rules
    }

    /// Behind the choice: remembers clients, and puts the scratch back.
    fn settle(&self) -> Vec<String> {
        let mut rules = Vec::new();
        for seconds in &self.needs.affinities {
            let sticky = format!("ct status dnat meta priority & f:ffff == @{}", Set::Sticky(*seconds).name());
            let key = self.client();
            let [addresses, ports] = client_maps(*seconds);
            rules.push(format!("{sticky} update @{addresses} {{ {key} : {} daddr }}", self.ip()));
            rules.push(format!("{sticky} update @{ports} {{ {key} : th dport }}"));
        }
        rules.push("ct status dnat meta priority & fff0:0 != none meta priority set none".to_owned());
        rules
    }

    fn refuse(&self) -> Vec<String> {
        let (ip, frontend) = (self.ip(), self.frontend());
        let node_port = format!("fib daddr type local {ip} daddr != {} meta l4proto . th dport", self.loopback());
        let mut rules = vec![
            "ct status dnat accept".to_owned(),
            "ct state != new accept".to_owned(),
            format!("{frontend} @dropped drop"),
            format!("{frontend} @rejected goto reject-it"),
            format!("{ip} daddr @cluster-ips goto reject-it"),
            format!("{node_port} @dropped-node-ports drop"),
            format!("{node_port} @rejected-node-ports goto reject-it"),
        ];
        // An address that no service has: silence, as if there were no such host.
        let ranges = self.facts.service_cidrs.iter().filter(|cidr| Family::of(cidr.addr()) == self.family);
        rules.extend(ranges.map(|cidr| format!("{ip} daddr {} drop", shown(*cidr))));
        rules
    }

    fn masquerading(&self) -> Vec<String> {
        let ip = self.ip();
        let masquerade = "masquerade fully-random";
        let mut rules = vec![format!("{ip} saddr . {ip} daddr @hairpins {masquerade}")];
        let cluster = format!("ct original {ip} daddr @cluster-ips");
        match self.facts.local_cidr(self.family) {
            _ if self.facts.masquerade_all => rules.push(format!("{cluster} {masquerade}")),
            Some(cidr) => rules.push(format!("{cluster} {ip} saddr != {} {masquerade}", shown(cidr))),
            None => {}
        }
        rules.push(format!("{cluster} return"));
        let asked = |protocol: Protocol, what: &str| {
            let address =
                if what.ends_with("node-ports") { String::new() } else { format!("ct original {ip} daddr . ") };
            format!("meta l4proto {} {address}meta l4proto . ct original proto-dst @{what}", protocol.name())
        };
        for doors in [["masqueraded", "local-policy"], ["masqueraded-node-ports", "local-policy-node-ports"]] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let [always, local] = doors.map(|what| asked(protocol, what));
                rules.push(format!("{always} {masquerade}"));
                rules.push(format!("{local} fib saddr type local {masquerade}"));
                rules.push(format!("{local} return"));
            }
        }
        rules
    }
}

/// A network as `nft` lists it: a host without its length.
fn shown(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.trunc().to_string() }
}

/// Seconds as `nft` lists a time.
fn duration(seconds: u32) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_nft_lists_them() {
        for (seconds, text) in [(10_800, "3h"), (86_400, "1d"), (90, "1m30s"), (1, "1s")] {
            assert_eq!(duration(seconds), text);
        }
    }
}
