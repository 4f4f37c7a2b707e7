//! The servers of the cluster, as the state knows them: names, addresses, and ids that are never given twice. Who votes is
//! Raft's to say.

use crate::machine::draft::Draft;
use crate::machine::{Done, State, outcome};
use fairlead_proto::internal::v1::{Member, Rejection, RemoveMember, SetDrained, SetMember, rejection::Code};
use fairlead_proto::model::Invalid;
use fairlead_proto::v1::WriteEffect;

/// An id for a member of this name that nobody has or had: `first` if it is free, else the first free one that `again`
/// makes of a number.
#[must_use]
pub fn free_id(state: &State, first: u64, again: impl Fn(u32) -> u64) -> u64 {
    let is_free = |id: &u64| !state.is_retired(*id) && state.members().all(|member| member.id != *id);
    std::iter::once(first).chain((1..).map(again)).find(is_free).unwrap_or(first)
}

/// A member tells its addresses, or joins.
pub(super) fn set(draft: &mut Draft<'_>, set: &SetMember) -> Result<Done, Rejection> {
    let member = set.member.as_ref().ok_or_else(|| outcome::invalid_command(&[Invalid::required("member", "")]))?;
    if draft.state.is_retired(member.id) {
        return Err(refused(Code::Forbidden, format!("member {} was removed and can't come back", member.name)));
    }
    if set.join {
        let taken = |other: &Member| other.id == member.id || other.name == member.name;
        let told = |member: &Member| Member { drained: false, ..member.clone() };
        if draft.state.members().any(|other| taken(other) && told(other) != told(member)) {
            return Err(refused(Code::AlreadyExists, format!("a member is called {} already", member.name)));
        }
    }
    // Whether it may lead is not its own to tell.
    let drained = draft.state.members().any(|known| known.id == member.id && known.drained);
    Ok(Done::configured(draft.state.set_member(Member { drained, ..member.clone() })))
}

/// A member is not to lead, or may again.
pub(super) fn set_drained(draft: &mut Draft<'_>, set: &SetDrained) -> Result<Done, Rejection> {
    let Some(member) = draft.state.members().find(|member| member.id == set.id).cloned() else {
        return Err(refused(Code::NotFound, format!("there is no member {}", set.id)));
    };
    Ok(Done::configured(draft.state.set_member(Member { drained: set.drained, ..member })))
}

/// A member left.
pub(super) fn remove(draft: &mut Draft<'_>, remove: &RemoveMember) -> Result<Done, Rejection> {
    if !draft.state.remove_member(remove.id) && !draft.state.is_retired(remove.id) {
        return Err(refused(Code::NotFound, format!("there is no member {}", remove.id)));
    }
    Ok(Done::effect(WriteEffect::Deleted))
}

fn refused(code: Code, message: String) -> Rejection {
    Rejection { code: code as i32, message, causes: Vec::new(), key: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::internal::v1::command::Kind;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.into(), ..Member::default() }
    }

    #[test]
    fn an_id_is_given_once_and_a_name_to_one_at_a_time() {
        let mut world = World::new();
        let mut run = |kind: Kind| world.run(kind).outcome.rejection.map(|rejection| rejection.code());
        let join = |member: Member| Kind::SetMember(SetMember { member: Some(member), join: true });
        assert_eq!(run(join(member(1, "a"))), None);
        assert_eq!(run(join(member(1, "a"))), None);
        assert_eq!(run(join(member(2, "a"))), Some(Code::AlreadyExists));
        assert_eq!(run(join(member(1, "b"))), Some(Code::AlreadyExists));
        assert_eq!(run(Kind::RemoveMember(RemoveMember { id: 1 })), None);
        assert_eq!(run(join(member(1, "a"))), Some(Code::Forbidden));
        assert_eq!(
            run(Kind::SetMember(SetMember { member: Some(member(1, "a")), join: false })),
            Some(Code::Forbidden)
        );
        assert_eq!(free_id(&world.snapshot.state, 1, |round| u64::from(round) + 7), 8);
        assert_eq!(free_id(&world.snapshot.state, 5, |_| 0), 5);
    }
}
