//! THE request path of the server's side: from a request of the mesh (or of a plain client) to the own app.

use super::attempt::{self, Failed, Plan};
use super::exchange::Served;
use super::exchange::{Body, Request};
use super::flight::Flight;
use super::normalise;
use super::outbound::identify;
use crate::accept::stream;
use crate::worker::{Conn, Worker};
use http::HeaderValue;
use std::rc::Rc;
use weft_policy::listener::ForwardIdentity;
use weft_policy::reason::Reason;

pub async fn serve(worker: Rc<Worker>, conn: Rc<Conn>, mut request: Request) -> Served {
    let mut flight = Flight::begin(&worker, &conn, &request.head);

    // What a plain client says of itself or of its path through the mesh is not believed; a peer's sidecar is.
    let asked = match normalise::request(&mut request.head, conn.mesh) {
        Ok(asked) => asked,
        Err(reason) => return flight.refuse(&request.head, reason),
    };
    identify(&worker, &conn, &mut flight, &mut request.head);
    tell_identity(&worker, &conn, &mut request);

    let bound = {
        let snapshot = worker.shared.snapshot.load();
        match snapshot.fixed(&conn.listener.name) {
            Some(bound) => Some(bound.clone()),
            None => {
                let (kind, address) = stream::app(&conn.listener, conn.destination);
                worker.implied.get(kind, address, flight.record.started)
            }
        }
    };
    let Some(bound) = bound else { return flight.reject(Reason::Overload, false) };
    let route = bound.plan.default_route.clone();
    flight.record.service = Some(bound.plan.clone());
    flight.record.route = Some(route.clone());
    flight.record.backend = bound.plan.backends.first().cloned();
    let Some(backend) = bound.backends.first().cloned().flatten() else {
        return flight.reject(Reason::NoCluster, false);
    };
    if let Some(upgrade) = &asked.upgrade {
        request.head.fields.0.insert(http::header::UPGRADE, upgrade.clone());
        request.head.fields.0.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    }

    let plan = Plan {
        worker: &worker,
        conn: &conn,
        backend,
        began: flight.record.started,
        retry: &worker.retry_inbound,
        deadline: None,
        idle: None,
        hash: None,
        http2: asked.http2,
        leaving: asked.leaving,
    };
    let body = std::mem::replace(&mut request.body, Body::empty());
    let mut reply = match attempt::run(&plan, &mut flight, request.head, body).await {
        Ok(reply) => reply,
        Err(Failed { reason, retried }) => return flight.reject(reason, retried),
    };
    normalise::response(&mut reply.fields.0);
    if let (Some(upgrade), Some(_)) = (&asked.upgrade, &reply.upgrade) {
        reply.fields.0.insert(http::header::UPGRADE, upgrade.clone());
        reply.fields.0.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        flight.record.upgraded = true;
    }
    flight.answer(reply)
}

/// Writes down who the client proved to be, in the place of whatever was there.
fn tell_identity(worker: &Worker, conn: &Conn, request: &mut Request) {
    let fields = &mut request.head.fields.0;
    fields.remove(normalise::XFCC);
    fields.remove(normalise::L5D_CLIENT);
    let Some(identity) = &conn.peer.identity else { return };
    match conn.listener.forward_identity {
        ForwardIdentity::None => {}
        ForwardIdentity::Xfcc => {
            // The same for every request of a connection, so it is made once.
            let xfcc = conn.xfcc.get_or_init(|| {
                let own = worker.shared.identity.as_ref().and_then(|live| live.load().identity.spiffe().cloned());
                HeaderValue::from_str(&identity.xfcc(own.as_ref())).ok()
            });
            if let Some(xfcc) = xfcc {
                fields.insert(normalise::XFCC, xfcc.clone());
            }
        }
        ForwardIdentity::L5d => {
            let name = identity.spiffe.as_ref().map(|id| id.as_str().to_string());
            if let Some(Ok(value)) = name.map(HeaderValue::try_from) {
                fields.insert(normalise::L5D_CLIENT, value);
            }
        }
    }
}
