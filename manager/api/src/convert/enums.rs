//! Enums, in both directions from one table each.

use rswarm_types as types;
use types::netmap::EndpointState;
use types::network::NetworkDriver;
use types::service::{EndpointMode, FailureAction, Protocol, PublishMode, UpdateOrder, UpdateState};
use types::task::{PlacementFilter, RestartCondition};
use types::{Availability, NodeState, Role, TaskState};

use super::WireError;
use crate::v1;

macro_rules! table {
    ($name:ident: $($variant:ident),+ $(,)?) => {
        impl From<$name> for v1::$name {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant),+ }
            }
        }
        impl TryFrom<v1::$name> for $name {
            type Error = WireError;
            fn try_from(value: v1::$name) -> Result<Self, WireError> {
                match value {
                    $(v1::$name::$variant => Ok(Self::$variant),)+
                    v1::$name::Unspecified => Err(WireError::missing(stringify!($name))),
                }
            }
        }
    };
}

table!(Role: Worker, Manager);
table!(Availability: Active, Pause, Drain);
table!(NodeState: Unknown, Down, Ready);
table!(NetworkDriver: Bridge, Overlay, Host, None);
table!(EndpointState: Starting, Ready, Draining);
table!(FailureAction: Pause, Continue, Rollback);
table!(UpdateOrder: StopFirst, StartFirst);
table!(UpdateState: Updating, Paused, Completed, RollbackStarted, RollbackPaused, RollbackCompleted);
table!(EndpointMode: Vip, Dnsrr);
table!(Protocol: Tcp, Udp, Sctp);
table!(PublishMode: Ingress, Host);
table!(RestartCondition: None, OnFailure, Any);
table!(PlacementFilter: Ready, Resources, Constraint, Platform, HostPort, MaxReplicas, MaxTasks);
table!(TaskState: New, Pending, Assigned, Accepted, Preparing, Ready, Starting, Running, Complete, Shutdown, Failed,
    Rejected, Remove, Orphaned);
