//! Who may do what. Pure: a function of the bindings in the state, who calls and what it asks for. Denied unless allowed.
//!
//! A table gives every RPC of the clients' port its class; an RPC that isn't in it is refused, and a test compares it
//! with the descriptors. Where the namespace matters, the RPC's own function asks again.

use crate::api::status;
use crate::machine::State;
use crate::pki::Identity;
use crate::pki::identity::ADMINS;
use fairlead_proto::internal::v1::access_record;
use fairlead_proto::model::Key;
use fairlead_proto::v1::{Kind, Problem};
use tonic::{Code, Status};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// See objects, and what became of them.
    Read,
    /// Create, change, delete objects.
    Write,
    /// Say who may do what; change the cluster itself.
    Admin,
}

/// What somebody may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Writes.
    Editor,
    /// Everything.
    Admin,
}

impl Role {
    /// All, the least first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Editor, Self::Admin];

    /// As it is stored and typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Admin => "admin",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    fn may(self, verb: Verb) -> bool {
        match verb {
            Verb::Read => true,
            Verb::Write => self >= Self::Editor,
            Verb::Admin => self == Self::Admin,
        }
    }
}

impl Verb {
    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Admin].into_iter().find(|one| one.name() == name)
    }

    fn role(self) -> Role {
        match self {
            Self::Read => Role::Viewer,
            Self::Write => Role::Editor,
            Self::Admin => Role::Admin,
        }
    }
}

/// Who may call an RPC at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Everybody, also without a certificate.
    Public,
    /// Nodes.
    Node,
    /// Members and administrators.
    Member,
    /// Whoever has a certificate.
    Known,
    /// Users; the function decides by namespace.
    ByNamespace,
    /// Users who may do this in the whole cluster.
    Everywhere(Verb),
}

/// Every RPC of the clients' port.
pub const RPCS: &[(&str, Class)] = &[
    ("fairlead.v1.Bootstrap/Enroll", Class::Public),
    ("fairlead.v1.Bootstrap/Renew", Class::Node),
    ("fairlead.v1.Access/CreateToken", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Access/ListTokens", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Access/DeleteToken", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Access/IssueUser", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Access/Bind", Class::ByNamespace),
    ("fairlead.v1.Access/Unbind", Class::ByNamespace),
    ("fairlead.v1.Access/ListBindings", Class::Everywhere(Verb::Read)),
    ("fairlead.v1.Access/CanI", Class::Known),
    ("fairlead.v1.Access/Certificates", Class::Everywhere(Verb::Read)),
    ("fairlead.v1.Access/RotateAuthority", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Access/RetireAuthority", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Objects/Create", Class::ByNamespace),
    ("fairlead.v1.Objects/Apply", Class::ByNamespace),
    ("fairlead.v1.Objects/Update", Class::ByNamespace),
    ("fairlead.v1.Objects/Delete", Class::ByNamespace),
    ("fairlead.v1.Objects/Get", Class::ByNamespace),
    ("fairlead.v1.Objects/List", Class::ByNamespace),
    ("fairlead.v1.Objects/Watch", Class::ByNamespace),
    ("fairlead.v1.Objects/Revisions", Class::ByNamespace),
    ("fairlead.v1.Cluster/Status", Class::Everywhere(Verb::Read)),
    ("fairlead.v1.Cluster/WaitProgrammed", Class::Known),
    ("fairlead.v1.Cluster/Dataplane", Class::Everywhere(Verb::Read)),
    ("fairlead.v1.Cluster/History", Class::ByNamespace),
    ("fairlead.v1.Members/Join", Class::Member),
    ("fairlead.v1.Members/Promote", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Members/Remove", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Members/Drain", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Members/TransferLeader", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Maintenance/SaveSnapshot", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.Maintenance/Diagnose", Class::Everywhere(Verb::Admin)),
    ("fairlead.v1.NodeSync/Sync", Class::Node),
    ("grpc.health.v1.Health/Check", Class::Public),
    ("grpc.health.v1.Health/List", Class::Known),
    ("grpc.health.v1.Health/Watch", Class::Known),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Class::Known),
];

/// The name of an RPC, for metrics: those of others' are one.
#[must_use]
pub fn name(path: &str) -> &'static str {
    let rpc = path.strip_prefix('/').unwrap_or(path);
    RPCS.iter().map(|(name, _)| *name).find(|name| *name == rpc).unwrap_or("other")
}

/// Whether somebody may call an RPC, as far as its path says. `path` is `/service/method`.
///
/// # Errors
/// UNAUTHENTICATED without a certificate, else PERMISSION_DENIED.
pub fn call(state: &State, identity: &Identity, path: &str) -> Result<(), Status> {
    let rpc = path.strip_prefix('/').unwrap_or(path);
    let class = RPCS.iter().find(|(name, _)| *name == rpc).map(|(_, class)| *class);
    let refuse = || Err(denied(identity, &format!("{identity} may not call {rpc}")));
    match (class, identity) {
        (Some(Class::Public), _) | (_, Identity::Unsecured) => Ok(()),
        (_, Identity::Anonymous) => Err(denied(identity, "")),
        (Some(Class::Known), _)
        | (Some(Class::Node), Identity::Node(_))
        | (Some(Class::Member), Identity::Member(_))
        | (Some(Class::ByNamespace), Identity::User { .. }) => Ok(()),
        (Some(Class::Everywhere(verb)), Identity::User { .. }) => may(state, identity, (verb, "")),
        (Some(Class::Member), Identity::User { .. }) => may(state, identity, (Verb::Admin, "")),
        _ => refuse(),
    }
}

/// Whether somebody may do something in a namespace; the empty one means the whole cluster.
///
/// # Errors
/// UNAUTHENTICATED without a certificate, else PERMISSION_DENIED.
pub fn may(state: &State, identity: &Identity, (verb, namespace): (Verb, &str)) -> Result<(), Status> {
    if *identity == Identity::Unsecured || highest(state, identity, namespace).is_some_and(|role| role.may(verb)) {
        return Ok(());
    }
    let place = if namespace.is_empty() { "the whole cluster".to_owned() } else { format!("namespace {namespace:?}") };
    let role = verb.role().name();
    let hint = match (identity, namespace.is_empty()) {
        (Identity::User { .. }, true) => {
            format!(": an administrator gives it by `fairlead auth bind {identity} --role {role}`")
        }
        (Identity::User { .. }, false) => {
            format!(": an administrator gives it by `fairlead auth bind {identity} --role {role} -n {namespace}`")
        }
        _ => String::new(),
    };
    Err(denied(identity, &format!("{identity} has no role {role} in {place}{hint}")))
}

/// Whether somebody may do something with an object.
///
/// # Errors
/// As [`may`].
pub fn may_with(state: &State, identity: &Identity, (verb, key): (Verb, &Key)) -> Result<(), Status> {
    // Whoever may look into a namespace may see that it is there.
    let own = key.kind == Kind::Namespace && verb == Verb::Read;
    let namespace = if own { &key.name } else { &key.namespace };
    may(state, identity, (verb, namespace))
}

/// The highest role that somebody has in a namespace.
#[must_use]
pub fn highest(state: &State, identity: &Identity, namespace: &str) -> Option<Role> {
    let Identity::User { name, groups } = identity else {
        return None;
    };
    if groups.iter().any(|group| group == ADMINS) {
        return Some(Role::Admin);
    }
    let subjects = std::iter::once(format!("user:{name}")).chain(groups.iter().map(|group| format!("group:{group}")));
    let bound = subjects.flat_map(|subject| {
        let places = if namespace.is_empty() { vec![""] } else { vec!["", namespace] };
        places.into_iter().filter_map(move |place| {
            let record = state.access_record(&format!("{}{subject}/{place}", crate::machine::access::BINDINGS))?;
            match &record.kind {
                Some(access_record::Kind::Binding(binding)) => Role::named(&binding.role),
                _ => None,
            }
        })
    });
    bound.max()
}

fn denied(identity: &Identity, why: &str) -> Status {
    let (code, reason, message) = match identity {
        Identity::Anonymous => (
            Code::Unauthenticated,
            "Unauthorized",
            "no certificate was shown: give one in the client configuration (--config)".to_owned(),
        ),
        _ => (Code::PermissionDenied, "Forbidden", why.to_owned()),
    };
    status::status(code, Problem { reason: reason.into(), message, ..Problem::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::tests::World;
    use fairlead_proto::internal::v1::{AccessRecord, Binding, PutAccess, command};

    fn user(name: &str, groups: &[&str]) -> Identity {
        Identity::User { name: name.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    fn bind(world: &mut World, subject: &str, role: Role, namespace: &str) {
        let binding = Binding { subject: subject.into(), role: role.name().into(), namespace: namespace.into() };
        let record = Some(AccessRecord { kind: Some(access_record::Kind::Binding(binding)) });
        world.run(command::Kind::PutAccess(PutAccess { record, create: false }));
    }

    #[test]
    fn a_role_holds_where_it_was_given_and_nowhere_else() {
        let mut world = World::new();
        bind(&mut world, "user:bob", Role::Editor, "team");
        bind(&mut world, "group:ops", Role::Viewer, "");
        let state = &world.snapshot.state;
        let (bob, ann) = (user("bob", &[]), user("ann", &["ops", "other"]));
        for (identity, verb, namespace, allowed) in [
            (&bob, Verb::Read, "team", true),
            (&bob, Verb::Write, "team", true),
            (&bob, Verb::Admin, "team", false),
            (&bob, Verb::Read, "teams", false),
            (&bob, Verb::Read, "", false),
            (&ann, Verb::Read, "team", true),
            (&ann, Verb::Read, "", true),
            (&ann, Verb::Write, "team", false),
            (&user("ops", &[]), Verb::Read, "team", false),
            (&user("x", &["bob"]), Verb::Read, "team", false),
            (&user("root", &[ADMINS]), Verb::Admin, "", true),
            (&Identity::Unsecured, Verb::Admin, "", true),
            (&Identity::Anonymous, Verb::Read, "team", false),
            (&Identity::Node("bob".into()), Verb::Read, "team", false),
            (&Identity::Member("bob".into()), Verb::Read, "team", false),
        ] {
            assert_eq!(may(state, identity, (verb, namespace)).is_ok(), allowed, "{identity} {verb:?} {namespace}");
        }
        let namespace = |name: &str| Key::new(Kind::Namespace, "", name);
        assert!(may_with(state, &bob, (Verb::Read, &namespace("team"))).is_ok());
        assert!(may_with(state, &bob, (Verb::Write, &namespace("team"))).is_err());
        assert!(may_with(state, &bob, (Verb::Read, &namespace("other"))).is_err());
        let refused = may(state, &bob, (Verb::Write, "")).unwrap_err();
        assert!(refused.message().contains("fairlead auth bind user:bob --role editor"), "{refused:?}");
    }

    #[test]
    fn what_is_not_in_the_table_is_refused() {
        let world = World::new();
        let state = &world.snapshot.state;
        for path in ["/fairlead.v1.Objects/Nothing", "/", "", "/fairlead.internal.v1.Peer/Vote"] {
            assert!(call(state, &user("root", &[ADMINS]), path).is_err(), "{path}");
        }
    }
}
