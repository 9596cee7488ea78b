//! Whether this process lives, and whether work can be done.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use baton_client::{Client, ClientError};
use baton_protocol::request::{InstanceStatus, Role};
use baton_protocol::{Code, Service};
use futures::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::Door;
use crate::problem::{Kind, Problem};

/// For how long a finding is given again. Whoever asks meanwhile costs the services nothing.
const FRESH: Duration = Duration::from_millis(500);

/// The gateway is alive.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Alive {
    /// The version of Baton it runs.
    version: &'static str,
}

/// Work can be done.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Ready {
    /// The leading instance of each service.
    leaders: BTreeMap<Service, String>,
}

/// What was found last, and when.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, Finding)>>);

/// The leaders there are.
#[derive(Debug, Clone, Default)]
struct Finding {
    connected: bool,
    leaders: BTreeMap<Service, String>,
}

pub(crate) async fn alive() -> Json<Alive> {
    Json(Alive { version: env!("CARGO_PKG_VERSION") })
}

pub(crate) async fn ready(State(door): State<Door>) -> Result<Json<Ready>, Problem> {
    door.readiness.find(&door).await.verdict().map(Json)
}

impl Readiness {
    /// Looks, unless somebody just did; who asks meanwhile waits for the same finding.
    async fn find(&self, door: &Door) -> Finding {
        let mut last = self.0.lock().await;
        if let Some((at, finding)) = &*last
            && at.elapsed() < FRESH
        {
            return finding.clone();
        }
        let finding = look(door).await;
        *last = Some((Instant::now(), finding.clone()));
        finding
    }
}

async fn look(door: &Door) -> Finding {
    if !door.is_connected() {
        return Finding::default();
    }
    let leaders = join_all(Service::WRITERS.map(|service| async move {
        let leader = leader(&door.client, service).await;
        leader.inspect_err(|error| tracing::debug!(%service, %error, "no status")).ok().flatten().map(|l| (service, l))
    }));
    Finding { connected: true, leaders: leaders.await.into_iter().flatten().collect() }
}

/// The leading instance of a service.
async fn leader(client: &Client, service: Service) -> Result<Option<String>, ClientError> {
    let leading = |statuses: Vec<InstanceStatus>| statuses.into_iter().find(|status| status.role == Role::Leading);
    // Mostly the first that answers leads; to learn that there are no more answers takes a while.
    let first = leading(client.statuses_of(service, 1).await?);
    let leader = match first {
        Some(leader) => Some(leader),
        None => leading(client.statuses(service).await?),
    };
    Ok(leader.map(|leader| leader.instance))
}

impl Finding {
    fn verdict(self) -> Result<Ready, Problem> {
        let mut missing: Vec<String> = Vec::new();
        if !self.connected {
            missing.push("nats".to_owned());
        }
        let headless = Service::WRITERS.iter().filter(|service| !self.leaders.contains_key(service));
        missing.extend(headless.map(ToString::to_string));
        if missing.is_empty() {
            return Ok(Ready { leaders: self.leaders });
        }
        let detail = if self.connected {
            format!("no instance leads: {}", missing.join(", "))
        } else {
            "there is no connection to NATS".to_owned()
        };
        Err(Problem { missing, ..Problem::new(Kind::Code(Code::Unavailable), detail) })
    }
}
