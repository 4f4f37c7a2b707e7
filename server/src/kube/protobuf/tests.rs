//! Bodies from an encoder of the tests' own, and bodies that real clients sent.

use super::*;
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::json;

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 127 {
        bytes.push(number as u8 | 128);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn text(field: u64, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

fn message(field: u64, fields: &[Vec<u8>]) -> Vec<u8> {
    bytes(field, &fields.concat())
}

fn body(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Vec<u8> {
    let of_type = message(1, &[text(1, api_version), text(2, kind)]);
    [MAGIC.to_vec(), of_type, message(2, fields), text(3, ""), text(4, "")].concat()
}

fn decoded(api_version: &str, kind: &str, fields: &[Vec<u8>]) -> Value {
    let mut object = decode(&body(api_version, kind, fields)).unwrap();
    let map = object.as_object_mut().unwrap();
    assert_eq!(map.shift_remove("apiVersion"), Some(api_version.into()));
    assert_eq!(map.shift_remove("kind"), Some(kind.into()));
    object
}

fn refused(body: &[u8]) -> String {
    decode(body).unwrap_err()
}

/// What kubectl 1.37 sent for the commands beside it.
const SENT: [(&str, &str); 8] = [
    (
        "create ns alpha",
        "6b3873000a0f0a02763112094e616d657370616365121d0a150a05616c70686112001a0022002a0032003800420012001a020a001a002200",
    ),
    (
        "create service clusterip web --tcp=80:8080 --tcp=443:https",
        "6b3873000a0d0a027631120753657276696365128d010a1f0a0377656212001a0022002a003200380042005a0a0a03617070120377656212660a\
         1b0a0738302d38303830120354435018502207080010903f1a0028000a220a093434332d6874747073120354435018bb03220b080110001a0568\
         747470732800120a0a0361707012037765621a002209436c757374657249503a00420052005a00600068001a020a001a002200",
    ),
    (
        "create service nodeport np --tcp=80:8080 --node-port=30080",
        "6b3873000a0d0a02763112075365727669636512670a1d0a026e7012001a0022002a003200380042005a090a0361707012026e7012420a1d0a07\
         38302d38303830120354435018502207080010903f1a002880eb0112090a0361707012026e701a0022084e6f6465506f72743a00420052005a00\
         600068001a020a001a002200",
    ),
    (
        "create service externalname ext --external-name example.com",
        "6b3873000a0d0a027631120753657276696365125a0a1f0a0365787412001a0022002a003200380042005a0a0a0361707012036578741233120a\
         0a0361707012036578741a00220c45787465726e616c4e616d653a004200520b6578616d706c652e636f6d5a00600068001a020a001a002200",
    ),
    (
        "auth can-i list pods",
        "6b3873000a320a17617574686f72697a6174696f6e2e6b38732e696f2f7631121753656c665375626a656374416363657373526576696577123d\
         0a100a0012001a0022002a00320038004200121f0a1d0a0764656661756c7412046c6973741a0022002a04706f647332003a001a08080012001a\
         0020001a002200",
    ),
    (
        "auth can-i get /healthz",
        "6b3873000a320a17617574686f72697a6174696f6e2e6b38732e696f2f7631121753656c665375626a656374416363657373526576696577122f\
         0a100a0012001a0022002a003200380042001211120f0a082f6865616c74687a12036765741a08080012001a0020001a002200",
    ),
    (
        "auth can-i --list",
        "6b3873000a310a17617574686f72697a6174696f6e2e6b38732e696f2f7631121653656c665375626a65637452756c657352657669657712230a\
         100a0012001a0022002a0032003800420012090a0764656661756c741a04180022001a002200",
    ),
    (
        "auth whoami",
        "6b3873000a2d0a1861757468656e7469636174696f6e2e6b38732e696f2f7631121153656c665375626a656374526576696577121a0a100a0012\
         001a0022002a0032003800420012060a040a0012001a002200",
    ),
];

fn sent(command: &str) -> Vec<u8> {
    let (_, hex) = SENT.iter().find(|(of, _)| *of == command).unwrap();
    HEXLOWER.decode(hex.replace(' ', "").as_bytes()).unwrap()
}

#[test]
fn what_kubectl_sends_is_the_json_that_it_would_have_sent() {
    let service = |name: &str, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec,
               "status": {"loadBalancer": {}}})
    };
    let review = |spec: Value| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {}, "spec": spec,
               "status": {"allowed": false}})
    };
    for (command, expected) in [
        (
            "create ns alpha",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alpha"}, "spec": {}, "status": {}}),
        ),
        (
            "create service clusterip web --tcp=80:8080 --tcp=443:https",
            service(
                "web",
                json!({"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080},
                                 {"name": "443-https", "protocol": "TCP", "port": 443, "targetPort": "https"}],
                       "selector": {"app": "web"}, "type": "ClusterIP"}),
            ),
        ),
        (
            "create service nodeport np --tcp=80:8080 --node-port=30080",
            service(
                "np",
                json!({"ports": [{"name": "80-8080", "protocol": "TCP", "port": 80, "targetPort": 8080,
                                  "nodePort": 30080}],
                       "selector": {"app": "np"}, "type": "NodePort"}),
            ),
        ),
        (
            "create service externalname ext --external-name example.com",
            service("ext", json!({"selector": {"app": "ext"}, "type": "ExternalName", "externalName": "example.com"})),
        ),
        (
            "auth can-i list pods",
            review(json!({"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}})),
        ),
        ("auth can-i get /healthz", review(json!({"nonResourceAttributes": {"path": "/healthz", "verb": "get"}}))),
        (
            "auth can-i --list",
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "metadata": {},
                   "spec": {"namespace": "default"}, "status": {"incomplete": false}}),
        ),
        (
            "auth whoami",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview", "metadata": {},
                   "status": {"userInfo": {}}}),
        ),
    ] {
        assert_eq!(decode(&sent(command)), Ok(expected), "{command}");
    }
}

#[test]
fn zeros_are_kept_only_where_they_differ_from_absent_fields() {
    let conditions = message(2, &[number(1, 0), number(3, 1)]);
    let endpoints = message(2, &[text(1, "10.0.0.1"), conditions, text(3, ""), text(6, "n1")]);
    let slice = decoded("discovery.k8s.io/v1", "EndpointSlice", &[endpoints, text(4, "IPv4")]);
    let endpoint = json!({"addresses": ["10.0.0.1"], "conditions": {"ready": false, "terminating": true}, "hostname": "",
                          "nodeName": "n1"});
    assert_eq!(slice, json!({"endpoints": [endpoint], "addressType": "IPv4"}));
    let spec = message(2, &[number(13, 0), number(20, 0), number(12, 0), text(3, "")]);
    assert_eq!(decoded("v1", "Service", &[spec]), json!({"spec": {"allocateLoadBalancerNodePorts": false}}));
}

#[test]
fn a_target_port_of_zero_is_absent() {
    let port = |target: Vec<u8>| decoded("v1", "Service", &[message(2, &[message(1, &[number(3, 80), target])])]);
    let expected = |target: Value| json!({"spec": {"ports": [target]}});
    for target in [message(4, &[number(1, 0), number(2, 0), text(3, "")]), message(4, &[])] {
        assert_eq!(port(target), expected(json!({"port": 80})));
    }
    assert_eq!(port(message(4, &[number(1, 1), text(3, "web")])), expected(json!({"port": 80, "targetPort": "web"})));
    let wrong = message(2, &[message(1, &[message(4, &[number(1, 2)])])]);
    assert_eq!(refused(&body("v1", "Service", &[wrong])), "in ServicePort.targetPort: no type 2 of a number or string");
}

#[test]
fn times_are_rfc_3339_and_empty_ones_absent() {
    let time = |seconds: i64, nanos: u64| vec![number(1, seconds as u64), number(2, nanos)];
    let meta = |fields: &[Vec<u8>]| message(1, fields);
    let created = |fields: &[Vec<u8>]| decoded("v1", "Node", &[meta(&[message(8, fields)])]);
    assert_eq!(created(&[]), json!({"metadata": {}}));
    for (seconds, expected) in [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000, "2023-11-14T22:13:20Z"),
        (-1, "1969-12-31T23:59:59Z"),
        (-62_167_219_200, "0000-01-01T00:00:00Z"),
        (253_402_207_200, "9999-12-30T22:00:00Z"),
    ] {
        assert_eq!(created(&time(seconds, 999)), json!({"metadata": {"creationTimestamp": expected}}));
    }
    for seconds in [i64::MIN, i64::MAX, -62_167_219_201, 253_402_300_800] {
        let node = body("v1", "Node", &[meta(&[message(8, &time(seconds, 0))])]);
        assert_eq!(refused(&node), "in ObjectMeta.creationTimestamp: a time is out of range");
    }
    let renewed = |fields: &[Vec<u8>]| decoded("coordination.k8s.io/v1", "Lease", &[message(2, &[message(4, fields)])]);
    for (nanos, expected) in [(0, "000000"), (1_999, "000001"), (250_000_000, "250000"), (999_999_999, "999999")] {
        let expected = format!("2023-11-14T22:13:20.{expected}Z");
        assert_eq!(renewed(&time(1_700_000_000, nanos)), json!({"spec": {"renewTime": expected}}));
    }
    assert_eq!(renewed(&[]), json!({"spec": {}}));
}

#[test]
fn quantities_maps_bytes_and_embedded_json_have_kubernetes_json_forms() {
    let capacity = |name: &str, amount: &[Vec<u8>]| message(1, &[text(1, name), message(2, amount)]);
    let status = message(3, &[capacity("cpu", &[text(1, "250m")]), capacity("pods", &[])]);
    assert_eq!(decoded("v1", "Node", &[status]), json!({"status": {"capacity": {"cpu": "250m", "pods": "0"}}}));

    let entry = |key: &str, value: &str| message(2, &[text(1, key), text(2, value)]);
    let binary = message(3, &[text(1, "b"), bytes(2, &[0, 255])]);
    let map = decoded("v1", "ConfigMap", &[entry("a", "1"), entry("a", "2"), entry("", ""), message(2, &[]), binary]);
    assert_eq!(map, json!({"data": {"a": "2", "": ""}, "binaryData": {"b": "AP8="}}));

    let managed = |fields: &str| message(1, &[message(17, &[text(1, "kubectl"), message(7, &[text(1, fields)])])]);
    let expected = json!({"metadata": {"managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]}});
    assert_eq!(decoded("v1", "Node", &[managed(r#"{"f:spec":{}}"#)]), expected);
    assert!(
        refused(&body("v1", "Node", &[managed("{")])).starts_with("in ManagedFieldsEntry.fieldsV1: JSON within it")
    );
    assert!(refused(&body("v1", "Node", &[managed(&"[".repeat(5000))])).contains("recursion limit"));

    let extra = |key: &str, values: &[Vec<u8>]| message(4, &[text(1, key), message(2, values)]);
    let extras = message(1, &[extra("none", &[]), extra("scopes", &[text(1, "a"), text(1, "b")])]);
    let user = decoded("authentication.k8s.io/v1", "SelfSubjectReview", &[message(2, &[extras])]);
    assert_eq!(user, json!({"status": {"userInfo": {"extra": {"none": [], "scopes": ["a", "b"]}}}}));
}

#[test]
fn inlined_messages_are_fields_of_their_holder() {
    let handler = message(1, &[message(2, &[text(1, "/ready"), message(2, &[number(2, 8080)])])]);
    let container = message(2, &[text(1, "web"), message(11, &[handler, number(3, 5)])]);
    let volume = message(1, &[text(1, "tmp"), message(2, &[message(2, &[])])]);
    let pod = decoded("v1", "Pod", &[message(2, &[volume, container])]);
    let probe = json!({"httpGet": {"path": "/ready", "port": 8080}, "timeoutSeconds": 5});
    assert_eq!(
        pod,
        json!({"spec": {"volumes": [{"name": "tmp", "emptyDir": {}}],
                        "containers": [{"name": "web", "readinessProbe": probe}]}})
    );
}

#[test]
fn a_field_that_comes_twice_is_merged_replaced_or_appended_to() {
    let meta = |fields: &[Vec<u8>]| message(1, fields);
    let twice = [meta(&[text(1, "a"), text(3, "x")]), meta(&[text(1, "b"), text(14, "f")]), meta(&[text(14, "g")])];
    let expected = json!({"metadata": {"namespace": "x", "name": "b", "finalizers": ["f", "g"]}});
    assert_eq!(decoded("v1", "Node", &twice), expected);
    let emptied = [meta(&[text(1, "a")]), meta(&[text(1, "")])];
    assert_eq!(decoded("v1", "Node", &emptied), json!({"metadata": {}}));
}

#[test]
fn lists_of_numbers_may_be_packed() {
    let groups = |field: Vec<u8>| decoded("v1", "Pod", &[message(2, &[message(14, &[field])])]);
    let expected = json!({"spec": {"securityContext": {"supplementalGroups": [1, 300]}}});
    assert_eq!(groups([number(4, 1), number(4, 300)].concat()), expected);
    assert_eq!(groups(bytes(4, &[varint(1), varint(300)].concat())), expected);
}

#[test]
fn negative_and_large_numbers_keep_their_value() {
    let options = |field, value: i64| decoded("v1", "DeleteOptions", &[number(field, value as u64)]);
    assert_eq!(options(1, i64::MIN), json!({"gracePeriodSeconds": i64::MIN}));
    assert_eq!(options(1, 0), json!({"gracePeriodSeconds": 0}));
    let exit = message(3, &[message(8, &[message(2, &[message(3, &[number(1, -1i64 as u64)])])])]);
    let expected = json!({"status": {"containerStatuses": [{"state": {"terminated": {"exitCode": -1}}}]}});
    assert_eq!(decoded("v1", "Pod", &[exit]), expected);
}

#[test]
fn delete_options_come_in_the_group_version_of_what_is_deleted() {
    for group_version in ["v1", "meta.k8s.io/v1", "discovery.k8s.io/v1"] {
        let options = [message(2, &[text(1, "u")]), text(4, "Foreground"), text(5, "All")];
        let expected = json!({"preconditions": {"uid": "u"}, "propagationPolicy": "Foreground", "dryRun": ["All"]});
        assert_eq!(decoded(group_version, "DeleteOptions", &options), expected);
    }
}

#[test]
fn fields_of_unknown_number_are_skipped() {
    let unknown = [number(999, 7), text(1000, "x"), [varint(1001 << 3 | 1), vec![0; 8]].concat()];
    let more = [[varint(1002 << 3 | 5), vec![0; 4]].concat(), message(1, &[text(1, "n")])];
    assert_eq!(decoded("v1", "Node", &[unknown.concat(), more.concat()]), json!({"metadata": {"name": "n"}}));
}

#[test]
fn kinds_are_those_that_clients_send() {
    let kinds: Vec<_> = kinds().collect();
    let core = ["Binding", "ConfigMap", "Endpoints", "Event", "Namespace", "Node", "Pod", "Secret", "Service"];
    assert!(kinds.starts_with(&core.map(|kind| ("v1", kind))), "{kinds:?}");
    for kind in [
        ("v1", "ServiceAccount"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("coordination.k8s.io/v1", "Lease"),
        ("events.k8s.io/v1", "Event"),
        ("networking.k8s.io/v1", "IPAddress"),
        ("networking.k8s.io/v1", "ServiceCIDR"),
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
        ("policy/v1", "Eviction"),
    ] {
        assert!(kinds.contains(&kind), "{kind:?}");
    }
    assert_eq!(kinds.len(), 24);
}

#[test]
fn what_is_no_body_of_a_known_kind_is_refused() {
    let envelope = |fields: &[Vec<u8>]| [MAGIC.to_vec(), fields.concat()].concat();
    let of_type = message(1, &[text(1, "v1"), text(2, "Node")]);
    let magic = "it does not begin with the bytes of Kubernetes protobuf";
    for (bytes, why) in [
        (Vec::new(), magic),
        (b"{}".to_vec(), magic),
        (envelope(&[]), "Object 'Kind' is missing"),
        (envelope(&[message(1, &[text(2, "Node")])]), "Object 'apiVersion' is missing"),
        (body("v1", "Chair", &[]), r#"no kind "Chair" is registered for version "v1""#),
        (body("v2", "Node", &[]), r#"no kind "Node" is registered for version "v2""#),
        (body("v1", "NodeSpec", &[]), r#"no kind "NodeSpec" is registered for version "v1""#),
        (body("", "time", &[]), "Object 'apiVersion' is missing"),
        (envelope(&[of_type.clone(), text(3, "gzip")]), "its content has an encoding"),
        (envelope(&[of_type.clone(), text(4, "application/json")]), "its content is not protobuf"),
        (envelope(&[of_type, number(2, 1)]), "field 2 of its envelope has the wrong wire type"),
        (envelope(&[message(1, &[bytes(2, &[255])])]), "a string is not UTF-8"),
        (vec![0; BODY + 1], "more than 3145728 bytes"),
    ] {
        assert_eq!(refused(&bytes), why);
    }
}

#[test]
fn wrong_wire_types_cut_and_huge_lengths_are_refused() {
    let cases: [(Vec<u8>, &str); 9] = [
        (number(1, 1), "in Node.metadata: wrong wire type"),
        (message(1, &[number(1, 1)]), "in ObjectMeta.name: wrong wire type"),
        (message(1, &[text(7, "x")]), "in ObjectMeta.generation: wrong wire type"),
        (message(1, &[number(11, 1)]), "in ObjectMeta.labels: wrong wire type"),
        (message(1, &[bytes(1, &[255])]), "in ObjectMeta.name: a string is not UTF-8"),
        (message(1, &[vec![10, 5, b'x']]), "in Node.metadata: it is cut short"),
        ([varint(9 << 3 | 2), varint(u64::MAX)].concat(), "it is cut short"),
        (vec![8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], "a number has more than 64 bits"),
        (vec![11], "illegal wire type 3"),
    ];
    for (fields, why) in cases {
        assert_eq!(refused(&body("v1", "Node", &[fields])), why);
    }
    assert_eq!(refused(&body("v1", "Node", &[vec![0]])), "illegal tag 0");
}

#[test]
fn a_body_of_too_many_values_is_refused() {
    let containers = |count: usize| body("v1", "Pod", &[message(2, &[[18, 0].repeat(count)])]);
    assert!(decode(&containers(VALUES - 1)).is_ok());
    assert_eq!(refused(&containers(VALUES)), "in PodSpec.containers: more than 500000 values");
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(kind in 0usize..24, raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (group_version, kind) = kinds().nth(kind).unwrap();
        if let Ok(value) = decode(&body(group_version, kind, std::slice::from_ref(&raw))) {
            prop_assert_eq!(&value["kind"], kind);
        }
        let _ = decode(&[MAGIC, raw.as_slice()].concat());
    }

    #[test]
    fn mutated_bodies_are_decoded_or_refused(
        of in 0usize..SENT.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = sent(SENT[of].0);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn a_body_that_is_cut_short_is_never_taken_for_more(of in 0usize..SENT.len(), at in any::<prop::sample::Index>()) {
        let bytes = sent(SENT[of].0);
        let whole = decode(&bytes).unwrap();
        let kept = at.index(bytes.len());
        // After the object only two empty fields of the envelope come; within it, a cut shows.
        match decode(&bytes[..kept]) {
            Ok(value) if kept + 4 >= bytes.len() => prop_assert_eq!(value, whole),
            Ok(value) => prop_assert_eq!(value.as_object().map(serde_json::Map::len), Some(2)),
            Err(_) => {}
        }
    }

    #[test]
    fn labels_and_ports_come_out_as_they_went_in(
        labels in proptest::collection::btree_map("[a-z]{1,8}", ".{0,12}", 0..6),
        ports in proptest::collection::vec((1i32.., 0i32..), 0..6),
    ) {
        let label = |(key, value): (&String, &String)| message(11, &[text(1, key), text(2, value)]);
        let meta = message(1, &labels.iter().map(label).collect::<Vec<_>>());
        let port = |(port, node): &(i32, i32)| message(1, &[number(3, *port as u64), number(5, *node as u64)]);
        let spec = message(2, &ports.iter().map(port).collect::<Vec<_>>());
        let service = decoded("v1", "Service", &[meta, spec]);
        let got = service["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        prop_assert_eq!(Value::Object(got), json!(labels));
        let shown = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let shown = shown.iter().map(|port| (port["port"].as_i64(), port.get("nodePort").and_then(Value::as_i64)));
        let some = |number: i32| (number != 0).then_some(i64::from(number));
        prop_assert!(shown.eq(ports.iter().map(|(port, node)| (some(*port), some(*node)))));
    }
}
