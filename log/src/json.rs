//! Lines of JSON: time, level, who speaks, where in the run, and what is said.

use std::fmt;

use serde_json::{Map, Value, json};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::place;

/// One line.
pub(crate) struct Line(Map<String, Value>);

impl Line {
    pub fn new(level: &str, target: &str) -> Self {
        let mut time = String::new();
        // Into memory: nothing can fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let fixed = [("time", json!(time)), ("level", json!(level)), ("target", json!(target))];
        Self(fixed.into_iter().chain(place::fields()).map(|(name, value)| (name.into(), value)).collect())
    }

    pub fn with_message(mut self, message: String) -> Self {
        self.0.insert("message".into(), message.into());
        self
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(&text)
    }
}

/// An event's own fields go before those of its place: a worker's warning about another step names that one.
impl Visit for Line {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), json!(format!("{value:?}")));
    }
}

/// Writes what libraries and Polo's inner workings tell of.
pub(crate) struct Events;

impl<S, N> FormatEvent<S, N> for Events
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Line::new(event.metadata().level().as_str(), event.metadata().target());
        event.record(&mut line);
        writeln!(writer, "{line}")
    }
}
