//! Certificates and keys from PEM files.

use std::{path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use webpki::EndEntityCert;

use crate::{Role, TransportError};

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A certificate, those above it, and its key.
pub(crate) struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TransportError> {
        let chain = certificates(cert)?;
        let pem = bytes(key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| unusable(key, "a private key", e.to_string()))?;
        Ok(Self { chain, key })
    }
}

/// Those who sign.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, TransportError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| unusable(path, "certificates", e.to_string()))?;
    }
    Ok(roots)
}

/// Whom this machine trusts.
pub(crate) fn native_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    found.errors.iter().for_each(|error| tracing::debug!(%error, "some of the machine's certificates cannot be read"));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    roots
}

/// The role that a certificate, which has been verified, is for.
pub(crate) fn role(certificate: &CertificateDer<'_>) -> Option<Role> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let is_for = |role: &Role| {
        let name = ServerName::try_from(role.dns_name()).ok();
        name.is_some_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    };
    Role::ALL.into_iter().find(is_for)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let pem = bytes(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| unusable(path, "certificates", e.to_string()))?;
    if found.is_empty() {
        return Err(unusable(path, "certificates", "there is none".into()));
    }
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>, TransportError> {
    std::fs::read(path).map_err(|source| TransportError::Read { path: path.into(), source })
}

fn unusable(path: &Path, needed: &'static str, problem: String) -> TransportError {
    TransportError::Pem { path: path.into(), problem, needed }
}
