//! The node's network on the real kernel, with `ip`, `nft` and real traffic as witnesses.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod rig;
mod bench;
mod bridge6;
mod cluster;
mod direct;
mod fabric;
mod growth;
mod hostile;
mod ipv6;
mod lab;
mod learned;
mod mesh;
mod options;
mod overlay;
mod repair;
mod sctp;
mod traffic;
