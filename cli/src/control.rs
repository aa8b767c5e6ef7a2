//! Talking to a running coordinator.

use std::time::Duration;

use clap::Args;
use polo_kubernetes::Forward;
use polo_log::say;
use polo_proto::v1::{CheckpointRequest, DrainRequest, GetStatusRequest, StopRequest, control_client::ControlClient};
use polo_transport::{ClientArgs, Credentials};
use tonic::{
    Code,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Error},
};

use crate::{error::CliError, kubernetes::ClusterArgs};

/// For a connection, for an answer, and for a sign of life while nothing is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which coordinator is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct AddressArgs {
    /// Where the coordinator listens
    #[arg(long, env = "POLO_COORDINATOR", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    address: String,
    /// A run on Kubernetes, instead of an address; its coordinator is reached through the cluster's API server
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    protection: ClientArgs,
}

/// What commands ask a coordinator with.
pub type Client = ControlClient<InterceptedService<Channel, Credentials>>;

/// A coordinator that is listened to.
pub struct Coordinator {
    /// What it is asked with.
    pub client: Client,
    /// What it is called in messages.
    pub place: String,
}

impl AddressArgs {
    /// An address without protection.
    pub fn to(url: &str) -> Self {
        Self { address: url.into(), ..Self::default() }
    }

    /// Reaches the coordinator, within a bounded time.
    pub async fn connect(&self) -> Result<Coordinator, CliError> {
        match &self.run {
            Some(run) => self.connect_to_run(run).await,
            None => self.connect_to_address().await,
        }
    }

    async fn connect_to_address(&self) -> Result<Coordinator, CliError> {
        let client = polo_transport::Client::new(self.protection.clone());
        let (endpoint, credentials) = client.prepare(&self.address)?;
        let channel = client.connect(patient(endpoint)).await;
        let place = self.address.clone();
        Ok(Coordinator { client: asking(channel, credentials, &place)?, place })
    }

    async fn connect_to_run(&self, run: &str) -> Result<Coordinator, CliError> {
        let cluster = self.cluster.open().await?;
        let place = format!("run {run} in namespace {}", cluster.namespace());
        let transport = polo_transport::Client::new(self.protection.clone());
        // Unencrypted, it is so within the API server's own encryption only.
        let url = match self.protection.ca {
            Some(_) => format!("https://{}", polo_kubernetes::coordinator_host(run)),
            None => "http://localhost".into(),
        };
        let (endpoint, credentials) = transport.prepare(&url)?;
        let Forward { stream, refusal } = cluster.connect_to_coordinator(run).await?;
        let channel = transport.connect_over(patient(endpoint), stream).await;
        let mut client = asking(channel, credentials, &place)?;
        // The way is open before it is known whether somebody listens at its end: an answer tells.
        tokio::select! {
            biased;
            refusal = refusal => return Err(refusal.into()),
            answer = client.get_status(GetStatusRequest {}) => answer.map_err(refused(&place))?,
        };
        Ok(Coordinator { client, place })
    }
}

/// Arguments of `polo drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The worker's name, as `polo status` shows it
    pub worker: String,
    #[command(flatten)]
    address: AddressArgs,
}

fn patient(endpoint: Endpoint) -> Endpoint {
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    endpoint.http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE)
}

fn asking(channel: Result<Channel, Error>, credentials: Credentials, place: &str) -> Result<Client, CliError> {
    let channel =
        channel.map_err(|error| CliError::Unreachable { address: place.into(), problem: innermost(&error) })?;
    Ok(ControlClient::with_interceptor(channel, credentials))
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |e| e.source()).last().map(ToString::to_string).unwrap_or_default()
}

/// The coordinator's refusal as an error.
pub fn refused(address: &str) -> impl Fn(tonic::Status) -> CliError {
    let address = address.to_string();
    move |status| match status.code() {
        Code::Cancelled | Code::DeadlineExceeded => {
            let problem = format!("no answer within {} s", PATIENCE.as_secs());
            CliError::Unreachable { address: address.clone(), problem }
        }
        _ => CliError::Refused { address: address.clone(), problem: status.message().to_string() },
    }
}

/// `polo checkpoint`.
pub async fn checkpoint(args: AddressArgs) -> Result<(), CliError> {
    let Coordinator { mut client, place } = args.connect().await?;
    client.checkpoint(CheckpointRequest {}).await.map_err(refused(&place))?;
    say("a checkpoint will be written at the next step boundary");
    Ok(())
}

/// `polo stop`.
pub async fn stop(args: AddressArgs) -> Result<(), CliError> {
    let Coordinator { mut client, place } = args.connect().await?;
    client.stop(StopRequest {}).await.map_err(refused(&place))?;
    say("the run stops at the next step boundary, with a checkpoint");
    Ok(())
}

/// `polo drain`.
pub async fn drain(args: DrainArgs) -> Result<(), CliError> {
    let Coordinator { mut client, place } = args.address.connect().await?;
    client.drain(DrainRequest { worker_id: args.worker.clone() }).await.map_err(refused(&place))?;
    say(format_args!("worker {} hands back what it holds and leaves", args.worker));
    Ok(())
}
