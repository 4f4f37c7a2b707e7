//! The `Members` service: who belongs to the cluster. What is sound is decided in `raft/membership`.

use crate::api::guard::caller;
use crate::api::status;
use crate::audit::Audit;
use crate::pki::Identity;
use crate::raft::Consensus;
use crate::raft::membership::ManageError;
use fairlead_proto::internal::v1::{ManageResponse, manage_request::Change};
use fairlead_proto::v1::{
    DrainRequest, JoinRequest, JoinResponse, MemberChanged, Problem, PromoteRequest, RemoveRequest, TransferRequest,
    members_server,
};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};

/// The gRPC service.
#[derive(Clone)]
pub struct MembersService {
    /// This member's consensus.
    pub consensus: Consensus,
    /// Who changed what.
    pub audit: Option<Arc<Audit>>,
}

impl MembersService {
    async fn made(&self, who: (&Identity, &str), (name, change): (&str, Change)) -> Result<ManageResponse, Status> {
        let done = self.consensus.manage(change).await.map_err(|error| refused(&error));
        if let Some(audit) = &self.audit {
            audit.write_outcome(who, &format!("member {name:?}"), done.as_ref().map(|_| 0));
        }
        done
    }

    async fn changed(&self, who: (&Identity, &str), what: (&str, Change)) -> Result<Response<MemberChanged>, Status> {
        let made = self.made(who, what).await?;
        Ok(Response::new(made.changed.unwrap_or_default()))
    }
}

#[tonic::async_trait]
impl members_server::Members for MembersService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let who = caller(&request);
        let join = request.into_inner();
        if let Identity::Member(name) = &who
            && *name != join.name
        {
            return Err(Status::permission_denied(format!("{who} may not join as {:?}", join.name)));
        }
        let name = join.name.clone();
        let made = self.made((&who, "Join"), (&name, Change::Join(join))).await?;
        made.joined.map(Response::new).ok_or_else(|| Status::internal("the leader answered without an id"))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<MemberChanged>, Status> {
        let (who, promote) = (caller(&request), request.into_inner());
        self.changed((&who, "Promote"), (&promote.name.clone(), Change::Promote(promote))).await
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<MemberChanged>, Status> {
        let (who, remove) = (caller(&request), request.into_inner());
        self.changed((&who, "Remove"), (&remove.name.clone(), Change::Remove(remove))).await
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<MemberChanged>, Status> {
        let (who, drain) = (caller(&request), request.into_inner());
        self.changed((&who, "Drain"), (&drain.name.clone(), Change::Drain(drain))).await
    }

    async fn transfer_leader(&self, request: Request<TransferRequest>) -> Result<Response<MemberChanged>, Status> {
        let (who, transfer) = (caller(&request), request.into_inner());
        self.changed((&who, "TransferLeader"), (&transfer.name.clone(), Change::Transfer(transfer))).await
    }
}

fn refused(error: &ManageError) -> Status {
    let (code, reason) = match error {
        ManageError::NoMember(_) => (Code::NotFound, "NotFound"),
        ManageError::Refused(_) => (Code::FailedPrecondition, "Conflict"),
        ManageError::Moved | ManageError::Unavailable(_) => (Code::Unavailable, "ServiceUnavailable"),
    };
    status::status(code, Problem { reason: reason.into(), message: error.to_string(), ..Problem::default() })
}
