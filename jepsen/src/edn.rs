//! Histories as Jepsen writes them (EDN, one map a line), so that Knossos and Elle can read them, too.

use crate::history::{Answer, Call, Operation};
use std::fmt::Write as _;

/// The whole history: each operation's call and its end, in the order of time.
#[must_use]
pub fn render(history: &[Operation]) -> String {
    let mut lines: Vec<(u64, usize, String)> = Vec::with_capacity(history.len() * 2);
    for (place, operation) in history.iter().enumerate() {
        let (f, invoked) = call(&operation.call);
        let common = format!(":process {}, :f :{f}, :node \"n{}\"", operation.process, operation.node);
        lines.push((operation.called, place, format!(":type :invoke, {common}, :value {invoked}")));
        let (kind, value, extra) = end(operation, &invoked);
        // What stays unknown is told last: Jepsen's readers take it as concurrent with all that follows its call.
        lines.push((operation.returned, place, format!(":type :{kind}, {common}, :value {value}{extra}")));
    }
    lines.sort_by_key(|(time, place, _)| (*time, *place));
    let mut text = String::new();
    for (index, (time, _, rest)) in lines.iter().enumerate() {
        let _ = writeln!(text, "{{:index {index}, :time {time}, {rest}}}");
    }
    text
}

fn call(call: &Call) -> (&'static str, String) {
    match call {
        Call::Write(key, value) => ("write", format!("[{key:?} {value}]")),
        Call::Cas { key, from, to, .. } => ("cas", format!("[{key:?} [{from} {to}]]")),
        Call::Read(key) => ("read", format!("[{key:?} nil]")),
        Call::Append(key, value) => ("txn", format!("[[:append {key:?} {value}]]")),
        Call::ReadLists(keys) => {
            let reads: Vec<String> = keys.iter().map(|key| format!("[:r {key:?} nil]")).collect();
            ("txn", format!("[{}]", reads.join(" ")))
        }
        Call::Add(value) => ("add", value.to_string()),
        Call::Remove(value) => ("remove", value.to_string()),
        Call::ReadSet => ("read-set", "nil".to_owned()),
    }
}

fn end(operation: &Operation, invoked: &str) -> (&'static str, String, String) {
    let at = |revision: &u64| format!(", :rev {revision}");
    match &operation.answer {
        Answer::Done { revision } => ("ok", invoked.to_owned(), at(revision)),
        Answer::Value { value, revision } => {
            let key = if let Call::Read(key) = &operation.call { key.as_str() } else { "" };
            let value = value.map_or_else(|| "nil".to_owned(), |(value, _)| value.to_string());
            ("ok", format!("[{key:?} {value}]"), at(revision))
        }
        Answer::Lists { lists, revision } => {
            let reads: Vec<String> =
                lists.iter().map(|(key, values)| format!("[:r {key:?} [{}]]", spaced(values))).collect();
            ("ok", format!("[{}]", reads.join(" ")), at(revision))
        }
        Answer::Set { members, revision } => ("ok", format!("#{{{}}}", spaced(members)), at(revision)),
        Answer::Refused(why) => ("fail", invoked.to_owned(), format!(", :error {why:?}")),
        Answer::Unknown(why) => ("info", invoked.to_owned(), format!(", :error {why:?}")),
    }
}

fn spaced(values: &[u64]) -> String {
    values.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_reads_as_jepsen_writes_it() {
        let operation = |call, answer, returned| Operation { process: 3, node: 2, called: 10, returned, call, answer };
        let history = [
            operation(Call::Write("r1".into(), 7), Answer::Unknown("no answer".into()), u64::MAX),
            operation(Call::Read("r1".into()), Answer::Value { value: Some((7, 4)), revision: 5 }, 20),
        ];
        let text = render(&history);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            r#"{:index 0, :time 10, :type :invoke, :process 3, :f :write, :node "n2", :value ["r1" 7]}"#
        );
        assert_eq!(
            lines[2],
            r#"{:index 2, :time 20, :type :ok, :process 3, :f :read, :node "n2", :value ["r1" 7], :rev 5}"#
        );
        assert!(lines[3].contains(":type :info") && lines[3].contains(r#":error "no answer""#));
    }
}
