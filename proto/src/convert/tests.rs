//! Kubernetes' rules as tables: manifest → problems, and the laws of defaulting and of the round trip.

use crate::convert::{default_object, validate_create, validate_update};
use crate::manifest;
use crate::v1::Object;
use serde_json::{Value, json};

fn object(value: &Value) -> Object {
    let mut object = manifest::decode(value).unwrap().object;
    default_object(&mut object);
    object
}

fn service(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn pod(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
}

fn problems(value: &Value) -> Vec<String> {
    validate_create(&object(value)).iter().map(ToString::to_string).collect()
}

#[test]
fn good_services_have_no_problem() {
    for spec in [
        json!({"ports": [{"port": 80}]}),
        json!({"clusterIP": "None"}),
        json!({"type": "ExternalName", "externalName": "db.example.com."}),
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "targetPort": "http"}]}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 53, "protocol": "UDP", "name": "dns"}, {"port": 53, "name": "dns-tcp"}], "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        json!({"sessionAffinity": "ClientIP", "ports": [{"port": 80}], "trafficDistribution": "PreferSameZone"}),
        json!({"externalIPs": ["192.0.2.7"], "ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
    ] {
        assert_eq!(problems(&service(&spec)), Vec::<String>::new(), "{spec}");
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn bad_services_have_kubernetes_problems() {
    let table = [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (json!({"ports": [{"port": 1}, {"port": 2, "name": "b"}]}), "spec.ports[0].name: Required value"),
        (
            json!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]}),
            "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":1}",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"ports": [{"port": 1, "targetPort": "a_b"}]}),
            "spec.ports[0].targetPort: Invalid value: \"a_b\": must contain only alphanumeric characters (a-z, 0-9), and hyphens (-)",
        ),
        (
            json!({"ports": [{"port": 1, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "Wrong", "ports": [{"port": 1}]}),
            "spec.type: Unsupported value: \"Wrong\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 1}]}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"type": "ExternalName", "externalName": "x", "clusterIP": "10.96.0.1"}),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
        (
            json!({"clusterIP": "10.96.0.01", "ports": [{"port": 1}]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.01\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"sessionAffinity": "x", "ports": [{"port": 1}]}),
            "spec.sessionAffinity: Unsupported value: \"x\": supported values: \"ClientIP\", \"None\"",
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}, "ports": [{"port": 1}]}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400",
        ),
        (
            json!({"externalIPs": ["127.0.0.1"], "ports": [{"port": 1}]}),
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            json!({"externalTrafficPolicy": "Local", "ports": [{"port": 1}]}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ),
        (
            json!({"healthCheckNodePort": 30000, "ports": [{"port": 1}]}),
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            json!({"internalTrafficPolicy": "x", "ports": [{"port": 1}]}),
            "spec.internalTrafficPolicy: Unsupported value: \"x\": supported values: \"Cluster\", \"Local\"",
        ),
        (
            json!({"trafficDistribution": "x", "ports": [{"port": 1}]}),
            "spec.trafficDistribution: Unsupported value: \"x\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"",
        ),
        (
            json!({"loadBalancerSourceRanges": ["x"], "ports": [{"port": 1}]}),
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            json!({"selector": {"a b": "c"}, "ports": [{"port": 1}]}),
            "spec.selector: Invalid value: \"a b\": name part must consist of alphanumeric characters",
        ),
        (
            json!({"ipFamilies": ["IPv4", "IPv4"], "ports": [{"port": 1}]}),
            "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
        ),
    ];
    for (spec, expected) in table {
        let found = problems(&service(&spec));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{spec}: {found:?}");
    }
}

#[test]
fn all_problems_come_at_once() {
    let mut value = service(&json!({"type": "Wrong", "ports": [{"port": 0}, {"port": 70000}], "sessionAffinity": "x"}));
    value["metadata"] = json!({"name": "Not_A_Name", "namespace": "default", "labels": {"-": "x"}});
    assert_eq!(problems(&value).len(), 8, "{:?}", problems(&value));
}

#[test]
fn names_are_labels_that_may_start_with_a_digit() {
    for (name, good) in [
        ("web", true),
        ("1web", true),
        ("a-b", true),
        ("-a", false),
        ("a.b", false),
        ("A", false),
        (&*"x".repeat(64), false),
    ] {
        let mut value = service(&json!({"ports": [{"port": 80}]}));
        value["metadata"]["name"] = name.into();
        assert_eq!(problems(&value).is_empty(), good, "{name}");
    }
}

#[test]
fn what_may_not_change_may_not() {
    let old =
        object(&service(&json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]})));
    let update = |spec: Value| {
        let new = object(&service(&spec));
        validate_update(&new, &old).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(update(json!({"ports": [{"port": 81}]})), Vec::<String>::new());
    let moved = update(json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}));
    assert_eq!(moved, ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.10\"]: may not change once set"]);
    let headless = update(json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    assert_eq!(headless, ["spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"]);
    assert_eq!(update(json!({"type": "ExternalName", "externalName": "x"})), Vec::<String>::new());
}

#[test]
fn pods_have_kubernetes_problems() {
    let table = [
        (json!({}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "readinessProbe": {}}]}),
            "spec.containers[0].readinessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "readinessProbe": {"httpGet": {"port": 1}, "tcpSocket": {"port": 1}}}]}),
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            json!({"hostNetwork": true, "containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ),
    ];
    for (spec, expected) in table {
        let found = problems(&pod(&spec));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{spec}: {found:?}");
    }
    let old = object(&pod(&json!({"containers": [{"name": "a", "image": "i"}]})));
    let bound = object(&pod(&json!({"nodeName": "n1", "containers": [{"name": "a", "image": "other"}]})));
    assert_eq!(validate_update(&bound, &old).len(), 0, "binding and another image");
    let moved = object(&pod(&json!({"nodeName": "n2", "containers": [{"name": "a", "image": "i"}]})));
    assert!(
        validate_update(&moved, &bound)[0]
            .to_string()
            .starts_with("spec: Forbidden: pod updates may not change fields other than")
    );
}

/// Manifests as people write them.
fn real() -> Vec<Value> {
    let text = include_str!("real.yaml");
    manifest::documents(text).unwrap()
}

#[test]
fn real_manifests_are_known_valid_and_come_back_whole() {
    assert!(real().len() >= 6);
    for value in real() {
        let decoded = manifest::decode(&value).unwrap();
        assert_eq!(decoded.unknown, Vec::<String>::new());
        let rendered = manifest::render(&decoded.object);
        contains(&rendered, &value, "");
        let again = manifest::decode(&rendered).unwrap();
        assert_eq!(again.object, decoded.object, "decode(render) is the same object");
        let mut once = decoded.object;
        default_object(&mut once);
        if let Some(metadata) = once.metadata_mut()
            && metadata.namespace.is_empty()
            && !["Node", "Namespace"].contains(&value["kind"].as_str().unwrap())
        {
            metadata.namespace = "default".into();
        }
        assert_eq!(validate_create(&once), Vec::new(), "{}", value["metadata"]["name"]);
        let mut twice = once.clone();
        default_object(&mut twice);
        assert_eq!(twice, once, "defaulting twice is defaulting once");
    }
}

/// Every field of `inner` is in `outer`.
fn contains(outer: &Value, inner: &Value, path: &str) {
    match (outer, inner) {
        (Value::Object(outer), Value::Object(inner)) => {
            for (key, value) in inner.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{key}");
                contains(outer.get(key).unwrap_or_else(|| panic!("{path} is lost")), value, &path);
            }
        }
        (Value::Array(outer), Value::Array(inner)) => {
            assert_eq!(outer.len(), inner.len(), "{path}");
            for (index, (outer, inner)) in outer.iter().zip(inner).enumerate() {
                contains(outer, inner, &format!("{path}[{index}]"));
            }
        }
        _ => assert_eq!(outer, inner, "{path}"),
    }
}

#[test]
fn unknown_fields_are_named_by_path_and_left_out() {
    let mut value = pod(
        &json!({"containers": [{"name": "a", "image": "i", "portz": []}, {"name": "b", "image": "i", "imagePulPolicy": "x"}]}),
    );
    value["metadata"]["annotations"] = json!({"a.b/c": "x"});
    value["spek"] = json!(1);
    let decoded = manifest::decode(&value).unwrap();
    assert_eq!(decoded.unknown, ["spec.containers[0].portz", "spec.containers[1].imagePulPolicy", "spek"]);
    let rendered = manifest::render(&decoded.object);
    assert_eq!(rendered["spec"]["containers"][1].get("imagePulPolicy"), None);
    assert_eq!(rendered.get("spek"), None);
}

#[test]
fn wrong_types_and_kinds_are_refused() {
    for (value, says) in [
        (service(&json!({"ports": "x"})), "invalid type"),
        (service(&json!({"ports": [{"port": "x"}]})), "invalid type"),
        (json!({"apiVersion": "apps/v1", "kind": "Deployment"}), "apps/v1/Deployment"),
        (json!({"kind": "Service"}), "apiVersion: Required value"),
        (json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}), "EndpointSlices are rendered"),
        (
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"resourceVersion": "abc"}}),
            "metadata.resourceVersion",
        ),
        (json!([]), "kind: Required value"),
    ] {
        let found = manifest::decode(&value).unwrap_err();
        let text = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        assert!(text.contains(says), "{value}: {text}");
    }
}

#[test]
fn endpoints_are_rendered_as_subsets_and_slices() {
    let value = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db", "namespace": "default"},
        "subsets": [{"addresses": [{"ip": "10.0.0.5"}, {"ip": "10.0.0.6", "hostname": "b"}], "notReadyAddresses": [{"ip": "10.0.0.7"}], "ports": [{"port": 5432, "name": "pg", "protocol": "TCP"}]}]
    });
    let decoded = manifest::decode(&value).unwrap();
    let record = decoded.object.as_endpoints().unwrap();
    assert_eq!(
        record.endpoints.iter().map(|endpoint| (endpoint.address.as_str(), endpoint.ready)).collect::<Vec<_>>(),
        [("10.0.0.5", true), ("10.0.0.6", true), ("10.0.0.7", false)]
    );
    contains(&manifest::render(&decoded.object), &value, "");
    let slices = manifest::render_slices(record);
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0]["endpoints"][1]["hostname"], "b");
    assert_eq!(
        slices[0]["endpoints"][2]["conditions"],
        json!({"ready": false, "serving": false, "terminating": false})
    );
    assert_eq!(manifest::render_slices(record), slices, "names are stable");
    assert!(validate_create(&decoded.object).is_empty());
}

#[test]
fn a_wrong_type_is_named_by_its_path() {
    for (value, path) in [
        (service(&json!({"ports": [{"port": 80}, {"port": "x"}]})), "spec.ports[1].port"),
        (service(&json!({"ports": [{"port": 99_999_999_999_u64}]})), "spec.ports[0].port"),
        (service(&json!({"selector": {"app": 1}})), "spec.selector.app"),
        (service(&json!({"selector": {"a.b/c~d": true}})), "spec.selector.a.b/c~d"),
        (service(&json!({"selector": {"a": 1}, "type": 2})), "spec"),
        (service(&json!([])), "spec"),
    ] {
        let found = manifest::decode(&value).unwrap_err();
        assert_eq!((found.len(), found[0].field.as_str()), (1, path), "{value}");
    }
    let many: serde_json::Map<String, Value> = (0..2_000).map(|one| (format!("k{one}"), json!(1))).collect();
    assert_eq!(manifest::decode(&service(&json!({"selector": many}))).unwrap_err()[0].field, "<document>");
}

#[test]
fn null_fields_are_absent() {
    let mut value = service(&json!({"ports": [{"port": 80, "name": null}], "selector": {"app": "web", "old": null}}));
    value["metadata"]["labels"] = json!({"a": null});
    value["status"] = Value::Null;
    let object = object(&value);
    assert_eq!(object.metadata().labels.len(), 0);
    assert_eq!(object.as_service().unwrap().spec.as_ref().unwrap().selector.len(), 1);
    assert_eq!(validate_create(&object), Vec::new());
    let value =
        json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "a", "namespace": "b"}, "subsets": null});
    assert!(manifest::decode(&value).is_ok());
    let value = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "a", "namespace": "b"},
        "subsets": [{"addresses": [{"ip": "10.0.0.1", "nodeName": null, "targetRef": null}], "notReadyAddresses": null, "ports": null}]});
    assert_eq!(manifest::decode(&value).unwrap().object.as_endpoints().unwrap().endpoints.len(), 1);
}

fn endpoints(subsets: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db", "namespace": "default"}, "subsets": subsets})
}

#[test]
fn endpoints_without_addresses_are_refused_and_ports_are_not_doubled() {
    let empty = endpoints(&json!([{"addresses": [{"ip": "10.0.0.1"}]}, {"ports": [{"port": 1}]}]));
    let found = manifest::decode(&empty).unwrap_err();
    assert_eq!(found[0].to_string(), "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`");
    let twice = endpoints(&json!([{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]));
    let decoded = manifest::decode(&twice).unwrap().object;
    assert_eq!(decoded.as_endpoints().unwrap().endpoints[0].ports.len(), 1);
    assert_eq!(validate_create(&decoded), Vec::new());
    let addresses: Vec<Value> =
        (0..1_001).map(|one| json!({"ip": format!("10.0.{}.{}", one / 250, one % 250 + 1)})).collect();
    let many = endpoints(&json!([{"addresses": addresses}]));
    assert_eq!(problems(&many), ["subsets: Too many: 1001: must have at most 1000 items"]);
}

#[test]
fn slices_say_the_application_protocol() {
    let value = endpoints(
        &json!([{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"}]}]),
    );
    let decoded = manifest::decode(&value).unwrap().object;
    let slices = manifest::render_slices(decoded.as_endpoints().unwrap());
    assert_eq!(slices[0]["ports"][0]["appProtocol"], "kubernetes.io/h2c");
}

fn node(spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": spec})
}

#[test]
fn a_nodes_pod_range_has_two_forms_and_stays() {
    for spec in [json!({"podCIDR": "10.244.1.0/24"}), json!({"podCIDRs": ["10.244.1.0/24"]})] {
        let old = object(&node(&spec));
        let of = old.as_node().unwrap().spec.clone().unwrap();
        assert_eq!((of.pod_cidr.as_str(), of.pod_cidrs.len()), ("10.244.1.0/24", 1));
        assert_eq!(validate_update(&object(&node(&json!({"podCIDR": "10.244.2.0/24"}))), &old).len(), 1, "{spec}");
    }
    assert_eq!(
        problems(&node(&json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}))),
        ["spec.podCIDRs[1]: Invalid value: \"10.0.1.0/24\": may specify no more than one CIDR for each IP family"]
    );
}

#[test]
fn init_containers_run_one_by_one_and_may_share_a_host_port() {
    let ports = json!([{"containerPort": 80, "hostPort": 80}]);
    let one = |name: &str| json!({"name": name, "image": "i", "ports": ports});
    let apart = pod(&json!({"containers": [one("a")], "initContainers": [one("b"), one("c")]}));
    assert_eq!(problems(&apart), Vec::<String>::new());
    let together = pod(&json!({"containers": [one("a"), one("b")]}));
    assert_eq!(problems(&together), ["spec.containers[1].ports[0].hostPort: Duplicate value: \"TCP//80\""]);
}

#[test]
fn a_pods_status_is_checked() {
    let mut value = pod(&json!({"containers": [{"name": "a", "image": "i"}]}));
    value["status"] = json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}], "phase": "Gone"});
    let found = problems(&value);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("status.podIPs[1]: Invalid value: \"10.0.0.2\""), "{found:?}");
}

#[test]
fn a_load_balancers_report_is_checked() {
    let mut value = service(&json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    value["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1", "ipMode": "Wrong"}, {"hostname": "192.0.2.1"}, {"hostname": "lb", "ipMode": "VIP"}]}});
    let fields: Vec<String> = validate_create(&object(&value)).into_iter().map(|problem| problem.field).collect();
    assert_eq!(
        fields,
        [
            "status.loadBalancer.ingress[0].ipMode",
            "status.loadBalancer.ingress[1].hostname",
            "status.loadBalancer.ingress[2].ipMode"
        ]
    );
}

#[test]
fn warnings_are_in_kubernetes_words() {
    let table = [
        (
            json!({"clusterIP": "None", "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP"}),
            vec![
                "spec.externalIPs is ignored for headless services",
                "spec.SessionAffinity is ignored for headless services",
            ],
        ),
        (
            json!({"ports": [{"port": 1}], "externalIPs": ["192.0.2.1"]}),
            vec!["spec.externalIPs is deprecated and may no longer be implemented in some clusters"],
        ),
        (
            json!({"ports": [{"port": 1}], "externalName": "x", "trafficDistribution": "PreferClose"}),
            vec![
                "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
            ],
        ),
        (
            json!({"type": "ExternalName", "externalName": "x", "externalIPs": ["192.0.2.1"]}),
            vec!["spec.externalIPs is ignored when spec.type is \"ExternalName\""],
        ),
        (json!({"ports": [{"port": 1}]}), vec![]),
    ];
    for (spec, expected) in table {
        assert_eq!(crate::convert::warnings(&object(&service(&spec))), expected, "{spec}");
    }
}
