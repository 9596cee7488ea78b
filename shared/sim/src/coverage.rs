//! What happened in the histories: which faults were injected, which rare branches were taken, which records were written.

use std::fmt::Write as _;

macro_rules! counted {
    ($(#[$meta:meta])* $type:ident { $($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $type { $($(#[doc = $doc])+ $variant,)+ }

        impl $type {
            /// All of them, with their names.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name),)+];
        }
    };
}

counted! {
    /// A kind of fault.
    Fault {
        /// An instance dies and starts again.
        Crash = "instance crashes",
        /// An instance stands still for a while.
        Pause = "instance is paused",
        /// An instance hears requests and nothing else.
        Deaf = "instance is deaf to the log",
        /// An instance's connection breaks.
        Disconnect = "connection breaks",
        /// An instance's clock steps forwards.
        ClockForward = "clock steps forwards",
        /// An instance's clock steps backwards.
        ClockBack = "clock steps backwards",
        /// An instance believes that it leads though another one does.
        FalseLeader = "two believe they lead",
        /// A commit is stored, its acknowledgement is lost.
        AckLost = "acknowledgement is lost",
        /// A commit never reaches the broker.
        CommitLost = "commit is lost",
        /// A commit reaches the broker long after it was given up.
        CommitDelayed = "commit is held up",
        /// A message on core NATS is lost.
        MessageLost = "message is lost",
        /// A message on core NATS comes twice.
        MessageDuplicated = "message comes twice",
        /// A message on core NATS comes late, and so after later ones.
        MessageDelayed = "message is held up",
        /// Messages are lost in numbers for a while.
        Burst = "network fails for a while",
        /// An instance reads the log late.
        TailDelayed = "log is read late",
        /// There is no snapshot where there was one.
        SnapshotMissing = "snapshot is missing",
        /// A snapshot is cut off.
        SnapshotTorn = "snapshot is torn",
        /// An agent dies and starts again.
        AgentDied = "agent dies",
        /// An agent stands still for a while.
        AgentStalled = "agent stalls",
        /// An agent's process is replaced while it stands still.
        AgentReplaced = "agent is replaced",
        /// An agent leaves and comes back.
        AgentLeft = "agent leaves",
        /// An agent gives a task back.
        Declined = "agent declines",
        /// An agent lives on, and never ends a task.
        Hung = "agent hangs in a task",
        /// An agent hands a task over.
        Offered = "agent offers a task to another",
        /// An agent answers an offer that was not made to it.
        TookOthers = "agent takes what others are offered",
        /// An agent fails a task.
        Failed = "agent fails",
        /// An agent fails all tasks of a capability for a while.
        Sick = "agent fails everything for a while",
        /// An agent takes longer than it may.
        Overlong = "agent takes too long",
        /// An agent reports twice, with two results.
        ReportedTwice = "agent reports twice",
        /// An agent reports late.
        ReportedLate = "agent reports late",
        /// An agent reports under a lease that is long over.
        ReportedStale = "agent reports under an old lease",
        /// An agent reports what makes no sense.
        ReportedNonsense = "agent reports nonsense",
    }
}

counted! {
    /// A branch that is rarely taken.
    Branch {
        /// A commit met another instance's commit.
        Fenced = "a commit is fenced off",
        /// A proof met another instance's commit.
        ProofFailed = "a proof fails",
        /// A leader read another instance's commit.
        Deposed = "a leader reads that it is deposed",
        /// A commit that was given up was stored all the same.
        GhostStored = "a commit given up is stored",
        /// A commit that was given up was fenced off.
        GhostFenced = "a commit given up is fenced off",
        /// Two instances believed that they lead.
        TwoLead = "two lead at a time",
        /// A term began.
        Term = "a term begins",
        /// An instance started from a snapshot.
        FromSnapshot = "a start from a snapshot",
        /// A snapshot could not be read.
        SnapshotUnreadable = "a snapshot can not be read",
        /// A turn was split over commits.
        Split = "a turn is split over commits",
        /// Nobody served a request.
        NoResponder = "nobody answers",
        /// Two instances answered one request.
        AnsweredTwice = "a request is answered twice",
        /// A request waited for a record until its time was up.
        ParkedInVain = "a request waits for a record in vain",
        /// A question of the optimizer was not answered.
        AskFailed = "a question gets no answer",
        /// A placement was refused.
        PlacementRefused = "a placement is refused",
        /// A report was refused.
        ReportRefused = "a report is refused",
        /// A report was repeated after it was stored.
        ReportRepeated = "a report is repeated",
        /// The answer to a heartbeat gave work.
        HealedStart = "a heartbeat brings work",
        /// The answer to a heartbeat took work.
        HealedDrop = "a heartbeat takes work",
        /// An agent was recalled.
        Recalled = "a task is recalled",
        /// Several tasks went to an agent in one message.
        AssignedTogether = "several tasks are assigned in one message",
        /// Several reports went in one message.
        ReportedTogether = "several reports are sent in one message",
        /// An agent that was thought dead registered again.
        Reregistered = "an agent registers again",
        /// An agent was told that it was replaced.
        Replaced = "an agent is told that it was replaced",
        /// An agent was lost.
        AgentLost = "an agent is lost",
        /// An attempt was lost.
        AttemptLost = "an attempt is lost",
        /// An agent that was asked to begin anew does.
        Restarted = "an agent begins anew as it is asked",
        /// A task was taken from an agent that said nothing of it.
        Silent = "nothing is heard of a task",
        /// An agent told of a task of which it must tell.
        ProgressTold = "an agent tells how far it is",
        /// A stage waited too long for an agent.
        StartTimedOut = "a stage finds no agent in time",
        /// An attempt took too long.
        RunTimedOut = "an attempt takes too long",
        /// A stage was tried again after a wait.
        Retried = "a stage is tried again",
        /// A run was paused.
        Paused = "a run is paused",
        /// A run that was paused goes on.
        Resumed = "a run goes on after a pause",
        /// A run repeats a part of another one.
        Rerun = "a run repeats another one",
        /// A schedule started a run.
        ScheduleStarted = "a schedule starts a run",
        /// A schedule left a time out, since the run before was live.
        ScheduleSkipped = "a schedule leaves a time out",
        /// A run was cancelled, since its schedule started the next one.
        ScheduleCancelled = "a schedule cancels the run before",
        /// A time of a schedule was looked at long after it had come.
        ScheduleMadeUp = "a schedule makes up for a time",
        /// It was too late for a time of a schedule.
        ScheduleLate = "a schedule is too late",
        /// A schedule was paused.
        SchedulePaused = "a schedule is paused",
        /// A trigger started a run.
        TriggerStarted = "a trigger starts a run",
        /// A trigger gave runs a signal.
        TriggerSignalled = "a trigger gives a signal",
        /// A trigger's condition gave false.
        TriggerUnmatched = "a trigger's condition gives false",
        /// A trigger could not start its run.
        TriggerFailed = "a trigger fails",
        /// Too many triggers had led to an event.
        TriggerChain = "a circle of triggers ends",
        /// Runs were cancelled together.
        CancelledTogether = "runs are cancelled together",
        /// A run began that does a stage of another one.
        ChildStarted = "a run does a stage of another one",
        /// The same, several levels deep.
        ChildDeep = "a run does a stage, deep within others",
        /// A stage succeeded with what came of the run that did it.
        ChildSucceeded = "a stage succeeds that a run does",
        /// A stage failed because the run that did it did, or its result does not do.
        ChildFailed = "a stage fails that a run does",
        /// A run took longer than the attempt that it made may.
        ChildTimedOut = "a run takes longer than its stage may",
        /// A run was cancelled because the attempt that it made was over.
        ChildCancelled = "a run is cancelled with its stage",
        /// A run could not begin, too deep within others.
        TooDeep = "a run would be too deep within others",
        /// A run could not begin, as too many were a part of the one around it.
        TooManyParts = "a run would be one part too many",
        /// A run could not begin, as there is no such workflow.
        NoSuchWorkflow = "a stage's workflow is not there",
        /// A run was paused with the one that it is a part of.
        PausedWithParent = "a run is paused with the one around it",
        /// An agent handed its task on to others.
        Delegated = "an agent delegates",
        /// What came of what was delegated is put together by an agent.
        Gathered = "what was delegated is put together",
        /// What was delegated is no sound list of stages.
        DelegationRefused = "what is delegated is not sound",
        /// A stage was delegated as often as it may be.
        DelegatedTooOften = "a stage is delegated too often",
        /// Runs that ended were forgotten.
        Forgotten = "old runs are forgotten",
        /// A run went on without an optional stage.
        OptionalFailed = "an optional stage fails",
        /// A stage was skipped because its condition gave false.
        SkippedByCondition = "a condition gives false",
        /// A stage was skipped because what it depends on was.
        SkippedByJoin = "a skip is passed on by a join",
        /// A condition could not be evaluated.
        ConditionFailed = "a condition can not be evaluated",
        /// A fallback ran.
        FallbackRan = "a fallback runs",
        /// A fallback was skipped.
        FallbackNotNeeded = "a fallback is not needed",
        /// A result did not fit what its stage promises.
        ResultRefused = "a result does not fit",
        /// A failure was not tried again because of its code.
        CodeNotRetried = "a code is not tried again",
        /// A stage's attempts took too long together.
        TotalTimedOut = "a stage takes too long in all",
        /// A stage has a task for each item of a list.
        Expanded = "a list is found in the run",
        /// Too many items of a stage failed.
        ItemsFailed = "too many items fail",
        /// An item was given up because others had failed.
        ItemDropped = "an item is given up",
        /// A stage was approved.
        Approved = "a stage is approved",
        /// A stage was rejected.
        Rejected = "a stage is rejected",
        /// Nobody decided on a stage in time.
        Undecided = "nobody decides in time",
        /// A stage went on because of a signal.
        Signalled = "a signal comes",
        /// A signal came before the stage that waits for it began.
        SignalBefore = "a signal comes before its stage begins",
        /// A signal did not come in time.
        NotSignalled = "a signal does not come in time",
        /// A result of a run that has ended was used again.
        CachedOfEnded = "a result of a run that has ended is used again",
        /// A result of a run that goes on was used again.
        CachedOfLive = "a result of a run that goes on is used again",
        /// A stage began before all was over that it waits for.
        BeganEarly = "a stage begins early",
        /// By what is assumed it does not run.
        NotEarly = "a stage can not begin early",
        /// What it gave early was used, for it had been given what its stage is given.
        CommittedLater = "what was done early counts",
        /// The same, and it was under way.
        CommittedUnderWay = "what began early counts, and is under way",
        /// Of two that were at a task, one failed.
        CopyFailed = "one of two copies fails",
        /// Of two that were at a task, one was lost.
        CopyLost = "one of two copies is lost",
        /// A task was done by who was given it second.
        SecondWon = "a second copy is done first",
        /// A task was over while a second one was at it.
        SecondLost = "a second copy is called back",
        /// It was given something else, and was under way.
        DiscardedUnderWay = "what began early is given up",
        /// A lease was granted for a task that had just ended.
        DeadOnArrival = "a lease comes after its task's end",
        /// A report counted though the agent was gone, because that was not known yet.
        JustInTime = "a report is counted before its agent's end is read",
        /// A start was repeated.
        StartRepeated = "a start is repeated",
        /// A start was refused because its key was used otherwise.
        KeyConflict = "a key is used for two runs",
        /// A start was refused because too many runs are live.
        Overloaded = "a start is refused under load",
        /// A task went from one agent to another.
        HandedOver = "a task is handed over",
        /// Somebody else than its holder had a task offered.
        HandoffAsked = "a task is offered because somebody asks for it",
        /// An offer was rejected.
        OfferRejected = "an offer is rejected",
        /// An offer was not answered.
        OfferOver = "an offer is not answered in time",
        /// A report of who handed the task over counted, because that was not known yet.
        ReportedByGiver = "a report is counted before its handoff is read",
        /// The answer to a heartbeat brought an offer.
        HealedOffer = "a heartbeat brings an offer",
        /// A breaker opened.
        BreakerOpened = "a circuit breaker opens",
        /// A breaker let a probe through.
        Probed = "a circuit breaker lets a probe through",
        /// A breaker opened again.
        BreakerReopened = "a circuit breaker opens again",
        /// A breaker closed.
        BreakerClosed = "a circuit breaker closes",
        /// An alert took the place of one that mattered less.
        AlertGrew = "an alert grows",
        /// Much of a pool was in use for a while, and that was told.
        PoolAlert = "an alert is raised about a pool",
        /// Much of a budget was spent, and that was told.
        BudgetAlert = "an alert is raised about a budget",
        /// An alert about a pool that is there was over.
        PoolAlertOver = "an alert about a pool is over",
        /// Pressure rose.
        PressureRose = "pressure rises",
        /// Pressure was critical.
        PressureCritical = "pressure is critical",
        /// Pressure lasted longer than was expected.
        PressureLasts = "pressure lasts longer than expected",
        /// Pressure fell to none.
        PressureFell = "pressure falls",
        /// A start was refused because of its priority.
        Pressed = "a start is refused under pressure",
        /// A lease was refused because of the task's priority.
        HeldBack = "a task is held back under pressure",
        /// A task of a low priority was leased under pressure, as no other waited.
        LowAlone = "a low task is leased as no other waits",
        /// A task of a low priority was leased under pressure, as it had waited for long.
        LowWaitedLong = "a low task is leased as it waited long",
        /// A task of a tenant was asked for while another tenant had the like.
        TenantWaits = "a tenant waits while another is served",
        /// A run succeeded.
        Succeeded = "a run succeeds",
        /// A run failed.
        RunFailed = "a run fails",
        /// A run was cancelled.
        Cancelled = "a run is cancelled",
        /// A run took too long.
        RunTooLong = "a run takes too long",
        /// Something was acquired.
        Acquired = "something is acquired",
        /// An acquisition was told that it waits.
        AcquisitionWaits = "an acquisition waits",
        /// An acquisition was refused for want of something.
        Exhausted = "an acquisition is refused for want of something",
        /// Something was acquired under a task's lease.
        AcquiredForTask = "something is acquired for a task",
        /// A pool was had alone.
        LockedAlone = "a lock is had alone",
        /// An acquisition's time was up.
        AcquisitionExpired = "an acquisition's time is up",
        /// A task was leased with something of a pool.
        AssignedFromPool = "a task takes from a pool",
        /// A placement was refused for want of something of a pool.
        PoolLacking = "a placement is refused for want of a pool",
        /// Somebody was asked whether an account gets more.
        ApprovalAsked = "somebody is asked for more money",
        /// Somebody had to go without, for want of money.
        BudgetRefused = "somebody goes without, for want of money",
        /// An account was given more.
        BudgetApproved = "an account is given more",
        /// What was left of an account was shared out.
        BudgetShared = "what is left of an account is shared out",
        /// A pool could not be changed because it was in use.
        PoolInUse = "a pool can not be changed",
        /// A document was looked for, of a run that is not in memory.
        DocumentRead = "a document is looked for",
    }
}

/// The kinds of records, in the order of their counters.
pub(crate) const RECORDS: [&str; 46] = [
    "workflow_registered",
    "run_started",
    "run_paused",
    "run_resumed",
    "runs_forgotten",
    "schedule_set",
    "schedule_removed",
    "schedule_fired",
    "trigger_set",
    "trigger_removed",
    "event_raised",
    "trigger_fired",
    "stage_ready",
    "stage_ended",
    "stage_skipped",
    "stage_expanded",
    "stage_waits",
    "signalled",
    "stage_cached",
    "stage_committed",
    "copy_ended",
    "run_finished",
    "agent_registered",
    "agent_left",
    "assigned",
    "lease_ended",
    "handoff_offered",
    "handed_over",
    "handoff_ended",
    "breaker_opened",
    "breaker_half_opened",
    "breaker_closed",
    "pool_set",
    "pool_removed",
    "acquired",
    "renewed",
    "released",
    "alert_raised",
    "alert_cleared",
    "alert_acknowledged",
    "approval_asked",
    "budget_refused",
    "pressure_changed",
    "strategy_changed",
    "learning_imported",
    "learning_rate_changed",
];

/// Counters of one history, or of many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    faults: Vec<u64>,
    branches: Vec<u64>,
    records: Vec<u64>,
    /// Messages of the log.
    pub commits: u64,
    /// Events of the simulation.
    pub events: u64,
    /// Virtual time, in milliseconds.
    pub virtual_ms: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            faults: vec![0; Fault::ALL.len()],
            branches: vec![0; Branch::ALL.len()],
            records: vec![0; RECORDS.len()],
            commits: 0,
            events: 0,
            virtual_ms: 0,
        }
    }
}

impl Coverage {
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.faults[fault as usize] += 1;
    }

    pub(crate) fn branch(&mut self, branch: Branch) {
        self.branches[branch as usize] += 1;
    }

    pub(crate) fn record(&mut self, kind: &str) {
        if let Some(index) = RECORDS.iter().position(|known| *known == kind) {
            self.records[index] += 1;
        }
    }

    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.faults, &other.faults),
            (&mut self.branches, &other.branches),
            (&mut self.records, &other.records),
        ];
        for (all, more) in pairs {
            all.iter_mut().zip(more).for_each(|(all, more)| *all += more);
        }
        self.commits += other.commits;
        self.events += other.events;
        self.virtual_ms += other.virtual_ms;
    }

    /// How often a fault was injected.
    #[must_use]
    pub fn faults_of(&self, fault: Fault) -> u64 {
        self.faults[fault as usize]
    }

    /// How often a branch was taken.
    #[must_use]
    pub fn branches_of(&self, branch: Branch) -> u64 {
        self.branches[branch as usize]
    }

    /// The faults, branches and records that never came, by name.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.iter().map(|(_, name)| *name).zip(&self.faults);
        let branches = Branch::ALL.iter().map(|(_, name)| *name).zip(&self.branches);
        let records = RECORDS.into_iter().zip(&self.records);
        faults.chain(branches).chain(records).filter(|(_, count)| **count == 0).map(|(name, _)| name).collect()
    }

    /// A table of all of it, a line each.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut part = |title: &str, names: Vec<&str>, counts: &[u64]| {
            let _ = writeln!(text, "{title}");
            for (name, count) in names.iter().zip(counts) {
                let _ = writeln!(text, "  {name:<52} {count:>12}");
            }
        };
        part("faults injected", Fault::ALL.iter().map(|(_, name)| *name).collect(), &self.faults);
        part("rare branches taken", Branch::ALL.iter().map(|(_, name)| *name).collect(), &self.branches);
        part("records written", RECORDS.to_vec(), &self.records);
        text
    }
}
