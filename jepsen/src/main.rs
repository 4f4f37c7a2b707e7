//! `fairlead-jepsen`: runs scenarios and says what was found. Exit code 0: every promise was kept; 1: one was broken; 2: not
//! enough happened to judge.

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use fairlead_jepsen::random::Random;
use fairlead_jepsen::report::{Outcome, Report};
use fairlead_jepsen::run::{Plan, run};
use fairlead_jepsen::scenario::{ALL, Scenario, named};
use fairlead_jepsen::{cluster, disk, hosts, mutants};
use std::path::{Path, PathBuf};
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
    /// Run a build with broken behaviours: each must be found, and the same build without one must pass the same seeds
    Mutants {
        /// Which; default: all
        mutants: Vec<String>,
        /// A build with the feature `mutants`
        #[arg(long)]
        fairlead: PathBuf,
        /// Only so many of them, chosen by the seed
        #[arg(long)]
        count: Option<usize>,
        /// Seconds of faults in a run
        #[arg(long, default_value_t = 25)]
        seconds: u64,
        #[arg(long)]
        seed: Option<u64>,
        /// Runs in which each must be found
        #[arg(long, default_value_t = 3)]
        runs: u64,
        #[arg(long, default_value = "store")]
        store: PathBuf,
    },
    /// Serve a server's disk: the harness starts it
    #[command(hide = true, name = disk::SUBCOMMAND)]
    Disk {
        /// Where it is mounted
        at: PathBuf,
        /// What holds its files
        backing: PathBuf,
        /// Where it is told what to do
        socket: PathBuf,
    },
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
        What::Disk { at, backing, socket } => {
            disk::serve(&at, &backing, &socket)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Mutants { mutants, fairlead, count, seconds, seed, runs, store } => {
            let chosen = chosen_mutants(&mutants)?;
            let (chosen, seed) = some_of(chosen, count, seed.unwrap_or_else(now));
            let (program, store) = prepare(&fairlead, &store)?;
            hunt(&chosen, &Hunt { program, store, seconds, seed, runs })
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
            let (fairlead, store) = prepare(&fairlead, &store)?;
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

/// The program, and the folder of the runs; from here on a signal cleans up.
fn prepare(fairlead: &Path, store: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let fairlead = fairlead.canonicalize().with_context(|| fairlead.display().to_string())?;
    std::fs::create_dir_all(store).with_context(|| store.display().to_string())?;
    let store = store.canonicalize()?;
    clean_up_when_told_to_stop(store.clone())?;
    Ok((fairlead, store))
}

fn chosen_mutants(names: &[String]) -> anyhow::Result<Vec<(&'static str, &'static str)>> {
    if names.is_empty() {
        return Ok(mutants::ALL.to_vec());
    }
    let known = |name: &String| mutants::ALL.iter().find(|(mutant, _)| mutant == name).copied();
    names.iter().map(|name| known(name).with_context(|| format!("no mutant {name}"))).collect()
}

/// Some of them, chosen by the seed.
fn some_of<T>(mut of: Vec<T>, count: Option<usize>, seed: u64) -> (Vec<T>, u64) {
    let mut random = Random::new(seed);
    while of.len() > count.unwrap_or(usize::MAX) {
        let place = random.index(of.len());
        of.swap_remove(place);
    }
    (of, seed)
}

/// How mutants are looked for.
struct Hunt {
    program: PathBuf,
    store: PathBuf,
    seconds: u64,
    seed: u64,
    runs: u64,
}

impl Hunt {
    fn run(&self, scenario: &str, seed: u64, mutant: &str) -> anyhow::Result<Report> {
        let scenario = *named(scenario).context("no such scenario")?;
        let (program, store) = (self.program.clone(), self.store.join(mutant));
        let environment = vec![("FAIRLEAD_MUTANT".to_owned(), mutant.to_owned())];
        run(Plan { scenario, seconds: self.seconds, seed, program, store, schedule: None, environment })
    }
}

/// Looks for each mutant, then lets the clean program pass the seeds that found them.
fn hunt(chosen: &[(&str, &str)], hunt: &Hunt) -> anyhow::Result<ExitCode> {
    let (mut missed, mut seeds) = (0, Vec::new());
    println!("{:20} {:10} {:>4} {:>8}  found by", "mutant", "scenario", "run", "seconds");
    for (mutant, scenario) in chosen {
        let begun = std::time::Instant::now();
        let mut found = None;
        for attempt in 0..hunt.runs {
            let seed = hunt.seed.wrapping_add(attempt);
            // A run that could not be judged has found nothing.
            let by = match hunt.run(scenario, seed, mutant) {
                Ok(report) => report.broken(),
                Err(error) => {
                    println!("{mutant:20} {scenario:10} not judged: {error:#}");
                    Vec::new()
                }
            };
            if !by.is_empty() {
                seeds.push((*scenario, seed));
                found = Some((attempt + 1, by.join(", ")));
                break;
            }
        }
        let seconds = begun.elapsed().as_secs();
        match found {
            Some((attempt, by)) => println!("{mutant:20} {scenario:10} {attempt:4} {seconds:8}  {by}"),
            None => {
                missed += 1;
                println!("{mutant:20} {scenario:10}    - {seconds:8}  not found");
            }
        }
    }
    seeds.sort_unstable();
    seeds.dedup();
    let mut wrong = 0;
    for (scenario, seed) in &seeds {
        let report = hunt.run(scenario, *seed, "none")?;
        if report.outcome() != Outcome::Valid {
            wrong += 1;
            print!("{}", report.text());
        }
    }
    println!(
        "{} of {} mutants found; without one, {} of {} runs valid",
        chosen.len() - missed,
        chosen.len(),
        seeds.len() - wrong,
        seeds.len()
    );
    Ok(if missed + wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// SIGINT and SIGTERM end the run; what it made is taken away first.
fn clean_up_when_told_to_stop(store: PathBuf) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        let told = runtime.block_on(async {
            let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                told = tokio::signal::ctrl_c() => told,
                _ = terminate.recv() => Ok(()),
            }
        });
        if told.is_ok() {
            hosts::sweep();
            cluster::sweep(&store);
            std::process::exit(130);
        }
    });
    Ok(())
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
