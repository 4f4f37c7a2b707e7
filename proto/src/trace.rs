//! One trace over processes: who asks passes W3C's `traceparent` on, in a call's metadata, a log entry or a delta.
//!
//! Off until [`switch_on`], and then free: no span is made, nothing is sent. Spans have the target [`TARGET`], which logs
//! leave out; what they are exported to is the binary's business. INVARIANT: a context that can't be read is none.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use std::sync::atomic::{AtomicBool, Ordering};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Target of every span that is exported.
pub const TARGET: &str = "fairlead::trace";
/// The header of a call.
pub const HEADER: &str = "traceparent";
/// Contexts that one delta carries: of more changes, the newest.
pub const MOST: usize = 4;

static ON: AtomicBool = AtomicBool::new(false);

/// From now on spans are made: somebody exports them.
pub fn switch_on() {
    ON.store(true, Ordering::Relaxed);
}

/// Whether spans are made at all.
#[must_use]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A span's context, also of one that the sampler left out: whoever comes after shall leave it out too. `None`: tracing
/// is off, or it is no span of ours.
#[must_use]
pub fn context(span: &Span) -> Option<String> {
    if !is_on() || span.metadata().is_none_or(|metadata| metadata.target() != TARGET) {
        return None;
    }
    let context = span.context();
    let found = context.span().span_context().clone();
    found.is_valid().then(|| render(&found))
}

/// A span's context to be stored; empty if it isn't sampled.
#[must_use]
pub fn sampled(span: &Span) -> String {
    context(span).filter(|text| text.ends_with("01")).unwrap_or_default()
}

/// True if what runs now belongs to a traced call.
#[must_use]
pub fn is_within() -> bool {
    is_on() && context(&Span::current()).is_some()
}

/// Makes a span the child of a context from elsewhere.
#[must_use]
pub fn child(span: Span, traceparent: &str) -> Span {
    if let Some(parent) = parse(traceparent) {
        // It fails for a span that is switched off only, which has no parent to lose.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    span
}

/// Adds the current span's context to a call's metadata.
pub fn carry(metadata: &mut MetadataMap) {
    if let Some(value) = context(&Span::current()).and_then(|text| text.parse().ok()) {
        metadata.insert(HEADER, value);
    }
}

/// [`carry`], as an interceptor of clients.
///
/// # Errors
/// None.
#[allow(clippy::result_large_err, reason = "the type of interceptors")]
pub fn intercept(mut request: Request<()>) -> Result<Request<()>, Status> {
    carry(request.metadata_mut());
    Ok(request)
}

/// An interceptor's type.
pub type Intercept = fn(Request<()>) -> Result<Request<()>, Status>;

fn render(context: &SpanContext) -> String {
    let flags = context.trace_flags() & TraceFlags::SAMPLED;
    format!("00-{:032x}-{:016x}-{:02x}", context.trace_id(), context.span_id(), flags)
}

/// Reads a `traceparent` (W3C Trace Context, 3.2): version 00, or a later one's first four fields.
#[must_use]
pub fn parse(text: &str) -> Option<SpanContext> {
    let mut fields = text.split('-');
    let mut next = |length: usize| {
        let field = fields.next()?;
        let is_hex = field.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (field.len() == length && is_hex).then_some(field)
    };
    let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    if version == "ff" || (version == "00" && fields.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED;
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_context_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(good).map(|context| render(&context)).as_deref(), Some(good));
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        assert!(parse(later).is_some_and(|context| context.is_sampled()));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn off_nothing_is_sent() {
        let mut request = Request::new(());
        carry(request.metadata_mut());
        assert!(request.metadata().is_empty() && !is_within());
        assert_eq!(sampled(&Span::current()), "");
    }

    proptest! {
        #[test]
        fn a_context_is_read_as_it_was_written(trace in 1_u128.., span in 1_u64.., sampled in any::<bool>()) {
            let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
            let context = SpanContext::new(trace.into(), span.into(), flags, true, TraceState::NONE);
            prop_assert_eq!(parse(&render(&context)), Some(context));
        }

        #[test]
        fn no_text_makes_it_fail(text in ".{0,80}") {
            let _ = parse(&text);
        }
    }
}
