//! Traces of steps, generations and checkpoints for an OTLP collector, as spans named so.
//!
//! Each is a trace of its own, and steps and checkpoints link to their generation: a generation may have a million steps,
//! more than any viewer of traces shows at once. The environment of OpenTelemetry's SDKs holds (`OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_EXPORTER_OTLP_HEADERS` and others). What the collector does not take in time is left out.

use std::time::{Duration, SystemTime};

use opentelemetry::{
    KeyValue,
    trace::{Link, Span as _, SpanBuilder, SpanContext, Status, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span},
};
use polo_proto::v1::StepSummary;
use polo_recipe::ids::{Generation, Step};
use polo_transport::{Client, ClientArgs};
use tokio::sync::mpsc;

use crate::{News, machine::Notice};

/// How long the collector may take for what it is sent,
const LIMIT: Duration = Duration::from_secs(10);
/// and for what comes last.
const FAREWELL: Duration = Duration::from_secs(5);

/// Sends traces.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    run: String,
    generation: Option<(Generation, Span)>,
    /// When steps were completed of which a checkpoint may come.
    newest: Option<(Step, SystemTime)>,
}

impl Traces {
    /// To the collector at this address.
    pub fn to(collector: &str, run: &str) -> Result<Self, String> {
        let resource =
            Resource::builder().with_service_name("polo").with_attribute(KeyValue::new("polo.run", run.to_owned()));
        let provider = SdkTracerProvider::builder().with_resource(resource.build());
        let provider = provider.with_batch_exporter(exporter(collector)?).build();
        let tracer = provider.tracer("polo");
        Ok(Self { provider, tracer, run: run.into(), generation: None, newest: None })
    }

    /// Sends what happens until nothing more does.
    pub async fn follow(mut self, mut news: mpsc::UnboundedReceiver<News>) {
        while let Some(news) = news.recv().await {
            self.take(&news, SystemTime::now());
        }
        self.end_generation(SystemTime::now(), Status::Unset);
        // It waits for the collector on this thread.
        let _ = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FAREWELL)).await;
    }

    fn take(&mut self, news: &News, now: SystemTime) {
        match news {
            News::Step(summary) => self.step(summary, now),
            News::Notice(Notice::Formed(generation, seats)) => self.begin_generation(*generation, seats.len(), now),
            News::Notice(notice @ Notice::Interrupted(..)) => {
                self.end_generation(now, Status::error(notice.to_string()))
            }
            News::Notice(Notice::CheckpointStored(step)) => self.checkpoint(*step, None, now),
            News::Notice(Notice::CheckpointFailed(step, error)) => self.checkpoint(*step, Some(error), now),
            News::Notice(notice) => self.note(notice, now),
            News::Ended(_) => self.end_generation(now, Status::Unset),
        }
    }

    fn step(&mut self, summary: &StepSummary, now: SystemTime) {
        let began = now.checked_sub(Duration::from_millis(summary.step_ms)).unwrap_or(now);
        let attributes = [
            KeyValue::new("polo.step", number(summary.step)),
            KeyValue::new("polo.stage", summary.stage.clone()),
            KeyValue::new("polo.loss", summary.loss),
            KeyValue::new("polo.grad_norm", summary.grad_norm),
            KeyValue::new("polo.tokens_per_second", summary.tokens_per_second),
            KeyValue::new("polo.num_workers", i64::from(summary.num_workers)),
            KeyValue::new("polo.data_wait_ms", number(summary.data_wait_ms)),
            KeyValue::new("polo.sent_bytes", number(summary.sent_bytes)),
            KeyValue::new("polo.received_bytes", number(summary.received_bytes)),
        ];
        self.span("step", began, attributes).end_with_timestamp(now);
        self.newest = Some((Step(summary.step), now));
    }

    /// It has been on its way since its step was completed, if that was the last one.
    fn checkpoint(&mut self, step: Step, problem: Option<&String>, now: SystemTime) {
        let began = self.newest.filter(|(newest, _)| *newest == step).map_or(now, |(_, at)| at);
        let mut span = self.span("checkpoint", began, [KeyValue::new("polo.step", number(step.0))]);
        if let Some(problem) = problem {
            span.set_status(Status::error(problem.clone()));
        }
        span.end_with_timestamp(now);
    }

    fn begin_generation(&mut self, generation: Generation, num_workers: usize, now: SystemTime) {
        self.end_generation(now, Status::Unset);
        let attributes = [
            KeyValue::new("polo.generation", number(generation.0)),
            KeyValue::new("polo.num_workers", number(num_workers as u64)),
        ];
        let span = self.span("generation", now, attributes);
        self.generation = Some((generation, span));
    }

    fn end_generation(&mut self, now: SystemTime, status: Status) {
        if let Some((_, mut span)) = self.generation.take() {
            span.set_status(status);
            span.end_with_timestamp(now);
        }
    }

    fn note(&mut self, notice: &Notice, now: SystemTime) {
        if let Some((_, span)) = &mut self.generation {
            span.add_event_with_timestamp(notice.to_string(), now, Vec::new());
        }
    }

    fn span(&self, name: &'static str, began: SystemTime, attributes: impl IntoIterator<Item = KeyValue>) -> Span {
        let within = self.generation.as_ref().map(|(generation, span)| (*generation, span.span_context().clone()));
        let known = [KeyValue::new("polo.run", self.run.clone())].into_iter();
        let known =
            known.chain(within.iter().map(|(generation, _)| KeyValue::new("polo.generation", number(generation.0))));
        let links = within.iter().map(|(_, context): &(Generation, SpanContext)| Link::with_context(context.clone()));
        let builder = SpanBuilder::from_name(name).with_start_time(began).with_links(links.collect());
        builder.with_attributes(known.chain(attributes).collect::<Vec<_>>()).start(&self.tracer)
    }
}

/// Over a connection that is made when there is something to send.
fn exporter(collector: &str) -> Result<SpanExporter, String> {
    let ca = std::env::var_os("OTEL_EXPORTER_OTLP_CERTIFICATE").map(Into::into);
    let client = Client::new(ClientArgs { ca, ..ClientArgs::default() });
    let (endpoint, _) = client.prepare(collector).map_err(|e| e.to_string())?;
    let channel = client.connect_when_used(&endpoint.connect_timeout(LIMIT).timeout(LIMIT));
    let exporter =
        SpanExporter::builder().with_tonic().with_endpoint(collector).with_timeout(LIMIT).with_channel(channel);
    exporter.build().map_err(|e| e.to_string())
}

/// Attributes know no unsigned numbers.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
