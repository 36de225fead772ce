//! The resolver as a process, on hosts that are network namespaces. Needs root.

#![allow(clippy::unwrap_used)]

mod forward;
mod life;
mod rig;
mod serve;
