//! Who may use which of the services.

use polo_transport::{Need, Role};

/// What a path asks for. Health says only that somebody serves, and the page has nothing of the run in it.
pub fn need(path: &str) -> Need {
    let is_of = |service: &str| path.strip_prefix('/').is_some_and(|path| path.starts_with(service));
    match path {
        "/" => Need::Nothing,
        _ if is_of("grpc.health.v1.Health/") => Need::Nothing,
        _ if is_of("grpc.reflection.") => Need::AnyRole,
        _ if is_of("polo.v1.Coordination/") => Need::Role(Role::Worker),
        _ => Need::Role(Role::Operator),
    }
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
