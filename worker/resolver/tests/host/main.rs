//! The resolver as a process, on hosts that are network namespaces. Needs root.

mod forward;
mod life;
mod rig;
mod serve;
