//! What can go wrong between a node's plan and its kernel.

use std::{io, net::Ipv4Addr, path::PathBuf};

/// The kernel said no: its error number and, where it gives one, its own explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", io::Error::from_raw_os_error(*errno), reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
pub struct KernelError {
    /// A positive `errno` value.
    pub errno: i32,
    /// The text of the extended acknowledgement.
    pub reason: Option<String>,
}

impl From<io::Error> for KernelError {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or(libc::EIO), reason: None }
    }
}

/// Why a request to the node's network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("kernel lacks {feature}: enable {option} or load its module, then start again")]
    MissingFeature {
        feature: &'static str,
        option: &'static str,
        #[source]
        source: KernelError,
    },
    #[error("not permitted to {action}: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed, run as root")]
    NotPermitted {
        action: String,
        #[source]
        source: KernelError,
    },
    #[error("failed to {action}")]
    Kernel {
        action: String,
        #[source]
        source: KernelError,
    },
    #[error("failed to write `{value}` to `{path}`: make /proc/sys writable or set it by hand")]
    Sysctl {
        path: PathBuf,
        value: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("failed to enter network namespace `{path}`")]
    Namespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("network `{network}` of endpoint `{endpoint}` is not on this node: ensure the network first")]
    UnknownNetwork { endpoint: String, network: String },
    #[error("endpoint `{0}` is not attached")]
    UnknownEndpoint(String),
    #[error("{what} `{id}`: {reason}")]
    Invalid { what: &'static str, id: String, reason: String },
    #[error("{protocol} port {port} asked for by endpoint `{endpoint}` is published by endpoint `{holder}`")]
    PortTaken { protocol: crate::Protocol, port: u16, endpoint: String, holder: String },
    #[error(
        "{protocol} port {port} asked for by endpoint `{endpoint}` is in use by another process on this node"
    )]
    PortInUse { protocol: crate::Protocol, port: u16, endpoint: String },
    #[error("address `{address}` asked for by endpoint `{endpoint}` belongs to endpoint `{holder}`")]
    AddressTaken { address: Ipv4Addr, endpoint: String, holder: String },
    #[error("the network thread has ended: its panic is in the log")]
    ThreadEnded,
}

impl NetError {
    /// Names what was attempted; a lack of privilege gets its own words.
    pub(crate) fn kernel(action: impl Into<String>, source: KernelError) -> Self {
        let action = action.into();
        if source.errno == libc::EPERM {
            Self::NotPermitted { action, source }
        } else {
            Self::Kernel { action, source }
        }
    }
}
