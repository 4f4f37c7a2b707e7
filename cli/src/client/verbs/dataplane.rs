//! `dataplane list`: what the nodes' kernels hold, asked of their agents.

use crate::client::Global;
use crate::client::failure::Failure;
use crate::client::output::{json_text, print};
use crate::client::table::Aligner;
use clap::{Args, Subcommand, ValueEnum};
use fairlead_proto::v1::{DataplaneAnswer, DataplaneRequest, DataplaneResponse};
use serde_json::{Value, json};

/// Verbs of `dataplane`.
#[derive(Debug, Subcommand)]
pub enum DataplaneVerb {
    /// List what the nodes serve
    List(ListArgs),
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
/// No server answers, or a node can't say; what others said is printed.
pub async fn run(global: &Global, verb: DataplaneVerb) -> Result<(), Failure> {
    let DataplaneVerb::List(args) = verb;
    let request = DataplaneRequest { node: args.node.unwrap_or_default(), rules: args.output != View::Table };
    let answer = global.session()?.servers.dataplane(request).await?;
    if answer.nodes.is_empty() {
        eprintln!("No node is connected.");
    }
    print(&match args.output {
        View::Table => table(&answer),
        View::Json => json_text(&to_json(&answer))?,
        View::Rules => rules(&answer),
    })?;
    let silent = answer.nodes.iter().filter_map(|node| match &node.answer {
        None => Some(Failure::local(format!("node {} did not answer", node.node))),
        Some(said) if !said.error.is_empty() => Some(Failure::local(format!("node {}: {}", node.node, said.error))),
        Some(_) => None,
    });
    Failure::all(silent.collect())
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
    let titles = ["NODE", "MODE", "REVISION", "SERVICE", "FRONTEND", "BACKENDS"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for (node, answer) in answers(response) {
        let head = [node.to_owned(), answer.mode.clone(), answer.revision.to_string()];
        if answer.frontends.is_empty() {
            rows.push(head.iter().cloned().chain(["<none>".to_owned(), String::new(), String::new()]).collect());
        }
        for frontend in &answer.frontends {
            let address = if frontend.address.contains(':') {
                format!("[{}]", frontend.address)
            } else {
                frontend.address.clone()
            };
            let place = format!("{address}:{}/{}", frontend.port, frontend.protocol);
            let backends = if frontend.backends.is_empty() { "<none>".to_owned() } else { frontend.backends.join(",") };
            rows.push(head.iter().cloned().chain([frontend.service.clone(), place, backends]).collect());
        }
    }
    if rows.len() > 1 { Aligner::default().render(&rows) } else { String::new() }
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
            json!({"service": frontend.service, "protocol": frontend.protocol, "address": frontend.address, "port": frontend.port, "backends": frontend.backends})
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
    use fairlead_proto::v1::{DataplaneFrontend, NodeDataplane};

    fn node(name: &str, frontends: Vec<DataplaneFrontend>, error: &str) -> NodeDataplane {
        let answer = DataplaneAnswer {
            mode: "iptables".into(),
            revision: 7,
            rules: "*nat\nCOMMIT".into(),
            error: error.into(),
            frontends,
            query_id: 1,
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
            "NODE   MODE       REVISION   SERVICE       FRONTEND            BACKENDS\na      iptables   7          default/web   10.96.0.10:80/TCP   10.244.0.1:80,10.244.0.2:80\na      iptables   7          default/web   10.96.0.10:80/TCP   <none>\nb      iptables   7          <none>                            \n"
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
}
