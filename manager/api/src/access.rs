//! Who may call which RPC. A call without a row is refused, and a test fails when the protocol has one.

use rswarm_types::Role;

/// Who a caller turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// Root on this host, through the unix socket.
    LocalRoot,
    /// A node of this cluster, by its certificate.
    Node(Role),
    /// A node of this cluster whose certificate has expired: it has proved its key, and that is all.
    Expired,
    /// Someone without a certificate of this cluster.
    Anonymous,
}

/// Who an RPC is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can connect.
    Anyone,
    /// Nodes of this cluster, whatever their role.
    AnyNode,
    /// The same, and nodes whose certificate has expired.
    AnyKey,
    /// Managers, and root on a manager's host.
    Manager,
    /// Root on this host alone.
    LocalRoot,
}

impl Access {
    /// Whether `caller` may make the call.
    pub fn admits(self, caller: Caller) -> bool {
        match (self, caller) {
            (Self::Anyone, _)
            | (Self::AnyNode, Caller::Node(_))
            | (Self::AnyKey, Caller::Node(_) | Caller::Expired)
            | (Self::Manager, Caller::LocalRoot | Caller::Node(Role::Manager))
            | (Self::LocalRoot, Caller::LocalRoot) => true,
            (Self::AnyNode | Self::AnyKey | Self::Manager | Self::LocalRoot, _) => false,
        }
    }
}

/// The row of an RPC, by its path as in the HTTP/2 request: `/rswarm.v1.Control/ListNodes`. `None` for a path that
/// is no RPC of ours.
pub fn of_path(path: &str) -> Option<Access> {
    let (service, method) = path.strip_prefix("/rswarm.v1.")?.split_once('/')?;
    Some(match (service, method) {
        ("Ca", "GetRootCertificate" | "IssueCertificate") => Access::Anyone,
        ("Ca", "RenewCertificate") => Access::AnyKey,
        ("Ca", "Withdraw") => Access::AnyNode,
        ("Dispatcher", "Session" | "PublishLogs") => Access::AnyNode,
        (
            "Control",
            "GetCluster" | "GetJoinTokens" | "RotateJoinToken" | "ListNodes" | "GetNode" | "UpdateNode"
            | "RemoveNode" | "CreateService" | "ListServices" | "GetService" | "UpdateService"
            | "RemoveService" | "WatchService" | "ServiceLogs" | "ListTasks" | "GetTask" | "ListNetworks"
            | "CreateNetwork" | "GetNetwork" | "UpdateNetwork" | "RemoveNetwork" | "PruneNetworks"
            | "VerifyNetworks" | "ConnectTask" | "DisconnectTask",
        ) => Access::Manager,
        (
            "Raft",
            "AppendEntries" | "Vote" | "PreVote" | "InstallSnapshot" | "TransferLeader" | "Propose"
            | "ReadIndex" | "JoinGroup",
        ) => Access::Manager,
        (
            "Local",
            "Ping" | "Info" | "Init" | "Join" | "Leave" | "ListImages" | "InspectImage" | "RemoveImage"
            | "LoadImage" | "ImportImage" | "PullImage" | "PushImage" | "TagImage" | "SaveImages"
            | "ImageHistory" | "PruneImages" | "DiskUsage" | "CheckLogin",
        ) => Access::LocalRoot,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    fn every_rpc() -> Vec<String> {
        let bytes: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
        let set = prost_types::FileDescriptorSet::decode(bytes).unwrap();
        let mut paths = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    paths.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        paths
    }

    #[test]
    fn every_rpc_has_a_row() {
        let paths = every_rpc();
        assert!(paths.len() > 30, "found only {paths:?}");
        for path in paths {
            assert!(of_path(&path).is_some(), "`{path}` has no row in the role table");
        }
        assert_eq!(of_path("/rswarm.v1.Control/Nope"), None);
        assert_eq!(of_path("/grpc.health.v1.Health/Check"), None);
    }

    #[test]
    fn a_worker_reads_and_writes_no_desired_state() {
        let worker = Caller::Node(Role::Worker);
        let admitted: Vec<_> =
            every_rpc().into_iter().filter(|path| of_path(path).is_some_and(|a| a.admits(worker))).collect();
        assert_eq!(
            admitted,
            [
                "/rswarm.v1.Ca/GetRootCertificate",
                "/rswarm.v1.Ca/IssueCertificate",
                "/rswarm.v1.Ca/RenewCertificate",
                "/rswarm.v1.Ca/Withdraw",
                "/rswarm.v1.Dispatcher/Session",
                "/rswarm.v1.Dispatcher/PublishLogs",
            ]
        );
    }

    #[test]
    fn without_a_certificate_one_can_only_ask_to_join() {
        let admitted: Vec<_> = every_rpc()
            .into_iter()
            .filter(|path| of_path(path).is_some_and(|a| a.admits(Caller::Anonymous)))
            .collect();
        assert_eq!(admitted, ["/rswarm.v1.Ca/GetRootCertificate", "/rswarm.v1.Ca/IssueCertificate"]);
    }

    #[test]
    fn an_expired_certificate_can_only_be_renewed() {
        let admitted = |caller: Caller| -> Vec<_> {
            every_rpc().into_iter().filter(|path| of_path(path).is_some_and(|a| a.admits(caller))).collect()
        };
        let beyond: Vec<_> = {
            let anonymous = admitted(Caller::Anonymous);
            admitted(Caller::Expired).into_iter().filter(|path| !anonymous.contains(path)).collect()
        };
        assert_eq!(beyond, ["/rswarm.v1.Ca/RenewCertificate"]);
    }
}
