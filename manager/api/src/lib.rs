//! The contract between the parts of a cluster: messages and stubs generated from `proto/`, the conversion between
//! wire and `rswarm-types`, and the table that says who may call what.
//!
//! The generated code is in [`v1`]. Nothing here decides or performs anything.

pub mod access;
pub mod channel;
pub mod convert;

/// Messages, clients and servers generated from `proto/rswarm/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
pub mod v1 {
    tonic::include_proto!("rswarm.v1");
}
