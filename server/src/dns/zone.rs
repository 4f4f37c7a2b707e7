//! What a name of our zone means, before anything is looked up: Kubernetes' DNS schema 1.1.0 as a parser.
//!
//! Laws: total on any name; case-insensitive; a name outside the zone is `None`; says nothing about whether the thing
//! that a name stands for exists.

use fairlead_proto::model::Key;
use fairlead_proto::v1::Kind;
use hickory_proto::rr::Name;

/// The zone that a cluster answers for, e.g. `cluster.local`.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Apex, lower case, absolute.
    pub apex: Name,
    /// Time to live of its records, seconds; also how long a negative answer may be kept.
    pub ttl_seconds: u32,
}

/// The zone's name is no domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't be the cluster's domain: it must be a DNS name such as cluster.local, at most 63 bytes a label and 180 in all"
)]
pub struct BadZone(pub String);

/// What a name of the zone stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The zone itself.
    Apex,
    /// `dns-version`: the schema's version.
    Version,
    /// `dns`: only holds the name server.
    NameServers,
    /// `ns.dns`: the name server that SOA and NS name.
    NameServer,
    /// `svc`: only holds namespaces.
    Services,
    /// `pod`: pod records are not served; the name is there.
    Pods,
    /// `<namespace>.svc`.
    Namespace(String),
    /// `<service>.<namespace>.svc`.
    Service(Key),
    /// `<label>.<service>.<namespace>.svc`: an endpoint by its host name or dashed address.
    Endpoint(Key, String),
    /// `_<protocol>.<service>.<namespace>.svc`: only holds ports.
    Protocol(Key, &'static str),
    /// `_<port>._<protocol>.<service>.<namespace>.svc`.
    Port(Key, &'static str, String),
    /// No name of the schema.
    Nowhere,
}

/// Longest apex, bytes: room below it for a port, a protocol, a service and a namespace is up to the names.
const LONGEST_APEX: usize = 180;
/// Labels below the apex of the deepest name.
const DEEPEST: usize = 5;

impl Zone {
    /// Makes a zone; case and a dot at the end don't matter.
    ///
    /// # Errors
    /// [`BadZone`] if the text is no name of at least one label.
    pub fn new(domain: &str, ttl_seconds: u32) -> Result<Self, BadZone> {
        let bad = || BadZone(domain.to_owned());
        let text = domain.strip_suffix('.').unwrap_or(domain);
        let letters =
            |label: &str| label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        let labels = || text.split('.');
        if text.len() > LONGEST_APEX || labels().any(|label| label.is_empty() || !letters(label)) {
            return Err(bad());
        }
        let apex = Name::from_labels(labels().map(str::as_bytes)).map_err(|_| bad())?;
        Ok(Self { apex: apex.to_lowercase(), ttl_seconds })
    }

    /// What a name stands for; `None` = it is not ours.
    #[must_use]
    pub fn place(&self, name: &Name) -> Option<Place> {
        if !self.apex.zone_of(name) {
            return None;
        }
        let depth = usize::from(name.num_labels()).saturating_sub(self.depth());
        if depth > DEEPEST {
            return Some(Place::Nowhere);
        }
        let below = name.iter().take(depth).map(label).collect::<Option<Vec<_>>>();
        Some(below.map_or(Place::Nowhere, |below| below_apex(&below)))
    }

    /// The zone's name server, as SOA and NS name it.
    #[must_use]
    pub fn name_server(&self) -> Name {
        self.below(&["ns", "dns"])
    }

    /// The mailbox of the SOA.
    #[must_use]
    pub fn mailbox(&self) -> Name {
        self.below(&["hostmaster"])
    }

    /// `<service>.<namespace>.svc.<zone>`.
    #[must_use]
    pub fn service(&self, service: &Key) -> Name {
        self.below(&[&service.name, &service.namespace, "svc"])
    }

    /// `<endpoint>.<service>.<namespace>.svc.<zone>`.
    #[must_use]
    pub fn endpoint(&self, service: &Key, endpoint: &str) -> Name {
        self.below(&[endpoint, &service.name, &service.namespace, "svc"])
    }

    fn depth(&self) -> usize {
        usize::from(self.apex.num_labels())
    }

    /// A name under the apex; the apex itself if the labels don't fit a name, which validated objects' do.
    fn below(&self, labels: &[&str]) -> Name {
        let labels = labels.iter().map(|label| label.as_bytes());
        Name::from_labels(labels.chain(self.apex.iter())).unwrap_or_else(|_| self.apex.clone())
    }
}

/// A label in lower case; `None` if it is no text, and so no name of ours.
fn label(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    Some(text.to_ascii_lowercase())
}

fn below_apex(labels: &[String]) -> Place {
    let texts: Vec<&str> = labels.iter().map(String::as_str).collect();
    let service = |namespace: &str, name: &str| Key::new(Kind::Service, namespace, name);
    match texts.as_slice() {
        [] => Place::Apex,
        ["dns-version"] => Place::Version,
        ["dns"] => Place::NameServers,
        ["ns", "dns"] => Place::NameServer,
        ["svc"] => Place::Services,
        ["pod"] => Place::Pods,
        [namespace, "svc"] => Place::Namespace((*namespace).to_owned()),
        [name, namespace, "svc"] => Place::Service(service(namespace, name)),
        [first, name, namespace, "svc"] => match protocol(first) {
            Some(protocol) => Place::Protocol(service(namespace, name), protocol),
            None if first.starts_with('_') => Place::Nowhere,
            None => Place::Endpoint(service(namespace, name), (*first).to_owned()),
        },
        [port, proto, name, namespace, "svc"] => match (port.strip_prefix('_'), protocol(proto)) {
            (Some(port), Some(protocol)) if !port.is_empty() => {
                Place::Port(service(namespace, name), protocol, port.to_owned())
            }
            _ => Place::Nowhere,
        },
        _ => Place::Nowhere,
    }
}

/// Kubernetes' name of a protocol label.
fn protocol(label: &str) -> Option<&'static str> {
    match label {
        "_tcp" => Some("TCP"),
        "_udp" => Some("UDP"),
        "_sctp" => Some("SCTP"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone() -> Zone {
        Zone::new("Cluster.Local.", 5).unwrap()
    }

    fn key(namespace: &str, name: &str) -> Key {
        Key::new(Kind::Service, namespace, name)
    }

    #[test]
    fn names_and_what_they_stand_for() {
        let web = || key("shop", "web");
        let table = [
            ("cluster.local.", Some(Place::Apex)),
            ("CLUSTER.local.", Some(Place::Apex)),
            ("dns-version.cluster.local.", Some(Place::Version)),
            ("dns.cluster.local.", Some(Place::NameServers)),
            ("ns.dns.cluster.local.", Some(Place::NameServer)),
            ("svc.cluster.local.", Some(Place::Services)),
            ("pod.cluster.local.", Some(Place::Pods)),
            ("10-0-0-1.shop.pod.cluster.local.", Some(Place::Nowhere)),
            ("shop.svc.cluster.local.", Some(Place::Namespace("shop".into()))),
            ("web.shop.svc.cluster.local.", Some(Place::Service(web()))),
            ("WEB.Shop.SVC.cluster.LOCAL.", Some(Place::Service(web()))),
            ("db-0.web.shop.svc.cluster.local.", Some(Place::Endpoint(web(), "db-0".into()))),
            ("_tcp.web.shop.svc.cluster.local.", Some(Place::Protocol(web(), "TCP"))),
            ("_http._TCP.web.shop.svc.cluster.local.", Some(Place::Port(web(), "TCP", "http".into()))),
            ("_dns._sctp.web.shop.svc.cluster.local.", Some(Place::Port(web(), "SCTP", "dns".into()))),
            ("http._tcp.web.shop.svc.cluster.local.", Some(Place::Nowhere)),
            ("_._tcp.web.shop.svc.cluster.local.", Some(Place::Nowhere)),
            ("_http._icmp.web.shop.svc.cluster.local.", Some(Place::Nowhere)),
            ("_http.web.shop.svc.cluster.local.", Some(Place::Nowhere)),
            ("a.b.c.d.e.svc.cluster.local.", Some(Place::Nowhere)),
            ("example.com.", None),
            ("local.", None),
            (".", None),
            ("notcluster.local.", None),
            ("web.shop.svc.cluster.local.example.com.", None),
        ];
        for (name, expect) in table {
            assert_eq!(zone().place(&Name::from_ascii(name).unwrap()), expect, "{name}");
        }
    }

    #[test]
    fn a_zone_is_a_domain_name() {
        for good in ["cluster.local", "k8s.example.com.", "lan"] {
            assert!(Zone::new(good, 5).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", ".local", "white space", "a/b", &"x".repeat(64), &"a.".repeat(120)] {
            assert_eq!(Zone::new(bad, 5).unwrap_err(), BadZone(bad.to_owned()), "{bad:?}");
        }
    }

    #[test]
    fn a_label_that_is_no_text_is_nowhere() {
        let name = Name::from_labels(vec![&b"\xff\xfe"[..], b"shop", b"svc", b"cluster", b"local"]);
        assert_eq!(zone().place(&name.unwrap()), Some(Place::Nowhere));
    }

    proptest! {
        #[test]
        fn every_name_has_at_most_one_place(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..9)) {
            let below = labels.iter().map(Vec::as_slice);
            let name = Name::from_labels(below.chain([&b"cluster"[..], b"local"])).unwrap();
            let lower = zone().place(&name.to_lowercase());
            prop_assert!(lower.is_some());
            prop_assert_eq!(zone().place(&name), lower);
        }
    }
}
