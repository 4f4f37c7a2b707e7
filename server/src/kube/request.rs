//! What a request asks for: its path and its query, as Kubernetes' API conventions have them. Pure; bounded by the head's
//! size; whatever can't be understood is a refusal, never a guess.

use crate::kube::failure::Failure;
use crate::kube::fields;
use crate::kube::kinds;
use crate::kube::table::Include;
use fairlead_proto::v1::FieldValidation;
use percent_encoding::percent_decode_str;

/// What a path names.
#[derive(Clone, Debug)]
pub struct Target {
    /// The resource.
    pub resource: &'static kinds::Kind,
    /// Empty: of all namespaces, or in none.
    pub namespace: String,
    /// Empty: all of them.
    pub name: String,
    /// `status`, or empty.
    pub subresource: String,
}

/// A path of the API.
#[derive(Clone, Debug)]
pub enum Path {
    /// Objects.
    Objects(Target),
    /// A document about the API itself, by its segments.
    Document(Vec<String>),
}

/// Understands a path: `/api/v1/namespaces/NS/services/NAME/status`, `/apis/GROUP/VERSION/…`, or a document's.
///
/// # Errors
/// 404: nothing is there; 400: it isn't UTF-8 or tries tricks.
pub fn path(raw: &str) -> Result<Path, Failure> {
    let mut segments = Vec::new();
    for segment in raw.split('/').filter(|segment| !segment.is_empty()) {
        let segment =
            percent_decode_str(segment).decode_utf8().map_err(|_| Failure::bad_request("the path is not UTF-8"))?;
        if segment.contains(['/', '\0', '%']) || segment == "." || segment == ".." {
            return Err(Failure::bad_request(format!("invalid path segment {segment:?}")));
        }
        segments.push(segment.into_owned());
    }
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Path::Document(segments)),
    };
    let (namespace, rest) = match rest {
        // Namespaces are themselves objects; what is below one, except its subresources, is in it.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        _ => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Err(Failure::no_such_path()),
    };
    let resource = kinds::at_path(group, version, plural).ok_or_else(Failure::no_such_path)?;
    if (!resource.namespaced && !namespace.is_empty())
        || (resource.namespaced && namespace.is_empty() && !name.is_empty())
    {
        return Err(Failure::no_such_path());
    }
    if !subresource.is_empty() && resource.subresource(subresource).is_none() {
        return Err(Failure::no_such_path());
    }
    let [namespace, name, subresource] = [namespace, name, subresource].map(str::to_owned);
    Ok(Path::Objects(Target { resource, namespace, name, subresource }))
}

/// `resourceVersion` of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revision {
    /// The newest.
    #[default]
    Newest,
    /// "0": whatever this server has.
    Any,
    /// This one, or a newer one.
    At(u64),
}

/// What a query asks for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `labelSelector`
    pub labels: String,
    /// `fieldSelector`
    pub fields: String,
    /// `limit`; 0 = none.
    pub limit: u32,
    /// `continue`
    pub token: String,
    /// `resourceVersion`
    pub revision: Revision,
    /// `resourceVersionMatch=Exact` or `NotOlderThan`.
    pub exact: Option<bool>,
    /// `watch`
    pub watch: bool,
    /// `allowWatchBookmarks`
    pub bookmarks: bool,
    /// `sendInitialEvents`
    pub initial_events: Option<bool>,
    /// `timeoutSeconds`
    pub timeout_seconds: Option<u64>,
    /// `dryRun=All`
    pub dry_run: bool,
    /// `fieldValidation`; warned of, if nothing is said.
    pub validation: FieldValidation,
    /// `fieldManager`
    pub manager: String,
    /// `force`
    pub force: bool,
    /// `includeObject`
    pub include: Include,
    /// `gracePeriodSeconds`
    pub grace_period_seconds: Option<i64>,
    /// `pretty`
    pub pretty: bool,
}

/// Understands a query; what Kubernetes doesn't know is left aside, as there.
///
/// # Errors
/// A value that makes no sense.
pub fn query(raw: &str) -> Result<Asked, Failure> {
    let mut asked = Asked { validation: FieldValidation::Warn, ..Asked::default() };
    for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
        let value = value.into_owned();
        match name.as_ref() {
            "labelSelector" => asked.labels = value,
            "fieldSelector" => asked.fields = value,
            "limit" => asked.limit = u32::try_from(number(&name, &value)?.max(0)).unwrap_or(u32::MAX),
            "continue" => asked.token = value,
            "resourceVersion" => asked.revision = revision(&value)?,
            "resourceVersionMatch" if !value.is_empty() => asked.exact = Some(matching(&value)?),
            "watch" => asked.watch = flag(&name, &value)?,
            "allowWatchBookmarks" => asked.bookmarks = flag(&name, &value)?,
            "sendInitialEvents" => asked.initial_events = Some(flag(&name, &value)?),
            "timeoutSeconds" => {
                asked.timeout_seconds = u64::try_from(number(&name, &value)?).ok().filter(|time| *time > 0)
            }
            "dryRun" if !value.is_empty() => asked.dry_run = dry_run(&value)?,
            "fieldValidation" if !value.is_empty() => asked.validation = validation(&value)?,
            "fieldManager" => asked.manager = manager(value)?,
            "force" => asked.force = flag(&name, &value)?,
            "includeObject" => asked.include = Include::parse(&value).map_err(Failure::bad_request)?,
            "gracePeriodSeconds" => asked.grace_period_seconds = Some(number(&name, &value)?),
            "pretty" => asked.pretty = flag(&name, &value).unwrap_or(true),
            _ => {}
        }
    }
    check(&asked)?;
    Ok(asked)
}

/// Rules between parameters (k8s.io/apimachinery/pkg/apis/meta/internalversion/validation).
fn check(asked: &Asked) -> Result<(), Failure> {
    let forbidden = |field: &str, why: &str| Failure::invalid_options(field, &format!("Forbidden: {why}"));
    if asked.watch {
        if asked.initial_events.is_some() && asked.exact.is_none() {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(forbidden("sendInitialEvents", why));
        }
        if asked.exact.is_some() && asked.initial_events.is_none() {
            return Err(forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        if asked.exact == Some(true) {
            return Err(forbidden("resourceVersionMatch", "resourceVersionMatch must be NotOlderThan for watch"));
        }
        return Ok(());
    }
    if asked.initial_events.is_some() {
        return Err(forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if asked.exact.is_some() && asked.revision == Revision::Newest {
        return Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if asked.exact == Some(true) && asked.revision == Revision::Any {
        return Err(forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ));
    }
    if !asked.token.is_empty() && matches!(asked.revision, Revision::At(_)) {
        return Err(Failure::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

fn number(name: &str, value: &str) -> Result<i64, Failure> {
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|_| Failure::bad_request(format!("{name}: {value:?} is not a whole number")))
}

/// As Kubernetes reads booleans of a query: there at all is true, except "false" and "0".
fn flag(name: &str, value: &str) -> Result<bool, Failure> {
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => Err(Failure::bad_request(format!("{name}: {value:?} is neither true nor false"))),
    }
}

fn revision(value: &str) -> Result<Revision, Failure> {
    match value {
        "" => Ok(Revision::Newest),
        "0" => Ok(Revision::Any),
        digits => digits.parse().map(Revision::At).map_err(|_| {
            Failure::invalid_options(
                "resourceVersion",
                &format!("Invalid value: {value:?}: must be a revision, as digits"),
            )
        }),
    }
}

fn matching(value: &str) -> Result<bool, Failure> {
    match value {
        "Exact" => Ok(true),
        "NotOlderThan" => Ok(false),
        _ => Err(Failure::invalid_options(
            "resourceVersionMatch",
            &format!("Unsupported value: {value:?}: supported values: \"Exact\", \"NotOlderThan\""),
        )),
    }
}

/// Reads `dryRun`, of a query or of DeleteOptions.
///
/// # Errors
/// It isn't "All".
pub fn dry_run(value: &str) -> Result<bool, Failure> {
    if value == "All" {
        return Ok(true);
    }
    Err(Failure::invalid_options("dryRun", &format!("Unsupported value: {value:?}: supported values: \"All\"")))
}

fn validation(value: &str) -> Result<FieldValidation, Failure> {
    match value {
        "Strict" => Ok(FieldValidation::Strict),
        "Warn" => Ok(FieldValidation::Warn),
        "Ignore" => Ok(FieldValidation::Ignore),
        _ => Err(Failure::invalid_options(
            "fieldValidation",
            &format!("Unsupported value: {value:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""),
        )),
    }
}

fn manager(value: String) -> Result<String, Failure> {
    fields::check_manager(&value).map_err(|why| Failure::invalid_options("fieldManager", &why))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(raw: &str) -> (String, String, String, String) {
        match path(raw).unwrap() {
            Path::Objects(target) => {
                (target.resource.plural.to_owned(), target.namespace, target.name, target.subresource)
            }
            Path::Document(segments) => panic!("{segments:?}"),
        }
    }

    fn of(parts: [&str; 4]) -> (String, String, String, String) {
        let [plural, namespace, name, subresource] = parts.map(str::to_owned);
        (plural, namespace, name, subresource)
    }

    #[test]
    fn a_path_names_objects_in_a_namespace_or_in_none() {
        for (raw, wanted) in [
            ("/api/v1/services", ["services", "", "", ""]),
            ("/api/v1/namespaces/a/services", ["services", "a", "", ""]),
            ("/api/v1/namespaces/a/services/web", ["services", "a", "web", ""]),
            ("/api/v1/namespaces/a/services/web/status", ["services", "a", "web", "status"]),
            ("/api/v1/namespaces", ["namespaces", "", "", ""]),
            ("/api/v1/namespaces/a", ["namespaces", "", "a", ""]),
            ("/api/v1/namespaces/a/status", ["namespaces", "", "a", "status"]),
            ("/api/v1/nodes/n1", ["nodes", "", "n1", ""]),
            ("//api//v1/nodes/n1/", ["nodes", "", "n1", ""]),
            ("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices", ["endpointslices", "a", "", ""]),
        ] {
            assert_eq!(objects(raw), of(wanted), "{raw}");
        }
    }

    #[test]
    fn what_is_not_served_is_not_found_and_tricks_are_refused() {
        for raw in [
            "/api/v1/secrets",
            "/api/v2/services",
            "/apis/apps/v1/deployments",
            "/api/v1/services/web",
            "/api/v1/namespaces/a/nodes",
            "/api/v1/namespaces/a/services/web/log",
            "/api/v1/namespaces/a/services/web/status/more",
        ] {
            assert_eq!(path(raw).unwrap_err().code, 404, "{raw}");
        }
        for raw in [
            "/api/v1/namespaces/a/services/..",
            "/api/v1/namespaces/%2e%2e/services",
            "/api/v1/namespaces/a%2fb/services",
            "/api/v1/namespaces/a/services/%00",
            "/api/v1/namespaces/%ff/services",
            "/api/v1/namespaces/a/services/%2541",
        ] {
            assert_eq!(path(raw).unwrap_err().code, 400, "{raw}");
        }
    }

    #[test]
    fn a_query_is_read_as_kubernetes_does() {
        let asked =
            query("labelSelector=a%3Db%2Cc&limit=5&resourceVersion=7&resourceVersionMatch=Exact&unknown=1&pretty=true")
                .unwrap();
        assert_eq!((asked.labels.as_str(), asked.limit, asked.revision), ("a=b,c", 5, Revision::At(7)));
        assert_eq!((asked.exact, asked.pretty, asked.validation), (Some(true), true, FieldValidation::Warn));
        let asked = query("watch=1&allowWatchBookmarks=true&resourceVersion=0&timeoutSeconds=30").unwrap();
        assert_eq!((asked.watch, asked.bookmarks, asked.revision), (true, true, Revision::Any));
        assert_eq!(asked.timeout_seconds, Some(30));
        assert!(query("watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan").is_ok());
        for (raw, code) in [
            ("limit=x", 400),
            ("watch=maybe", 400),
            ("resourceVersion=abc", 422),
            ("dryRun=Some", 422),
            ("fieldValidation=Loose", 422),
            ("resourceVersionMatch=Exact", 422),
            ("resourceVersion=0&resourceVersionMatch=Exact", 422),
            ("watch=true&sendInitialEvents=true", 422),
            ("watch=true&resourceVersionMatch=NotOlderThan", 422),
            ("sendInitialEvents=true&resourceVersion=1&resourceVersionMatch=NotOlderThan", 422),
            ("continue=1:4:a/b&resourceVersion=7", 400),
            ("includeObject=Everything", 400),
        ] {
            assert_eq!(query(raw).unwrap_err().code, code, "{raw}");
        }
        assert_eq!(query(&format!("fieldManager={}", "x".repeat(129))).unwrap_err().code, 422);
    }
}
