//! Events (pkg/apis/core/validation/events.go, of the older API: the newer one's rules are for its own path).

use crate::model::{DEFAULT_NAMESPACE, Invalid};
use crate::v1::Event;

/// Kubernetes' bound of the newer API, kept for both: bytes of a note.
const MAX_MESSAGE: usize = 1_024;

/// Checks what it is about, and its length.
pub fn validate(event: &Event, problems: &mut Vec<Invalid>) {
    let about = event.involved_object.clone().unwrap_or_default();
    let own = event.metadata.as_ref().map(|metadata| metadata.namespace.as_str()).unwrap_or_default();
    // What is about no namespace's object is told in the default one, or in kube-system.
    let fits = if about.namespace.is_empty() {
        [DEFAULT_NAMESPACE, "kube-system"].contains(&own)
    } else {
        about.namespace == own
    };
    if !fits {
        let detail = "does not match event.namespace";
        problems.push(Invalid::invalid("involvedObject.namespace", &about.namespace, detail));
    }
    if event.message.len() > MAX_MESSAGE {
        problems.push(Invalid::too_long("message", MAX_MESSAGE));
    }
}
