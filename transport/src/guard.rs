//! Who may do what.

use std::{net::SocketAddr, path::Path};

use crate::{TransportError, args::ServerArgs, token::Expected};

/// What somebody is to a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Trains. It is told the secrets of generations.
    Worker,
    /// Watches and steers.
    Operator,
}

impl Role {
    pub(crate) const ALL: [Self; 2] = [Self::Worker, Self::Operator];

    /// The DNS name that a client certificate of this role has.
    pub fn dns_name(self) -> &'static str {
        match self {
            Self::Worker => "worker.polo",
            Self::Operator => "operator.polo",
        }
    }
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it tells nobody anything of the run.
    Nothing,
    /// Some role.
    AnyRole,
    /// This role.
    Role(Role),
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It shows no role.
    #[error(
        "no valid token or certificate was shown; give a token with --token-file, or a certificate with --cert and --key"
    )]
    Unknown,
    /// It shows another role than it needs.
    #[error("this needs the role of {0:?}, and the token or certificate is of another; use the other one")]
    OtherRole(Role),
}

/// Decides who is admitted.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    tokens: Vec<(Role, Expected)>,
    asks_for_certificates: bool,
}

impl Guard {
    /// As the options say; an address that others can reach needs protection, or the word that it needs none.
    pub fn new(args: &ServerArgs, address: SocketAddr) -> Result<Self, TransportError> {
        let tokens = expected(args.worker_token_file.as_deref(), args.operator_token_file.as_deref())?;
        let guard = Self { tokens, asks_for_certificates: args.client_ca.is_some() };
        let exposed = |missing, remedy| Err(TransportError::Exposed { address, missing, remedy });
        match () {
            () if args.insecure || address.ip().is_loopback() => Ok(guard),
            () if args.tls_cert.is_none() => {
                exposed("without TLS they could read and change everything", "--tls-cert and --tls-key")
            }
            () if guard.is_open() => exposed(
                "nothing tells friends from strangers",
                "--worker-token-file and --operator-token-file, or --client-ca",
            ),
            () => Ok(guard),
        }
    }

    /// Whether everybody is admitted.
    pub fn is_open(&self) -> bool {
        self.tokens.is_empty() && !self.asks_for_certificates
    }

    /// Whether a request that shows a certificate of a role, or a token, may do what it wants.
    pub fn admit(&self, need: Need, certified: Option<Role>, token: Option<&str>) -> Result<(), Refusal> {
        if need == Need::Nothing || self.is_open() {
            return Ok(());
        }
        let role = certified.or_else(|| self.role_of(token?)).ok_or(Refusal::Unknown)?;
        match need {
            Need::Role(needed) if needed != role => Err(Refusal::OtherRole(needed)),
            _ => Ok(()),
        }
    }

    fn role_of(&self, token: &str) -> Option<Role> {
        self.tokens.iter().find(|(_, expected)| expected.is(token)).map(|(role, _)| *role)
    }
}

fn expected(worker: Option<&Path>, operator: Option<&Path>) -> Result<Vec<(Role, Expected)>, TransportError> {
    let files: Vec<_> = [(Role::Worker, worker), (Role::Operator, operator)]
        .into_iter()
        .filter_map(|(role, path)| Some((role, path?)))
        .collect();
    let tokens = files.iter().map(|(_, path)| crate::token::read(path)).collect::<Result<Vec<_>, _>>()?;
    if let ([one, other], [(_, worker), (_, operator)]) = (&tokens[..], &files[..])
        && one == other
    {
        return Err(TransportError::SameToken { worker: worker.into(), operator: operator.into() });
    }
    Ok(files.into_iter().map(|(role, path)| (role, Expected(path.into()))).collect())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    const WORKER: &str = "a-token-of-workers";
    const OPERATOR: &str = "a-token-of-operators";

    struct Files(tempfile::TempDir);

    impl Files {
        fn new() -> Self {
            let files = Self(tempfile::tempdir().expect("a folder"));
            files.write("worker", WORKER);
            files.write("operator", OPERATOR);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), format!("{text}\n")).expect("written");
        }

        fn args(&self) -> ServerArgs {
            let [worker, operator] = ["worker", "operator"].map(|name| Some(self.path(name)));
            ServerArgs { worker_token_file: worker, operator_token_file: operator, ..Default::default() }
        }

        fn guard(&self) -> Guard {
            Guard::new(&self.args(), local()).expect("a guard")
        }
    }

    fn local() -> SocketAddr {
        "127.0.0.1:7070".parse().expect("an address")
    }

    fn public() -> SocketAddr {
        "0.0.0.0:7070".parse().expect("an address")
    }

    #[test]
    fn each_token_has_its_role_only() {
        let (files, needs) = (Files::new(), Role::ALL.map(Need::Role));
        let guard = files.guard();
        let admit = |need, token| guard.admit(need, None, Some(token));
        assert_eq!(needs.map(|need| admit(need, WORKER)), [Ok(()), Err(Refusal::OtherRole(Role::Operator))]);
        assert_eq!(needs.map(|need| admit(need, OPERATOR)), [Err(Refusal::OtherRole(Role::Worker)), Ok(())]);
        assert_eq!(admit(Need::AnyRole, WORKER), Ok(()));
        assert_eq!(admit(Need::AnyRole, "a-token-of-strangers"), Err(Refusal::Unknown));
        assert_eq!(guard.admit(Need::AnyRole, None, None), Err(Refusal::Unknown));
        assert_eq!(guard.admit(Need::Nothing, None, None), Ok(()));
    }

    #[test]
    fn a_certificate_goes_before_a_token() {
        let guard = Files::new().guard();
        let need = Need::Role(Role::Worker);
        assert_eq!(guard.admit(need, Some(Role::Worker), None), Ok(()));
        assert_eq!(guard.admit(need, Some(Role::Operator), Some(WORKER)), Err(Refusal::OtherRole(Role::Worker)));
    }

    #[test]
    fn a_changed_token_counts_at_once_and_the_old_one_no_longer() {
        let files = Files::new();
        let (guard, need) = (files.guard(), Need::Role(Role::Worker));
        files.write("worker", "another-token-of-workers");
        assert_eq!(guard.admit(need, None, Some("another-token-of-workers")), Ok(()));
        assert_eq!(guard.admit(need, None, Some(WORKER)), Err(Refusal::Unknown));
        fs::remove_file(files.path("worker")).expect("removed");
        assert_eq!(guard.admit(need, None, Some("")), Err(Refusal::Unknown));
    }

    #[test]
    fn tokens_that_do_not_protect_are_refused() {
        let files = Files::new();
        files.write("worker", "short");
        let error = Guard::new(&files.args(), local()).expect_err("short").to_string();
        assert!(error.contains("has 5 bytes") && !error.contains("short"), "{error}");
        files.write("worker", OPERATOR);
        let error = Guard::new(&files.args(), local()).expect_err("the same").to_string();
        assert!(error.contains("the same token") && !error.contains(OPERATOR), "{error}");
    }

    #[test]
    fn an_address_for_others_needs_tls_and_proof_or_the_word_that_it_does_not() {
        let files = Files::new();
        let refused = |args: &ServerArgs| Guard::new(args, public()).map(drop).map_err(|error| error.to_string());
        let plain = ServerArgs::default();
        assert!(refused(&plain).is_err_and(|error| error.contains("without TLS")));
        assert!(refused(&files.args()).is_err_and(|error| error.contains("without TLS")));
        let tls = |args| ServerArgs { tls_cert: Some("cert".into()), tls_key: Some("key".into()), ..args };
        assert!(refused(&tls(plain.clone())).is_err_and(|error| error.contains("friends from strangers")));
        assert_eq!(refused(&tls(files.args())), Ok(()));
        assert_eq!(refused(&ServerArgs { client_ca: Some("ca".into()), ..tls(plain.clone()) }), Ok(()));
        assert_eq!(refused(&ServerArgs { insecure: true, ..plain }), Ok(()));
    }
}
