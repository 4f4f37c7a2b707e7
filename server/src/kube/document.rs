//! Documents about the API itself: versions, discovery, schemas. Pure.

use crate::kube::accept::{self, Endpoint, Wanted};
use crate::kube::answer::Answer;
use crate::kube::failure::Failure;
use crate::kube::{discovery, kinds, openapi};
use bytes::Bytes;
use serde_json::{Value, json};

/// The document at a path.
///
/// # Errors
/// 404: there is none; 406: it can't be had in any form that is accepted.
pub(super) fn answer(segments: &[String], accepted: &str) -> Result<Answer, Failure> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let found: Option<Value> = match words.as_slice() {
        [] => Some(paths()),
        // Indented, as kube-apiserver has it: people look at it.
        ["version"] => return Ok(Answer::json(&discovery::version(&build())).pretty()),
        ["api" | "apis"] if aggregated(accepted)? => {
            let core = words == ["api"];
            let document = if core { discovery::aggregated_core() } else { discovery::aggregated_groups() };
            let mut answer = Answer::json(&document);
            answer.media_type = discovery::AGGREGATED;
            return Ok(answer);
        }
        ["api"] => Some(discovery::api_versions("")),
        ["apis"] => Some(discovery::api_groups()),
        ["api", version] => discovery::api_resources("", version),
        ["apis", group] => discovery::api_group(group),
        ["apis", group, version] => discovery::api_resources(group, version),
        ["openapi", "v2"] => return openapi_v2(accepted),
        ["openapi", "v3"] => Some(openapi::v3_index()),
        ["openapi", "v3", rest @ ..] => {
            let document = openapi::v3_text(&rest.join("/")).ok_or_else(Failure::no_such_path)?;
            return Ok(Answer::bytes(Bytes::from_static(document.as_bytes())));
        }
        _ => None,
    };
    found.map(|document| Answer::json(&document)).ok_or_else(Failure::no_such_path)
}

/// Where there is something, for people who look.
fn paths() -> Value {
    let groups = kinds::group_versions().into_iter();
    let mut paths: Vec<String> =
        groups.map(|(group, version)| format!("/{}", openapi::v3_key(group, version))).collect();
    paths.extend(
        ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned),
    );
    paths.sort();
    json!({"paths": paths})
}

/// Clients read which Kubernetes' behaviour they may expect.
fn build() -> discovery::Build<'static> {
    discovery::Build {
        git_version: concat!("v1.37.0+fairlead-", env!("CARGO_PKG_VERSION")),
        git_commit: "",
        build_date: "",
        platform: "linux/amd64",
    }
}

fn aggregated(accepted: &str) -> Result<bool, Failure> {
    Ok(accept::wanted(accepted, Endpoint::Discovery)? == Wanted::AggregatedDiscoveryV2)
}

/// The second version of the schemas: old clients read it, as protobuf.
fn openapi_v2(accepted: &str) -> Result<Answer, Failure> {
    if accept::wanted(accepted, Endpoint::OpenApiV2)? == Wanted::OpenApiV2Protobuf {
        let mut answer = Answer::bytes(Bytes::from_static(openapi::v2_protobuf()));
        answer.media_type = openapi::V2_PROTOBUF;
        return Ok(answer);
    }
    Ok(Answer::bytes(Bytes::from_static(openapi::v2_text().as_bytes())))
}
