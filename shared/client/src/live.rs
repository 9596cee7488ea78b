//! What services answer, as it changes.
//!
//! The events of the log say *that* something may be another now; the answer of the service says *what* it is. So nothing is folded
//! here, and what is shown is never another truth than the service's own. Events are told once and may be missed, and some of what is
//! shown changes without any: so the service is also asked now and then when there are none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use baton_protocol::request::{
    AgentList, AlertList, HeldView, LeaseList, ListAgents, ListAlerts, ListLeases, ListPools, LockList, LockView,
    PoolList, PoolView,
};
use baton_protocol::{PoolKind, ResourceName, Service, subject};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt, select_all};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::ClientError;

/// The least time between two questions. Asking also takes a fifth of the time at the most.
const PAUSE: Duration = Duration::from_millis(100);
/// How long after an event it is asked once more: another service than the one that is asked may have told it, and the one that is
/// asked not have read of it yet.
const ONCE_MORE: Duration = Duration::from_millis(500);
/// How often it is asked when nothing happens.
const IDLE: Duration = Duration::from_secs(5);

/// An answer, and whether it is another one than the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown<A> {
    /// The answer.
    pub answer: A,
    /// Whether it says something else than the one before; so does the first. What changes all the time does not count: when an agent
    /// was heard of, how full a pool is that fills by itself.
    pub changed: bool,
}

/// Answers as they change, and what else was answered; it has no end. An error that may pass is told once and no end either.
pub type Live<A> = BoxStream<'static, Result<Shown<A>, ClientError>>;

/// An answer without what changes all the time.
trait Still: Clone + PartialEq + Send + 'static {
    fn still(&self) -> Self {
        self.clone()
    }
}

impl Still for AgentList {
    fn still(&self) -> Self {
        let mut list = self.clone();
        list.agents.iter_mut().for_each(|agent| agent.heard_at = None);
        list
    }
}

impl Still for PoolList {
    fn still(&self) -> Self {
        let mut list = self.clone();
        for view in list.pools.iter_mut().filter(|view| view.pool.kind == PoolKind::Refilled) {
            view.available = None;
        }
        list
    }
}

impl Still for LeaseList {}
impl Still for LockList {}
impl Still for AlertList {}

/// The kinds of events of runs after which other leases are held, and other amounts of pools.
const OF_LEASES: [&str; 7] =
    ["run_started", "assigned", "lease_ended", "handed_over", "stage_ended", "run_finished", "budget_refused"];

impl Client {
    /// All pools, however many answers it takes.
    pub async fn all_pools(&self) -> Result<PoolList, ClientError> {
        let mut all = PoolList { pools: Vec::new(), more: false };
        loop {
            let after = all.pools.last().map(|view| view.name.clone());
            let list = self.list_pools(&ListPools { name: None, after }).await?;
            all.pools.extend(list.pools);
            if !list.more {
                return Ok(all);
            }
        }
    }

    /// All that is held of pools, or of one, however many answers it takes.
    pub async fn all_leases(&self, pool: Option<ResourceName>) -> Result<LeaseList, ClientError> {
        let mut all = LeaseList { leases: Vec::new(), more: false };
        loop {
            let after = all.leases.last().map(|held| held.lease);
            let list = self.list_leases(&ListLeases { pool: pool.clone(), after }).await?;
            all.leases.extend(list.leases);
            if !list.more {
                return Ok(all);
            }
        }
    }

    /// All locks, or one, and who holds them.
    pub async fn locks(&self, name: Option<ResourceName>) -> Result<LockList, ClientError> {
        let (pools, of) = match name {
            Some(_) => (self.list_pools(&ListPools { name: name.clone(), after: None }).await?, name),
            None => (self.all_pools().await?, None),
        };
        let leases = self.all_leases(of).await?.leases;
        let with_holders = |lock: PoolView| {
            let holds = |held: &&HeldView| held.takes.contains_key(&lock.name);
            LockView { holders: leases.iter().filter(holds).cloned().collect(), lock }
        };
        let locks = pools.pools.into_iter().filter(|view| view.pool.is_lock());
        Ok(LockList { pools: locks.map(with_holders).collect(), more: false })
    }

    /// Agents, as they change. The first answer is there when this returns.
    ///
    /// # Errors
    /// When the service refuses, or can not be asked.
    pub async fn live_agents(&self, request: ListAgents) -> Result<Live<AgentList>, ClientError> {
        let subjects = std::iter::once(subject::AGENT_EVENTS.to_owned()).chain(of_leases());
        self.live(subjects, move |client| {
            let request = request.clone();
            Box::pin(async move { client.list_agents(&request).await })
        })
        .await
    }

    /// All pools that are to be kept, as they change. The first answer is there when this returns.
    ///
    /// # Errors
    /// When the service refuses, or can not be asked.
    pub async fn live_pools(&self, keep: fn(&PoolView) -> bool) -> Result<Live<PoolList>, ClientError> {
        self.live(of_pools(), move |client| {
            Box::pin(async move {
                let mut list = client.all_pools().await?;
                list.pools.retain(keep);
                Ok(list)
            })
        })
        .await
    }

    /// All locks, or one, and who holds them, as they change. The first answer is there when this returns.
    ///
    /// # Errors
    /// When the service refuses, or can not be asked.
    pub async fn live_locks(&self, name: Option<ResourceName>) -> Result<Live<LockList>, ClientError> {
        self.live(of_pools(), move |client| {
            let name = name.clone();
            Box::pin(async move { client.locks(name).await })
        })
        .await
    }

    /// All that is held of pools, or of one, as it changes. The first answer is there when this returns.
    ///
    /// # Errors
    /// When the service refuses, or can not be asked.
    pub async fn live_leases(&self, pool: Option<ResourceName>) -> Result<Live<LeaseList>, ClientError> {
        self.live(of_pools(), move |client| {
            let pool = pool.clone();
            Box::pin(async move { client.all_leases(pool).await })
        })
        .await
    }

    /// Alerts, as they change. The first answer is there when this returns.
    ///
    /// # Errors
    /// When the service refuses, or can not be asked.
    pub async fn live_alerts(&self, request: ListAlerts) -> Result<Live<AlertList>, ClientError> {
        self.live([subject::ALERTS.to_owned()], move |client| {
            let request = request.clone();
            Box::pin(async move { client.list_alerts(&request).await })
        })
        .await
    }

    async fn live<A: Still>(
        &self,
        subjects: impl IntoIterator<Item = String>,
        ask: impl Fn(Self) -> BoxFuture<'static, Result<A, ClientError>> + Send + 'static,
    ) -> Result<Live<A>, ClientError> {
        let mut events = Vec::new();
        for subject in subjects {
            let subscribed = self.nats().subscribe(subject).await;
            events.push(subscribed.map_err(|error| ClientError::Connection(format!("can not subscribe: {error}")))?);
        }
        // What is told from here on is heard: the broker has the subscriptions before it has the first question.
        let first = ask(self.clone()).await?;
        let news = Arc::new(Notify::new());
        let heard = Arc::clone(&news);
        // Under load there are thousands in the time of one question. They are drained, and one is as good as all.
        let drain = tokio::spawn(async move {
            let mut events = select_all(events);
            while events.next().await.is_some() {
                heard.notify_one();
            }
        });
        let asker = Asker {
            client: self.clone(),
            ask,
            last: first.still(),
            ready: VecDeque::from([Shown { answer: first, changed: true }]),
            rhythm: Rhythm::new(Instant::now()),
            news,
            _drain: Drain(drain.abort_handle()),
            failing: false,
        };
        Ok(stream::unfold(Some(asker), |asker| async move {
            let mut asker = asker?;
            match asker.next().await {
                Err(error) if !error.is_transient() => Some((Err(error), None)),
                shown => Some((shown, Some(asker))),
            }
        })
        .boxed())
    }
}

fn of_leases() -> impl Iterator<Item = String> {
    OF_LEASES.into_iter().map(subject::events_of_runs)
}

fn of_pools() -> impl Iterator<Item = String> {
    let others = [
        subject::POOL_EVENTS.to_owned(),
        // What an agent has acquired ends with it.
        subject::AGENT_EVENTS.to_owned(),
        subject::events_of_service(Service::ResourceManager),
    ];
    others.into_iter().chain(of_leases())
}

struct Asker<A, Ask> {
    client: Client,
    ask: Ask,
    last: A,
    ready: VecDeque<Shown<A>>,
    rhythm: Rhythm,
    news: Arc<Notify>,
    _drain: Drain,
    /// The last question was not answered, and that was told.
    failing: bool,
}

/// Ends the task that hears events.
struct Drain(AbortHandle);

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<A: Still, Ask: Fn(Client) -> BoxFuture<'static, Result<A, ClientError>>> Asker<A, Ask> {
    async fn next(&mut self) -> Result<Shown<A>, ClientError> {
        if let Some(first) = self.ready.pop_front() {
            return Ok(first);
        }
        loop {
            loop {
                tokio::select! {
                    biased;
                    () = sleep_until(self.rhythm.next()) => break,
                    () = self.news.notified() => self.rhythm.news(Instant::now()),
                }
            }
            let asked = Instant::now();
            let answer = (self.ask)(self.client.clone()).await;
            self.rhythm.asked(asked, Instant::now());
            match answer {
                Ok(answer) => {
                    let still = answer.still();
                    let changed = still != self.last;
                    (self.last, self.failing) = (still, false);
                    return Ok(Shown { answer, changed });
                }
                Err(error) if error.is_transient() && self.failing => {}
                Err(error) => {
                    self.failing = true;
                    return Err(error);
                }
            }
        }
    }
}

/// When to ask.
#[derive(Debug)]
struct Rhythm {
    /// When it is asked next if nothing happens.
    next: Instant,
    /// Before this it is not asked.
    not_before: Instant,
    /// It is to be asked once more, however quiet it is.
    once_more: Option<Instant>,
}

impl Rhythm {
    fn new(asked: Instant) -> Self {
        Self { next: asked + IDLE, not_before: asked + PAUSE, once_more: None }
    }

    fn next(&self) -> Instant {
        self.next
    }

    /// Something may be another now.
    fn news(&mut self, now: Instant) {
        self.next = self.next.min(self.not_before.max(now));
        self.once_more = Some(now + ONCE_MORE);
    }

    /// It was asked, and answered.
    fn asked(&mut self, from: Instant, to: Instant) {
        self.not_before = to + PAUSE.max(4 * (to - from));
        let again = self.once_more.filter(|again| *again > from);
        self.once_more = again;
        self.next = again.map_or(to + IDLE, |again| again.max(self.not_before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_at_once_then_once_more_and_then_now_and_then() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut rhythm = Rhythm::new(at(0));
        assert_eq!(rhythm.next(), at(5000));
        rhythm.news(at(40));
        assert_eq!(rhythm.next(), at(100), "not sooner than the pause");
        rhythm.asked(at(100), at(110));
        assert_eq!(rhythm.next(), at(540), "half a second after the news");
        rhythm.asked(at(540), at(550));
        assert_eq!(rhythm.next(), at(5550));
        rhythm.news(at(3000));
        assert_eq!(rhythm.next(), at(3000));
        rhythm.asked(at(3000), at(3200));
        rhythm.news(at(3210));
        assert_eq!(rhythm.next(), at(4000), "asking takes a fifth of the time at the most");
        // However much happens, it goes on being asked.
        for ms in 3211..4000 {
            rhythm.news(at(ms));
        }
        assert_eq!(rhythm.next(), at(4000));
    }
}
