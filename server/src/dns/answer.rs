//! What a question about our zone is answered, from one state: a pure function.
//!
//! Laws: total on any name and type; NXDOMAIN only for a name that is not there, NODATA for one that has no record of
//! the type, both with the SOA; every answer bears the question's own spelling of the name; a look-up costs O(log
//! objects) plus the endpoints of the one service asked about; at most [`MOST_RECORDS`] records.
//!
//! Rules beyond the specification (kubernetes/dns 1.1.0) are CoreDNS': SRV of a service's bare name, endpoint names of
//! services with a ClusterIP, weights floor(100 / records).

use crate::dns::backends::{Backend, Behind, Port};
use crate::dns::zone::{Place, Zone};
use crate::machine::State;
use fairlead_proto::model::Key;
use fairlead_proto::v1::Kind;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{CNAME, NS, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Version of the schema that `dns-version.<zone>` names.
pub const SCHEMA_VERSION: &str = "1.1.0";
/// A message holds no more address records than this.
pub const MOST_RECORDS: usize = 4096;
const VERSION_TTL_SECONDS: u32 = 28_800;
/// Names that point at names of ours; a longer chain is a loop.
const LONGEST_CHAIN: usize = 8;
const REFRESH_SECONDS: i32 = 7200;
const RETRY_SECONDS: i32 = 1800;
const EXPIRE_SECONDS: i32 = 86_400;

/// A question.
#[derive(Clone, Debug)]
pub struct Query {
    /// As asked; its case comes back.
    pub name: Name,
    /// The type asked for.
    pub kind: RecordType,
    /// Where a list of alternatives starts, modulo its length: the message id, so that clients who take the first
    /// one spread.
    pub turn: usize,
    /// Address that the question was sent to: the name server's own.
    pub server: Option<IpAddr>,
}

/// An answer, ready to be put into a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `Refused` if the name is not ours.
    pub code: ResponseCode,
    /// Answers.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authority: Vec<Record>,
    /// Addresses of the names in the answers.
    pub additionals: Vec<Record>,
}

impl Answer {
    /// An answer that is only a code.
    #[must_use]
    pub fn code(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), authority: Vec::new(), additionals: Vec::new() }
    }

    /// Forbids to keep the answer: every time to live becomes 0.
    pub fn forbid_caching(&mut self) {
        let answers = self.answers.iter_mut().chain(&mut self.additionals);
        for record in answers.chain(&mut self.authority) {
            record.ttl = 0;
            if let RData::SOA(soa) = &mut record.data {
                soa.minimum = 0;
            }
        }
    }
}

/// Answers a question.
#[must_use]
pub fn answer(zone: &Zone, state: &State, query: &Query) -> Answer {
    if matches!(query.kind, RecordType::AXFR | RecordType::IXFR) {
        return Answer::code(ResponseCode::Refused);
    }
    let lookup = Lookup { zone, state, query };
    let mut whole = Answer::code(ResponseCode::NoError);
    let mut name = query.name.clone();
    for _ in 0..LONGEST_CHAIN {
        let Some(place) = zone.place(&name) else {
            // The end of a chain that leaves the zone; the client's resolver goes on from there.
            if whole.answers.is_empty() {
                whole.code = ResponseCode::Refused;
            }
            return whole;
        };
        match lookup.at(&place, &name) {
            Found::Nothing => {
                whole.code = ResponseCode::NXDomain;
                whole.authority.push(lookup.soa(zone.apex.clone()));
                return whole;
            }
            Found::Records(records) => {
                if records.answers.is_empty() {
                    whole.authority.push(lookup.soa(zone.apex.clone()));
                }
                whole.answers.extend(records.answers);
                whole.additionals = records.additionals;
                return whole;
            }
            Found::Alias(target) => {
                let alias = RData::CNAME(CNAME(target.clone()));
                whole.answers.push(lookup.record(name, alias));
                if matches!(query.kind, RecordType::CNAME | RecordType::ANY) {
                    return whole;
                }
                name = target;
            }
        }
    }
    Answer::code(ResponseCode::ServFail)
}

/// What is at a name.
enum Found {
    /// There is no such name.
    Nothing,
    /// The name is there; no answers = none of the type.
    Records(Records),
    /// The name is another's.
    Alias(Name),
}

#[derive(Default)]
struct Records {
    answers: Vec<Record>,
    additionals: Vec<Record>,
}

/// The name is there, without a record of the type asked for.
fn no_records() -> Found {
    Found::Records(Records::default())
}

struct Lookup<'a> {
    zone: &'a Zone,
    state: &'a State,
    query: &'a Query,
}

impl Lookup<'_> {
    fn at(&self, place: &Place, name: &Name) -> Found {
        match place {
            Place::Apex => self.of_types(name, &[RecordType::SOA, RecordType::NS]),
            Place::Version => self.of_types(name, &[RecordType::TXT]),
            Place::NameServer => self.of_types(name, &[RecordType::A, RecordType::AAAA]),
            Place::NameServers | Place::Services | Place::Pods => no_records(),
            Place::Namespace(namespace) => {
                let key = Key::new(Kind::Namespace, "", namespace);
                self.state.get(&key).map_or(Found::Nothing, |_| no_records())
            }
            Place::Service(key) => self.behind(key).map_or(Found::Nothing, |found| self.service(found, name)),
            Place::Endpoint(key, label) => {
                let named = self.behind(key).map_or_else(Vec::new, |found| found.named(label));
                self.endpoints(name, &named)
            }
            Place::Protocol(key, protocol) => {
                let any = Port { protocol, name: None };
                self.ports(name, &self.backends_with(key, any), false)
            }
            Place::Port(key, protocol, port) => {
                let one = Port { protocol, name: Some(port) };
                self.ports(name, &self.backends_with(key, one), true)
            }
            Place::Nowhere => Found::Nothing,
        }
    }

    /// Records of the zone itself: of the type asked for, or for ANY of the first one (RFC 8482 4.1).
    fn of_types(&self, name: &Name, types: &[RecordType]) -> Found {
        let of_type = |kind: &RecordType| match kind {
            RecordType::SOA => vec![self.soa(name.clone())],
            RecordType::NS => {
                vec![self.record(name.clone(), RData::NS(NS(self.zone.name_server())))]
            }
            RecordType::TXT => {
                let text = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
                vec![Record::from_rdata(name.clone(), VERSION_TTL_SECONDS, text)]
            }
            kind => self.name_server_address(name, *kind),
        };
        let asked = |kind: &&RecordType| [**kind, RecordType::ANY].contains(&self.query.kind);
        let sets = types.iter().filter(asked).map(of_type);
        let answers = sets.into_iter().find(|set| !set.is_empty()).unwrap_or_default();
        let additionals = match answers.first().map(Record::record_type) {
            Some(RecordType::NS) => [RecordType::A, RecordType::AAAA]
                .into_iter()
                .flat_map(|kind| self.name_server_address(&self.zone.name_server(), kind))
                .collect(),
            _ => Vec::new(),
        };
        Found::Records(Records { answers, additionals })
    }

    fn name_server_address(&self, name: &Name, kind: RecordType) -> Vec<Record> {
        let address = self.query.server.map(|address| address.to_canonical());
        let address = address.filter(|address| is_of(*address, kind));
        address.map(|address| self.address(name.clone(), address)).into_iter().collect()
    }

    fn behind<'a>(&'a self, key: &'a Key) -> Option<Behind<'a>> {
        Behind::find(self.zone, self.state, key)
    }

    fn backends_with(&self, key: &Key, port: Port<'_>) -> Vec<Backend> {
        self.behind(key).map_or_else(Vec::new, |found| found.backends_with(port))
    }

    fn service(&self, found: Behind<'_>, name: &Name) -> Found {
        if found.is_alias() {
            return alias(&found.spec.external_name);
        }
        let addresses = found.addresses();
        if addresses.is_empty() && found.is_headless() {
            return Found::Nothing;
        }
        Found::Records(match self.query.kind {
            RecordType::SRV => self.srv(name, &found.backends()),
            _ => self.addresses(name, &addresses),
        })
    }

    fn endpoints(&self, name: &Name, named: &[Backend]) -> Found {
        if named.is_empty() {
            return Found::Nothing;
        }
        Found::Records(match self.query.kind {
            RecordType::SRV => self.srv(name, named),
            _ => self.addresses(name, &named.iter().map(|backend| backend.address).collect()),
        })
    }

    /// A name of ports is there if a backend has such a port; only a whole one has records.
    fn ports(&self, name: &Name, backends: &[Backend], whole: bool) -> Found {
        let asked = matches!(self.query.kind, RecordType::SRV | RecordType::ANY);
        match (backends.is_empty(), whole && asked) {
            (true, _) => Found::Nothing,
            (false, true) => Found::Records(self.srv(name, backends)),
            (false, false) => no_records(),
        }
    }

    fn addresses(&self, name: &Name, all: &BTreeSet<IpAddr>) -> Records {
        let of = |kind: RecordType| {
            let found = all.iter().copied().filter(|address| is_of(*address, kind));
            let mut found: Vec<IpAddr> = found.collect();
            rotate(&mut found, self.query.turn);
            let found = found.into_iter().take(MOST_RECORDS);
            found.map(|address| self.address(name.clone(), address)).collect::<Vec<_>>()
        };
        let answers = match self.query.kind {
            RecordType::ANY => [of(RecordType::A), of(RecordType::AAAA)].concat(),
            kind => of(kind),
        };
        Records { answers, additionals: Vec::new() }
    }

    fn srv(&self, name: &Name, backends: &[Backend]) -> Records {
        let mut seen = BTreeSet::new();
        let mut targets = Vec::new();
        for backend in backends {
            for port in &backend.ports {
                if seen.insert((backend.name.clone(), port.port)) {
                    targets.push((backend.name.clone(), port.port));
                }
            }
        }
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
        rotate(&mut targets, self.query.turn);
        targets.truncate(MOST_RECORDS);
        let shown: BTreeSet<&Name> = targets.iter().map(|(target, _)| target).collect();
        let glue: BTreeSet<(&Name, IpAddr)> = backends
            .iter()
            .filter(|backend| shown.contains(&backend.name))
            .map(|backend| (&backend.name, backend.address))
            .collect();
        let additionals = glue.into_iter().take(MOST_RECORDS);
        let additionals = additionals.map(|(target, address)| self.address(target.clone(), address)).collect();
        let answers = targets
            .into_iter()
            .map(|(target, port)| self.record(name.clone(), RData::SRV(SRV::new(0, weight, port, target))));
        Records { answers: answers.collect(), additionals }
    }

    fn soa(&self, owner: Name) -> Record {
        // The revision modulo 2^32: a client can see how fresh an answer is.
        let serial = (self.state.revision() & u64::from(u32::MAX)) as u32;
        let soa = SOA::new(
            self.zone.name_server(),
            self.zone.mailbox(),
            serial,
            REFRESH_SECONDS,
            RETRY_SECONDS,
            EXPIRE_SECONDS,
            self.zone.ttl_seconds,
        );
        self.record(owner, RData::SOA(soa))
    }

    fn address(&self, owner: Name, address: IpAddr) -> Record {
        self.record(owner, RData::from(address))
    }

    fn record(&self, owner: Name, data: RData) -> Record {
        Record::from_rdata(owner, self.zone.ttl_seconds, data)
    }
}

/// An address is no name to point at (as in CoreDNS).
fn alias(external: &str) -> Found {
    if external.parse::<IpAddr>().is_ok() {
        return Found::Nothing;
    }
    let absolute = external.strip_suffix('.').unwrap_or(external);
    match Name::from_labels(absolute.split('.').map(str::as_bytes)) {
        Ok(target) if !absolute.is_empty() => Found::Alias(target),
        _ => Found::Nothing,
    }
}

fn is_of(address: IpAddr, kind: RecordType) -> bool {
    match address {
        IpAddr::V4(_) => kind == RecordType::A,
        IpAddr::V6(_) => kind == RecordType::AAAA,
    }
}

fn rotate<T>(list: &mut [T], turn: usize) {
    if !list.is_empty() {
        list.rotate_left(turn % list.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::sample;
    use proptest::prelude::*;

    fn zone() -> Zone {
        Zone::new("cluster.local", 5).unwrap()
    }

    fn query(name: &str, kind: RecordType) -> Query {
        let name = if name.ends_with('.') { name.to_owned() } else { format!("{name}.cluster.local.") };
        Query { name: Name::from_ascii(name).unwrap(), kind, turn: 0, server: None }
    }

    fn ask(name: &str, kind: RecordType) -> Answer {
        answer(&zone(), &sample::state(), &query(name, kind))
    }

    /// The answer as text: code, then a line a record: `A type data`, with `+` for additionals and `~` for authority.
    fn shown(answer: &Answer) -> String {
        let lines = |mark: &str, records: &[Record]| {
            let mut lines: Vec<String> = records
                .iter()
                .map(|record| format!("{mark}{} {} {}", record.name, record.record_type(), record.data))
                .collect();
            lines.sort();
            lines
        };
        let code = match answer.code {
            ResponseCode::NoError => "NOERROR",
            ResponseCode::NXDomain => "NXDOMAIN",
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::Refused => "REFUSED",
            _ => "?",
        };
        let mut all = vec![code.to_owned()];
        all.extend(lines("", &answer.answers));
        all.extend(lines("~", &answer.authority));
        all.extend(lines("+", &answer.additionals));
        all.join("\n").replace("cluster.local.", "$")
    }

    const SOA: &str = "~$ SOA ns.dns.$ hostmaster.$ 77 7200 1800 86400 5";

    #[track_caller]
    fn check(name: &str, kind: RecordType, expect: &[&str]) {
        let expect = match expect {
            ["NODATA"] => format!("NOERROR\n{SOA}"),
            ["NXDOMAIN"] => format!("NXDOMAIN\n{SOA}"),
            lines => lines.join("\n"),
        };
        assert_eq!(shown(&ask(name, kind)), expect, "{name} {kind}");
    }

    #[test]
    fn services_with_a_cluster_ip() {
        use RecordType::{A, AAAA, ANY, CNAME, MX, SRV, TXT};
        check("web.shop.svc", A, &["NOERROR", "web.shop.svc.$ A 10.96.0.10"]);
        check("web.shop.svc", AAAA, &["NODATA"]);
        check("web.shop.svc", MX, &["NODATA"]);
        check("web.shop.svc", TXT, &["NODATA"]);
        check("web.shop.svc", CNAME, &["NODATA"]);
        check("web.shop.svc", ANY, &["NOERROR", "web.shop.svc.$ A 10.96.0.10"]);
        check("empty.shop.svc", A, &["NOERROR", "empty.shop.svc.$ A 10.96.0.11"]);
        let http = "_http._tcp.web.shop.svc.$ SRV 0 100 80 web.shop.svc.$";
        check("_http._tcp.web.shop.svc", SRV, &["NOERROR", http, "+web.shop.svc.$ A 10.96.0.10"]);
        check("_http._tcp.web.shop.svc", A, &["NODATA"]);
        check("_tcp.web.shop.svc", SRV, &["NODATA"]);
        // Its UDP port has no name, and so no SRV name.
        check("_udp.web.shop.svc", SRV, &["NXDOMAIN"]);
        check("_http._udp.web.shop.svc", SRV, &["NXDOMAIN"]);
        check("_https._tcp.web.shop.svc", SRV, &["NXDOMAIN"]);
        check(
            "web.shop.svc",
            SRV,
            &[
                "NOERROR",
                "web.shop.svc.$ SRV 0 50 53 web.shop.svc.$",
                "web.shop.svc.$ SRV 0 50 80 web.shop.svc.$",
                "+web.shop.svc.$ A 10.96.0.10",
            ],
        );
        // Endpoints by name, as CoreDNS; never one that is not ready.
        check("10-244-1-2.web.shop.svc", A, &["NOERROR", "10-244-1-2.web.shop.svc.$ A 10.244.1.2"]);
        check("10-244-1-9.web.shop.svc", A, &["NXDOMAIN"]);
    }

    #[test]
    fn an_ipv6_cluster() {
        let ask = |name, kind| shown(&answer(&zone(), &sample::state_v6(), &query(name, kind)));
        let address = "six.shop.svc.$ AAAA fd00:96::12";
        assert_eq!(ask("six.shop.svc", RecordType::AAAA), format!("NOERROR\n{address}"));
        assert_eq!(ask("six.shop.svc", RecordType::A), format!("NOERROR\n{SOA}"));
        let srv = "_https._tcp.six.shop.svc.$ SRV 0 100 443 six.shop.svc.$";
        assert_eq!(ask("_https._tcp.six.shop.svc", RecordType::SRV), format!("NOERROR\n{srv}\n+{address}"));
    }

    #[test]
    fn headless_services() {
        use RecordType::{A, AAAA, SRV};
        check("db.shop.svc", A, &["NOERROR", "db.shop.svc.$ A 10.244.1.3", "db.shop.svc.$ A 10.244.1.4"]);
        check("db.shop.svc", AAAA, &["NOERROR", "db.shop.svc.$ AAAA fd00:244::", "db.shop.svc.$ AAAA fd00:244::3"]);
        check("db-0.db.shop.svc", A, &["NOERROR", "db-0.db.shop.svc.$ A 10.244.1.3"]);
        check("DB-0.db.shop.svc", AAAA, &["NOERROR", "DB-0.db.shop.svc.$ AAAA fd00:244::3"]);
        check("10-244-1-4.db.shop.svc", A, &["NOERROR", "10-244-1-4.db.shop.svc.$ A 10.244.1.4"]);
        check("10-244-1-4.db.shop.svc", AAAA, &["NODATA"]);
        check("fd00-244--0.db.shop.svc", AAAA, &["NOERROR", "fd00-244--0.db.shop.svc.$ AAAA fd00:244::"]);
        // Named by its host name only; not ready; not there.
        check("10-244-1-3.db.shop.svc", A, &["NXDOMAIN"]);
        check("db-9.db.shop.svc", A, &["NXDOMAIN"]);
        check("db-7.db.shop.svc", A, &["NXDOMAIN"]);
        check("quiet.shop.svc", A, &["NXDOMAIN"]);
        check("_http._tcp.quiet.shop.svc", SRV, &["NXDOMAIN"]);
        check("plain.shop.svc", A, &["NOERROR", "plain.shop.svc.$ A 10.244.1.7"]);
        check("plain.shop.svc", SRV, &["NODATA"]);
    }

    #[test]
    fn ports_of_headless_services() {
        use RecordType::{A, SRV};
        check("_tcp.db.shop.svc", A, &["NODATA"]);
        let stats = "_stats._tcp.db.shop.svc.$ SRV 0 50 9000";
        check(
            "_stats._tcp.db.shop.svc",
            SRV,
            &[
                "NOERROR",
                &format!("{stats} 10-244-1-4.db.shop.svc.$"),
                &format!("{stats} db-0.db.shop.svc.$"),
                "+10-244-1-4.db.shop.svc.$ A 10.244.1.4",
                "+db-0.db.shop.svc.$ A 10.244.1.3",
                "+db-0.db.shop.svc.$ AAAA fd00:244::3",
            ],
        );
        let all = ask("db.shop.svc", SRV);
        assert_eq!(all.answers.len(), 5, "two names with two ports, one with one");
        let weight = |record: &Record| matches!(&record.data, RData::SRV(srv) if srv.weight == 20 && srv.priority == 0);
        assert!(all.answers.iter().all(weight));
    }

    #[test]
    fn names_of_the_zone() {
        use RecordType::{A, AAAA, ANY, NS, SOA as Soa, SRV, TXT};
        check(".", A, &["REFUSED"]);
        check("example.com.", A, &["REFUSED"]);
        check("cluster.local.", A, &["NODATA"]);
        check("cluster.local.", Soa, &["NOERROR", &SOA[1..]]);
        check("cluster.local.", NS, &["NOERROR", "$ NS ns.dns.$"]);
        check("cluster.local.", ANY, &["NOERROR", &SOA[1..]]);
        check("svc", A, &["NODATA"]);
        check("pod", A, &["NODATA"]);
        check("10-244-1-2.shop.pod", A, &["NXDOMAIN"]);
        check("dns", A, &["NODATA"]);
        check("shop.svc", A, &["NODATA"]);
        check("bare.svc", SRV, &["NODATA"]);
        check("other.svc", A, &["NXDOMAIN"]);
        check("other.shop.svc", A, &["NXDOMAIN"]);
        check("web.bare.svc", A, &["NXDOMAIN"]);
        check("shop.web.svc", A, &["NXDOMAIN"]);
        check("nonsense", A, &["NXDOMAIN"]);
        check("dns-version", TXT, &["NOERROR", "dns-version.$ TXT 1.1.0"]);
        check("dns-version", A, &["NODATA"]);
        check("cluster.local.", RecordType::AXFR, &["REFUSED"]);
        let mut own = query("ns.dns", A);
        own.server = Some("10.0.0.11".parse().unwrap());
        let found = answer(&zone(), &sample::state(), &own);
        assert_eq!(shown(&found), "NOERROR\nns.dns.$ A 10.0.0.11");
        own.kind = AAAA;
        assert_eq!(shown(&answer(&zone(), &sample::state(), &own)), format!("NOERROR\n{SOA}"));
        own = Query { server: own.server, ..query("cluster.local.", NS) };
        let found = answer(&zone(), &sample::state(), &own);
        assert_eq!(shown(&found), "NOERROR\n$ NS ns.dns.$\n+ns.dns.$ A 10.0.0.11");
    }

    #[test]
    fn aliases() {
        use RecordType::{A, CNAME, SRV};
        let ext = "ext.shop.svc.$ CNAME example.com.";
        check("ext.shop.svc", A, &["NOERROR", ext]);
        check("ext.shop.svc", CNAME, &["NOERROR", ext]);
        check("a.ext.shop.svc", A, &["NXDOMAIN"]);
        check("_http._tcp.ext.shop.svc", SRV, &["NXDOMAIN"]);
        let near = "near.shop.svc.$ CNAME web.shop.svc.$";
        check("near.shop.svc", A, &["NOERROR", near, "web.shop.svc.$ A 10.96.0.10"]);
        check("near.shop.svc", CNAME, &["NOERROR", near]);
        check("near.shop.svc", RecordType::AAAA, &["NOERROR", near, SOA]);
        check("lost.shop.svc", A, &["NXDOMAIN", "lost.shop.svc.$ CNAME none.shop.svc.$", SOA]);
        check("round.shop.svc", A, &["SERVFAIL"]);
        check("number.shop.svc", A, &["NXDOMAIN"]);
    }

    #[test]
    fn the_questions_case_and_the_zones_ttl_come_back() {
        let found = ask("WeB.Shop.SVC.Cluster.LOCAL.", RecordType::A);
        assert_eq!(found.answers[0].name.to_ascii(), "WeB.Shop.SVC.Cluster.LOCAL.");
        assert_eq!(found.answers[0].ttl, 5);
        let mut kept = ask("none", RecordType::A);
        kept.forbid_caching();
        assert_eq!(kept.authority[0].ttl, 0);
        assert!(matches!(&kept.authority[0].data, RData::SOA(soa) if soa.minimum == 0));
    }

    #[test]
    fn alternatives_turn() {
        let first = |turn| {
            let asked = Query { turn, ..query("many.shop.svc", RecordType::A) };
            let found = answer(&zone(), &sample::many(5), &asked).answers;
            assert_eq!(found.len(), 5);
            found[0].data.to_string()
        };
        let all: BTreeSet<String> = (0..5).map(first).collect();
        assert_eq!(all.len(), 5);
        assert_eq!(first(5), first(0));
    }

    #[test]
    fn an_answer_is_bounded() {
        let state = sample::many(6000);
        for (kind, weight) in [(RecordType::A, None), (RecordType::SRV, Some(1))] {
            let found = answer(&zone(), &state, &query("many.shop.svc", kind));
            assert_eq!(found.answers.len(), MOST_RECORDS);
            assert!(found.additionals.len() <= MOST_RECORDS);
            if let (Some(weight), RData::SRV(srv)) = (weight, &found.answers[0].data) {
                assert_eq!(srv.weight, weight);
            }
        }
    }

    /// Labels that mean something, and some that don't.
    fn some_label() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "web",
            "WEB",
            "db",
            "shop",
            "Shop",
            "svc",
            "pod",
            "dns",
            "ns",
            "dns-version",
            "_tcp",
            "_udp",
            "_http",
            "_pg",
            "_",
            "db-0",
            "ext",
            "near",
            "round",
            "quiet",
            "10-244-1-4",
            "fd00-244--0",
            "cluster",
            "x",
        ])
        .prop_map(str::to_owned)
    }

    proptest! {
        #[test]
        fn every_question_has_a_sound_answer(labels in prop::collection::vec(some_label(), 0..7), kind in any::<u16>(), common in 0_usize..9, turn in any::<usize>()) {
            use RecordType::{A, AAAA, ANY, CNAME, NS, SOA, SRV, TXT};
            let kind = [A, AAAA, ANY, CNAME, NS, SOA, SRV, TXT].get(common).copied().unwrap_or(RecordType::from(kind));
            let name = labels.iter().map(String::as_str).chain(["cluster", "LOCAL"]).map(str::as_bytes);
            let asked = Query { name: Name::from_labels(name).unwrap(), kind, turn, server: None };
            let state = sample::state();
            let found = answer(&zone(), &state, &asked);
            prop_assert_eq!(&found, &answer(&zone(), &state, &asked));
            let negative = found.answers.last().is_none_or(|last| last.record_type() == CNAME && kind != CNAME && kind != ANY);
            let leaves = found.answers.last().is_some_and(|last| matches!(&last.data, RData::CNAME(to) if zone().place(to).is_none()));
            match found.code {
                ResponseCode::NoError | ResponseCode::NXDomain => prop_assert_eq!(found.authority.len(), usize::from(negative && !leaves)),
                ResponseCode::ServFail | ResponseCode::Refused => prop_assert!(found.answers.is_empty()),
                _ => prop_assert!(false),
            }
            if let Some(first) = found.answers.first() {
                prop_assert!(first.name.eq_case(&asked.name));
            }
            if found.code == ResponseCode::NXDomain && !labels.is_empty() {
                // Nothing is below a name that isn't there (RFC 8020).
                let deeper = Query { name: asked.name.prepend_label("x").unwrap(), ..asked.clone() };
                prop_assert_eq!(answer(&zone(), &state, &deeper).code, ResponseCode::NXDomain);
            }
            let lower = Query { name: asked.name.to_lowercase(), ..asked };
            prop_assert_eq!(answer(&zone(), &state, &lower).code, found.code);
        }
    }
}
