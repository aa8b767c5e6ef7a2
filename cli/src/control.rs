//! Talking to a running coordinator.

use std::{future::ready, io, time::Duration};

use clap::Args;
use hyper_util::rt::TokioIo;
use polo_kubernetes::Forward;
use polo_proto::v1::{CheckpointRequest, DrainRequest, GetStatusRequest, StopRequest, control_client::ControlClient};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use crate::{error::CliError, kubernetes::ClusterArgs};

/// For a connection, for an answer, and for a sign of life while nothing is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which coordinator is meant.
#[derive(Debug, Clone, Args)]
pub struct AddressArgs {
    /// Where the coordinator listens
    #[arg(long, env = "POLO_COORDINATOR", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    address: String,
    /// A run on Kubernetes, instead of an address; its coordinator is reached through the cluster's API server
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// A coordinator that is listened to.
pub struct Coordinator {
    /// What it is asked with.
    pub client: ControlClient<Channel>,
    /// What it is called in messages.
    pub place: String,
}

impl AddressArgs {
    /// Reaches the coordinator, within a bounded time.
    pub async fn connect(&self) -> Result<Coordinator, CliError> {
        let Some(run) = &self.run else {
            return Ok(Coordinator { client: connect(&self.address).await?, place: self.address.clone() });
        };
        let cluster = self.cluster.open().await?;
        let place = format!("run {run} in namespace {}", cluster.namespace());
        let Forward { stream, refusal } = cluster.connect_to_coordinator(run).await?;
        // One connection is all there is: what breaks it ends the command.
        let mut stream = Some(TokioIo::new(stream));
        let take = move |_| ready(stream.take().ok_or(io::Error::from(io::ErrorKind::NotConnected)));
        let channel = endpoint("http://coordinator", &place)?.connect_with_connector(tower::service_fn(take)).await;
        let channel = channel.map_err(|error| unreachable(&place, innermost(&error)))?;
        let mut client = ControlClient::new(channel);
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

/// A client of the coordinator at `address`, within a bounded time.
pub async fn connect(address: &str) -> Result<ControlClient<Channel>, CliError> {
    let with_scheme = if address.contains("://") { address.to_string() } else { format!("http://{address}") };
    let channel = endpoint(&with_scheme, address)?.connect().await;
    Ok(ControlClient::new(channel.map_err(|error| unreachable(address, innermost(&error)))?))
}

fn endpoint(url: &str, place: &str) -> Result<Endpoint, CliError> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| unreachable(place, error.to_string()))?;
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    Ok(endpoint.http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE))
}

fn unreachable(place: &str, problem: String) -> CliError {
    CliError::Unreachable { address: place.into(), problem }
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
    eprintln!("a checkpoint will be written at the next step boundary");
    Ok(())
}

/// `polo stop`.
pub async fn stop(args: AddressArgs) -> Result<(), CliError> {
    let Coordinator { mut client, place } = args.connect().await?;
    client.stop(StopRequest {}).await.map_err(refused(&place))?;
    eprintln!("the run stops at the next step boundary, with a checkpoint");
    Ok(())
}

/// `polo drain`.
pub async fn drain(args: DrainArgs) -> Result<(), CliError> {
    let Coordinator { mut client, place } = args.address.connect().await?;
    client.drain(DrainRequest { worker_id: args.worker.clone() }).await.map_err(refused(&place))?;
    eprintln!("worker {} hands back what it holds and leaves", args.worker);
    Ok(())
}
