//! IPVS in memory: executes ops as the kernel does, refuses what the kernel refuses, and follows a packet to its ends. Pure.
//!
//! The order is the kernel's: what comes from elsewhere meets mangle and nat PREROUTING, INPUT, IPVS, POSTROUTING; what the
//! node sends meets mangle and nat OUTPUT, IPVS, then filter OUTPUT if IPVS left it. Only the first packet of a connection
//! is followed. INVARIANT: after every op, rules look into sets that are there and jump to chains that are there.

use crate::kernel::trace::{End, Ends};
use crate::kernel::{Kernel, KernelError};
use crate::plan::ipvs::chain::{self, Chains, JUMPS, Match, Rule, Table, Target};
use crate::plan::ipvs::{Element, IpvsPlane, Objects, Op, Set, Virtual};
use crate::plan::service::Protocol;
use crate::plan::{Family, NodeFacts};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Chains followed at most: a loop ends here.
const DEPTH: usize = 16;

/// First packet of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes.
    pub destination: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// Executes a batch, op by op, as the kernel gets it.
///
/// # Errors
/// The first op that the kernel would refuse; those before it are done.
pub fn execute(objects: &mut Objects, ops: &[Op]) -> Result<(), KernelError> {
    let mut rank = 0;
    for op in ops {
        if op.rank() < rank {
            return Err(refused(op, "out of order"));
        }
        rank = op.rank();
        check(objects, op)?;
        objects.replay(op);
    }
    Ok(())
}

fn refused(op: &Op, why: &str) -> KernelError {
    KernelError::Refused(format!("{why}: {op}"))
}

fn check(objects: &Objects, op: &Op) -> Result<(), KernelError> {
    let tables = |family: &Family| objects.families.get(family);
    let has_set = |family: &Family, set: &Set| tables(family).is_some_and(|tables| tables.sets.contains_key(set));
    let has_chain = |family: &Family, table: &Table, name: &str| {
        tables(family).is_some_and(|tables| tables.chains.contains_key(&(*table, name.to_owned())))
    };
    let why = match op {
        Op::Create { family, set } if has_set(family, set) => "the set is there",
        Op::Put { set, element, .. } | Op::Remove { set, element } if !has_set(&element.family(), set) => "no such set",
        Op::Destroy { name } if is_looked_into(objects, name) => "a rule looks into the set",
        Op::Chain { family, lines, .. }
            if lines.iter().flat_map(|line| sets_of(line)).any(|(_, set)| !has_set(family, &set)) =>
        {
            "no set to look into"
        }
        Op::Jump { family, table, line, .. } if !has_chain(family, table, line.trim_start_matches("-j ")) => {
            "no chain to jump to"
        }
        Op::DropChain { family, table, name } if !has_chain(family, table, name) || is_jumped_to(objects, op) => {
            "no such chain, or a rule jumps to it"
        }
        Op::Unjump { family, table, chain, line } => {
            let lines = tables(family).and_then(|tables| tables.jumps.get(&(*table, chain.clone())));
            if lines.is_some_and(|lines| lines.contains(line)) {
                return Ok(());
            }
            "no such rule"
        }
        Op::Add { at, .. } if objects.servers.contains_key(at) || objects.foreign.contains(at) => {
            "the virtual server is there"
        }
        // Else it would be nobody's after a crash.
        Op::Add { at, .. } if !objects.owns(at) => "no set knows the virtual server",
        Op::Delete { at } if !objects.owns(at) => "no set knows the virtual server any more",
        Op::Edit { at, .. } | Op::Delete { at } if !objects.servers.contains_key(at) => "no such virtual server",
        Op::Real { at, address, is_new, .. }
            if objects.servers.get(at).is_none_or(|server| server.reals.contains_key(address) == *is_new) =>
        {
            "no virtual server, or its real server is there or isn't"
        }
        Op::Unreal { at, address }
            if objects.servers.get(at).is_none_or(|server| !server.reals.contains_key(address)) =>
        {
            "no such real server"
        }
        Op::Route { .. } if !objects.device => "no device",
        Op::Unroute { net, .. } if !objects.routes.contains_key(net) => "no such route",
        _ => return Ok(()),
    };
    Err(refused(op, why))
}

/// Sets that a rule's text names.
fn sets_of(line: &str) -> Vec<(Family, Set)> {
    line.split(' ').filter_map(Set::named).collect()
}

fn is_looked_into(objects: &Objects, name: &str) -> bool {
    let lines = objects.families.values().flat_map(|tables| tables.chains.values().flatten());
    lines.flat_map(|line| line.split(' ')).any(|word| word == name)
}

fn is_jumped_to(objects: &Objects, op: &Op) -> bool {
    let Op::DropChain { family, table, name } = op else {
        return false;
    };
    let jumps = objects.families.get(family).into_iter().flat_map(|tables| &tables.jumps);
    jumps.filter(|((of, _), _)| of == table).any(|(_, lines)| lines.contains(&chain::jump(name)))
}

/// A model as a kernel.
#[derive(Debug, Default)]
pub struct IpvsModel {
    objects: Mutex<Objects>,
}

impl IpvsModel {
    /// Changes what it holds behind everybody's back.
    pub fn tamper(&self, change: impl FnOnce(&mut Objects)) {
        change(&mut self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kernel<IpvsPlane> for IpvsModel {
    fn mode(&self) -> &'static str {
        "model"
    }

    fn observe(&self) -> Result<Objects, KernelError> {
        Ok(self.lock().clone())
    }

    fn execute(&self, ops: &[Op]) -> Result<(), KernelError> {
        execute(&mut self.lock(), ops)
    }
}

enum Verdict {
    Pass,
    Rejected,
    Dropped,
    Masquerade,
}

/// A packet on its way.
#[derive(Clone, Copy)]
struct Walk {
    packet: Packet,
    destination: SocketAddr,
    /// The whole packet mark.
    mark: u32,
}

struct Tracer<'a> {
    objects: &'a Objects,
    chains: Chains,
    family: Family,
}

/// Follows a packet through a node that holds some objects; every end that is possible, with its probability. Rules that
/// `facts` don't give are passed over.
#[must_use]
pub fn trace(objects: &Objects, facts: &NodeFacts, packet: &Packet) -> Ends {
    let family = Family::of(packet.destination.ip());
    let tracer = Tracer { objects, chains: chain::chains(family, facts), family };
    let is_node = facts.node_ips.contains(&packet.source);
    let is_local = facts.node_ips.contains(&packet.destination.ip())
        || objects.routes.keys().any(|net| net.contains(&packet.destination.ip()));
    let mut walk = Walk { packet: *packet, destination: packet.destination, mark: 0 };
    let first = if is_node { "OUTPUT" } else { "PREROUTING" };
    // IPVS takes the node's own packets before the filter does.
    let mut hooks = vec![(Table::Mangle, first), (Table::Nat, first)];
    if !is_node && is_local {
        hooks.push((Table::Filter, "INPUT"));
    }
    for hook in hooks {
        if let Some(end) = end(tracer.hook(hook, &mut walk)) {
            return Ends::from([(end, 1.0)]);
        }
    }
    let by_mark = tracer.objects.servers.get(&Virtual::Mark(family, walk.mark));
    let by_address = || objects.servers.get(&Virtual::Address(packet.protocol, packet.destination));
    match by_mark.or_else(by_address).filter(|_| is_local) {
        Some(server) if server.reals.values().all(|weight| *weight == 0) => Ends::from([(End::Rejected, 1.0)]),
        Some(server) => {
            let all: u32 = server.reals.values().sum();
            let live = server.reals.iter().filter(|(_, weight)| **weight > 0);
            live.map(|(address, weight)| {
                let mut walk = Walk { destination: *address, ..walk };
                (tracer.leave(&mut walk), f64::from(*weight) / f64::from(all))
            })
            .collect()
        }
        None => {
            let filter = if is_node { tracer.hook((Table::Filter, "OUTPUT"), &mut walk) } else { Verdict::Pass };
            Ends::from([(end(filter).unwrap_or_else(|| tracer.leave(&mut walk)), 1.0)])
        }
    }
}

fn end(verdict: Verdict) -> Option<End> {
    match verdict {
        Verdict::Rejected => Some(End::Rejected),
        Verdict::Dropped => Some(End::Dropped),
        Verdict::Pass | Verdict::Masquerade => None,
    }
}

impl Tracer<'_> {
    fn leave(&self, walk: &mut Walk) -> End {
        let masqueraded = matches!(self.hook((Table::Nat, "POSTROUTING"), walk), Verdict::Masquerade);
        End::Reaches { destination: walk.destination, masqueraded }
    }

    /// Our chains of a hook, where they are in place.
    fn hook(&self, (table, hook): (Table, &str), walk: &mut Walk) -> Verdict {
        let in_place = self.objects.families.get(&self.family).and_then(|all| all.jumps.get(&(table, hook.to_owned())));
        for (_, _, name) in JUMPS.iter().filter(|(of, from, _)| (*of, *from) == (table, hook)) {
            if in_place.is_some_and(|lines| lines.contains(&chain::jump(name))) {
                match self.chain((table, name), walk, DEPTH) {
                    Verdict::Pass => {}
                    verdict => return verdict,
                }
            }
        }
        Verdict::Pass
    }

    fn chain(&self, (table, name): (Table, &str), walk: &mut Walk, depth: usize) -> Verdict {
        let key = (table, name.to_owned());
        let lines = self.objects.families.get(&self.family).and_then(|tables| tables.chains.get(&key));
        let known = self.chains.get(&key).map_or(&[][..], Vec::as_slice);
        for line in lines.into_iter().flatten() {
            let Some(rule) = known.iter().find(|rule| rule.text(self.family) == *line) else {
                continue;
            };
            if !self.matches(rule, walk) {
                continue;
            }
            match rule.target {
                Target::Accept | Target::Return => return Verdict::Pass,
                Target::Drop => return Verdict::Dropped,
                Target::Reset | Target::Reject => return Verdict::Rejected,
                Target::Masquerade => return Verdict::Masquerade,
                Target::Mark => walk.mark |= crate::plan::iptables::rule::MASQUERADE_MARK,
                Target::Unmark => walk.mark ^= crate::plan::iptables::rule::MASQUERADE_MARK,
                Target::TakeMark(set) => walk.mark = self.mark(set, walk).unwrap_or(walk.mark),
                Target::Jump(next) if depth > 0 => match self.chain((table, next), walk, depth - 1) {
                    Verdict::Pass => {}
                    verdict => return verdict,
                },
                Target::Jump(_) => {}
            }
        }
        Verdict::Pass
    }

    fn mark(&self, set: Set, walk: &Walk) -> Option<u32> {
        let element = Element::Port(walk.destination.ip(), walk.packet.protocol, walk.destination.port());
        self.objects.families.get(&self.family)?.sets.get(&set)?.get(&element).copied()
    }

    fn matches(&self, rule: &Rule, walk: &Walk) -> bool {
        rule.matches.iter().all(|one| match one {
            Match::NotFrom(net) => !net.contains(&walk.packet.source),
            Match::To(net) => net.contains(&walk.destination.ip()),
            Match::Tcp => walk.packet.protocol == Protocol::Tcp,
            Match::New => true,
            Match::Known => false,
            Match::In(set, _) => self.is_in(*set, walk),
            Match::NotIn(set, _) => !self.is_in(*set, walk),
            Match::Unmarked => walk.mark & crate::plan::iptables::rule::MASQUERADE_MARK == 0,
        })
    }

    fn is_in(&self, set: Set, walk: &Walk) -> bool {
        let elements = self.objects.families.get(&self.family).and_then(|tables| tables.sets.get(&set));
        let (ip, protocol, port) = (walk.destination.ip(), walk.packet.protocol, walk.destination.port());
        let Some(elements) = elements else {
            return false;
        };
        match set.kind() {
            "hash:ip" => elements.contains_key(&Element::Ip(ip)),
            "hash:ip,port,ip" => elements.contains_key(&Element::PortIp(ip, protocol, port, walk.packet.source)),
            "hash:ip,port,net" => elements.keys().any(|element| match element {
                Element::PortNet(to, by, at, net) => {
                    (*to, *by, *at) == (ip, protocol, port) && net.contains(&walk.packet.source)
                }
                _ => false,
            }),
            _ => elements.contains_key(&Element::Port(ip, protocol, port)),
        }
    }
}
