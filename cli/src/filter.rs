//! Which runs are meant: the options that `baton runs` and `baton cancel` share.

use baton_client::now;
use baton_protocol::request::RunFilter;
use baton_protocol::run::{Metadata, TENANT_KEY};
use baton_protocol::{Millis, WorkflowName};
use clap::Args;

use crate::failure::Failure;

/// Which runs are meant
#[derive(Debug, Clone, Args)]
pub(crate) struct Filter {
    /// Only runs of this workflow
    #[arg(long, value_name = "NAME")]
    workflow: Option<WorkflowName>,
    /// Only runs that started then or later: `30m`, `2h`, `7d` ago, or `2026-11-20T10:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Millis>,
    /// Only runs that started before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Millis>,
    /// Only runs that bear this in their metadata
    #[arg(long, value_name = "KEY=VALUE", value_parser = meta)]
    meta: Vec<(String, String)>,
    /// Only runs that are paused
    #[arg(long)]
    paused: bool,
}

impl Filter {
    pub(crate) fn filter(self) -> Result<RunFilter, Failure> {
        let Self { workflow, since, until, meta, paused } = self;
        Ok(RunFilter { workflow, since, until, metadata: metadata(meta)?, paused: paused.then_some(true) })
    }

    /// Whether anything is said.
    pub(crate) fn says(&self) -> bool {
        let Self { workflow, since, until, meta, paused } = self;
        workflow.is_some() || since.is_some() || until.is_some() || !meta.is_empty() || *paused
    }
}

/// One `--meta KEY=VALUE`: a text.
pub(crate) fn meta(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must look like KEY=VALUE")?;
    if key.is_empty() {
        return Err("there is no key before the =".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The metadata of a run that pairs make together, and who it is for.
pub(crate) fn metadata_of(pairs: Vec<(String, String)>, tenant: Option<String>) -> Result<Metadata, Failure> {
    let tenant = tenant.map(|tenant| (TENANT_KEY.to_owned(), tenant));
    metadata(pairs.into_iter().chain(tenant).collect())
}

/// The metadata that pairs make together.
fn metadata(pairs: Vec<(String, String)>) -> Result<Metadata, Failure> {
    let mut metadata = Metadata::new();
    for (key, value) in pairs {
        if metadata.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(format!("the metadata {key:?} is given twice")));
        }
    }
    Ok(metadata)
}

/// A point in time: how long ago, or when.
fn time(text: &str) -> Result<Millis, String> {
    time_at(text, now())
}

fn time_at(text: &str, now: Millis) -> Result<Millis, String> {
    let units = [("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let ago =
        units.iter().find_map(|(unit, ms)| Some(text.strip_suffix(unit)?.parse::<u64>().ok()?.saturating_mul(*ms)));
    if let Some(ago) = ago {
        return Ok(now.saturating_sub(ago));
    }
    let when = text.parse::<jiff::Timestamp>().ok().and_then(|time| Millis::try_from(time.as_millisecond()).ok());
    when.ok_or_else(|| "it must be so long ago (30s, 30m, 2h, 7d) or a time like 2026-11-20T10:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w19_times_are_given_as_so_long_ago_or_as_they_are() {
        let now = 1_763_665_200_000;
        for (text, time) in [
            ("30s", now - 30_000),
            ("2h", now - 7_200_000),
            ("7d", now - 604_800_000),
            ("0m", now),
            ("99999999999d", 0),
            ("2025-11-20T19:00:00Z", now),
            ("2025-11-20T20:00:00+01:00", now),
        ] {
            assert_eq!(time_at(text, now), Ok(time), "{text}");
        }
        for text in ["", "h", "-1h", "yesterday", "1.5h", "1969-01-01T00:00:00Z"] {
            assert!(time_at(text, now).is_err(), "{text}");
        }
    }
}
