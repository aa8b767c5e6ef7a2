//! `polo status --watch` in a terminal: the run on one screen, until it ends or the person has seen enough.

mod screen;
mod view;

use std::{
    io,
    time::{Duration, Instant},
};

use futures::StreamExt;
use polo_proto::v1::{GetHistoryRequest, Status, WatchStatusRequest, WatchStatusResponse};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{Event, EventStream},
};
use tokio::time::{MissedTickBehavior, interval};
use tonic::Streaming;

use self::screen::{Lost, Quit, Screen};
use crate::{
    control::{AddressArgs, Coordinator, refused},
    error::CliError,
};

/// Between two pictures at most: seconds count up while nothing is heard.
const REDRAW: Duration = Duration::from_millis(250);
/// Between two tries to reach a coordinator that is away.
const RETRY: Duration = Duration::from_secs(1);

/// Shows the run; returns how it stood last.
pub async fn run(args: &AddressArgs) -> Result<Status, CliError> {
    // Before the screen is taken: a wrong address is an ordinary error.
    let (mut screen, statuses) = begin(args).await?;
    let mut terminal = ratatui::try_init().map_err(CliError::io("cannot take the terminal's screen"))?;
    let shown = watch(&mut terminal, args, &mut screen, statuses).await;
    ratatui::restore();
    shown.map(|()| screen.status)
}

async fn begin(args: &AddressArgs) -> Result<(Screen, Streaming<WatchStatusResponse>), CliError> {
    let Coordinator { mut client, place } = args.connect().await?;
    let history = client.get_history(GetHistoryRequest {}).await.map_err(refused(&place))?.into_inner();
    let statuses = client.watch_status(WatchStatusRequest {}).await.map_err(refused(&place))?.into_inner();
    let mut screen = Screen::default();
    history.history.iter().for_each(|history| screen.take_history(history));
    Ok((screen, statuses))
}

/// What ends one stream of statuses.
enum Ended {
    /// The person has seen enough, or the run has ended.
    ForGood,
    /// The coordinator is away.
    Lost(String),
}

async fn watch(
    terminal: &mut DefaultTerminal,
    args: &AddressArgs,
    screen: &mut Screen,
    mut statuses: Streaming<WatchStatusResponse>,
) -> Result<(), CliError> {
    let mut keys = EventStream::new();
    let failed = |source| CliError::io("cannot draw on the terminal")(source);
    loop {
        let problem = match follow(terminal, screen, &mut statuses, &mut keys).await.map_err(failed)? {
            Ended::ForGood => return Ok(()),
            Ended::Lost(problem) => problem,
        };
        match reach_again(terminal, args, screen, problem, &mut keys).await.map_err(failed)? {
            Some((history, again)) => (screen.history, statuses) = (history.history, again),
            None => return Ok(()),
        }
    }
}

async fn follow(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    statuses: &mut Streaming<WatchStatusResponse>,
    keys: &mut EventStream,
) -> io::Result<Ended> {
    let mut redraw = interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            _ = redraw.tick() => {
                terminal.draw(|frame| view::draw(frame, screen))?;
            }
            key = keys.next() => if press(screen, key)?.is_some() {
                return Ok(Ended::ForGood);
            },
            response = statuses.message() => match response {
                Ok(Some(response)) => screen.take(response.status.unwrap_or_default()),
                Ok(None) if has_ended(&screen.status) => return Ok(Ended::ForGood),
                Ok(None) => return Ok(Ended::Lost("the coordinator closed the stream".into())),
                Err(status) => return Ok(Ended::Lost(status.message().into())),
            },
        }
    }
}

/// Tries until the coordinator is there; none if the person quits before.
async fn reach_again(
    terminal: &mut DefaultTerminal,
    args: &AddressArgs,
    screen: &mut Screen,
    problem: String,
    keys: &mut EventStream,
) -> io::Result<Option<(Screen, Streaming<WatchStatusResponse>)>> {
    let start = Instant::now();
    let mut redraw = interval(REDRAW);
    redraw.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let again = async {
        loop {
            match begin(args).await {
                Ok(again) => return again,
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    };
    tokio::pin!(again);
    loop {
        tokio::select! {
            again = &mut again => return Ok(Some(again)),
            key = keys.next() => if press(screen, key)?.is_some() {
                return Ok(None);
            },
            _ = redraw.tick() => {
                screen.lost = Some(Lost { problem: problem.clone(), since: start.elapsed() });
                terminal.draw(|frame| view::draw(frame, screen))?;
            }
        }
    }
}

fn press(screen: &mut Screen, event: Option<io::Result<Event>>) -> io::Result<Option<Quit>> {
    match event.transpose()? {
        Some(Event::Key(key)) => Ok(screen.press(key)),
        Some(_) => Ok(None),
        // The terminal is gone.
        None => Ok(Some(Quit)),
    }
}

fn has_ended(status: &Status) -> bool {
    !status.state_digest.is_empty() || !status.error.is_empty()
}
