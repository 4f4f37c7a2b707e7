//! Bodies of requests: JSON, YAML or Kubernetes' protobuf, bounded in size and depth, as one JSON value. Pure.

use crate::kube::failure::Failure;
use crate::kube::protobuf;
use serde_json::Value;

/// Bytes of a body (kube-apiserver's `--max-request-bytes`-like limit for writes: 3 MiB).
pub const MAX_BODY: usize = 3 * 1024 * 1024;
/// Documents nest this deep, at most.
const MAX_DEPTH: usize = 100;
const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The type of a body, without parameters and in lower case; nothing said means JSON, as Kubernetes takes it.
#[must_use]
pub fn media_type(header: Option<&str>) -> String {
    let bare = header.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if bare.is_empty() { "application/json".to_owned() } else { bare }
}

/// Understands a body.
///
/// # Errors
/// 415 for another type; 400 for one that can't be read.
pub fn decode(media_type: &str, body: &[u8]) -> Result<Value, Failure> {
    let value = match media_type {
        "application/json" => json(body)?,
        "application/yaml" | "application/apply-patch+yaml" => yaml(body)?,
        "application/vnd.kubernetes.protobuf" => protobuf::decode(body)
            .map_err(|why| Failure::bad_request(format!("the body is not Kubernetes protobuf: {why}")))?,
        _ => return Err(Failure::media_type(ACCEPTED)),
    };
    if too_deep(&value, 0) {
        return Err(Failure::bad_request(format!("the body nests deeper than {MAX_DEPTH} levels")));
    }
    Ok(value)
}

/// A JSON body, whatever it is of.
///
/// # Errors
/// 400: it isn't JSON.
pub fn json(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::bad_request(format!("the object provided is unrecognized (must be of type JSON): {error}"))
    })
}

fn yaml(body: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
    let unreadable = |error: fairlead_proto::manifest::ManifestError| {
        Failure::bad_request(format!("error converting YAML to JSON: {error}"))
    };
    let mut documents = fairlead_proto::manifest::documents(text).map_err(unreadable)?;
    match documents.len() {
        1 => Ok(documents.remove(0)),
        0 => Err(Failure::bad_request("the body is empty")),
        _ => Err(Failure::bad_request("the body has more than one YAML document")),
    }
}

fn too_deep(value: &Value, depth: usize) -> bool {
    match value {
        Value::Object(_) | Value::Array(_) if depth >= MAX_DEPTH => true,
        Value::Object(map) => map.values().any(|inner| too_deep(inner, depth + 1)),
        Value::Array(list) => list.iter().any(|inner| too_deep(inner, depth + 1)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let json = decode("application/json", br#"{"kind":"Service","spec":{"ports":[{"port":80}]}}"#).unwrap();
        let yaml = decode("application/yaml", b"kind: Service\nspec:\n  ports:\n  - port: 80\n").unwrap();
        assert_eq!(json, yaml);
    }

    #[test]
    fn what_can_t_be_read_is_refused() {
        let deep = "[".repeat(101) + &"]".repeat(101);
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
            d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
            g: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
        for (kind, body, code) in [
            ("application/json", deep.as_bytes(), 400),
            ("application/json", b"{".as_slice(), 400),
            ("application/json", b"", 400),
            ("application/yaml", b"a: b: c", 400),
            ("application/yaml", b"a: 1\n---\nb: 2\n", 400),
            ("application/yaml", b"\xff", 400),
            ("application/yaml", bomb.as_bytes(), 400),
            ("application/vnd.kubernetes.protobuf", b"k8s", 400),
            ("text/plain", b"{}", 415),
        ] {
            assert_eq!(decode(kind, body).unwrap_err().code, code, "{kind} {:?}", &body[..body.len().min(20)]);
        }
        assert_eq!(media_type(Some("Application/JSON; charset=utf-8")), "application/json");
        assert_eq!(media_type(None), "application/json");
    }
}
