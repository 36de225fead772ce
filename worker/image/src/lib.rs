//! Container images on one host: a content-addressed store, archives in, registries, layers ready for overlayfs.
//!
//! [`ImageStore`] is the one entry point and the only writer below its root. There is no cluster in here: which image
//! is wanted, and by whom, is the caller's business. Credentials come from the caller too; nothing of them is kept.
//!
//! ```text
//! <root>/images.json             names and facts of each manifest, by image (index.rs, names.rs)
//!        blobs/sha256/<hex>      manifests, configs, layers as they came (blobs.rs)
//!        layers/<hex>/fs         unpacked layers, shared, read-only by convention (layers.rs)
//!        partial/<hex>           downloads under way, gone on with after a restart (partial.rs)
//!        tmp/                    unfinished things, cleared at start
//! ```

mod ahead;
mod archive;
mod blobs;
pub mod builder;
mod changes;
mod compress;
mod digest;
mod error;
mod import;
mod index;
mod layers;
mod manifest;
mod names;
mod partial;
mod platform;
mod reference;
mod registry;
mod save;
mod store;
mod unpack;
mod usage;

pub use archive::{LoadOptions, Loaded};
pub use digest::Digest;
pub use error::ImageError;
pub use import::ImportConfig;
pub use index::Origin;
pub use oci_spec::image::ImageConfiguration;
pub use platform::Platform;
pub use reference::{DEFAULT_REGISTRY, DEFAULT_TAG, Reference};
pub use registry::{Credentials, Mirror, Progress, ProgressSink, PullOptions, Pushed, ResolvedReference};
pub use store::{Hold, Image, ImageStore, Limits, Removed};
pub use unpack::{LayerError, LayerLimits, TarError};
pub use usage::{HistoryEntry, ImageUsage, PruneFilter, Pruned, Usage};
