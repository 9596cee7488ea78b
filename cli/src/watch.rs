//! Watching a run until it ends: a bar a stage on a terminal, a line a record elsewhere, on standard error; less of both
//! where there are many stages.

mod many;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, stderr};
use std::time::Duration;

use baton_client::{Client, RunEvent};
use baton_protocol::record::{Event, Outcome, Parent, ResourceRecord, WorkflowRecord};
use baton_protocol::run::RunView;
use baton_protocol::{Json, RunId, StageName};
use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::many::{GroupBars, Lines};
use crate::groups::MANY;
use crate::style::{Style, Tone};
use crate::text::{short, span};
use crate::transcript::Transcript;

/// How fine a bar is.
const WHOLE: u64 = 1000;

/// What is shown meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Show {
    /// Bars on a terminal; records where there is none.
    Something(Style),
    /// Bars on a terminal; nothing where there is none.
    BarsOnly(Style),
    /// Nothing.
    Nothing,
}

/// A run that was watched to its end.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) view: RunView,
    /// Its records.
    pub(crate) events: Vec<Event>,
}

/// Watches a run until it ends.
pub(crate) async fn watch(client: &Client, run: RunId, show: Show) -> anyhow::Result<Watched> {
    let mut events = Vec::new();
    let mut screen = match show {
        Show::BarsOnly(_) if !stderr().is_terminal() => Screen::Dark,
        Show::Nothing => Screen::Dark,
        Show::Something(style) | Show::BarsOnly(style) => {
            Screen::new(&client.get_run(run).await?, stderr().is_terminal(), style)
        }
    };
    let mut stream = client.run_events(run, None).await?;
    while let Some(event) = stream.next().await {
        let event = event?;
        screen.take(&event);
        if let RunEvent::Record(event) = event {
            events.push(event);
        }
    }
    screen.end();
    Ok(Watched { view: client.get_run(run).await?, events })
}

enum Screen {
    Bars(Bars),
    Groups(GroupBars),
    Lines(Transcript),
    FewLines(Lines),
    Dark,
}

impl Screen {
    fn new(view: &RunView, terminal: bool, style: Style) -> Self {
        match (terminal, view.stages.len() >= MANY) {
            (true, false) => Self::Bars(Bars::new(view, style)),
            (true, true) => Self::Groups(GroupBars::new(view, style)),
            (false, false) => Self::Lines(Transcript::new(style)),
            (false, true) => Self::FewLines(Lines::new(view, style)),
        }
    }

    fn take(&mut self, event: &RunEvent) {
        match (self, event) {
            (Self::Bars(bars), event) => bars.take(event),
            (Self::Groups(bars), event) => bars.take(event),
            (Self::Lines(transcript), RunEvent::Record(record)) => say(&transcript.line(record)),
            (Self::FewLines(lines), RunEvent::Record(record)) => lines.take(record).iter().for_each(|line| say(line)),
            (Self::Lines(_) | Self::FewLines(_) | Self::Dark, _) => {}
        }
    }

    fn end(&self) {
        match self {
            Self::Bars(bars) => bars.end(),
            Self::Groups(bars) => bars.end(),
            Self::Lines(transcript) => say(&transcript.end()),
            Self::FewLines(lines) => say(&lines.end()),
            Self::Dark => {}
        }
    }
}

/// Writes a line for people, if anybody is there.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(stderr().lock(), "{line}");
}

/// A bar for each stage.
struct Bars {
    run: RunId,
    bars: BTreeMap<StageName, ProgressBar>,
    /// What each stage waits for.
    waits_for: BTreeMap<StageName, String>,
    /// Of a stage that has a task for each item of a list: how many items are over, and how many there are.
    items: BTreeMap<StageName, (u64, u64)>,
    /// The stages that were done before it was known whether that counts.
    done_early: BTreeSet<StageName>,
    style: Style,
}

impl Bars {
    fn new(view: &RunView, style: Style) -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let width = view.stages.iter().map(|stage| stage.name.as_str().len()).max().unwrap_or(0);
        let template = format!("  {{prefix:{width}}}  {{bar:24}}  {{msg}}");
        // A template that can not be read would be a defect of this line; a bar without it still is one.
        let bar_style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━━╌");
        let mut waits_for = BTreeMap::new();
        let mut bars = BTreeMap::new();
        for stage in &view.stages {
            let names: Vec<_> = stage.depends_on.iter().map(StageName::as_str).collect();
            waits_for.insert(stage.name.clone(), names.join(", "));
            let bar = screen.add(ProgressBar::new(WHOLE).with_style(bar_style.clone()));
            bar.set_prefix(stage.name.to_string());
            if !names.is_empty() {
                bar.set_message(style.dim(&format!("waits for {}", names.join(", "))));
            }
            bars.insert(stage.name.clone(), bar);
        }
        Self { run: view.run, bars, waits_for, items: BTreeMap::new(), done_early: BTreeSet::new(), style }
    }

    fn take(&mut self, event: &RunEvent) {
        match event {
            RunEvent::Progress(progress) if progress.task.item.is_some() => {}
            RunEvent::Progress(progress) => {
                if let Some(bar) = self.bars.get(&progress.task.stage).filter(|bar| !bar.is_finished()) {
                    bar.set_position(parts(progress.fraction));
                    bar.set_message(short(&format!("{} {}", progress.agent, progress.message), 60));
                }
            }
            RunEvent::Record(event) => {
                if let Ok(record) = event.record.read::<WorkflowRecord>() {
                    self.workflow(&record);
                } else if let Ok(ResourceRecord::Assigned(record)) = event.record.read()
                    && record.task.item.is_none()
                {
                    self.on(&record.task.stage, |bar| {
                        if record.beside.is_some() {
                            bar.set_message(format!("{}, and {} as well", bar.message(), record.agent));
                            return;
                        }
                        bar.enable_steady_tick(Duration::from_millis(100));
                        bar.set_message(record.agent.to_string());
                    });
                }
            }
        }
    }

    fn workflow(&mut self, record: &WorkflowRecord) {
        match record {
            WorkflowRecord::StageExpanded(record) => {
                let items = record.items.read::<Vec<Json>>().map_or(0, |items| items.len() as u64);
                self.items.insert(record.stage.clone(), (0, items));
                self.on(&record.stage, |bar| bar.set_message(format!("0 of {items} items")));
            }
            WorkflowRecord::StageReady(record) if record.task.item.is_some() => {}
            WorkflowRecord::StageEnded(record) if record.task.item.is_some() => {
                let Some((over, items)) = self.items.get_mut(&record.task.stage) else { return };
                *over += u64::from(record.retry_at.is_none());
                let (over, items) = (*over, *items);
                self.on(&record.task.stage, |bar| {
                    bar.set_position(over * WHOLE / items.max(1));
                    bar.set_message(format!("{over} of {items} items"));
                });
            }
            WorkflowRecord::StageReady(record) => {
                self.done_early.remove(&record.task.stage);
                self.on(&record.task.stage, |bar| {
                    bar.set_position(0);
                    let again = match record.task.attempt {
                        1 if record.speculative => " (early)".to_owned(),
                        1 => String::new(),
                        attempt => format!(" (attempt {attempt})"),
                    };
                    bar.set_message(self.style.dim(&format!("waits for an agent{again}")));
                });
            }
            WorkflowRecord::StageEnded(record) => {
                let done_early = record.speculative && record.outcome == Outcome::Succeeded;
                if done_early {
                    self.done_early.insert(record.task.stage.clone());
                }
                self.on(&record.task.stage, |bar| {
                    let agent = record.agent.as_ref().map(ToString::to_string).unwrap_or_default();
                    let outcome = self.style.tone(Tone::of(record.outcome.as_str()), record.outcome.as_str());
                    let error =
                        record.error.as_ref().map(|error| format!(": {}", short(error, 60))).unwrap_or_default();
                    let message = format!("{outcome} {} {agent}{error}", span(record.duration_ms));
                    if record.speculative {
                        bar.set_position(0);
                        bar.set_message(format!("{message}; {}", self.style.dim("it began early, and waits")));
                    } else if record.outcome == Outcome::Delegated {
                        bar.set_message(message);
                    } else if record.retry_at.is_some() {
                        bar.set_message(format!("{message}; again soon"));
                    } else {
                        bar.set_position(if record.outcome == Outcome::Succeeded { WHOLE } else { bar.position() });
                        bar.abandon_with_message(message);
                    }
                });
            }
            WorkflowRecord::StageSkipped(record) => self.on(&record.stage, |bar| {
                bar.abandon_with_message(self.style.dim(&format!("skipped: {}", record.reason.text())));
            }),
            WorkflowRecord::RunStarted(record) => {
                if let Some(Parent { task, .. }) = record.parent.as_deref().filter(|parent| parent.task.run == self.run)
                {
                    if task.item.is_none() {
                        self.on(&task.stage, |bar| {
                            bar.enable_steady_tick(Duration::from_millis(100));
                            bar.set_message(format!("run {}", record.run));
                        });
                    }
                    return;
                }
                for kept in record.rerun.iter().flat_map(|rerun| &rerun.kept) {
                    self.on(&kept.stage, |bar| {
                        bar.set_position(WHOLE);
                        bar.abandon_with_message(self.style.dim("kept from the run that is repeated"));
                    });
                }
            }
            WorkflowRecord::WorkflowRegistered(_)
            | WorkflowRecord::RunFinished(_)
            | WorkflowRecord::RunPaused(_)
            | WorkflowRecord::RunResumed(_)
            | WorkflowRecord::Signalled(_)
            | WorkflowRecord::RunsForgotten(_) => {}
            WorkflowRecord::StageCached(record) => self.on(&record.stage, |bar| {
                bar.set_position(WHOLE);
                bar.abandon_with_message(self.style.dim("done before: its result is used again"));
            }),
            // One that is under way goes on.
            WorkflowRecord::StageCommitted(record) if self.done_early.contains(&record.task.stage) => {
                self.on(&record.task.stage, |bar| {
                    bar.set_position(WHOLE);
                    bar.abandon_with_message(self.style.dim("done early, and it counts"));
                });
            }
            WorkflowRecord::StageCommitted(_) | WorkflowRecord::CopyEnded(_) => {}
            WorkflowRecord::StageWaits(record) => self.on(&record.stage, |bar| {
                bar.set_position(0);
                bar.set_message(self.style.dim("waits for somebody's word"));
            }),
            WorkflowRecord::ScheduleSet(_)
            | WorkflowRecord::ScheduleRemoved(_)
            | WorkflowRecord::ScheduleFired(_)
            | WorkflowRecord::TriggerSet(_)
            | WorkflowRecord::TriggerRemoved(_)
            | WorkflowRecord::EventRaised(_)
            | WorkflowRecord::TriggerFired(_) => {}
        }
    }

    fn on(&self, stage: &StageName, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bars.get(stage) {
            act(bar);
        }
    }

    /// Leaves the bars as they are.
    fn end(&self) {
        for (stage, bar) in self.bars.iter().filter(|(_, bar)| !bar.is_finished()) {
            let waited = self.waits_for.get(stage).filter(|names| !names.is_empty());
            bar.abandon_with_message(self.style.dim(if waited.is_some() { "never began" } else { "not ended" }));
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and WHOLE")]
fn parts(fraction: f64) -> u64 {
    (fraction.clamp(0.0, 1.0) * WHOLE as f64) as u64
}
