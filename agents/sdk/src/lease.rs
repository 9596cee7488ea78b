//! Leases on pools and locks: acquired, renewed as long as somebody has the guard, given back when it is dropped.

use std::collections::BTreeMap;
use std::time::Duration;

use baton_client::{Client, ClientError, Headers};
use baton_protocol::message::MessageType;
use baton_protocol::request::{Acquire, DEFAULT_TTL_MS, Done, Granted, LeastLoaded, Release, Renew};
use baton_protocol::subject::{self, AgentVerb};
use baton_protocol::{
    AgentId, Amount, Code, LeaseId, Millis, NameError, Rejection, ResourceName, Resources, Service, Take, Takes,
};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long an attempt to renew waits for its answer.
const ATTEMPT: Duration = Duration::from_secs(2);
/// How long is waited after one that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// What is wanted of pools, all of it or nothing.
#[must_use]
#[derive(Debug, Clone)]
pub struct Want {
    take: Vec<(String, Take)>,
    least_loaded: Option<(Vec<String>, Take)>,
    priority: i32,
    wait: Duration,
    ttl: Duration,
}

impl Want {
    fn nothing() -> Self {
        let ttl = Duration::from_millis(DEFAULT_TTL_MS);
        Self { take: Vec::new(), least_loaded: None, priority: 0, wait: Duration::ZERO, ttl }
    }

    /// So much of a pool.
    pub fn of(pool: impl Into<String>, amount: impl Into<Amount>) -> Self {
        Self::nothing().and(pool, amount)
    }

    /// A lock, with others who share it.
    pub fn shared(lock: impl Into<String>) -> Self {
        Self { take: vec![(lock.into(), Take::shared())], ..Self::nothing() }
    }

    /// A lock, or any held pool, alone.
    pub fn exclusive(lock: impl Into<String>) -> Self {
        Self { take: vec![(lock.into(), Take::Exclusive)], ..Self::nothing() }
    }

    /// So much of that one of several pools that is least in use.
    pub fn of_least_loaded(pools: impl IntoIterator<Item = impl Into<String>>, amount: impl Into<Amount>) -> Self {
        let pools = pools.into_iter().map(Into::into).collect();
        Self { least_loaded: Some((pools, Take::Amount(amount.into()))), ..Self::nothing() }
    }

    /// And so much of another pool.
    pub fn and(mut self, pool: impl Into<String>, amount: impl Into<Amount>) -> Self {
        self.take.push((pool.into(), Take::Amount(amount.into())));
        self
    }

    /// Larger goes first, among those who wait: 0 unless given.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// How long to wait until it is there: not at all unless given.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// How long it is held when it can not be renewed: 30 seconds unless given. The guard renews it three times in that time.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    fn request(self, under: Option<LeaseId>, client: Option<String>) -> Result<Acquire, NameError> {
        let mut take = Takes::new();
        for (name, wanted) in self.take {
            take.insert(ResourceName::new(&name)?, wanted);
        }
        let least_loaded = match self.least_loaded {
            Some((of, take)) => {
                let of = of.iter().map(|name| ResourceName::new(name)).collect::<Result<_, _>>()?;
                Some(LeastLoaded { of, take })
            }
            None => None,
        };
        Ok(Acquire {
            id: Uuid::now_v7().to_string(),
            take,
            least_loaded,
            priority: self.priority,
            wait_ms: millis(self.wait),
            ttl_ms: millis(self.ttl),
            client,
            under,
        })
    }
}

fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}

/// Why something could not be acquired, or given back.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A name that is not one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The resource-manager refuses, or does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl LeaseError {
    /// Why it was refused, if it was.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Client(ClientError::Rejected(rejection)) => Some(rejection),
            Self::Client(_) | Self::Name(_) => None,
        }
    }

    /// Whether there was not enough, for as long as the request wanted to wait.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.rejection().is_some_and(|rejection| rejection.code == Code::PoolExhausted)
    }
}

/// Takes from pools and locks in somebody's name.
#[derive(Debug, Clone)]
pub struct Leases {
    client: Client,
    name: Option<String>,
    agent: Option<AgentId>,
    under: Option<LeaseId>,
}

impl Leases {
    /// In the name of a program that is no agent.
    #[must_use]
    pub fn of_client(name: impl Into<String>, client: Client) -> Self {
        Self { client, name: Some(name.into()), agent: None, under: None }
    }

    pub(crate) fn of_agent(agent: AgentId, client: Client, under: Option<LeaseId>) -> Self {
        Self { client, name: None, agent: Some(agent), under }
    }

    /// Acquires that; waits as long as it says.
    ///
    /// If this is given up while it waits, its place is lost within seconds; should it just have been granted, it is held
    /// until its time is up.
    pub async fn acquire(&self, want: Want) -> Result<LeaseGuard, LeaseError> {
        let ttl = want.ttl;
        let request = want.request(self.under, self.name.clone())?;
        let subject = self.subject(AgentVerb::Acquire, "lease.acquire");
        let (granted, asked) = self.client.acquire_on(subject, &request, self.headers()).await?;
        let held_until = asked + Duration::from_millis(granted.ttl_ms);
        Ok(LeaseGuard::new(self.clone(), granted, ttl, held_until))
    }

    /// Stands for election: becomes the leader of everybody who campaigns for that lock, as soon as nobody is. The guard's
    /// [token](LeaseGuard::token) is the term: at most one leads in a term, and a later one has a greater term. Who drops the
    /// guard resigns; who [loses](LeaseGuard::lost) it leads no more.
    pub async fn campaign(&self, election: &str, wait: Duration, ttl: Duration) -> Result<LeaseGuard, LeaseError> {
        self.acquire(Want::exclusive(election).wait(wait).ttl(ttl)).await
    }

    fn subject(&self, verb: AgentVerb, endpoint: &str) -> String {
        match &self.agent {
            Some(agent) => subject::agent(agent, verb),
            None => subject::request(Service::ResourceManager, endpoint),
        }
    }

    fn headers(&self) -> Headers {
        let source = self.agent.as_ref().map(ToString::to_string).or_else(|| self.name.clone());
        Headers { source, ..Headers::of(MessageType::ResourceRequest) }
    }

    async fn renew(&self, lease: LeaseId, ttl: Duration) -> Result<Granted, ClientError> {
        let request = Renew { lease, ttl_ms: Some(millis(ttl)) };
        let subject = self.subject(AgentVerb::Renew, "lease.renew");
        self.client.request_once(Service::ResourceManager, &subject, &request, self.headers(), ATTEMPT).await
    }

    async fn release(&self, lease: LeaseId, used: Resources) -> Result<(), ClientError> {
        let (subject, request) = (self.subject(AgentVerb::Release, "lease.release"), Release { lease, used });
        let _: Done = self.client.request_on(Service::ResourceManager, subject, &request, self.headers()).await?;
        Ok(())
    }
}

/// Something of pools or locks, held as long as this lives. It is renewed in the background, and given back when dropped.
#[derive(Debug)]
pub struct LeaseGuard {
    leases: Leases,
    granted: Granted,
    lost: CancellationToken,
    renewing: AbortHandle,
    given_back: bool,
}

impl LeaseGuard {
    fn new(leases: Leases, granted: Granted, ttl: Duration, held_until: Instant) -> Self {
        let lost = CancellationToken::new();
        let keep = keep(leases.clone(), granted.lease, ttl, held_until, lost.clone());
        let renewing = tokio::spawn(keep).abort_handle();
        Self { leases, granted, lost, renewing, given_back: false }
    }

    /// The lease. What must not be done by somebody whose lease has ended should be given this number, and be refused where a
    /// greater one is known: it is the fencing token. Of an election, it is the term.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.granted.lease.0
    }

    /// What is held.
    #[must_use]
    pub fn takes(&self) -> &Takes {
        &self.granted.takes
    }

    /// Cancelled when it is held no more though this lives: somebody else gave it back, or it could not be renewed in time.
    #[must_use]
    pub fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    /// Gives it back, and waits until that is stored. Of consumed pools all that was taken is used up.
    pub async fn release(self) -> Result<(), LeaseError> {
        self.release_used(std::iter::empty::<(&str, Amount)>()).await
    }

    /// Gives it back, and says what was used of consumed pools: the rest is free again.
    pub async fn release_used<N: AsRef<str>>(
        mut self,
        used: impl IntoIterator<Item = (N, Amount)>,
    ) -> Result<(), LeaseError> {
        let mut amounts: Resources = BTreeMap::new();
        for (name, amount) in used {
            amounts.insert(ResourceName::new(name.as_ref())?, amount);
        }
        self.renewing.abort();
        self.given_back = true;
        self.leases.release(self.granted.lease, amounts).await?;
        Ok(())
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.given_back || self.lost.is_cancelled() {
            return;
        }
        // Without a runtime nobody can say it: then its time will be up.
        let Ok(runtime) = Handle::try_current() else { return };
        let (leases, lease) = (self.leases.clone(), self.granted.lease);
        runtime.spawn(async move {
            if let Err(error) = leases.release(lease, Resources::new()).await {
                tracing::warn!(%lease, %error, "a lease could not be given back; it ends when its time is up");
            }
        });
    }
}

/// Renews a lease until it is lost.
async fn keep(leases: Leases, lease: LeaseId, ttl: Duration, mut held_until: Instant, lost: CancellationToken) {
    let mut pause = held_until.saturating_duration_since(Instant::now()) / 3;
    loop {
        sleep(pause).await;
        let asked = Instant::now();
        match timeout_at(held_until, leases.renew(lease, ttl)).await {
            Ok(Ok(granted)) => {
                held_until = asked + Duration::from_millis(granted.ttl_ms);
                pause = ttl / 3;
                continue;
            }
            Ok(Err(ClientError::Rejected(rejection))) if !rejection.code.is_retryable() => {
                tracing::warn!(%lease, %rejection, "a lease is lost");
                break;
            }
            Ok(Err(error)) => tracing::debug!(%lease, %error, "a lease could not be renewed yet"),
            Err(_) => {}
        }
        if Instant::now() >= held_until {
            tracing::warn!(%lease, "a lease is lost: it could not be renewed in time");
            break;
        }
        pause = AGAIN.min(ttl / 10);
    }
    lost.cancel();
}
