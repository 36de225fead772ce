//! A manager in name only: a dispatcher on the loopback that says what a test tells it to, and notes what it hears.

#![allow(dead_code)] // Every test uses its part.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use rswarm_api::v1;
use rswarm_api::v1::agent_message::Message as FromAgent;
use rswarm_api::v1::dispatcher_server::{Dispatcher, DispatcherServer};
use rswarm_api::v1::manager_message::{self, Message as FromManager};
use rswarm_types::{Meta, NodeId, ServiceId, Task, TaskId, TaskState, TaskStatus, Version};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longest wait for anything; what is waited for takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn id(n: u8) -> TaskId {
    TaskId::from_bytes([n; 16])
}

/// Task `web.n`, assigned and wanted running.
pub fn task(n: u8) -> Task {
    Task {
        id: id(n),
        meta: Meta::default(),
        service_id: ServiceId::from_bytes([9; 16]),
        slot: u64::from(n),
        node_id: Some(NodeId::from_bytes([8; 16])),
        spec: Arc::default(),
        spec_version: Version(1),
        service_name: "web".to_owned(),
        service_labels: BTreeMap::new(),
        ports: vec![],
        desired: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, ..TaskStatus::default() },
        networks: vec![],
        start_delay: Duration::ZERO,
    }
}

type Answer = Result<v1::ManagerMessage, Status>;

/// What one manager answers to `hello`.
#[derive(Clone)]
pub enum Behaviour {
    Lead,
    Redirect(String),
}

/// What the manager has heard.
#[derive(Default, Clone, Debug)]
pub struct Heard {
    pub sessions: u32,
    pub heartbeats: u32,
    pub hostname: String,
    /// Every status of each task, in the order of arrival.
    pub statuses: BTreeMap<TaskId, Vec<TaskState>>,
    pub errors: BTreeMap<TaskId, String>,
    /// The last status of each task.
    pub full: BTreeMap<TaskId, TaskStatus>,
    pub sequence: u64,
    /// Lines by subscription.
    pub logs: BTreeMap<String, Vec<String>>,
    pub logs_ended: Vec<String>,
    pub checks: Vec<v1::NetworkCheck>,
    /// By the last description.
    pub ports_in_use: Vec<u32>,
    pub tunnel: Option<v1::TunnelKeys>,
    /// Indexes of which the node asked to be told when all nodes are there.
    pub awaited: Vec<u64>,
}

#[derive(Clone)]
pub struct Manager {
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub heard: watch::Sender<Heard>,
    /// To the present session.
    line: Arc<Mutex<Option<mpsc::Sender<Answer>>>>,
    /// Said after each welcome.
    pub greeting: Arc<Mutex<Vec<FromManager>>>,
}

#[tonic::async_trait]
impl Dispatcher for Manager {
    type SessionStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(100);
        let mut incoming = request.into_inner();
        let behaviour = self.behaviour.lock().unwrap().clone();
        let first = match behaviour {
            Behaviour::Lead => FromManager::Welcome(manager_message::Welcome {
                session_id: "s".to_owned(),
                heartbeat_period_nanos: 20_000_000,
                warnings: vec!["odd".to_owned()],
                data_path_port: 0,
            }),
            Behaviour::Redirect(leader_addr) => {
                FromManager::Redirect(manager_message::Redirect { leader_addr })
            }
        };
        let leads = matches!(first, FromManager::Welcome(_));
        let say = |message| Ok(v1::ManagerMessage { message: Some(message) });
        sender.send(say(first)).await.unwrap();
        if leads {
            self.heard.send_modify(|heard| heard.sessions += 1);
            let greeting = self.greeting.lock().unwrap().clone();
            for message in greeting {
                sender.send(say(message)).await.unwrap();
            }
            *self.line.lock().unwrap() = Some(sender);
            let heard = self.heard.clone();
            tokio::spawn(async move {
                while let Ok(Some(message)) = incoming.message().await {
                    heard.send_modify(|heard| heard.note(message.message.unwrap()));
                }
            });
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn publish_logs(
        &self,
        request: Request<Streaming<v1::PublishLogsRequest>>,
    ) -> Result<Response<v1::PublishLogsResponse>, Status> {
        let mut incoming = request.into_inner();
        let mut id = String::new();
        while let Ok(Some(message)) = incoming.message().await {
            id.clone_from(&message.subscription_id);
            let lines = message.records.iter().map(|record| {
                format!("{}.{} {}", record.service_name, record.slot, String::from_utf8_lossy(&record.line))
            });
            self.heard.send_modify(|heard| heard.logs.entry(id.clone()).or_default().extend(lines));
        }
        self.heard.send_modify(|heard| heard.logs_ended.push(id));
        Ok(Response::new(v1::PublishLogsResponse {}))
    }
}

impl Heard {
    fn note(&mut self, message: FromAgent) {
        match message {
            FromAgent::Hello(hello) => {
                let description = hello.description.unwrap();
                self.hostname = description.hostname;
                self.tunnel = description.network.and_then(|network| network.tunnel);
            }
            FromAgent::Heartbeat(_) => self.heartbeats += 1,
            FromAgent::Description(description) => {
                let network = description.network.unwrap_or_default();
                self.ports_in_use = network.ports_in_use.iter().map(|port| port.port).collect();
                self.tunnel = network.tunnel;
            }
            FromAgent::AskSettled(index) => self.awaited.push(index),
            FromAgent::NetworkSet(_) => {}
            FromAgent::NetworkChecked(check) => self.checks.push(check),
            FromAgent::Statuses(statuses) => {
                self.sequence = self.sequence.max(statuses.sequence);
                for update in statuses.updates {
                    let status = TaskStatus::try_from(update.status.unwrap()).unwrap();
                    let task = update.task_id.parse().unwrap();
                    self.statuses.entry(task).or_default().push(status.state);
                    self.errors.insert(task, status.error.clone());
                    self.full.insert(task, status);
                }
            }
        }
    }

    pub fn last(&self, n: u8) -> Option<TaskState> {
        self.statuses.get(&id(n))?.last().copied()
    }
}

impl Manager {
    /// Serves on a port of its own; gives its address.
    pub async fn start(behaviour: Behaviour) -> (Self, String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let manager = Self {
            behaviour: Arc::new(Mutex::new(behaviour)),
            heard: watch::channel(Heard::default()).0,
            line: Arc::default(),
            greeting: Arc::default(),
        };
        let service = DispatcherServer::new(manager.clone());
        let serving = tokio::spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        (manager, addr, serving)
    }

    pub fn say(&self, message: FromManager) {
        let line = self.line.lock().unwrap();
        line.as_ref().unwrap().try_send(Ok(v1::ManagerMessage { message: Some(message) })).unwrap();
    }

    pub fn hang_up(&self) {
        *self.line.lock().unwrap() = None;
    }

    pub async fn until(&self, what: &str, reached: impl FnMut(&Heard) -> bool) -> Heard {
        let mut heard = self.heard.subscribe();
        match tokio::time::timeout(DEADLINE, heard.wait_for(reached)).await {
            Ok(heard) => heard.unwrap().clone(),
            Err(_) => panic!("waited for {what}; heard {:?}", self.heard.borrow()),
        }
    }
}

pub fn assignments(index: u64, full: bool, tasks: &[Task], removed: &[u8]) -> FromManager {
    let credential = |task: &Task| {
        let auth = task.spec.container.registry_auth.as_ref()?;
        Some(manager_message::Credential { task_id: task.id.to_string(), auth: Some(auth.into()) })
    };
    FromManager::Assignments(manager_message::Assignments {
        index,
        full,
        tasks: tasks.iter().map(Into::into).collect(),
        removed_task_ids: removed.iter().map(|&n| id(n).to_string()).collect(),
        credentials: tasks.iter().filter_map(credential).collect(),
        network: None,
    })
}
