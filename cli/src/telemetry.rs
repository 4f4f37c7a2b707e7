//! Logs to standard error; traces by OTLP if a collector is named; metrics for `/metrics`.
//!
//! Variables that OpenTelemetry specifies keep their meaning. A collector that is gone costs spans and nothing else.

use crate::client::Global;
use anyhow::Context as _;
use clap::ValueEnum;
use fairlead_proto::metric::{Metric, MetricKind};
use fairlead_proto::trace;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Deserialize;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// Seconds; finer than kube-proxy's at the low end, where Fairlead lives.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What long-running processes log. openraft says of every step what the server says of its result.
pub const USUAL: &str = "info,openraft=error";

/// Time that the last spans have to reach the collector at a process's end.
const FLUSH: Duration = Duration::from_secs(2);

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// What a long-running process says of itself.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// What it logs, if `FAIRLEAD_LOG` is unset.
    pub filter: &'static str,
    /// How.
    pub format: LogFormat,
    /// An OTLP collector; `None` = no traces.
    pub otlp_endpoint: Option<String>,
    /// Name in traces, if `OTEL_SERVICE_NAME` is unset.
    pub service: &'static str,
    /// Which of its kind it is: the member's or the node's name.
    pub instance: String,
}

/// What is exported; see [`Telemetry::end`].
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Sends what wasn't sent, within 2 s: a collector that is gone holds nobody up.
    pub async fn end(self) {
        if let Some(provider) = self.0 {
            // Off this thread, which the exporter's connection may need.
            let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH));
            let _ = tokio::time::timeout(FLUSH, flushed).await;
        }
    }
}

/// Starts logging, and tracing if a collector is named; needs a Tokio runtime then.
///
/// # Errors
/// A filter or collector address that can't be understood.
pub fn start(settings: &Settings) -> anyhow::Result<Telemetry> {
    let filter = std::env::var("FAIRLEAD_LOG").unwrap_or_else(|_| settings.filter.to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("FAIRLEAD_LOG={filter:?} is not a log filter such as \"info\" or \"fairlead_server=debug\"")
    })?;
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let text = if settings.format == LogFormat::Json { text.json().boxed() } else { text.boxed() };
    // Spans of traces are no part of log lines.
    let no_trace = format!("{}=off", trace::TARGET).parse().context("the filter of traces")?;
    let logging = tracing_subscriber::registry().with(text.with_filter(filter.add_directive(no_trace)));
    let provider = tracer_provider(settings)?;
    // Not an optional layer: one that is absent has no filter, and every library's every span would be made for it.
    let started = match &provider {
        Some(provider) => logging.with(exported(provider)).try_init(),
        None => logging.try_init(),
    };
    started.context("logging was started twice")?;
    Ok(switched_on(provider))
}

/// The same for a client's verb, which logs nothing. A collector that can't be used is no reason not to do what was asked.
pub fn client(global: &Global) -> Telemetry {
    let settings = Settings { service: "fairlead", otlp_endpoint: global.otlp_endpoint.clone(), ..Settings::default() };
    let provider = match tracer_provider(&settings) {
        Ok(provider) => provider,
        Err(error) => {
            eprintln!("Warning: this is not traced: {error:#}");
            None
        }
    };
    let Some(provider) = provider else { return Telemetry(None) };
    match tracing_subscriber::registry().with(exported(&provider)).try_init() {
        Ok(()) => switched_on(Some(provider)),
        Err(_) => Telemetry(None),
    }
}

fn switched_on(provider: Option<SdkTracerProvider>) -> Telemetry {
    if provider.is_some() {
        trace::switch_on();
    }
    Telemetry(provider)
}

fn exported<S>(provider: &SdkTracerProvider) -> impl Layer<S> + use<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    let wanted = filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("fairlead"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_filter(wanted.with_max_level_hint(LevelFilter::INFO))
}

/// `None`: nobody wants traces.
fn tracer_provider(settings: &Settings) -> anyhow::Result<Option<SdkTracerProvider>> {
    let Some(endpoint) = settings.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    let says = |variable: &str, word: &str| std::env::var(variable).is_ok_and(|value| value.eq_ignore_ascii_case(word));
    if says("OTEL_SDK_DISABLED", "true") || says("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let is_plain = endpoint.strip_prefix("http://").is_some_and(|rest| !rest.is_empty());
    anyhow::ensure!(
        is_plain,
        "--otlp-endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) is {endpoint:?}, not http://HOST:PORT of a collector that takes OTLP over gRPC"
    );
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.with_context(|| format!("--otlp-endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) {endpoint:?}"))?;
    let mut resource = opentelemetry_sdk::Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name(settings.service);
    }
    if !settings.instance.is_empty() {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", settings.instance.clone()));
    }
    resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build()))
}

/// Installs the process's metrics recorder; the answer renders it. `tables`: what the process measures.
///
/// # Errors
/// A recorder was installed before.
pub fn metrics(tables: &[&[Metric]]) -> anyhow::Result<Arc<dyn Fn() -> String + Send + Sync>> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS)?
        .install_recorder()?;
    for Metric { name, kind, help } in tables.iter().copied().flatten().copied() {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(name, help),
            MetricKind::Gauge => metrics::describe_gauge!(name, help),
            MetricKind::Histogram => metrics::describe_histogram!(name, help),
        }
    }
    Ok(Arc::new(move || handle.render()))
}
