//! Clients of the three clouds' stores: settings, timeouts, retries, and the bound on requests in flight.
//!
//! Settings are the environment variables that each cloud's own tools read; what no variable names is asked of the
//! machine (web identity, workload identity, instance metadata), as the library does it.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::limit::LimitStore;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, Error, ObjectStore, Result, RetryConfig};

/// How long one operation goes on trying before it reports the store as unreachable.
pub(crate) const RETRY_LIMIT: Duration = Duration::from_secs(30);
/// The longest wait between two tries.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// More than fit into [`RETRY_LIMIT`] unless a store refuses at once and the jitter is short every time.
const MAX_RETRIES: usize = 100;

/// How long a single request may take, its body included.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long nothing may come from a server that was asked: less than [`RETRY_LIMIT`], so that a connection that has died
/// in silence is replaced.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Requests of one store at a time. Amazon's advice is tens to a machine; more only queue, there or here.
const MAX_REQUESTS_IN_FLIGHT: usize = 64;
/// Create-only puts of one store at a time, which go beside the others.
const MAX_CREATES_IN_FLIGHT: usize = 16;

/// A client that retries by itself, and one that never does.
pub(crate) type Clients = [Arc<dyn ObjectStore>; 2];

/// A setting's name and value.
pub(crate) type Setting = (String, String);

/// The part of an address before `://` that names a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cloud {
    Amazon,
    Google,
    Azure,
}

impl Cloud {
    /// The cloud of addresses with `scheme`.
    pub(crate) fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "s3" => Some(Self::Amazon),
            "gs" => Some(Self::Google),
            "az" => Some(Self::Azure),
            _ => None,
        }
    }

    /// Clients for `bucket`; `options` go before what `environment` says.
    pub(crate) fn connect(
        self,
        bucket: &str,
        environment: impl Iterator<Item = Setting>,
        options: &[Setting],
    ) -> Result<Clients> {
        let environment = self.relevant(environment);
        if self == Self::Amazon && names_unread_profile(&environment) {
            tracing::warn!(
                "AWS_PROFILE is not read; eval \"$(aws configure export-credentials --format env)\" puts its keys into the environment"
            );
        }
        match self {
            Self::Amazon => clients(configured::<AmazonS3Builder>(bucket, &environment, options)?),
            Self::Google => clients(configured::<GoogleCloudStorageBuilder>(bucket, &environment, options)?),
            Self::Azure => clients(configured::<MicrosoftAzureBuilder>(bucket, &environment, options)?),
        }
    }

    /// What of `environment` this cloud's own tools would read.
    fn relevant(self, environment: impl Iterator<Item = Setting>) -> Vec<Setting> {
        let prefixes: &[&str] = match self {
            Self::Amazon => &["AWS_"],
            Self::Google => &["GOOGLE_", "SERVICE_ACCOUNT", EMULATOR_HOST],
            Self::Azure => &["AZURE_", "IDENTITY_ENDPOINT"],
        };
        let of_emulator = |(name, value): Setting| match name.as_str() {
            EMULATOR_HOST => emulator(&value),
            _ => vec![(name, value)],
        };
        let is_relevant = |(name, _): &Setting| prefixes.iter().any(|prefix| name.starts_with(prefix));
        environment.filter(is_relevant).flat_map(of_emulator).collect()
    }
}

/// Where Google's own libraries look for a server that is not Google's. It knows no accounts.
const EMULATOR_HOST: &str = "STORAGE_EMULATOR_HOST";

fn emulator(host: &str) -> Vec<Setting> {
    let url = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
    // Asked to sign nothing, the library looks for an account all the same when it puts.
    vec![("GOOGLE_BASE_URL".into(), url), ("GOOGLE_BEARER_TOKEN".into(), "emulator".into())]
}

/// Whether the only credentials that are named are those of a profile, which the library does not read.
fn names_unread_profile(environment: &[Setting]) -> bool {
    let is_set = |prefix: &str| environment.iter().any(|(name, _)| name.starts_with(prefix));
    let read = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_"];
    is_set("AWS_PROFILE") && !read.into_iter().any(is_set)
}

/// What the library's three builders have in common.
trait Builder: Default + Clone {
    type Key: FromStr<Err = Error>;
    type Client: ObjectStore;
    fn of_bucket(self, bucket: &str) -> Self;
    fn client_options(self, options: ClientOptions) -> Self;
    fn set(self, key: Self::Key, value: &str) -> Self;
    fn allow_http(self) -> Self;
    /// Addresses of the server, where any are set.
    fn endpoints(&self) -> Vec<String>;
    fn retry(self, retries: RetryConfig) -> Self;
    fn build(self) -> Result<Self::Client>;
}

macro_rules! builder {
    ($builder:ty, $client:ty, $key:ident, $bucket:ident, [$($endpoint:ident),*]) => {
        impl Builder for $builder {
            type Key = $key;
            type Client = $client;

            fn of_bucket(self, bucket: &str) -> Self {
                self.$bucket(bucket)
            }

            fn client_options(self, options: ClientOptions) -> Self {
                self.with_client_options(options)
            }

            fn set(self, key: $key, value: &str) -> Self {
                self.with_config(key, value)
            }

            fn allow_http(self) -> Self {
                self.with_config($key::Client(ClientConfigKey::AllowHttp), "true")
            }

            fn endpoints(&self) -> Vec<String> {
                [$(self.get_config_value(&$key::$endpoint)),*].into_iter().flatten().collect()
            }

            fn retry(self, retries: RetryConfig) -> Self {
                self.with_retry(retries)
            }

            fn build(self) -> Result<$client> {
                <$builder>::build(self)
            }
        }
    };
}

builder!(AmazonS3Builder, object_store::aws::AmazonS3, AmazonS3ConfigKey, with_bucket_name, [Endpoint, S3Endpoint]);
builder!(
    GoogleCloudStorageBuilder,
    object_store::gcp::GoogleCloudStorage,
    GoogleConfigKey,
    with_bucket_name,
    [BaseUrl]
);
builder!(MicrosoftAzureBuilder, object_store::azure::MicrosoftAzure, AzureConfigKey, with_container_name, [Endpoint]);

/// Names of the environment that the library does not know are other programs'; unknown options are mistakes.
fn configured<B: Builder>(bucket: &str, environment: &[Setting], options: &[Setting]) -> Result<B> {
    let client = ClientOptions::new().with_timeout(REQUEST_LIMIT).with_read_timeout(SILENCE_LIMIT);
    let mut builder = B::default().client_options(client);
    for (name, value) in environment {
        if let Ok(key) = name.to_ascii_lowercase().parse() {
            builder = builder.set(key, value);
        }
    }
    for (name, value) in options {
        builder = builder.set(name.to_ascii_lowercase().parse()?, value);
    }
    // Whoever writes http:// means it.
    if builder.endpoints().iter().any(|url| url.starts_with("http://")) {
        builder = builder.allow_http();
    }
    Ok(builder.of_bucket(bucket))
}

fn clients<B: Builder>(builder: B) -> Result<Clients> {
    let objects = builder.clone().retry(retries(MAX_RETRIES)).build()?;
    let single_try = builder.retry(retries(0)).build()?;
    Ok([
        Arc::new(LimitStore::new(objects, MAX_REQUESTS_IN_FLIGHT)),
        Arc::new(LimitStore::new(single_try, MAX_CREATES_IN_FLIGHT)),
    ])
}

/// The library adds jitter.
fn retries(max_retries: usize) -> RetryConfig {
    let backoff = BackoffConfig { max_backoff: MAX_BACKOFF, ..BackoffConfig::default() };
    RetryConfig { backoff, max_retries, retry_timeout: RETRY_LIMIT }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Vec<Setting> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn amazon(environment: &[(&str, &str)], options: &[(&str, &str)]) -> Result<AmazonS3Builder> {
        let environment = Cloud::Amazon.relevant(settings(environment).into_iter());
        configured("b", &environment, &settings(options))
    }

    #[test]
    fn options_go_before_the_environment_and_the_address_before_both() {
        let environment =
            [("AWS_REGION", "eu-north-1"), ("AWS_BUCKET", "other"), ("AWS_TIMEOUT", "7 seconds"), ("AWS_PAGER", "")];
        let built = amazon(&environment, &[("AWS_REGION", "eu-west-3")]).expect("understood");
        let value = |key| built.get_config_value(&key);
        assert_eq!(value(AmazonS3ConfigKey::Region).as_deref(), Some("eu-west-3"));
        assert_eq!(value(AmazonS3ConfigKey::Bucket).as_deref(), Some("b"));
        assert_eq!(value(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout)).as_deref(), Some("7 seconds"));
        let error = amazon(&[], &[("AWS_PAGER", "")]).expect_err("no such option").to_string();
        assert!(error.contains("aws_pager"), "{error}");
    }

    #[test]
    fn each_cloud_reads_its_own_variables_only() {
        let all = settings(&[
            ("AWS_ROLE_ARN", "a"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "g"),
            ("AZURE_FEDERATED_TOKEN_FILE", "z"),
            ("HOME", "h"),
        ]);
        let names = |cloud: Cloud| {
            cloud.relevant(all.clone().into_iter()).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names(Cloud::Amazon), ["AWS_ROLE_ARN"]);
        assert_eq!(names(Cloud::Google), ["GOOGLE_APPLICATION_CREDENTIALS"]);
        assert_eq!(names(Cloud::Azure), ["AZURE_FEDERATED_TOKEN_FILE"]);
    }

    #[test]
    fn a_profile_alone_is_spoken_of() {
        let profile = ("AWS_PROFILE", "research");
        assert!(names_unread_profile(&settings(&[profile, ("AWS_REGION", "eu-north-1")])));
        assert!(!names_unread_profile(&settings(&[profile, ("AWS_ACCESS_KEY_ID", "k")])));
        assert!(!names_unread_profile(&settings(&[("AWS_REGION", "eu-north-1")])));
    }

    #[test]
    fn an_emulator_of_google_needs_no_account() {
        let environment = Cloud::Google.relevant(settings(&[(EMULATOR_HOST, "localhost:4443")]).into_iter());
        let built: GoogleCloudStorageBuilder = configured("b", &environment, &[]).expect("understood");
        assert_eq!(built.endpoints(), ["http://localhost:4443"]);
        assert_eq!(built.get_config_value(&GoogleConfigKey::BearerToken).as_deref(), Some("emulator"));
    }

    #[test]
    fn plain_http_is_allowed_where_the_endpoint_asks_for_it() {
        let allowed = |name, endpoint| {
            let built = amazon(&[(name, endpoint)], &[]).expect("understood");
            built.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp)).as_deref() == Some("true")
        };
        assert!(allowed("AWS_ENDPOINT_URL", "http://10.0.0.1:9000"));
        assert!(allowed("AWS_ENDPOINT_URL_S3", "http://10.0.0.1:9000"));
        assert!(!allowed("AWS_ENDPOINT_URL", "https://s3.example.org"));
    }
}
