//! What the `Local` service does with images: transfers with progress, archives in chunks, disk use.

use std::io::Write;
use std::sync::Arc;

use rswarm_api::v1;
use rswarm_image::{Credentials, Image, ImageError, Progress, ProgressSink, PruneFilter, PullOptions};
use rswarm_types::error::chain;
use rswarm_types::task::RegistryAuth;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::local::LocalService;

/// Answers of a streaming call.
pub type Answers<T> = ReceiverStream<Result<T, Status>>;

/// Progress messages that may wait for a slow terminal; more are left out.
const PROGRESS_AHEAD: usize = 64;
/// Chunks of an archive that may wait for a slow reader before the writer does.
const CHUNKS_AHEAD: usize = 4;
/// Bytes of an archive sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

impl LocalService {
    pub(super) fn pull(
        &self,
        request: v1::PullImageRequest,
    ) -> Result<Answers<v1::PullImageResponse>, Status> {
        use v1::pull_image_response::Step;
        let v1::PullImageRequest { reference, platform, auth } = request;
        let (sender, receiver) = mpsc::channel(PROGRESS_AHEAD);
        let mut options = self.transfer(auth, &sender, |progress| v1::PullImageResponse {
            step: Some(Step::Progress(progress)),
        });
        if !platform.is_empty() {
            options.platform = Some(platform.parse().map_err(|error| image_error(&error))?);
        }
        let images = self.images.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = images.pull(&reference, &options) => outcome,
                () = sender.closed() => return,
            };
            let last = outcome
                .map(|image| v1::PullImageResponse { step: Some(Step::Image(wire(&image))) })
                .map_err(|error| image_error(&error));
            let _ = sender.send(last).await;
        });
        Ok(ReceiverStream::new(receiver))
    }

    pub(super) fn push(&self, request: v1::PushImageRequest) -> Answers<v1::PushImageResponse> {
        use v1::push_image_response::{Pushed, Step};
        let v1::PushImageRequest { reference, auth } = request;
        let (sender, receiver) = mpsc::channel(PROGRESS_AHEAD);
        let options = self.transfer(auth, &sender, |progress| v1::PushImageResponse {
            step: Some(Step::Progress(progress)),
        });
        let images = self.images.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = images.push(&reference, &options) => outcome,
                () = sender.closed() => return,
            };
            let last = outcome
                .map(|pushed| {
                    let pushed = Pushed {
                        reference: pushed.reference,
                        tag: pushed.tag,
                        digest: pushed.digest.to_string(),
                        size_bytes: pushed.size,
                    };
                    v1::PushImageResponse { step: Some(Step::Pushed(pushed)) }
                })
                .map_err(|error| image_error(&error));
            let _ = sender.send(last).await;
        });
        ReceiverStream::new(receiver)
    }

    /// How this node reaches registries, as the user of a call, with progress to `sender`.
    fn transfer<T: Send + 'static>(
        &self,
        auth: Option<v1::RegistryAuth>,
        sender: &mpsc::Sender<Result<T, Status>>,
        message: impl Fn(v1::TransferProgress) -> T + Send + Sync + 'static,
    ) -> PullOptions {
        // Weak, so that the stream ends with the transfer.
        let sender = sender.downgrade();
        let progress: ProgressSink = Arc::new(move |event| {
            // A full queue only costs a line of progress.
            if let Some(sender) = sender.upgrade() {
                let _ = sender.try_send(Ok(message(progress_message(event))));
            }
        });
        PullOptions { auth: credentials(auth), progress: Some(progress), ..self.pull.clone() }
    }

    pub(super) fn save(&self, names: Vec<String>) -> Answers<v1::SaveImagesResponse> {
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let images = self.images.clone();
        tokio::task::spawn_blocking(move || {
            let writer = Chunks { sender: sender.clone(), chunk: Vec::new() };
            if let Err(error) = images.save(&names, writer) {
                let _ = sender.blocking_send(Err(image_error(&error)));
            }
        });
        ReceiverStream::new(receiver)
    }

    pub(super) async fn prune(
        &self,
        request: v1::PruneImagesRequest,
    ) -> Result<v1::PruneImagesResponse, Status> {
        let mut filter = PruneFilter { all: request.all, ..PruneFilter::default() };
        let now = jiff::Timestamp::now();
        for v1::Filter { key, values } in &request.filters {
            for value in values {
                filter.add(key, value, now).map_err(|error| image_error(&error))?;
            }
        }
        let images = self.images.clone();
        let pruned = blocking(move || images.prune(&filter)).await?;
        Ok(v1::PruneImagesResponse {
            untagged: pruned.removed.untagged,
            deleted: pruned.removed.deleted.iter().map(ToString::to_string).collect(),
            freed_bytes: pruned.freed_bytes,
        })
    }

    pub(super) async fn usage(&self) -> Result<v1::DiskUsageResponse, Status> {
        let images = self.images.clone();
        let usage = blocking(move || images.usage()).await?;
        let images = usage.images.iter().map(|usage| v1::disk_usage_response::ImageUsage {
            image: Some(wire(&usage.image)),
            shared_bytes: usage.shared_bytes,
            unique_bytes: usage.unique_bytes,
            user: usage.user.clone().unwrap_or_default(),
        });
        Ok(v1::DiskUsageResponse {
            images: images.collect(),
            image_bytes: usage.image_bytes,
            reclaimable_bytes: usage.reclaimable_bytes,
            partial_download_bytes: usage.partial_bytes,
            reclaimable_download_bytes: usage.reclaimable_partial_bytes,
        })
    }
}

/// What a call says of its user; `None` if it says nothing.
pub fn credentials(auth: Option<v1::RegistryAuth>) -> Option<Credentials> {
    rswarm_worker::credentials(&RegistryAuth::try_from(auth?).ok()?)
}

/// Sends what is written in chunks; waits for a slow reader, and fails once there is none.
struct Chunks {
    sender: mpsc::Sender<Result<v1::SaveImagesResponse, Status>>,
    chunk: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.sender
            .blocking_send(Ok(v1::SaveImagesResponse { chunk }))
            .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}

/// Runs work on the image store off the async threads.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| image_error(&error)),
        Err(panic) => Err(Status::internal(format!("the image store failed: {panic}"))),
    }
}

pub fn image_error(error: &ImageError) -> Status {
    let text = chain(error);
    match error {
        ImageError::NoSuchImage { .. } | ImageError::NotInRegistry { .. } => Status::not_found(text),
        ImageError::InUse { .. } | ImageError::SeveralNames { .. } => Status::failed_precondition(text),
        ImageError::Unauthorized { .. } | ImageError::LoginRefused { .. } => Status::permission_denied(text),
        ImageError::Unreachable { .. } | ImageError::TimedOut { .. } | ImageError::Interrupted { .. } => {
            Status::unavailable(text)
        }
        ImageError::RateLimited { .. } => Status::resource_exhausted(text),
        _ => Status::invalid_argument(text),
    }
}

pub fn wire(image: &Image) -> v1::Image {
    v1::Image {
        id: image.id.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        tags: image.references.clone(),
        digests: image.digests.clone(),
        created: image.created.clone().unwrap_or_default(),
        size_bytes: image.size_bytes,
        os: image.config.os().to_string(),
        architecture: image.config.architecture().to_string(),
        config_json: serde_json::to_string(&image.config).unwrap_or_default(),
    }
}

fn progress_message(event: Progress) -> v1::TransferProgress {
    let (digest, done_bytes, total_bytes, stage) = match event {
        Progress::Manifest { digest, bytes, .. } => (digest, 0, bytes, "resolved"),
        Progress::Downloading { layer, done, total } => (layer, done, total, "downloading"),
        Progress::Unpacking { layer } => (layer, 0, 0, "unpacking"),
        Progress::Uploading { layer, done, total } => (layer, done, total, "uploading"),
        Progress::Present { layer } => (layer, 0, 0, "present"),
        Progress::Mounted { layer } => (layer, 0, 0, "mounted"),
        Progress::Ready { layer } => (layer, 0, 0, "done"),
    };
    v1::TransferProgress { digest: digest.to_string(), done_bytes, total_bytes, stage: stage.to_owned() }
}
