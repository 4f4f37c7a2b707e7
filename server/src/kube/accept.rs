//! The Accept header: in which form a client wants its answer, as Kubernetes negotiates it. Pure.
//!
//! Laws: the clause of the highest quality that we can serve wins; of equals the more specific, then the first. A media type
//! whose most specific clause has quality 0 is never chosen (RFC 9110, 12.5.1). A clause that asks for a transform which the
//! endpoint hasn't is passed over, not refused, so that `application/json;as=Table…,application/json` always gets something.
//! At most `CLAUSES` clauses are read; a header with more is refused.

use std::fmt;

/// Most clauses of a header; clients send at most four.
const CLAUSES: usize = 64;

/// The version of `meta.k8s.io` that a transform was asked in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// Since 1.15.
    #[default]
    V1,
    /// What older clients ask for; of the same form.
    V1Beta1,
}

impl Version {
    /// What the answer says as its `apiVersion`.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// The form that an answer should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The thing itself, as JSON.
    Json,
    /// The thing itself, as YAML.
    Yaml,
    /// A table of rows for people.
    Table {
        /// Its `apiVersion`.
        version: Version,
    },
    /// An object's metadata alone. Of a list, Kubernetes refuses it (`LIST_AS_PARTIAL`).
    PartialObjectMetadata {
        /// Its `apiVersion`.
        version: Version,
    },
    /// The metadata of a list's objects. Of one object, Kubernetes refuses it (`OBJECT_AS_PARTIAL_LIST`).
    PartialObjectMetadataList {
        /// Its `apiVersion`.
        version: Version,
    },
    /// All groups and resources in one document (KEP-3352).
    AggregatedDiscoveryV2,
    /// OpenAPI 2 as protobuf: what kubectl reads.
    OpenApiV2Protobuf,
}

/// What is asked; it decides what there is to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An object, a list, or the outcome of a write.
    Objects,
    /// A watch: YAML can't be streamed.
    Watch,
    /// `/api`, `/apis` and what is below them without objects.
    Discovery,
    /// `/openapi/v2`.
    OpenApiV2,
}

/// Why a list isn't answered as `PartialObjectMetadata` (apiserver's endpoints/handlers/response.go), with 406.
pub const LIST_AS_PARTIAL: &str = "you requested PartialObjectMetadata, but the requested object is a list";
/// Why an object isn't answered as `PartialObjectMetadataList`, with 406.
pub const OBJECT_AS_PARTIAL_LIST: &str =
    "you requested PartialObjectMetadataList, but the requested object is not a list";

/// Nothing that is accepted can be served: 406 with reason `NotAcceptable`; its text is the message of the `Status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAcceptable(String);

impl fmt::Display for NotAcceptable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotAcceptable {}

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const OPENAPI: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// The same as old clients spell it.
const OPENAPI_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Which form an Accept header asks for; an empty one asks for JSON (apiserver's endpoints/handlers/negotiation/negotiate.go).
///
/// # Errors
/// Nothing that is accepted can be served, or the header has too many clauses.
pub fn wanted(header: &str, endpoint: Endpoint) -> Result<Wanted, NotAcceptable> {
    if header.is_empty() {
        return Ok(Wanted::Json);
    }
    let mut clauses = Vec::new();
    for (at, text) in header.split(',').enumerate() {
        if at == CLAUSES {
            return Err(NotAcceptable(format!("the Accept header has more than {CLAUSES} clauses")));
        }
        clauses.extend(Clause::parse(text));
    }
    // Stable: of equals the first stays first.
    clauses.sort_by(|one, other| other.quality.total_cmp(&one.quality).then(one.stars().cmp(&other.stars())));
    let offers: &[&str] = match endpoint {
        Endpoint::Objects | Endpoint::Discovery => &[JSON, YAML],
        Endpoint::Watch => &[JSON],
        Endpoint::OpenApiV2 => &[JSON, OPENAPI, OPENAPI_OLD],
    };
    let mut choices = clauses
        .iter()
        .filter(|clause| clause.quality > 0.0)
        .flat_map(|clause| offers.iter().filter(|offer| clause.covers(offer)).map(move |offer| (clause, *offer)));
    let chosen =
        choices.find_map(|(clause, offer)| if rejects(&clauses, offer) { None } else { clause.form(offer, endpoint) });
    chosen.ok_or_else(|| {
        let accepted = match endpoint {
            Endpoint::Objects | Endpoint::Discovery => format!("{JSON}, {YAML}"),
            Endpoint::Watch => format!("{JSON};stream=watch"),
            Endpoint::OpenApiV2 => format!("{JSON}, {OPENAPI}"),
        };
        NotAcceptable(format!("only the following media types are accepted: {accepted}"))
    })
}

/// True if the most specific clause for a media type has quality 0. Of equally specific ones the best counts, so clauses come
/// sorted by quality.
fn rejects(clauses: &[Clause<'_>], offer: &str) -> bool {
    let covering = || clauses.iter().filter(|clause| clause.covers(offer));
    let Some(fewest) = covering().map(Clause::stars).min() else { return false };
    covering().find(|clause| clause.stars() == fewest).is_some_and(|clause| clause.quality <= 0.0)
}

/// One media range of the header, with its parameters.
#[derive(Clone, Copy, Debug)]
struct Clause<'a> {
    kind: &'a str,
    subkind: &'a str,
    quality: f32,
    /// `as`, `v` and `g`: a kind to transform to.
    transform: Option<[&'a str; 3]>,
    stream: &'a str,
    server_version: &'a str,
}

impl<'a> Clause<'a> {
    /// `None`: it is no media range, which is passed over.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let range = parts.next()?;
        let (kind, subkind) = if range == "*" { ("*", "*") } else { range.split_once('/')? };
        let (kind, subkind) = (kind.trim(), subkind.trim());
        if kind.is_empty() || subkind.is_empty() || subkind.contains('/') {
            return None;
        }
        let mut clause = Self { kind, subkind, quality: 1.0, transform: None, stream: "", server_version: "" };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim();
            let mut asked = |at: usize| {
                if let Some(slot) = clause.transform.get_or_insert_default().get_mut(at) {
                    *slot = value;
                }
            };
            match name.trim() {
                "as" => asked(0),
                "v" => asked(1),
                "g" => asked(2),
                // What isn't a number counts as 0, as it does for Kubernetes.
                "q" => clause.quality = value.parse::<f32>().ok().filter(|q| *q > 0.0).unwrap_or(0.0),
                "stream" => clause.stream = value,
                "sv" => clause.server_version = value,
                // `charset`, `pretty`, `profile` and others change nothing here.
                _ => {}
            }
        }
        Some(clause)
    }

    /// How unspecific it is.
    fn stars(&self) -> u8 {
        u8::from(self.kind == "*") + u8::from(self.subkind == "*")
    }

    fn covers(&self, offer: &str) -> bool {
        let (kind, subkind) = offer.split_once('/').unwrap_or_default();
        let covers = |asked: &str, have: &str| asked == "*" || asked.eq_ignore_ascii_case(have);
        covers(self.kind, kind) && covers(self.subkind, subkind)
    }

    /// The form that it asks for if this media type is served; `None`: the endpoint hasn't that form.
    fn form(&self, offer: &str, endpoint: Endpoint) -> Option<Wanted> {
        if endpoint == Endpoint::OpenApiV2 {
            return Some(if offer == JSON { Wanted::Json } else { Wanted::OpenApiV2Protobuf });
        }
        let streams = endpoint != Endpoint::Discovery && offer == JSON && self.stream == "watch";
        let versioned = endpoint != Endpoint::Discovery && self.server_version == "v1";
        if !(self.stream.is_empty() || streams) || !(self.server_version.is_empty() || versioned) {
            return None;
        }
        let Some([kind, version, group]) = self.transform else {
            return Some(if offer == YAML { Wanted::Yaml } else { Wanted::Json });
        };
        if offer != JSON {
            return None;
        }
        match (endpoint, group, version, kind) {
            (Endpoint::Discovery, "apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => {
                Some(Wanted::AggregatedDiscoveryV2)
            }
            (Endpoint::Objects | Endpoint::Watch, "meta.k8s.io", "v1", kind) => transformed(kind, Version::V1),
            (Endpoint::Objects | Endpoint::Watch, "meta.k8s.io", "v1beta1", kind) => {
                transformed(kind, Version::V1Beta1)
            }
            _ => None,
        }
    }
}

fn transformed(kind: &str, version: Version) -> Option<Wanted> {
    match kind {
        "Table" => Some(Wanted::Table { version }),
        "PartialObjectMetadata" => Some(Wanted::PartialObjectMetadata { version }),
        "PartialObjectMetadataList" => Some(Wanted::PartialObjectMetadataList { version }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: Wanted = Wanted::Table { version: Version::V1 };

    #[test]
    fn headers_of_real_clients_get_what_kubernetes_gives_them() {
        let get_of_kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                              application/json";
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        let older = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
                       application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let v2 = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        for (header, endpoint, expected) in [
            ("", Endpoint::Objects, Wanted::Json),
            ("*/*", Endpoint::Objects, Wanted::Json),
            ("*", Endpoint::Objects, Wanted::Json),
            ("application/json, */*", Endpoint::Objects, Wanted::Json),
            ("application/vnd.kubernetes.protobuf,application/json", Endpoint::Objects, Wanted::Json),
            ("application/vnd.kubernetes.protobuf, */*", Endpoint::Objects, Wanted::Json),
            ("application/yaml", Endpoint::Objects, Wanted::Yaml),
            ("application/*", Endpoint::Objects, Wanted::Json),
            (get_of_kubectl, Endpoint::Objects, TABLE),
            (get_of_kubectl, Endpoint::Watch, TABLE),
            (get_of_kubectl, Endpoint::Discovery, Wanted::Json),
            (discovery, Endpoint::Discovery, Wanted::AggregatedDiscoveryV2),
            (discovery, Endpoint::Objects, Wanted::Json),
            (older, Endpoint::Discovery, Wanted::Json),
            (partial, Endpoint::Objects, Wanted::PartialObjectMetadataList { version: Version::V1 }),
            (v2, Endpoint::OpenApiV2, Wanted::OpenApiV2Protobuf),
            ("application/json, */*", Endpoint::OpenApiV2, Wanted::Json),
            ("application/json;stream=watch", Endpoint::Watch, Wanted::Json),
            ("application/json; charset=utf-8", Endpoint::Objects, Wanted::Json),
        ] {
            assert_eq!(wanted(header, endpoint), Ok(expected), "{header}");
        }
    }

    #[test]
    fn quality_then_exactness_then_order_decide() {
        for (header, expected) in [
            ("application/json;q=0.5,application/yaml", Wanted::Yaml),
            ("application/json;q=0.5,application/yaml;q=0.4", Wanted::Json),
            ("*/*,application/yaml", Wanted::Yaml),
            ("application/*,application/yaml", Wanted::Yaml),
            ("application/yaml,application/json", Wanted::Yaml),
            ("application/json;q=0.9;as=Table;g=meta.k8s.io;v=v1,application/json", Wanted::Json),
            ("APPLICATION/YAML ; q = 0.3", Wanted::Yaml),
            ("nonsense,;;,a/b/c,/,application/json", Wanted::Json),
        ] {
            assert_eq!(wanted(header, Endpoint::Objects), Ok(expected), "{header}");
        }
    }

    #[test]
    fn quality_zero_excludes_a_media_type_though_a_wildcard_covers_it() {
        assert_eq!(wanted("application/json;q=0,*/*", Endpoint::Objects), Ok(Wanted::Yaml));
        assert_eq!(wanted("*/*;q=0,application/json", Endpoint::Objects), Ok(Wanted::Json));
        assert_eq!(wanted("application/json;q=0,application/json", Endpoint::Objects), Ok(Wanted::Json));
        for header in ["application/json;q=0", "*/*;q=0", "application/json;q=high", "application/json;q=NaN"] {
            assert!(wanted(header, Endpoint::Objects).is_err(), "{header}");
        }
    }

    #[test]
    fn transforms_that_an_endpoint_has_not_are_passed_over() {
        for header in [
            "application/json;as=Table;v=v1;g=example.com",
            "application/json;as=Table;v=v2;g=meta.k8s.io",
            "application/json;as=Chair;v=v1;g=meta.k8s.io",
            "application/json;as=Table",
            "application/json;v=v1;g=meta.k8s.io",
            "application/yaml;as=Table;v=v1;g=meta.k8s.io",
            "application/json;stream=other",
            "application/json;sv=v2",
            "application/yaml;stream=watch",
        ] {
            assert!(wanted(header, Endpoint::Objects).is_err(), "{header}");
            assert_eq!(
                wanted(&format!("{header},application/json;q=0.1"), Endpoint::Objects),
                Ok(Wanted::Json),
                "{header}"
            );
        }
    }

    #[test]
    fn old_clients_get_tables_of_their_version() {
        let header = "application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json";
        assert_eq!(wanted(header, Endpoint::Objects), Ok(Wanted::Table { version: Version::V1Beta1 }));
        assert_eq!(Version::V1Beta1.api_version(), "meta.k8s.io/v1beta1");
        assert_eq!(Version::V1.api_version(), "meta.k8s.io/v1");
    }

    #[test]
    fn protobuf_alone_is_not_acceptable_and_the_answer_says_what_is() {
        let refused = |endpoint| wanted("application/vnd.kubernetes.protobuf", endpoint).unwrap_err().to_string();
        let text = "only the following media types are accepted: application/json, application/yaml";
        assert_eq!(refused(Endpoint::Objects), text);
        assert_eq!(
            refused(Endpoint::Watch),
            "only the following media types are accepted: application/json;stream=watch"
        );
        assert!(wanted("application/yaml", Endpoint::Watch).is_err());
        assert!(wanted(" ", Endpoint::Objects).is_err());
    }

    #[test]
    fn a_header_of_too_many_clauses_is_refused() {
        let clauses = |count: usize| vec!["text/html"; count].join(",") + ",application/json";
        assert_eq!(wanted(&clauses(CLAUSES - 1), Endpoint::Objects), Ok(Wanted::Json));
        let why = wanted(&clauses(CLAUSES), Endpoint::Objects).unwrap_err().to_string();
        assert_eq!(why, "the Accept header has more than 64 clauses");
    }

    proptest! {
        #[test]
        fn any_header_is_answered_or_refused(header in "[a-z*/;,=.0-9 qvgs]{0,200}") {
            for endpoint in [Endpoint::Objects, Endpoint::Watch, Endpoint::Discovery, Endpoint::OpenApiV2] {
                let _ = wanted(&header, endpoint);
                // Whatever else is asked, JSON at the end of a list is always found.
                if !header.contains("json") && !header.contains('*') {
                    let header = format!("{header},application/json");
                    prop_assert_eq!(wanted(&header, endpoint), Ok(Wanted::Json));
                }
            }
        }

        #[test]
        fn the_order_of_clauses_of_different_quality_does_not_matter(at in 0usize..3) {
            let mut clauses = ["application/json;q=0.2", "application/yaml;q=0.8", "text/html"];
            clauses.rotate_left(at);
            prop_assert_eq!(wanted(&clauses.join(","), Endpoint::Objects), Ok(Wanted::Yaml));
        }
    }
}
