//! Deliberately broken behaviours, each a mistake that somebody has made: the consistency tests must find every one. They
//! are there with the feature `mutants` only, which no release can have; `FAIRLEAD_MUTANT` switches one of them on.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!("the feature `mutants` breaks promises on purpose: it can't be part of a release");

/// A broken behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code, reason = "named where they would be"))]
pub enum Mutant {
    /// Reads don't ask the leader.
    StaleRead,
    /// Lists don't ask the leader.
    StaleList,
    /// A watch begins with what its server happens to have.
    StaleWatchStart,
    /// A read waits for the index and not for its application.
    ReadBeforeApply,
    /// A reader joins a round that began before it came.
    LateRound,
    /// A list is put together from two states.
    TornList,
    /// A request id means nothing.
    NoDedupe,
    /// A write whose outcome is unknown is proposed anew, without its request id.
    RetryAsNew,
    /// An unknown outcome is told as a refusal.
    UnknownAsRefused,
    /// Entries are acknowledged before they are written.
    AckBeforeWrite,
    /// Nothing is synced.
    NoSync,
    /// A restarted leader leads on in its term.
    LeaderRestore,
    /// A write doesn't look at the revision that it names.
    BlindCas,
    /// Some removals are acknowledged and not made.
    SilentDelete,
    /// Addresses in use stay in the pool.
    AddressTwice,
    /// Ports in use are not known after a restart.
    PortsNotLoaded,
    /// An applied entry takes its time from the member's clock.
    ClockInApply,
    /// A resumed watch leaves out its first event.
    WatchResumesLate,
    /// A resumed watch repeats the last event.
    WatchRepeats,
    /// A bookmark comes before the events that it covers.
    EarlyBookmark,
    /// Watchers are not told of removals.
    WatchForgetsDeletes,
    /// DNS answers from what its server happens to have.
    DnsFromMemory,
    /// DNS doesn't say that an answer is stale.
    DnsUnmarked,
    /// An agent begins by removing its rules.
    FlushOnStart,
    /// An agent that loses its server removes its rules.
    FlushOnDisconnect,
}

/// Whether a behaviour is switched on: never, without the feature.
#[cfg(not(feature = "mutants"))]
#[must_use]
#[inline]
pub const fn is_on(_: Mutant) -> bool {
    false
}

/// Whether a behaviour is switched on.
#[cfg(feature = "mutants")]
#[must_use]
pub fn is_on(mutant: Mutant) -> bool {
    static CHOSEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("FAIRLEAD_MUTANT").unwrap_or_default());
    *chosen == format!("{mutant:?}")
}

/// The member's own clock, milliseconds: only a mutant may use it where this is called.
#[cfg(feature = "mutants")]
#[must_use]
pub fn clock_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

/// The member's own clock: there is none without the feature.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn clock_ms() -> u64 {
    0
}

/// A mutant's: removes this host's rules.
#[cfg(feature = "mutants")]
pub fn flush() {
    let _ = std::process::Command::new("nft").args(["delete", "table", "ip", "fairlead"]).status();
}

/// There is nothing to do without the feature.
#[cfg(not(feature = "mutants"))]
pub const fn flush() {}
