//! Which remembered flows a change of rules leaves pointing at the wrong place. Pure; the same for every plane.
//!
//! The kernel decides a flow's endpoint once and remembers it while packets come. UDP and SCTP flows to an endpoint that is
//! gone would be lost for as long as the client sends (kubernetes/kubernetes#139628, #141275); a TCP client of a dead pod
//! would wait for minutes. Laws: no flow to an endpoint that is served or kept is selected; TCP is selected only where the
//! frontend is still there, since the pods of a deleted service may live on, as its connections then do in Kubernetes.

use crate::plan::service::{Backend, PortPlan, Protocol};
use crate::plan::{Family, NodeFacts};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Where clients send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// Protocol.
    pub protocol: Protocol,
    /// Address; `None`: any (a NodePort).
    pub address: Option<IpAddr>,
    /// Port.
    pub port: u16,
}

/// Who answers a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answered {
    /// This endpoint.
    By(SocketAddr),
    /// The very address that it was sent to: there were no rules yet.
    Itself,
    /// An endpoint that is none of these.
    ByOthersThan(BTreeSet<SocketAddr>),
}

/// Flows to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flows {
    /// Family.
    pub family: Family,
    /// Where they go.
    pub frontend: Frontend,
    /// Who answers them.
    pub answered: Answered,
}

impl Flows {
    /// The one address that answers them all, if it is one.
    #[must_use]
    pub fn answering(&self) -> Option<IpAddr> {
        match &self.answered {
            Answered::By(endpoint) => Some(endpoint.ip()),
            Answered::Itself => self.frontend.address,
            Answered::ByOthersThan(_) => None,
        }
    }
}

/// A flow that the kernel remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Protocol.
    pub protocol: Protocol,
    /// Where the client sends to.
    pub destination: SocketAddr,
    /// Where answers come from; the destination itself if nobody translated it.
    pub answered_from: SocketAddr,
}

impl Answered {
    /// True if a flow is answered so.
    #[must_use]
    pub fn fits(&self, flow: &Flow) -> bool {
        match self {
            Self::By(endpoint) => flow.answered_from == *endpoint,
            Self::Itself => flow.answered_from == flow.destination,
            Self::ByOthersThan(endpoints) => {
                flow.answered_from != flow.destination && !endpoints.contains(&flow.answered_from)
            }
        }
    }
}

/// What is behind a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Some endpoint gets new flows.
    pub serves: bool,
    /// Endpoints whose flows live: those that get new ones, and those that only keep what they have.
    pub living: BTreeSet<SocketAddr>,
}

/// What is behind each frontend.
pub type Bindings = BTreeMap<Frontend, Behind>;

/// Bindings of ports of services. A frontend that several services claim has the endpoints of all.
#[must_use]
pub fn bindings<'a>(plans: impl IntoIterator<Item = &'a PortPlan>) -> Bindings {
    let mut bindings = Bindings::new();
    bind(&mut bindings, plans);
    bindings
}

/// Adds ports of services to bindings.
pub fn bind<'a>(bindings: &mut Bindings, plans: impl IntoIterator<Item = &'a PortPlan>) {
    for plan in plans {
        let mut add = |address, port, served: &[&[Backend]]| {
            let behind = bindings.entry(Frontend { protocol: plan.protocol, address, port }).or_default();
            behind.serves |= served.iter().any(|list| !list.is_empty());
            behind.living.extend(plan.cluster.iter().chain(&plan.local).map(|backend| backend.address));
            behind.living.extend(&plan.kept);
        };
        for ip in &plan.cluster_ips {
            add(Some(*ip), plan.port, &[plan.internal()]);
        }
        for ip in plan.external_ips.iter().chain(&plan.load_balancer_ips) {
            add(Some(*ip), plan.port, &[&plan.cluster, &plan.local]);
        }
        if let Some(port) = plan.node_port {
            add(None, port, &[&plan.cluster, &plan.local]);
        }
    }
}

/// What must be forgotten when bindings change. The old ones may be those that a kernel's rules show: they lack endpoints
/// that are only kept.
#[must_use]
pub fn stale(old: &Bindings, new: &Bindings, (family, facts): (Family, &NodeFacts)) -> Vec<Flows> {
    let none = Behind::default();
    let mut stale = Vec::new();
    let frontends: BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
    for frontend in frontends {
        let tcp = frontend.protocol == Protocol::Tcp;
        let before = old.get(&frontend).unwrap_or(&none);
        let after = new.get(&frontend).unwrap_or(&none);
        if !tcp || new.contains_key(&frontend) {
            let gone = before.living.difference(&after.living);
            stale.extend(gone.map(|endpoint| Flows { family, frontend, answered: Answered::By(*endpoint) }));
        }
        // Packets sent before there were rules made flows that lead nowhere. A TCP client would have given up; one that
        // hasn't may have reached the real owner of an external address.
        if !tcp && !before.serves && after.serves {
            let nowhere = |frontend| Flows { family, frontend, answered: Answered::Itself };
            stale.extend(addressed(frontend, (family, facts)).map(nowhere));
        }
    }
    stale
}

/// What must be forgotten in a kernel that nobody watched for a while: every flow that one of these frontends translated to
/// an endpoint that it doesn't have (now). What `stale` finds by the rules lacks endpoints that were only kept.
#[must_use]
pub fn strays(new: &Bindings, (family, facts): (Family, &NodeFacts)) -> Vec<Flows> {
    let others = |(frontend, behind): (&Frontend, &Behind)| {
        let answered = Answered::ByOthersThan(behind.living.clone());
        let frontends = addressed(*frontend, (family, facts)).collect::<Vec<_>>();
        frontends.into_iter().map(move |frontend| Flows { family, frontend, answered: answered.clone() })
    };
    new.iter().flat_map(others).collect()
}

/// A frontend by its address; a NodePort's are the node's own.
fn addressed(frontend: Frontend, (family, facts): (Family, &NodeFacts)) -> impl Iterator<Item = Frontend> {
    let own = facts.node_ips.iter().filter(move |ip| Family::of(**ip) == family && frontend.address.is_none());
    frontend.address.into_iter().chain(own.copied()).map(move |ip| Frontend { address: Some(ip), ..frontend })
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.name().to_uppercase();
        match self.address {
            Some(address) => write!(f, "{protocol} {}", SocketAddr::new(address, self.port)),
            None => write!(f, "{protocol} NodePort {}", self.port),
        }
    }
}

impl fmt::Display for Flows {
    /// What was wrong, if forgetting them repairs it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "flows to {}", self.frontend)?;
        match &self.answered {
            Answered::By(endpoint) => write!(f, " answered by {endpoint}")?,
            Answered::Itself => f.write_str(" from before there were rules")?,
            Answered::ByOthersThan(endpoints) => write!(f, " answered by none of its {} endpoints", endpoints.len())?,
        }
        f.write_str(" may be stale")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "10.244.0.1:53";
    const B: &str = "10.244.0.2:53";

    fn plan(protocol: Protocol, served: &[&str], kept: &[&str]) -> PortPlan {
        let served = served.iter().map(|one| Backend { address: one.parse().unwrap(), weight: 1 }).collect();
        PortPlan {
            name: "default/dns".into(),
            protocol,
            port: 53,
            cluster_ips: vec!["10.96.0.53".parse().unwrap()],
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            node_port: Some(30053),
            health_check_node_port: None,
            affinity_seconds: None,
            scheduler: None,
            internal_local: false,
            external_local: false,
            cluster: served,
            local: Vec::new(),
            kept: kept.iter().map(|one| one.parse().unwrap()).collect(),
            has_endpoints: true,
        }
    }

    fn facts() -> NodeFacts {
        NodeFacts {
            node_ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..NodeFacts::default()
        }
    }

    fn shown(flows: &[Flows]) -> Vec<String> {
        flows.iter().map(|flows| flows.to_string().replace("flows to ", "").replace(" may be stale", "")).collect()
    }

    fn forgotten(old: &[PortPlan], new: &[PortPlan]) -> Vec<String> {
        shown(&stale(&bindings(old), &bindings(new), (Family::V4, &facts())))
    }

    #[test]
    fn what_is_forgotten_and_what_lives() {
        for protocol in [Protocol::Udp, Protocol::Sctp, Protocol::Tcp] {
            let plan = |served: &[&str], kept: &[&str]| [plan(protocol, served, kept)];
            let name = protocol.name().to_uppercase();
            let by = |endpoint: &str| {
                vec![
                    format!("{name} NodePort 30053 answered by {endpoint}"),
                    format!("{name} 10.96.0.53:53 answered by {endpoint}"),
                ]
            };
            let tcp = protocol == Protocol::Tcp;
            let unless_tcp = |flows: Vec<String>| if tcp { Vec::new() } else { flows };
            assert_eq!(forgotten(&plan(&[A, B], &[]), &plan(&[B], &[])), by(A), "gone");
            assert_eq!(forgotten(&plan(&[A, B], &[]), &plan(&[B], &[A])), Vec::<String>::new(), "draining");
            assert_eq!(forgotten(&plan(&[B], &[A]), &plan(&[B], &[])), by(A), "drained");
            assert_eq!(forgotten(&plan(&[B], &[A]), &plan(&[A, B], &[])), Vec::<String>::new(), "back");
            assert_eq!(forgotten(&plan(&[A], &[]), &plan(&[], &[])), by(A), "no endpoint left");
            assert_eq!(forgotten(&plan(&[A], &[]), &[]), unless_tcp(by(A)), "the service is deleted");
            let early = vec![
                format!("{name} 192.0.2.1:30053 from before there were rules"),
                format!("{name} 10.96.0.53:53 from before there were rules"),
            ];
            assert_eq!(forgotten(&plan(&[], &[]), &plan(&[A], &[])), unless_tcp(early.clone()), "the first endpoint");
            assert_eq!(forgotten(&[], &plan(&[A], &[])), unless_tcp(early), "a new service");
            let mut moved = plan(&[A], &[]);
            moved[0].node_port = Some(30054);
            let mut expected = by(A)[..1].to_vec();
            expected.push(format!("{name} 192.0.2.1:30054 from before there were rules"));
            assert_eq!(forgotten(&plan(&[A], &[]), &moved), unless_tcp(expected), "another nodePort");
        }
    }

    #[test]
    fn another_services_endpoint_at_the_same_address_lives() {
        let mut other = plan(Protocol::Tcp, &[B], &[]);
        other.name = "default/other".into();
        let both = [plan(Protocol::Tcp, &[A], &[]), other.clone()];
        assert_eq!(forgotten(&both, &[plan(Protocol::Tcp, &[], &[]), other]).len(), 2);
        assert_eq!(forgotten(&both, &both), Vec::<String>::new());
    }

    #[test]
    fn policy_keeps_a_frontend_from_serving() {
        let local = PortPlan { internal_local: true, ..plan(Protocol::Udp, &[A], &[]) };
        let found = bindings([&local]);
        let serves: Vec<bool> = found.values().map(|behind| behind.serves).collect();
        assert_eq!(serves, [true, false], "the NodePort goes anywhere, the ClusterIP stays on the node");
        assert!(found.values().all(|behind| behind.living.len() == 1), "flows live all the same");
    }

    #[test]
    fn a_flow_is_selected_by_who_answers() {
        let flow = |to: &str, from: &str| Flow {
            protocol: Protocol::Udp,
            destination: to.parse().unwrap(),
            answered_from: from.parse().unwrap(),
        };
        let vip = "10.96.0.53:53";
        let by = Answered::By(A.parse().unwrap());
        assert!(by.fits(&flow(vip, A)));
        assert!(!by.fits(&flow(vip, B)) && !by.fits(&flow(vip, "10.244.0.1:54")));
        assert!(Answered::Itself.fits(&flow(vip, vip)));
        assert!(!Answered::Itself.fits(&flow(vip, A)));
        assert!(!Answered::Itself.fits(&flow("192.0.2.1:30053", "192.0.2.1:53")), "an endpoint on the node itself");
        let others = Answered::ByOthersThan(BTreeSet::from([A.parse().unwrap()]));
        assert!(others.fits(&flow(vip, B)));
        assert!(!others.fits(&flow(vip, A)));
        assert!(!others.fits(&flow(vip, vip)), "what nobody translated isn't ours");
    }

    #[test]
    fn strays_are_all_but_the_living() {
        let found = strays(&bindings([&plan(Protocol::Udp, &[A], &[B])]), (Family::V4, &facts()));
        let text = "answered by none of its 2 endpoints";
        assert_eq!(shown(&found), [format!("UDP 192.0.2.1:30053 {text}"), format!("UDP 10.96.0.53:53 {text}")]);
    }
}
