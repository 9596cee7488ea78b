//! Agents: what the SDK's keeper does, and what badly made, slow, dead and doubled ones do.

use std::collections::{BTreeMap, BTreeSet};

use baton_machine::Reply;
use baton_protocol::request::{
    AcknowledgeHandoff, Assignment, Decline, Delegate, HandoffAcknowledged, HandoffOffer, Heartbeat, HeartbeatAnswer,
    Leave, OfferHandoff, Progress, RegisterAgent, Registered, Report, ReportStatus, Reports, ResourceRequest,
    RestartAgent, Usage, WorkflowRequest,
};
use baton_protocol::{AgentId, Capability, Code, Json, LeaseId, Money, Number, TaskId};

use serde_json::json;

use super::{Asker, Doing, Event, Micros, Purpose, Told, World};
use crate::check::{Asked, Checked, hold};
use crate::coverage::{Branch, Fault};
use crate::request::AnyRequest;
use crate::workload::FLAKY;

/// How long an agent may not know of a lease of its own, in the calm.
const LEARNS: Micros = 10_000_000;

/// How long a dead agent may be thought to be there, in the calm: a lease, and some time for a new leader.
const MISSED: Micros = 10_000_000;

/// A life of an agent's process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) who: usize,
    session: String,
    pub(super) alive: bool,
    died_on: Micros,
    registered: bool,
    /// It goes as soon as it may.
    leaving: bool,
    /// It was asked to begin anew.
    restart: bool,
    pub(super) stalled_until: Micros,
    /// What it holds, and whether it is at work on it still.
    held: BTreeMap<LeaseId, (Assignment, bool)>,
    /// Leases that must not be begun again.
    over: BTreeSet<LeaseId>,
    /// Offers that it has answered, or never will.
    answered: BTreeSet<Number>,
    /// What it has done and not reported yet.
    unreported: Vec<Report>,
    /// What it reported last.
    last: Option<Report>,
    every: Micros,
}

impl World {
    /// Starts a process of an agent, after a while.
    pub(super) fn start_process(&mut self, who: usize, wait: Micros) {
        let process = self.processes.len();
        self.processes.push(Process {
            who,
            session: format!("life-{process}"),
            alive: true,
            died_on: 0,
            registered: false,
            leaving: false,
            restart: false,
            stalled_until: 0,
            held: BTreeMap::new(),
            over: BTreeSet::new(),
            answered: BTreeSet::new(),
            unreported: Vec::new(),
            last: None,
            every: 600_000,
        });
        self.after(wait, Event::Process(process, Doing::Up));
    }

    fn id(&self, process: usize) -> AgentId {
        self.workload.agents[self.processes[process].who].0.clone()
    }

    fn stands_still(&mut self, process: usize, event: impl FnOnce() -> Event) -> bool {
        let until = self.processes[process].stalled_until;
        if until > self.now {
            self.at(until, event());
            return true;
        }
        false
    }

    pub(super) fn does(&mut self, process: usize, doing: Doing) {
        if let Doing::Again = doing {
            let who = self.processes[process].who;
            self.start_process(who, 0);
            return;
        }
        if !self.processes[process].alive || self.stands_still(process, || Event::Process(process, doing.clone())) {
            return;
        }
        match doing {
            Doing::Up => {
                let mut registration = self.workload.agents[self.processes[process].who].1.clone();
                registration.session.clone_from(&self.processes[process].session);
                let request = ResourceRequest::Register(self.id(process), registration);
                self.ask(Asker::Process(process, Purpose::Register), AnyRequest::Resource(request), true);
            }
            Doing::Beat => self.beat(process),
            Doing::Done(lease) => self.done(process, lease),
            Doing::Report => self.report_all(process),
            Doing::Tell(lease) => self.tell_progress(process, lease),
            Doing::Offer(lease) => self.offer(process, lease),
            Doing::Acknowledge(handoff, accepted) => {
                let (reason, response) = (if accepted { "" } else { "not now" }.to_owned(), Json::null());
                let acknowledge = AcknowledgeHandoff { handoff, accepted, reason, response };
                let request = ResourceRequest::AcknowledgeHandoff(self.id(process), acknowledge);
                self.ask(Asker::Process(process, Purpose::Acknowledge), AnyRequest::Resource(request), accepted);
            }
            Doing::Stray(report) => self.report(process, *report, Purpose::Other, false),
            Doing::Leave => {
                if self.processes[process].held.is_empty() {
                    let leave = Leave { session: self.processes[process].session.clone() };
                    let request = ResourceRequest::Leave(self.id(process), leave);
                    self.ask(Asker::Process(process, Purpose::Other), AnyRequest::Resource(request), true);
                    self.processes[process].registered = false;
                    self.after(1_000_000, Event::Process(process, Doing::Again));
                } else {
                    self.after(50_000, Event::Process(process, Doing::Leave));
                }
            }
            Doing::Again => {}
        }
    }

    fn beat(&mut self, process: usize) {
        let Process { registered, session, held, .. } = &self.processes[process];
        if *registered {
            let heartbeat = Heartbeat { session: session.clone(), holds: held.keys().copied().collect() };
            let request = ResourceRequest::Heartbeat(self.id(process), heartbeat);
            self.ask(Asker::Process(process, Purpose::Heartbeat), AnyRequest::Resource(request), false);
        }
    }

    pub(super) fn told(&mut self, process: usize, told: &std::rc::Rc<Told>) {
        let again = std::rc::Rc::clone(told);
        if !self.processes[process].alive || self.stands_still(process, || Event::ToProcess(process, again)) {
            return;
        }
        match &**told {
            Told::Assign(assignments) => {
                for assignment in assignments {
                    self.begin_work(process, assignment);
                }
            }
            Told::Cancel(cancel) => self.forget(process, cancel.lease),
            Told::Restart(restart) => self.asked_to_restart(process, restart),
            Told::Offer(offer) => self.offered(process, offer),
            Told::Handed(answer) => {
                if answer.accepted {
                    self.forget(process, answer.lease);
                }
            }
        }
    }

    fn forget(&mut self, process: usize, lease: LeaseId) {
        let it = &mut self.processes[process];
        it.held.remove(&lease);
        it.over.insert(lease);
    }

    /// It begins anew most times, as another process, or goes on.
    fn asked_to_restart(&mut self, process: usize, restart: &RestartAgent) {
        let it = &mut self.processes[process];
        if it.session != restart.session || std::mem::replace(&mut it.restart, true) {
            return;
        }
        if self.draws.chance(700) && !std::mem::replace(&mut self.processes[process].leaving, true) {
            self.coverage.branch(Branch::Restarted);
            self.after(0, Event::Process(process, Doing::Leave));
        }
    }

    fn begin_work(&mut self, process: usize, assignment: &Assignment) {
        let lease = assignment.lease;
        let it = &self.processes[process];
        if it.over.contains(&lease) || it.held.contains_key(&lease) {
            return;
        }
        let mut work = 20_000;
        if !self.calm {
            if it.leaving || self.draws.chance(self.weather.agents / 2) {
                self.coverage.fault(Fault::Declined);
                self.processes[process].over.insert(lease);
                let decline = Decline { lease, reason: "not now".to_owned() };
                let request = ResourceRequest::Decline(self.id(process), decline);
                self.ask(Asker::Process(process, Purpose::Other), AnyRequest::Resource(request), true);
                return;
            }
            work = self.draws.between(3_000, 300_000);
            if self.draws.chance(self.weather.agents / 2) {
                self.coverage.fault(Fault::Overlong);
                work = self.draws.between(1_000_000, 9_000_000);
            }
        }
        self.processes[process].held.insert(lease, (assignment.clone(), true));
        let id = self.id(process);
        self.want_for_task(&id, lease);
        if let Some(timeout) = assignment.heartbeat_timeout_ms {
            if !self.calm && self.draws.chance(self.weather.agents / 2) {
                self.coverage.fault(Fault::Hung);
                return;
            }
            if self.draws.chance(500) {
                self.after(1000 * timeout / 3, Event::Process(process, Doing::Tell(lease)));
            }
        }
        self.after(work, Event::Process(process, Doing::Done(lease)));
        if !self.calm && self.draws.chance(200 + self.weather.agents) {
            let wait = self.draws.between(0, work);
            self.after(wait, Event::Process(process, Doing::Offer(lease)));
        }
    }

    /// Tells how far it is, again and again until it is done.
    fn tell_progress(&mut self, process: usize, lease: LeaseId) {
        let Some((assignment, true)) = self.processes[process].held.get(&lease) else { return };
        let timeout = assignment.heartbeat_timeout_ms.unwrap_or(1000);
        let progress = Progress { lease, fraction: 0.5, message: String::new() };
        let request = ResourceRequest::Progress(self.id(process), progress);
        self.ask(Asker::Process(process, Purpose::Other), AnyRequest::Resource(request), false);
        self.after(1000 * timeout / 3, Event::Process(process, Doing::Tell(lease)));
    }

    /// Offers what it works on to some agent.
    fn offer(&mut self, process: usize, lease: LeaseId) {
        let it = &self.processes[process];
        let Some((assignment, true)) = it.held.get(&lease) else { return };
        self.coverage.fault(Fault::Offered);
        // Mostly to one that can do it.
        let wanted = &assignment.agent_type;
        let can = |agent: &RegisterAgent| agent.agent_type == *wanted || agent.capabilities.contains_key(wanted);
        let others = self.workload.agents.iter().enumerate().filter(|(who, _)| *who != it.who);
        let able: Vec<_> = others.filter(|(_, (_, agent))| can(agent)).map(|(who, _)| who).collect();
        let to = match able.is_empty() || self.draws.chance(100) {
            true => self.draws.below(u32::try_from(self.workload.agents.len()).unwrap_or(1)) as usize,
            false => *self.draws.pick(&able),
        };
        let to = self.workload.agents[to].0.clone();
        let resources = self.draws.chance(200).then(Default::default);
        let timeout_ms = Some(self.draws.between(50, 4_000));
        let (state, results) = (Json::of(&lease.0), Json::of("half"));
        let (state, results) = (state.unwrap_or_default(), results.unwrap_or_default());
        let (reason, priority) = ("too much".to_owned(), 0);
        let offer = OfferHandoff { lease, to, state, results, resources, reason, priority, timeout_ms };
        let request = ResourceRequest::OfferHandoff(self.id(process), offer);
        self.ask(Asker::Process(process, Purpose::Other), AnyRequest::Resource(request), true);
    }

    /// Takes an offer most times, rejects it sometimes, or says nothing; and sometimes one answers for others.
    fn offered(&mut self, process: usize, offer: &HandoffOffer) {
        if !self.processes[process].answered.insert(offer.handoff) {
            return;
        }
        let (chosen, wait) = (self.draws.below(10), self.draws.between(0, 3_000));
        let wait = if self.draws.chance(100) { 1000 * wait } else { wait };
        if chosen > 0 {
            self.after(wait, Event::Process(process, Doing::Acknowledge(offer.handoff, chosen > 2)));
        }
        if self.draws.chance(100) {
            self.coverage.fault(Fault::TookOthers);
            let other = self.draws.below(u32::try_from(self.processes.len()).unwrap_or(1)) as usize;
            self.after(1000, Event::Process(other, Doing::Acknowledge(offer.handoff, true)));
        }
    }

    fn done(&mut self, process: usize, lease: LeaseId) {
        let id = self.id(process);
        let Some((assignment, working)) = self.processes[process].held.get_mut(&lease) else { return };
        *working = false;
        let (task, agent_type) = (assignment.task.clone(), assignment.agent_type.clone());
        let (gathered, in_part) = (assignment.delegated.is_some(), assignment.task.stage.as_str().starts_with('d'));
        let mut report = succeeded(lease, task, &id, &self.processes[process].session);
        if self.draws.chance(400) {
            // Sometimes more than was set aside.
            report.cost = Money::from(self.draws.below(4));
        }
        let wrong = self.weather.agents;
        if !self.calm && self.draws.chance(wrong) {
            self.coverage.fault(Fault::Failed);
            (report.status, report.result) = (ReportStatus::Failed, None);
            report.error = Some("it did not work".to_owned());
            report.code = self.draws.chance(300).then(|| FLAKY.to_owned());
            report.retryable = !self.draws.chance(200);
        }
        let (often, again) = self.workload.delegates;
        // Those who delegate without end do it at once, and nobody below them: they must get there before the history is over.
        let fewer = if self.calm { 3 } else { 1 };
        let chance = match (self.workload.delegates_for_ever(), gathered) {
            (true, _) if in_part => 0,
            (true, true) => again,
            (_, true) => again / fewer,
            (_, false) => often / fewer,
        };
        if report.status == ReportStatus::Succeeded && chance > 0 && self.draws.chance(chance) {
            report.result = None;
            report.delegate = Some(self.delegates(&agent_type));
        }
        let who = self.processes[process].who;
        let sick = self.workload.sick[who].is_some_and(|(from, until)| (from..until).contains(&self.now));
        if !self.calm && sick && agent_type == self.workload.agents[who].1.agent_type {
            self.coverage.fault(Fault::Sick);
            (report.status, report.result, report.retryable) = (ReportStatus::Failed, None, true);
            report.delegate = None;
            report.error = Some("it does not work today".to_owned());
        }
        if !self.calm && wrong > 0 {
            self.misbehave(process, &report);
        }
        if !self.calm && self.draws.chance(wrong) {
            self.coverage.fault(Fault::ReportedLate);
            let late = self.draws.between(200_000, 6_000_000);
            self.after(late, Event::Process(process, Doing::Stray(Box::new(report.clone()))));
        }
        self.processes[process].last = Some(report.clone());
        if self.workload.agents[self.processes[process].who].1.batches {
            if self.processes[process].unreported.is_empty() {
                self.after(10_000, Event::Process(process, Doing::Report));
            }
            self.processes[process].unreported.push(report);
        } else {
            self.report(process, report, Purpose::Report(lease), true);
        }
    }

    /// Work for others: some stages, one after the other or side by side, for the same kind of agents; at times not sound.
    fn delegates(&mut self, agent_type: &Capability) -> Delegate {
        let again = self.workload.delegates_for_ever();
        let count = if again { 1 } else { 1 + self.draws.below(3) };
        let chain = self.draws.chance(500);
        let wrong = !self.calm && self.draws.chance(80);
        let stage = |n: u32| {
            let before = if wrong { Some(count) } else { n.checked_sub(1).filter(|_| chain) };
            let before: Vec<_> = before.into_iter().map(|before| format!("d{before}")).collect();
            json!({ "name": format!("d{n}"), "agent_type": agent_type, "depends_on": before, "retry": { "max_attempts": 2 } })
        };
        let stages = Json::of(&(0..count).map(stage).collect::<Vec<_>>()).unwrap_or_default();
        Delegate { stages, input: Json::null(), aggregate: again || self.draws.chance(600) }
    }

    /// Reports what has been done since the last time.
    fn report_all(&mut self, process: usize) {
        let mut reports = std::mem::take(&mut self.processes[process].unreported);
        if reports.len() == 1
            && let Some(report) = reports.pop()
        {
            let lease = report.lease;
            return self.report(process, report, Purpose::Report(lease), true);
        }
        let id = self.id(process);
        for report in &reports {
            self.facts.reported(&id, report);
        }
        self.coverage.branch(Branch::ReportedTogether);
        let purpose = Purpose::Reports(reports.iter().map(|report| report.lease).collect());
        let request = AnyRequest::Workflow(WorkflowRequest::Reports(id, Reports { reports }));
        self.ask(Asker::Process(process, purpose), request, true);
    }

    /// Says things that a well-made agent would not say.
    fn misbehave(&mut self, process: usize, report: &Report) {
        let wrong = self.weather.agents;
        if self.draws.chance(wrong) {
            self.coverage.fault(Fault::ReportedTwice);
            let other = Report { result: Json::of("another result").ok(), ..report.clone() };
            let other = Report { status: ReportStatus::Succeeded, error: None, code: None, ..other };
            let wait = self.draws.between(0, 5_000);
            self.after(wait, Event::Process(process, Doing::Stray(Box::new(other))));
        }
        if self.draws.chance(wrong)
            && let Some(last) = self.processes[process].last.clone()
        {
            self.coverage.fault(Fault::ReportedStale);
            let wait = self.draws.between(0, 1_000_000);
            // The task of today under the lease of yesterday, or what was said yesterday.
            let stale = if self.draws.chance(500) { Report { task: report.task.clone(), ..last } } else { last };
            self.after(wait, Event::Process(process, Doing::Stray(Box::new(stale))));
        }
        if self.draws.chance(wrong) {
            self.coverage.fault(Fault::ReportedNonsense);
            let mut nonsense = report.clone();
            match self.draws.below(4) {
                0 => nonsense.lease = LeaseId(report.lease.0.saturating_sub(1)),
                1 => nonsense.lease = LeaseId(report.lease.0 + 1 + u64::from(self.draws.below(3))),
                2 => nonsense.task.attempt += 1,
                _ => nonsense.task.run = baton_protocol::RunId::derive(1, 7),
            }
            self.after(1_000, Event::Process(process, Doing::Stray(Box::new(nonsense))));
        }
    }

    fn report(&mut self, process: usize, report: Report, purpose: Purpose, until_answered: bool) {
        let id = self.id(process);
        self.facts.reported(&id, &report);
        let request = AnyRequest::Workflow(WorkflowRequest::Report(id, report));
        self.ask(Asker::Process(process, purpose), request, until_answered);
    }

    pub(super) fn told_process(&mut self, process: usize, purpose: Purpose, asked: &Asked, reply: Option<&Reply>) {
        if !self.processes[process].alive {
            return;
        }
        if let Some(Err(rejection)) = reply
            && rejection.code == Code::AgentReplaced
        {
            (self.processes[process].alive, self.processes[process].died_on) = (false, self.now);
            return;
        }
        match (purpose, reply) {
            (Purpose::Register, Some(Ok(answer))) => {
                let it = &mut self.processes[process];
                it.registered = true;
                if let Ok(answer) = answer.read::<Registered>() {
                    it.every = answer.heartbeat_ms * 1000;
                }
                self.after(0, Event::Process(process, Doing::Beat));
            }
            // It shrinks below what it holds: later.
            (Purpose::Register, _) => self.after(1_000_000, Event::Process(process, Doing::Up)),
            (Purpose::Heartbeat, Some(Ok(answer))) => {
                let every = self.processes[process].every;
                self.after(every, Event::Process(process, Doing::Beat));
                let Ok(answer) = answer.read::<HeartbeatAnswer>() else { return };
                for lease in answer.drop {
                    self.coverage.branch(Branch::HealedDrop);
                    self.forget(process, lease);
                }
                if let Some(restart) = &answer.restart {
                    self.asked_to_restart(process, restart);
                }
                for offer in answer.offers {
                    if !self.processes[process].answered.contains(&offer.handoff) {
                        self.coverage.branch(Branch::HealedOffer);
                    }
                    self.offered(process, &offer);
                }
                for assignment in answer.start {
                    let it = &self.processes[process];
                    if !it.over.contains(&assignment.lease) && !it.held.contains_key(&assignment.lease) {
                        self.coverage.branch(Branch::HealedStart);
                    }
                    self.begin_work(process, &assignment);
                }
            }
            (Purpose::Heartbeat, Some(Err(rejection))) if rejection.code == Code::UnknownAgent => {
                self.processes[process].registered = false;
                if !self.processes[process].leaving {
                    self.after(0, Event::Process(process, Doing::Up));
                }
            }
            (Purpose::Heartbeat, _) => self.after(300_000, Event::Process(process, Doing::Beat)),
            (Purpose::Report(lease), _) => {
                // A repeated report is answered the same.
                if let Some(Ok(_)) = reply
                    && self.processes[process].over.contains(&lease)
                {
                    self.coverage.branch(Branch::ReportRepeated);
                }
                self.forget(process, lease);
            }
            (Purpose::Reports(leases), _) => {
                for lease in leases {
                    self.forget(process, lease);
                }
            }
            (Purpose::Acknowledge, reply) => {
                let answer = reply.and_then(|reply| reply.as_ref().ok()?.read::<HandoffAcknowledged>().ok());
                if let Some(assignment) = answer.and_then(|answer| answer.assignment) {
                    self.begin_work(process, &assignment);
                }
            }
            (Purpose::Other, _) => {
                if let (AnyRequest::Workflow(WorkflowRequest::Report(..)), Some(Ok(_))) = (&asked.request, reply) {
                    self.coverage.branch(Branch::ReportRepeated);
                }
            }
        }
    }

    /// In the calm, an agent learns of what it holds within a heartbeat, and one that is dead is soon known to be.
    pub(super) fn agents_know(&self) -> Checked {
        let rested = self.now.saturating_sub(self.calm_at);
        for (id, lease) in self.facts.leases.iter().filter(|(_, lease)| lease.is_alive()) {
            let Some(holder) = self.present(&lease.agent) else { continue };
            let knows = holder.held.contains_key(id) || holder.over.contains(id);
            let told = rested.min(self.now.saturating_sub(lease.granted_on)) > LEARNS;
            hold!(knows || !told, "a heartbeat tells an agent what it holds", "{} does not know of {id}", lease.agent);
        }
        for (id, since) in self.facts.restarts() {
            let Some(asked) = self.present(id) else { continue };
            let long = rested.min(self.now.saturating_sub(since)) > LEARNS;
            hold!(asked.restart || !long, "who is asked to begin anew is told", "{id} is asked, and does not know");
        }
        for (id, session) in self.facts.present() {
            let dead = self.processes.iter().filter(|process| process.session == *session);
            let long = dead
                .filter(|process| !process.alive)
                .any(|process| rested.min(self.now.saturating_sub(process.died_on)) > MISSED);
            hold!(!long, "a dead agent is seen within the time of a lease", "{id} died and is thought to be there");
        }
        Ok(())
    }

    /// The process of an agent in the session that the log says, if it lives and is registered.
    fn present(&self, agent: &AgentId) -> Option<&Process> {
        let (_, session) = self.facts.present().find(|(id, _)| *id == agent)?;
        self.processes.iter().find(|process| process.alive && process.registered && process.session == *session)
    }

    /// A fault of an agent.
    pub(super) fn agent_fault(&mut self, kind: u32) {
        let alive: Vec<_> = (0..self.processes.len()).filter(|process| self.processes[*process].alive).collect();
        if alive.is_empty() {
            return;
        }
        let process = *self.draws.pick(&alive);
        match kind {
            12 => {
                self.fault_of(Fault::AgentDied, |world| format!("{} dies", world.id(process)));
                (self.processes[process].alive, self.processes[process].died_on) = (false, self.now);
                let wait = self.draws.between(50_000, 5_000_000);
                self.after(wait, Event::Process(process, Doing::Again));
            }
            13 => {
                let until = (self.now + self.draws.between(300_000, 7_000_000)).min(self.calm_at);
                self.processes[process].stalled_until = until;
                if self.draws.chance(400) {
                    self.fault_of(Fault::AgentReplaced, |world| {
                        format!("{} stalls, and is replaced", world.id(process))
                    });
                    let wait = self.draws.between(50_000, 2_000_000);
                    self.after(wait, Event::Process(process, Doing::Again));
                } else {
                    self.fault_of(Fault::AgentStalled, |world| {
                        format!("{} stalls until {} ms", world.id(process), until / 1000)
                    });
                }
            }
            _ => {
                self.fault_of(Fault::AgentLeft, |world| format!("{} leaves", world.id(process)));
                self.processes[process].leaving = true;
                self.after(0, Event::Process(process, Doing::Leave));
            }
        }
    }
}

fn succeeded(lease: LeaseId, task: TaskId, agent: &AgentId, session: &str) -> Report {
    let result = Json::from_text(format!("{{\"by\":\"{agent}\",\"lease\":{lease},\"session\":\"{session}\"}}"));
    Report {
        lease,
        task,
        status: ReportStatus::Succeeded,
        result: result.ok(),
        error: None,
        code: None,
        retryable: true,
        cost: Money::ZERO,
        usage: Usage::default(),
        model: None,
        delegate: None,
    }
}
