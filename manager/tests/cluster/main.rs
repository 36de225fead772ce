//! Managers over real mutual TLS: who may join and call what, and a service from `create` to running tasks.

#![allow(clippy::unwrap_used)]

mod access;
mod certificates;
mod host;
mod membership;
mod networks;
mod services;
