//! The `Local` service: this host's membership and images.

use std::io::Read;

use rswarm_api::v1;
use rswarm_image::{ImageStore, ImportConfig, LoadOptions, Loaded, PullOptions};
use rswarm_types::error::chain;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::images::{Answers, blocking, credentials, image_error, wire};
use super::node::Node;

/// Chunks of an archive that may wait while layers are unpacked.
const CHUNKS_AHEAD: usize = 8;

#[derive(Clone)]
pub struct LocalService {
    pub node: Node,
    pub images: ImageStore,
    pub pull: PullOptions,
}

#[tonic::async_trait]
impl v1::local_server::Local for LocalService {
    type PullImageStream = Answers<v1::PullImageResponse>;
    type PushImageStream = Answers<v1::PushImageResponse>;
    type SaveImagesStream = Answers<v1::SaveImagesResponse>;

    async fn ping(&self, _: Request<v1::PingRequest>) -> Result<Response<v1::PingResponse>, Status> {
        Ok(Response::new(v1::PingResponse { version: env!("CARGO_PKG_VERSION").to_owned() }))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoResponse>, Status> {
        let mut info = self.node.info().await;
        info.images = self.images.list().len() as u64;
        info.insecure_registries.clone_from(&self.pull.insecure_registries);
        Ok(Response::new(info))
    }

    async fn init(&self, request: Request<v1::InitRequest>) -> Result<Response<v1::InitResponse>, Status> {
        let node = self.node.clone();
        to_the_end(async move { node.init(request.into_inner()).await }).await
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let node = self.node.clone();
        to_the_end(async move { node.join(request.into_inner()).await }).await
    }

    async fn leave(&self, request: Request<v1::LeaveRequest>) -> Result<Response<v1::LeaveResponse>, Status> {
        let node = self.node.clone();
        to_the_end(async move { node.leave(request.into_inner().force).await.map(|()| v1::LeaveResponse {}) })
            .await
    }

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let images = self.images.list().iter().map(wire).collect();
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn inspect_image(
        &self,
        request: Request<v1::InspectImageRequest>,
    ) -> Result<Response<v1::InspectImageResponse>, Status> {
        let name = request.into_inner().image;
        let images = self.images.clone();
        let (image, config) = blocking(move || {
            let image = images.find(&name)?;
            let config = images.raw_config(&image)?;
            Ok((wire(&image), config))
        })
        .await?;
        // As its builder wrote it, health check included.
        let config_json = String::from_utf8_lossy(&config).into_owned();
        Ok(Response::new(v1::InspectImageResponse { image: Some(v1::Image { config_json, ..image }) }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let v1::RemoveImageRequest { image, force } = request.into_inner();
        let images = self.images.clone();
        let removed = blocking(move || images.remove(&image, force)).await?;
        Ok(Response::new(v1::RemoveImageResponse {
            untagged: removed.untagged,
            deleted: removed.deleted.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn load_image(
        &self,
        request: Request<Streaming<v1::LoadImageRequest>>,
    ) -> Result<Response<v1::LoadImageResponse>, Status> {
        let archive = Archive::receive(request.into_inner(), |message| Some(message.chunk));
        let images = self.images.clone();
        let loaded = blocking(move || images.load(archive, &LoadOptions::default())).await?;
        let images = loaded.into_iter().map(|Loaded { image, names }| v1::load_image_response::Loaded {
            image: Some(wire(&image)),
            names,
        });
        Ok(Response::new(v1::LoadImageResponse { images: images.collect() }))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<v1::ImportImageRequest>>,
    ) -> Result<Response<v1::ImportImageResponse>, Status> {
        use v1::import_image_request::Part;
        let mut stream = request.into_inner();
        let Some(v1::ImportImageRequest { part: Some(Part::Header(header)) }) = stream.message().await?
        else {
            return Err(Status::invalid_argument("expected the image's name before its bytes"));
        };
        let config = import_config(&header).map_err(Status::invalid_argument)?;
        let archive = Archive::receive(stream, |message| match message.part {
            Some(Part::Chunk(chunk)) => Some(chunk),
            _ => None,
        });
        let images = self.images.clone();
        let image = blocking(move || images.import(archive, Some(&header.reference), &config)).await?;
        Ok(Response::new(v1::ImportImageResponse { image: Some(wire(&image)) }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        self.pull(request.into_inner()).map(Response::new)
    }

    async fn push_image(
        &self,
        request: Request<v1::PushImageRequest>,
    ) -> Result<Response<Self::PushImageStream>, Status> {
        Ok(Response::new(self.push(request.into_inner())))
    }

    async fn tag_image(
        &self,
        request: Request<v1::TagImageRequest>,
    ) -> Result<Response<v1::TagImageResponse>, Status> {
        let v1::TagImageRequest { image, reference } = request.into_inner();
        let images = self.images.clone();
        blocking(move || images.tag(&image, &reference)).await?;
        Ok(Response::new(v1::TagImageResponse {}))
    }

    async fn save_images(
        &self,
        request: Request<v1::SaveImagesRequest>,
    ) -> Result<Response<Self::SaveImagesStream>, Status> {
        Ok(Response::new(self.save(request.into_inner().images)))
    }

    async fn image_history(
        &self,
        request: Request<v1::ImageHistoryRequest>,
    ) -> Result<Response<v1::ImageHistoryResponse>, Status> {
        let name = request.into_inner().image;
        let images = self.images.clone();
        let (image, entries) = blocking(move || images.history(&name)).await?;
        let entries = entries.into_iter().map(|entry| v1::image_history_response::Entry {
            created: entry.created,
            created_by: entry.created_by,
            comment: entry.comment,
            size_bytes: entry.size_bytes,
        });
        Ok(Response::new(v1::ImageHistoryResponse { image: Some(wire(&image)), entries: entries.collect() }))
    }

    async fn prune_images(
        &self,
        request: Request<v1::PruneImagesRequest>,
    ) -> Result<Response<v1::PruneImagesResponse>, Status> {
        self.prune(request.into_inner()).await.map(Response::new)
    }

    async fn disk_usage(
        &self,
        _: Request<v1::DiskUsageRequest>,
    ) -> Result<Response<v1::DiskUsageResponse>, Status> {
        self.usage().await.map(Response::new)
    }

    async fn check_login(
        &self,
        request: Request<v1::CheckLoginRequest>,
    ) -> Result<Response<v1::CheckLoginResponse>, Status> {
        let v1::CheckLoginRequest { registry, auth } = request.into_inner();
        let credentials = credentials(auth)
            .ok_or_else(|| Status::invalid_argument("expected a user name and a password, or a token"))?;
        let checked = self.images.login(&registry, &credentials, &self.pull).await;
        let identity_token = checked.map_err(|error| image_error(&error))?.unwrap_or_default();
        Ok(Response::new(v1::CheckLoginResponse { identity_token }))
    }
}

/// A change of membership goes on when the one who asked for it has gone: half of it is worth nothing.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::spawn(change).await {
        Ok(result) => result.map(Response::new).map_err(|error| refused(&error)),
        Err(_) => Err(Status::unavailable("the daemon is stopping")),
    }
}

fn refused(error: &anyhow::Error) -> Status {
    Status::failed_precondition(chain(&**error))
}

/// `--change` instructions, as Docker's `import` knows them.
fn import_config(header: &v1::import_image_request::Header) -> Result<ImportConfig, String> {
    let mut config = ImportConfig::default();
    if !header.message.is_empty() {
        config.message = Some(header.message.clone());
    }
    header.changes.iter().try_for_each(|change| config.change(change))?;
    Ok(config)
}

/// A gRPC stream of chunks as a blocking reader. A stream that breaks is an error, never an early end.
struct Archive {
    chunks: mpsc::Receiver<Result<Vec<u8>, Status>>,
    current: std::io::Cursor<Vec<u8>>,
}

impl Archive {
    fn receive<M: Send + 'static>(
        mut stream: Streaming<M>,
        chunk: impl Fn(M) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(async move {
            loop {
                let next = match stream.message().await {
                    Ok(None) => return,
                    Ok(Some(message)) => match chunk(message) {
                        Some(chunk) => Ok(chunk),
                        None => Err(Status::invalid_argument("expected a chunk of the archive")),
                    },
                    Err(status) => Err(status),
                };
                if sender.send(next).await.is_err() {
                    return;
                }
            }
        });
        Self { chunks, current: std::io::Cursor::default() }
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let length = self.current.read(buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            match self.chunks.blocking_recv() {
                None => return Ok(0),
                Some(Ok(chunk)) => self.current = std::io::Cursor::new(chunk),
                Some(Err(status)) => return Err(std::io::Error::other(status.message().to_owned())),
            }
        }
    }
}
