//! Certificates and tokens of a run: files from Secrets, and the variables that tell Polo's programs where they are. The
//! names of a certificate's keys are those of Secrets of type `kubernetes.io/tls` as cert-manager fills them.

use k8s_openapi::api::core::v1::{
    EnvVar, KeyToPath, ProjectedVolumeSource, SecretProjection, Volume, VolumeMount, VolumeProjection,
};

use super::pod::{mount, some, variable};
use crate::{names::Component, submission::TlsSecrets};

const VOLUME: &str = "protection";
const FOLDER: &str = "/etc/polo-protection";
/// For the owner, and the group that the pod is in.
const READABLE: i32 = 0o440;

const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
const WORKER_TOKEN: &str = "worker-token";
const OPERATOR_TOKEN: &str = "operator-token";

/// A file of a Secret, and the variable that names it to the program.
struct File<'a> {
    secret: &'a str,
    key: &'static str,
    variable: &'static str,
}

/// The coordinator has its certificate and knows what workers and people show; a worker knows who signs the coordinator's
/// certificate and has what it shows itself, but neither the coordinator's key nor the operators' token.
fn files(tls: &TlsSecrets, component: Component) -> Vec<File<'_>> {
    let of = |secret| move |(key, variable)| File { secret, key, variable };
    let tokens = tls.tokens.as_deref();
    match component {
        Component::Coordinator => {
            let own = [(CERT, "POLO_TLS_CERT"), (KEY, "POLO_TLS_KEY")].map(of(&tls.coordinator));
            let authority = tls.worker.as_ref().map(|_| of(&tls.coordinator)((CA, "POLO_CLIENT_CA")));
            let tokens = tokens.map(|secret| {
                [(WORKER_TOKEN, "POLO_WORKER_TOKEN_FILE"), (OPERATOR_TOKEN, "POLO_OPERATOR_TOKEN_FILE")].map(of(secret))
            });
            own.into_iter().chain(authority).chain(tokens.into_iter().flatten()).collect()
        }
        Component::Worker => {
            let authority = of(&tls.coordinator)((CA, "POLO_CA"));
            let own = tls.worker.as_ref().map(|secret| [(CERT, "POLO_CERT"), (KEY, "POLO_KEY")].map(of(secret)));
            let token = tokens.map(|secret| of(secret)((WORKER_TOKEN, "POLO_TOKEN_FILE")));
            [authority].into_iter().chain(own.into_iter().flatten()).chain(token).collect()
        }
    }
}

/// Where the files are.
pub fn env(tls: &TlsSecrets, component: Component) -> Vec<EnvVar> {
    let path = |file: File<'_>| variable(file.variable, &format!("{FOLDER}/{}", file.key));
    files(tls, component).into_iter().map(path).collect()
}

/// All files of a pod, whichever Secrets they come from; they change in place when those do.
pub fn volume(tls: &TlsSecrets, component: Component) -> Volume {
    let item = |file: &File<'_>| KeyToPath { key: file.key.into(), path: file.key.into(), ..KeyToPath::default() };
    let projection = |files: &[File<'_>]| {
        let items = some(files.iter().map(item).collect());
        let secret = SecretProjection { name: files[0].secret.into(), items, optional: None };
        VolumeProjection { secret: Some(secret), ..VolumeProjection::default() }
    };
    let files = files(tls, component);
    let sources = some(files.chunk_by(|one, other| one.secret == other.secret).map(projection).collect());
    let projected = Some(ProjectedVolumeSource { default_mode: Some(READABLE), sources, ..Default::default() });
    Volume { name: VOLUME.into(), projected, ..Volume::default() }
}

pub fn volume_mount() -> VolumeMount {
    mount(VOLUME, FOLDER, true)
}
