//! How far long work is: a bar on a terminal, a line every few seconds elsewhere, nothing for programs. On stderr, so
//! that stdout holds results only.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Global, output};

/// Between two lines where there is no terminal.
const LINES: Duration = Duration::from_secs(3);

/// Between two turns of what shows that something goes on.
const TURN: Duration = Duration::from_millis(100);

/// The progress of one piece of work. Dropping it clears the bar away.
#[derive(Debug)]
pub(super) struct Progress {
    shown: Shown,
}

#[derive(Debug)]
enum Shown {
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
    /// Work that has just begun. With a total it is known how much there is to do.
    pub(super) fn new(global: &Global, what: &str, total: Option<u64>) -> Self {
        let shown = if global.json {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            bar.set_style(style(total.is_some()));
            bar.set_message(what.to_owned());
            bar.enable_steady_tick(TURN);
            Shown::Bar(bar)
        } else {
            Shown::Lines {
                what: what.to_owned(),
                done: 0,
                total,
                next: Instant::now() + LINES,
            }
        };
        Self { shown }
    }

    /// So much is done.
    pub(super) fn set(&mut self, now_done: u64) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(now_done),
            Shown::Lines { done, .. } => {
                *done = now_done;
                self.line();
            }
            Shown::Nothing => {}
        }
    }

    /// Now this is being done, and there is so much of it where that is known.
    pub(super) fn turn_to(&mut self, now: &str, now_total: Option<u64>) {
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_style(style(now_total.is_some()));
                match now_total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_position(0);
                bar.set_message(now.to_owned());
            }
            Shown::Lines { what, done, total, .. } => {
                (*what, *done, *total) = (now.to_owned(), 0, now_total);
                self.line();
            }
            Shown::Nothing => {}
        }
    }

    fn line(&mut self) {
        if let Shown::Lines {
            what,
            done,
            total,
            next,
        } = &mut self.shown
            && Instant::now() >= *next
        {
            *next = Instant::now() + LINES;
            match total {
                Some(total) => output::remark(format_args!("{what}: {done} of {total}")),
                None => output::remark(format_args!("{what}: {done}")),
            }
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
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
    // The templates are sound, and the crate's own style does as well.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}
