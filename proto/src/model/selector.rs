//! Label and field selectors, with apimachinery's grammar.
//!
//! `a=b`, `a==b`, `a!=b`, `a in (x,y)`, `a notin (x)`, `a`, `!a`, `a>1`, `a<2`, joined by commas. `notin` and `!=` match
//! what lacks the key.

use crate::v1::{Event, Kind, Object};
use std::collections::BTreeMap;

/// A parsed label selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

impl LabelSelector {
    /// Parses a selector.
    ///
    /// # Errors
    /// What is wrong, as apimachinery words it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if parser.rest.is_empty() {
                break;
            }
            parser.expect(',')?;
            parser.skip_space();
            if parser.rest.is_empty() {
                return Err(format!("found '', expected: identifier after ',' in {text:?}"));
            }
        }
        Ok(Self(requirements))
    }

    /// True if labels meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels.get(&requirement.key)))
    }
}

impl Requirement {
    fn matches(&self, value: Option<&String>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Greater(than) => number().is_some_and(|number| number > *than),
            Test::Less(than) => number().is_some_and(|number| number < *than),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn take(&mut self, symbol: &str) -> bool {
        self.skip_space();
        let found = self.rest.strip_prefix(symbol);
        self.rest = found.unwrap_or(self.rest);
        found.is_some()
    }

    fn expect(&mut self, symbol: char) -> Result<(), String> {
        self.skip_space();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(format!("found '{}', expected: '{symbol}'", self.rest.chars().take(12).collect::<String>())),
        }
    }

    fn word(&mut self) -> String {
        self.skip_space();
        let end = self.rest.find(|letter: char| " \t\r\n,()=!<>".contains(letter)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        if self.take("!") {
            return Ok(Requirement { key: self.key()?, test: Test::Absent });
        }
        let key = self.key()?;
        let test = if self.take("!=") {
            Test::NotIn(vec![self.value()?])
        } else if self.take("==") || self.take("=") {
            Test::In(vec![self.value()?])
        } else if self.take(">") {
            Test::Greater(self.number()?)
        } else if self.take("<") {
            Test::Less(self.number()?)
        } else {
            self.skip_space();
            if self.rest.is_empty() || self.rest.starts_with(',') {
                Test::Exists
            } else {
                match self.word().as_str() {
                    "in" => Test::In(self.values()?),
                    "notin" => Test::NotIn(self.values()?),
                    other => return Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
                }
            }
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, String> {
        let key = self.word();
        if key.is_empty() {
            return Err(format!(
                "found '{}', expected: !, identifier, or 'end of string'",
                self.rest.chars().take(12).collect::<String>()
            ));
        }
        let problems = crate::convert::qualified_name_problems(&key);
        match problems.first() {
            Some(problem) => Err(format!("key: Invalid value: {key:?}: {problem}")),
            None => Ok(key),
        }
    }

    fn value(&mut self) -> Result<String, String> {
        let value = self.word();
        match crate::convert::label_value_problem(&value) {
            Some(problem) => Err(format!("values[0]: Invalid value: {value:?}: {problem}")),
            None => Ok(value),
        }
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word();
        word.parse().map_err(|_| {
            format!("values[0]: Invalid value: {word:?}: for 'Gt', 'Lt' operators, the value must be an integer")
        })
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        self.expect('(')?;
        let mut values = vec![self.value()?];
        loop {
            self.skip_space();
            if self.take(",") {
                values.push(self.value()?);
            } else {
                self.expect(')')?;
                return Ok(values);
            }
        }
    }
}

/// A parsed field selector; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, String)>);

impl FieldSelector {
    /// Parses a selector for a kind.
    ///
    /// # Errors
    /// `field label not supported: x`, or the syntax.
    pub fn parse(kind: Kind, text: &str) -> Result<Self, String> {
        let mut terms = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(format!("invalid selector: '{part}'; can't understand '{part}'"));
            };
            let field = field.trim();
            if !supported(kind).contains(&field) {
                return Err(format!("field label not supported: {field}"));
            }
            terms.push((field.to_owned(), equal, value.trim().to_owned()));
        }
        Ok(Self(terms))
    }

    /// True if an object meets every term.
    #[must_use]
    pub fn matches(&self, object: &Object) -> bool {
        self.0.iter().all(|(field, equal, value)| (field_of(object, field) == *value) == *equal)
    }
}

/// The fields that a kind may be selected by (Kubernetes' own).
fn supported(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Namespace => &["metadata.name", "status.phase"],
        Kind::Node => &["metadata.name", "spec.unschedulable"],
        Kind::Pod => &[
            "metadata.name",
            "metadata.namespace",
            "spec.nodeName",
            "spec.hostNetwork",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.nominatedNodeName",
            "status.phase",
            "status.podIP",
            "status.podIPs",
        ],
        Kind::Service => &["metadata.name", "metadata.namespace", "spec.clusterIP", "spec.type"],
        Kind::Endpoints => &["metadata.name", "metadata.namespace"],
        Kind::Event => &[
            "metadata.name",
            "metadata.namespace",
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        Kind::Unspecified => &[],
    }
}

fn field_of(object: &Object, field: &str) -> String {
    let metadata = object.metadata();
    let pod_status = || object.as_pod().and_then(|pod| pod.status.clone()).unwrap_or_default();
    let pod_spec = || object.as_pod().and_then(|pod| pod.spec.clone()).unwrap_or_default();
    let service_spec = || object.as_service().and_then(|service| service.spec.clone()).unwrap_or_default();
    if let Some(event) = object.as_event()
        && !field.starts_with("metadata.")
    {
        return event_field(object, event, field);
    }
    match field {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "spec.nodeName" => pod_spec().node_name,
        "spec.hostNetwork" => pod_spec().host_network.to_string(),
        "status.podIP" | "status.podIPs" => pod_status().pod_ip,
        "status.phase" => match object.as_namespace() {
            Some(namespace) => namespace.status.clone().unwrap_or_default().phase,
            None => pod_status().phase,
        },
        "spec.unschedulable" => {
            object.as_node().and_then(|node| node.spec.as_ref()).is_some_and(|spec| spec.unschedulable).to_string()
        }
        "spec.clusterIP" => service_spec().cluster_ip,
        "spec.type" => service_spec().r#type,
        "spec.restartPolicy" => kept(object, field, "Always"),
        "spec.schedulerName" => kept(object, field, "default-scheduler"),
        _ => kept(object, field, ""),
    }
}

/// Fields of an event, as pkg/registry/core/event's strategy names them.
fn event_field(object: &Object, event: &Event, field: &str) -> String {
    let about = event.involved_object.clone().unwrap_or_default();
    match field {
        "involvedObject.kind" => about.kind,
        "involvedObject.namespace" => about.namespace,
        "involvedObject.name" => about.name,
        "involvedObject.uid" => about.uid,
        "involvedObject.apiVersion" => about.api_version,
        "involvedObject.resourceVersion" => about.resource_version,
        "involvedObject.fieldPath" => about.field_path,
        "reason" => event.reason.clone(),
        "type" => event.r#type.clone(),
        // Whoever reports in the newer way has no source.
        "source" => Some(kept(object, "source.component", ""))
            .filter(|source| !source.is_empty())
            .unwrap_or_else(|| kept(object, "reportingComponent", "")),
        _ => kept(object, field, ""),
    }
}

/// A field that Fairlead keeps without reading it, or Kubernetes' default.
fn kept(object: &Object, field: &str, default: &str) -> String {
    let extra: serde_json::Value = serde_json::from_str(object.extra_json()).unwrap_or_default();
    let found = extra.pointer(&format!("/{}", field.replace('.', "/")));
    found.and_then(serde_json::Value::as_str).unwrap_or(default).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn good_selectors_match_as_apimachinerys() {
        let web = labels(&[("app", "web"), ("tier", "front"), ("n", "5")]);
        let table = [
            ("", true),
            ("app=web", true),
            ("app==web,tier=front", true),
            (" app = web , tier != back ", true),
            ("app!=web", false),
            ("missing!=x", true),
            ("app in (web,api)", true),
            ("app in ()", false),
            ("app notin (api)", true),
            ("missing notin (x)", true),
            ("missing in (x)", false),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("app>1", false),
            ("example.com/x", false),
            ("app=", false),
        ];
        for (text, expected) in table {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(&web), expected, "{text:?}");
        }
    }

    #[test]
    fn bad_selectors_are_refused() {
        for text in [
            "app=web,",
            ",app",
            "app=(x)",
            "=web",
            "app in web",
            "app in (web",
            "a b",
            "app=web tier=x",
            "n>x",
            "-a=b",
            "app=-x",
            "!",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn fields_are_the_kinds_own() {
        let mut service = crate::v1::Service::default();
        service.spec.get_or_insert_default().cluster_ip = "None".into();
        let object: Object = service.into();
        for (text, expected) in
            [("spec.clusterIP!=None", false), ("spec.clusterIP=None", true), ("metadata.name=", true)]
        {
            assert_eq!(FieldSelector::parse(Kind::Service, text).unwrap().matches(&object), expected, "{text}");
        }
        assert_eq!(
            FieldSelector::parse(Kind::Service, "spec.foo=1").unwrap_err(),
            "field label not supported: spec.foo"
        );
        assert!(FieldSelector::parse(Kind::Pod, "spec.nodeName").is_err());
    }

    #[test]
    fn pods_are_selected_by_fields_that_are_only_kept() {
        let mut pod = crate::v1::Pod::default();
        let matches = |pod: &crate::v1::Pod, text: &str| {
            FieldSelector::parse(Kind::Pod, text).unwrap().matches(&pod.clone().into())
        };
        assert!(matches(&pod, "spec.restartPolicy=Always,spec.serviceAccountName=,status.nominatedNodeName="));
        pod.extra_json = r#"{"spec":{"restartPolicy":"Never","serviceAccountName":"web"}}"#.into();
        assert!(matches(&pod, "spec.restartPolicy=Never,spec.serviceAccountName=web"));
        assert!(matches(&pod, "spec.restartPolicy!=Always,spec.schedulerName=default-scheduler"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z!=<>(), \\PC]{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(Kind::Pod, &text);
        }
    }
}
