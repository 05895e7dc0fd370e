//! Repeated output: redrawn in place on a terminal, appended elsewhere.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use tokio::time::{MissedTickBehavior, interval};
use unicode_width::UnicodeWidthChar as _;

use super::Global;
use super::output::{self, Render};

/// Default interval.
const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Repetition {
    /// Seconds between two updates (0.1 to 3600) [default: 2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    /// Stop after N updates; default: run until Ctrl-C
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Repetition {
    pub(super) fn is_given(&self) -> bool {
        self.interval.is_some() || self.count.is_some()
    }

    /// Queries and prints until Ctrl-C or `--count`. A failed query is printed; the next one may succeed.
    ///
    /// # Errors
    /// When the last query of `--count` failed, or the output is closed.
    pub(super) async fn run<V: Render>(self, global: &Global, mut query: impl AsyncFnMut() -> Result<V>) -> Result<()> {
        let screen = || output::is_terminal().then(output::terminal_size);
        let mut ticks = interval(self.interval.unwrap_or(INTERVAL));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            let mut left = self.count;
            loop {
                ticks.tick().await;
                left = left.map(|left| left - 1);
                match query().await {
                    Ok(value) => output::write(&frame(&output::frame(global, &value)?, screen()))?,
                    Err(error) if left == Some(0) => return Err(error),
                    Err(error) => output::write(&frame(&format!("{error:#}\n"), screen()))?,
                }
                if left == Some(0) {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            ended = work => ended,
            signal = tokio::signal::ctrl_c() => signal.map_err(|error| anyhow!("cannot listen for Ctrl-C: {error}")),
        }
    }
}

/// The text with the control sequences that redraw it in place on a screen of so many columns and rows. Lines are cut to
/// the width, and lines beyond the height are counted: scrolling or wrapping would break the redraw.
fn frame(text: &str, screen: Option<(usize, usize)>) -> String {
    let Some((columns, rows)) = screen else {
        return text.to_owned();
    };
    let lines: Vec<&str> = text.lines().collect();
    let room = rows.saturating_sub(1).max(1);
    let shown = if lines.len() > room { room - 1 } else { lines.len() };
    let mut frame = "\x1b[H".to_owned();
    for line in &lines[..shown] {
        // Cleared first: after a line as wide as the screen, clearing would erase its last character.
        frame.push_str("\x1b[K");
        push_cut(&mut frame, line, columns);
        frame.push('\n');
    }
    if shown < lines.len() {
        frame.push_str("\x1b[K");
        push_cut(&mut frame, &format!("… {} more", lines.len() - shown), columns);
        frame.push('\n');
    }
    frame.push_str("\x1b[J");
    frame
}

/// Appends as much of a line as fits. Colour sequences have no width and are kept even where the text is cut.
fn push_cut(frame: &mut String, line: &str, columns: usize) {
    let mut left = columns;
    let mut is_colour = false;
    for c in line.chars() {
        if c == '\x1b' {
            is_colour = true;
        }
        if is_colour {
            frame.push(c);
            is_colour = c != 'm';
            continue;
        }
        match left.checked_sub(c.width().unwrap_or(0)) {
            Some(rest) => {
                left = rest;
                frame.push(c);
            }
            None => left = 0,
        }
    }
}

/// Parses a number of seconds for clap.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("allowed are 0.1 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redraw_clears_the_previous_frame() {
        assert_eq!(frame("a\nb\n", Some((80, 24))), "\x1b[H\x1b[Ka\n\x1b[Kb\n\x1b[J");
        assert_eq!(frame("a\nb\n", None), "a\nb\n");
    }

    #[test]
    fn frame_is_cut_to_the_screen() {
        assert_eq!(
            frame("1\n2\n3\n4\n", Some((80, 4))),
            "\x1b[H\x1b[K1\n\x1b[K2\n\x1b[K… 2 more\n\x1b[J"
        );
        assert_eq!(frame("1\n2\n3\n", Some((80, 4))).matches('\n').count(), 3);
        assert_eq!(frame("12345678\n", Some((5, 4))), "\x1b[H\x1b[K12345\n\x1b[J");
        assert_eq!(frame("日本語\n", Some((5, 4))), "\x1b[H\x1b[K日本\n\x1b[J");
        assert_eq!(
            frame("ab\x1b[32mcdef\x1b[0mgh\n", Some((3, 4))),
            "\x1b[H\x1b[Kab\x1b[32mc\x1b[0m\n\x1b[J"
        );
        // The smallest screen.
        assert_eq!(frame("1\n2\n", Some((1, 1))), "\x1b[H\x1b[K…\n\x1b[J");
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "x", "0", "-1", "NaN", "inf", "3601"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
