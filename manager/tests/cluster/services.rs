//! Services, from `create` to running tasks and their logs.

use std::time::Instant;

use rswarm_api::v1;
use tonic::Code;

use crate::host::{Host, PATIENCE, enroll, eventually, open_session};

pub fn spec(name: &str, image: &str, replicas: u64) -> v1::ServiceSpec {
    let replicated = v1::service_mode::Replicated { replicas };
    v1::ServiceSpec {
        name: name.to_owned(),
        mode: Some(v1::ServiceMode { mode: Some(v1::service_mode::Mode::Replicated(replicated)) }),
        task: Some(v1::TaskSpec {
            container: Some(v1::ContainerSpec { image: image.to_owned(), ..v1::ContainerSpec::default() }),
            ..v1::TaskSpec::default()
        }),
        ..v1::ServiceSpec::default()
    }
}

pub async fn create(host: &Host, spec: v1::ServiceSpec) -> v1::CreateServiceResponse {
    let request = v1::CreateServiceRequest { spec: Some(spec), ..Default::default() };
    host.control().create_service(request).await.unwrap().into_inner()
}

/// Follows the service until so many tasks run.
pub async fn wait_running(host: &Host, service: &str, wanted: u64) -> v1::WatchServiceResponse {
    let request = v1::WatchServiceRequest { service: service.to_owned() };
    let mut views = host.control().watch_service(request).await.unwrap().into_inner();
    let mut index = 0;
    let search = async {
        loop {
            let view = views.message().await.unwrap().expect("the stream to go on");
            assert!(view.index >= index, "a view of the past");
            index = view.index;
            let counts = view.service.as_ref().unwrap().counts.unwrap();
            if counts.running == wanted {
                return view;
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.expect("the tasks to run in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_service_runs_on_its_workers_and_is_pinned_to_a_digest() {
    let host = Host::found().await;
    let (mut one, two) = (host.worker("w1").await, host.worker("w2").await);

    let created = create(&host, spec("", "web", 4)).await;
    let service = created.service.unwrap();
    let name = service.spec.as_ref().unwrap().name.clone();
    let view = wait_running(&host, &name, 4).await;
    assert_eq!((one.tasks().len(), two.tasks().len()), (2, 2), "spread over both");
    assert_eq!(view.up_to_date_task_ids.len(), 4);
    assert_eq!(view.nodes.len(), 2);
    one.wait_acknowledged().await;

    let task = &one.tasks()[0];
    let task_spec = task.spec.as_ref().unwrap();
    assert!(task_spec.container.as_ref().unwrap().image.contains("@sha256:"));
    assert_eq!(task_spec.placement.as_ref().unwrap().platforms.len(), 1);
    assert_eq!(task.networks[0].name, "bridge");
    assert!(name.contains('_'), "a name was made up: {name}");

    let remove = v1::RemoveServiceRequest { service: name.clone() };
    host.control().remove_service(remove).await.unwrap();
    eventually("the workers are told to stop", || async {
        (one.tasks().is_empty() && two.tasks().is_empty()).then_some(())
    })
    .await;
    eventually("the tasks are gone", || async {
        let tasks =
            host.control().list_tasks(v1::ListTasksRequest::default()).await.unwrap().into_inner().tasks;
        tasks.is_empty().then_some(())
    })
    .await;
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_loses_its_tasks_to_another() {
    let host = Host::found().await;
    let one = host.worker("w1").await;
    create(&host, spec("web", "web", 2)).await;
    wait_running(&host, "web", 2).await;
    let two = host.worker("w2").await;
    let started = Instant::now();
    one.power_off();
    eventually("the node is down", || async {
        let node = host.node(&one.id()).await.ok()?;
        (node.status?.state() == v1::NodeState::Down).then_some(())
    })
    .await;
    wait_running(&host, "web", 2).await;
    eprintln!("power off until the tasks run elsewhere: {:?}", started.elapsed());
    assert_eq!(two.tasks().len(), 2);
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_by_name_and_leave_nothing_behind() {
    let host = Host::found().await;
    let mut control = host.control();
    let mut refuse = async |spec: v1::ServiceSpec, code: Code, words: &str| {
        let request = v1::CreateServiceRequest { spec: Some(spec), ..Default::default() };
        let status = control.create_service(request).await.err().unwrap();
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(words), "{} lacks {words}", status.message());
    };
    refuse(spec("a b", "web", 1), Code::InvalidArgument, "a b").await;
    refuse(spec("web", "web", 1_000_000_000), Code::InvalidArgument, "1000000000").await;
    refuse(spec("web", "nope", 1), Code::NotFound, "image `nope` not found").await;
    let mut ingress = spec("web", "web", 1);
    let port = v1::PortConfig {
        protocol: v1::Protocol::Tcp.into(),
        target: 80,
        published: Some(8080),
        mode: v1::PublishMode::Ingress.into(),
        ..Default::default()
    };
    let mode = v1::EndpointMode::Dnsrr.into();
    ingress.endpoint = Some(v1::EndpointSpec { mode, ports: vec![port], ..Default::default() });
    refuse(ingress, Code::InvalidArgument, "`dnsrr` cannot publish port 80 in mode `ingress`").await;
    let mut networked = spec("web", "web", 1);
    let attachment = v1::NetworkAttachment { network: "backend".to_owned(), aliases: Vec::new() };
    networked.task.as_mut().unwrap().networks.push(attachment);
    refuse(networked, Code::NotFound, "backend").await;
    let mut constrained = spec("web", "web", 1);
    let placement =
        v1::Placement { constraints: vec!["node.colour==red".to_owned()], ..v1::Placement::default() };
    constrained.task.as_mut().unwrap().placement = Some(placement);
    refuse(constrained, Code::InvalidArgument, "node.colour").await;
    assert!(
        host.control()
            .list_services(v1::ListServicesRequest::default())
            .await
            .unwrap()
            .into_inner()
            .services
            .is_empty()
    );

    let created = create(&host, spec("web", "down", 0)).await;
    assert!(created.warnings[0].contains("the registry does not answer"), "{:?}", created.warnings);
    refuse(spec("web", "web", 1), Code::AlreadyExists, "in use").await;

    let service = created.service.unwrap();
    let version = service.meta.unwrap().version;
    let update = |version| v1::UpdateServiceRequest {
        id: service.id.clone(),
        version,
        spec: Some(spec("web", "down", 1)),
        ..v1::UpdateServiceRequest::default()
    };
    let updated = host.control().update_service(update(version)).await.unwrap().into_inner().service.unwrap();
    let stale = host.control().update_service(update(version)).await.err().unwrap();
    assert_eq!(stale.code(), Code::Aborted);
    assert!(stale.message().starts_with("update out of sequence"), "{}", stale.message());
    let back =
        v1::UpdateServiceRequest { spec: None, rollback: true, ..update(updated.meta.unwrap().version) };
    let back = host.control().update_service(back).await.unwrap().into_inner().service.unwrap();
    assert_eq!(back.spec, service.spec);

    let filters = vec![v1::Filter { key: "colour".to_owned(), values: vec!["red".to_owned()] }];
    let unknown = host.control().list_services(v1::ListServicesRequest { filters }).await.err().unwrap();
    assert!(unknown.message().contains("invalid filter `colour`"), "{}", unknown.message());
    let missing = v1::GetServiceRequest { service: "nope".to_owned() };
    assert_eq!(host.control().get_service(missing).await.err().unwrap().code(), Code::NotFound);
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_every_worker_and_name_the_one_that_is_missing() {
    let host = Host::found().await;
    let (one, _two) = (host.worker("w1").await, host.worker("w2").await);
    create(&host, spec("web", "web", 2)).await;
    wait_running(&host, "web", 2).await;

    let logs = async |follow: bool| {
        let targets = vec!["web".to_owned()];
        let request = v1::ServiceLogsRequest { targets, follow, ..v1::ServiceLogsRequest::default() };
        host.control().service_logs(request).await.unwrap().into_inner()
    };
    let mut stream = logs(false).await;
    let mut lines = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        assert_eq!(reply.warnings, Vec::<String>::new());
        lines.extend(reply.records);
    }
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|record| record.service_name == "web" && record.slot > 0));
    let nodes: std::collections::BTreeSet<_> = lines.iter().map(|record| record.node_id.clone()).collect();
    assert_eq!(nodes.len(), 2);

    let mut followed = logs(true).await;
    let mut seen = 0;
    while seen < 4 {
        seen += followed.message().await.unwrap().expect("a follower's stream to go on").records.len();
    }
    let held = host.control().get_service(v1::GetServiceRequest { service: "web".to_owned() }).await.unwrap();
    let held = held.into_inner().service.unwrap();
    let scaled = v1::UpdateServiceRequest {
        id: held.id,
        version: held.meta.unwrap().version,
        spec: Some(spec("web", &held.spec.unwrap().task.unwrap().container.unwrap().image, 3)),
        ..v1::UpdateServiceRequest::default()
    };
    host.control().update_service(scaled).await.unwrap();
    while seen < 6 {
        seen += followed.message().await.unwrap().expect("lines of the new task").records.len();
    }
    drop(followed);

    one.power_off();
    let mut stream = logs(false).await;
    let mut warnings = Vec::new();
    while let Some(reply) = stream.message().await.unwrap() {
        warnings.extend(reply.warnings);
    }
    assert!(warnings.iter().any(|warning| warning.contains("`w1`")), "{warnings:?}");
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reports_only_on_its_own_tasks() {
    let host = Host::found().await;
    let one = host.worker("w1").await;
    create(&host, spec("web", "web", 1)).await;
    wait_running(&host, "web", 1).await;
    let task = one.tasks().pop().unwrap();

    let (_, identity) = enroll(&host.addr, &host.tokens().await.worker).await.unwrap();
    let report = |task_id: &str, state: v1::TaskState| {
        let status = v1::TaskStatus { state: state.into(), at: u64::MAX, ..v1::TaskStatus::default() };
        let update = v1::agent_message::Update { task_id: task_id.to_owned(), status: Some(status) };
        let statuses = v1::agent_message::TaskStatuses { sequence: 1, updates: vec![update] };
        v1::AgentMessage { message: Some(v1::agent_message::Message::Statuses(statuses)) }
    };
    let cases = [
        (report(&task.id, v1::TaskState::Failed), Some(Code::PermissionDenied)),
        (report("nonsense", v1::TaskState::Failed), Some(Code::InvalidArgument)),
        // A task that is gone is no fault of the worker.
        (report(&"0".repeat(25), v1::TaskState::Failed), None),
    ];
    for (message, expected) in cases {
        let (send, mut incoming, _) = open_session(&host.addr, &identity, "w2").await.unwrap();
        send.send(message).await.unwrap();
        let refused = loop {
            match incoming.message().await {
                Ok(Some(v1::ManagerMessage {
                    message: Some(v1::manager_message::Message::StatusesAcknowledged(1)),
                })) => break None,
                Ok(message) => assert!(message.is_some(), "the session ended without a reason"),
                Err(status) => break Some(status.code()),
            }
        };
        assert_eq!(refused, expected);
    }
    let held = host.control().get_task(v1::GetTaskRequest { task: task.id }).await.unwrap().into_inner();
    assert_eq!(held.task.unwrap().status.unwrap().state(), v1::TaskState::Running);
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_larger_than_one_command_is_carried_out() {
    let host = Host::found().await;
    create(&host, spec("web", "web", 4000)).await;
    let tasks = eventually("all tasks are made", || async {
        let tasks =
            host.control().list_tasks(v1::ListTasksRequest::default()).await.unwrap().into_inner().tasks;
        (tasks.len() >= 4000).then_some(tasks)
    })
    .await;
    assert_eq!(tasks.len(), 4000);
    let slots: std::collections::BTreeSet<_> = tasks.iter().map(|task| task.slot).collect();
    assert_eq!((slots.first(), slots.last(), slots.len()), (Some(&1), Some(&4000), 4000));
    let status = tasks[0].status.as_ref().unwrap();
    assert_eq!(status.state(), v1::TaskState::Pending);
    assert!(status.error.contains("no suitable node"), "{}", status.error);
    host.manager.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_s_credential_goes_to_the_nodes_of_its_tasks_and_is_shown_to_nobody() {
    const SECRET: &str = "s3cr3t";
    let host = Host::found().await;
    let one = host.worker("w1").await;
    let auth = |password: &str| v1::RegistryAuth {
        username: "me".to_owned(),
        password: password.to_owned(),
        registry: "docker.io".to_owned(),
        ..v1::RegistryAuth::default()
    };
    let mut private = spec("web", "private", 1);
    // A second node stays without a task.
    private.task.as_mut().unwrap().placement =
        Some(v1::Placement { constraints: vec!["node.hostname==w1".to_owned()], ..v1::Placement::default() });

    let without = create(&host, spec("without", "private", 0)).await;
    assert!(without.warnings[0].contains("--with-registry-auth"), "{:?}", without.warnings);
    assert!(without.warnings[0].contains("unauthorized to read `private`"), "{:?}", without.warnings);

    let two = host.worker("w2").await;
    let request = v1::CreateServiceRequest {
        spec: Some(private.clone()),
        registry_auth: Some(auth(SECRET)),
        ..Default::default()
    };
    assert!(!format!("{request:?}").contains(SECRET), "{request:?}");
    let created = host.control().create_service(request).await.unwrap().into_inner();
    assert_eq!(created.warnings, Vec::<String>::new(), "the credential finds the digest");
    let view = wait_running(&host, "web", 1).await;
    let task = &one.tasks()[0];
    assert_eq!(one.credential(&task.id), Some(auth(SECRET)));
    assert_eq!(two.credentials_seen(), 0);
    let shown = [prost::Message::encode_to_vec(&view), prost::Message::encode_to_vec(&created)].concat();
    assert!(!shown.windows(SECRET.len()).any(|found| found == SECRET.as_bytes()));

    // Changes the service, and says which credential its next task comes with.
    let change = async |request: v1::UpdateServiceRequest| {
        let held = v1::GetServiceRequest { service: "web".to_owned() };
        let held = host.control().get_service(held).await.unwrap().into_inner().service.unwrap();
        let version = held.meta.unwrap().version;
        let request = v1::UpdateServiceRequest { id: held.id, version, ..request };
        let index = host.control().update_service(request).await.unwrap().into_inner().service.unwrap();
        let made_at = index.spec_version;
        eventually("a task of the new spec runs", || async {
            let task = one.tasks().into_iter().find(|task| task.spec_version == made_at)?;
            Some(one.credential(&task.id).map(|auth| auth.password))
        })
        .await
    };
    let changed = |force_update, registry_auth| {
        let mut spec = private.clone();
        spec.task.as_mut().unwrap().force_update = force_update;
        v1::UpdateServiceRequest { spec: Some(spec), registry_auth, ..Default::default() }
    };
    let rollback = || v1::UpdateServiceRequest { rollback: true, ..Default::default() };
    assert_eq!(change(changed(1, None)).await.as_deref(), Some(SECRET), "it is kept");
    assert_eq!(change(changed(2, Some(auth("other")))).await.as_deref(), Some("other"));
    assert_eq!(change(rollback()).await.as_deref(), Some(SECRET), "the previous spec's");
    assert_eq!(
        change(changed(3, Some(v1::RegistryAuth::default()))).await,
        None,
        "an empty one takes it away"
    );

    let request = v1::CreateServiceRequest {
        spec: Some(spec("bad", "private", 1)),
        registry_auth: Some(v1::RegistryAuth { registry: "docker.io".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let refused = host.control().create_service(request).await.err().unwrap();
    assert!(refused.message().contains("a user name and a password, or a token"), "{}", refused.message());
    host.manager.shutdown().await;
}
