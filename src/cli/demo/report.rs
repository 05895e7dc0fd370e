//! Output of the demo: each step with its latency.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::cli::Global;
use crate::cli::output::{self, Render, Text, outln};

/// Numbers, times and prints the steps of the demo.
#[derive(Debug)]
pub(super) struct Report<'a> {
    global: &'a Global,
    steps: u32,
    current: &'static str,
}

#[derive(Debug, Serialize)]
struct Step<'a> {
    step: u32,
    name: &'static str,
    ms: f64,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Render for Step<'_> {
    fn text(&self, out: &mut Text) {
        let remark = self.remark.unwrap_or("FAILED");
        outln!(out, "{:>3}  {:<58} {:>9.1} ms  {remark}", self.step, self.name, self.ms);
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(global: &'a Global) -> Self {
        Self {
            global,
            steps: 0,
            current: "",
        }
    }

    /// Runs a step, which returns a value for later steps and a remark for the reader.
    pub(super) async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(T, String)>>,
    ) -> Result<T> {
        self.steps += 1;
        self.current = name;
        let started = Instant::now();
        let outcome = work.await;
        let took = started.elapsed();
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

    /// Runs a step that returns nothing.
    pub(super) async fn check(&mut self, name: &'static str, work: impl Future<Output = Result<String>>) -> Result<()> {
        self.step(name, async { Ok(((), work.await?)) }).await
    }

    /// Names the last step, for an error text.
    pub(super) fn last_step(&self) -> String {
        format!("step {} ({})", self.steps, self.current)
    }

    fn print(&self, took: Duration, outcome: Result<&str, &str>) -> Result<()> {
        let step = Step {
            step: self.steps,
            name: self.current,
            ms: (took.as_secs_f64() * 1_000_000.0).round() / 1000.0,
            ok: outcome.is_ok(),
            remark: outcome.ok(),
            error: outcome.err(),
        };
        output::write(&output::frame(self.global, &step)?)
    }
}
