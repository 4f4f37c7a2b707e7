//! What a look at the cluster found: how bad, what, and what to do. Printed by `why` and `check`.

use crate::client::failure::Failure;
use crate::client::output::json_text;
use serde_json::{Value, json};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// This doesn't work.
    Wrong,
}

impl Level {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// A sentence without its stop.
    pub text: String,
    /// What belongs to it, a line each.
    pub details: Vec<String>,
    /// What to do about it; empty = nothing.
    pub hint: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(text: impl Into<String>) -> Self {
        Self { level: Level::Fine, text: text.into(), details: Vec::new(), hint: String::new() }
    }

    /// Worth knowing.
    pub fn note(text: impl Into<String>) -> Self {
        Self { level: Level::Note, ..Self::fine(text) }
    }

    /// This doesn't work.
    pub fn wrong(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { level: Level::Wrong, hint: hint.into(), ..Self::fine(text) }
    }

    /// With details.
    #[must_use]
    pub fn with(mut self, details: Vec<String>) -> Self {
        self.details = details;
        self
    }

    /// As lines; the hint only if it is asked for.
    pub fn render(&self, with_hint: bool) -> String {
        let mut text = format!("  {:7} {}\n", format!("[{}]", self.level.word()), self.text);
        for detail in &self.details {
            text.push_str(&format!("            {detail}\n"));
        }
        if with_hint && !self.hint.is_empty() {
            text.push_str(&format!("          hint: {}\n", self.hint));
        }
        text
    }

    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({"level": self.level.word(), "text": self.text, "details": self.details, "hint": self.hint})
    }
}

/// True if something is wrong.
pub fn any_wrong<'a>(mut findings: impl Iterator<Item = &'a Finding>) -> bool {
    findings.any(|finding| finding.level == Level::Wrong)
}

/// `-o` of a verb that prints text or JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TextOrJson {
    /// For people
    Text,
    /// For programs
    Json,
}

impl TextOrJson {
    /// The one or the other.
    ///
    /// # Errors
    /// JSON that can't be written.
    pub fn choose(self, text: impl FnOnce() -> String, value: impl FnOnce() -> Value) -> Result<String, Failure> {
        match self {
            Self::Text => Ok(text()),
            Self::Json => json_text(&value()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line_with_details_and_a_hint() {
        let finding = Finding::wrong("no pod is ready", "look").with(vec!["pod a: refused".into()]);
        assert_eq!(
            finding.render(true),
            "  [wrong] no pod is ready\n            pod a: refused\n          hint: look\n"
        );
        assert_eq!(Finding::fine("served").render(true), "  [ok]    served\n");
        assert!(any_wrong([Finding::note("x"), finding].iter()));
        assert!(!any_wrong([Finding::note("x")].iter()));
    }
}
