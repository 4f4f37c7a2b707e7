//! `dataplane`: what the nodes' kernels hold beside what they should hold, asked of their agents.

use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::findings::TextOrJson;
use crate::client::output::{json_text, print};
use crate::client::table::Aligner;
use clap::{Args, Subcommand, ValueEnum};
use fairlead_proto::v1::{DataplaneAnswer, DataplaneFrontend, DataplaneRequest, DataplaneResponse, NodeDataplane};
use serde_json::{Value, json};

/// Verbs of `dataplane`.
#[derive(Debug, Subcommand)]
pub enum DataplaneVerb {
    /// List what the nodes should serve, beside what their kernels do
    List(ListArgs),
    /// Show what somebody else changed in the nodes' kernels; exit code 1 if there is anything
    Diff(DiffArgs),
}

/// Flags of `dataplane list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Only this node [default: every connected one]
    #[arg(long)]
    node: Option<String>,
    /// table, json, or rules: the rule set as text
    #[arg(short, long, value_enum, default_value = "table")]
    output: View,
}

/// Flags of `dataplane diff`.
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// Only this node [default: every connected one]
    #[arg(long)]
    node: Option<String>,
    /// text or json
    #[arg(short, long, value_enum, default_value = "text")]
    output: TextOrJson,
}

/// How to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum View {
    Table,
    Json,
    Rules,
}

/// Runs it.
///
/// # Errors
/// No server answers, or a node can't say; what others said is printed. `diff` fails if there is a difference.
pub async fn run(global: &Global, verb: DataplaneVerb) -> Result<(), Failure> {
    match verb {
        DataplaneVerb::List(args) => list(global, args).await,
        DataplaneVerb::Diff(args) => diff(global, args).await,
    }
}

async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let request = DataplaneRequest {
        node: args.node.unwrap_or_default(),
        rules: args.output != View::Table,
        observed: args.output != View::Rules,
        ..DataplaneRequest::default()
    };
    let answer = ask(global, request).await?;
    print(&match args.output {
        View::Table => table(&answer),
        View::Json => json_text(&to_json(&answer))?,
        View::Rules => rules(&answer),
    })?;
    Failure::all(troubles(&answer))
}

async fn diff(global: &Global, args: DiffArgs) -> Result<(), Failure> {
    let request = DataplaneRequest { node: args.node.unwrap_or_default(), diff: true, ..DataplaneRequest::default() };
    let answer = ask(global, request).await?;
    print(&args.output.choose(|| differences(&answer), || differences_json(&answer))?)?;
    let mut troubles = troubles(&answer);
    let old = answer
        .nodes
        .iter()
        .filter(|node| node.answer.as_ref().is_some_and(|answer| answer.diff.is_none() && answer.error.is_empty()));
    troubles
        .extend(old.map(|node| Failure::local(format!("the agent of node {} is older and can't compare", node.node))));
    let drifted = answer.nodes.iter().any(|node| count(node) > 0);
    if drifted && troubles.is_empty() { Err(Failure::Silent) } else { Failure::all(troubles) }
}

async fn ask(global: &Global, request: DataplaneRequest) -> Result<DataplaneResponse, Failure> {
    let answer = global.session()?.servers.dataplane(request).await?;
    if answer.nodes.is_empty() {
        eprintln!("No node is connected.");
    }
    Ok(answer)
}

/// Why nodes can't say.
fn troubles(response: &DataplaneResponse) -> Vec<Failure> {
    let trouble = |node: &NodeDataplane| match &node.answer {
        None => Some(Failure::local(format!("node {} did not answer in time", node.node))),
        Some(said) if !said.error.is_empty() => Some(Failure::local(format!("node {}: {}", node.node, said.error))),
        Some(_) => None,
    };
    response.nodes.iter().filter_map(trouble).collect()
}

fn count(node: &NodeDataplane) -> u64 {
    node.answer.as_ref().and_then(|answer| answer.diff.as_ref()).map_or(0, |diff| diff.count)
}

fn differences(response: &DataplaneResponse) -> String {
    let mut text = String::new();
    for node in &response.nodes {
        let Some((answer, diff)) = node.answer.as_ref().and_then(|answer| Some((answer, answer.diff.as_ref()?))) else {
            continue;
        };
        let what = match diff.count {
            0 => "holds".to_owned(),
            1 => "has 1 difference from".to_owned(),
            many => format!("has {many} differences from"),
        };
        text.push_str(&format!(
            "node {} ({}) {what} what revision {} asks for\n",
            node.node, answer.mode, diff.revision
        ));
        text.extend(diff.names.iter().map(|name| format!("  {name}\n")));
        let more = diff.count.saturating_sub(diff.names.len() as u64);
        if more > 0 {
            text.push_str(&format!("  and {more} more\n"));
        }
    }
    text
}

fn differences_json(response: &DataplaneResponse) -> Value {
    let nodes = response.nodes.iter().map(|node| {
        let answer = node.answer.clone().unwrap_or_default();
        let diff = answer.diff.clone().unwrap_or_default();
        json!({
            "node": node.node,
            "mode": answer.mode,
            "answered": answer.diff.is_some(),
            "error": answer.error,
            "revision": diff.revision,
            "count": diff.count,
            "differences": diff.names,
        })
    });
    json!({"nodes": nodes.collect::<Vec<_>>()})
}

/// The nodes that could say something.
fn answers(response: &DataplaneResponse) -> impl Iterator<Item = (&str, &DataplaneAnswer)> {
    response
        .nodes
        .iter()
        .filter_map(|node| Some((node.node.as_str(), node.answer.as_ref()?)))
        .filter(|(_, answer)| answer.error.is_empty())
}

fn table(response: &DataplaneResponse) -> String {
    let titles = ["NODE", "MODE", "REVISION", "SERVICE", "FRONTEND", "DESIRED", "KERNEL"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (node, answer) in answers(response) {
        let head = [node.to_owned(), answer.mode.clone(), answer.revision.to_string()];
        if answer.frontends.is_empty() {
            rows.push(head.iter().cloned().chain(["<none>", "", "", ""].map(str::to_owned)).collect());
        }
        for frontend in &answer.frontends {
            let address = if frontend.address.contains(':') {
                format!("[{}]", frontend.address)
            } else {
                frontend.address.clone()
            };
            let place = format!("{address}:{}/{}", frontend.port, frontend.protocol);
            let backends = if frontend.backends.is_empty() { "<none>".to_owned() } else { frontend.backends.join(",") };
            let cells = [frontend.service.clone(), place, backends, kernel(frontend)];
            rows.push(head.iter().cloned().chain(cells).collect());
        }
    }
    if rows.len() > 1 { Aligner::default().render(&rows) } else { String::new() }
}

/// Where the kernel leads; an older agent doesn't say.
fn kernel(frontend: &DataplaneFrontend) -> String {
    match (frontend.observed.is_empty(), frontend.drifted) {
        (true, _) => "<unknown>".to_owned(),
        (false, false) => "same".to_owned(),
        (false, true) => format!("{} (differs)", frontend.observed.join(",")),
    }
}

fn rules(response: &DataplaneResponse) -> String {
    let several = response.nodes.len() > 1;
    let mut text = String::new();
    for (node, answer) in answers(response) {
        if several {
            text.push_str(&format!("# node {node} ({}, revision {})\n", answer.mode, answer.revision));
        }
        text.push_str(&answer.rules);
        if !answer.rules.is_empty() && !answer.rules.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

fn to_json(response: &DataplaneResponse) -> Value {
    let nodes = response.nodes.iter().map(|node| {
        let answer = node.answer.clone().unwrap_or_default();
        let frontends = answer.frontends.iter().map(|frontend| {
            json!({"service": frontend.service, "protocol": frontend.protocol, "address": frontend.address, "port": frontend.port, "backends": frontend.backends,
                "observed": frontend.observed, "drifted": frontend.drifted})
        });
        json!({
            "node": node.node,
            "mode": answer.mode,
            "revision": answer.revision,
            "rules": answer.rules,
            "error": answer.error,
            "frontends": frontends.collect::<Vec<_>>(),
        })
    });
    json!({"nodes": nodes.collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_proto::v1::DataplaneDiff;

    fn node(name: &str, frontends: Vec<DataplaneFrontend>, error: &str) -> NodeDataplane {
        let answer = DataplaneAnswer {
            mode: "iptables".into(),
            revision: 7,
            rules: "*nat\nCOMMIT".into(),
            error: error.into(),
            frontends,
            query_id: 1,
            ..DataplaneAnswer::default()
        };
        NodeDataplane { node: name.into(), answer: Some(answer) }
    }

    #[test]
    fn frontends_as_a_table_and_rules_as_text() {
        let frontend = |backends: &[&str]| DataplaneFrontend {
            service: "default/web".into(),
            protocol: "TCP".into(),
            address: "10.96.0.10".into(),
            port: 80,
            backends: backends.iter().map(|&one| one.to_owned()).collect(),
            observed: vec![if backends.is_empty() { "unserved" } else { "10.244.0.1:80" }.to_owned()],
            drifted: backends.is_empty(),
        };
        let response = DataplaneResponse {
            nodes: vec![
                node("a", vec![frontend(&["10.244.0.1:80", "10.244.0.2:80"]), frontend(&[])], ""),
                node("b", Vec::new(), ""),
                node("c", Vec::new(), "gone"),
            ],
        };
        assert_eq!(
            table(&response),
            "NODE   MODE       REVISION   SERVICE       FRONTEND            DESIRED                       KERNEL\na      iptables   7          default/web   10.96.0.10:80/TCP   10.244.0.1:80,10.244.0.2:80   same\na      iptables   7          default/web   10.96.0.10:80/TCP   <none>                        unserved (differs)\nb      iptables   7          <none>                                                          \n"
        );
        assert_eq!(
            rules(&response),
            "# node a (iptables, revision 7)\n*nat\nCOMMIT\n# node b (iptables, revision 7)\n*nat\nCOMMIT\n"
        );
        let one = DataplaneResponse { nodes: vec![node("a", Vec::new(), "")] };
        assert_eq!(rules(&one), "*nat\nCOMMIT\n");
        assert_eq!(to_json(&response)["nodes"][2]["error"], "gone");
        assert_eq!(table(&DataplaneResponse::default()), "");
    }
    #[test]
    fn differences_are_named_and_counted() {
        let mut one = node("a", Vec::new(), "");
        let names = vec!["chain services in ip missing or different".to_owned()];
        one.answer.as_mut().unwrap().diff = Some(DataplaneDiff { names, count: 3, revision: 9, settings: Vec::new() });
        let mut two = node("b", Vec::new(), "");
        two.answer.as_mut().unwrap().diff = Some(DataplaneDiff { revision: 9, ..DataplaneDiff::default() });
        let response = DataplaneResponse { nodes: vec![one, two, NodeDataplane { node: "c".into(), answer: None }] };
        assert_eq!(
            differences(&response),
            "node a (iptables) has 3 differences from what revision 9 asks for\n  chain services in ip missing or different\n  and 2 more\nnode b (iptables) holds what revision 9 asks for\n"
        );
        assert_eq!(differences_json(&response)["nodes"][0]["count"], 3);
        assert_eq!(differences_json(&response)["nodes"][2]["answered"], false);
        assert_eq!(Failure::all(troubles(&response)).unwrap_err().text(), "error: node c did not answer in time");
    }
}
