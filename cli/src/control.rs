//! Talking to a running coordinator.

use std::time::Duration;

use clap::Args;
use polo_proto::v1::{CheckpointRequest, DrainRequest, StopRequest, control_client::ControlClient};
use polo_transport::{ClientArgs, Credentials};
use tonic::{Code, service::interceptor::InterceptedService, transport::Channel};

use crate::error::CliError;

/// For a connection, for an answer, and for a sign of life while nothing is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which coordinator is meant.
#[derive(Debug, Clone, Default, Args)]
pub struct AddressArgs {
    /// Where the coordinator listens
    #[arg(long, env = "POLO_COORDINATOR", default_value = "http://127.0.0.1:7070", value_name = "URL")]
    pub address: String,
    #[command(flatten)]
    pub protection: ClientArgs,
}

/// Arguments of `polo drain`.
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The worker's name, as `polo status` shows it
    pub worker: String,
    #[command(flatten)]
    address: AddressArgs,
}

/// What commands call a coordinator with.
pub type Client = ControlClient<InterceptedService<Channel, Credentials>>;

/// A client of the coordinator that is meant, within a bounded time.
pub async fn connect(args: &AddressArgs) -> Result<Client, CliError> {
    let client = polo_transport::Client::new(args.protection.clone());
    let (endpoint, credentials) = client.prepare(&args.address)?;
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    let endpoint = endpoint.http2_keep_alive_interval(PATIENCE).keep_alive_timeout(PATIENCE);
    let channel = client.connect(endpoint).await.map_err(|error| {
        let problem = innermost(&error);
        CliError::Unreachable { address: args.address.clone(), problem }
    })?;
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
    connect(&args).await?.checkpoint(CheckpointRequest {}).await.map_err(refused(&args.address))?;
    eprintln!("a checkpoint will be written at the next step boundary");
    Ok(())
}

/// `polo stop`.
pub async fn stop(args: AddressArgs) -> Result<(), CliError> {
    connect(&args).await?.stop(StopRequest {}).await.map_err(refused(&args.address))?;
    eprintln!("the run stops at the next step boundary, with a checkpoint");
    Ok(())
}

/// `polo drain`.
pub async fn drain(args: DrainArgs) -> Result<(), CliError> {
    let (address, worker_id) = (&args.address.address, args.worker.clone());
    connect(&args.address).await?.drain(DrainRequest { worker_id }).await.map_err(refused(address))?;
    eprintln!("worker {} hands back what it holds and leaves", args.worker);
    Ok(())
}
