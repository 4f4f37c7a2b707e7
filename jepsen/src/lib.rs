//! Consistency tests from outside: the real program on hosts of its own (network namespaces), everything broken, and what
//! clients, watchers, agents, kernels and DNS saw, checked against what Fairlead promises.
//!
//! `scenario` says what is broken, `run` how a run goes; `hosts` and `cluster` are where it takes place, `workload` what
//! clients do, `nemesis` what goes wrong, `disk` a disk that can lose power, `checker` and `validate` (pure) who judges;
//! `models` are small ones of what servers do, checked in all their states.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod disk;
pub mod edn;
pub mod history;
pub mod hosts;
#[cfg(test)]
mod models;
pub mod mutants;
pub mod nemesis;
pub mod random;
pub mod report;
pub mod run;
pub mod scenario;
pub mod validate;
pub mod workload;
