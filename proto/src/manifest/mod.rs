//! Manifests: YAML and JSON documents, what they say as messages, and back.
//!
//! Laws: `decode(render(o))` is `o`; `render(decode(m))` has every field of a manifest that Kubernetes' schema knows; a
//! three-way merge applied twice is applied once. Pure; no panic on any input.

mod decode;
mod documents;
mod endpoints;
mod merge;
mod overlay;
mod render;
mod schema;

pub use decode::{Decoded, decode};
pub use documents::{MAX_DOCUMENT, ManifestError, documents};
pub use endpoints::render_slices;
pub use merge::three_way;
pub use overlay::canonical;
pub use render::render;

use crate::v1::Kind;

/// The kind of this API name, as manifests write it.
#[must_use]
pub fn kind_by_name(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.title() == name)
}
