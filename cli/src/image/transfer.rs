//! `rswarm image pull|push`: what moves, shown layer by layer.
//!
//! On a terminal each layer has a line with a bar that is drawn over; elsewhere nothing is shown but the result.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use rswarm_api::v1;

use super::{decimal_size, short_id};
use crate::client::{Client, call};
use crate::registry_auth;

/// How often the lines are drawn at most.
const REDRAW: Duration = Duration::from_millis(100);
/// Characters between the ends of a bar.
const BAR: usize = 30;

pub async fn pull(client: &Client, reference: String, platform: String, quiet: bool) -> anyhow::Result<()> {
    use v1::pull_image_response::Step;
    let auth = registry_auth::of_image(&reference);
    // The image may have further names here; shown is the one it was pulled by, and the digest that its registry has that
    // name under: asked for, or told first of all.
    let parsed: Option<rswarm_image::Reference> = reference.parse().ok();
    let name = parsed.as_ref().map_or_else(|| reference.clone(), rswarm_image::Reference::familiar);
    let mut digest = parsed.and_then(|parsed| parsed.digest()).map_or_else(String::new, |it| it.to_string());
    let request = v1::PullImageRequest { reference, platform, auth };
    let mut steps = call!(client, local.pull_image(request))?;
    let mut board = Board::new(quiet);
    while let Some(message) = steps.message().await.map_err(|status| client.error(&status))? {
        match message.step {
            Some(Step::Progress(progress)) if progress.stage == "resolved" => digest = progress.digest,
            Some(Step::Progress(progress)) => board.note(&progress),
            Some(Step::Image(_)) => {
                board.finish();
                if !quiet {
                    println!("Digest: {digest}");
                }
                println!("{name}");
            }
            None => {}
        }
    }
    Ok(())
}

pub async fn push(client: &Client, reference: String, quiet: bool) -> anyhow::Result<()> {
    use v1::push_image_response::Step;
    let auth = registry_auth::of_image(&reference);
    let mut steps = call!(client, local.push_image(v1::PushImageRequest { reference, auth }))?;
    let mut board = Board::new(quiet);
    while let Some(message) = steps.message().await.map_err(|status| client.error(&status))? {
        match message.step {
            Some(Step::Progress(progress)) => board.note(&progress),
            Some(Step::Pushed(pushed)) => {
                board.finish();
                if quiet {
                    println!("{}", pushed.reference);
                } else {
                    println!("{}: digest: {} size: {}", pushed.tag, pushed.digest, pushed.size_bytes);
                }
            }
            None => {}
        }
    }
    Ok(())
}

/// The lines of a transfer on the terminal.
struct Board {
    shown: bool,
    layers: Vec<Layer>,
    positions: HashMap<String, usize>,
    /// Lines that stand on the terminal now.
    drawn: usize,
    last: Option<Instant>,
}

struct Layer {
    id: String,
    stage: String,
    done: u64,
    total: u64,
}

impl Board {
    fn new(quiet: bool) -> Board {
        let shown = !quiet && std::io::stderr().is_terminal();
        Board { shown, layers: Vec::new(), positions: HashMap::new(), drawn: 0, last: None }
    }

    fn note(&mut self, progress: &v1::TransferProgress) {
        if !self.shown || progress.stage == "resolved" {
            return;
        }
        let position = *self.positions.entry(progress.digest.clone()).or_insert_with(|| {
            let id = short_id(&progress.digest);
            self.layers.push(Layer { id, stage: String::new(), done: 0, total: 0 });
            self.layers.len() - 1
        });
        let layer = &mut self.layers[position];
        let is_news = layer.stage != progress.stage;
        layer.stage.clone_from(&progress.stage);
        (layer.done, layer.total) = (progress.done_bytes, progress.total_bytes);
        if is_news || self.last.is_none_or(|last| last.elapsed() >= REDRAW) {
            self.draw();
        }
    }

    /// The last state stays on the terminal.
    fn finish(&mut self) {
        if self.shown && !self.layers.is_empty() {
            self.draw();
        }
    }

    fn draw(&mut self) {
        // No line wraps, as that would break their count.
        let mut out = String::from("\x1b[?7l");
        if self.drawn > 0 {
            out += &format!("\x1b[{}A\r", self.drawn);
        }
        for layer in &self.layers {
            out += &format!("{}\x1b[K\n", layer.line());
        }
        out += "\x1b[?7h";
        self.drawn = self.layers.len();
        self.last = Some(Instant::now());
        // A terminal that is gone takes no progress; the transfer goes on.
        let _ = std::io::stderr().write_all(out.as_bytes());
    }
}

impl Layer {
    fn line(&self) -> String {
        let id = &self.id;
        match self.stage.as_str() {
            stage @ ("downloading" | "uploading") => {
                let total = self.total.max(1);
                let filled = usize::try_from(self.done.min(total) * BAR as u64 / total).unwrap_or(BAR);
                let bar = format!("{}{}", "=".repeat(filled), " ".repeat(BAR - filled));
                format!(
                    "{id}: {stage:<11} [{bar}] {} / {}",
                    decimal_size(self.done),
                    decimal_size(self.total)
                )
            }
            "present" => format!("{id}: already there"),
            "mounted" => format!("{id}: mounted from another repository"),
            stage => format!("{id}: {stage}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_the_share_that_is_done() {
        let line = |stage: &str, done, total| {
            Layer { id: "0123456789ab".into(), stage: stage.into(), done, total }.line()
        };
        assert_eq!(
            line("downloading", 5_000_000, 10_000_000),
            "0123456789ab: downloading [===============               ] 5MB / 10MB"
        );
        assert_eq!(
            line("uploading", 10, 10),
            "0123456789ab: uploading   [==============================] 10B / 10B"
        );
        assert!(line("uploading", 0, 0).contains("0B / 0B"));
        assert_eq!(line("present", 0, 0), "0123456789ab: already there");
    }
}
