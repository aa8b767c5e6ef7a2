//! What a browser and Prometheus get, from the port that speaks gRPC as well: the page, the run's state as JSON, once or as
//! it changes, and metrics. Nothing here changes the run.

mod catalogue;
pub(crate) mod metrics;
mod page;

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::{Stream, StreamExt};

pub use catalogue::{Metric, catalogue};

use crate::{core::Inbound, json, services::Services};

/// Between two states of a run that a page is sent; of those between it gets the newest.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// The routes of all that is here.
pub fn router(services: Services) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/api/status", get(status))
        .route("/api/history", get(history))
        .route("/api/events", get(events))
        .route("/metrics", get(metrics))
        .with_state(services)
}

/// The core does not answer.
struct Unanswered(tonic::Status);

impl IntoResponse for Unanswered {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.0.message().to_owned()).into_response()
    }
}

type Answer<T> = Result<T, Unanswered>;

async fn status(State(services): State<Services>) -> Answer<impl IntoResponse> {
    let status = services.ask_core(Inbound::Status).await.map_err(Unanswered)?;
    Ok(as_json(&json::status(&status)))
}

async fn history(State(services): State<Services>) -> Answer<impl IntoResponse> {
    let history = services.ask_core(Inbound::History).await.map_err(Unanswered)?;
    Ok(as_json(&json::history(&history)))
}

async fn events(State(services): State<Services>) -> Answer<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let statuses = services.watch().await.map_err(Unanswered)?;
    let statuses = tokio_stream::StreamExt::throttle(statuses, EVENT_INTERVAL);
    let events = statuses.map(|status| Ok(Event::default().data(json::status(&status).to_string())));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

async fn metrics(State(services): State<Services>) -> Answer<impl IntoResponse> {
    let status = services.ask_core(Inbound::Status).await.map_err(Unanswered)?;
    let text = metrics::text(&status).map_err(|error| Unanswered(tonic::Status::internal(error.to_string())))?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE))], text))
}

fn as_json(value: &serde_json::Value) -> impl IntoResponse + use<> {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], value.to_string())
}
