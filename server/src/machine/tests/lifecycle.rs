//! Preconditions, metadata that servers set, status, finalizers and namespaces.

use super::*;
use fairlead_proto::v1::NodeSpec;

fn in_namespace(name: &str, object: impl Into<Object>) -> Object {
    change_metadata(&Arc::new(object.into()), |metadata| metadata.namespace = name.into())
}

#[test]
fn preconditions_of_writes() {
    let mut world = World::new();
    let current = world.create(pod("p", "a", "10.1.0.1"));
    let revision = current.metadata().revision;
    let exists = (Code::AlreadyExists, "pods \"p\" already exists".to_owned());
    let modified = "Operation cannot be fulfilled on pods \"p\": the object has been modified; please apply your changes to the latest version and try again";
    assert_eq!(world.refused(create_command(pod("p", "a", "10.1.0.1"))), exists);
    assert_eq!(
        world.refused(put_command(pod("p", "a", "").into(), put::Precondition::ExpectRevision(revision - 1))),
        (Code::Conflict, modified.into())
    );
    assert_eq!(world.refused(update_command(pod("q", "a", ""))), (Code::NotFound, "pods \"q\" not found".into()));
    assert_eq!(
        world.refused(put_command(pod("q", "a", "").into(), put::Precondition::ExpectRevision(3))).0,
        Code::NotFound
    );
    let other = change_metadata(&current, |metadata| metadata.uid = "other".into());
    let (code, message) = world.refused(update_command(other));
    assert_eq!(
        (code, message.contains("UID in precondition: other, UID in object meta: uid-p")),
        (Code::Conflict, true)
    );
    let changed = change_metadata(&current, |metadata| metadata.labels = labels(&[("app", "b")]));
    let written = world.run(put_command(changed, put::Precondition::ExpectRevision(revision))).outcome;
    assert_eq!((written.effect(), written.rejection), (WriteEffect::Configured, None));
    // Without a precondition: created or updated, whatever it takes.
    let any = |object: Pod| command::Kind::Put(Put { object: Some(object.into()), ..Put::default() });
    assert_eq!(world.run(any(pod("r", "a", ""))).outcome.effect(), WriteEffect::Created);
    let mut again = pod("r", "b", "");
    again.metadata.as_mut().unwrap().uid = "never used".into();
    assert_eq!(world.run(any(again)).outcome.effect(), WriteEffect::Configured);
    assert_eq!(world.pod("r").metadata.unwrap().uid, "uid-r");
}

#[test]
fn preconditions_of_deletes() {
    let mut world = World::new();
    world.create(pod("p", "a", ""));
    let delete = |uid: &str, revision: u64| {
        command::Kind::Delete(Delete {
            key: Some(key(Kind::Pod, "p").to_wire()),
            expect_uid: uid.into(),
            expect_revision: revision,
            ..Delete::default()
        })
    };
    assert_eq!(world.refused(delete("other", 0)).0, Code::Conflict);
    assert_eq!(world.refused(delete("", 1)).0, Code::Conflict);
    let revision = world.pod("p").metadata.unwrap().revision;
    let gone = world.run(delete("uid-p", revision)).outcome;
    assert_eq!(gone.effect(), WriteEffect::Deleted);
    assert_eq!(gone.object.unwrap().metadata().revision, gone.revision, "the last state, at the revision of its going");
    assert_eq!(world.refused(delete("", 0)), (Code::NotFound, "pods \"p\" not found".into()));
}

#[test]
fn a_write_of_the_same_changes_nothing() {
    let mut world = World::new();
    for object in [Object::from(service("web")), pod("p", "web", "10.1.0.1").into(), namespace("other").into()] {
        world.create(object.clone());
        let again = world.run(update_command(object));
        assert_eq!((again.outcome.effect(), again.changes.len()), (WriteEffect::Unchanged, 0));
        assert!(again.outcome.object.is_some());
    }
}

#[test]
fn servers_set_what_is_theirs() {
    let mut world = World::new();
    let forged = |metadata: &mut ObjectMeta| {
        metadata.creation_timestamp = "1999-01-01T00:00:00Z".into();
        metadata.deletion_timestamp = "1999-01-01T00:00:00Z".into();
        metadata.deletion_grace_period_seconds = Some(7);
        metadata.generation = 99;
        metadata.revision = 99_999;
    };
    let made = world.create(change_metadata(&Arc::new(pod("p", "a", "").into()), forged));
    let metadata = made.metadata();
    assert_eq!((metadata.generation, metadata.revision), (1, world.state().revision()));
    assert_eq!(
        (metadata.creation_timestamp.as_str(), metadata.deletion_timestamp.as_str()),
        ("2023-11-14T22:13:22Z", "")
    );
    let changed = change_metadata(&made, |metadata| {
        forged(metadata);
        metadata.annotations = labels(&[("a", "b")]);
        metadata.last_applied = "{}".into();
    });
    let written = world.update(changed);
    let after = written.metadata();
    assert_eq!(
        (after.generation, &after.creation_timestamp, after.deletion_timestamp.as_str()),
        (1, &metadata.creation_timestamp, "")
    );
    assert_eq!((after.last_applied.as_str(), after.uid.as_str()), ("{}", "uid-p"));
}

#[test]
fn generation_rises_with_the_spec_only() {
    let mut world = World::new();
    let node = Node {
        metadata: Some(ObjectMeta { namespace: String::new(), ..metadata("n") }),
        spec: Some(NodeSpec::default()),
        ..Node::default()
    };
    let made = world.create(node.clone());
    let labelled = change_metadata(&made, |metadata| metadata.labels = labels(&[("a", "b")]));
    assert_eq!(world.update(labelled).metadata().generation, 1);
    let mut changed = node;
    changed.spec.as_mut().unwrap().unschedulable = true;
    assert_eq!(world.update(changed).metadata().generation, 2);
    assert_eq!(world.create(namespace("x")).metadata().generation, 0);
}

#[test]
fn spec_and_status_are_written_apart() {
    let mut world = World::new();
    world.create(service("web"));
    world.create(pod("p", "web", "10.1.0.1"));
    // An update of the spec keeps the status, whatever it says.
    let mut update = pod("p", "web", "10.9.9.9");
    update.spec.as_mut().unwrap().hostname = "h".into();
    let update = world.run(update_command(update)).outcome;
    if update.rejection.is_none() {
        assert_eq!(world.pod("p").status.unwrap().pod_ip, "10.1.0.1");
    }
    // An update of the status keeps all the rest.
    let mut status = pod("p", "other", "10.1.0.2");
    status.spec = None;
    world.run(status_command(status));
    assert_eq!(world.endpoints("web"), ["10.1.0.2:80/TCP"]);
    let record = Endpoints { metadata: Some(metadata("hand")), ..Endpoints::default() };
    world.create(record.clone());
    assert_eq!(world.refused(status_command(record)).0, Code::Invalid);
    let mut phase = namespace("default");
    phase.status = Some(NamespaceStatus { phase: "Terminating".into() });
    assert_eq!(world.run(status_command(phase)).outcome.effect(), WriteEffect::Unchanged);
}

#[test]
fn a_namespace_must_be_there() {
    let mut world = World::new();
    assert_eq!(
        world.refused(create_command(in_namespace("gone", service("web")))),
        (Code::NotFound, "namespaces \"gone\" not found".into())
    );
    assert_eq!(world.refused(create_command(in_namespace("", service("web")))).0, Code::Invalid);
}

#[test]
fn finalizers_hold_an_object_and_no_new_ones_come() {
    let mut world = World::new();
    let held = change_metadata(&Arc::new(pod("p", "a", "").into()), |metadata| {
        metadata.finalizers = vec!["a/x".into(), "a/y".into()]
    });
    world.create(held);
    assert_eq!(world.delete(Kind::Pod, "p"), WriteEffect::Terminating);
    assert_eq!(world.delete(Kind::Pod, "p"), WriteEffect::Terminating);
    let marked = world.get(Kind::Pod, "p").unwrap();
    let (_, message) =
        world.refused(update_command(change_metadata(&marked, |metadata| metadata.finalizers.push("a/z".into()))));
    assert!(message.ends_with("metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers [\"a/z\"]"), "{message}");
    let one = world.update(change_metadata(&marked, |metadata| metadata.finalizers = vec!["a/y".into()]));
    let last = world.run(update_command(change_metadata(&one, |metadata| metadata.finalizers.clear())));
    assert_eq!((last.outcome.effect(), last.changes[0].new.is_none()), (WriteEffect::Deleted, true));
}

/// A namespace with a service, two pods (one of a live node) and hand-written endpoints.
fn full_namespace() -> World {
    let mut world = World::new();
    world.create(namespace("app"));
    world.node_up("n1", "192.168.0.1");
    world.create(in_namespace("app", service("web")));
    world.create(in_namespace("app", pod("free", "web", "10.1.0.1")));
    world.create(in_namespace("app", Endpoints { metadata: Some(metadata("hand")), ..Endpoints::default() }));
    world
}

#[test]
fn an_empty_of_holders_namespace_goes_with_everything_in_one_entry() {
    let mut world = full_namespace();
    let gone = world.run(delete_command(Kind::Namespace, "app"));
    assert_eq!(gone.outcome.effect(), WriteEffect::Deleted);
    assert_eq!(gone.changes.len(), 5, "{:?}", gone.changes);
    assert!(gone.changes.iter().all(|change| change.new.is_none()));
    assert_eq!(gone.changes.last().unwrap().key.kind, Kind::Namespace, "the namespace goes last");
    assert_eq!(world.state().addresses().taken(), 0);
    world.create(namespace("app"));
}

#[test]
fn a_held_namespace_ends_with_its_last_object() {
    let mut world = full_namespace();
    world.create(in_namespace("app", pod_on("n1", "bound", "web", "10.1.0.2")));
    let held = change_metadata(&Arc::new(in_namespace("app", service("kept"))), |metadata| {
        metadata.finalizers = vec!["a/x".into()]
    });
    let kept = world.create(held);
    let ending = world.run(delete_command(Kind::Namespace, "app"));
    assert_eq!(ending.outcome.effect(), WriteEffect::Terminating);
    assert_eq!(ending.changes[0].key.kind, Kind::Namespace, "the cause first");
    let why =
        "pods \"late\" is forbidden: unable to create new content in namespace app because it is being terminated";
    assert_eq!(world.refused(create_command(in_namespace("app", pod("late", "x", "")))), (Code::Forbidden, why.into()));
    assert_eq!(world.delete(Kind::Namespace, "app"), WriteEffect::Terminating);
    // The agent stops its pod; then only the finalizer holds.
    let bound = ReportedPod {
        namespace: "app".into(),
        name: "bound".into(),
        uid: "uid-bound".into(),
        terminated: true,
        ..ReportedPod::default()
    };
    world.run(command::Kind::ReportPods(ReportPods { node: "n1".into(), pods: vec![bound] }));
    assert!(world.get(Kind::Namespace, "app").is_some());
    let freed = world.run(update_command(change_metadata(&kept, |metadata| metadata.finalizers.clear())));
    assert_eq!(freed.outcome.effect(), WriteEffect::Deleted);
    assert_eq!(freed.changes.last().unwrap().key, Key::new(Kind::Namespace, "", "app"));
    assert_eq!(world.get(Kind::Namespace, "app"), None);
}

#[test]
fn a_namespaces_own_finalizer_holds_it_empty() {
    let mut world = World::new();
    let held = change_metadata(&Arc::new(namespace("app").into()), |metadata| metadata.finalizers = vec!["a/x".into()]);
    world.create(held);
    world.create(in_namespace("app", service("web")));
    assert_eq!(world.delete(Kind::Namespace, "app"), WriteEffect::Terminating);
    assert_eq!(world.state().addresses().taken(), 0);
    let marked = world.get(Kind::Namespace, "app").unwrap();
    assert_eq!(
        world
            .run(update_command(change_metadata(&marked, |metadata| { metadata.finalizers.clear() })))
            .outcome
            .effect(),
        WriteEffect::Deleted
    );
}

#[test]
fn standing_namespaces_stand() {
    let mut world = World::new();
    for name in STANDING_NAMESPACES {
        let why = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
        assert_eq!(world.refused(delete_command(Kind::Namespace, name)), (Code::Forbidden, why));
    }
}
