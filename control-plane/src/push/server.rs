//! The API's three calls. Who may call is known before anything of the message is looked at.

use super::session;
use super::siblings::Siblings;
use crate::identity::attest::{Attest, AttestError, Attested};
use crate::identity::ca::seconds;
use crate::identity::sign::{SignError, Signer};
use crate::identity::{Authority, Caller};
use crate::report::Edges;
use crate::status::{Status as Known, add, count};
use crate::world::Current;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1::mesh_server::Mesh;
use weft_proto::v1::{
    ReportRequest, ReportResponse, SignRequest, SignResponse, TrustBundle, WatchRequest, WatchResponse,
};

/// Signing at a time, and how long the others wait.
const SIGNERS: usize = 8;
const SIGN_WAIT: Duration = Duration::from_secs(5);
/// Messages of a report are taken no faster.
const REPORTS: Duration = Duration::from_millis(20);

/// What a connection's handshake has proven; put into every request by whoever accepts connections.
#[derive(Clone, Debug)]
pub struct Connection {
    pub caller: Option<Arc<Caller>>,
    pub address: SocketAddr,
}

#[derive(Clone)]
pub struct Server {
    pub signer: Arc<Signer>,
    pub authority: watch::Receiver<Arc<Authority>>,
    pub worlds: watch::Receiver<Arc<Current>>,
    pub known: Arc<Known>,
    pub edges: Arc<Edges>,
    pub signing: Arc<Semaphore>,
    /// In Kubernetes: by whom tokens are judged, and whether a certificate's pod is still there.
    pub attest: Option<Arc<Attest>>,
    pub siblings: Arc<Siblings>,
}

impl Server {
    pub fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(SIGNERS))
    }

    /// What Kubernetes says of a token, or of the pod of a certificate that shall be renewed.
    async fn attested(&self, token: &str, caller: Option<&Caller>) -> Result<Option<Attested>, AttestError> {
        match (&self.attest, token, caller) {
            (Some(attest), "", Some(caller)) => attest.still(caller).await.map(|()| None),
            (None, ..) | (_, "", _) => Ok(None),
            (Some(attest), token, _) => attest.token(token).await.map(Some),
        }
    }

    fn refuse(&self, error: &SignError, address: Option<SocketAddr>) -> Status {
        count(&self.known.counters.sign_refused);
        tracing::warn!(%error, ?address, "no certificate signed");
        refusal(error)
    }

    /// Who calls, and that it still is who it was.
    async fn caller<T>(&self, request: &Request<T>) -> Result<(Arc<Caller>, SocketAddr), Status> {
        let (caller, address) = caller(request, &self.known)?;
        if let Some(attest) = &self.attest
            && let Err(error) = attest.still(&caller).await
        {
            tracing::warn!(%error, %address, "refused: the certificate's pod is gone");
            return Err(Status::unauthenticated(error.to_string()));
        }
        Ok((caller, address))
    }
}

fn caller<T>(request: &Request<T>, known: &Known) -> Result<(Arc<Caller>, SocketAddr), Status> {
    let connection = request.extensions().get::<Connection>();
    let proven = connection.and_then(|c| Some((c.caller.clone()?, c.address)));
    let (caller, address) = proven.ok_or_else(|| {
        count(&known.counters.unproven);
        let address = connection.map(|c| c.address);
        tracing::warn!(?address, "refused: no certificate of a pod of the mesh");
        Status::unauthenticated("this needs a certificate of a pod of the mesh: call Sign first")
    })?;
    if !caller.counts(SystemTime::now()) {
        return Err(Status::unauthenticated("the certificate of this connection has ended"));
    }
    Ok((caller, address))
}

#[tonic::async_trait]
impl Mesh for Server {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let connection = request.extensions().get::<Connection>();
        let (caller, address) = (connection.and_then(|c| c.caller.clone()), connection.map(|c| c.address));
        let request = request.into_inner();
        // Before there is room: a slow API server must not keep those out who need no word of it.
        let attested = match self.attested(&request.join_token, caller.as_deref()).await {
            Ok(attested) => attested,
            Err(error) => return Err(self.refuse(&error.into(), address)),
        };
        let room = tokio::time::timeout(SIGN_WAIT, self.signing.clone().acquire_owned()).await;
        let Ok(Ok(room)) = room else { return Err(Status::resource_exhausted("too many certificates at once: wait")) };
        let (signer, ca) = (self.signer.clone(), self.authority.borrow().clone());
        let now = SystemTime::now();
        let signed = tokio::task::spawn_blocking(move || {
            let signed = match attested {
                Some(pod) => signer.sign_attested(&ca, &request.csr, pod, now),
                None => signer.sign(&ca, &request.csr, &request.join_token, caller.as_deref(), now),
            };
            drop(room);
            signed.map(|(subject, issued)| (subject, issued, ca))
        });
        match signed.await {
            Ok(Ok((subject, issued, ca))) => {
                count(&self.known.counters.signed);
                tracing::info!(identity = %subject.id, pod = %subject.pod, serial = %issued.serial, "certificate signed");
                let roots = ca.roots.iter().map(|r| r.der.to_vec()).collect();
                Ok(Response::new(SignResponse {
                    chain: vec![issued.der.to_vec()],
                    trust: vec![TrustBundle { trust_domain: ca.domain.to_string(), roots }],
                    renew_after_seconds: renew_after(issued.not_after.saturating_sub(seconds(now)), &issued.serial),
                }))
            }
            Ok(Err(error)) => Err(self.refuse(&error, address)),
            Err(_) => Err(Status::internal("signing failed")),
        }
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (caller, address) = self.caller(&request).await?;
        let seat = self.known.enter(&caller.pod, &caller.id, Some(address));
        let seat = seat.ok_or_else(|| Status::resource_exhausted("this pod has several streams already"))?;
        let requests = request.into_inner();
        // Two messages: one on its way and one behind it.
        let (out, stream) = mpsc::channel(2);
        let (worlds, siblings) = (self.worlds.clone(), self.siblings.clone());
        tokio::spawn(async move {
            let pod = caller.pod.clone();
            tracing::debug!(pod = %pod.name, namespace = %pod.namespace, %address, "stream begins");
            if let Err(status) = session::run(caller, seat, requests, out.clone(), worlds, siblings).await {
                tracing::debug!(pod = %pod.name, namespace = %pod.namespace, why = status.message(), "stream ends");
                // Without room there is nobody who would read it.
                let _ = out.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn report(&self, request: Request<Streaming<ReportRequest>>) -> Result<Response<ReportResponse>, Status> {
        let (caller, _) = self.caller(&request).await?;
        let seat = self.edges.enter(&caller.pod);
        let _seat = seat.ok_or_else(|| Status::resource_exhausted("this pod reports too often"))?;
        let mut pace = tokio::time::interval(REPORTS);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reports = request.into_inner();
        while let Some(report) = reports.message().await? {
            if !caller.counts(SystemTime::now()) {
                return Err(Status::unauthenticated("the certificate of this connection has ended"));
            }
            pace.tick().await;
            count(&self.known.counters.reports);
            let current = self.worlds.borrow().clone();
            let workload = current.view.workload(&caller.pod, &caller.id).unwrap_or(&caller.pod.name);
            add(&self.known.counters.edges_dropped, self.edges.add(&caller, workload, report.edges));
        }
        Ok(Response::new(ReportResponse {}))
    }
}

fn refusal(error: &SignError) -> Status {
    let text = error.to_string();
    match error {
        SignError::Request(_) => Status::invalid_argument(text),
        SignError::OtherIdentity { .. } => Status::permission_denied(text),
        SignError::Nobody | SignError::Expired => Status::unauthenticated(text),
        SignError::Token(crate::identity::token::TokenError::Refused) => Status::unauthenticated(text),
        SignError::Attest(AttestError::Refused(_)) => Status::unauthenticated(text),
        SignError::Attest(AttestError::Away(_)) => Status::unavailable(text),
        SignError::TooMany(_) => Status::resource_exhausted(text),
        // Of what is wrong here, the log says more.
        SignError::Token(_) | SignError::Ca(_) => Status::unavailable("the authority cannot sign at the moment"),
    }
}

/// Half of the lifetime, a tenth of that more or less, so that what began together does not renew together.
fn renew_after(lifetime: u64, serial: &str) -> u64 {
    let digits = serial.get(2..6).unwrap_or_default();
    let jitter = u64::from_str_radix(digits, 16).unwrap_or(0x8000) % 201;
    (lifetime * 500 * (900 + jitter) / 1_000_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_at_half_of_the_life_give_or_take() {
        for n in 0..0xffff {
            let after = renew_after(86_400, &format!("40{n:04x}"));
            assert!((38_880..=47_520).contains(&after), "{after}");
        }
        assert_eq!(renew_after(1, ""), 1);
    }
}
