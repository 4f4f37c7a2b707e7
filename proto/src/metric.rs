//! What is said of a metric: its fixed name and its help. Each process has one table of them.

/// Kinds of Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises.
    Counter,
    /// Any value.
    Gauge,
    /// Counted in buckets.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with its base unit.
    pub name: &'static str,
    /// What kind it is of.
    pub kind: MetricKind,
    /// A sentence.
    pub help: &'static str,
}

/// A counter.
#[must_use]
pub const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, help }
}

/// A gauge.
#[must_use]
pub const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, help }
}

/// A histogram.
#[must_use]
pub const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, help }
}
