//! Server-side three-way merge: what was applied last, what is live, what the manifest says now.
//!
//! A field that the last manifest had and this one hasn't goes; what the manifest says counts; the rest of what is live
//! stays. Lists of objects merge by Kubernetes' keys where its schema has them, lists of texts with a merge strategy as
//! sets, and every other list is replaced. Laws: applying twice is applying once; a manifest without changes changes
//! nothing that others set.

use serde_json::{Map, Value};

/// Lists that merge by key: the end of their path (indexes left out), and the fields that name an element.
const KEYED: &[(&str, &[&str])] = &[
    ("spec.ports", &["port", "protocol"]),
    ("spec.containers", &["name"]),
    ("spec.initContainers", &["name"]),
    ("spec.ephemeralContainers", &["name"]),
    ("spec.volumes", &["name"]),
    ("spec.imagePullSecrets", &["name"]),
    ("spec.hostAliases", &["ip"]),
    ("spec.topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("containers.ports", &["containerPort", "protocol"]),
    ("initContainers.ports", &["containerPort", "protocol"]),
    ("containers.env", &["name"]),
    ("initContainers.env", &["name"]),
    ("containers.volumeMounts", &["mountPath"]),
    ("initContainers.volumeMounts", &["mountPath"]),
    ("status.conditions", &["type"]),
    ("status.addresses", &["type"]),
    ("status.podIPs", &["ip"]),
    ("metadata.ownerReferences", &["uid"]),
];

/// Lists of texts that merge as sets.
const SETS: &[&str] = &["metadata.finalizers", "spec.podCIDRs"];

/// The merged manifest.
#[must_use]
pub fn three_way(last_applied: Option<&Value>, live: &Value, manifest: &Value) -> Value {
    merge("", last_applied.unwrap_or(&Value::Null), (live, manifest))
}

fn merge(path: &str, last: &Value, of: (&Value, &Value)) -> Value {
    let (live, manifest) = of;
    match (live, manifest) {
        (Value::Object(live), Value::Object(manifest)) => objects(path, last.as_object(), (live, manifest)),
        (Value::Array(live), Value::Array(manifest)) => arrays(path, last.as_array(), (live, manifest)),
        _ => manifest.clone(),
    }
}

fn objects(path: &str, last: Option<&Map<String, Value>>, of: (&Map<String, Value>, &Map<String, Value>)) -> Value {
    let (live, manifest) = of;
    let mut merged = live.clone();
    for key in last.into_iter().flat_map(Map::keys) {
        // Identity is never taken away by leaving it out.
        let identity = path.is_empty() && (key == "apiVersion" || key == "kind" || key == "metadata");
        if !identity && !manifest.contains_key(key) {
            merged.remove(key);
        }
    }
    for (key, value) in manifest {
        if value.is_null() {
            merged.remove(key);
            continue;
        }
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let last = last.and_then(|last| last.get(key)).unwrap_or(&Value::Null);
        let new = match live.get(key) {
            Some(live) => merge(&inner, last, (live, value)),
            None => value.clone(),
        };
        merged.insert(key.clone(), new);
    }
    Value::Object(merged)
}

fn arrays(path: &str, last: Option<&Vec<Value>>, of: (&Vec<Value>, &Vec<Value>)) -> Value {
    let (live, manifest) = of;
    let ends = |suffix: &str| path == suffix || path.ends_with(&format!(".{suffix}"));
    if let Some((_, keys)) = KEYED.iter().find(|(suffix, _)| ends(suffix)) {
        return keyed(path, last, (live, manifest, keys));
    }
    if SETS.iter().any(|suffix| ends(suffix)) {
        let dropped = |value: &Value| last.is_some_and(|last| last.contains(value)) && !manifest.contains(value);
        let kept = live.iter().filter(|value| !dropped(value));
        let added = manifest.iter().filter(|value| !live.contains(value));
        return kept.chain(added).cloned().collect();
    }
    Value::Array(manifest.clone())
}

/// Elements in the manifest's order, then the live ones that the manifest never had.
fn keyed(path: &str, last: Option<&Vec<Value>>, of: (&Vec<Value>, &Vec<Value>, &[&str])) -> Value {
    let (live, manifest, keys) = of;
    let find = |list: &[Value], wanted: &[Value]| list.iter().position(|one| name(one, keys) == wanted);
    let mut merged = Vec::new();
    for element in manifest {
        let wanted = name(element, keys);
        let last = last.and_then(|last| find(last, &wanted).map(|index| &last[index])).unwrap_or(&Value::Null);
        merged.push(match find(live, &wanted) {
            Some(index) => merge(path, last, (&live[index], element)),
            None => element.clone(),
        });
    }
    for element in live {
        let wanted = name(element, keys);
        let dropped = last.is_some_and(|last| find(last, &wanted).is_some());
        if !dropped && find(manifest, &wanted).is_none() {
            merged.push(element.clone());
        }
    }
    Value::Array(merged)
}

/// What names an element; an absent protocol is TCP, as everywhere in Kubernetes.
fn name(element: &Value, keys: &[&str]) -> Vec<Value> {
    let part = |key: &&str| match element.get(*key) {
        None | Some(Value::Null) if *key == "protocol" => Value::from("TCP"),
        found => found.cloned().unwrap_or(Value::Null),
    };
    keys.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_the_manifest_dropped_goes_and_what_others_set_stays() {
        let last = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "spec": {"type": "ClusterIP"}});
        let live = json!({"metadata": {"uid": "u", "labels": {"a": "1", "b": "2", "theirs": "x"}}, "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.9"}});
        let now = json!({"metadata": {"labels": {"a": "3"}}});
        let merged = three_way(Some(&last), &live, &now);
        assert_eq!(merged, json!({"metadata": {"uid": "u", "labels": {"a": "3", "theirs": "x"}}}));
        let now = json!({"metadata": {"labels": {"a": "3"}}, "spec": {"type": "ClusterIP"}});
        assert_eq!(three_way(Some(&last), &live, &now)["spec"], live["spec"]);
    }

    #[test]
    fn ports_merge_by_number_and_protocol_and_keep_what_was_allocated() {
        let last = json!({"spec": {"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}});
        let live = json!({"spec": {"ports": [
            {"port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": 80}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]}});
        let now = json!({"spec": {"ports": [{"port": 443}, {"port": 80, "targetPort": 8080}]}});
        assert_eq!(
            three_way(Some(&last), &live, &now),
            json!({"spec": {"ports": [{"port": 443}, {"port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": 8080}]}})
        );
    }

    #[test]
    fn containers_merge_deeply_and_other_lists_are_replaced() {
        let live =
            json!({"spec": {"containers": [{"name": "a", "args": ["x"], "env": [{"name": "K", "value": "1"}]}]}});
        let now = json!({"spec": {"containers": [{"name": "a", "args": ["y"], "env": [{"name": "L", "value": "2"}]}]}});
        assert_eq!(
            three_way(None, &live, &now),
            json!({"spec": {"containers": [{"name": "a", "args": ["y"], "env": [{"name": "L", "value": "2"}, {"name": "K", "value": "1"}]}]}})
        );
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!(true)), Just(json!(["p", "q"]))];
        leaf.prop_recursive(3, 24, 4, |inner| {
            proptest::collection::btree_map("[a-d]", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    proptest! {
        #[test]
        fn applied_twice_is_applied_once(last in value(), live in value(), now in value()) {
            let once = three_way(Some(&last), &live, &now);
            prop_assert_eq!(three_way(Some(&now), &once, &now), once);
        }
    }
}
