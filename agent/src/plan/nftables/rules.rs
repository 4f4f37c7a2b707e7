//! One service as elements of the sets and maps: whom each kind of traffic reaches, who is masqueraded, what is refused.
//! Which endpoints there are to choose from is decided in `plan::service`; the fixed rules in `structure` read the maps.

use crate::plan::nftables::class::{Class, Classes};
use crate::plan::nftables::pool::{Pool, evolve, maglev, shares};
use crate::plan::nftables::set::{Bytes, CLASS_SHIFT, POOL_MASK, Set};
use crate::plan::service::{Backend, PortPlan, ports};
use crate::plan::{Family, NodeFacts};
use fairlead_proto::model::annotations::Scheduler;
use fairlead_proto::view::ServiceView;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Elements of a service in one family, by set and key.
pub type Elements = BTreeMap<(Set, Bytes), Bytes>;

/// A port of a service with the pools that carry it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// What is asked.
    pub plan: PortPlan,
    /// Endpoints of traffic that may go anywhere.
    pub cluster: Option<Pool>,
    /// Endpoints on this node.
    pub local: Option<Pool>,
}

/// A service's ports, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rules {
    /// IPv4.
    pub v4: Vec<Port>,
    /// IPv6.
    pub v6: Vec<Port>,
}

/// The same as they are kept: encoded, at a tenth of their size, since a node keeps those of all services and looks at few.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed(Box<[u8]>);

impl Packed {
    /// Out of what is kept.
    #[must_use]
    pub fn unpack(&self) -> Rules {
        // INVARIANT: what is encoded here were rules.
        postcard::from_bytes(&self.0).unwrap_or_default()
    }
}

impl From<&Rules> for Packed {
    fn from(rules: &Rules) -> Self {
        // Nothing in them can't be encoded.
        Self(postcard::to_allocvec(rules).unwrap_or_default().into_boxed_slice())
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.unpack().fmt(f)
    }
}

/// Numbers of pools in use, and the next to give. A number given back is not given again before all others were: a packet
/// that read it just before must not find another service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    used: std::collections::BTreeSet<u32>,
    last: u32,
}

impl Numbers {
    /// A free one; `None` if there is none left.
    pub fn give(&mut self) -> Option<u32> {
        if self.used.len() >= POOL_MASK as usize {
            return None;
        }
        loop {
            self.last = if self.last >= POOL_MASK { 1 } else { self.last + 1 };
            if self.used.insert(self.last) {
                return Some(self.last);
            }
        }
    }

    /// Goes on behind a number.
    pub fn go_past(&mut self, id: u32) {
        self.last = self.last.max(id.min(POOL_MASK));
    }

    /// Takes one that the kernel already knows; `false` if it is taken.
    pub fn take(&mut self, id: u32) -> bool {
        id != 0 && id <= POOL_MASK && self.used.insert(id)
    }

    /// Gives one back.
    pub fn free(&mut self, id: u32) {
        self.used.remove(&id);
    }
}

impl Rules {
    /// Compiles one service, keeping pools and slots of its former self.
    #[must_use]
    pub fn compile(
        view: &ServiceView,
        (facts, zone): (&NodeFacts, &str),
        old: Option<&Self>,
        numbers: &mut Numbers,
    ) -> Self {
        let mut of = |family| {
            let plans = ports(view, facts, (zone, family));
            let before = old.map_or(&[][..], |old| old.family(family));
            plans.into_iter().map(|plan| Port::place(plan, before, numbers)).collect()
        };
        Self { v4: of(Family::V4), v6: of(Family::V6) }
    }

    /// Of one family.
    #[must_use]
    pub fn family(&self, family: Family) -> &[Port] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// Of one family.
    pub fn family_mut(&mut self, family: Family) -> &mut Vec<Port> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Every pool.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6).flat_map(|port| port.cluster.iter().chain(&port.local))
    }

    /// Every pool.
    pub fn pools_mut(&mut self) -> impl Iterator<Item = &mut Pool> {
        self.v4.iter_mut().chain(&mut self.v6).flat_map(|port| port.cluster.iter_mut().chain(&mut port.local))
    }

    /// Its elements.
    #[must_use]
    pub fn elements(&self, family: Family, (facts, classes): (&NodeFacts, &Classes)) -> Elements {
        let mut elements = Elements::new();
        for port in self.family(family) {
            port.elements(facts, classes, &mut elements);
        }
        elements
    }

    /// Classes that its pools need.
    pub fn classes(&self, family: Family) -> impl Iterator<Item = Class> {
        self.family(family).iter().flat_map(Port::classes)
    }
}

impl Port {
    fn place(plan: PortPlan, before: &[Self], numbers: &mut Numbers) -> Self {
        // With another affinity it is another pool: clients remembered for the old one say nothing of the new.
        let same = |port: &&Self| {
            let key = |plan: &PortPlan| (plan.name.clone(), plan.protocol, plan.affinity_seconds);
            key(&port.plan) == key(&plan)
        };
        let old = before.iter().find(same);
        let mut pool = |old: Option<&Pool>, endpoints: &[Backend]| {
            if endpoints.is_empty() {
                return None;
            }
            let id = old.map(|pool| pool.id).or_else(|| numbers.give())?;
            let before = old.map_or(&[][..], |pool| &pool.slots);
            let slots = if is_maglev(&plan) { maglev(endpoints) } else { evolve(before, &shares(endpoints)) };
            Some(Pool { id, slots })
        };
        let cluster = pool(old.and_then(|old| old.cluster.as_ref()), &plan.cluster);
        let local = pool(old.and_then(|old| old.local.as_ref()), &plan.local);
        Self { plan, cluster, local }
    }

    fn classes(&self) -> impl Iterator<Item = Class> {
        self.cluster.iter().chain(&self.local).map(|pool| self.class(pool))
    }

    fn class(&self, pool: &Pool) -> Class {
        Class {
            protocol: self.plan.protocol,
            maglev: is_maglev(&self.plan),
            slots: u32::try_from(pool.slots.len()).unwrap_or(u32::MAX),
            affinity: self.plan.affinity_seconds,
        }
    }

    fn elements(&self, facts: &NodeFacts, classes: &Classes, elements: &mut Elements) {
        for pool in self.cluster.iter().chain(&self.local) {
            self.pool(pool, classes, elements);
        }
        self.cluster_ips(elements);
        for ip in self.plan.external_ips.iter().chain(&self.plan.load_balancer_ips) {
            let key = Bytes::frontend(*ip, self.plan.protocol, self.plan.port);
            self.outside(&key, &Door::ADDRESS, elements);
        }
        if let Some(port) = self.plan.node_port {
            self.outside(&Bytes::node_port(self.plan.protocol, port), &Door::NODE_PORT, elements);
        }
        if !self.plan.source_ranges.is_empty() && self.plan.has_endpoints {
            self.guard(facts, elements);
        }
    }

    fn pool(&self, pool: &Pool, classes: &Classes, elements: &mut Elements) {
        let Some(class) = classes.number(self.class(pool)) else {
            return;
        };
        let word = u32::from(class) << CLASS_SHIFT | pool.id;
        elements.insert((Set::Pools, Bytes::number(pool.id)), Bytes::number(word));
        for (slot, endpoint) in (0..).zip(&pool.slots) {
            elements
                .insert((Set::Endpoints(self.plan.protocol), Bytes::slot(pool.id, slot)), Bytes::endpoint(*endpoint));
            let pair = Bytes::address(endpoint.ip()).from_net(endpoint.ip().into());
            elements.insert((Set::Hairpins, pair), Bytes::none());
        }
        if let Some(seconds) = self.plan.affinity_seconds {
            elements.insert((Set::Sticky(seconds), Bytes::number(pool.id)), Bytes::none());
        }
    }

    fn cluster_ips(&self, elements: &mut Elements) {
        let pool = if self.plan.internal_local { &self.local } else { &self.cluster };
        for ip in &self.plan.cluster_ips {
            let key = Bytes::frontend(*ip, self.plan.protocol, self.plan.port);
            elements.insert((Set::ClusterIps, Bytes::address(*ip)), Bytes::none());
            match pool {
                Some(pool) => elements.insert((Set::Frontends, key), Bytes::number(pool.id)),
                None => elements.insert((self.refusal(self.plan.internal_local, &Door::ADDRESS), key), Bytes::none()),
            };
        }
    }

    /// A frontend that is meant for traffic from outside.
    fn outside(&self, key: &Bytes, door: &Door, elements: &mut Elements) {
        let mut put = |set, data| elements.insert((set, key.clone()), data);
        if let Some(pool) = &self.cluster {
            put(door.anyone, Bytes::number(pool.id));
        }
        if !self.plan.external_local {
            if self.cluster.is_some() {
                put(door.masqueraded, Bytes::none());
            } else {
                put(door.rejected, Bytes::none());
            }
            return;
        }
        put(door.local_policy, Bytes::none());
        match &self.local {
            Some(pool) => put(door.outside, Bytes::number(pool.id)),
            None => put(self.refusal(true, door), Bytes::none()),
        };
    }

    /// No endpoint anywhere is refused loudly; one that policy keeps away is not ours to refuse: another path may serve.
    fn refusal(&self, local: bool, door: &Door) -> Set {
        if local && self.plan.has_endpoints { door.dropped } else { door.rejected }
    }

    fn guard(&self, facts: &NodeFacts, elements: &mut Elements) {
        let ranges = &self.plan.source_ranges;
        let node = ranges.iter().any(|net| facts.node_ips.iter().any(|ip| net.contains(ip)));
        for ip in &self.plan.load_balancer_ips {
            let key = Bytes::frontend(*ip, self.plan.protocol, self.plan.port);
            // A node that is admitted may ask with the load balancer's own address as its source.
            let own = node.then(|| IpNet::from(*ip));
            for net in ranges.iter().copied().chain(own) {
                elements.insert((Set::Ranges(net.prefix_len()), key.from_net(net)), Bytes::none());
            }
            elements.insert((Set::Guarded, key), Bytes::none());
        }
        if let Some(port) = self.plan.node_port {
            let key = Bytes::node_port(self.plan.protocol, port);
            for net in ranges {
                elements.insert((Set::NodePortRanges(net.prefix_len()), key.from_net(*net)), Bytes::none());
            }
            elements.insert((Set::GuardedNodePorts, key), Bytes::none());
        }
    }
}

/// A place in a Maglev table means something: slots are not free to choose.
#[must_use]
pub fn is_maglev(plan: &PortPlan) -> bool {
    plan.scheduler == Some(Scheduler::Maglev)
}

/// The sets that a kind of frontend is in.
struct Door {
    anyone: Set,
    outside: Set,
    masqueraded: Set,
    local_policy: Set,
    rejected: Set,
    dropped: Set,
}

impl Door {
    const ADDRESS: Self = Self {
        anyone: Set::Frontends,
        outside: Set::Outside,
        masqueraded: Set::Masqueraded,
        local_policy: Set::LocalPolicy,
        rejected: Set::Rejected,
        dropped: Set::Dropped,
    };
    const NODE_PORT: Self = Self {
        anyone: Set::NodePorts,
        outside: Set::OutsideNodePorts,
        masqueraded: Set::MasqueradedNodePorts,
        local_policy: Set::LocalPolicyNodePorts,
        rejected: Set::RejectedNodePorts,
        dropped: Set::DroppedNodePorts,
    };
}
