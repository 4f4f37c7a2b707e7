//! Logs to standard error; traces by OTLP if `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector; metrics for `/metrics`.

use anyhow::Context as _;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use std::io::IsTerminal as _;
use std::sync::Arc;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Seconds; finer than kube-proxy's at the low end, where Fairlead lives.
const BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What long-running processes log. openraft says of every step what the server says of its result.
pub const USUAL: &str = "info,openraft=error";

/// Flushes traces when dropped.
pub struct Telemetry(Option<opentelemetry_sdk::trace::SdkTracerProvider>);

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take() {
            let _ = provider.shutdown();
        }
    }
}

/// Starts logging and tracing; `default_filter` applies when `FAIRLEAD_LOG` is unset. Needs a Tokio runtime if a
/// collector is named.
///
/// # Errors
/// A filter or collector address that can't be understood.
pub fn start(default_filter: &str) -> anyhow::Result<Telemetry> {
    let filter = std::env::var("FAIRLEAD_LOG").unwrap_or_else(|_| default_filter.to_owned());
    let filter = EnvFilter::try_new(&filter).with_context(|| {
        format!("FAIRLEAD_LOG={filter:?} is not a log filter such as \"info\" or \"fairlead_server=debug\"")
    })?;
    let json = std::env::var("FAIRLEAD_LOG_FORMAT").is_ok_and(|format| format == "json");
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let text = if json { text.json().boxed() } else { text.boxed() };
    let provider = match std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT") {
        Ok(endpoint) if !endpoint.is_empty() => Some(tracer_provider(&endpoint)?),
        _ => None,
    };
    let traces =
        provider.as_ref().map(|provider| tracing_opentelemetry::layer().with_tracer(provider.tracer("fairlead")));
    tracing_subscriber::registry()
        .with(filter)
        .with(text)
        .with(traces)
        .try_init()
        .context("logging was started twice")?;
    Ok(Telemetry(provider))
}

fn tracer_provider(endpoint: &str) -> anyhow::Result<opentelemetry_sdk::trace::SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint:?} can't be used"))?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name("fairlead").build();
    Ok(opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}

/// Installs the process's metrics recorder; the answer renders it.
///
/// # Errors
/// A recorder was installed before.
pub fn metrics() -> anyhow::Result<Arc<dyn Fn() -> String + Send + Sync>> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS)?
        .install_recorder()?;
    Ok(Arc::new(move || handle.render()))
}
