//! The overlays of a node: what they should be ([`Overlay`]), of which pieces of kernel state that consists
//! ([`fabric`]), what to do for it ([`plan`]), and the hands ([`helper`]).
//!
//! ```text
//!        host's namespace          │        helper namespace, pinned at `NetworkConfig::helper`
//!                                  │
//!  eth0 ── masquerade ── rshost ───┼─── rsup ── routing, virtual addresses, filter ── rsb4097 ─┬─ rsv… ── task's eth0
//!   └────── UDP 4789 ──────────────┼──────────────────────────────────────────────── rsx4097 ──┘
//! ```
//!
//! Everything between tasks is routed, by the sender's node and by the receiver's; a bridge only joins links. Nothing
//! is learned or flooded: neighbours and forwarding entries are exactly those of the endpoints there are.

pub(crate) mod fabric;
pub(crate) mod helper;
mod model;
pub(crate) mod plan;

pub(crate) use model::{MTU_MAX, MTU_MIN, bridge_name, next_hop, vxlan_name};
pub use model::{MTU6_MIN, Overlay, OverlayNetwork, PublishedPort, VirtualService};
pub use plan::Step;
