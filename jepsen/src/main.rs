//! `fairlead-jepsen`: runs scenarios and says what was found. Exit code 0: every promise was kept; 1: one was broken; 2: not
//! enough happened to judge.

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use fairlead_jepsen::report::Outcome;
use fairlead_jepsen::run::{Plan, run};
use fairlead_jepsen::scenario::{ALL, Scenario, named};
use std::path::PathBuf;
use std::process::ExitCode;

/// Consistency tests of Fairlead from outside: real processes, real faults, checked histories. Needs root.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The scenarios
    List,
    /// Run scenarios, one after the other
    Run {
        /// Which; default: all but "all"
        scenarios: Vec<String>,
        /// The program under test
        #[arg(long)]
        fairlead: PathBuf,
        /// Seconds of faults in each
        #[arg(long, default_value_t = 40)]
        seconds: u64,
        /// The first scenario's seed; each next one has the next
        #[arg(long)]
        seed: Option<u64>,
        /// Where runs are kept
        #[arg(long, default_value = "store")]
        store: PathBuf,
        /// Play a schedule again (a run's schedule.json); with one scenario
        #[arg(long)]
        schedule: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Args::parse().what {
        What::List => {
            for scenario in ALL {
                println!("{:10} {} ({} servers)", scenario.name, scenario.about, scenario.servers);
            }
            Ok(ExitCode::SUCCESS)
        }
        What::Run { scenarios, fairlead, seconds, seed, store, schedule } => {
            let chosen: Vec<Scenario> = if scenarios.is_empty() {
                ALL.iter().filter(|scenario| scenario.name != "all").copied().collect()
            } else {
                let named =
                    scenarios.iter().map(|name| named(name).copied().with_context(|| format!("no scenario {name}")));
                named.collect::<anyhow::Result<_>>()?
            };
            let seed = seed.unwrap_or_else(now);
            let schedule =
                schedule.map(|path| anyhow::Ok(serde_json::from_slice(&std::fs::read(path)?)?)).transpose()?;
            ensure!(schedule.is_none() || chosen.len() == 1, "a schedule belongs to one scenario");
            let fairlead = fairlead.canonicalize().with_context(|| fairlead.display().to_string())?;
            let mut outcomes = Vec::new();
            for (place, scenario) in chosen.into_iter().enumerate() {
                let seed = seed.wrapping_add(place as u64);
                eprintln!("{}: {} (seed {seed}, {seconds} s)", scenario.name, scenario.about);
                let (program, store) = (fairlead.clone(), store.clone());
                let schedule = schedule.clone();
                let plan = Plan { scenario, seconds, seed, program, store, schedule, environment: Vec::new() };
                match run(plan) {
                    Ok(report) => {
                        print!("{}", report.text());
                        outcomes.push(report.outcome());
                    }
                    Err(error) => {
                        println!("{} (seed {seed}): not judged: {error:#}", scenario.name);
                        outcomes.push(Outcome::Unknown);
                    }
                }
            }
            Ok(exit_code(&outcomes))
        }
    }
}

fn exit_code(outcomes: &[Outcome]) -> ExitCode {
    let count = |wanted: Outcome| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    let (valid, broken, unknown) = (count(Outcome::Valid), count(Outcome::Broken), count(Outcome::Unknown));
    println!("{valid} valid, {broken} broken, {unknown} unknown");
    match (broken, unknown) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    }
}

/// A seed that nobody chose.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(1, |since| since.as_secs())
}
