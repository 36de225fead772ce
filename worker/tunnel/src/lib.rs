//! Encrypts what nodes send each other on encrypted networks, where the kernel has no WireGuard of its own.
//!
//! A process of its own (`rswarm tunnel`), which outlives the daemon and ends with its device or namespace. `engine` knows
//! the peers and decides who gets what, over `boringtun`'s state machine of the protocol; `device` and `command` act.
//! How it is told what to do: `rswarm_net::wireguard`.

mod command;
mod device;
mod engine;

pub use command::main;

use boringtun::x25519;
use rswarm_net::wireguard::{PrivateKey, PublicKey};

/// A new key of this node.
///
/// # Errors
/// The kernel gives no randomness.
pub fn new_key() -> std::io::Result<PrivateKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(PrivateKey::of(bytes))
}

/// The half of a key that others are told.
pub fn public_key(key: &PrivateKey) -> PublicKey {
    PublicKey(x25519::PublicKey::from(&x25519::StaticSecret::from(key.0)).to_bytes())
}
