//! One turn: one input, and what the machine emits for it.

use baton_protocol::record::{Record, Stamp, Topic};
use baton_protocol::trace::{TraceContext, sampled};
use baton_protocol::{Json, LeaseId, Millis, Number, RunId, Service, subject};

use crate::{Effect, Machine, Measure, Publication, Reply, Token, Value};

/// A machine at work on one input: it sees its state, and emits.
#[derive(Debug)]
pub struct Turn<'a, M: Machine> {
    pub(crate) machine: &'a mut M,
    /// What the machine knows only while it leads.
    pub soft: &'a mut M::Soft,
    pub(crate) config: &'a M::Config,
    pub(crate) now: Millis,
    pub(crate) seen: u64,
    pub(crate) token: Option<u64>,
    pub(crate) workflow_number: Number,
    pub(crate) next: &'a mut Number,
    pub(crate) shown_traces: f64,
    pub(crate) memory: Option<u32>,
    pub(crate) emitted: Vec<Emitted>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) answered: bool,
}

/// A record that was emitted and is not committed yet. It is serialised once, for the log and for its event.
#[derive(Debug, Clone)]
pub(crate) struct Emitted {
    pub(crate) json: Json,
    pub(crate) kind: &'static str,
    pub(crate) subject: String,
    pub(crate) run: Option<RunId>,
    pub(crate) part_of: Option<RunId>,
}

impl<M: Machine> Turn<'_, M> {
    /// The state, with all that was emitted so far applied.
    #[must_use]
    pub fn state(&self) -> &M {
        self.machine
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &M::Config {
        self.config
    }

    /// The time: it never goes backwards, also not from one leader to the next.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// The number that the next record will have.
    #[must_use]
    pub fn next_number(&self) -> Number {
        *self.next
    }

    /// The number of the workflow-manager's last record that was read.
    #[must_use]
    pub fn workflow_number(&self) -> Number {
        self.workflow_number
    }

    /// How much of the memory that the process may take it takes, in per cent; none where that is not known.
    #[must_use]
    pub fn memory_percent(&self) -> Option<u32> {
        self.memory
    }

    /// Whether spans of that trace are shown, so that nobody need make one in vain. What has failed is made in any case: it is told in
    /// the log of the process.
    #[must_use]
    pub fn shows(&self, trace: TraceContext) -> bool {
        trace.sampled && sampled(trace.trace, self.shown_traces)
    }

    /// Appends a record, and applies it. Gives its number.
    ///
    /// # Panics
    /// If the record can not be written as JSON, which no record of the protocol does.
    #[expect(clippy::needless_pass_by_value, reason = "what is emitted is given away")]
    pub fn emit(&mut self, record: M::Record) -> Number {
        let number = *self.next;
        *self.next += 1;
        let json = Json::of(&record).expect("a record can be written as JSON");
        let topic = record.topic();
        let run = match topic {
            Topic::Run(run) => Some(*run),
            Topic::Agent(_) | Topic::Workflow(_) | Topic::Pool(_) | Topic::Alert(..) | Topic::Service(_) => None,
        };
        let (kind, part_of) = (record.kind(), record.part_of());
        self.emitted.push(Emitted { json, kind, subject: subject::event(topic, kind), run, part_of });
        self.machine.apply(Stamp { number, at: self.now, seen: self.seen }, &record);
        number
    }

    /// Appends a record that grants a lease.
    pub fn grant(&mut self, record: M::Record) -> LeaseId {
        LeaseId(self.emit(record))
    }

    /// Has the shell do something, once the turn is committed.
    pub fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Publishes, once the turn is committed.
    pub fn publish(&mut self, publication: Publication) {
        self.effect(Effect::Publish(publication));
    }

    /// Asks another service, at once.
    pub fn ask(&mut self, service: Service, endpoint: &'static str, body: Json, tag: u64) {
        self.effect(Effect::Ask { service, endpoint, body, tag });
    }

    /// Answers the request of this turn with a document, instead of with what the function returns.
    pub fn answer_document(&mut self, bucket: &'static str, key: String, or: baton_protocol::Rejection) {
        if let Some(token) = self.token {
            self.answered = true;
            self.effect(Effect::AnswerDocument { token, bucket, key, or });
        }
    }

    /// Leaves the request of this turn without an answer for now. Whoever keeps the token, among what it knows only while it
    /// leads, answers it in a later turn ([`Turn::answer`]); should the term end before, the asker has no answer and asks again.
    pub fn answer_later(&mut self) -> Option<Token> {
        self.answered |= self.token.is_some();
        self.token
    }

    /// Answers a request of an earlier turn, once this one is committed.
    pub fn answer(&mut self, token: Token, reply: Reply) {
        self.effect(Effect::Answer { token, reply });
    }

    /// Adds to a counter.
    pub fn count(&mut self, metric: &'static str, labels: &[&str], by: f64) {
        self.measure(metric, labels, Value::Add(by));
    }

    /// Adds an observation to a histogram.
    pub fn measure_value(&mut self, metric: &'static str, labels: &[&str], value: f64) {
        self.measure(metric, labels, Value::Observe(value));
    }

    /// Sets a gauge.
    pub fn gauge(&mut self, metric: &'static str, labels: &[&str], value: f64) {
        self.measure(metric, labels, Value::Set(value));
    }

    fn measure(&mut self, metric: &'static str, labels: &[&str], value: Value) {
        let labels = labels.iter().map(|&label| label.to_owned()).collect();
        self.effect(Effect::Measure(Measure { metric, labels, value }));
    }
}
