//! Lets in, to each of the services of a port, who may use it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tonic::{service::Routes, transport::server::TcpConnectInfo};

use crate::{Guard, Need, Peer, Refusal};

#[derive(Clone)]
struct Admission {
    guard: Arc<Guard>,
    need: fn(&str) -> Need,
}

/// `services`, as far as `guard` admits requests; what one needs is said by its path, such as `/package.Service/Method`.
pub fn guarded(services: Routes, guard: Guard, need: fn(&str) -> Need) -> Routes {
    let admission = Admission { guard: Arc::new(guard), need };
    services.into_axum_router().layer(from_fn_with_state(admission, admit)).into()
}

/// Answers a request, or refuses it.
async fn admit(State(admission): State<Admission>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    if let Some(peer) = peer {
        // Where services look for the other end's address.
        request.extensions_mut().insert(TcpConnectInfo::from(peer));
    }
    let (need, token) = ((admission.need)(request.uri().path()), token(request.headers()));
    match admission.guard.admit(need, peer.and_then(|peer| peer.role), token) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(refusal, request.headers()),
    }
}

fn token(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn refused(refusal: Refusal, headers: &HeaderMap) -> Response {
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    if headers.get(header::CONTENT_TYPE).is_some_and(is_grpc) {
        let status = match refusal {
            Refusal::Unknown => tonic::Status::unauthenticated(refusal.to_string()),
            Refusal::OtherRole(_) => tonic::Status::permission_denied(refusal.to_string()),
        };
        return status.into_http();
    }
    let code = match refusal {
        Refusal::Unknown => StatusCode::UNAUTHORIZED,
        Refusal::OtherRole(_) => StatusCode::FORBIDDEN,
    };
    (code, [(header::WWW_AUTHENTICATE, "Bearer")], refusal.to_string()).into_response()
}
