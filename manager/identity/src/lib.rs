//! Who a node is: the cluster's certificate authority, join tokens, certificates, and the rustls configurations that
//! all traffic runs on.
//!
//! A node's identity is its key. Its certificate names node (CN), role (OU) and cluster (O) and is signed by the
//! cluster's root; an address says nothing about identity, so host names are never compared. Authority, meaning which
//! role may call which RPC and which nodes were removed, is decided by the RPC layer: a request is refused there with
//! a message the caller can read, also on connections that were open before a node was removed.
//!
//! Deliberately left out: the store, RPC and any async runtime. Only [`Store`] changes the configurations in use, only
//! [`IdentityDir`] touches the disk. The crypto provider is ring, passed explicitly and never installed globally.

mod certificate;
mod clock;
mod credentials;
mod dir;
mod handshake;
mod join;
mod key;
mod root;
mod tls;
mod token;
mod verify;

pub use certificate::{Identity, IdentityError, NodeCertificate, peer_certificate, renew_at};
pub use clock::{BACKDATE, CLOCK_LEEWAY, ClockSkew, check_clock};
pub use credentials::{Credentials, CredentialsError};
pub use dir::{DirError, IdentityDir};
pub use handshake::{HandshakeError, diagnose};
pub use join::{VerifyRootError, bootstrap_client_config, probe_client_config, verify_root};
pub use key::{KeyError, NodeKey};
pub use root::{Claims, IssueError, IssuedCertificate, RootCa, RootCaError};
pub use tls::{Receiver, ServerExpectation, Store};
pub use token::{JoinSecret, JoinToken, ParseTokenError, RootDigest, secret_matches};
pub use verify::{Roots, RootsError, VerifyError};
