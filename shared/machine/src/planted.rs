//! Bugs that can be planted, to prove that the simulator's checkers find them.
//!
//! This is a test's switch: without the crate's feature `planted`, which nothing that is shipped turns on, [`is_planted`] is
//! `false` for every bug, and the compiler takes out what hangs on it.

/// A bug that can be planted. Where it is planted, [`is_planted`] is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// The broker appends without looking at the fence.
    FenceSkipped,
    /// A commit whose outcome is unknown is taken for stored, and what waited for it leaves.
    UnknownTakenForStored,
    /// A snapshot is kept without its timers.
    TimersNotInSnapshot,
    /// Requests are answered before what they led to is committed.
    AnsweredTooEarly,
    /// Assignments are pushed before their leases are committed.
    PushedTooEarly,
    /// A refusal leaves without a proof that its instance leads.
    ProofSkipped,
    /// A successor does not react to what its predecessor had not handled.
    BacklogForgotten,
    /// A replay takes no notice of what the writer had seen before each turn.
    SeenIgnored,
    /// Whoever starts from a snapshot passes over the message that follows it.
    SnapshotSkipsAMessage,
    /// The time of what is read does not count: what follows from a record may be before it.
    ClocksApart,
    /// A new leader goes on in the term of the last one.
    TermNotRaised,
    /// A report that was stored before is stored again.
    ReportAppliedTwice,
    /// A report is taken for the attempt that is open, whatever lease it names.
    LeaseNotChecked,
    /// An attempt whose agent is gone stays open.
    LostAttemptForgotten,
    /// A run that is cancelled leaves its attempts open.
    AttemptsOutliveTheRun,
    /// A stage that waits for an agent has no timer.
    StartTimerForgotten,
    /// A stage that should run alone runs beside others.
    AloneIgnored,
    /// A retry does not wait.
    RetryTooEarly,
    /// A stage runs whatever its condition gives.
    ConditionIgnored,
    /// A stage runs whether what it depends on was skipped or not.
    JoinIgnored,
    /// A fallback runs though the stage that it stands for did not fail.
    FallbackAlways,
    /// A result counts whether it fits its schema or not.
    ResultNotChecked,
    /// A failure whose code says that no retry helps is retried.
    CodeIgnored,
    /// A stage's attempts may take together as long as they like.
    TotalForgotten,
    /// A run goes on when a stage has failed that may not.
    FailureSwallowed,
    /// What the items of a stage gave is joined in another order.
    ItemsOutOfOrder,
    /// As many items of a stage are under way as there are.
    ItemsNotLimited,
    /// A stage succeeds however many of its items have failed.
    ItemFailuresIgnored,
    /// A run that is paused goes on beginning stages.
    PauseIgnored,
    /// What is left of a wait when its run is paused is forgotten.
    WaitsLostInPause,
    /// A run that repeats another one from a stage on keeps what depends on that stage.
    RerunKeepsTooMuch,
    /// A task of a run that is paused is leased.
    LeasedInPause,
    /// A signal that came before its stage began is not heard.
    SignalForgotten,
    /// What people reject counts as approved.
    RejectionApproves,
    /// A schedule starts a run whether the one before is live or not.
    OverlapIgnored,
    /// A time of a schedule that came when nobody led is left out.
    MissedTimeForgotten,
    /// No trigger hears of the end of a run.
    EndsTriggerNothing,
    /// Where one trigger fails, those that come after it do not look at the event.
    FailureSilencesOthers,
    /// A trigger gives its signal to the first run that is meant, and to no other.
    TriggerSignalsOne,
    /// A result is used again however old it is.
    CacheOutlived,
    /// A result is used again whatever it was given for.
    CacheConfused,
    /// What began early counts, whatever it was given.
    AssumptionNotChecked,
    /// What was done early counts before all is over that its stage waits for.
    HeldAtOnce,
    /// Where one of two that are at a task fails, the attempt has failed.
    CopyEndsAttempt,
    /// Where two were at a task, the lease of the one that was not first goes on.
    CopyOutlives,
    /// A lease is granted whether the agent has a free slot or not.
    SlotsNotCounted,
    /// A lease is granted whether the agent has the resources or not.
    ResourcesNotCounted,
    /// A task that is leased is leased again.
    LeasedTwice,
    /// What was granted is not held against the agent.
    GrantForgotten,
    /// What an agent held stays leased when it comes back in another session.
    OldSessionKeepsLeases,
    /// A registration of a session that was replaced is taken like any other.
    ReplacedComesBack,
    /// The answer to a heartbeat never says what to start.
    HeartbeatDoesNotHeal,
    /// A silent agent is never given up.
    SilenceTolerated,
    /// A task of which nothing is heard stays with its agent.
    TaskSilenceTolerated,
    /// A task is taken from an agent that tells of it.
    ProgressNotHeard,
    /// A question of the optimizer that is not answered stays open for ever.
    QuestionNeverExpires,
    /// A placement that was refused is never tried again.
    RefusalNeverForgotten,
    /// A task is leased to an agent whose metadata are not as the task asks for.
    RequirementsIgnored,
    /// A task is leased to an agent whose breaker is open.
    BreakerIgnored,
    /// A breaker that is half-open lets any number of tasks through.
    ProbesNotCounted,
    /// A breaker that is open stays so.
    BreakerStaysOpen,
    /// A probe that failed does not open the breaker again.
    FailedProbeForgotten,
    /// An agent that is asked to begin anew is not told.
    RestartNotTold,
    /// What is taken of a pool is granted whether it is there or not.
    PoolsNotCounted,
    /// A lock is had alone while others share it.
    LockNotExclusive,
    /// A refilled pool fills up twice as fast as it should.
    RefilledTooFast,
    /// What is taken of a consumed pool is not taken of the one that it is a part of.
    ParentNotCharged,
    /// What was reserved of a consumed pool and not used stays reserved.
    NotGivenBack,
    /// What a task costs is charged twice to an account that two that it is paid from are a part of.
    CostChargedTwice,
    /// More is shared out among the parts of an account than is left of it.
    SharedTooMuch,
    /// A run's account stays when the run is over.
    AccountOutlivesRun,
    /// A task whose account has not enough, and that should fail, waits.
    RefusalNotWritten,
    /// Nobody is asked whether an account gets more.
    NobodyAsked,
    /// A task that was refused for want of money is not ended.
    RefusedTaskForgotten,
    /// What was acquired is held on when its time is up.
    NeverExpires,
    /// An acquisition that is over is acquired anew when its request comes once more.
    AcquiredTwice,
    /// What an agent acquired is held on when it is gone.
    AcquisitionOutlivesAgent,
    /// What was acquired under a task's lease is held on when that ends.
    AcquisitionOutlivesTask,
    /// A pool is made smaller than what is in use.
    PoolShrinksBelowUse,
    /// A shape that was refused for want of a pool is never asked for again.
    ShutForEver,
    /// An alert is raised though there is one of that kind about the same.
    AlertRaisedAgain,
    /// An alert is not cleared when it is over.
    AlertNeverCleared,
    /// An alert about a pool is raised as soon as so much of it is in use.
    AlertTooSoon,
    /// Whoever hands a task over holds it as before.
    GiverKeepsTheTask,
    /// A task that is offered is taken by an agent that it was not offered to.
    OfferTakenByAnyone,
    /// An offer stands when its time is up.
    OfferNeverOver,
    /// What is set aside for a task in its agent's own account stays there when another agent takes the task.
    GiverPaysOn,
    /// Pressure does not fall.
    PressureNeverFalls,
    /// Pressure falls as soon as what it rose by is not reached any more.
    PressureFallsAtOnce,
    /// Runs are accepted whatever their priority and the pressure.
    PressureIgnoredAtTheDoor,
    /// Tasks are leased whatever their priority and the pressure.
    PressureIgnoredByLeases,
    /// Tasks of a low priority wait as long as there is pressure, whatever else waits and for however long.
    HeldBackForEver,
    /// Tasks are placed by their age, whoever they are for.
    TenantsIgnored,
    /// The learning rate is written into the log with every new term.
    LearningRateAgain,
    /// A run that does a stage goes on when the stage is over.
    ChildOutlivesStage,
    /// The end of a run that does a stage is not noted there.
    ReturnForgotten,
    /// A run that does a stage goes on while the run is paused that it is a part of.
    ChildNotPaused,
    /// A stage may be delegated any number of times.
    DelegatedForEver,
    /// What was delegated to be put together by an agent is the stage's result as it is.
    NotPutTogether,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 99] = [
        Self::FenceSkipped,
        Self::UnknownTakenForStored,
        Self::TimersNotInSnapshot,
        Self::AnsweredTooEarly,
        Self::PushedTooEarly,
        Self::ProofSkipped,
        Self::BacklogForgotten,
        Self::SeenIgnored,
        Self::SnapshotSkipsAMessage,
        Self::ClocksApart,
        Self::TermNotRaised,
        Self::ReportAppliedTwice,
        Self::LeaseNotChecked,
        Self::LostAttemptForgotten,
        Self::AttemptsOutliveTheRun,
        Self::StartTimerForgotten,
        Self::AloneIgnored,
        Self::RetryTooEarly,
        Self::ConditionIgnored,
        Self::JoinIgnored,
        Self::FallbackAlways,
        Self::ResultNotChecked,
        Self::CodeIgnored,
        Self::TotalForgotten,
        Self::FailureSwallowed,
        Self::ItemsOutOfOrder,
        Self::ItemsNotLimited,
        Self::ItemFailuresIgnored,
        Self::PauseIgnored,
        Self::WaitsLostInPause,
        Self::RerunKeepsTooMuch,
        Self::LeasedInPause,
        Self::SignalForgotten,
        Self::RejectionApproves,
        Self::OverlapIgnored,
        Self::MissedTimeForgotten,
        Self::EndsTriggerNothing,
        Self::FailureSilencesOthers,
        Self::TriggerSignalsOne,
        Self::CacheOutlived,
        Self::CacheConfused,
        Self::AssumptionNotChecked,
        Self::HeldAtOnce,
        Self::CopyEndsAttempt,
        Self::CopyOutlives,
        Self::SlotsNotCounted,
        Self::ResourcesNotCounted,
        Self::LeasedTwice,
        Self::GrantForgotten,
        Self::OldSessionKeepsLeases,
        Self::ReplacedComesBack,
        Self::HeartbeatDoesNotHeal,
        Self::SilenceTolerated,
        Self::TaskSilenceTolerated,
        Self::ProgressNotHeard,
        Self::QuestionNeverExpires,
        Self::RefusalNeverForgotten,
        Self::RequirementsIgnored,
        Self::BreakerIgnored,
        Self::ProbesNotCounted,
        Self::BreakerStaysOpen,
        Self::FailedProbeForgotten,
        Self::RestartNotTold,
        Self::PoolsNotCounted,
        Self::LockNotExclusive,
        Self::RefilledTooFast,
        Self::ParentNotCharged,
        Self::NotGivenBack,
        Self::CostChargedTwice,
        Self::SharedTooMuch,
        Self::AccountOutlivesRun,
        Self::RefusalNotWritten,
        Self::NobodyAsked,
        Self::RefusedTaskForgotten,
        Self::NeverExpires,
        Self::AcquiredTwice,
        Self::AcquisitionOutlivesAgent,
        Self::AcquisitionOutlivesTask,
        Self::PoolShrinksBelowUse,
        Self::ShutForEver,
        Self::AlertRaisedAgain,
        Self::AlertNeverCleared,
        Self::AlertTooSoon,
        Self::GiverKeepsTheTask,
        Self::OfferTakenByAnyone,
        Self::OfferNeverOver,
        Self::GiverPaysOn,
        Self::PressureNeverFalls,
        Self::PressureFallsAtOnce,
        Self::PressureIgnoredAtTheDoor,
        Self::PressureIgnoredByLeases,
        Self::HeldBackForEver,
        Self::TenantsIgnored,
        Self::LearningRateAgain,
        Self::ChildOutlivesStage,
        Self::ReturnForgotten,
        Self::ChildNotPaused,
        Self::DelegatedForEver,
        Self::NotPutTogether,
    ];
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in everything that this thread runs, or takes it out again.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "planted")]
#[must_use]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never, in this build.
#[cfg(not(feature = "planted"))]
#[must_use]
pub const fn is_planted(_: Bug) -> bool {
    false
}
