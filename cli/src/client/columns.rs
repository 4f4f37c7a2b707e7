//! `-o custom-columns`: HEADER:path pairs as a table.

use crate::client::jsonpath::{Template, as_text};
use crate::client::output::Shown;
use crate::client::table::Aligner;

/// Columns of one's own.
#[derive(Debug)]
pub struct Columns(Vec<(String, Template)>);

impl Columns {
    /// Parses `A:.path,B:.path`.
    ///
    /// # Errors
    /// kubectl's sentence.
    pub fn parse(spec: &str) -> Result<Self, String> {
        let mut columns = Vec::new();
        for part in split(spec) {
            let Some((header, path)) = part.split_once(':') else {
                return Err(format!("unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"));
            };
            columns.push((header.to_owned(), Template::parse_relaxed(path)?));
        }
        Ok(Self(columns))
    }

    /// Parses a file of two lines: headers, and paths below them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_file(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let headers: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        let paths: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
        if headers.is_empty() || headers.len() != paths.len() {
            return Err(format!(
                "number of headers ({}) and field specifications ({}) don't match",
                headers.len(),
                paths.len()
            ));
        }
        let columns = headers
            .into_iter()
            .zip(paths)
            .map(|(header, path)| Ok((header.to_owned(), Template::parse_relaxed(path)?)));
        columns.collect::<Result<_, String>>().map(Self)
    }

    /// The table; what an object lacks is `<none>`.
    ///
    /// # Errors
    /// A path fails on an object.
    pub fn render(&self, objects: &[Shown], headers: bool) -> Result<String, String> {
        let mut rows = Vec::new();
        if headers {
            rows.push(self.0.iter().map(|(header, _)| header.clone()).collect());
        }
        for object in objects {
            let cell = |(_, template): &(String, Template)| {
                let found = template.find(&object.value)?;
                let texts: Vec<String> = found.iter().map(as_text).collect();
                Ok(if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") })
            };
            rows.push(self.0.iter().map(cell).collect::<Result<Vec<_>, String>>()?);
        }
        Ok(Aligner::default().render(&rows))
    }
}

/// Splits at commas that are in no brackets.
fn split(spec: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, c) in spec.char_indices() {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&spec[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&spec[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::kinds::SERVICES;
    use serde_json::json;

    #[test]
    fn columns_are_those_of_kubectl() {
        let shown = |value| Shown { resource: &SERVICES, value };
        let objects = [
            shown(json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}, {"port": 53}]}})),
            shown(json!({"metadata": {"name": "plain"}, "spec": {"ports": [{"port": 80}]}})),
        ];
        let columns = Columns::parse("A:.metadata.name,B:.spec.ports[*].port,C:.foo").unwrap();
        assert_eq!(
            columns.render(&objects, true).unwrap(),
            "A       B       C\nweb     80,53   <none>\nplain   80      <none>\n"
        );
        assert_eq!(columns.render(&objects[..1], false).unwrap(), "web   80,53   <none>\n");
        let union = Columns::parse("P:.spec.ports[0,1].port,N:metadata.name").unwrap();
        assert_eq!(union.render(&objects[..1], false).unwrap(), "80,53   web\n");
        let file = Columns::parse_file("NAME PORT\nmetadata.name spec.ports[0].port\n").unwrap();
        assert_eq!(file.render(&objects[..1], true).unwrap(), "NAME   PORT\nweb    80\n");
        assert!(Columns::parse_file("A B\n.a\n").is_err());
        assert!(Columns::parse("A").is_err());
        assert!(Columns::parse("A:{").is_err());
    }
}
