//! Kubernetes' JSONPath templates, as `-o jsonpath`, `--sort-by`, `wait --for=jsonpath` and custom columns take them.
//!
//! Not RFC 9535: text around `{…}`, `range` and `end`, `@` and `$` both the current value, several paths in one action.
//! Pure; no panic on any template or value; what a template costs is bounded.

mod eval;
mod parse;

use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

/// A piece of a template.
#[derive(Debug, PartialEq)]
enum Part {
    /// Printed as it is.
    Text(String),
    /// A path; its results are printed, separated by spaces.
    Path(Vec<Step>),
    /// The parts, once for each result of the path.
    Range(Vec<Step>, Vec<Part>),
}

/// A step of a path: from some values to others.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// `.name`
    Field(String),
    /// `.*`
    Wildcard,
    /// `..`
    Recursive,
    /// `[from:to:step]`, `[index]`, `[*]`
    Slice(Slice),
    /// `[a,b]`
    Union(Vec<Vec<Step>>),
    /// `[?(path)]`, `[?(left op right)]`
    Filter(Vec<Step>, Option<(Op, Vec<Step>)>),
    /// A quoted text, a number or a truth value.
    Literal(Value),
}

/// A slice; absent = from the start, to the end, every one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Slice {
    from: Option<i64>,
    to: Option<i64>,
    step: Option<i64>,
    /// `[index]`: the end follows from the start.
    single: bool,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    GreaterOrEqual,
    Greater,
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// kubectl's sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = parse::template(text).map_err(|problem| format!("error parsing jsonpath {text}, {problem}"))?;
        Ok(Self { source: text.to_owned(), parts })
    }

    /// Parses one path, with or without braces and leading dot (`--sort-by`, custom columns, `--for=jsonpath`).
    ///
    /// # Errors
    /// kubectl's sentence.
    pub fn parse_relaxed(text: &str) -> Result<Self, String> {
        let bare = text.trim();
        let inner = bare.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(bare);
        if inner.is_empty() || inner.contains(['{', '}']) {
            return Err(format!(
                "unexpected path string, expected a 'name1.name2' or '.name1.name2' or '{{name1.name2}}' or '{{.name1.name2}}': {text}"
            ));
        }
        let dot = if inner.starts_with(['.', '[', '@', '$']) { "" } else { "." };
        Self::parse(&format!("{{{dot}{inner}}}"))
    }

    /// Fills the template from a value; what is missing prints as nothing.
    ///
    /// # Errors
    /// kubectl's sentence: an index out of bounds, a filter on something else than a list …
    pub fn render(&self, value: &Value) -> Result<String, String> {
        let mut text = String::new();
        eval::render(&self.parts, value, &mut text).map_err(|problem| self.failed(&problem))?;
        Ok(text)
    }

    /// The results of the template's only path.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn find(&self, value: &Value) -> Result<Vec<Value>, String> {
        let mut found = Vec::new();
        for part in &self.parts {
            if let Part::Path(steps) = part {
                let results = eval::walk(steps, value).map_err(|problem| self.failed(&problem))?;
                found.extend(results.into_iter().map(std::borrow::Cow::into_owned));
            }
        }
        Ok(found)
    }

    fn failed(&self, problem: &str) -> String {
        format!("error executing jsonpath {:?}: Error executing template: {problem}", self.source)
    }
}

/// One result as text: strings bare, the rest as compact JSON with sorted keys.
pub fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => crate::client::output::sorted(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service() -> Value {
        json!({"kind": "Service", "metadata": {"name": "web", "annotations": {"example.com/a.b": "dotted", "a": "b"}},
            "spec": {"type": "NodePort", "selector": {"tier": "x", "app": "web"},
                "ports": [{"name": "http", "port": 80, "nodePort": 30080, "ok": true}, {"name": "dns", "port": 53, "ok": false}]}})
    }

    fn ok(template: &str, value: &Value, expect: &str) {
        let rendered = Template::parse(template).and_then(|template| template.render(value));
        assert_eq!(rendered.as_deref(), Ok(expect), "{template}");
    }

    fn fails(template: &str, value: &Value, says: &str) {
        let problem = Template::parse(template).and_then(|template| template.render(value)).expect_err(template);
        assert!(problem.contains(says), "{template}: {problem}");
    }

    #[test]
    fn answers_are_those_of_kubectl() {
        let web = service();
        for (template, expect) in [
            ("plain", "plain"),
            (".foo", ".foo"),
            ("{.foo}", ""),
            ("{.}", ""),
            ("a{.foo}b", "ab"),
            ("{.metadata.name}", "web"),
            ("{ .metadata.name }", "web"),
            ("{.metadata .name}", "web"),
            ("{$.metadata.name}", "web"),
            ("{@.kind}x", "Servicex"),
            ("{.spec['ports'][0].port}", "80"),
            ("{.metadata.annotations['a']}", "b"),
            (r"{.metadata.annotations['example\.com/a\.b']}", "dotted"),
            (r"{.metadata.annotations.example\.com/a\.b}", "dotted"),
            ("{.spec.selector}", r#"{"app":"web","tier":"x"}"#),
            ("{.spec.ports[*].port}", "80 53"),
            ("{.spec.ports.name}", ""),
            ("{.spec.ports[0].port}{.spec.ports[1].port}", "8053"),
            ("{..port}", "80 53"),
            ("{...port}", "80 53"),
            ("{.spec.ports[-1].name}", "dns"),
            ("{.spec.ports[-1:].name}", "dns"),
            ("{.spec.ports[0:1:1].name}", "http"),
            ("{.spec.ports[:1].name}", "http"),
            ("{.spec.ports[::2].name}", "http"),
            ("{.spec.ports[5:5].name}", ""),
            ("{.items[0]}", ""),
            ("{.spec.ports[*]['port','name']}", "80 53 http dns"),
            ("{.spec.ports[0,1].name}", "http dns"),
            ("{['metadata.name', 'kind']}", "web Service"),
            (r#"{.spec.ports[?(@.name=="dns")].port}"#, "53"),
            ("{.spec.ports[?(@.name=='dns')].port}", "53"),
            ("{.spec.ports[?(@.port>60)].name}", "http"),
            ("{.spec.ports[?(@.port>=53)].port}", "80 53"),
            ("{.spec.ports[?(@.port<=53)].port}", "53"),
            ("{.spec.ports[?(@.port!=53)].port}", "80"),
            ("{.spec.ports[?(@.port<60.5)].port}", "53"),
            ("{.spec.ports[?(@.nodePort)].name}", "http"),
            ("{.spec.ports[?(@.nodePort==30080)].name}", "http"),
            ("{.spec.ports[?(@.ok==true)].name}", "http"),
            ("{.spec.ports[?(.name==\"http\")].port}", "80"),
            ("{\"a\\\"b\"}{'it'}{\"\\n\\t\\u00e9\"}", "a\"bit\n\té"),
            ("{'{'}{1}{true}{-2.5}", "{1true-2.5"),
        ] {
            ok(template, &web, expect);
        }
    }

    #[test]
    fn ranges_nest() {
        let list = json!({"items": [
            {"n": "a", "c": [{"x": 1}, {"x": 2}]},
            {"n": "b", "c": []},
            {"n": "c"},
        ]});
        ok("{range .items[*]}{.n},{end}done", &list, "a,b,c,done");
        ok("{range .items[*]}{.n}:{range .c[*]}{@.x};{end}|{end}{.items[0].n}", &list, "a:1;2;|b:|c:|a");
        ok("{range .items[*]}{$.n}{end}", &list, "abc");
        ok("{range .items[*]}{.n}", &list, "abc");
        ok("{range .none[*]}{.n}{end}", &list, "");
        ok("{range .items[?(@.c)]}{.n}{\" \"}{end}", &list, "a b ");
        fails("{end}", &list, "not in range, nothing to end");
        fails("{range .items[*]}{end}{end}", &list, "not in range, nothing to end");
    }

    #[test]
    fn mistakes_are_said_as_kubectl_says_them() {
        let web = service();
        for (template, says) in [
            ("{.foo", "error parsing jsonpath {.foo, unclosed action"),
            ("{[\"a\"]}", "invalid array index \"a\""),
            ("{.a[}", "unterminated array"),
            ("{.a[x]}", "invalid array index x"),
            ("{.a[99999999999999999999]}", "array index 99999999999999999999 is not a number"),
            ("{.spec.ports[?(@.port}", "unterminated filter"),
            ("{.spec.ports[?(@.port)}", "unclosed array expect ]"),
            ("{\"a}", "unterminated quoted string"),
            ("{.a....b}", "invalid multiple recursive descent"),
            ("{foo}", "unrecognized identifier foo"),
            ("{.a b}", "unrecognized identifier b"),
            ("{%}", "unrecognized character in action"),
            ("{1.2.3}", "cannot parse number 1.2.3"),
            ("{.spec.ports[5]}", "Error executing template: array index out of bounds: index 5, length 2"),
            ("{.spec.ports[-3]}", "array index out of bounds: index -1, length 2"),
            ("{.spec.ports[1:0]}", "starting index 1 is greater than ending index 0"),
            ("{.spec.ports[0:2:0]}", "step must be > 0"),
            ("{.kind[0]}", "string is not array or slice"),
            ("{.spec.ports[?(@.port==\"80\")].name}", "incompatible types for comparison"),
            ("{.spec.ports[?(@.port<>1)]}", "unrecognized filter operator <>"),
            ("{.kind[?(@.a)]}", "is not array or slice and cannot be filtered"),
        ] {
            fails(template, &web, says);
        }
    }

    #[test]
    fn relaxed_paths() {
        let web = service();
        for text in [".metadata.name", "metadata.name", "{.metadata.name}", "{metadata.name}"] {
            assert_eq!(Template::parse_relaxed(text).unwrap().find(&web).unwrap(), [json!("web")], "{text}");
        }
        for text in ["", "{}", "{.a}{.b}"] {
            assert!(Template::parse_relaxed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_template_panics_or_takes_forever() {
        let web = service();
        let alphabet = [
            "{", "}", "[", "]", ".", "..", "*", "?(", ")", "@", "$", "range ", "end", "ports", "'", "\"", "\\", ",",
            ":", "-1", "0", "==", "<", " ", "é",
        ];
        let mut seed = 7_u64;
        for _ in 0..20_000 {
            let mut template = String::new();
            for _ in 0..(seed % 9 + 1) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                template.push_str(alphabet[(seed >> 33) as usize % alphabet.len()]);
            }
            let _ = Template::parse(&template).and_then(|template| template.render(&web));
        }
        let deep = format!("{{{}}}", "[0,".repeat(5_000));
        assert!(Template::parse(&deep).is_err());
        let wide = "{range ...*}".repeat(40);
        assert!(Template::parse(&wide).and_then(|template| template.render(&web)).is_err());
    }
}
