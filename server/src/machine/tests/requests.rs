//! Request ids, the clock, settings, and what is no command.

use super::*;
use crate::machine::dedupe::{CLIENTS, WRITES_PER_CLIENT};
use fairlead_proto::internal::v1::{SetMachineVersion, SetMember};

fn request(client: &str, sequence: u64, since: u64) -> Option<RequestId> {
    Some(RequestId { client: client.into(), sequence, since })
}

fn namespace_entry(id: Option<RequestId>, name: &str) -> Entry {
    let kind = create_command(namespace(name));
    Entry { at_ms: 1_700_000_100_000, request_id: id, command: Some(Command { kind: Some(kind) }), ..Entry::default() }
}

fn code(applied: &Applied) -> Option<Code> {
    applied.outcome.rejection.as_ref().map(|rejection| rejection.code())
}

#[test]
fn a_retry_gets_the_first_outcome_and_the_object_as_it_is() {
    let mut world = World::new();
    let first = world.run_entry(namespace_entry(request("c", 1, 0), "a"));
    assert_eq!((code(&first), first.outcome.effect()), (None, WriteEffect::Created));
    assert!(first.touched.sessions.contains("c") && first.touched.session_writes.contains(&("c".into(), 1)));
    let again = world.run_entry(namespace_entry(request("c", 1, 0), "a"));
    assert_eq!(again.outcome, first.outcome);
    assert!(again.changes.is_empty());
    // A rejected request was not executed: the same id is decided anew.
    let refused = world.run_entry(namespace_entry(request("c", 2, 0), "a"));
    assert_eq!((code(&refused), refused.touched), (Some(Code::AlreadyExists), TouchedRecords::default()));
    world.delete(Kind::Namespace, "a");
    let gone = world.run_entry(namespace_entry(request("c", 1, 0), "a"));
    assert_eq!((gone.outcome.effect(), gone.outcome.object), (WriteEffect::Created, None));
    assert_eq!(world.run_entry(namespace_entry(request("c", 2, 0), "a")).outcome.effect(), WriteEffect::Created);
    laws::records(&world.snapshot);
    laws::replay(&world);
}

#[test]
fn outcomes_beyond_the_bound_are_unknown_never_executed_twice() {
    let mut world = World::new();
    let last = WRITES_PER_CLIENT as u64 + 2;
    for sequence in 1..=last {
        world.run_entry(namespace_entry(request("c", sequence, 0), &format!("n{sequence}")));
    }
    for sequence in [1, 2] {
        world.delete(Kind::Namespace, &format!("n{sequence}"));
        let late = world.run_entry(namespace_entry(request("c", sequence, 0), &format!("n{sequence}")));
        assert_eq!(code(&late), Some(Code::UnknownOutcome));
    }
    assert_eq!(code(&world.run_entry(namespace_entry(request("c", 3, 0), "n3"))), None);
    assert_eq!(world.state().writes_of("c").count(), WRITES_PER_CLIENT);
    laws::replay(&world);
}

#[test]
fn a_forgotten_client_is_told_so() {
    let mut snapshot = World::new().snapshot;
    let seen = snapshot.state.revision();
    let entry = |client: &str, sequence, since| {
        // A write that changes nothing is remembered too.
        let kind = command::Kind::Put(Put { object: Some(namespace("default").into()), ..Put::default() });
        Entry {
            request_id: request(client, sequence, since),
            command: Some(Command { kind: Some(kind) }),
            ..Entry::default()
        }
    };
    snapshot.apply(&entry("old", 1, seen));
    snapshot.apply(&Entry { request_id: request("old", 2, seen), ..namespace_entry(None, "a") });
    for client in 0..CLIENTS {
        let applied = snapshot.apply(&entry(&format!("c{client}"), 1, 0));
        let forgets = client == CLIENTS - 1;
        assert_eq!(applied.touched.sessions.contains("old"), forgets);
        assert_eq!(applied.touched.session_writes.contains(&("old".into(), 2)), forgets);
    }
    assert_eq!(snapshot.state.session_count(), CLIENTS);
    assert_eq!(snapshot.state.session("old"), None);
    let retry = |snapshot: &Snapshot, sequence, since| code(&snapshot.clone().apply(&entry("old", sequence, since)));
    assert_eq!(retry(&snapshot, 2, 0), Some(Code::UnknownOutcome), "a sequence above 1 had an earlier one");
    assert_eq!(retry(&snapshot, 1, seen), Some(Code::UnknownOutcome), "it began before the floor");
    let later = snapshot.state.dedupe_floor + 1;
    assert_eq!(retry(&snapshot, 1, later), None, "it began after everything forgotten: executed");
    laws::records(&snapshot);
}

#[test]
fn a_new_client_may_write_though_forgotten_ones_changed_nothing_at_the_newest_revision() {
    let mut snapshot = World::new().snapshot;
    let version = command::Kind::SetMachineVersion(SetMachineVersion { version: 3 });
    snapshot.apply(&Entry { command: Some(Command { kind: Some(version) }), ..Entry::default() });
    let newest = snapshot.state.revision();
    for client in 0..=CLIENTS {
        let kind = command::Kind::Put(Put { object: Some(namespace("default").into()), ..Put::default() });
        let command = Some(Command { kind: Some(kind) });
        let request_id = request(&format!("c{client}"), 1, newest);
        assert_eq!(code(&snapshot.apply(&Entry { request_id, command, ..Entry::default() })), None, "{client}");
    }
    assert_eq!((snapshot.state.revision(), snapshot.state.dedupe_floor), (newest, newest));
    let write =
        |client: &str, name: &str| Entry { request_id: request(client, 1, newest), ..namespace_entry(None, name) };
    assert_eq!(code(&snapshot.apply(&write("new", "a"))), None);
    assert!(snapshot.state.revision() > newest);
    // Now that something changed, it may have been one's own doing.
    assert_eq!(code(&snapshot.apply(&write("other", "b"))), Some(Code::UnknownOutcome));
}

#[test]
fn malformed_request_ids_are_refused() {
    let mut world = World::new();
    assert_eq!(code(&world.run_entry(namespace_entry(request(&"x".repeat(65), 1, 0), "a"))), Some(Code::Invalid));
    assert_eq!(code(&world.run_entry(namespace_entry(request("c", 0, 0), "a"))), Some(Code::Invalid));
    assert_eq!(code(&world.run_entry(namespace_entry(request("", 0, 0), "a"))), None);
}

#[test]
fn the_clock_never_goes_back() {
    let mut world = World::new();
    world.run_entry(namespace_entry(None, "a"));
    let at = world.state().at_ms();
    let early = Entry { at_ms: 5, ..namespace_entry(None, "b") };
    assert_eq!(world.run_entry(early).changes[0].at_ms, at);
    assert_eq!(world.get(Kind::Namespace, "b").unwrap().metadata().creation_timestamp, "2023-11-14T22:15:00Z");
    let wild = Entry { at_ms: u64::MAX, ..namespace_entry(None, "c") };
    world.run_entry(wild);
    assert_eq!(world.get(Kind::Namespace, "c").unwrap().metadata().creation_timestamp, "9999-12-30T22:00:00Z");
}

#[test]
fn what_is_no_command_is_refused() {
    let mut world = World::new();
    assert_eq!(code(&world.run_entry(Entry::default())), Some(Code::Unsupported));
    assert_eq!(
        code(&world.run_entry(Entry { command: Some(Command::default()), ..Entry::default() })),
        Some(Code::Unsupported)
    );
    for kind in [
        command::Kind::Put(Put::default()),
        command::Kind::Put(Put { object: Some(Object::default()), ..Put::default() }),
        command::Kind::Put(Put { object: Some(Pod::default().into()), ..Put::default() }),
        command::Kind::Delete(Delete::default()),
        command::Kind::SetMember(SetMember::default()),
        command::Kind::NodeUp(NodeUp::default()),
    ] {
        assert_eq!(code(&world.run(kind.clone())), Some(Code::Invalid), "{kind:?}");
    }
}

#[test]
fn a_cluster_is_made_once() {
    let mut snapshot = Snapshot::default();
    let init = |id: &str, cidr: &str, ports: (u32, u32)| Entry {
        command: Some(Command {
            kind: Some(command::Kind::InitCluster(InitCluster {
                cluster_id: id.into(),
                service_cidr: cidr.into(),
                node_port_first: ports.0,
                node_port_last: ports.1,
                uids: vec!["one".into()],
            })),
        }),
        ..Entry::default()
    };
    let bad = snapshot.apply(&init("", "10.96.0.0/99", (70_000, 5)));
    assert_eq!(bad.outcome.rejection.unwrap().causes.len(), 3);
    assert_eq!(snapshot.apply(&init("first", "10.96.3.0/16", (30_000, 30_001))).changes.len(), 2);
    assert_eq!(snapshot.apply(&init("second", "10.0.0.0/8", (1, 2))).outcome.effect(), WriteEffect::Unchanged);
    let settings = snapshot.state.settings();
    assert_eq!(
        (settings.cluster_id.as_str(), settings.service_cidr.as_str(), settings.node_ports),
        ("first", "10.96.0.0/16", (30_000, 30_001))
    );
    assert_eq!(snapshot.state.get(&Key::new(Kind::Namespace, "", "default")).unwrap().metadata().uid, "one");
    laws::records(&snapshot);
}

#[test]
fn members_and_the_machine_version() {
    let mut world = World::new();
    let set = |address: &str| {
        let member = fairlead_proto::internal::v1::Member {
            id: 7,
            name: "n1".into(),
            peer_address: address.into(),
            ..Default::default()
        };
        command::Kind::SetMember(SetMember { member: Some(member), join: false })
    };
    assert_eq!(world.run(set("a")).outcome.effect(), WriteEffect::Configured);
    assert_eq!(world.run(set("a")).outcome.effect(), WriteEffect::Unchanged);
    let digest = world.state().digest_hex();
    world.run(set("b"));
    assert_ne!(world.state().digest_hex(), digest);
    assert_eq!(world.state().members().map(|member| member.peer_address.as_str()).collect::<Vec<_>>(), ["b"]);
    let version =
        |version| command::Kind::SetMachineVersion(fairlead_proto::internal::v1::SetMachineVersion { version });
    assert_eq!(world.run(version(3)).outcome.effect(), WriteEffect::Configured);
    assert_eq!(world.run(version(2)).outcome.effect(), WriteEffect::Unchanged);
    assert_eq!(world.state().machine_version(), 3);
    laws::records(&world.snapshot);
}

#[test]
fn records_that_are_no_state_are_refused() {
    let mut world = World::new();
    world.create(service("web"));
    let good: Vec<StateRecord> = world.snapshot.records().collect();
    let decode = |records: Vec<StateRecord>| Snapshot::from_records(records).map(|_| ()).unwrap_err();
    assert_eq!(decode(good[1..].to_vec()), DecodeError::NoMeta);
    let mut twice = good.clone();
    twice.push(good[0].clone());
    assert_eq!(decode(twice), DecodeError::TwoMetas);
    let mut doubled = good.clone();
    doubled.push(good[1].clone());
    assert!(matches!(decode(doubled), DecodeError::Twice(_)));
    let mut unknown = good.clone();
    unknown.push(StateRecord::default());
    assert_eq!(decode(unknown), DecodeError::UnknownRecord);
    assert!(matches!(decode(good[..good.len() - 1].to_vec()), DecodeError::Window { .. }));
    let changed = |change: &dyn Fn(&mut StateMeta)| {
        let mut records = good.clone();
        if let Some(state_record::Kind::Meta(meta)) = &mut records[0].kind {
            change(meta);
        }
        decode(records)
    };
    assert_eq!(changed(&|meta| meta.format_version = 99), DecodeError::Format(99));
    assert!(matches!(changed(&|meta| meta.revision = 1), DecodeError::Future(_)));
    assert!(matches!(changed(&|meta| meta.service_cidr = "x".into()), DecodeError::Settings(_)));
    assert!(matches!(changed(&|meta| meta.service_cidr = "10.0.0.0/24".into()), DecodeError::Taken(_)));
}

#[test]
fn storage_may_keep_a_session_in_pieces() {
    let mut world = World::new();
    for sequence in 1..4 {
        world.run_entry(namespace_entry(request("c", sequence, 0), &format!("n{sequence}")));
    }
    let mut records: Vec<StateRecord> = world
        .snapshot
        .records()
        .filter(|record| !matches!(record.kind, Some(state_record::Kind::Session(_))))
        .collect();
    let piece = |session| StateRecord { kind: Some(state_record::Kind::Session(session)) };
    for sequence in 1..4 {
        let write = world.state().session_write("c", sequence).unwrap();
        records.push(piece(fairlead_proto::internal::v1::Session {
            client: "c".into(),
            writes: vec![write],
            ..Default::default()
        }));
    }
    records.push(piece(world.state().session("c").unwrap()));
    let again = Snapshot::from_records(records).unwrap();
    assert_eq!(again.state.digest_hex(), world.state().digest_hex());
    assert_eq!(again.records().collect::<Vec<_>>(), world.snapshot.records().collect::<Vec<_>>());
}
