//! What the demo prints: each step with its latency.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::cli::output::outln;

/// Numbers, times and prints the steps of the story.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
    steps: u32,
    current: &'static str,
}

impl Report {
    /// Prints a line a step, or one JSON object a step.
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            steps: 0,
            current: "",
        }
    }

    /// Does a step, which gives what the story goes on with and a remark for the reader.
    pub(super) async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(T, String)>>,
    ) -> Result<T> {
        self.steps += 1;
        self.current = name;
        let began = Instant::now();
        let outcome = work.await;
        let took = began.elapsed();
        match outcome {
            Ok((value, remark)) => {
                self.print(took, Ok(&remark))?;
                Ok(value)
            }
            Err(error) => {
                self.print(took, Err(&format!("{error:#}")))?;
                Err(error)
            }
        }
    }

    /// The step that is done or failed last, to begin an error text with.
    pub(super) fn place(&self) -> String {
        format!("step {} ({})", self.steps, self.current)
    }

    fn print(&self, took: Duration, outcome: Result<&str, &str>) -> Result<()> {
        let ms = took.as_secs_f64() * 1000.0;
        if self.json {
            let rounded = (ms * 1000.0).round() / 1000.0;
            let mut line = json!({"step": self.steps, "name": self.current, "ms": rounded, "ok": outcome.is_ok()});
            match outcome {
                Ok(remark) => line["remark"] = remark.into(),
                Err(error) => line["error"] = error.into(),
            }
            return outln!("{line}");
        }
        let remark = outcome.unwrap_or("FAILED");
        outln!("{:>3}  {:<58} {ms:>9.1} ms  {remark}", self.steps, self.current)
    }
}
