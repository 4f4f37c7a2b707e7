//! The OpenAPI documents of the served kinds: v3 for each group and version, v2 as JSON and as protobuf. kubectl reads them
//! for `explain`, to check the fields of a manifest, and to see what the server can do.
//!
//! Laws: every `$ref` of a document is to a definition that it has; the three forms say the same of each definition;
//! documents are made when first asked for, and once. Definitions are k8s-openapi's, with its texts (written
//! by the build script), extended by our own table of how lists and maps merge.

mod definitions;
mod gnostic;
mod merges;
mod paths;
mod v2;
mod v3;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use data_encoding::HEXUPPER;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kube::kinds::{Kind, group_versions};
use crate::kube::place::Definitions;

/// What a client asks for in `Accept` to get [`v2_protobuf`]: kubectl up to 1.26 does (kube-openapi).
pub const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The content type to answer that with: Go's MIME parser refuses the `@`, and then kubectl 1.20 the answer.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Every definition by its name, in the form of OpenAPI v3, with the extensions of Kubernetes.
#[must_use]
pub fn definitions() -> &'static Definitions {
    static MADE: OnceLock<Definitions> = OnceLock::new();
    MADE.get_or_init(definitions::all)
}

/// The name of a kind's definition.
#[must_use]
pub fn definition_of(kind: &Kind) -> &'static str {
    kind.definition
}

/// The key of a group and version in `/openapi/v3`: "api/v1", "apis/discovery.k8s.io/v1". `/openapi/v3/KEY` is the path of
/// its document (KEP-2896).
#[must_use]
pub fn v3_key(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// `/openapi/v3`: where the document of each group and version is; the hash is that of its content.
#[must_use]
pub fn v3_index() -> Value {
    let entry = |(key, text): (&String, &String)| {
        let url = format!("/openapi/v3/{key}?hash={}", hash(text.as_bytes()));
        (key.clone(), json!({ "serverRelativeURL": url }))
    };
    json!({ "paths": v3_texts().iter().map(entry).collect::<Map<_, _>>() })
}

/// The document of a group and version ([`v3_key`]), made anew; `None`: it is not served.
#[must_use]
pub fn v3(group_version: &str) -> Option<Value> {
    let (group, version) =
        group_versions().into_iter().find(|(group, version)| v3_key(group, version) == group_version)?;
    Some(v3::document(group, version))
}

/// The same as JSON text: what to serve.
#[must_use]
pub fn v3_text(group_version: &str) -> Option<&'static str> {
    v3_texts().get(group_version).map(String::as_str)
}

/// `/openapi/v2` (swagger 2.0), made anew.
#[must_use]
pub fn v2() -> Value {
    v2::document()
}

/// The same as JSON text: what to serve.
#[must_use]
pub fn v2_text() -> &'static str {
    static MADE: OnceLock<String> = OnceLock::new();
    MADE.get_or_init(|| v2().to_string())
}

/// The same as a gnostic `openapi.v2.Document`: what to serve to a client that asks for [`V2_PROTOBUF`].
#[must_use]
pub fn v2_protobuf() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| gnostic::encode(&v2()))
}

/// A hash of a document's content, for an `ETag` and for `?hash=`: the same for the same content everywhere.
#[must_use]
pub fn hash(content: &[u8]) -> String {
    HEXUPPER.encode(&Sha256::digest(content))
}

fn v3_texts() -> &'static BTreeMap<String, String> {
    static MADE: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    MADE.get_or_init(|| {
        let one = |(group, version)| (v3_key(group, version), v3::document(group, version).to_string());
        group_versions().into_iter().map(one).collect()
    })
}

#[cfg(test)]
mod tests;
