//! What a node asks of the managers for its own membership: to be let in, to be let go again, a new certificate.

use std::time::Duration;

use anyhow::ensure;
use rswarm_api::v1::ca_client::CaClient;
use rswarm_api::{channel, v1};
use rswarm_identity as identity;
use rswarm_identity::{Credentials, JoinToken, NodeKey, ServerExpectation};
use rswarm_types::Timestamp;
use rswarm_types::error::chain;
use tonic::transport::Channel;

/// A manager that takes longer to answer is as good as unreachable.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// What a manager gave to a joining node.
#[derive(Debug)]
pub struct Enrolled {
    pub credentials: Credentials,
    pub managers: Vec<String>,
}

/// Proves the token to the manager and receives a certificate. The manager is trusted by the digest in the token, before
/// anything is sent to it.
///
/// `clock` tells the time of this host. It is compared with the manager's before anything else depends on it: with a
/// wrong clock certificates look expired or not valid yet, which would say nothing of the cause.
pub async fn enrol(
    token: &JoinToken,
    addr: &str,
    availability: i32,
    clock: impl Fn() -> Timestamp,
) -> anyhow::Result<Enrolled> {
    let probe = identity::probe_client_config(token.digest);
    let mut ca = CaClient::new(channel::tls(addr, move || probe.clone()));
    let root = ca
        .get_root_certificate(v1::GetRootCertificateRequest {})
        .await
        .map_err(|status| unreachable(addr, &status))?
        .into_inner();
    identity::verify_root(&root.root_cert_pem, token.digest)?;
    identity::check_clock(Timestamp(root.server_at), clock())?;

    let config = identity::bootstrap_client_config(token.digest);
    let mut ca = CaClient::new(channel::tls(addr, move || config.clone()));
    let key = NodeKey::generate()?;
    let request =
        v1::IssueCertificateRequest { csr_pem: key.csr_pem()?, token: token.to_string(), availability };
    let issued =
        ca.issue_certificate(request).await.map_err(|status| unreachable(addr, &status))?.into_inner();
    let credentials = Credentials::new(&issued.root_cert_pem, &issued.cert_pem, key)?;
    Ok(Enrolled { credentials, managers: issued.manager_addrs })
}

/// Gives back the place in the cluster that [`enrol`] brought, for a node that could not take it.
pub async fn withdraw(managers: &[String], identity: &identity::Receiver) -> anyhow::Result<()> {
    let ask = |mut ca: CaClient<Channel>| async move {
        match ca.withdraw(v1::WithdrawRequest {}).await {
            // Whoever is refused as a stranger is none of the cluster any more: the first answer was lost.
            Err(status) if status.code() == tonic::Code::PermissionDenied => Ok(()),
            answer => answer.map(drop),
        }
    };
    // Twice, for what a node has open is closed soon after it was removed, its answer perhaps with it.
    ask_each(&[managers, managers].concat(), identity, ask).await
}

/// Asks for a new certificate over a key of its own.
pub async fn renew(
    managers: &[String],
    identity: &identity::Receiver,
    csr_pem: &str,
) -> anyhow::Result<v1::RenewCertificateResponse> {
    let ask = |mut ca: CaClient<Channel>| {
        let request = v1::RenewCertificateRequest { csr_pem: csr_pem.to_owned() };
        async move { ca.renew_certificate(request).await.map(tonic::Response::into_inner) }
    };
    ask_each(managers, identity, ask).await
}

/// The credentials that a renewal made. Trust does not change by it: the root has to be the one known here.
pub fn renewed(
    response: &v1::RenewCertificateResponse,
    key: NodeKey,
    former: &Credentials,
) -> anyhow::Result<Credentials> {
    let credentials = Credentials::new(&response.root_cert_pem, &response.cert_pem, key)?;
    ensure!(
        credentials.roots().digests().eq(former.roots().digests()),
        "the manager answered with the root of another cluster"
    );
    Ok(credentials)
}

/// Asks one manager after the other until one answers.
async fn ask_each<T, F: Future<Output = Result<T, tonic::Status>>>(
    managers: &[String],
    identity: &identity::Receiver,
    ask: impl Fn(CaClient<Channel>) -> F,
) -> anyhow::Result<T> {
    let mut last = anyhow::anyhow!("no manager is known");
    for addr in managers {
        let receiver = identity.clone();
        let channel = channel::tls(addr, move || receiver.client_config(ServerExpectation::Manager));
        match tokio::time::timeout(ANSWER_TIMEOUT, ask(CaClient::new(channel))).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => last = unreachable(addr, &status),
            Err(_) => {
                last = anyhow::anyhow!("the manager at `{addr}` did not answer within {ANSWER_TIMEOUT:?}");
            }
        }
    }
    Err(last)
}

/// Words a failed first contact: what the handshake met says more than the status does.
fn unreachable(addr: &str, status: &tonic::Status) -> anyhow::Error {
    if let Some(reason) = identity::diagnose(status) {
        return anyhow::Error::new(reason).context(format!("cannot talk to the manager at `{addr}`"));
    }
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown => {
            // A status that stands for an error prints that as its code would.
            let reason = std::error::Error::source(status).map_or_else(|| status.message().to_owned(), chain);
            anyhow::anyhow!("cannot reach a manager at `{addr}`: {reason}")
        }
        _ => anyhow::anyhow!(status.message().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rswarm_api::v1::control_server::Control as _;
    use rswarm_identity::{Identity, RootCa};
    use rswarm_manager::{
        BoxFuture, ImageResolver, InitOptions, Manager, ManagerConfig, ResolveError, ResolvedImage,
    };
    use rswarm_types::task::RegistryAuth;
    use rswarm_types::{Availability, ClusterId, ClusterSpec, NodeDescription, NodeId, Role, Version};
    use tonic::Request;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    struct NoImages;

    impl ImageResolver for NoImages {
        fn resolve<'a>(
            &'a self,
            image: &'a str,
            _: Option<&'a RegistryAuth>,
        ) -> BoxFuture<'a, Result<ResolvedImage, ResolveError>> {
            let error = ResolveError::NotFound { image: image.to_owned(), reason: "none here".to_owned() };
            Box::pin(std::future::ready(Err(error)))
        }
    }

    async fn found(dir: &std::path::Path) -> Manager {
        let now = Timestamp::now();
        let root_ca = RootCa::generate(now).unwrap();
        let claims = Identity {
            node: NodeId::from_bytes([1; 16]),
            role: Role::Manager,
            cluster: ClusterId::from_bytes([2; 16]),
        };
        let key = NodeKey::generate().unwrap();
        let issued = root_ca.issue(&key.csr_pem().unwrap(), &claims, HOUR, now, Version(0), &[]).unwrap();
        let credentials = Credentials::new(root_ca.cert_pem(), &issued.pem, key).unwrap();
        let config = ManagerConfig {
            dir: dir.join("manager"),
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            advertise_addr: "127.0.0.1:0".to_owned(),
            identity: identity::Store::new(credentials).1,
            images: Arc::new(NoImages),
            node_description: NodeDescription::default(),
        };
        let options =
            InitOptions { spec: ClusterSpec::default(), root_ca, availability: Availability::Drain };
        Manager::init(config, options).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_clock_off_by_an_hour_is_named_before_the_cluster_hears_of_the_node() {
        let dir = tempfile::tempdir().unwrap();
        let manager = found(dir.path()).await;
        let addr = manager.info().advertise_addr;
        let control = manager.control();
        let tokens = control.get_join_tokens(Request::new(v1::GetJoinTokensRequest {})).await.unwrap();
        let token: JoinToken = tokens.into_inner().worker.parse().unwrap();
        let nodes = async || {
            let nodes = control.list_nodes(Request::new(v1::ListNodesRequest::default())).await.unwrap();
            nodes.into_inner().nodes.len()
        };
        let behind = |span: Duration| move || Timestamp::now().before(span);
        // The manager is asked a moment before the host's clock is.
        for (hours, expected) in [(1, "60 minutes behind"), (24 * 400, "576000 minutes behind")] {
            let wrong = behind(hours * HOUR + HOUR / 120);
            let refused = enrol(&token, &addr, 0, wrong).await.unwrap_err().to_string();
            assert!(refused.contains(expected) && refused.contains("set this host's clock"), "{refused}");
        }
        let ahead = || Timestamp::now().after(HOUR);
        let refused = enrol(&token, &addr, 0, ahead).await.unwrap_err().to_string();
        assert!(refused.contains("60 minutes ahead"), "{refused}");
        assert_eq!(nodes().await, 1, "nobody was let in");

        let joined = enrol(&token, &addr, 0, behind(Duration::from_secs(600))).await.unwrap();
        assert_eq!(joined.credentials.identity().role, Role::Worker);
        assert_eq!(nodes().await, 2);
        let receiver = identity::Store::new(joined.credentials).1;
        let addrs = ["127.0.0.1:1".to_owned(), addr];
        withdraw(&addrs, &receiver).await.unwrap();
        assert_eq!(nodes().await, 1, "and it can take itself back");
        withdraw(&addrs, &receiver).await.expect("twice is as good");
        manager.shutdown().await;
    }
}
