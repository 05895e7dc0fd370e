//! Progress of long work on stderr: a bar on a terminal, a line every few seconds elsewhere, nothing with `--json`.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Global, output};

/// Interval of lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// Interval of the spinner.
const TICK: Duration = Duration::from_millis(100);

/// Dropping it clears the bar.
#[derive(Debug)]
pub(super) struct Progress {
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines {
        what: String,
        done: u64,
        total: Option<u64>,
        next: Instant,
    },
    Nothing,
}

impl Progress {
    /// `total` is the amount of work, if known.
    pub(super) fn new(global: &Global, what: &str, total: Option<u64>) -> Self {
        let display = if global.json {
            Display::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            bar.set_style(style(total.is_some()));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(TICK);
            Display::Bar(bar)
        } else {
            Display::Lines {
                what: what.to_owned(),
                done: 0,
                total,
                next: Instant::now() + LINE_INTERVAL,
            }
        };
        Self { display }
    }

    /// Sets the amount done.
    pub(super) fn set(&mut self, now_done: u64) {
        match &mut self.display {
            Display::Bar(bar) => bar.set_position(now_done),
            Display::Lines { done, .. } => {
                *done = now_done;
                self.line();
            }
            Display::Nothing => {}
        }
    }

    /// Begins the next phase.
    pub(super) fn turn_to(&mut self, now: &str, now_total: Option<u64>) {
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_style(style(now_total.is_some()));
                match now_total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_position(0);
                bar.set_message(now.to_owned());
            }
            Display::Lines { what, done, total, .. } => {
                (*what, *done, *total) = (now.to_owned(), 0, now_total);
                self.line();
            }
            Display::Nothing => {}
        }
    }

    fn line(&mut self) {
        if let Display::Lines {
            what,
            done,
            total,
            next,
        } = &mut self.display
            && Instant::now() >= *next
        {
            *next = Instant::now() + LINE_INTERVAL;
            match total {
                Some(total) => output::info(format_args!("{what}: {done} of {total}")),
                None => output::info(format_args!("{what}: {done}")),
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn style(has_total: bool) -> ProgressStyle {
    let template = if has_total {
        "{msg} [{bar:30}] {pos}/{len} {elapsed}"
    } else {
        "{spinner} {msg} {pos} {elapsed}"
    };
    // The templates are valid; the default style is a fallback.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}
