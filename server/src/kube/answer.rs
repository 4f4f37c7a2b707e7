//! Answers: JSON or YAML, compressed where it pays, with warnings as headers.

use crate::kube::failure::Failure;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::io::Write as _;

/// Answers of at least this many bytes are compressed, for who can read it (kube-apiserver's threshold).
const COMPRESSED_FROM: usize = 128 * 1024;
/// Most characters of all warnings of one answer (as kube-apiserver's).
const MAX_WARNINGS: usize = 4 * 1024;

/// An answer under way.
#[derive(Debug)]
pub struct Answer {
    /// HTTP's code.
    pub code: u16,
    /// What the body is.
    pub media_type: &'static str,
    /// The body.
    pub body: Bytes,
    /// What the client should know.
    pub warnings: Vec<String>,
}

impl Answer {
    /// An object, with 200.
    #[must_use]
    pub fn json(value: &Value) -> Self {
        Self::bytes(Bytes::from(value.to_string()))
    }

    /// JSON as it is, with 200.
    #[must_use]
    pub fn bytes(body: Bytes) -> Self {
        Self { code: 200, media_type: "application/json", body, warnings: Vec::new() }
    }

    /// With another code.
    #[must_use]
    pub fn with_code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// With warnings.
    #[must_use]
    pub fn warning(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    /// As YAML.
    #[must_use]
    pub fn yaml(mut self) -> Self {
        if self.media_type == "application/json"
            && let Ok(value) = serde_json::from_slice::<Value>(&self.body)
            && let Ok(text) = serde_saphyr::to_string(&value)
        {
            self.body = text.into();
            self.media_type = "application/yaml";
        }
        self
    }

    /// Indented, for people.
    #[must_use]
    pub fn pretty(mut self) -> Self {
        if self.media_type == "application/json"
            && let Ok(value) = serde_json::from_slice::<Value>(&self.body)
            && let Ok(text) = serde_json::to_vec_pretty(&value)
        {
            self.body = text.into();
        }
        self
    }

    /// The response, for a client that sent these headers.
    #[must_use]
    pub fn response(self, asked: &HeaderMap) -> Response<Body> {
        let zipped = (self.body.len() >= COMPRESSED_FROM && reads_gzip(asked)).then(|| gzip(&self.body)).flatten();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = axum::http::StatusCode::from_u16(self.code).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        let mut left = MAX_WARNINGS;
        for warning in &self.warnings {
            let Some(rest) = left.checked_sub(warning.len()) else { break };
            left = rest;
            if let Ok(value) = HeaderValue::from_str(&format!("299 - {}", quoted(warning))) {
                headers.append(header::WARNING, value);
            }
        }
        if zipped.is_some() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        *response.body_mut() = Body::from(zipped.unwrap_or(self.body));
        response
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Self::json(&failure.status()).with_code(failure.code)
    }
}

/// A quoted string of RFC 9110: control characters have no place in a header.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            _ if letter.is_control() => quoted.push(' '),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

fn reads_gzip(asked: &HeaderMap) -> bool {
    let accepted = asked.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|one| {
        let (name, weight) = one.split_once(';').unwrap_or((one, ""));
        name.trim() == "gzip" && !matches!(weight.trim(), "q=0" | "q=0.0")
    })
}

fn gzip(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(encoding: &'static str) -> HeaderMap {
        [(header::ACCEPT_ENCODING, HeaderValue::from_static(encoding))].into_iter().collect()
    }

    #[test]
    fn long_answers_are_compressed_for_who_can_read_it() {
        let long = || Answer::bytes(Bytes::from(vec![b'x'; COMPRESSED_FROM]));
        let encoded = |answer: Answer, asked| answer.response(&asked).headers().contains_key(header::CONTENT_ENCODING);
        assert!(encoded(long(), asking("deflate, gzip;q=0.5")));
        assert!(!encoded(long(), asking("gzip;q=0")));
        assert!(!encoded(long(), HeaderMap::new()));
        assert!(!encoded(Answer::bytes(Bytes::from_static(b"{}")), asking("gzip")));
    }

    #[test]
    fn warnings_are_quoted_headers_and_bounded() {
        let warnings = vec!["say \"x\"\nand go".to_owned(), "y".repeat(MAX_WARNINGS)];
        let response = Answer::json(&Value::Null).warning(warnings).response(&HeaderMap::new());
        let sent: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(sent, ["299 - \"say \\\"x\\\" and go\""]);
    }
}
