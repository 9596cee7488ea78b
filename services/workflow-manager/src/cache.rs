//! Results that may be used again.
//!
//! A result is kept under a key: a digest of the stage and of what its agent was given, or of what the definition says
//! that the result depends on. The key is made when the stage's attempt begins and written into its record, so that a
//! replay evaluates nothing. What is kept is bounded in number and bytes; the oldest go first.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

use baton_machine::Shelves;
use baton_machine::planted::{Bug, is_planted};
use baton_protocol::record::{StageCached, WorkflowRecord};
use baton_protocol::{Json, Millis, RunId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Turn;
use crate::flow::{self, Failure};
use crate::run::Run;
use crate::workflows::Version;

/// How many results are kept.
const MAX_ENTRIES: usize = 4096;

/// How many bytes they may take together.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// About what one takes beside its result, in bytes.
const OVERHEAD: usize = 200;

/// The results, by key.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cache {
    entries: Shelves<String, Arc<Entry>>,
    /// The keys, that of the oldest result first.
    order: VecDeque<String>,
    bytes: usize,
}

/// A result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) result: Json,
    /// The run that gave it.
    pub(crate) run: RunId,
    /// When.
    pub(crate) at: Millis,
}

impl Entry {
    fn size(&self) -> usize {
        OVERHEAD + self.result.size()
    }
}

impl Cache {
    /// Keeps a result. A newer one takes the place of an older one.
    pub(crate) fn put(&mut self, key: String, entry: Entry) {
        self.take(&key);
        self.bytes += entry.size();
        self.order.push_back(key.clone());
        self.entries.insert(key, Arc::new(entry));
        while self.order.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.front().cloned() else { return };
            self.take(&oldest);
        }
    }

    fn take(&mut self, key: &String) {
        let Some(old) = self.entries.remove(key) else { return };
        self.bytes -= old.size();
        if let Some(at) = self.order.iter().position(|known| known == key) {
            self.order.remove(at);
        }
    }

    /// A result that is not older than that.
    fn get(&self, key: &str, now: Millis, ttl: Millis) -> Option<&Entry> {
        let entry = self.entries.get(key)?.as_ref();
        (now < entry.at.saturating_add(ttl) || is_planted(Bug::CacheOutlived)).then_some(entry)
    }
}

/// Under what the result of a stage's attempt is kept, where its agent is given this; none where none is kept.
pub(crate) fn key(run: &Run, version: &Version, place: usize, input: Option<&Json>) -> Result<Option<String>, Failure> {
    let stage = run.definition(version, place);
    let Some(cache) = &stage.cache else { return Ok(None) };
    let mut digest = Sha256::new();
    // Each part with its length, so that none is taken for a part of another one.
    let mut part = |text: &str| {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text.as_bytes());
    };
    part(run.workflow.as_str());
    part(stage.name.as_str());
    part(stage.agent_type.as_str());
    for said in [
        Json::of(&stage.requires),
        Json::of(&stage.params),
        Json::of(&stage.output),
        Json::of(&stage.input_schema),
        Json::of(&stage.output_schema),
        Json::of(&cache.key),
        Json::of(&version.definition.metadata),
    ] {
        part(said.unwrap_or_default().as_str());
    }
    let matters = !is_planted(Bug::CacheConfused);
    if matters && cache.key.is_some() {
        part(flow::cache_key(run, version, place)?.unwrap_or_default().as_str());
    } else if matters {
        part(input.unwrap_or(&run.input).as_str());
        for dependency in &stage.depends_on {
            let place = version.plan.place(dependency);
            let giver = place.and_then(|place| version.plan.flows.giver(run, place));
            let result = giver.and_then(|giver| run.stages[giver].result.as_ref());
            part(dependency.as_str());
            part(result.map_or("", Json::as_str));
        }
    }
    let digest = digest.finalize();
    Ok(Some(digest.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })))
}

/// Gives a stage that has not begun the result that was given before. Whether there was one.
pub(crate) fn hit(turn: &mut Turn<'_>, id: RunId, place: usize, key: &str) -> bool {
    let Some((run, version)) = turn.state().live(id) else { return false };
    let stage = run.definition(version, place);
    let Some(cache) = stage.cache.as_ref().filter(|_| !run.no_cache && run.stages[place].attempts.is_empty()) else {
        return false;
    };
    let Some(entry) = turn.state().cache.get(key, turn.now(), cache.ttl_ms) else { return false };
    let record = StageCached { run: id, stage: stage.name.clone(), of: entry.run, result: entry.result.clone() };
    turn.emit(WorkflowRecord::StageCached(record));
    turn.count("stages_cached_total", &[], 1.0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(run: u128, at: Millis, bytes: usize) -> Entry {
        Entry { result: Json::of(&"x".repeat(bytes)).unwrap(), run: RunId::derive(at, run), at }
    }

    #[test]
    fn w11_what_is_kept_is_bounded_and_the_oldest_go_first() {
        let mut cache = Cache::default();
        for n in 0..MAX_ENTRIES + 10 {
            cache.put(format!("{n}"), entry(1, 5, 10));
        }
        assert_eq!((cache.order.len(), cache.entries.len()), (MAX_ENTRIES, MAX_ENTRIES));
        assert!(cache.get("9", 5, 10).is_none() && cache.get("10", 5, 10).is_some());
        for n in 0..100 {
            cache.put(format!("large {n}"), entry(2, 6, 250_000));
        }
        assert!(cache.bytes <= MAX_BYTES && cache.order.len() < 100, "{} bytes", cache.bytes);
        assert!(cache.get("10", 5, 10).is_none() && cache.get("large 99", 5, 10).is_some());
        let bytes: usize = cache.entries.values().map(|entry| entry.size()).sum();
        assert_eq!((bytes, cache.order.len()), (cache.bytes, cache.entries.len()));
    }

    #[test]
    fn w11_a_newer_result_takes_the_place_of_an_older_one_and_has_its_own_time() {
        let mut cache = Cache::default();
        cache.put("k".to_owned(), entry(1, 100, 10));
        cache.put("k".to_owned(), entry(2, 200, 20));
        assert_eq!((cache.order.len(), cache.bytes), (1, OVERHEAD + 22));
        assert_eq!(cache.get("k", 249, 50).unwrap().run, RunId::derive(200, 2));
        assert!(cache.get("k", 250, 50).is_none(), "its time is up");
        assert!(cache.get("other", 200, 50).is_none());
    }
}
