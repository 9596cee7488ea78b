//! The outcome as text.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use crate::check::Class;
use crate::faults::{Injected, Outcome, blamed};
use crate::kind::Kind;

/// How many findings are shown.
const SHOWN: usize = 40;

/// A fault in a line.
#[must_use]
pub fn line(injected: &Injected) -> String {
    let mut text =
        format!("{:<22} {:<34} recovered in {}", injected.kind.name(), injected.what, shown(injected.recovery_ms));
    if injected.leader_ms.is_some() {
        let _ = write!(text, ", successor after {}", shown(injected.leader_ms));
    }
    let _ = write!(text, ", runs under way over after {}", shown(injected.under_way_ms));
    if !injected.survived {
        text.push_str("  NOT SURVIVED");
    }
    text
}

/// The table of the faults, the totals, and what is wrong.
#[must_use]
pub fn of(outcome: &Outcome) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "fault",
        "injected",
        "survived",
        "recovery p50",
        "max",
        "successor p50",
        "max",
        "under way p50",
        "max",
        "lost",
        "duplicated",
        "violated",
    ]);
    let mut kinds: BTreeMap<Kind, Vec<&Injected>> = BTreeMap::new();
    for injected in &outcome.injected {
        kinds.entry(injected.kind).or_default().push(injected);
    }
    let [lost, duplicated, violated] =
        [Class::Lost, Class::Duplicated, Class::Violated].map(|class| blamed(outcome, class));
    for (kind, faults) in &kinds {
        let survived = faults.iter().filter(|fault| fault.survived).count();
        let of = |pick: fn(&Injected) -> Option<u64>| spread(faults.iter().map(|fault| pick(fault)));
        let [recovery, leader, under_way] =
            [of(|fault| fault.recovery_ms), of(|fault| fault.leader_ms), of(|fault| fault.under_way_ms)];
        let mut row = vec![kind.name(), faults.len().to_string(), survived.to_string()];
        for spread in [recovery, leader, under_way] {
            let (p50, max) = spread.map_or_else(Default::default, |(p50, max)| (shown(Some(p50)), shown(Some(max))));
            row.extend([p50, max]);
        }
        row.extend(
            [&lost, &duplicated, &violated].map(|blamed| blamed.get(kind).copied().unwrap_or_default().to_string()),
        );
        table.add_row(row);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));

    let counts = &outcome.verdict.counts;
    let faults = outcome.injected.iter().filter(|injected| injected.kind != Kind::Nothing);
    let survived = faults.clone().filter(|injected| injected.survived).count();
    let seconds = outcome.load_ms as f64 / 1000.0;
    let mut text = format!("{table}\n\n");
    let _ = writeln!(
        text,
        "seed {}: {} faults, {survived} survived; {} lost, {} duplicated, {} violated, {} other troubles",
        outcome.seed,
        faults.count(),
        outcome.verdict.count(Class::Lost),
        outcome.verdict.count(Class::Duplicated),
        outcome.verdict.count(Class::Violated),
        outcome.troubles.len(),
    );
    let _ = writeln!(
        text,
        "{} runs accepted ({} over HTTP), {} refused, {} strays; ended: {}",
        counts.accepted,
        outcome.by_http,
        counts.refused,
        counts.strays,
        list(counts.ended.iter().map(|(status, count)| format!("{count} {status}"))),
    );
    let _ = writeln!(
        text,
        "{} stages in {seconds:.0} s of load, {:.0} stages/s, faults and all; attempts: {}",
        counts.stages,
        counts.stages as f64 / seconds.max(0.001),
        list(counts.attempts.iter().map(|(outcome, count)| format!("{count} {outcome}"))),
    );
    let _ = writeln!(
        text,
        "{} reports told stored, {} told stale ({} of them had been stored before); {} of {} bad messages were answered; {} commits",
        counts.reports_stored,
        counts.reports_refused,
        counts.reports_refused_but_counted,
        outcome.bad.1,
        outcome.bad.0,
        counts.commits,
    );
    for finding in outcome.verdict.findings.iter().take(SHOWN) {
        let _ = writeln!(text, "{:?} {:?} at {}: {}", finding.rule.class(), finding.rule, finding.at, finding.what);
    }
    if let Some(more) = outcome.verdict.findings.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "… and {more} more");
    }
    for trouble in &outcome.troubles {
        let _ = writeln!(text, "trouble: {trouble}");
    }
    if let Some(folder) = &outcome.folder {
        let _ = writeln!(text, "everything is in {}", folder.display());
    }
    text
}

fn list(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

/// The middle (of two, the smaller) and the largest; what never came is left out (it did not survive).
pub(crate) fn spread(times: impl Iterator<Item = Option<u64>>) -> Option<(u64, u64)> {
    let mut times: Vec<_> = times.flatten().collect();
    times.sort_unstable();
    Some((times.get(times.len().saturating_sub(1) / 2).copied()?, times.last().copied()?))
}

fn shown(ms: Option<u64>) -> String {
    match ms {
        Some(ms) => format!("{:.2} s", ms as f64 / 1000.0),
        None => "never".to_owned(),
    }
}
