//! The `Maintenance` service: backups, streamed from one consistent view; and how this server is doing.

use crate::api::guard::caller;
use crate::api::status;
use crate::audit::Audit;
use crate::http::RenderMetrics;
use crate::raft::Consensus;
use crate::storage::backup;
use crate::write::{now_ms, rfc3339};
use fairlead_proto::v1::{
    DiagnoseRequest, DiagnoseResponse, Kind, SaveSnapshotRequest, SnapshotPart, maintenance_server,
};
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Bytes of one part.
const PART: usize = 256 * 1024;
/// Parts that wait for the caller.
const WAITING: usize = 4;

type Part = Result<SnapshotPart, Status>;

/// The gRPC service.
#[derive(Clone)]
pub struct MaintenanceService {
    /// This member's consensus.
    pub consensus: Consensus,
    /// Who took a backup: it holds the authorities' keys.
    pub audit: Option<Arc<Audit>>,
    /// This server's settings, without anything secret, a JSON object.
    pub settings: Arc<str>,
    /// Renders its metrics.
    pub render: RenderMetrics,
}

#[tonic::async_trait]
impl maintenance_server::Maintenance for MaintenanceService {
    type SaveSnapshotStream = ReceiverStream<Part>;

    async fn save_snapshot(
        &self,
        request: Request<SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        let who = caller(&request);
        if !request.into_inner().stale {
            self.consensus.read().await.map_err(|error| status::unreadable(&error))?;
        }
        let (view, position) = self.consensus.position();
        let revision = view.state.revision();
        if let Some(audit) = &self.audit {
            audit.write_outcome((&who, "SaveSnapshot"), "snapshot", Ok(revision));
        }
        let (to, parts) = mpsc::channel(WAITING);
        tokio::task::spawn_blocking(move || {
            let written = backup::write(BufWriter::with_capacity(PART, Parts(to.clone())), &view, position);
            let last = match written {
                Ok(()) => Ok(SnapshotPart { revision, last: true, ..SnapshotPart::default() }),
                Err(error) => Err(Status::internal(error.to_string())),
            };
            // A caller that is gone needs no last word.
            let _ = to.blocking_send(last);
        });
        Ok(Response::new(ReceiverStream::new(parts)))
    }

    async fn diagnose(&self, _: Request<DiagnoseRequest>) -> Result<Response<DiagnoseResponse>, Status> {
        let snapshot = self.consensus.local();
        let count = |kind: Kind| (kind.plural().to_owned(), snapshot.state.list(kind, "").count() as u64);
        Ok(Response::new(DiagnoseResponse {
            server: self.consensus.status().name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: rfc3339(now_ms()),
            settings_json: self.settings.to_string(),
            raft: self.consensus.describe_raft(),
            metrics: (self.render)(),
            objects: Kind::ALL.into_iter().map(count).collect(),
        }))
    }
}

/// Sends what is written; a caller that doesn't take it holds it up, and nothing else.
struct Parts(mpsc::Sender<Part>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = SnapshotPart { data: bytes.to_vec(), ..SnapshotPart::default() };
        self.0.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
