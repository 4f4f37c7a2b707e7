//! `trace`: a packet's way through a node, rule by rule, from our intent and from what its kernel really holds.

use crate::client::failure::Failure;
use crate::client::findings::TextOrJson;
use crate::client::output::print;
use crate::client::{Global, Session};
use clap::Args;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{DataplaneAnswer, DataplaneRequest, Kind, TraceAnswer, TraceQuery, Traced};
use serde_json::{Value, json};
use std::net::IpAddr;

/// Shares closer than this are equal.
const SHARE: f64 = 1e-6;

/// Flags of `trace`.
#[derive(Args, Debug)]
pub struct TraceArgs {
    /// Where the packet comes from: an address, a pod as NAMESPACE/NAME, or a node
    from: String,
    /// Where it goes, DST:PORT[/tcp|udp|sctp]: an address ([…] around IPv6) or a service as NAMESPACE/NAME; its port by
    /// number or by name
    #[arg(value_name = "DST:PORT/PROTO")]
    to: String,
    /// The node that it passes [default: that of the pod, or the node that it comes from]
    #[arg(long)]
    node: Option<String>,
    /// text or json
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// What a command line names as the destination.
#[derive(Debug, PartialEq)]
struct To {
    host: String,
    port: String,
    protocol: &'static str,
}

/// A packet's way, and what made it so.
struct Told {
    node: String,
    query: TraceQuery,
    answer: DataplaneAnswer,
    trace: TraceAnswer,
    /// Revisions of the service and of its endpoints.
    made_by: Option<(u64, u64)>,
}

/// Runs it.
///
/// # Errors
/// The packet makes no sense, or the node can't say.
pub async fn run(global: &Global, args: &TraceArgs) -> Result<(), Failure> {
    let to = To::parse(&args.to)?;
    let session = global.session()?;
    let (sources, home) = source(&session, &args.from).await?;
    let (destinations, port) = destination(&session, &to).await?;
    let node = args.node.clone().or(home).ok_or_else(|| Failure::local("say which node it passes: --node NAME"))?;
    let (source, destination) = pair(&sources, &destinations)
        .ok_or_else(|| Failure::local(format!("{} and {} have no address of one family", args.from, to.host)))?;
    let query = TraceQuery {
        source: source.to_string(),
        destination: destination.to_string(),
        port: u32::from(port),
        protocol: to.protocol.to_owned(),
    };
    let told = ask(&session, node, query).await?;
    print(&args.output.choose(|| text(&told), || to_json(&told))?)
}

async fn ask(session: &Session, node: String, query: TraceQuery) -> Result<Told, Failure> {
    let request = DataplaneRequest { node: node.clone(), trace: Some(query.clone()), ..DataplaneRequest::default() };
    let answers = session.servers.dataplane(request).await?.nodes;
    let answer = answers.into_iter().find_map(|one| one.answer);
    let mut answer = answer.ok_or_else(|| Failure::local(format!("node {node} did not answer in time")))?;
    let Some(trace) = answer.trace.take() else {
        return Err(Failure::local(match answer.error.as_str() {
            "" => format!("the agent of node {node} is older and can't trace"),
            error => format!("node {node}: {error}"),
        }));
    };
    let mut made_by = None;
    if let Some((namespace, name)) = trace.service.split_once('/') {
        let revision = async |kind| {
            let object = session.object(&Key::new(kind, namespace, name)).await.ok()?;
            Some(object.metadata().revision)
        };
        made_by = revision(Kind::Service).await.zip(revision(Kind::Endpoints).await);
    }
    Ok(Told { node, query, answer, trace, made_by })
}

impl To {
    fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || Failure::local(format!("{text:?} is not DST:PORT or DST:PORT/PROTO, as in default/web:80/tcp"));
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, last)) if !last.contains(':') => {
                let known = ["TCP", "UDP", "SCTP"].into_iter().find(|known| known.eq_ignore_ascii_case(last));
                (rest, known.ok_or_else(wrong)?)
            }
            _ => (text, "TCP"),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        if host.is_empty() || port.is_empty() || (bare.is_none() && host.contains(':')) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port: port.to_owned(), protocol })
    }
}

/// Addresses that a packet may come from, and the node where that is.
async fn source(session: &Session, from: &str) -> Result<(Vec<IpAddr>, Option<String>), Failure> {
    if let Ok(address) = from.parse() {
        return Ok((vec![address], None));
    }
    let (object, what) = match from.split_once('/') {
        Some((namespace, name)) => (session.object(&Key::new(Kind::Pod, namespace, name)).await?, "pod"),
        None => (session.object(&Key::new(Kind::Node, "", from)).await?, "node"),
    };
    let (texts, home) = match (object.as_pod(), object.as_node()) {
        (Some(pod), _) => {
            let status = pod.status.clone().unwrap_or_default();
            let ips = status.pod_ips.into_iter().map(|ip| ip.ip).chain([status.pod_ip]).collect();
            (ips, pod.spec.as_ref().map(|spec| spec.node_name.clone()))
        }
        (_, Some(node)) => {
            let addresses = node.status.clone().unwrap_or_default().addresses;
            (addresses.into_iter().map(|one| one.address).collect::<Vec<_>>(), Some(from.to_owned()))
        }
        _ => (Vec::new(), None),
    };
    let addresses: Vec<IpAddr> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        return Err(Failure::local(format!("{what} {from} has no address yet")));
    }
    Ok((addresses, home.filter(|node| !node.is_empty())))
}

/// Addresses that it may go to, and the port.
async fn destination(session: &Session, to: &To) -> Result<(Vec<IpAddr>, u16), Failure> {
    let number = to.port.parse::<u16>().ok().filter(|port| *port != 0);
    if let Ok(address) = to.host.parse() {
        let port = number.ok_or_else(|| Failure::local(format!("{:?} is not a port from 1 to 65535", to.port)))?;
        return Ok((vec![address], port));
    }
    let (namespace, name) = to.host.split_once('/').unwrap_or((session.namespace.as_str(), &to.host));
    let object = session.object(&Key::new(Kind::Service, namespace, name)).await?;
    let spec = object.as_service().and_then(|service| service.spec.clone()).unwrap_or_default();
    let named = spec.ports.iter().find(|port| port.name == to.port).and_then(|port| u16::try_from(port.port).ok());
    let port = number
        .or(named)
        .ok_or_else(|| Failure::local(format!("service {namespace}/{name} has no port named {:?}", to.port)))?;
    let addresses: Vec<IpAddr> = spec.cluster_ips.iter().filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        return Err(Failure::local(format!(
            "service {namespace}/{name} has no ClusterIP: trace to the address of one of its pods"
        )));
    }
    Ok((addresses, port))
}

/// The first of both that are of one family.
fn pair(sources: &[IpAddr], destinations: &[IpAddr]) -> Option<(IpAddr, IpAddr)> {
    let ways = sources.iter().flat_map(|source| destinations.iter().map(move |destination| (*source, *destination)));
    ways.into_iter().find(|(source, destination)| source.is_ipv4() == destination.is_ipv4())
}

/// Both lead to the same ends with the same shares.
fn agree(trace: &TraceAnswer) -> bool {
    let none = Traced::default();
    let (intent, kernel) = (trace.intent.as_ref().unwrap_or(&none), trace.kernel.as_ref().unwrap_or(&none));
    intent.ends.len() == kernel.ends.len()
        && intent.ends.iter().zip(&kernel.ends).all(|(one, other)| {
            (&one.verdict, &one.destination, one.masqueraded) == (&other.verdict, &other.destination, other.masqueraded)
                && (one.share - other.share).abs() < SHARE
        })
}

fn text(told: &Told) -> String {
    let Told { node, query, answer, trace, made_by } = told;
    let host = |text: &str| if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
    let to = format!("{}:{}", host(&query.destination), query.port);
    let mut text = format!(
        "{} {} -> {to} on node {node} ({}, serves revision {})\n",
        query.protocol.to_ascii_lowercase(),
        query.source,
        answer.mode,
        answer.revision
    );
    match (trace.service.as_str(), made_by) {
        ("", _) => text.push_str("No service has this address.\n"),
        (service, Some((own, endpoints))) => text
            .push_str(&format!("Service {service} is of revision {own}, its endpoints are of revision {endpoints}.\n")),
        (service, None) => text.push_str(&format!("Service {service}, which the servers no longer have.\n")),
    }
    if !answer.error.is_empty() {
        text.push_str(&format!("The kernel refuses the newest rules: {}\n", answer.error));
    }
    let none = Traced::default();
    let kernel = trace.kernel.as_ref().unwrap_or(&none);
    if agree(trace) {
        text.push_str(&format!("\nFrom the kernel, which does what revision {} intends:\n", trace.revision));
        way(kernel, &to, &mut text);
    } else {
        text.push_str(&format!("\nFrom our intent, revision {}:\n", trace.revision));
        way(trace.intent.as_ref().unwrap_or(&none), &to, &mut text);
        text.push_str("\nFrom what the kernel holds:\n");
        way(kernel, &to, &mut text);
        text.push_str(&format!(
            "\nThe kernel does not do what is intended. Next: fairlead dataplane diff --node {node}\n"
        ));
    }
    text
}

fn way(traced: &Traced, to: &str, text: &mut String) {
    for step in &traced.steps {
        text.push_str(&format!("  {:>5}  {} / {}\n", percent(step.share), step.hook, step.chain));
        text.push_str(&format!("           {}\n           => {}\n", step.rule, step.effect));
    }
    if traced.more > 0 {
        text.push_str(&format!("         ({} more steps)\n", traced.more));
    }
    for end in &traced.ends {
        let place = match end.verdict.as_str() {
            "reaches" if end.destination == to => format!("goes on to {to}: no rule of ours rewrites it"),
            "reaches" => format!("reaches {}", end.destination),
            "rejected" => "is refused".to_owned(),
            "dropped" => "is dropped".to_owned(),
            _ => "is not known: a rule that isn't ours decides".to_owned(),
        };
        let mask = if end.masqueraded { ", with the node's address as its source" } else { "" };
        text.push_str(&format!("  {:>5}  {place}{mask}\n", percent(end.share)));
    }
}

fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if (percent - percent.round()).abs() < 0.05 { format!("{percent:.0}%") } else { format!("{percent:.1}%") }
}

fn to_json(told: &Told) -> Value {
    let Told { node, query, answer, trace, made_by } = told;
    let way = |traced: &Option<Traced>| {
        let traced = traced.clone().unwrap_or_default();
        let steps = traced.steps.iter().map(|step| {
            json!({"hook": step.hook, "chain": step.chain, "rule": step.rule, "effect": step.effect, "share": step.share})
        });
        let ends = traced.ends.iter().map(|end| {
            json!({"verdict": end.verdict, "destination": end.destination, "masqueraded": end.masqueraded, "share": end.share})
        });
        json!({"steps": steps.collect::<Vec<_>>(), "ends": ends.collect::<Vec<_>>(), "moreSteps": traced.more})
    };
    json!({
        "node": node,
        "mode": answer.mode,
        "appliedRevision": answer.revision,
        "error": answer.error,
        "packet": {"source": query.source, "destination": query.destination, "port": query.port, "protocol": query.protocol},
        "service": trace.service,
        "serviceRevision": made_by.map(|(own, _)| own),
        "endpointsRevision": made_by.map(|(_, endpoints)| endpoints),
        "intentRevision": trace.revision,
        "agree": agree(trace),
        "intent": way(&trace.intent),
        "kernel": way(&trace.kernel),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::{TraceEnd, TraceStep};

    #[test]
    fn destinations_are_host_port_and_protocol() {
        for (text, host, port, protocol) in [
            ("10.96.0.10:80", "10.96.0.10", "80", "TCP"),
            ("10.96.0.10:53/udp", "10.96.0.10", "53", "UDP"),
            ("[fd00::1]:80/SCTP", "fd00::1", "80", "SCTP"),
            ("default/web:80", "default/web", "80", "TCP"),
            ("default/web:http/tcp", "default/web", "http", "TCP"),
            ("web:80", "web", "80", "TCP"),
        ] {
            let to = To { host: host.into(), port: port.into(), protocol };
            assert_eq!(To::parse(text), Ok(to), "{text}");
        }
        for text in ["10.96.0.10", "fd00::1:80", "default/web", "web:80/icmp", ":80", "web:", ""] {
            assert!(To::parse(text).unwrap_err().text().contains("DST:PORT"), "{text}");
        }
    }

    #[test]
    fn addresses_of_one_family_are_paired() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let (source, destination) = pair(&ips(&["fd00::1", "10.0.0.1"]), &ips(&["10.96.0.1"])).unwrap();
        assert_eq!((source.to_string(), destination.to_string()), ("10.0.0.1".into(), "10.96.0.1".into()));
        assert_eq!(pair(&ips(&["10.0.0.1"]), &ips(&["fd00::1"])), None);
    }

    fn traced(verdict: &str, destination: &str, share: f64) -> Traced {
        let step = TraceStep {
            hook: "nat prerouting".into(),
            chain: "services".into(),
            rule: "RULE".into(),
            effect: "found".into(),
            share: 1.0,
        };
        let end = TraceEnd { verdict: verdict.into(), destination: destination.into(), masqueraded: false, share };
        Traced { steps: vec![step], ends: vec![end], more: 0 }
    }

    #[test]
    fn a_break_shows_both_ways_and_what_to_do() {
        let query = TraceQuery {
            source: "10.244.0.1".into(),
            destination: "10.96.0.10".into(),
            port: 80,
            protocol: "TCP".into(),
        };
        let answer = DataplaneAnswer { mode: "nftables".into(), revision: 60, ..DataplaneAnswer::default() };
        let trace = TraceAnswer {
            service: "default/web".into(),
            revision: 60,
            intent: Some(traced("reaches", "10.244.1.2:8080", 1.0)),
            kernel: Some(traced("reaches", "10.244.1.2:8080", 1.0)),
        };
        let mut told = Told { node: "n1".into(), query, answer, trace, made_by: Some((12, 57)) };
        let said = text(&told);
        assert_eq!(
            said,
            "tcp 10.244.0.1 -> 10.96.0.10:80 on node n1 (nftables, serves revision 60)\nService default/web is of revision 12, its endpoints are of revision 57.\n\nFrom the kernel, which does what revision 60 intends:\n   100%  nat prerouting / services\n           RULE\n           => found\n   100%  reaches 10.244.1.2:8080\n"
        );
        assert_eq!(to_json(&told)["agree"], true);
        told.trace.kernel = Some(traced("reaches", "10.96.0.10:80", 1.0));
        let said = text(&told);
        for part in [
            "From our intent, revision 60:",
            "From what the kernel holds:",
            "goes on to 10.96.0.10:80: no rule",
            "Next: fairlead dataplane diff --node n1",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert_eq!(to_json(&told)["agree"], false);
        told.trace.kernel = Some(traced("reaches", "10.244.1.2:8080", 0.5));
        assert!(!agree(&told.trace), "shares count");
        assert_eq!((percent(1.0 / 3.0).as_str(), percent(0.5).as_str()), ("33.3%", "50%"));
    }
}
