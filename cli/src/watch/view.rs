//! A run on one screen of a terminal.

use polo_coordinator::json;
use polo_proto::v1::{Incident, LedgerEntry, Member, SourceValidation, Status, StepSummary};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    symbols::Marker,
    text::{Line, Span},
    widgets::{Axis, Block, Cell, Chart, Dataset, GraphType, LineGauge, Paragraph, Row, Table, Wrap},
};

use super::screen::Screen;
use crate::{progress::eta, status::parts};

/// Incidents that have a line.
const NUM_INCIDENTS: usize = 5;
const CURVE: Color = Color::Cyan;
const BAD: Style = Style::new().fg(Color::Red).bold();

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let status = &screen.status;
    let notes = notes(screen);
    let incidents: Vec<_> = status.incidents.iter().rev().take(NUM_INCIDENTS).map(incident_line).collect();
    let [head, progress, notes_area, middle, members, incidents_area, keys] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Length(notes.len() as u16),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(if incidents.is_empty() { 0 } else { incidents.len() as u16 + 1 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let [curve, sources] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(middle);
    frame.render_widget(Paragraph::new(head_lines(status)), head);
    draw_progress(frame, status, progress);
    frame.render_widget(Paragraph::new(notes), notes_area);
    draw_curve(frame, screen, curve);
    draw_sources(frame, status, sources);
    draw_members(frame, screen, members);
    if !incidents.is_empty() {
        let title = Block::new().title(format!("Incidents ({})", status.incidents.len()).bold());
        frame.render_widget(Paragraph::new(incidents).block(title).wrap(Wrap { trim: false }), incidents_area);
    }
    frame.render_widget("q quits   ←→ source of the curve   ↑↓ members".dim(), keys);
}

fn head_lines(status: &Status) -> Vec<Line<'_>> {
    let phase = json::phase(status.phase());
    let phase = if status.error.is_empty() { phase.bold() } else { Span::styled(phase, BAD) };
    let known = |name: &str, value: Option<String>| value.map(|value| format!("   {name} {value}")).unwrap_or_default();
    let checkpoint = status.checkpoint_step.map_or("none".into(), |step| step.to_string());
    let goodput = status.goodput.map(|share| format!("{:.1} %", share * 100.0));
    let first = format!(
        "   stage {}   generation {}   checkpoint {checkpoint}{}",
        status.stage,
        status.generation,
        known("goodput", goodput)
    );
    let name = Span::from(format!("{}  ", status.run)).bold();
    vec![
        Line::from(vec![name, phase, first.into()]),
        Line::from(status.last_step.as_ref().map(step_line).unwrap_or_default()),
    ]
}

fn step_line(step: &StepSummary) -> String {
    let mfu = step.mfu.map(|share| format!("   MFU {:.1} %", share * 100.0)).unwrap_or_default();
    let data_wait = 100.0 * step.data_wait_ms as f64 / step.step_ms.max(1) as f64;
    format!(
        "loss {:.4}   {:.0} tokens/s{mfu}   step {} ms, data wait {data_wait:.1} %   lr {:.2e}   grad norm {:.3}",
        step.loss, step.tokens_per_second, step.step_ms, step.learning_rate, step.grad_norm
    )
}

fn draw_progress(frame: &mut Frame<'_>, status: &Status, area: Rect) {
    let eta = status.last_step.as_ref().map(|step| format!("  eta {}", eta(step))).unwrap_or_default();
    let ratio = status.step as f64 / status.num_steps.max(1) as f64;
    let label = format!("step {} of {}{eta}", status.step, status.num_steps);
    let gauge = LineGauge::default().ratio(ratio.clamp(0.0, 1.0)).label(label).filled_style(Style::new().fg(CURVE));
    frame.render_widget(gauge, area);
}

/// What a person should see first.
fn notes(screen: &Screen) -> Vec<Line<'_>> {
    let status = &screen.status;
    let mut lines = Vec::new();
    if let Some(lost) = &screen.lost {
        let words = format!(
            "no word from the coordinator for {} s: {}; trying again, and workers train on meanwhile",
            lost.since.as_secs(),
            lost.problem
        );
        lines.push(Line::from(words).patch_style(BAD));
    }
    if !status.waiting_for.is_empty() {
        lines.push(Line::from(format!("waiting for {}", status.waiting_for)).yellow());
    }
    let worse: Vec<_> = status.validation.iter().filter(|v| v.worse).map(|v| v.source.as_str()).collect();
    if !worse.is_empty() {
        lines.push(Line::from(format!("ALARM: worse than allowed: {}", worse.join(", "))).patch_style(BAD));
    }
    if !status.error.is_empty() {
        lines.push(Line::from(format!("error: {}", status.error)).patch_style(BAD));
    }
    lines
}

fn draw_curve(frame: &mut Frame<'_>, screen: &Screen, area: Rect) {
    let points = screen.curve();
    let title = format!("Loss of {}", screen.source.as_deref().unwrap_or("all sources"));
    let block = Block::bordered().title(title.bold());
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return frame.render_widget(Paragraph::new("no step yet").block(block), area);
    };
    let (low, high) = bounds(points.iter().map(|(_, loss)| *loss));
    let labels = |values: [f64; 2], digits: usize| values.map(|value| format!("{value:.digits$}"));
    let steps = [first.0, last.0.max(first.0 + 1.0)];
    let dataset = Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(CURVE).data(&points);
    let chart = Chart::new(vec![dataset])
        .block(block)
        .x_axis(Axis::default().bounds(steps).labels(labels(steps, 0)))
        .y_axis(Axis::default().bounds([low, high]).labels(labels([low, high], 3)));
    frame.render_widget(chart, area);
}

/// The least and the greatest, a little apart.
fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if high - low < 1e-3 { (low - 0.001, high + 0.001) } else { (low, high) }
}

fn draw_sources(frame: &mut Frame<'_>, status: &Status, area: Rect) {
    let entries: Vec<_> = status.ledger.iter().filter(|entry| entry.stage == status.stage).collect();
    let title = format!("Sources ({})", entries.len());
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(16),
    ];
    let rows = entries.into_iter().map(|entry| source_row(status, entry));
    let header = Row::new(["source", "loss", "trained", "epochs", "held out"]).dim();
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(title.bold())), area);
}

fn source_row<'a>(status: &'a Status, entry: &'a LedgerEntry) -> Row<'a> {
    let loss = status.source_losses.iter().find(|s| s.source == entry.source).map(|s| format!("{:.4}", s.loss));
    let trained = 100.0 * entry.num_trained_tokens as f64 / entry.num_planned_tokens.max(1) as f64;
    let [epochs, _] = json::epochs(entry);
    let validation = status.validation.iter().find(|v| v.source == entry.source);
    Row::new([
        Cell::from(entry.source.as_str()),
        loss.unwrap_or_else(|| "-".into()).into(),
        format!("{trained:.1} %").into(),
        format!("{epochs:.2}").into(),
        validation.map(validation_cell).unwrap_or_default(),
    ])
}

/// Baseline and newest, in bits per byte where they are known.
fn validation_cell(validation: &SourceValidation) -> Cell<'_> {
    let measure = |e: &polo_proto::v1::Evaluation| format!("{:.3}", e.bits_per_byte.unwrap_or(e.loss));
    let [baseline, last] =
        [&validation.baseline, &validation.last].map(|e| e.as_ref().map(measure).unwrap_or_default());
    let alarm = if validation.worse { " !" } else { "" };
    let cell = Cell::from(format!("{baseline} → {last}{alarm}"));
    if validation.worse { cell.style(BAD) } else { cell }
}

fn draw_members(frame: &mut Frame<'_>, screen: &Screen, area: Rect) {
    let members = &screen.status.members;
    let widths = [
        Constraint::Length(5),
        Constraint::Fill(2),
        Constraint::Fill(2),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Fill(2),
        Constraint::Length(9),
    ];
    let rows = members.iter().skip(screen.num_scrolled).map(member_row);
    let header = Row::new(["rank", "worker", "host", "role", "step", "slots take", "does", "heard"]).dim();
    let title = format!("Workers ({})", members.len());
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(title.bold())), area);
}

fn member_row(member: &Member) -> Row<'_> {
    let rank = member.rank.map_or("-".into(), |rank| rank.to_string());
    let role = if member.leaving { "leaving" } else { json::role(member).unwrap_or("waiting") };
    let slow = member.slowdown.map(|times| format!(" ({times:.1}×)")).unwrap_or_default();
    let row = Row::new([
        Cell::from(rank),
        member.worker_id.as_str().into(),
        member.host.as_str().into(),
        role.into(),
        member.step.to_string().into(),
        member.compute_ms.map(|ms| format!("{ms} ms{slow}")).unwrap_or_default().into(),
        member.phase.as_str().into(),
        format!("{:.1} s", member.last_heard_ms_ago as f64 / 1000.0).into(),
    ]);
    if member.slowdown.is_some() { row.yellow() } else { row }
}

fn incident_line(incident: &Incident) -> Line<'_> {
    let who = if incident.worker_id.is_empty() { "-" } else { &incident.worker_id };
    let recovery = incident.recovery_ms.map_or("not over".into(), |ms| format!("{ms} ms"));
    let bill = incident.bill.as_ref().map(parts).unwrap_or_default();
    let paid: Vec<_> = bill.iter().filter_map(|(name, ms)| ms.map(|ms| format!("{name} {ms}"))).collect();
    Line::from(format!("step {}  {who}: {}; {recovery} ({})", incident.step, incident.cause, paid.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polo_proto::v1::{Bill, Evaluation, RunPhase, SourceLoss};
    use ratatui::{Terminal, backend::TestBackend};

    const NAMES: [&str; 4] = ["日本語", "العربية", "हिन्दी", "en"];

    fn status() -> Status {
        let entry = |source: &&str| LedgerEntry {
            stage: "main".into(),
            source: (*source).into(),
            num_planned_tokens: 200,
            num_trained_tokens: 50,
            num_epoch_tokens: 100,
            ..Default::default()
        };
        let loss = |source: &&str| SourceLoss { source: (*source).into(), loss: 2.5, num_tokens: 8 };
        let evaluation = |step, bits| Some(Evaluation { step, loss: 3.0, num_tokens: 8, bits_per_byte: Some(bits) });
        Status {
            run: "seven".into(),
            phase: RunPhase::Training.into(),
            waiting_for: "a sign of life of w2".into(),
            step: 25,
            num_steps: 100,
            stage: "main".into(),
            last_step: Some(StepSummary {
                step: 25,
                loss: 2.75,
                mfu: Some(0.415),
                eta_seconds: 3725,
                ..Default::default()
            }),
            source_losses: NAMES.iter().map(loss).collect(),
            ledger: NAMES.iter().map(entry).collect(),
            validation: vec![SourceValidation {
                source: "हिन्दी".into(),
                baseline: evaluation(0, 1.5),
                last: evaluation(20, 1.75),
                watched: true,
                worse: true,
            }],
            members: vec![Member {
                worker_id: "w0".into(),
                host: "node-a".into(),
                rank: Some(0),
                ..Default::default()
            }],
            incidents: vec![Incident {
                cause: "its process is gone".into(),
                worker_id: "w1".into(),
                step: 12,
                recovery_ms: Some(310),
                bill: Some(Bill { detect_ms: Some(2), redo_ms: Some(200), ..Default::default() }),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, screen)).expect("drawn");
        let buffer = terminal.backend().buffer().clone();
        let line = |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
        buffer.content().chunks(width.into()).map(line).collect()
    }

    fn screen() -> Screen {
        let mut screen = Screen::default();
        screen.take(status());
        screen
    }

    #[test]
    fn everything_that_matters_is_on_the_screen() {
        // A wide character takes two cells, of which the buffer leaves the second blank; so below.
        let text = drawn(&screen(), 140, 40).join("\n").replace("हि ", "हि");
        for part in [
            "seven  training",
            "step 25 of 100  eta 1:02:05",
            "MFU 41.5 %",
            "waiting for a sign of life of w2",
            "ALARM: worse than allowed: हिन्दी",
            "Loss of all sources",
            "25.0 %",
            "1.500 → 1.750 !",
            "w0",
            "node-a",
            "Incidents (1)",
            "step 12  w1: its process is gone; 310 ms (detect 2, redo 200)",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn names_in_any_script_are_whole_and_keep_the_columns() {
        let lines = drawn(&screen(), 140, 40);
        let columns: Vec<_> = NAMES
            .iter()
            .map(|name| {
                let compact = |line: &String| line.replace(' ', "");
                let line = lines.iter().find(|line| compact(line).contains(&format!("│{name}2.5")));
                let line = line.unwrap_or_else(|| panic!("{name} is not in\n{}", lines.join("\n")));
                Line::from(line.as_str()).width()
            })
            .collect();
        assert!(columns.iter().all(|width| *width >= 140), "{columns:?}");
    }

    #[test]
    fn a_lost_coordinator_is_named_with_the_time() {
        let mut screen = screen();
        let since = std::time::Duration::from_secs(7);
        screen.lost = Some(super::super::screen::Lost { problem: "connection refused".into(), since });
        let text = drawn(&screen, 140, 40).join("\n");
        assert!(text.contains("no word from the coordinator for 7 s: connection refused"), "{text}");
    }

    #[test]
    fn small_terminals_are_drawn_without_harm() {
        for (width, height) in [(1, 1), (20, 5), (80, 24), (400, 100)] {
            drawn(&screen(), width, height);
            drawn(&Screen::default(), width, height);
        }
    }
}
