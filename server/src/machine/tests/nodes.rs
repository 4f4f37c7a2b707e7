//! Leases, silence, reports, graceful deletion, and networks that overlap.

use super::*;
use fairlead_proto::internal::v1::LeaseEpoch;

fn ready_of(world: &World, pod: &str) -> Condition {
    condition(&world.pod(pod).status.unwrap().conditions, "Ready").cloned().unwrap_or_default()
}

/// Node n1 with a service and a pod on it, reported ready at 10.1.0.1.
fn with_pod() -> World {
    let mut world = World::new();
    world.node_up("n1", "192.168.0.1");
    world.create(service("web"));
    let mut it = pod_on("n1", "p", "web", "");
    it.status = None;
    world.create(it);
    world.report("p", |report| report.pod_ip = "10.1.0.1".into());
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
    world
}

#[test]
fn a_node_that_says_hello_is_made_and_refreshed() {
    let mut world = World::new();
    assert_eq!(world.node_up("n1", "192.168.0.1").outcome.effect(), WriteEffect::Created);
    let node = world.node("n1");
    let metadata = node.metadata.clone().unwrap();
    assert_eq!((metadata.uid.as_str(), metadata.labels), ("uid-n1", labels(&[("kubernetes.io/hostname", "n1")])));
    let addresses: Vec<(String, String)> =
        node.status.clone().unwrap().addresses.into_iter().map(|one| (one.r#type, one.address)).collect();
    assert_eq!(addresses, [("InternalIP".into(), "192.168.0.1".into()), ("Hostname".into(), "n1".into())]);
    assert_eq!(condition(&node.status.unwrap().conditions, "Ready").unwrap().status, "True");
    let lease = world.state().lease("n1").cloned().unwrap();
    assert_eq!((lease.expired, lease.grace_seconds), (false, 5));
    // Nothing new: no revision, no epoch.
    let again = world.node_up("n1", "192.168.0.1");
    assert_eq!((again.outcome.effect(), again.changes.len()), (WriteEffect::Unchanged, 0));
    assert_eq!(world.state().lease("n1"), Some(&lease));
    // A user's labels stay.
    let labelled = change_metadata(&world.get(Kind::Node, "n1").unwrap(), |metadata| {
        metadata.labels.insert("rack".into(), "7".into());
    });
    world.update(labelled);
    let moved = world.node_up("n1", "192.168.0.9");
    assert_eq!(moved.outcome.effect(), WriteEffect::Configured);
    assert!(world.node("n1").metadata.unwrap().labels.contains_key("rack"));
    assert!(moved.touched.leases.is_empty());
}

#[test]
fn a_bad_hello_is_refused_with_every_problem() {
    let mut world = World::new();
    let bad =
        NodeUp { addresses: vec!["x".into(), "10.0.0.1".into()], pod_cidr: "10.0.0.0/99".into(), ..NodeUp::default() };
    let rejection = world.run(command::Kind::NodeUp(bad)).outcome.rejection.unwrap();
    let fields: Vec<&str> = rejection.causes.iter().map(|cause| cause.field.as_str()).collect();
    assert_eq!(fields, ["node", "addresses[0]", "pod_cidr"]);
}

#[test]
fn silence_takes_the_nodes_pods_out_and_a_report_brings_them_back() {
    let mut world = with_pod();
    let epoch = world.state().lease("n1").unwrap().epoch;
    let expired = world.expire("n1");
    let kinds: Vec<Kind> = expired.changes.iter().map(|change| change.key.kind).collect();
    assert_eq!(kinds, [Kind::Node, Kind::Pod, Kind::Endpoints], "one entry");
    assert!(expired.touched.leases.contains("n1"));
    assert_eq!(world.endpoints("web"), ["!10.1.0.1:80/TCP"]);
    assert_eq!((ready_of(&world, "p").status.as_str(), ready_of(&world, "p").reason.as_str()), ("False", "NodeLost"));
    let node = world.node("n1").status.unwrap();
    let ready = condition(&node.conditions, "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("Unknown", "NodeStatusUnknown"));
    // A report that was overtaken by the silence must not bring it back.
    let late = world.report("p", |_| {}).outcome.rejection.unwrap();
    assert_eq!(late.code(), Code::Conflict);
    world.node_up("n1", "192.168.0.1");
    assert!(world.state().lease("n1").unwrap().epoch > epoch);
    assert_eq!(world.endpoints("web"), ["!10.1.0.1:80/TCP"]);
    world.report("p", |_| {});
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
}

#[test]
fn only_the_observed_lease_expires() {
    let mut world = with_pod();
    let epoch = world.state().lease("n1").unwrap().epoch;
    let expire = |observed_lease| command::Kind::ExpireNode(ExpireNode { node: "n1".into(), observed_lease });
    assert_eq!(world.run(expire(epoch + 1)).outcome.effect(), WriteEffect::Unchanged);
    assert_eq!(world.run(expire(epoch)).outcome.effect(), WriteEffect::Configured);
    assert_eq!(world.run(expire(epoch)).outcome.effect(), WriteEffect::Unchanged);
    // Not even a node that was deleted and came back shares an epoch with what it was.
    world.delete(Kind::Node, "n1");
    assert_eq!(world.state().lease("n1"), None);
    world.node_up("n1", "192.168.0.1");
    assert_eq!(world.run(expire(epoch)).outcome.effect(), WriteEffect::Unchanged);
    let missing = command::Kind::ExpireNode(ExpireNode { node: "none".into(), observed_lease: 1 });
    assert_eq!(world.run(missing).outcome.effect(), WriteEffect::Unchanged);
}

#[test]
fn a_report_sets_the_status_once() {
    let mut world = with_pod();
    let status = world.pod("p").status.unwrap();
    assert_eq!(
        (status.phase.as_str(), status.pod_ip.as_str(), status.host_ip.as_str()),
        ("Running", "10.1.0.1", "192.168.0.1")
    );
    assert_eq!(status.pod_ips[0].ip, "10.1.0.1");
    let started = status.start_time;
    let since = ready_of(&world, "p").last_transition_time;
    assert_eq!(started, since);
    let same = world.report("p", |_| {});
    assert_eq!((same.changes.len(), same.outcome.effect()), (0, WriteEffect::Unchanged));
    // Another message is no transition; another status is.
    world.report("p", |report| report.message = "x".repeat(5000));
    assert_eq!(
        (ready_of(&world, "p").last_transition_time.as_str(), ready_of(&world, "p").message.len()),
        (since.as_str(), 4096)
    );
    world.report("p", |report| {
        report.ready = false;
        report.reason = "ReadinessProbeFailed".into();
    });
    let ready = ready_of(&world, "p");
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "ReadinessProbeFailed"));
    assert_ne!(ready.last_transition_time, since);
    assert_eq!(world.endpoints("web"), ["!10.1.0.1:80/TCP"]);
    assert_eq!(world.pod("p").status.unwrap().start_time, started);
}

#[test]
fn reports_about_what_isnt_the_nodes_are_passed_over() {
    let mut world = with_pod();
    world.node_up("n2", "192.168.0.2");
    let unready = |report: &mut ReportedPod| report.ready = false;
    assert!(
        world
            .report("p", |report| {
                unready(report);
                report.uid = "former".into()
            })
            .changes
            .is_empty()
    );
    assert!(
        world
            .report("p", |report| {
                unready(report);
                report.name = "none".into()
            })
            .changes
            .is_empty()
    );
    let object = world.get(Kind::Pod, "p").unwrap();
    let foreign = ReportedPod {
        namespace: "default".into(),
        name: "p".into(),
        uid: object.metadata().uid.clone(),
        ..ReportedPod::default()
    };
    assert!(
        world.run(command::Kind::ReportPods(ReportPods { node: "n2".into(), pods: vec![foreign] })).changes.is_empty()
    );
    // Terminated counts only for a pod that is being deleted.
    world.report("p", |report| report.terminated = true);
    assert_eq!(ready_of(&world, "p").status, "False");
    // An address that is none is kept out.
    world.report("p", |report| report.pod_ip = "nonsense".into());
    assert_eq!(world.pod("p").status.unwrap().pod_ip, "10.1.0.1");
}

#[test]
fn many_reports_derive_a_service_once() {
    let mut world = with_pod();
    for name in ["q", "r"] {
        world.create(pod_on("n1", name, "web", &format!("10.1.0.{}", name.len() + usize::from(name.as_bytes()[0]))));
    }
    let report = |name: &str| ReportedPod {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        ..ReportedPod::default()
    };
    let applied = world
        .run(command::Kind::ReportPods(ReportPods { node: "n1".into(), pods: ["p", "q", "r"].map(report).into() }));
    let kinds: Vec<Kind> = applied.changes.iter().map(|change| change.key.kind).collect();
    assert_eq!(kinds, [Kind::Pod, Kind::Pod, Kind::Pod, Kind::Endpoints]);
}

#[test]
fn a_bound_pod_of_a_live_node_goes_gracefully() {
    let mut world = with_pod();
    let deleted = world.run(delete_command(Kind::Pod, "p"));
    assert_eq!(deleted.outcome.effect(), WriteEffect::Terminating);
    let metadata = world.pod("p").metadata.unwrap();
    assert_eq!((metadata.deletion_grace_period_seconds, metadata.deletion_timestamp.is_empty()), (Some(30), false));
    assert_eq!(world.endpoints("web"), ["!~10.1.0.1:80/TCP"], "terminating at once");
    // Again, and slower: nothing changes. Sooner: brought forward.
    let again = |seconds| {
        let key = Some(key(Kind::Pod, "p").to_wire());
        command::Kind::Delete(Delete { key, grace_period_seconds: Some(seconds), ..Delete::default() })
    };
    assert!(world.run(again(60)).changes.is_empty());
    world.run(again(-5));
    assert_eq!(world.pod("p").metadata.unwrap().deletion_grace_period_seconds, Some(1));
    let gone = world.report("p", |report| report.terminated = true);
    assert_eq!(gone.changes.len(), 2);
    assert!(world.endpoints("web").is_empty() && world.get(Kind::Pod, "p").is_none());
}

#[test]
fn without_a_live_agent_or_with_grace_zero_a_pod_goes_at_once() {
    let now = command::Kind::Delete(Delete {
        key: Some(key(Kind::Pod, "p").to_wire()),
        grace_period_seconds: Some(0),
        ..Delete::default()
    });
    assert_eq!(with_pod().run(now).outcome.effect(), WriteEffect::Deleted);
    let mut silent = with_pod();
    silent.expire("n1");
    assert_eq!(silent.delete(Kind::Pod, "p"), WriteEffect::Deleted);
    let mut finished = with_pod();
    let mut it = finished.pod("p");
    it.status.as_mut().unwrap().phase = "Succeeded".into();
    finished.run(status_command(it));
    assert_eq!(finished.delete(Kind::Pod, "p"), WriteEffect::Deleted);
    let mut unbound = World::new();
    unbound.create(pod("p", "web", "10.1.0.1"));
    assert_eq!(unbound.delete(Kind::Pod, "p"), WriteEffect::Deleted);
    // One that was waiting for an agent that is no more.
    let mut waiting = with_pod();
    assert_eq!(waiting.delete(Kind::Pod, "p"), WriteEffect::Terminating);
    waiting.expire("n1");
    assert_eq!(waiting.delete(Kind::Pod, "p"), WriteEffect::Deleted);
}

#[test]
fn a_stopped_pod_with_finalizers_waits_for_them_alone() {
    let mut world = with_pod();
    let held = change_metadata(&world.get(Kind::Pod, "p").unwrap(), |metadata| {
        metadata.finalizers = vec!["example.com/x".into()]
    });
    world.update(held);
    world.delete(Kind::Pod, "p");
    world.report("p", |report| report.terminated = true);
    assert_eq!(world.pod("p").metadata.unwrap().deletion_grace_period_seconds, Some(0));
    let free = change_metadata(&world.get(Kind::Pod, "p").unwrap(), |metadata| metadata.finalizers.clear());
    assert_eq!(world.run(update_command(free)).outcome.effect(), WriteEffect::Deleted);
}

#[test]
fn a_deleted_node_takes_its_lease_and_its_pods_endpoints() {
    let mut world = with_pod();
    let gone = world.run(delete_command(Kind::Node, "n1"));
    assert!(gone.touched.leases.contains("n1"));
    assert_eq!(world.state().leases().collect::<Vec<LeaseEpoch>>(), []);
    assert!(world.endpoints("web").is_empty());
    assert!(world.get(Kind::Pod, "p").is_some());
    world.node_up("n1", "192.168.0.1");
    assert_eq!(world.endpoints("web"), ["10.1.0.1:80/TCP"]);
}

fn up_with_cidr(world: &mut World, node: &str, address: &str, pod_cidr: &str) {
    let up =
        NodeUp { node: node.into(), addresses: vec![address.into()], pod_cidr: pod_cidr.into(), ..NodeUp::default() };
    assert_eq!(world.run(command::Kind::NodeUp(up)).outcome.rejection, None);
}

#[test]
fn a_node_whose_pod_network_overlaps_is_kept_out_until_solved() {
    let mut world = World::new();
    world.create(service("web"));
    up_with_cidr(&mut world, "n1", "192.168.0.1", "10.1.0.0/16");
    up_with_cidr(&mut world, "n2", "192.168.0.2", "10.1.2.0/24");
    let status = world.node("n2").status.unwrap();
    let conflict = condition(&status.conditions, CIDR_CONFLICT).unwrap();
    assert!(
        conflict.status == "True" && conflict.message.contains("\"n1\"") && conflict.message.contains("\"n2\""),
        "{conflict:?}"
    );
    world.create(pod_on("n1", "p1", "web", "10.1.1.1"));
    world.create(pod_on("n2", "p2", "web", "10.1.2.1"));
    world.create(pod_on("n2", "p3", "web", "192.168.0.2"));
    assert_eq!(
        world.endpoints("web"),
        ["10.1.1.1:80/TCP", "192.168.0.2:80/TCP"],
        "the node's own address is not in doubt"
    );
    // A user can't wish it away.
    let mut wished = world.node("n2");
    wished.status.as_mut().unwrap().conditions.clear();
    world.run(status_command(wished));
    assert!(derive::is_conflicted(&world.node("n2")));
    up_with_cidr(&mut world, "n1", "192.168.0.1", "10.1.1.0/24");
    assert!(!derive::is_conflicted(&world.node("n2")));
    assert_eq!(world.endpoints("web"), ["10.1.1.1:80/TCP", "10.1.2.1:80/TCP", "192.168.0.2:80/TCP"]);
}

#[test]
fn solving_one_overlap_may_leave_another() {
    let mut world = World::new();
    up_with_cidr(&mut world, "a", "192.168.0.1", "10.1.0.0/24");
    up_with_cidr(&mut world, "b", "192.168.0.2", "10.1.0.0/24");
    up_with_cidr(&mut world, "c", "192.168.0.3", "10.1.0.0/24");
    world.delete(Kind::Node, "a");
    assert!(!derive::is_conflicted(&world.node("b")));
    let status = world.node("c").status.unwrap();
    assert!(condition(&status.conditions, CIDR_CONFLICT).unwrap().message.contains("\"b\""));
}

#[test]
fn an_address_that_two_nodes_have_serves_at_the_first() {
    let mut world = World::new();
    world.create(service("web"));
    world.node_up("n1", "192.168.0.1");
    world.node_up("n2", "192.168.0.2");
    world.create(pod_on("n2", "first", "web", "10.88.0.2"));
    world.create(pod_on("n1", "a-second", "web", "10.88.0.2"));
    let serving = |world: &World| -> Vec<String> {
        let object = world.get(Kind::Endpoints, "web").unwrap();
        object.as_endpoints().unwrap().endpoints.iter().map(|endpoint| endpoint.pod_name.clone()).collect()
    };
    assert_eq!(serving(&world), ["first"]);
    let conditions = world.pod("a-second").status.unwrap().conditions;
    let conflict = condition(&conditions, ADDRESS_CONFLICT).unwrap();
    assert!(
        conflict.message.contains("default/first")
            && conflict.message.contains("\"n1\"")
            && conflict.message.contains("\"n2\""),
        "{conflict:?}"
    );
    // Forging the status doesn't help; the other's going does, in the same entry.
    world.run(status_command(pod_on("n1", "a-second", "web", "10.88.0.2")));
    assert_eq!(serving(&world), ["first"]);
    let now =
        Delete { key: Some(key(Kind::Pod, "first").to_wire()), grace_period_seconds: Some(0), ..Delete::default() };
    world.run(command::Kind::Delete(now));
    assert_eq!(serving(&world), ["a-second"]);
    assert!(condition(&world.pod("a-second").status.unwrap().conditions, ADDRESS_CONFLICT).is_none());
}

#[test]
fn a_node_that_comes_back_may_find_its_addresses_taken() {
    let mut world = World::new();
    world.create(service("web"));
    world.node_up("n1", "192.168.0.1");
    world.create(pod_on("n2", "old", "web", "10.88.0.2"));
    world.create(pod_on("n1", "new", "web", "10.88.0.2"));
    assert_eq!(world.endpoints("web").len(), 1, "a pod of a node that doesn't exist claims nothing");
    world.node_up("n2", "192.168.0.2");
    assert_eq!(world.endpoints("web").len(), 1);
    world.delete(Kind::Node, "n1");
    world.delete(Kind::Node, "n2");
    assert_eq!(world.endpoints("web").len(), 0);
}
