//! Cells of Kubernetes' documented behaviour, and laws of all tables.

use super::*;
use proptest::prelude::*;

const NOW: i64 = 1_700_000_000;
const ALL: [Of; 10] = [
    Of::Namespace,
    Of::Node,
    Of::Pod,
    Of::Service,
    Of::Endpoints,
    Of::Event,
    Of::EndpointSlice,
    Of::Lease,
    Of::ServiceCidr,
    Of::IpAddress,
];

/// An object that is five days and three hours old.
fn object(more: Value) -> Value {
    let mut object = json!({"metadata": {"name": "x", "creationTimestamp": "2023-11-09T19:13:20Z"}});
    for (key, value) in more.as_object().unwrap() {
        if key == "metadata" {
            object["metadata"].as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        } else {
            object[key] = value.clone();
        }
    }
    object
}

/// The cells, without those of name and age.
fn cells(of: Of, more: Value) -> Vec<String> {
    let row = row(of, &object(more), NOW);
    let names = names(of);
    let cells = names.iter().zip(&row).filter(|(name, _)| !["Name", "Age"].contains(&name.as_str()));
    cells.map(|(_, cell)| cell.as_str().unwrap().to_owned()).collect()
}

fn names(of: Of) -> Vec<String> {
    let columns = columns(of);
    columns.as_array().unwrap().iter().map(|column| column["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn columns_have_kubernetes_names_and_priorities() {
    for (of, narrow, wide) in [
        (Of::Namespace, "Name Status Age", ""),
        (
            Of::Node,
            "Name Status Roles Age Version",
            "Internal-IP External-IP OS-Image Kernel-Version Container-Runtime",
        ),
        (Of::Pod, "Name Ready Status Restarts Age", "IP Node Nominated_Node Readiness_Gates"),
        (Of::Service, "Name Type Cluster-IP External-IP Port(s) Age", "Selector"),
        (Of::Endpoints, "Name Endpoints Age", ""),
        (Of::Event, "Last_Seen Type Reason Object Message", "Subobject Source First_Seen Count Name"),
        (Of::EndpointSlice, "Name AddressType Ports Endpoints Age", ""),
        (Of::Lease, "Name Holder Age", ""),
        (Of::ServiceCidr, "Name CIDRs Age", ""),
        (Of::IpAddress, "Name ParentRef Age", ""),
    ] {
        let columns = columns(of);
        let of_priority = |priority: i64| {
            let columns = columns.as_array().unwrap().iter().filter(|column| column["priority"] == priority);
            columns.map(|column| column["name"].as_str().unwrap().replace(' ', "_")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((of_priority(0).as_str(), of_priority(1).as_str()), (narrow, wide), "{of:?}");
        for column in columns.as_array().unwrap() {
            assert_eq!(column["format"] == "name", column["name"] == "Name", "{of:?}");
        }
        assert!(columns.as_array().unwrap().iter().all(|column| column["type"] == "string"));
    }
}

#[test]
fn a_row_begins_with_the_name_and_has_the_age() {
    for of in ALL.into_iter().filter(|of| *of != Of::Event) {
        let row = row(of, &object(json!({})), NOW);
        assert_eq!(row[0], "x");
        let age = names(of).iter().position(|name| name == "Age").unwrap();
        assert_eq!(row[age], "5d3h", "{of:?}");
    }
    let event = row(Of::Event, &object(json!({"firstTimestamp": "x", "count": 0})), NOW);
    assert_eq!((event[0].as_str(), event[8].as_str(), event[9].as_str()), (Some("<unknown>"), Some("1"), Some("x")));
    assert_eq!(row(Of::Lease, &json!({}), NOW), ["", "", "<unknown>"]);
}

#[test]
fn a_service_shows_its_addresses_and_ports_by_type() {
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "lb.example.com"}, {}, {"ip": "192.0.2.10"}]}});
    for (spec, status, expected) in [
        (json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1", "fd00::1"]}), json!({}), "ClusterIP 10.0.0.1 <none>"),
        (json!({"type": "ClusterIP", "clusterIPs": ["None"]}), json!({}), "ClusterIP None <none>"),
        (json!({"type": "NodePort"}), json!({}), "NodePort <none> <none>"),
        (
            json!({"type": "NodePort", "externalIPs": ["198.51.100.2", "198.51.100.1"]}),
            json!({}),
            "NodePort <none> 198.51.100.2,198.51.100.1",
        ),
        (json!({"type": "LoadBalancer"}), json!({}), "LoadBalancer <none> <pending>"),
        (json!({"type": "LoadBalancer"}), ingress.clone(), "LoadBalancer <none> 192.0.2.10,192.0.2.9,lb.example.com"),
        (
            json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.1"]}),
            ingress,
            "LoadBalancer <none> 192.0.2.10,192.0.2.9,lb.example.com,198.51.100.1",
        ),
        (
            json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.1"]}),
            json!({}),
            "LoadBalancer <none> 198.51.100.1",
        ),
        (json!({"type": "ExternalName", "externalName": "example.com"}), json!({}), "ExternalName <none> example.com"),
        (json!({"type": "Other"}), json!({}), "Other <none> <unknown>"),
    ] {
        let cells = cells(Of::Service, json!({"spec": spec, "status": status}));
        assert_eq!(cells[..3].join(" "), expected);
        assert_eq!(cells[3..], ["<none>", "<none>"]);
    }
    let ports =
        json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP", "nodePort": 0}]);
    let service = cells(Of::Service, json!({"spec": {"ports": ports, "selector": {"b": "2", "a": "1"}}}));
    assert_eq!(service[3..], ["80:30080/TCP,53/UDP", "a=1,b=2"]);
}

#[test]
fn endpoints_show_three_and_how_many_more() {
    let addresses = |count: usize| (1..=count).map(|at| json!({"ip": format!("10.0.0.{at}")})).collect::<Value>();
    let subset = |count: usize, ports: Value| json!({"addresses": addresses(count), "ports": ports});
    let shown = |subsets: Value| cells(Of::Endpoints, json!({"subsets": subsets})).remove(0);
    let web = json!([{"port": 80}]);
    assert_eq!(cells(Of::Endpoints, json!({})), ["<none>"]);
    assert_eq!(shown(json!([])), "<none>");
    assert_eq!(shown(json!([{"notReadyAddresses": addresses(1), "ports": web}])), "");
    assert_eq!(shown(json!([subset(3, web.clone())])), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80");
    assert_eq!(shown(json!([subset(5, web.clone())])), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    let two = json!([{"port": 80}, {"port": 443}]);
    assert_eq!(shown(json!([subset(2, two)])), "10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more...");
    assert_eq!(shown(json!([subset(1, json!([])), subset(3, web)])), "10.0.0.1,10.0.0.1:80,10.0.0.2:80 + 1 more...");
    assert_eq!(shown(json!([{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 80}]}])), "[fd00::1]:80");
}

#[test]
fn slices_show_ports_and_addresses() {
    let slice = |ports: Value, endpoints: Value| {
        cells(Of::EndpointSlice, json!({"addressType": "IPv4", "ports": ports, "endpoints": endpoints}))
    };
    assert_eq!(slice(json!(null), json!([])), ["IPv4", "<unset>", "<unset>"]);
    let ports = json!([{"port": 80}, {"name": "any"}, {}, {"port": 1}, {"port": 2}]);
    let endpoints = json!([{"addresses": ["a", "b"]}, {"addresses": ["c"]}, {"addresses": ["d"]}]);
    assert_eq!(slice(ports, endpoints), ["IPv4", "80,any,* + 2 more...", "a,b,c + 1 more..."]);
}

#[test]
fn a_node_shows_readiness_roles_and_what_it_runs() {
    let ready = |status: &str| json!({"conditions": [{"type": "MemoryPressure", "status": "True"}, {"type": "Ready", "status": status}]});
    let open = json!({});
    let closed = json!({"unschedulable": true});
    for (spec, status, expected) in [
        (&open, ready("True"), "Ready"),
        (&open, ready("False"), "NotReady"),
        (&open, ready("Unknown"), "NotReady"),
        (&open, json!({}), "Unknown"),
        (&closed, ready("True"), "Ready,SchedulingDisabled"),
        (&closed, json!({}), "Unknown,SchedulingDisabled"),
    ] {
        assert_eq!(cells(Of::Node, json!({"spec": spec, "status": status}))[0], expected);
    }
    let roles = |labels: Value| cells(Of::Node, json!({"metadata": {"labels": labels}})).remove(1);
    assert_eq!(roles(json!({"a": "b", "node-role.kubernetes.io/": "", "kubernetes.io/role": ""})), "<none>");
    let several = json!({"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "db", "node-role.kubernetes.io/control-plane": ""});
    assert_eq!(roles(several), "control-plane,db,worker");
    assert_eq!(cells(Of::Node, json!({}))[2..], ["", "<none>", "<none>", "<unknown>", "<unknown>", "<unknown>"]);
    let status = json!({
        "addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "10.1.0.1"},
                      {"type": "InternalIP", "address": "fd00::1"}, {"type": "ExternalIP", "address": "192.0.2.1"}],
        "nodeInfo": {"kubeletVersion": "v1.37.1", "osImage": "Debian", "kernelVersion": "6.1",
                     "containerRuntimeVersion": "containerd://2"},
    });
    let expected = ["v1.37.1", "10.1.0.1", "192.0.2.1", "Debian", "6.1", "containerd://2"];
    assert_eq!(cells(Of::Node, json!({"status": status}))[2..], expected);
}

#[test]
fn small_kinds_show_their_one_cell() {
    assert_eq!(cells(Of::Namespace, json!({"status": {"phase": "Active"}})), ["Active"]);
    assert_eq!(cells(Of::Lease, json!({"spec": {"holderIdentity": "n1"}})), ["n1"]);
    assert_eq!(
        cells(Of::ServiceCidr, json!({"spec": {"cidrs": ["10.0.0.0/16", "fd00::/112"]}})),
        ["10.0.0.0/16,fd00::/112"]
    );
    let parent = |of: Value| cells(Of::IpAddress, json!({"spec": {"parentRef": of}})).remove(0);
    assert_eq!(parent(Value::Null), "<none>");
    let service = json!({"resource": "services", "namespace": "default", "name": "kubernetes"});
    assert_eq!(parent(service), "services/default/kubernetes");
    assert_eq!(parent(json!({"group": "Example.com", "resource": "vips", "name": "A"})), "vips.example.com/A");
}

/// Ready, status and restarts of a pod.
fn pod(more: Value) -> String {
    cells(Of::Pod, more)[..3].join(" ")
}

#[test]
fn a_pod_shows_what_its_containers_do() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let running = json!({"ready": true, "state": {"running": {}}});
    let waiting = |reason: &str| json!({"restartCount": 3, "state": {"waiting": {"reason": reason}}});
    let ended = |how: Value| json!({"state": {"terminated": how}});
    let completed = ended(json!({"exitCode": 0, "reason": "Completed"}));
    let ready = json!([{"type": "Ready", "status": "True"}]);
    for (status, expected) in [
        (json!({"phase": "Pending"}), "0/2 Pending 0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "0/2 Evicted 0"),
        (json!({"phase": "Running", "containerStatuses": [running, running]}), "2/2 Running 0"),
        (
            json!({"phase": "Running", "containerStatuses": [running, waiting("CrashLoopBackOff")]}),
            "1/2 CrashLoopBackOff 3",
        ),
        (json!({"phase": "Running", "containerStatuses": [waiting("First"), waiting("Second")]}), "0/2 First 6"),
        (json!({"phase": "Running", "containerStatuses": [running, ended(json!({"signal": 9}))]}), "1/2 Signal:9 0"),
        (
            json!({"phase": "Running", "containerStatuses": [running, ended(json!({"exitCode": 2}))]}),
            "1/2 ExitCode:2 0",
        ),
        (json!({"phase": "Succeeded", "containerStatuses": [completed, completed]}), "0/2 Completed 0"),
        (json!({"phase": "Running", "containerStatuses": [running, completed]}), "1/2 NotReady 0"),
        (json!({"phase": "Running", "containerStatuses": [running, completed], "conditions": ready}), "1/2 Running 0"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            "0/2 SchedulingGated 0",
        ),
    ] {
        assert_eq!(pod(json!({"spec": two, "status": status})), expected);
    }
}

#[test]
fn init_containers_that_hold_a_pod_up_show_first() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let done = json!({"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 0}}});
    let second = |state: Value| json!([done, {"name": "j", "restartCount": 1, "state": state}]);
    for (state, expected) in [
        (json!({"running": {}}), "0/1 Init:1/2 3"),
        (json!({"waiting": {"reason": "PodInitializing"}}), "0/1 Init:1/2 3"),
        (json!({"waiting": {"reason": "ImagePullBackOff"}}), "0/1 Init:ImagePullBackOff 3"),
        (json!({"terminated": {"exitCode": 4}}), "0/1 Init:ExitCode:4 3"),
        (json!({"terminated": {"exitCode": 137, "signal": 9}}), "0/1 Init:Signal:9 3"),
        (json!({"terminated": {"exitCode": 1, "reason": "Error"}}), "0/1 Init:Error 3"),
        (json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), "0/1 Pending 0"),
    ] {
        let status = json!({"phase": "Pending", "initContainerStatuses": second(state)});
        assert_eq!(pod(json!({"spec": spec, "status": status})), expected);
    }
    let status = json!({
        "phase": "Running", "initContainerStatuses": second(json!({"terminated": {"exitCode": 1}})),
        "conditions": [{"type": "Initialized", "status": "True"}],
        "containerStatuses": [{"ready": true, "state": {"running": {}}}],
    });
    assert_eq!(pod(json!({"spec": spec, "status": status})), "1/1 Init:ExitCode:1 0");
}

#[test]
fn sidecars_count_as_containers() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let sidecar = |ready: bool, started: bool| json!([{"name": "s", "restartCount": 2, "ready": ready, "started": started, "state": {"running": {}}}]);
    let app = json!([{"restartCount": 1, "ready": true, "state": {"running": {}}}]);
    for (ready, started, expected) in
        [(true, true, "2/2 Running 3"), (false, true, "1/2 Running 3"), (false, false, "0/2 Init:0/1 2")]
    {
        let status =
            json!({"phase": "Running", "initContainerStatuses": sidecar(ready, started), "containerStatuses": app});
        assert_eq!(pod(json!({"spec": spec, "status": status})), expected);
    }
}

#[test]
fn the_last_restart_is_said_with_the_number_of_restarts() {
    let ended = |at: &str| json!({"terminated": {"finishedAt": at}});
    let statuses = json!([
        {"restartCount": 2, "lastState": ended("2023-11-14T22:03:20Z")},
        {"restartCount": 1, "lastState": ended("2023-11-14T20:13:20Z")},
    ]);
    assert_eq!(cells(Of::Pod, json!({"status": {"containerStatuses": statuses}}))[2], "3 (10m ago)");
    let none = json!([{"restartCount": 0, "lastState": ended("2023-11-14T22:03:20Z")}]);
    assert_eq!(cells(Of::Pod, json!({"status": {"containerStatuses": none}}))[2], "0");
}

#[test]
fn a_pod_under_deletion_is_terminating_unless_it_is_through_or_its_node_lost() {
    let deleted =
        |status: Value| pod(json!({"metadata": {"deletionTimestamp": "2023-11-14T22:13:00Z"}, "status": status}));
    assert_eq!(deleted(json!({"phase": "Running"})), "0/0 Terminating 0");
    assert_eq!(deleted(json!({"phase": "Succeeded"})), "0/0 Succeeded 0");
    assert_eq!(deleted(json!({"phase": "Failed"})), "0/0 Failed 0");
    assert_eq!(deleted(json!({"phase": "Running", "reason": "NodeLost"})), "0/0 Unknown 0");
    assert_eq!(pod(json!({"status": {"phase": "Running", "reason": "NodeLost"}})), "0/0 NodeLost 0");
}

#[test]
fn a_pod_shows_where_it_is_and_its_gates() {
    let wide = |more: Value| cells(Of::Pod, more)[3..].to_vec();
    assert_eq!(wide(json!({})), ["<none>"; 4]);
    let spec = json!({"nodeName": "n1", "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}, {"conditionType": "c"}]});
    let status = json!({"podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}], "nominatedNodeName": "n2",
                        "conditions": [{"type": "a", "status": "True"}, {"type": "b", "status": "False"}]});
    assert_eq!(wide(json!({"spec": spec, "status": status})), ["10.1.0.5", "n1", "n2", "1/3"]);
}

#[test]
fn a_table_has_the_form_that_clients_read() {
    let service = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a", "uid": "u"}, "spec": {"type": "ClusterIP"}});
    let shape = |include| Shape { metadata: json!({"resourceVersion": "7"}), include, now: NOW, ..Shape::default() };
    let made = |shape| table(Of::Service, [&service].into_iter(), shape);
    let whole = made(shape(Include::default()));
    let keys: Vec<_> = whole.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["kind", "apiVersion", "metadata", "columnDefinitions", "rows"]);
    assert_eq!((&whole["kind"], &whole["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(whole["metadata"], json!({"resourceVersion": "7"}));
    assert_eq!(whole["columnDefinitions"], columns(Of::Service));
    assert_eq!(
        whole["rows"][0]["cells"],
        json!(["a", "ClusterIP", "<none>", "<none>", "<none>", "<unknown>", "<none>"])
    );
    let partial =
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a", "uid": "u"}});
    assert_eq!(whole["rows"][0]["object"], partial);
    assert_eq!(made(shape(Include::Object))["rows"][0]["object"], service);
    assert_eq!(made(shape(Include::None))["rows"][0]["object"], Value::Null);

    let later = made(Shape { without_columns: true, version: Version::V1Beta1, ..Shape::default() });
    assert_eq!(later["columnDefinitions"], Value::Null);
    assert_eq!(later["metadata"], json!({}));
    assert_eq!(later["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(later["rows"][0]["object"]["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(table(Of::Pod, std::iter::empty(), Shape::default())["rows"], json!([]));
}

#[test]
fn only_rows_of_pods_that_are_through_have_conditions() {
    let rows = |of, phase: &str| {
        table(of, [&json!({"status": {"phase": phase}})].into_iter(), Shape::default())["rows"].clone()
    };
    assert_eq!(rows(Of::Pod, "Running")[0].get("conditions"), None);
    assert_eq!(rows(Of::Namespace, "Succeeded")[0].get("conditions"), None);
    for (phase, message) in [("Succeeded", "The pod has completed successfully."), ("Failed", "The pod failed.")] {
        let expected = json!([{"type": "Completed", "status": "True", "reason": phase, "message": message}]);
        assert_eq!(rows(Of::Pod, phase)[0]["conditions"], expected);
    }
}

#[test]
fn metadata_alone_is_an_object_of_its_own_kind() {
    let of = |metadata: Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
    assert_eq!(partial(&json!({"metadata": {"name": "a"}, "spec": {}}), Version::V1), of(json!({"name": "a"})));
    assert_eq!(partial(&json!({}), Version::V1), of(json!({})));
}

#[test]
fn what_to_include_is_read_from_the_query() {
    for (text, expected) in
        [("", Include::Metadata), ("Metadata", Include::Metadata), ("Object", Include::Object), ("None", Include::None)]
    {
        assert_eq!(Include::parse(text), Ok(expected));
    }
    let why = Include::parse("all").unwrap_err();
    assert!(why.ends_with("Invalid value: \"all\": must be 'Metadata', 'Object', 'None', or empty"), "{why}");
}

/// JSON whose keys are those that rows are made of, with values of any type.
fn any_value() -> impl Strategy<Value = Value> {
    let keys = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "name",
        "creationTimestamp",
        "deletionTimestamp",
        "labels",
        "containers",
        "state",
        "initContainers",
        "containerStatuses",
        "initContainerStatuses",
        "terminated",
        "waiting",
        "reason",
        "restartCount",
        "conditions",
        "type",
        "subsets",
        "addresses",
        "ports",
        "port",
        "endpoints",
        "parentRef",
        "clusterIPs",
        "selector",
        "loadBalancer",
        "ingress",
        "ip",
        "restartPolicy",
        "started",
        "lastState",
        "finishedAt",
        "podIPs",
        "cidrs",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["", "x", "Always", "Ready", "LoadBalancer", "-009999-01-01T00:00:00Z"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..8)
                .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_an_object_is_its_row_has_a_text_for_each_column(object in any_value(), now in any::<i64>()) {
        for of in ALL {
            let row = row(of, &object, now);
            prop_assert_eq!(row.len(), names(of).len());
            prop_assert!(row.iter().all(Value::is_string));
        }
    }

    #[test]
    fn a_few_of_many_account_for_all(count in 0usize..40, ports in 1usize..4) {
        let addresses: Value = (0..count).map(|at| json!({"ip": at.to_string()})).collect();
        let ports_of: Value = (0..ports).map(|at| json!({"port": at})).collect();
        let shown = cells(Of::Endpoints, json!({"subsets": [{"addresses": addresses, "ports": ports_of}]})).remove(0);
        let (named, more) = shown.split_once(" + ").unwrap_or((&shown, "0 "));
        let named = named.split(',').filter(|one| !one.is_empty()).count();
        let more: usize = more.split(' ').next().unwrap().parse().unwrap();
        prop_assert_eq!(named + more, count * ports);
        prop_assert_eq!(named, 3.min(count * ports));
    }
}
