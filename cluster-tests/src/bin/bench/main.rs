//! Measures what the project promises, one line a figure, on labs of its own.
//!
//! ```text
//! bench [--runs 10] [--peer dockerd] [--only WORD]
//! ```
//!
//! `--peer dockerd` measures Docker Swarm beside it, with daemons of its own on the same kind of hosts. `--only` keeps
//! the figures whose name contains the word. Needs root, and a release build for figures worth quoting.

mod network;
mod overlay;
mod peer;
mod resources;
mod rswarm;

use std::process::ExitCode;

use anyhow::bail;
use rswarm_cluster_tests::Figure;

/// What to measure, and how often.
#[derive(Debug, Clone)]
pub struct Plan {
    pub runs: usize,
    only: Option<String>,
}

impl Plan {
    /// A figure with its budget, unless it is not wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|word| name.contains(word.as_str()))
    }

    /// Measures a figure `runs` times and prints it.
    pub fn figure(
        &self,
        name: &str,
        unit: &'static str,
        budget: Option<f64>,
        mut measure: impl FnMut(usize) -> anyhow::Result<f64>,
    ) -> anyhow::Result<()> {
        if !self.wants(name) {
            return Ok(());
        }
        let mut figure = Figure::new(name, unit, budget);
        for run in 0..self.runs {
            figure.add(measure(run)?);
        }
        println!("{figure}");
        Ok(())
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let (plan, with_peer) = arguments(std::env::args().skip(1))?;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: use `cargo run --release` for figures worth quoting");
    }
    rswarm::measure(&plan)?;
    overlay::measure(&plan, with_peer)?;
    network::measure(&plan)?;
    if with_peer {
        peer::measure(&plan)?;
    }
    Ok(())
}

fn arguments(mut words: impl Iterator<Item = String>) -> anyhow::Result<(Plan, bool)> {
    let (mut plan, mut with_peer) = (Plan { runs: 10, only: None }, false);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| anyhow::anyhow!("`{word}` needs a value"));
        match word.as_str() {
            "--runs" => plan.runs = value()?.parse()?,
            "--only" => plan.only = Some(value()?),
            "--peer" => match value()?.as_str() {
                "dockerd" => with_peer = true,
                other => bail!("unknown peer `{other}`: expected dockerd"),
            },
            // Cargo adds it to what it runs as a benchmark.
            "--bench" => {}
            other => bail!("unknown argument `{other}`: expected --runs, --only or --peer"),
        }
    }
    Ok((plan, with_peer))
}
