//! Certificates for tests, and nothing else: keys lie open in a folder.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};

/// Signs certificates. Panics where that fails, as tests do.
pub struct Authority {
    folder: PathBuf,
    name: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of a certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one, whose own certificate is `folder/name.pem`.
    pub fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = called(name);
        let certificate = params.self_signed(&key).expect("signed");
        let authority = Self { folder: folder.into(), name: name.into(), issuer: Issuer::new(params, key) };
        std::fs::write(authority.cert(), certificate.pem()).expect("written");
        authority
    }

    /// Its certificate.
    pub fn cert(&self) -> PathBuf {
        self.folder.join(format!("{}.pem", self.name))
    }

    /// A certificate for hosts (names or IP addresses) or roles, in `folder/file.pem` with its key in `folder/file.key`.
    pub fn issue(&self, file: &str, names: &[&str]) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name = called(file);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let path = |ending: &str| self.folder.join(format!("{file}.{ending}"));
        let issued = Issued { cert: path("pem"), key: path("key") };
        std::fs::write(&issued.cert, certificate.pem()).expect("written");
        std::fs::write(&issued.key, key.serialize_pem()).expect("written");
        issued
    }
}

/// Whoever has the name of the one who signed it counts as signed by itself, to some.
fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}
