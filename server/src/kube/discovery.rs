//! What a client is told when it asks what is served: `/api`, `/apis` and below, the same in one document (aggregated
//! discovery, KEP-3352), and `/version`. Pure: made from the table of kinds alone.
//!
//! Law: the legacy documents and the aggregated ones say the same of each kind, its verbs and its parts.

use serde_json::{Map, Value, json};

use crate::kube::kinds::{Kind, Subresource, group_version, group_versions, kinds};

/// The content type of an aggregated answer; a client that names it in `Accept` gets [`aggregated_core`] or
/// [`aggregated_groups`] (KEP-3352).
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Who serves, for `/version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build<'a> {
    /// "v1.37.0+fairlead": clients read the Kubernetes version that they may expect from it.
    pub git_version: &'a str,
    /// Commit of the source, or "".
    pub git_commit: &'a str,
    /// RFC 3339 time, or "".
    pub build_date: &'a str,
    /// "linux/amd64".
    pub platform: &'a str,
}

/// `/api`: APIVersions. `address` is what a client of any address reaches the server at: "host:port".
#[must_use]
pub fn api_versions(address: &str) -> Value {
    let by_client = json!([{ "clientCIDR": "0.0.0.0/0", "serverAddress": address }]);
    json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": by_client })
}

/// `/apis`: APIGroupList.
#[must_use]
pub fn api_groups() -> Value {
    let groups: Vec<_> = named_groups().into_iter().map(|(group, versions)| group_entry(group, &versions)).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/GROUP`: APIGroup; `None`: no such group.
#[must_use]
pub fn api_group(group: &str) -> Option<Value> {
    let (_, versions) = named_groups().into_iter().find(|(name, _)| *name == group)?;
    let mut document = Map::from_iter([("kind".to_owned(), json!("APIGroup")), ("apiVersion".to_owned(), json!("v1"))]);
    if let Value::Object(entry) = group_entry(group, &versions) {
        document.extend(entry);
    }
    Some(Value::Object(document))
}

/// `/api/v1` (group "") and `/apis/GROUP/VERSION`: APIResourceList; `None`: no such group or version.
#[must_use]
pub fn api_resources(group: &str, version: &str) -> Option<Value> {
    let of = of_group_version(group, version);
    let rows = of.iter().flat_map(|kind| {
        let parts = kind.subresources.iter().map(|part| legacy_part(kind, part));
        std::iter::once(legacy_kind(kind)).chain(parts).collect::<Vec<_>>()
    });
    let resources: Vec<_> = rows.collect();
    (!resources.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": group_version(group, version),
            "resources": resources,
        })
    })
}

/// `/api`, aggregated: the core group alone.
#[must_use]
pub fn aggregated_core() -> Value {
    aggregated(vec![aggregated_group("", &["v1"])])
}

/// `/apis`, aggregated: every other group.
#[must_use]
pub fn aggregated_groups() -> Value {
    aggregated(named_groups().into_iter().map(|(group, versions)| aggregated_group(group, &versions)).collect())
}

/// `/version` (`k8s.io/apimachinery/pkg/version` Info). The Kubernetes version whose API is served is 1.37.
#[must_use]
pub fn version(build: &Build) -> Value {
    json!({
        "major": "1",
        "minor": "37",
        "gitVersion": build.git_version,
        "gitCommit": build.git_commit,
        "gitTreeState": "clean",
        "buildDate": build.build_date,
        "goVersion": "rustc",
        "compiler": "rustc",
        "platform": build.platform,
    })
}

/// Every group but the core one, with its versions, the preferred one first.
fn named_groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (group, version) in group_versions().into_iter().filter(|(group, _)| !group.is_empty()) {
        match groups.last_mut().filter(|(last, _)| *last == group) {
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    groups
}

fn of_group_version(group: &str, version: &str) -> Vec<&'static Kind> {
    kinds().iter().filter(|kind| kind.group == group && kind.version == version).collect()
}

fn group_entry(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({ "groupVersion": group_version(group, version), "version": version });
    let all: Vec<_> = versions.iter().map(entry).collect();
    json!({ "name": group, "versions": all, "preferredVersion": all.first() })
}

fn legacy_kind(kind: &Kind) -> Value {
    let mut row = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    add_lists(&mut row, kind);
    row
}

fn legacy_part(kind: &Kind, part: &Subresource) -> Value {
    json!({
        "name": format!("{}/{}", kind.plural, part.name),
        "singularName": "",
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": part.verbs,
    })
}

/// Short names and categories, which are left out where there are none.
fn add_lists(row: &mut Value, kind: &Kind) {
    for (name, list) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
        if let (Some(row), false) = (row.as_object_mut(), list.is_empty()) {
            row.insert(name.to_owned(), json!(list));
        }
    }
}

fn aggregated(items: Vec<Value>) -> Value {
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str, versions: &[&str]) -> Value {
    let mut metadata = json!({ "creationTimestamp": null });
    if let (Some(metadata), false) = (metadata.as_object_mut(), group.is_empty()) {
        metadata.insert("name".to_owned(), json!(group));
    }
    let of = |version: &&str| {
        let resources: Vec<_> = of_group_version(group, version).into_iter().map(aggregated_kind).collect();
        json!({ "version": version, "resources": resources, "freshness": "Current" })
    };
    json!({ "metadata": metadata, "versions": versions.iter().map(of).collect::<Vec<_>>() })
}

fn aggregated_kind(kind: &Kind) -> Value {
    let meant = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
    let mut row = json!({
        "resource": kind.plural,
        "responseKind": meant,
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    add_lists(&mut row, kind);
    let part = |part: &Subresource| json!({ "subresource": part.name, "responseKind": meant, "verbs": part.verbs });
    let parts: Vec<_> = kind.subresources.iter().map(part).collect();
    if let (Some(row), false) = (row.as_object_mut(), parts.is_empty()) {
        row.insert("subresources".to_owned(), json!(parts));
    }
    row
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroup, APIGroupList, APIResourceList, APIVersions};
    use k8s_openapi::apimachinery::pkg::version::Info;

    use super::*;

    fn every_list() -> Vec<APIResourceList> {
        let lists = group_versions().into_iter().map(|(group, version)| api_resources(group, version).unwrap());
        lists.map(|list| serde_json::from_value(list).unwrap()).collect()
    }

    /// (group version, plural/part, namespaced, kind, verbs, short names, categories)
    type Said = BTreeSet<(String, String, bool, String, String, String, String)>;

    fn legacy() -> Said {
        let mut said = Said::new();
        for list in every_list() {
            for one in list.resources {
                let (short, categories) = (one.short_names.unwrap_or_default(), one.categories.unwrap_or_default());
                let lists = (one.verbs.join(","), short.join(","), categories.join(","));
                let place = (list.group_version.clone(), one.name);
                said.insert((place.0, place.1, one.namespaced, one.kind, lists.0, lists.1, lists.2));
            }
        }
        said
    }

    fn strings(of: &Value) -> String {
        let all = of.as_array().into_iter().flatten();
        all.map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join(",")
    }

    fn aggregated_said(document: &Value, said: &mut Said) {
        for group in document["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array().unwrap() {
                assert_eq!(version["freshness"], "Current");
                let place = group_version(name, version["version"].as_str().unwrap());
                for one in version["resources"].as_array().unwrap() {
                    let plural = one["resource"].as_str().unwrap();
                    let namespaced = one["scope"] == "Namespaced";
                    assert!(namespaced || one["scope"] == "Cluster");
                    let kind = one["responseKind"]["kind"].as_str().unwrap().to_owned();
                    let lists = (strings(&one["verbs"]), strings(&one["shortNames"]), strings(&one["categories"]));
                    let whole = (plural.to_owned(), kind.clone());
                    said.insert((place.clone(), whole.0, namespaced, whole.1, lists.0, lists.1, lists.2));
                    for part in one["subresources"].as_array().into_iter().flatten() {
                        let name = format!("{plural}/{}", part["subresource"].as_str().unwrap());
                        let verbs = strings(&part["verbs"]);
                        let none = (String::new(), String::new());
                        said.insert((place.clone(), name, namespaced, kind.clone(), verbs, none.0, none.1));
                    }
                }
            }
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let mut said = Said::new();
        aggregated_said(&aggregated_core(), &mut said);
        aggregated_said(&aggregated_groups(), &mut said);
        assert_eq!(said, legacy());
        assert_eq!(said.len(), kinds().iter().map(|kind| 1 + kind.subresources.len()).sum::<usize>());
    }

    #[test]
    fn the_documents_are_of_the_types_that_clients_decode() {
        let versions: APIVersions = serde_json::from_value(api_versions("10.0.0.1:6443")).unwrap();
        assert_eq!(versions.versions, ["v1"]);
        assert_eq!(versions.server_address_by_client_cidrs[0].server_address, "10.0.0.1:6443");
        let groups: APIGroupList = serde_json::from_value(api_groups()).unwrap();
        for group in groups.groups {
            let one: APIGroup = serde_json::from_value(api_group(&group.name).unwrap()).unwrap();
            assert_eq!(one, group);
            assert_eq!(one.preferred_version.as_ref(), one.versions.first());
        }
    }

    #[test]
    fn what_is_not_served_has_no_document() {
        assert_eq!(api_group("apps"), None);
        assert_eq!(api_group(""), None);
        assert_eq!(api_resources("discovery.k8s.io", "v1beta1"), None);
        assert_eq!(api_resources("discovery.k8s.io", ""), None);
    }

    #[test]
    fn a_service_is_told_of_as_kubernetes_does() {
        let document = aggregated_core();
        let core = &document["items"][0];
        assert_eq!(core["metadata"], json!({ "creationTimestamp": null }));
        let row = core["versions"][0]["resources"].as_array().unwrap().iter().find(|row| row["resource"] == "services");
        let meant = json!({ "group": "", "version": "v1", "kind": "Service" });
        let expected = json!({
            "resource": "services",
            "responseKind": meant,
            "scope": "Namespaced",
            "singularResource": "service",
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
            "shortNames": ["svc"],
            "categories": ["all"],
            "subresources": [
                { "subresource": "status", "responseKind": meant, "verbs": ["get", "patch", "update"] },
            ],
        });
        assert_eq!(row, Some(&expected));
    }

    #[test]
    fn the_version_is_what_was_given() {
        let build =
            Build { git_version: "v1.37.0+fairlead", git_commit: "c0", build_date: "", platform: "linux/amd64" };
        let said: Info = serde_json::from_value(version(&build)).unwrap();
        assert_eq!(
            (said.major.as_str(), said.minor.as_str(), said.git_version.as_str()),
            ("1", "37", "v1.37.0+fairlead")
        );
        assert_eq!((said.git_commit.as_str(), said.platform.as_str()), ("c0", "linux/amd64"));
    }
}
