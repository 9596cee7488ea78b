//! Asking the services.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::HeaderMap;
use async_nats::{Message, Request, RequestErrorKind};
use baton_protocol::message::MessageType;
use baton_protocol::pressure::PressureView;
use baton_protocol::request::{
    AcknowledgeAlert, Acquire, AcquireAnswer, Advice, Advise, AgentList, AgentsFound, AlertList, ApproveBudget,
    AskHandoff, CancelRun, CancelRuns, CapacityPlan, DecideStage, DenyBudget, Done, EventStored, ExplainPlacement,
    FindAgents, Forecast, ForecastQueue, GetLearning, GetPlacement, GetPressure, GetRun, GetSchedule, GetSpending,
    GetWorkflow, Granted, HandoffAsked, HeldView, ImportLearning, LearningPage, LeaseList, ListAgents, ListAlerts,
    ListLeases, ListPools, ListRuns, ListSchedules, ListTriggers, ListWorkflows, PauseRun, PauseSchedule,
    PlacementExplained, PlacementView, PlanCapacity, PoolList, RaiseEvent, RegisterWorkflow, Release, RemovePool,
    RemoveSchedule, RemoveTrigger, Renew, RerunRun, ResumeRun, RunAccepted, RunList, RunsCancelled, ScheduleList,
    ScheduleView, SetPool, SetSchedule, SetStrategy, SetTrigger, SharePool, SignalRun, SignalStored, Spending,
    StageDecided, StartRun, Strategy, TriggerList, TriggerView, WorkflowList, WorkflowView,
};
use baton_protocol::run::RunView;
use baton_protocol::{Code, Pool, Rejection, ResourceName, RunId, ScheduleName, Service, Take, TriggerName, subject};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::connect::{ConnectError, connect};
use crate::error::ClientError;
use crate::headers::Headers;
use crate::settings::ConnectSettings;

/// How long a request is repeated, unless [`Client::with_deadline`] says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How long an attempt waits for its answer.
pub const ATTEMPT: Duration = Duration::from_secs(2);
/// How long all requests may stay without an answer before the server is doubted: the first time, and at the most.
const DOUBT: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(30));
/// The waits between attempts: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Asks Baton's services, over a connection that may be shared.
///
/// While a service has no leader (a standby takes over, a broker restarts) nobody answers for it: a request is repeated
/// until the deadline. Repeating is safe, every request of the protocol means the same the second time.
///
/// A server that is cut off from the others of its cluster keeps its clients, and nobody there answers them. So when
/// nothing has been answered for some seconds and other servers are known, the connection moves to one of them.
#[derive(Debug, Clone)]
pub struct Client {
    nats: async_nats::Client,
    deadline: Duration,
    waits_when_refused: bool,
    source: Option<String>,
    doubt: Arc<Mutex<Doubt>>,
}

/// Whether the server that we are connected to reaches anybody.
#[derive(Debug)]
struct Doubt {
    /// When the first request since the last answer was seen to be without one.
    since: Option<Instant>,
    /// How long that may last: longer each time that another server has not helped.
    bearable: Duration,
}

impl Doubt {
    fn new() -> Self {
        Self { since: None, bearable: DOUBT.0 }
    }

    /// Notes that a request was not answered; says whether another server is to be tried.
    fn unanswered(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < self.bearable {
            return false;
        }
        self.since = None;
        self.bearable = (self.bearable * 2).min(DOUBT.1);
        true
    }
}

impl Client {
    /// Connects as [`connect`] does.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        Ok(Self::new(connect(settings).await?))
    }

    /// Uses a connection that is there.
    #[must_use]
    pub fn new(nats: async_nats::Client) -> Self {
        let doubt = Arc::new(Mutex::new(Doubt::new()));
        Self { nats, deadline: DEADLINE, waits_when_refused: true, source: None, doubt }
    }

    /// Repeats requests for that long; zero asks once.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Whether a request that is refused for the moment, with a time to ask again (too much is under way, the log is full),
    /// is repeated until the deadline, as it is unless told otherwise, or given back at once: to somebody who has a better
    /// use for the time, or who passes the refusal on. A service that is away is waited for in any case.
    #[must_use]
    pub fn waits_when_refused(mut self, waits: bool) -> Self {
        self.waits_when_refused = waits;
        self
    }

    /// Says who asks, in the header `Baton-Source` of requests that do not say it themselves.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The connection.
    #[must_use]
    pub fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    /// Asks an endpoint of a service, again and again until it answers or the deadline has passed.
    pub async fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        service: Service,
        endpoint: &str,
        request: &Q,
        headers: Headers,
    ) -> Result<A, ClientError> {
        self.request_on(service, subject::request(service, endpoint), request, headers).await
    }

    /// Asks a service on a subject, again and again until it answers or the deadline has passed.
    pub async fn request_on<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        service: Service,
        subject: String,
        request: &Q,
        headers: Headers,
    ) -> Result<A, ClientError> {
        let end = Instant::now() + self.deadline;
        let mut wait = BACKOFF.0;
        let body = encode(&subject, request)?;
        // Built once: what is repeated is the same message.
        let map = self.signed(headers).to_map();
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            let attempt = if self.deadline.is_zero() { ATTEMPT } else { ATTEMPT.min(left) };
            let error = match self.ask(service, &subject, body.clone(), map.clone(), attempt).await {
                Ok(answer) => return decode(&subject, &answer),
                Err(error) => error,
            };
            let advised = match &error {
                ClientError::Rejected(rejection) => rejection.retry_after_ms.map(Duration::from_millis),
                _ => None,
            };
            let pause = spread(advised.unwrap_or(wait));
            let passed_on = !self.waits_when_refused && advised.is_some();
            if passed_on || !error.is_transient() || Instant::now() + pause >= end {
                return Err(error);
            }
            tracing::debug!(%service, subject, %error, "asking again");
            sleep(pause).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Asks a service on a subject once.
    pub async fn request_once<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        service: Service,
        subject: &str,
        request: &Q,
        headers: Headers,
        timeout: Duration,
    ) -> Result<A, ClientError> {
        let body = encode(subject, request)?;
        decode(subject, &self.ask(service, subject, body, self.signed(headers).to_map(), timeout).await?)
    }

    fn signed(&self, mut headers: Headers) -> Headers {
        headers.source = headers.source.or_else(|| self.source.clone());
        headers
    }

    async fn ask(
        &self,
        service: Service,
        subject: &str,
        body: Bytes,
        headers: HeaderMap,
        timeout: Duration,
    ) -> Result<Message, ClientError> {
        let request = Request::new().payload(body).headers(headers).timeout(Some(timeout));
        let error = match self.nats.send_request(subject.to_owned(), request).await {
            Ok(answer) => {
                *self.doubt() = Doubt::new();
                return match rejection(&answer) {
                    Some(rejection) => Err(ClientError::Rejected(rejection)),
                    None => Ok(answer),
                };
            }
            Err(error) => error,
        };
        if matches!(error.kind(), RequestErrorKind::NoResponders | RequestErrorKind::TimedOut) {
            let hopeless = self.doubt().unanswered(Instant::now());
            if hopeless {
                self.try_another_server().await;
            }
        }
        Err(match error.kind() {
            RequestErrorKind::NoResponders => ClientError::NoService(service),
            RequestErrorKind::TimedOut => ClientError::Timeout { service, after: timeout },
            RequestErrorKind::MaxPayloadExceeded => ClientError::Rejected(Rejection::new(
                Code::TooLarge,
                format!("the request is larger than the {} bytes that the broker takes", self.nats.max_payload()),
            )),
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
                ClientError::Connection(format!("the request could not be sent to {subject}: {error}"))
            }
        })
    }

    fn doubt(&self) -> MutexGuard<'_, Doubt> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects anew, if there is more than one server to connect to: most likely to another one.
    async fn try_another_server(&self) {
        // Without a connection one is being looked for already.
        if self.nats.connection_state() != State::Connected {
            return;
        }
        let pool = tokio::time::timeout(ATTEMPT, self.nats.server_pool()).await;
        if matches!(pool, Ok(Ok(servers)) if servers.len() > 1) {
            tracing::info!("nobody answers on this server: connecting anew");
            // An error means that the connection is closed, which the next request meets.
            let _ = self.nats.force_reconnect().await;
        }
    }

    /// Registers a workflow, or a new version of it.
    pub async fn register_workflow(&self, request: &RegisterWorkflow) -> Result<WorkflowView, ClientError> {
        self.manager("workflow.register", request).await
    }

    /// Checks a workflow definition without registering it.
    pub async fn validate_workflow(&self, request: &RegisterWorkflow) -> Result<WorkflowView, ClientError> {
        self.manager("workflow.validate", request).await
    }

    /// Lists the workflows.
    pub async fn list_workflows(&self, request: &ListWorkflows) -> Result<WorkflowList, ClientError> {
        self.manager("workflow.list", request).await
    }

    /// Gives a workflow's definition.
    pub async fn get_workflow(&self, request: &GetWorkflow) -> Result<WorkflowView, ClientError> {
        self.manager("workflow.get", request).await
    }

    /// Starts a run. A request without a run id gets one here, so that repeating it starts nothing twice.
    ///
    /// While as many runs are live as may be, a new one is refused ([`Code::Overloaded`]) and asked for again when the
    /// refusal says, until the deadline; see [`Client::waits_when_refused`].
    pub async fn start_run(&self, mut request: StartRun) -> Result<RunAccepted, ClientError> {
        let run = *request.run.get_or_insert_with(|| RunId::from_uuid(Uuid::now_v7()));
        let mut headers = Headers::of(MessageType::CoordinationRequest).of_run(run);
        headers.trace = request.trace;
        self.request(Service::WorkflowManager, "run.start", &request, headers).await
    }

    /// Gives a run with its stages and attempts.
    pub async fn get_run(&self, run: RunId) -> Result<RunView, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(run);
        self.request(Service::WorkflowManager, "run.get", &GetRun { run }, headers).await
    }

    /// Lists runs, the newest first.
    pub async fn list_runs(&self, request: &ListRuns) -> Result<RunList, ClientError> {
        self.manager("run.list", request).await
    }

    /// Cancels a run.
    pub async fn cancel_run(&self, request: &CancelRun) -> Result<RunAccepted, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(request.run);
        self.request(Service::WorkflowManager, "run.cancel", request, headers).await
    }

    /// Cancels live runs, the oldest first, some at a time; asked again until there are no more.
    pub async fn cancel_runs(&self, request: &CancelRuns) -> Result<RunsCancelled, ClientError> {
        self.manager("runs.cancel", request).await
    }

    /// Pauses a run.
    pub async fn pause_run(&self, request: &PauseRun) -> Result<RunAccepted, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(request.run);
        self.request(Service::WorkflowManager, "run.pause", request, headers).await
    }

    /// Lets a paused run go on.
    pub async fn resume_run(&self, run: RunId) -> Result<RunAccepted, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(run);
        self.request(Service::WorkflowManager, "run.resume", &ResumeRun { run }, headers).await
    }

    /// Starts a run that repeats another one from a stage on. A request without an id for the new run gets one here, so
    /// that repeating it starts nothing twice.
    pub async fn rerun_run(&self, mut request: RerunRun) -> Result<RunAccepted, ClientError> {
        let run = *request.new_run.get_or_insert_with(|| RunId::from_uuid(Uuid::now_v7()));
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(run);
        self.request(Service::WorkflowManager, "run.rerun", &request, headers).await
    }

    /// Approves or rejects a stage that people decide on.
    pub async fn decide_stage(&self, request: &DecideStage) -> Result<StageDecided, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(request.run);
        self.request(Service::WorkflowManager, "stage.decide", request, headers).await
    }

    /// Gives a run a signal.
    pub async fn signal_run(&self, request: &SignalRun) -> Result<SignalStored, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(request.run);
        self.request(Service::WorkflowManager, "run.signal", request, headers).await
    }

    /// Makes a schedule, or changes one.
    pub async fn set_schedule(&self, request: &SetSchedule) -> Result<ScheduleView, ClientError> {
        self.manager("schedule.set", request).await
    }

    /// Pauses a schedule, or lets it go on.
    pub async fn pause_schedule(&self, name: ScheduleName, paused: bool) -> Result<ScheduleView, ClientError> {
        self.manager("schedule.pause", &PauseSchedule { name, paused }).await
    }

    /// Removes a schedule. Runs that it started go on.
    pub async fn remove_schedule(&self, name: ScheduleName) -> Result<ScheduleView, ClientError> {
        self.manager("schedule.remove", &RemoveSchedule { name }).await
    }

    /// Gives a schedule, and when it starts runs next.
    pub async fn get_schedule(&self, name: ScheduleName) -> Result<ScheduleView, ClientError> {
        self.manager("schedule.get", &GetSchedule { name }).await
    }

    /// Lists the schedules.
    pub async fn list_schedules(&self, request: &ListSchedules) -> Result<ScheduleList, ClientError> {
        self.manager("schedule.list", request).await
    }

    /// Makes a trigger, or changes one.
    pub async fn set_trigger(&self, request: &SetTrigger) -> Result<TriggerView, ClientError> {
        self.manager("trigger.set", request).await
    }

    /// Removes a trigger. Runs that it started go on.
    pub async fn remove_trigger(&self, name: TriggerName) -> Result<TriggerView, ClientError> {
        self.manager("trigger.remove", &RemoveTrigger { name }).await
    }

    /// Lists the triggers.
    pub async fn list_triggers(&self, request: &ListTriggers) -> Result<TriggerList, ClientError> {
        self.manager("trigger.list", request).await
    }

    /// Raises an event. Repeating it with the same id raises nothing twice.
    pub async fn raise_event(&self, request: &RaiseEvent) -> Result<EventStored, ClientError> {
        self.manager("event.raise", request).await
    }

    /// Lists the agents.
    pub async fn list_agents(&self, request: &ListAgents) -> Result<AgentList, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::ResourceManager, "agent.list", request, headers).await
    }

    /// Finds agents that can do something, the one to be preferred first.
    pub async fn find_agents(&self, request: &FindAgents) -> Result<AgentsFound, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::Optimizer, "agent.find", request, headers).await
    }

    /// Makes a pool, or changes one.
    pub async fn set_pool(&self, name: ResourceName, pool: Pool) -> Result<Done, ClientError> {
        self.resources("pool.set", &SetPool { name, pool }).await
    }

    /// Shares out what is left of a consumed pool among its parts.
    pub async fn share_pool(&self, request: &SharePool) -> Result<PoolList, ClientError> {
        self.resources("pool.share", request).await
    }

    /// Removes a pool that nobody uses.
    pub async fn remove_pool(&self, name: ResourceName) -> Result<Done, ClientError> {
        self.resources("pool.remove", &RemovePool { name }).await
    }

    /// Lists pools: as many as one answer holds.
    pub async fn list_pools(&self, request: &ListPools) -> Result<PoolList, ClientError> {
        self.resources("pool.list", request).await
    }

    /// Lists what is held of pools: as much as one answer holds.
    pub async fn list_leases(&self, request: &ListLeases) -> Result<LeaseList, ClientError> {
        self.resources("lease.list", request).await
    }

    /// Takes from pools; waits as long as the request says. A request without an id gets one here. Nothing renews what was acquired so: see the SDK's guard.
    pub async fn acquire(&self, request: &Acquire) -> Result<Granted, ClientError> {
        let headers = Headers::of(MessageType::ResourceRequest);
        let (granted, _) =
            self.acquire_on(subject::request(Service::ResourceManager, "lease.acquire"), request, headers).await?;
        Ok(granted)
    }

    /// Takes from pools, asking on a subject, again and again while the answer is that the request waits. Gives also when the
    /// question was sent that was answered: what is held is held for as long as the answer says from some time after that.
    pub async fn acquire_on(
        &self,
        subject: String,
        request: &Acquire,
        headers: Headers,
    ) -> Result<(Granted, Instant), ClientError> {
        let begun = Instant::now();
        let end = begun + Duration::from_millis(request.wait_ms);
        let patience = begun + self.deadline.max(Duration::from_millis(request.wait_ms));
        let (mut request, mut wait) = (request.clone(), BACKOFF.0);
        if request.id.is_empty() {
            // So that asking again takes nothing twice.
            request.id = Uuid::now_v7().to_string();
        }
        loop {
            let asked = Instant::now();
            let left = end.saturating_duration_since(asked);
            request.wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let answer =
                self.request_once(Service::ResourceManager, &subject, &request, headers.clone(), ATTEMPT).await;
            let error = match answer {
                Ok(AcquireAnswer { granted: Some(granted), .. }) => return Ok((granted, asked)),
                Ok(AcquireAnswer { granted: None, .. }) => continue,
                Err(error) => error,
            };
            let exhausted = error.code() == Some(Code::PoolExhausted);
            if exhausted || !error.is_transient() || Instant::now() + wait >= patience {
                return Err(error);
            }
            sleep(spread(wait)).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// Gives an account more.
    pub async fn approve_budget(&self, request: &ApproveBudget) -> Result<Done, ClientError> {
        self.resources("budget.approve", request).await
    }

    /// Says that an account gets no more.
    pub async fn deny_budget(&self, request: &DenyBudget) -> Result<Done, ClientError> {
        self.resources("budget.deny", request).await
    }

    /// Adds up what was spent.
    pub async fn spending(&self, request: &GetSpending) -> Result<Spending, ClientError> {
        self.resources("budget.spending", request).await
    }

    /// Keeps what was acquired for longer.
    pub async fn renew_lease(&self, request: &Renew) -> Result<Granted, ClientError> {
        self.resources("lease.renew", request).await
    }

    /// Gives back what was acquired.
    pub async fn release_lease(&self, request: &Release) -> Result<Done, ClientError> {
        self.resources("lease.release", request).await
    }

    /// Who has a lock alone, if somebody has: of an election, who leads, and since when; its lease is the term.
    pub async fn holder_of(&self, lock: &ResourceName) -> Result<Option<HeldView>, ClientError> {
        let list = self.list_leases(&ListLeases { pool: Some(lock.clone()), after: None }).await?;
        Ok(list.leases.into_iter().find(|held| held.takes.get(lock) == Some(&Take::Exclusive)))
    }

    /// Lists alerts, the latest first.
    pub async fn list_alerts(&self, request: &ListAlerts) -> Result<AlertList, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::ResourceManager, "alert.list", request, headers).await
    }

    /// Shows how much pressure there is.
    pub async fn pressure(&self) -> Result<PressureView, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::ResourceManager, "pressure.get", &GetPressure {}, headers).await
    }

    /// Says that somebody has seen an alert.
    pub async fn acknowledge_alert(&self, request: &AcknowledgeAlert) -> Result<Done, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::ResourceManager, "alert.acknowledge", request, headers).await
    }

    /// Offers a task that is under way to another agent, in the name of who holds it. Where the request does not say who that
    /// is, it is looked up first, so that repeating the request moves the task once.
    pub async fn ask_handoff(&self, mut request: AskHandoff) -> Result<HandoffAsked, ClientError> {
        if request.from.is_none() {
            let view = self.get_run(request.run).await?;
            let stage = view.stages.iter().find(|stage| stage.name == request.stage.stage);
            let attempts = stage.and_then(|stage| match request.stage.item {
                None => Some(&stage.attempts),
                Some(item) => stage.items.get(item as usize).map(|item| &item.attempts),
            });
            request.from = attempts.and_then(|attempts| attempts.last()?.agent.clone());
        }
        let headers = Headers::of(MessageType::CoordinationRequest).of_run(request.run);
        self.request(Service::ResourceManager, "handoff.ask", &request, headers).await
    }

    /// Changes how tasks are placed, from now on.
    pub async fn set_strategy(&self, strategy: Strategy) -> Result<Done, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::Optimizer, "strategy.set", &SetStrategy { strategy }, headers).await
    }

    /// Gives the strategy, the queue, and what was learned of agents and stages.
    pub async fn get_placement(&self) -> Result<PlacementView, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::Optimizer, "placement.get", &GetPlacement {}, headers).await
    }

    /// Says why an agent has a task, or why the task waits.
    pub async fn explain_placement(&self, request: &ExplainPlacement) -> Result<PlacementExplained, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::Optimizer, "placement.explain", request, headers).await
    }

    /// Says how many agents of which type a workflow and a rate of runs need.
    pub async fn plan_capacity(&self, request: &PlanCapacity) -> Result<CapacityPlan, ClientError> {
        self.request(Service::Optimizer, "capacity.plan", request, Headers::of(MessageType::CoordinationRequest)).await
    }

    /// Says how agents should work together on a workflow, and why.
    pub async fn advise(&self, request: &Advise) -> Result<Advice, ClientError> {
        self.request(Service::Optimizer, "advice.get", request, Headers::of(MessageType::CoordinationRequest)).await
    }

    /// Says when what waits will be begun, what of that which is due will be late, and what would help.
    pub async fn forecast_queue(&self) -> Result<Forecast, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::Optimizer, "queue.forecast", &ForecastQueue {}, headers).await
    }

    /// Gives what was learned, a page at a time.
    pub async fn get_learning(&self, request: &GetLearning) -> Result<LearningPage, ClientError> {
        self.request(Service::Optimizer, "learning.get", request, Headers::of(MessageType::CoordinationRequest)).await
    }

    /// Brings what was learned elsewhere.
    pub async fn import_learning(&self, request: &ImportLearning) -> Result<Done, ClientError> {
        self.request(Service::Optimizer, "learning.import", request, Headers::of(MessageType::CoordinationRequest))
            .await
    }

    async fn resources<Q: Serialize, A: DeserializeOwned>(
        &self,
        endpoint: &str,
        request: &Q,
    ) -> Result<A, ClientError> {
        self.request(Service::ResourceManager, endpoint, request, Headers::of(MessageType::ResourceRequest)).await
    }

    async fn manager<Q: Serialize, A: DeserializeOwned>(&self, endpoint: &str, request: &Q) -> Result<A, ClientError> {
        let headers = Headers::of(MessageType::CoordinationRequest);
        self.request(Service::WorkflowManager, endpoint, request, headers).await
    }
}

/// A wait that is up to a half longer than that, never shorter: those who were told the same shall not come back as one.
fn spread(wait: Duration) -> Duration {
    let (low, _) = Uuid::new_v4().as_u64_pair();
    let part = f64::from(u32::try_from(low >> 32).unwrap_or_default()) / f64::from(u32::MAX);
    wait + wait.mul_f64(part / 2.0)
}

/// The refusal that a message is, if it is one: it has the header of a service error.
fn rejection(answer: &Message) -> Option<Rejection> {
    let headers = answer.headers.as_ref()?;
    let text = headers.get(async_nats::service::NATS_SERVICE_ERROR);
    let status = headers.get(async_nats::service::NATS_SERVICE_ERROR_CODE);
    if text.is_none() && status.is_none() {
        return None;
    }
    Some(serde_json::from_slice(&answer.payload).unwrap_or_else(|_| {
        // Not one of our services, or one that could not even write its refusal.
        let code = match status.map(async_nats::HeaderValue::as_str) {
            Some("400") => Code::InvalidRequest,
            Some("413") => Code::TooLarge,
            Some("503") => Code::Unavailable,
            _ => Code::Internal,
        };
        Rejection::new(code, text.map_or("the service gives no reason", async_nats::HeaderValue::as_str))
    }))
}

fn encode<Q: Serialize + ?Sized>(subject: &str, request: &Q) -> Result<Bytes, ClientError> {
    match serde_json::to_vec(request) {
        Ok(body) => Ok(body.into()),
        Err(error) => {
            Err(ClientError::Unreadable { what: format!("the request to {subject}"), why: error.to_string() })
        }
    }
}

fn decode<A: DeserializeOwned>(subject: &str, answer: &Message) -> Result<A, ClientError> {
    serde_json::from_slice(&answer.payload).map_err(|error| ClientError::Unreadable {
        what: format!("the answer to {subject}"),
        why: format!("{error} (is the service of another version?)"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_doubted_after_a_while_and_less_readily_each_time() {
        let begin = Instant::now();
        let mut doubt = Doubt::new();
        let tries: Vec<u64> =
            (0..120).filter(|&second| doubt.unanswered(begin + Duration::from_secs(second))).collect();
        assert_eq!(tries, [3, 10, 23, 48, 79, 110]);
    }
}
