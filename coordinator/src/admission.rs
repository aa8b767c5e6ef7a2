//! Lets in, to each of the services, who may use it.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use polo_transport::{Guard, Need, Peer, Refusal, Role};
use tonic::transport::server::TcpConnectInfo;

/// Answers a request, or refuses it.
pub async fn admit(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    if let Some(peer) = peer {
        // Where services look for the other end's address.
        request.extensions_mut().insert(TcpConnectInfo::from(peer));
    }
    let (need, token) = (need(request.uri().path()), token(request.headers()));
    match guard.admit(need, peer.and_then(|peer| peer.role), token) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(refusal, request.headers()),
    }
}

/// What a path asks for. Health says only that somebody serves, and the page has nothing of the run in it.
fn need(path: &str) -> Need {
    let is_of = |service: &str| path.strip_prefix('/').is_some_and(|path| path.starts_with(service));
    match path {
        "/" => Need::Nothing,
        _ if is_of("grpc.health.v1.Health/") => Need::Nothing,
        _ if is_of("grpc.reflection.") => Need::AnyRole,
        _ if is_of("polo.v1.Coordination/") => Need::Role(Role::Worker),
        _ => Need::Role(Role::Operator),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_health_and_the_empty_page_are_for_everybody() {
        for (path, needed) in [
            ("/", Need::Nothing),
            ("/grpc.health.v1.Health/Check", Need::Nothing),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::AnyRole),
            ("/polo.v1.Coordination/Session", Need::Role(Role::Worker)),
            ("/polo.v1.Control/Stop", Need::Role(Role::Operator)),
            ("/api/status", Need::Role(Role::Operator)),
            ("/metrics", Need::Role(Role::Operator)),
            ("//polo.v1.Coordination/Session", Need::Role(Role::Operator)),
            ("/anything", Need::Role(Role::Operator)),
        ] {
            assert_eq!(need(path), needed, "{path}");
        }
    }
}
