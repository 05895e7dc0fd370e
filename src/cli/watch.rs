//! Views that are drawn again and again: in place on a terminal, else one below the other.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use tokio::time::{MissedTickBehavior, interval};

use super::output;

/// How a view is repeated.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Repetition {
    /// Seconds between two looks (0.1 to 3600)
    #[arg(long, default_value = "2", value_name = "SECONDS", value_parser = seconds)]
    interval: Duration,
    /// End after so many looks; without it, Ctrl-C ends it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Repetition {
    /// Draws until Ctrl-C, or as often as was asked for. A look that fails says why, and the next may go well again.
    ///
    /// # Errors
    /// When the last look that was asked for failed, or nobody reads the output.
    pub(super) async fn draw(self, mut look: impl AsyncFnMut() -> Result<String>) -> Result<()> {
        let in_place = output::is_terminal();
        let mut ticks = interval(self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let work = async {
            let mut left = self.count;
            loop {
                ticks.tick().await;
                left = left.map(|left| left - 1);
                match look().await {
                    Ok(text) => output::print(&frame(&text, in_place))?,
                    Err(error) if left == Some(0) => return Err(error),
                    Err(error) => output::print(&frame(&format!("{error:#}\n"), in_place))?,
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

/// A view as it is written: in place, each line clears what stood behind it, and the last what stood below.
fn frame(text: &str, in_place: bool) -> String {
    if !in_place {
        return text.to_owned();
    }
    format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"))
}

/// Reads a time in seconds.
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
    fn a_view_in_place_leaves_nothing_of_the_one_before() {
        assert_eq!(frame("a\nb\n", true), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(frame("a\nb\n", false), "a\nb\n");
    }

    #[test]
    fn seconds_are_bounded() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "x", "0", "-1", "NaN", "inf", "3601"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
