//! The machine version: which rules all members execute. It rises by a logged command only, once every member's program
//! knows the newer rules; until then what needs them is refused, by members of either version alike.
//!
//! INVARIANT: a member of an older program never meets a command, or a field of a record, that it doesn't know. One that
//! met it could only stop: to skip it, or to drop the field, would make its state another one.

use fairlead_proto::internal::v1::command;

/// The newest machine version that this program executes. A member whose state says a newer one
/// (`State::machine_version`) can't know what its entries mean and must stop.
pub const MACHINE_VERSION: u32 = 4;

/// The machine version that a command needs. Whoever adds a command, or a field to what a command carries, raises
/// [`MACHINE_VERSION`] and says so here.
#[must_use]
pub fn needed(command: &command::Kind) -> u32 {
    match command {
        // Events are objects.
        command::Kind::Put(put) if put.object.as_ref().is_some_and(|it| it.as_event().is_some()) => 4,
        // Owners of fields are kept with an object.
        command::Kind::Put(put) if put.object.as_ref().is_some_and(|it| !it.metadata().managed_fields.is_empty()) => 3,
        command::Kind::SetDrained(_) => 2,
        command::Kind::Put(_)
        | command::Kind::Delete(_)
        | command::Kind::ReportPods(_)
        | command::Kind::NodeUp(_)
        | command::Kind::ExpireNode(_)
        | command::Kind::SetMember(_)
        | command::Kind::RemoveMember(_)
        | command::Kind::SetMachineVersion(_)
        | command::Kind::InitCluster(_)
        | command::Kind::PutAccess(_)
        | command::Kind::DeleteAccess(_)
        | command::Kind::UseToken(_) => 1,
    }
}

/// What all members can execute, of what each says of itself (0 = 1); `None` = somebody did not answer.
#[must_use]
pub fn common(members: impl IntoIterator<Item = Option<u32>>) -> Option<u32> {
    members.into_iter().try_fold(u32::MAX, |least, one| Some(least.min(one?.max(1)))).filter(|least| *least != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::internal::v1::rejection::Code;
    use fairlead_proto::internal::v1::{Member, SetDrained, SetMachineVersion, SetMember};

    #[test]
    fn a_newer_command_is_refused_until_the_version_has_risen() {
        let mut world = World::new();
        let member = Member { id: 1, name: "a".into(), ..Member::default() };
        world.run(command::Kind::SetMember(SetMember { member: Some(member.clone()), join: false }));
        let drain = || command::Kind::SetDrained(SetDrained { id: 1, drained: true });
        let digest = world.snapshot.state.digest_hex();
        let refused = world.run(drain()).outcome.rejection.unwrap();
        assert_eq!(refused.code(), Code::Unsupported, "{refused:?}");
        assert!(refused.message.contains("version 2"), "{refused:?}");
        assert_ne!(world.snapshot.state.digest_hex(), digest, "entries are counted");
        assert!(world.snapshot.state.members().all(|member| !member.drained));
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 2 }));
        assert_eq!(world.run(drain()).outcome.rejection, None);
        // It stays, whatever the member tells of itself.
        world.run(command::Kind::SetMember(SetMember { member: Some(member), join: false }));
        assert!(world.snapshot.state.members().all(|member| member.drained));
        // A version never falls.
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 1 }));
        assert_eq!(world.snapshot.state.machine_version(), 2);
    }

    #[test]
    fn owners_of_fields_are_kept_once_every_member_knows_them() {
        use crate::machine::tests::{put_with, service};
        let mut world = World::new();
        let owned = || {
            let mut object: fairlead_proto::v1::Object = service("web").into();
            "[]".clone_into(&mut object.metadata_mut().unwrap().managed_fields);
            put_with(object, None)
        };
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 2 }));
        let refused = world.run(owned()).outcome.rejection.unwrap();
        assert_eq!(refused.code(), Code::Unsupported, "{refused:?}");
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 3 }));
        assert_eq!(world.run(owned()).outcome.rejection, None);
    }

    #[test]
    fn events_are_stored_once_every_member_knows_them() {
        let mut world = World::new();
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 3 }));
        let event = || crate::machine::tests::put_with(crate::machine::tests::event("a").into(), None);
        assert_eq!(world.run(event()).outcome.rejection.unwrap().code(), Code::Unsupported);
        world.run(command::Kind::SetMachineVersion(SetMachineVersion { version: 4 }));
        assert_eq!(world.run(event()).outcome.rejection, None);
    }

    #[test]
    fn all_members_can_execute_what_the_oldest_can() {
        assert_eq!(common([Some(2), Some(3), Some(2)]), Some(2));
        assert_eq!(common([Some(2), Some(0)]), Some(1), "one that says nothing is of the first");
        assert_eq!(common([Some(2), None]), None);
        assert_eq!(common([]), None);
    }
}
