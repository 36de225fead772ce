//! From errors to what a caller sees: one mapping for all services.

use rswarm_core::state::Rejected;
use tonic::{Code, Status};

/// A refused command, for the one who asked for it.
pub(crate) fn rejected(rejected: &Rejected) -> Status {
    let code = match rejected {
        Rejected::Stale { .. } => Code::Aborted,
        Rejected::Missing { .. } => Code::NotFound,
        Rejected::Exists { .. } | Rejected::NameTaken { .. } => Code::AlreadyExists,
        Rejected::InUse { .. }
        | Rejected::NodeIsManager(_)
        | Rejected::NodeNotDown(_)
        | Rejected::NodeRemoved(_)
        | Rejected::PortTaken { .. }
        | Rejected::PortOfNodes { .. }
        | Rejected::SubnetTaken { .. }
        | Rejected::NotConnected { .. }
        | Rejected::NotDisconnected { .. }
        | Rejected::IngressExists { .. }
        | Rejected::NoIngress
        | Rejected::OtherCluster { .. } => Code::FailedPrecondition,
        Rejected::NoPort { .. }
        | Rejected::NetworkFull { .. }
        | Rejected::NetworkTooSmall { .. }
        | Rejected::NoSubnet { .. }
        | Rejected::NoVni
        | Rejected::TooManyIpv6Alone { .. }
        | Rejected::TooManyNodes { .. } => Code::ResourceExhausted,
        Rejected::Renamed { .. }
        | Rejected::ModeChanged(_)
        | Rejected::IngressByName { .. }
        | Rejected::NetworkFixed { .. }
        | Rejected::SubnetFixed { .. }
        | Rejected::SubnetTooNarrow { .. } => Code::InvalidArgument,
    };
    Status::new(code, rejected.to_string())
}
