//! Watching a run of many stages: a bar for each group of them on a terminal, a line a twentieth elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use baton_client::RunEvent;
use baton_protocol::record::{Event, Outcome, ResourceRecord, WorkflowRecord};
use baton_protocol::run::RunView;
use baton_protocol::{Part, RunId, StageName};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::style::{Style, Tone};
use crate::text::{short, span};
use crate::transcript::Transcript;

/// How many bars fit onto a screen.
const BARS: usize = 15;

/// What became of the stages so far.
#[derive(Debug, Default)]
struct Tally {
    running: BTreeSet<Part>,
    over: usize,
    failed: usize,
}

impl Tally {
    /// What a record changes. Records of a run come in order, each once.
    fn take(&mut self, record: &Known) {
        match record {
            Known::Begun(part) => {
                self.running.insert(part.clone());
            }
            Known::Ended { part, outcome, over } => {
                self.running.remove(part);
                // A stage that has a task for each item of a list ends as a whole, too.
                let over = *over && part.item.is_none();
                self.over += usize::from(over);
                self.failed += usize::from(over && *outcome != Outcome::Succeeded);
            }
            Known::Committed(part) => self.over += usize::from(!self.running.contains(part)),
            Known::Skipped(_) => self.over += 1,
        }
    }
}

/// What counts of a record.
enum Known {
    Begun(Part),
    Ended {
        part: Part,
        outcome: Outcome,
        over: bool,
    },
    /// It is over if it ended before.
    Committed(Part),
    Skipped(StageName),
}

impl Known {
    fn of(event: &Event, run: RunId) -> Option<Self> {
        match event.kind.as_str() {
            "assigned" => match event.record.read().ok()? {
                ResourceRecord::Assigned(record) if record.beside.is_none() => Some(Self::Begun(record.task.part())),
                _ => None,
            },
            "stage_ended" => match event.record.read().ok()? {
                WorkflowRecord::StageEnded(record) => Some(Self::Ended {
                    part: record.task.part(),
                    outcome: record.outcome,
                    over: record.retry_at.is_none() && !record.speculative,
                }),
                _ => None,
            },
            // That one does a stage of this one.
            "run_started" => match event.record.read().ok()? {
                WorkflowRecord::RunStarted(record) => {
                    record.parent.filter(|parent| run == parent.task.run).map(|parent| Self::Begun(parent.task.part()))
                }
                _ => None,
            },
            "stage_skipped" => match event.record.read().ok()? {
                WorkflowRecord::StageSkipped(record) => Some(Self::Skipped(record.stage)),
                _ => None,
            },
            "stage_committed" => match event.record.read().ok()? {
                WorkflowRecord::StageCommitted(record) => Some(Self::Committed(record.task.part())),
                _ => None,
            },
            // Nobody does it either.
            "stage_cached" => match event.record.read().ok()? {
                WorkflowRecord::StageCached(record) => Some(Self::Skipped(record.stage)),
                _ => None,
            },
            _ => None,
        }
    }

    fn stage(&self) -> &StageName {
        match self {
            Self::Begun(part) | Self::Ended { part, .. } | Self::Committed(part) => &part.stage,
            Self::Skipped(stage) => stage,
        }
    }
}

/// A bar for the stages that are for the same agents; those of the smallest groups share one.
pub(super) struct GroupBars {
    bars: Vec<(ProgressBar, Tally)>,
    /// Which bar a stage is in.
    places: BTreeMap<StageName, usize>,
    run: RunId,
    style: Style,
}

impl GroupBars {
    pub(super) fn new(view: &RunView, style: Style) -> Self {
        let mut sizes: BTreeMap<&str, u64> = BTreeMap::new();
        for stage in &view.stages {
            *sizes.entry(stage.done_by()).or_default() += 1;
        }
        let mut largest: Vec<(&str, u64)> = sizes.into_iter().collect();
        if largest.len() > BARS {
            largest.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
            let others = largest.split_off(BARS - 1).iter().map(|(_, size)| size).sum();
            largest.push(("others", others));
        }
        let width = largest.iter().map(|(name, _)| name.len()).max().unwrap_or(0).min(40);
        let template = format!("  {{prefix:{width}}}  {{bar:24}}  {{pos:>5}}/{{len:<5}}  {{msg}}");
        // A template that can not be read would be a defect of this line; a bar without it still is one.
        let bar_style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━╌");
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let bar = |(name, size): &(&str, u64)| {
            let bar = screen.add(ProgressBar::new(*size).with_style(bar_style.clone()));
            bar.set_prefix(short(name, width));
            (bar, Tally::default())
        };
        let bars: Vec<_> = largest.iter().map(bar).collect();
        let last = bars.len().saturating_sub(1);
        let place = |agents: &str| largest.iter().position(|(name, _)| *name == agents).unwrap_or(last);
        let places = view.stages.iter().map(|stage| (stage.name.clone(), place(stage.done_by()))).collect();
        Self { bars, places, run: view.run, style }
    }

    pub(super) fn take(&mut self, event: &RunEvent) {
        let RunEvent::Record(event) = event else { return };
        let Some(known) = Known::of(event, self.run) else { return };
        let Some((bar, tally)) = self.places.get(known.stage()).and_then(|place| self.bars.get_mut(*place)) else {
            return;
        };
        tally.take(&known);
        bar.set_position(tally.over as u64);
        let running = if tally.running.is_empty() { String::new() } else { format!("{} running", tally.running.len()) };
        let failed = if tally.failed == 0 { String::new() } else { format!("{} failed", tally.failed) };
        bar.set_message(format!("{running:<12} {}", self.style.tone(Tone::Bad, &failed)));
    }

    pub(super) fn end(&self) {
        self.bars.iter().for_each(|(bar, _)| bar.abandon());
    }
}

/// Lines for a log: how far it is, and every record that is no good news.
pub(super) struct Lines {
    transcript: Transcript,
    run: RunId,
    stages: usize,
    tally: Tally,
    /// How many twentieths were told.
    told: usize,
    start: Option<u64>,
}

impl Lines {
    pub(super) fn new(view: &RunView, style: Style) -> Self {
        let transcript = Transcript::new(style);
        Self { transcript, run: view.run, stages: view.stages.len(), tally: Tally::default(), told: 0, start: None }
    }

    /// The lines that a record is worth.
    pub(super) fn take(&mut self, event: &Event) -> Vec<String> {
        let start = *self.start.get_or_insert(event.at);
        let line = self.transcript.line(event);
        let mut lines = Vec::new();
        match Known::of(event, self.run) {
            Some(known) => {
                self.tally.take(&known);
                let well = [Outcome::Succeeded, Outcome::Delegated];
                if matches!(known, Known::Ended { outcome, .. } if !well.contains(&outcome)) {
                    lines.push(line);
                }
            }
            None if matches!(event.kind.as_str(), "run_started" | "run_paused" | "run_resumed" | "run_finished") => {
                lines.push(line);
            }
            None => {}
        }
        let twentieths = 20 * self.tally.over / self.stages.max(1);
        if twentieths > self.told {
            self.told = twentieths;
            let (over, running) = (self.tally.over, self.tally.running.len());
            let after = span(event.at.saturating_sub(start));
            lines.push(format!("  {after:>9}  {over} of {} stages over, {running} running", self.stages));
        }
        lines
    }

    pub(super) fn end(&self) -> String {
        self.transcript.end()
    }
}

#[cfg(test)]
mod tests {
    use baton_protocol::Json;
    use serde_json::json;

    use super::*;

    #[test]
    fn c2_of_many_stages_only_twentieths_and_what_failed_are_told() {
        let run = RunId::derive(1, 1);
        let view: RunView = serde_json::from_value(json!({
            "run": run, "workflow": "w", "version": 1, "status": "running", "input": {}, "trace_id": "", "started_at": 0,
            "cost": "0", "usage": {}, "first_seq": 0,
            "stages": (0..40).map(|i| json!({ "name": format!("s{i}"), "agent_type": "x", "status": "pending" }))
                .collect::<Vec<_>>()
        }))
        .unwrap();
        let mut lines = Lines::new(&view, Style::plain());
        let mut told = Vec::new();
        for i in 0..40 {
            let outcome = if i == 3 { "failed" } else { "succeeded" };
            let record = json!({ "stage_ended": { "task": format!("{run}/s{i}/1"), "outcome": outcome } });
            let event = json!({
                "position": format!("{}.0", i + 1), "service": "workflow-manager", "number": i, "at": 1000 * i,
                "cause": "timer", "kind": "stage_ended", "run": run, "record": record
            });
            let event: Event = Json::of(&event).unwrap().read().unwrap();
            told.extend(lines.take(&event));
        }
        assert_eq!(told.len(), 21, "{told:#?}");
        assert!(told[1].contains("s3/1 failed"), "{told:#?}");
        assert_eq!(told[20].trim_start(), "39.0 s  40 of 40 stages over, 0 running");
    }
}
