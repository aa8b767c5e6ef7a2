//! What a person who watches a run in the terminal sees and chooses, without the terminal.

use std::time::Duration;

use polo_coordinator::History;
use polo_proto::v1::{self, Status};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Everything that is drawn.
#[derive(Debug, Default)]
pub struct Screen {
    /// How the run stood when it was last heard of.
    pub status: Status,
    /// Steps, for the curve.
    pub history: History,
    /// Why nothing is heard of it, if so.
    pub lost: Option<Lost>,
    /// Members that are scrolled away above the first that is shown.
    pub num_scrolled: usize,
    /// The source whose curve is shown; of all together if none.
    pub source: Option<String>,
}

/// The coordinator does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// In words.
    pub problem: String,
    /// For how long.
    pub since: Duration,
}

/// What a key asks for beyond another view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quit;

impl Screen {
    /// Takes the past of the run.
    pub fn take_history(&mut self, history: &v1::History) {
        self.history = History::default();
        history.steps.iter().for_each(|step| self.history.add(step));
    }

    /// Takes a state of the run.
    pub fn take(&mut self, status: Status) {
        let newest = self.history.steps().last().map_or(0, |step| step.step);
        status.last_step.iter().filter(|step| step.step > newest).for_each(|step| self.history.add(step));
        self.num_scrolled = self.num_scrolled.min(status.members.len().saturating_sub(1));
        self.status = status;
        self.lost = None;
    }

    /// Does what a key is for.
    pub fn press(&mut self, key: KeyEvent) -> Option<Quit> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Some(Quit),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Some(Quit),
            KeyCode::Up | KeyCode::Char('k') => self.num_scrolled = self.num_scrolled.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.num_scrolled = (self.num_scrolled + 1).min(self.status.members.len().saturating_sub(1));
            }
            KeyCode::Left | KeyCode::Char('h') => self.choose_source(-1),
            KeyCode::Right | KeyCode::Char('l') => self.choose_source(1),
            _ => {}
        }
        None
    }

    /// Sources that have a curve, in the order of the stage's ledger.
    pub fn sources(&self) -> Vec<&str> {
        let of_stage = self.status.ledger.iter().filter(|entry| entry.stage == self.status.stage);
        of_stage.map(|entry| entry.source.as_str()).collect()
    }

    /// Goes round through all together and each source.
    fn choose_source(&mut self, by: isize) {
        let sources = self.sources();
        let now = self.source.as_deref().and_then(|name| sources.iter().position(|source| *source == name));
        let next = (now.map_or(0, |at| at as isize + 1) + by).rem_euclid(sources.len() as isize + 1);
        self.source = usize::try_from(next - 1).ok().map(|at| sources[at].to_owned());
    }

    /// Step and loss of the curve.
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let loss = |step: &v1::StepSummary| match &self.source {
            None => Some(step.loss),
            Some(name) => step.sources.iter().find(|s| s.source == *name).map(|s| s.loss),
        };
        let points = self.history.steps().iter().filter_map(|step| Some((step.step as f64, loss(step)?)));
        points.filter(|(_, loss)| loss.is_finite()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polo_proto::v1::{LedgerEntry, Member, SourceLoss, StepSummary};

    fn step(step: u64) -> StepSummary {
        let sources = vec![SourceLoss { source: "ne".into(), loss: 5.0, num_tokens: 8 }];
        StepSummary { step, loss: 3.0, sources, ..Default::default() }
    }

    fn screen() -> Screen {
        let entry = |source: &str| LedgerEntry { stage: "main".into(), source: source.into(), ..Default::default() };
        let mut screen = Screen::default();
        screen.take(Status {
            stage: "main".into(),
            ledger: vec![entry("en"), entry("ne"), LedgerEntry { stage: "later".into(), ..entry("kk") }],
            members: vec![Member::default(), Member::default()],
            last_step: Some(step(2)),
            ..Default::default()
        });
        screen
    }

    #[test]
    fn arrows_go_round_through_the_sources_of_the_stage() {
        let mut screen = screen();
        let chosen = |screen: &mut Screen, code| {
            screen.press(code);
            screen.source.clone()
        };
        let (right, left) = (KeyEvent::from(KeyCode::Right), KeyEvent::from(KeyCode::Left));
        assert_eq!(chosen(&mut screen, right).as_deref(), Some("en"));
        assert_eq!(chosen(&mut screen, right).as_deref(), Some("ne"));
        assert_eq!(chosen(&mut screen, right), None);
        assert_eq!(chosen(&mut screen, left).as_deref(), Some("ne"));
    }

    #[test]
    fn the_curve_has_the_steps_with_the_chosen_source() {
        let mut screen = screen();
        screen.take_history(&v1::History { steps: vec![step(1)], evaluations: vec![] });
        screen.take(Status { last_step: Some(step(2)), ..screen.status.clone() });
        assert_eq!(screen.curve(), [(1.0, 3.0), (2.0, 3.0)]);
        screen.source = Some("ne".into());
        assert_eq!(screen.curve(), [(1.0, 5.0), (2.0, 5.0)]);
        screen.source = Some("en".into());
        assert!(screen.curve().is_empty());
    }

    #[test]
    fn scrolling_ends_at_the_last_member() {
        let mut screen = screen();
        (0..3).for_each(|_| assert_eq!(screen.press(KeyCode::Down.into()), None));
        assert_eq!(screen.num_scrolled, 1);
        screen.take(Status::default());
        assert_eq!(screen.num_scrolled, 0);
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for key in [KeyCode::Char('q').into(), KeyCode::Esc.into(), control_c] {
            assert_eq!(screen().press(key), Some(Quit));
        }
    }
}
