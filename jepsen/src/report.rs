//! What a run found, for people and for programs: text, JSON, a picture, and the history itself.

use crate::cluster::lock;
use crate::edn;
use crate::history::{Operation, Verdict};
use crate::nemesis::Happened;
use crate::run::{Plan, counts};
use crate::workload::Stage;
use crate::workload::names::Said;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::Ordering;

/// A run's outcome.
pub struct Report {
    /// The scenario.
    pub scenario: String,
    /// Its seed.
    pub seed: u64,
    /// Every judge's word.
    pub checks: Vec<(&'static str, Verdict)>,
    /// What was broken.
    pub faults: Vec<Happened>,
    /// Numbers of things that happened.
    pub counts: BTreeMap<&'static str, u64>,
}

/// The word for all judges' words: broken if one says so, unknown if one can't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every promise was kept.
    Valid,
    /// One was broken.
    Broken,
    /// Not enough happened to judge.
    Unknown,
}

impl Report {
    /// Of a run that is over.
    #[must_use]
    pub fn new(plan: &Plan, stage: &Stage, found: (Vec<Happened>, Vec<(&'static str, Verdict)>)) -> Self {
        let (faults, checks) = found;
        let history = lock(&stage.history);
        let (done, refused, unknown) = counts(&history);
        let sessions = lock(&stage.watched);
        let lookups = lock(&stage.lookups);
        let said = |wanted: &[Said]| lookups.iter().filter(|lookup| wanted.contains(&lookup.said)).count();
        let number = |count: usize| count as u64;
        let counts = BTreeMap::from([
            ("operations", number(history.len())),
            ("operations done", number(done)),
            ("operations refused", number(refused)),
            ("operations unknown", number(unknown)),
            ("faults", number(faults.iter().filter(|fault| fault.skipped.is_none()).count())),
            ("faults skipped", number(faults.iter().filter(|fault| fault.skipped.is_some()).count())),
            ("watch sessions", number(sessions.len())),
            ("watch events", number(sessions.iter().map(|session| session.events.len()).sum())),
            ("lookups", number(lookups.len())),
            ("lookups answered stale", number(lookups.iter().filter(|lookup| lookup.stale).count())),
            ("lookups without an answer", number(said(&[Said::Failure, Said::Silence]))),
            ("connections", stage.connections.answered.load(Ordering::Relaxed)),
            ("connections failed", stage.connections.failed.load(Ordering::Relaxed)),
        ]);
        Self { scenario: plan.scenario.name.to_owned(), seed: plan.seed, checks, faults, counts }
    }

    /// All judges' words in one.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let any = |wanted: fn(&Verdict) -> bool| self.checks.iter().any(|(_, verdict)| wanted(verdict));
        if any(|verdict| matches!(verdict, Verdict::Broken(_))) {
            Outcome::Broken
        } else if any(|verdict| matches!(verdict, Verdict::Unknown(_))) {
            Outcome::Unknown
        } else {
            Outcome::Valid
        }
    }

    /// Judges that found a promise broken, each with the kind of its first anomaly.
    #[must_use]
    pub fn broken(&self) -> Vec<String> {
        let broken = self.checks.iter().filter_map(|(check, verdict)| match verdict {
            Verdict::Broken(anomalies) => Some(format!("{check}: {}", anomalies.first()?.kind)),
            Verdict::Valid | Verdict::Unknown(_) => None,
        });
        broken.collect()
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{} (seed {}): {:?}\n", self.scenario, self.seed, self.outcome());
        let counts: Vec<String> = self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let _ = writeln!(text, "  {}", counts.join(", "));
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for fault in self.faults.iter().filter(|fault| fault.skipped.is_none()) {
            *kinds.entry(fault.kind.name()).or_default() += 1;
        }
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let _ = writeln!(text, "  faults: {}", kinds.join(", "));
        for (check, verdict) in &self.checks {
            match verdict {
                Verdict::Valid => {}
                Verdict::Unknown(why) => drop(writeln!(text, "  {check}: unknown: {why}")),
                Verdict::Broken(anomalies) => {
                    for anomaly in anomalies {
                        let _ = writeln!(text, "  {check}: {}: {}", anomaly.kind, anomaly.what);
                    }
                }
            }
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let checks: BTreeMap<&str, Value> = self
            .checks
            .iter()
            .map(|(check, verdict)| {
                let said = match verdict {
                    Verdict::Valid => json!({"valid": true}),
                    Verdict::Unknown(why) => json!({"valid": "unknown", "why": why}),
                    Verdict::Broken(anomalies) => json!({
                        "valid": false,
                        "anomalies": anomalies
                            .iter()
                            .map(|anomaly| json!({"kind": anomaly.kind, "what": anomaly.what, "operations": anomaly.operations}))
                            .collect::<Vec<_>>(),
                    }),
                };
                (*check, said)
            })
            .collect();
        let valid = match self.outcome() {
            Outcome::Valid => json!(true),
            Outcome::Broken => json!(false),
            Outcome::Unknown => json!("unknown"),
        };
        json!({
            "scenario": self.scenario, "seed": self.seed, "valid": valid, "counts": self.counts,
            "faults": self.faults, "checks": checks,
        })
    }

    /// Writes everything into a run's folder.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, dir: &Path, history: &[Operation]) -> anyhow::Result<()> {
        std::fs::write(dir.join("report.txt"), self.text())?;
        std::fs::write(dir.join("report.json"), serde_json::to_vec_pretty(&self.json())?)?;
        std::fs::write(dir.join("history.edn"), edn::render(history))?;
        std::fs::write(dir.join("timeline.svg"), picture(history, &self.faults))?;
        Ok(())
    }
}

const WIDTH: f64 = 1_000.0;
const HEIGHT: f64 = 160.0;
/// Parts that the time is cut into.
const PARTS: usize = 200;

/// Operations a second and their slowest hundredth over time, faults shaded.
#[allow(clippy::cast_precision_loss, reason = "a picture")]
fn picture(history: &[Operation], faults: &[Happened]) -> String {
    let done: Vec<&Operation> = history.iter().filter(|operation| operation.is_done()).collect();
    let end = done.iter().map(|operation| operation.returned).max().unwrap_or(1).max(1);
    let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); PARTS];
    for operation in &done {
        let part = (u128::from(operation.returned) * PARTS as u128 / (u128::from(end) + 1)) as usize;
        if let Some(latencies) = latencies.get_mut(part) {
            latencies.push(operation.returned.saturating_sub(operation.called));
        }
    }
    let seconds = end as f64 / 1e9;
    let rates: Vec<f64> = latencies.iter().map(|part| part.len() as f64 * PARTS as f64 / seconds).collect();
    let slowest: Vec<f64> = latencies
        .iter_mut()
        .map(|part| {
            part.sort_unstable();
            part.get(part.len() * 99 / 100).copied().unwrap_or(0) as f64 / 1e6
        })
        .collect();
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{}" font-family="sans-serif" font-size="11">"#,
        HEIGHT * 2.0 + 50.0
    );
    for (row, (title, values)) in [("operations/s", rates), ("p99, ms", slowest)].into_iter().enumerate() {
        let top = row as f64 * (HEIGHT + 20.0) + 15.0;
        for fault in faults.iter().filter(|fault| fault.skipped.is_none()) {
            let (from, to) = (fault.begun / seconds * WIDTH, fault.ended / seconds * WIDTH);
            let _ = write!(
                svg,
                r##"<rect x="{from:.1}" y="{top}" width="{:.1}" height="{HEIGHT}" fill="#d33" opacity="0.15"><title>{} {}</title></rect>"##,
                (to - from).max(1.0),
                fault.kind.name(),
                fault.hosts.join(" ")
            );
        }
        let most = values.iter().copied().fold(1.0, f64::max);
        let points: Vec<String> = values
            .iter()
            .enumerate()
            .map(|(part, value)| {
                let (x, y) = (part as f64 * WIDTH / PARTS as f64, top + HEIGHT - value / most * HEIGHT);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let _ = write!(svg, r##"<polyline fill="none" stroke="#246" points="{}"/>"##, points.join(" "));
        let _ = write!(svg, r#"<text x="4" y="{}">{title}, up to {most:.0}, over {seconds:.0} s</text>"#, top - 3.0);
    }
    svg.push_str("</svg>\n");
    svg
}
