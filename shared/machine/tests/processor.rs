//! The processor against a log in memory: leaders that crash, pause and are deposed, acknowledgements that get lost,
//! snapshots. What must hold: a replay from any start gives the state that the writer had, in the writer's own order.

use baton_machine::{
    Effect, Foreign, Machine, Outgoing, Processor, ReadError, Reply, RequestContext, Snapshot, Turn, answer,
};
use baton_protocol::record::{
    AnyCommit, Cause, Commit, FORMAT, OptimizerRecord, RunFinished, Stamp, StrategyChanged, Turn as LogTurn,
    WorkflowRecord,
};
use baton_protocol::request::{Done, OptimizerRequest, SetStrategy, Strategy};
use baton_protocol::run::RunStatus;
use baton_protocol::{Millis, RunId, Service};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// A machine whose state is a hash of everything it folded, in order: any difference in order or content shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Chain {
    hash: u64,
    own: u64,
    foreign: u64,
}

impl Chain {
    fn fold(&mut self, stamp: Stamp, what: &str) {
        for part in [stamp.number, stamp.at, stamp.seen, what.len() as u64] {
            self.hash = baton_protocol::id::mix(self.hash ^ part);
        }
    }
}

impl Machine for Chain {
    type Record = OptimizerRecord;
    type Request = OptimizerRequest;
    type Soft = ();
    type Config = ();

    const FOLLOWS: &'static [Service] = &[Service::WorkflowManager, Service::ResourceManager];

    fn apply(&mut self, stamp: Stamp, _: &OptimizerRecord) {
        self.fold(stamp, "own");
        self.own += 1;
    }

    fn observe(&mut self, stamp: Stamp, _: Foreign<'_>) {
        self.fold(stamp, "foreign");
        self.foreign += 1;
    }

    /// Every second foreign record leads to as many own ones as were ever seen, at most 5.
    fn react(turn: &mut Turn<'_, Self>, _: &AnyCommit) {
        if turn.state().foreign.is_multiple_of(2) {
            for _ in 0..turn.state().foreign.min(5) {
                turn.emit(record());
            }
        }
    }

    fn request(turn: &mut Turn<'_, Self>, request: OptimizerRequest, _: &RequestContext) -> Reply {
        if let OptimizerRequest::SetStrategy(_) = request {
            turn.emit(record());
        }
        answer(&Done {})
    }

    fn answered(_: &mut Turn<'_, Self>, _: u64, _: Reply) {}
    fn lead(_: &mut Turn<'_, Self>) {}
    fn tick(_: &mut Turn<'_, Self>) {}
    fn deadline(&self, (): &(), (): &()) -> Option<Millis> {
        None
    }
}

fn record() -> OptimizerRecord {
    OptimizerRecord::StrategyChanged(StrategyChanged { strategy: Strategy::RoundRobin })
}

/// The stream: messages with a subject each, and the broker's check of the fence.
#[derive(Default)]
struct Log {
    messages: Vec<(Service, Vec<u8>)>,
    workflow_next: u64,
}

impl Log {
    fn last(&self, service: Service) -> u64 {
        self.messages.iter().rposition(|(s, _)| *s == service).map_or(0, |i| i as u64 + 1)
    }

    fn append(&mut self, fence: u64, payload: Vec<u8>) -> Option<u64> {
        if self.last(Service::Optimizer) != fence {
            return None;
        }
        self.messages.push((Service::Optimizer, payload));
        Some(self.messages.len() as u64)
    }

    fn foreign(&mut self, records: u64) {
        let run = RunId::derive(1, 1);
        let finished = || WorkflowRecord::RunFinished(RunFinished { run, status: RunStatus::Failed, reason: None });
        let commit = Commit {
            format: FORMAT,
            instance: "w".into(),
            term: 1,
            first: self.workflow_next + 1,
            handled: 0,
            turns: vec![LogTurn {
                at: 5,
                seen: 0,
                cause: Cause::Timer,
                records: (0..records).map(|_| finished()).collect(),
            }],
        };
        self.workflow_next += records;
        self.messages.push((Service::WorkflowManager, serde_json::to_vec(&commit).unwrap()));
    }

    fn replay(&self) -> Processor<Chain> {
        let mut processor = Processor::new(());
        self.feed(&mut processor, u64::MAX).unwrap();
        processor
    }

    /// Feeds at most `count` messages.
    fn feed(&self, processor: &mut Processor<Chain>, count: u64) -> Result<(), ReadError> {
        let from = processor.position() as usize;
        for (index, (service, payload)) in self.messages.iter().enumerate().skip(from).take(count.min(1 << 32) as usize)
        {
            processor.read(index as u64 + 1, *service, payload, 0)?;
        }
        Ok(())
    }
}

/// One instance: its processor, what it has sent and not heard of, the answers that it gave.
struct Instance {
    processor: Processor<Chain>,
    sent: Option<(Outgoing, Option<Snapshot<Chain>>)>,
    snapshot: Option<Snapshot<Chain>>,
}

#[derive(Debug, Clone)]
enum Act {
    Foreign(u64),
    Read(usize, u64),
    Lead(usize),
    Request(usize, bool),
    Send(usize, usize),
    /// The broker stores what was sent; the second flag: the acknowledgement arrives.
    Store(usize, bool),
    Crash(usize, bool),
}

fn act() -> impl Generator<Value = Act> {
    let who = 0..2usize;
    prop_oneof![
        3 => (0..4u64).prop_map(Act::Foreign),
        6 => (who.clone(), 1..5u64).prop_map(|(i, n)| Act::Read(i, n)),
        1 => who.clone().prop_map(Act::Lead),
        4 => (who.clone(), any::<bool>()).prop_map(|(i, write)| Act::Request(i, write)),
        6 => (who.clone(), prop_oneof![Just(1usize), Just(150), Just(100_000)]).prop_map(|(i, max)| Act::Send(i, max)),
        6 => (who.clone(), prop::bool::weighted(0.9)).prop_map(|(i, ack)| Act::Store(i, ack)),
        1 => (who, any::<bool>()).prop_map(|(i, snapshot)| Act::Crash(i, snapshot)),
    ]
}

use proptest::strategy::Strategy as Generator;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn live_state_equals_replayed_state(acts in prop::collection::vec(act(), 1..120)) {
        let mut log = Log::default();
        let fresh = || Instance { processor: Processor::new(()), sent: None, snapshot: None };
        let mut instances = [fresh(), fresh()];
        let mut now = 10;
        let mut token = 0;
        for act in acts {
            now += 1;
            match act {
                Act::Foreign(records) => log.foreign(records),
                Act::Read(i, count) => {
                    if log.feed(&mut instances[i].processor, count).is_err() {
                        instances[i] = fresh();
                    }
                }
                Act::Lead(i) => {
                    let instance = &mut instances[i];
                    if !instance.processor.is_leading() {
                        instance.processor.lead(&format!("{i}-{now}"), now);
                    }
                }
                Act::Request(i, write) => {
                    token += 1;
                    let request = if write {
                        OptimizerRequest::SetStrategy(SetStrategy { strategy: Strategy::RoundRobin })
                    } else {
                        OptimizerRequest::GetPlacement(Default::default())
                    };
                    instances[i].processor.request(token, "x", request, RequestContext::default(), now);
                }
                Act::Send(i, max) => {
                    let instance = &mut instances[i];
                    if let Some(outgoing) = instance.processor.take(max) {
                        instance.sent = Some((outgoing, instance.processor.snapshot()));
                    }
                }
                Act::Store(i, acknowledged) => {
                    let instance = &mut instances[i];
                    let led = match instance.sent.take() {
                        None => continue,
                        Some((Outgoing::Commit { payload, fence, .. }, snapshot)) => {
                            let stored = log.append(fence, payload);
                            if let (Some(seq), Some(mut snapshot)) = (stored, snapshot) {
                                snapshot.own = seq;
                                // A snapshot plus what follows it is as good as everything.
                                let mut restored = Processor::restore(snapshot.clone(), ());
                                log.feed(&mut restored, u64::MAX).unwrap();
                                let replay = log.replay();
                                prop_assert_eq!(restored.machine(), replay.machine());
                                instance.snapshot = Some(snapshot);
                            }
                            stored
                        }
                        Some((Outgoing::Prove { fence }, _)) => (log.last(Service::Optimizer) == fence).then_some(0),
                    };
                    match led {
                        Some(seq) if acknowledged => {
                            for effect in instance.processor.acknowledged(seq).effects {
                                prop_assert!(matches!(effect, Effect::Answer { .. }), "{:?}", effect);
                            }
                            if instance.processor.is_drained() {
                                // A replay has seen what the writer had seen, unless the writer went on seeing.
                                let replay = log.replay();
                                prop_assert_eq!(replay.number(), instance.processor.number());
                                if replay.machine().foreign == instance.processor.machine().foreign {
                                    prop_assert_eq!(replay.machine(), instance.processor.machine());
                                }
                            }
                        }
                        // Refused or unknown: drop everything, load again.
                        _ => *instance = fresh(),
                    }
                }
                Act::Crash(i, from_snapshot) => {
                    let snapshot = instances[i].snapshot.take().filter(|_| from_snapshot);
                    let processor = snapshot.map_or_else(|| Processor::new(()), |s| Processor::restore(s, ()));
                    instances[i] = Instance { processor, sent: None, snapshot: None };
                }
            }
        }
        // Calm: a new instance reads everything, leads, and commits; then all agree, and nothing foreign is left out.
        let mut last = Processor::new(());
        log.feed(&mut last, u64::MAX).unwrap();
        last.lead("last", now);
        while let Some(outgoing) = last.take(100) {
            match outgoing {
                Outgoing::Commit { payload, fence, .. } => {
                    let seq = log.append(fence, payload).expect("nobody else writes");
                    last.acknowledged(seq);
                }
                Outgoing::Prove { .. } => { last.acknowledged(0); }
            }
        }
        let replay = log.replay();
        prop_assert_eq!(replay.machine(), last.machine());
        prop_assert_eq!(replay.machine().foreign, log.workflow_next);
    }
}

#[test]
fn nothing_is_answered_before_its_commit() {
    let mut log = Log::default();
    let mut processor: Processor<Chain> = Processor::new(());
    processor.lead("a", 1);
    let request = OptimizerRequest::SetStrategy(SetStrategy { strategy: Strategy::RoundRobin });
    processor.request(1, "strategy.set", request, RequestContext::default(), 2);
    assert!(processor.immediate().is_empty());
    let Some(Outgoing::Commit { payload, fence, records: 1 }) = processor.take(1000) else { panic!("a commit") };
    // While it is under way, the next request is decided, and waits.
    processor.request(
        2,
        "placement.get",
        OptimizerRequest::GetPlacement(Default::default()),
        RequestContext::default(),
        3,
    );
    assert_eq!(processor.take(1000), None);
    let seq = log.append(fence, payload).unwrap();
    let released = processor.acknowledged(seq);
    assert!(matches!(released.effects[..], [Effect::Answer { token: 1, .. }]), "{released:?}");
    assert_eq!(released.events[0].0, "baton.event.service.optimizer.strategy_changed");
    assert_eq!(released.events[0].1.position.to_string(), "1.0");
    // A refusal or a query has no record: it waits for a proof that this instance still leads.
    assert_eq!(processor.take(1000), Some(Outgoing::Prove { fence: 1 }));
    assert!(matches!(processor.acknowledged(0).effects[..], [Effect::Answer { token: 2, .. }]));
}

#[test]
fn in_a_cluster_leading_is_proved_by_a_commit() {
    let mut log = Log::default();
    let mut processor: Processor<Chain> = Processor::new(());
    processor.prove_by_commit();
    processor.lead("a", 1);
    let Some(Outgoing::Commit { payload, fence, .. }) = processor.take(1000) else { panic!("a commit") };
    processor.acknowledged(log.append(fence, payload).unwrap());
    let query = OptimizerRequest::GetPlacement(Default::default());
    processor.request(1, "placement.get", query, RequestContext::default(), 2);
    let Some(Outgoing::Commit { payload, fence, records: 0 }) = processor.take(1000) else { panic!("a commit") };
    let released = processor.acknowledged(log.append(fence, payload).unwrap());
    assert!(matches!(released.effects[..], [Effect::Answer { token: 1, .. }]));
    assert_eq!(processor.take(1000), None);
}

#[test]
fn a_leader_that_meets_another_s_commit_leads_no_more() {
    let mut log = Log::default();
    let mut old: Processor<Chain> = Processor::new(());
    old.lead("old", 1);
    let mut new: Processor<Chain> = Processor::new(());
    new.lead("new", 1);
    let Some(Outgoing::Commit { payload, fence, .. }) = new.take(1000) else { panic!("a commit") };
    log.append(fence, payload).unwrap();
    let Some(Outgoing::Commit { payload, fence, .. }) = old.take(1000) else { panic!("a commit") };
    assert_eq!(log.append(fence, payload), None, "the fence refuses it");
    let error = log.feed(&mut old, 1).unwrap_err();
    assert!(matches!(&error, ReadError::Deposed { instance, .. } if instance == "new"), "{error}");
}

#[test]
fn what_can_not_be_read_stops_the_reader() {
    let mut processor: Processor<Chain> = Processor::new(());
    let error = processor.read(1, Service::WorkflowManager, b"garbage", 0).unwrap_err();
    assert!(error.to_string().contains("message 1 of the log"), "{error}");
}

#[test]
fn what_follows_from_a_record_is_not_before_it() {
    let mut log = Log::default();
    // The workflow-manager's clock is ahead: its record is of 5.
    log.foreign(2);
    let mut processor: Processor<Chain> = Processor::new(());
    processor.lead("a", 1);
    log.feed(&mut processor, 1).unwrap();
    let Some(Outgoing::Commit { payload, .. }) = processor.take(1000) else { panic!("a commit") };
    let commit: Commit<OptimizerRecord> = baton_protocol::record::decode(&payload).unwrap();
    assert_eq!((commit.turns[0].at, processor.time()), (5, 5));
}

#[test]
fn a_snapshot_comes_with_the_commit_that_it_is_of() {
    let mut log = Log::default();
    let mut processor: Processor<Chain> = Processor::new(());
    processor.keep_snapshots(2, 0);
    processor.lead("a", 1);
    let mut kept = Vec::new();
    for token in 0..4 {
        let request = OptimizerRequest::SetStrategy(SetStrategy { strategy: Strategy::RoundRobin });
        processor.request(token, "strategy.set", request, RequestContext::default(), 2);
        let Some(Outgoing::Commit { payload, fence, .. }) = processor.take(1000) else { panic!("a commit") };
        let seq = log.append(fence, payload).unwrap();
        let snapshot = processor.acknowledged(seq).snapshot;
        assert_eq!(processor.is_beyond_snapshot(), snapshot.is_none());
        kept.extend(snapshot);
    }
    assert_eq!(kept.iter().map(|snapshot| (snapshot.own, snapshot.next)).collect::<Vec<_>>(), [(2, 3), (4, 5)]);
    let (_, own) = &log.messages[3];
    assert!(kept[1].fits(4, Some((Service::Optimizer, own))));
    assert!(!kept[1].fits(3, Some((Service::Optimizer, own))), "a log that lost its end");
    assert!(!kept[0].fits(4, Some((Service::Optimizer, own))), "another commit");
    assert!(!kept[1].fits(4, Some((Service::WorkflowManager, own))) && !kept[1].fits(4, None));
}

#[test]
fn a_commit_of_others_that_was_removed_before_it_was_read_is_missed() {
    let mut log = Log::default();
    [1, 2, 0, 1].into_iter().for_each(|records| log.foreign(records));
    for skipped in [1, 2] {
        for leads in [false, true] {
            let mut processor: Processor<Chain> = Processor::new(());
            if leads {
                processor.lead("a", 1);
            }
            log.feed(&mut processor, skipped - 1).unwrap();
            let (service, payload) = &log.messages[skipped as usize];
            let error = processor.read(skipped + 1, *service, payload, 2).unwrap_err();
            assert!(matches!(error, ReadError::Gap { seq, .. } if seq == skipped + 1), "{error}");
        }
    }
    // One that holds nothing is no loss.
    let mut processor: Processor<Chain> = Processor::new(());
    log.feed(&mut processor, 2).unwrap();
    let (service, payload) = &log.messages[3];
    processor.read(4, *service, payload, 2).unwrap();
}

#[test]
fn the_cursor_is_committed_as_often_as_it_is_asked_for() {
    for (asked, is) in [(0, 16), (20, 20), (5000, 1024)] {
        let mut log = Log::default();
        let mut processor: Processor<Chain> = Processor::new(());
        processor.checkpoint_after(asked);
        processor.lead("a", 1);
        let Some(Outgoing::Commit { payload, fence, .. }) = processor.take(1000) else { panic!("a commit") };
        let seq = log.append(fence, payload).unwrap();
        processor.acknowledged(seq);
        for read in 2..=is {
            // Without records there is nothing to react to.
            log.foreign(0);
            log.feed(&mut processor, u64::MAX).unwrap();
            let sent = processor.take(1000);
            assert_eq!(sent.is_some(), read == is, "{asked}: after message {read}");
        }
    }
}

#[test]
fn a_term_begins_when_the_log_has_been_read_to_where_it_ended() {
    let mut log = Log::default();
    log.foreign(1);
    log.foreign(1);
    let mut processor: Processor<Chain> = Processor::new(());
    assert!(!processor.begin_term("a", 1), "no campaign is won");
    processor.campaign_won(2);
    log.feed(&mut processor, 1).unwrap();
    assert!(!processor.begin_term("a", 1) && !processor.is_leading());
    log.feed(&mut processor, 1).unwrap();
    assert!(processor.begin_term("a", 1) && processor.is_leading());
    assert!(!processor.begin_term("a", 1), "it has begun");
}
