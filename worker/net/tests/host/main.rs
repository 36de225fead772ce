//! The node's network on the real kernel, with `ip`, `nft` and real traffic as witnesses.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod rig;
mod lab;
mod repair;
mod traffic;
