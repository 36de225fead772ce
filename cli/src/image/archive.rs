//! `rswarm image load|import|save`: archives to the daemon and back.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rswarm_api::v1;
use tokio::io::AsyncReadExt as _;

use super::ImportArgs;
use crate::client::{Client, call};
use crate::output;

/// Bytes sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

pub async fn load(client: &Client, input: Option<PathBuf>) -> anyhow::Result<()> {
    if input.is_none() && std::io::stdin().is_terminal() {
        anyhow::bail!("expected an archive on standard input or by --input, found a terminal");
    }
    let path = input.unwrap_or_else(|| "-".into());
    let (chunks, read_error) = chunks(&path).await?;
    let requests = tokio_stream::StreamExt::map(chunks, |chunk| v1::LoadImageRequest { chunk });
    let loaded = call!(client, local.load_image(requests));
    read_error.check()?;
    Ok(output::print(&loaded?.images.into_iter().map(report).collect::<String>())?)
}

/// What was loaded, by the names in the archive, in Docker's words.
fn report(v1::load_image_response::Loaded { image, names }: v1::load_image_response::Loaded) -> String {
    if names.is_empty() {
        return format!("Loaded image ID: {}\n", image.unwrap_or_default().id);
    }
    names.iter().map(|name| format!("Loaded image: {name}\n")).collect()
}

pub async fn import(client: &Client, args: ImportArgs) -> anyhow::Result<()> {
    use v1::import_image_request::{Header, Part};
    let (chunks, read_error) = chunks(&args.file).await?;
    let header =
        Part::Header(Header { reference: args.reference, changes: args.change, message: args.message });
    let parts = tokio_stream::StreamExt::chain(
        tokio_stream::once(header),
        tokio_stream::StreamExt::map(chunks, Part::Chunk),
    );
    let requests = tokio_stream::StreamExt::map(parts, |part| v1::ImportImageRequest { part: Some(part) });
    let imported = call!(client, local.import_image(requests));
    read_error.check()?;
    println!("{}", imported?.image.unwrap_or_default().id);
    Ok(())
}

/// An error met while reading what was being sent: it is the reason for whatever the daemon then said.
struct ReadError(std::sync::Arc<std::sync::Mutex<Option<std::io::Error>>>, PathBuf);

impl ReadError {
    fn check(&self) -> anyhow::Result<()> {
        match self.0.lock().ok().and_then(|mut error| error.take()) {
            Some(error) => {
                Err(anyhow::Error::new(error).context(format!("cannot read `{}`", self.1.display())))
            }
            None => Ok(()),
        }
    }
}

/// The bytes of a file, or of standard input for `-`, as a stream that ends early on an error.
async fn chunks(path: &Path) -> anyhow::Result<(tokio_stream::wrappers::ReceiverStream<Vec<u8>>, ReadError)> {
    let mut reader: Box<dyn tokio::io::AsyncRead + Send + Unpin> = if path.as_os_str() == "-" {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(tokio::fs::File::open(path).await.map_err(|error| {
            anyhow::Error::new(error).context(format!("cannot read `{}`", path.display()))
        })?)
    };
    let failed = std::sync::Arc::new(std::sync::Mutex::new(None));
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let note = failed.clone();
    tokio::spawn(async move {
        loop {
            let mut buffer = vec![0; CHUNK_BYTES];
            match reader.read(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => {
                    buffer.truncate(length);
                    if sender.send(buffer).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    if let Ok(mut slot) = note.lock() {
                        *slot = Some(error);
                    }
                    return;
                }
            }
        }
    });
    Ok((receiver.into(), ReadError(failed, path.to_owned())))
}

pub async fn save(client: &Client, output: Option<PathBuf>, images: Vec<String>) -> anyhow::Result<()> {
    if output.is_none() && std::io::stdout().is_terminal() {
        anyhow::bail!("an archive is nothing for a terminal: use --output or redirect standard output");
    }
    let mut chunks = call!(client, local.save_images(v1::SaveImagesRequest { images }))?;
    let Some(path) = output else {
        let mut out = std::io::stdout().lock();
        while let Some(message) = chunks.message().await.map_err(|status| client.error(&status))? {
            out.write_all(&message.chunk).context("cannot write to standard output")?;
        }
        return out.flush().context("cannot write to standard output");
    };
    if path.metadata().is_ok_and(|place| !place.is_file()) {
        // A device or a pipe takes what comes.
        return write_file(client, &path, &mut chunks).await;
    }
    // Beside its final place, so that half an archive is never taken for a whole one.
    let unfinished = path.with_file_name(format!(
        ".{}.{}",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id()
    ));
    let written = write_file(client, &unfinished, &mut chunks).await.and_then(|()| {
        std::fs::rename(&unfinished, &path).with_context(|| format!("cannot write `{}`", path.display()))
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written
}

async fn write_file(
    client: &Client,
    path: &Path,
    chunks: &mut tonic::Streaming<v1::SaveImagesResponse>,
) -> anyhow::Result<()> {
    let context = || format!("cannot write `{}`", path.display());
    // The first message comes before the file, as it may be a refusal.
    let mut next = chunks.message().await.map_err(|status| client.error(&status))?;
    let mut file = std::fs::File::create(path).with_context(context)?;
    while let Some(message) = next {
        file.write_all(&message.chunk).with_context(context)?;
        next = chunks.message().await.map_err(|status| client.error(&status))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_loaded_goes_by_its_names_in_the_archive() {
        let loaded = |names: &[&str]| v1::load_image_response::Loaded {
            image: Some(v1::Image {
                id: "sha256:ab".into(),
                tags: vec!["known/here:1".into()],
                ..Default::default()
            }),
            names: names.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(report(loaded(&["a:1", "b:2"])), "Loaded image: a:1\nLoaded image: b:2\n");
        assert_eq!(report(loaded(&[])), "Loaded image ID: sha256:ab\n");
    }
}
