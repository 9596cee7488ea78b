//! Research: finds the passages of a folder that answer a topic.
//!
//! Reads `input.topic` and `input.sources` (a directory or a list of them), and the optional `max_extracts` (of the
//! parameters or the input). Passages are ranked by BM25, headings counting double; then chosen one after another so
//! that none repeats another and no single file has everything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bm25::Index;
use crate::corpus::{self, Corpus, Skipped};
use crate::roles::{Context, RoleError};
use crate::shape::{Extract, Source, Task};
use crate::text::{self, Lexicon, Term};
use crate::textrank;

/// No result has more extracts.
pub const MOST_EXTRACTS: usize = 40;
/// No result has more bytes of text in its extracts.
pub const MOST_BYTES: usize = 64 * 1024;
/// How many extracts a result has unless it is said.
const USUAL_EXTRACTS: usize = 24;
/// A passage with less than this part of the best score says too little of the topic.
const FLOOR: f64 = 0.15;
/// With fewer passages than this, weaker ones are taken too.
const ENOUGH: usize = 16;
/// How many skipped files are named.
const MOST_SKIPPED: usize = 50;

/// What research found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What was asked.
    pub topic: String,
    /// The passages, best first.
    pub extracts: Vec<Extract>,
    /// The files they are from.
    pub sources: Vec<Source>,
    /// How much was looked at.
    pub considered: Considered,
    /// Files that were not read, and why; the first fifty.
    pub skipped: Vec<Skipped>,
    /// What a reader of the run should know.
    pub notes: Vec<String>,
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Files that were read.
    pub files: usize,
    /// Passages they were cut into.
    pub passages: usize,
}

/// Does the work.
pub fn run(task: &Value, context: &Context) -> Result<Findings, RoleError> {
    let task = Task::new(task)?;
    let topic = task.text("topic")?.ok_or_else(|| {
        RoleError::lasting("input.topic is missing or empty: it must say in a few words what to look for")
    })?;
    let sources = task.sources()?.ok_or_else(|| {
        RoleError::lasting(
            "input.sources is missing: it must be the path of a directory of .md, .markdown or .txt files",
        )
    })?;
    let most = task.number("max_extracts", 1, MOST_EXTRACTS)?.unwrap_or(USUAL_EXTRACTS);

    let corpus = corpus::read(&sources, context.root.as_deref(), context.limits)
        .map_err(|error| RoleError::lasting(format!("input.sources: {error}")))?;
    let searched = sources.join(", ");
    if corpus.files.is_empty() {
        let skipped = match corpus.skipped.len() {
            0 => String::new(),
            1 => format!("; one was skipped ({}: {})", corpus.skipped[0].path, corpus.skipped[0].why),
            n => {
                format!("; {n} were skipped, the first of them {} ({})", corpus.skipped[0].path, corpus.skipped[0].why)
            }
        };
        return Err(RoleError::lasting(format!(
            "no text was found in {searched}: there must be .md, .markdown or .txt files of at most {} bytes in it{skipped}",
            context.limits.file_bytes
        )));
    }
    let chosen = choose(&corpus, topic, most);
    if chosen.is_empty() {
        return Err(RoleError::lasting(nothing_found(&corpus, topic, &searched)));
    }
    Ok(findings(topic, corpus, &chosen))
}

fn nothing_found(corpus: &Corpus, topic: &str, searched: &str) -> String {
    let mut paths: Vec<_> = corpus.files.iter().take(10).map(|file| file.path.as_str()).collect();
    if corpus.files.len() > paths.len() {
        paths.push("…");
    }
    format!(
        "no passage says anything of the topic {topic:?}: {} passages of {} files in {searched} were searched ({}); \
         use words that occur in them",
        corpus.passages.len(),
        corpus.files.len(),
        paths.join(", ")
    )
}

/// Indices of the chosen passages with their scores, best first.
fn choose(corpus: &Corpus, topic: &str, most: usize) -> Vec<(usize, f64)> {
    let mut lexicon = Lexicon::default();
    let query = lexicon.term_set(topic);
    let bodies: Vec<Vec<Term>> = corpus.passages.iter().map(|passage| lexicon.terms(&passage.text)).collect();
    let texts: Vec<Vec<Term>> = corpus
        .passages
        .iter()
        .zip(&bodies)
        .map(|(passage, body)| {
            // The nearest heading counts double, those above it and the title once.
            let mut terms = body.clone();
            for heading in passage.headings.iter().chain(passage.headings.last()) {
                terms.extend(lexicon.terms(heading));
            }
            terms.extend(lexicon.terms(&corpus.files[passage.file].title));
            terms
        })
        .collect();
    let index = Index::new(&texts);
    let mut scores = index.scores(&query);
    let weight =
        |terms: &[Term]| query.iter().filter(|term| terms.contains(term)).map(|term| index.idf(*term)).sum::<f64>();
    let whole = weight(&query).max(f64::MIN_POSITIVE);
    for ((score, terms), passage) in scores.iter_mut().zip(&texts).zip(&corpus.passages) {
        if *score > 0.0 {
            // One rare word of the topic, however often, is no answer to all of it; a list of names is none either.
            let prose = passage.text.lines().flat_map(text::sentences).filter(|one| text::is_complete(one)).count();
            *score *= (0.5 + 0.5 * weight(terms) / whole) * (0.4 + 0.3 * text::ratio(prose.min(2), 1));
        }
    }

    let best = scores.iter().copied().fold(0.0, f64::max);
    let mut candidates: Vec<usize> = (0..scores.len()).filter(|at| scores[*at] > 0.0).collect();
    candidates.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let strong = candidates.partition_point(|at| scores[*at] > best * FLOOR);
    candidates.truncate(strong.max(ENOUGH).min(most * 5));
    let sets: Vec<Vec<Term>> = candidates
        .iter()
        .map(|at| {
            let mut set = bodies[*at].clone();
            set.sort_unstable();
            set.dedup();
            set
        })
        .collect();
    let relevance: Vec<f64> = candidates.iter().map(|at| scores[*at] / best).collect();
    let ordered = textrank::marginal_order(&relevance, &sets, &[], 0.4);
    let mut chosen = spread(corpus, &candidates, &sets, ordered, most);
    chosen.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    chosen.into_iter().map(|at| (at, scores[at])).collect()
}

/// Takes candidates in order, but no near-duplicate, and from one file no more than its share while others have more.
fn spread(corpus: &Corpus, candidates: &[usize], sets: &[Vec<Term>], order: Vec<usize>, most: usize) -> Vec<usize> {
    let share = (most * 2).div_ceil(5).max(3);
    let mut taken: Vec<usize> = Vec::new();
    let mut per_file: BTreeMap<usize, usize> = BTreeMap::new();
    let mut bytes = 0;
    let mut put_off = Vec::new();
    let mut take = |at: usize, cap: usize, put_off: &mut Vec<usize>| {
        let passage = &corpus.passages[candidates[at]];
        let repeats = taken.iter().any(|other| {
            text::jaccard(&sets[at], &sets[*other]) >= 0.7 || text::containment(&sets[at], &sets[*other]) >= 0.9
        });
        if taken.len() >= most || repeats || bytes + passage.text.len() > MOST_BYTES {
            return;
        }
        let from_file = per_file.entry(passage.file).or_default();
        if *from_file >= cap {
            put_off.push(at);
            return;
        }
        *from_file += 1;
        bytes += passage.text.len();
        taken.push(at);
    };
    for at in order {
        take(at, share, &mut put_off);
    }
    for at in std::mem::take(&mut put_off) {
        take(at, usize::MAX, &mut put_off);
    }
    taken.into_iter().map(|at| candidates[at]).collect()
}

fn findings(topic: &str, corpus: Corpus, chosen: &[(usize, f64)]) -> Findings {
    let mut sources: Vec<Source> = Vec::new();
    let mut extracts = Vec::new();
    for (id, (at, score)) in (1..).zip(chosen) {
        let passage = &corpus.passages[*at];
        let file = &corpus.files[passage.file];
        if !sources.iter().any(|source| source.path == file.path) {
            sources.push(Source {
                id: u32::try_from(sources.len() + 1).unwrap_or(u32::MAX),
                path: file.path.clone(),
                title: file.title.clone(),
                sha256: file.sha256.clone(),
                words: file.words,
            });
        }
        extracts.push(Extract {
            id,
            source: file.path.clone(),
            title: file.title.clone(),
            heading: passage.headings.last().cloned().unwrap_or_default(),
            text: passage.text.clone(),
            score: text::round3(*score),
            start_line: passage.start_line,
            summary: None,
        });
    }
    let mut notes = Vec::new();
    let mut skipped = corpus.skipped;
    if skipped.len() > MOST_SKIPPED {
        notes.push(format!("{} files were skipped; the first {MOST_SKIPPED} are named", skipped.len()));
        skipped.truncate(MOST_SKIPPED);
    }
    let considered = Considered { files: corpus.files.len(), passages: corpus.passages.len() };
    Findings { topic: topic.to_owned(), extracts, sources, considered, skipped, notes }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "a json! literal reads best as it is")]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn find(files: &[(&str, &str)], topic: &str, params: Value) -> Result<Findings, RoleError> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, content) in files {
            fs::write(dir.path().join(name), content).expect("write");
        }
        let context = Context { root: Some(dir.path().to_owned()), ..Context::default() };
        run(&json!({ "input": { "topic": topic, "sources": "." }, "params": params }), &context)
    }

    const BEES: &str = "# Bees\n\nA bee finds its way home by the position of the sun.\n\n## Honey\n\nThe bees of one hive make honey from nectar all summer long.\n";
    const TREES: &str = "# Trees\n\nAn oak drops its leaves in autumn and grows them in spring.\n";

    #[test]
    fn the_passage_that_answers_comes_first() {
        let found = find(&[("bees.md", BEES), ("trees.md", TREES)], "how honey is made", json!({})).expect("found");
        assert_eq!(found.extracts[0].text, "The bees of one hive make honey from nectar all summer long.");
        let first = &found.extracts[0];
        assert_eq!(
            (first.id, first.source.as_str(), first.heading.as_str(), first.start_line),
            (1, "bees.md", "Honey", 7)
        );
        assert_eq!(found.considered, Considered { files: 2, passages: 3 });
        assert_eq!(found.sources.len(), 1);
        assert_eq!(found.sources[0].sha256, corpus::fingerprint(BEES));
        assert!(found.extracts.iter().all(|one| one.source != "trees.md"));
    }

    #[test]
    fn copies_are_found_once() {
        let found = find(&[("a.md", BEES), ("b.md", BEES)], "honey", json!({})).expect("found");
        assert_eq!(found.extracts.iter().filter(|one| one.heading == "Honey").count(), 1);
    }

    #[test]
    fn one_file_does_not_take_everything() {
        let long: String = (0..30)
            .map(|n| format!("## Part {n}\n\nHoney number{n} is stored in cell{n} of comb{n} by worker{n}.\n\n"))
            .collect();
        let short = "# Other\n\nSome honey is sold at the market in glass jars by the keepers of the village.\n";
        let found =
            find(&[("long.md", &long), ("short.md", short)], "honey", json!({ "max_extracts": 5 })).expect("found");
        assert_eq!(found.extracts.len(), 5);
        assert!(found.extracts.iter().any(|one| one.source == "short.md"));
    }

    #[test]
    fn the_result_is_bounded() {
        let files: Vec<(String, String)> = (0..60)
            .map(|n| {
                let words: Vec<_> = (0..400).map(|w| format!("term{n}x{w}")).collect();
                (format!("{n:02}.md"), format!("Honey is here, {}.\n", words.join(" ")))
            })
            .collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let found = find(&files, "honey", json!({ "max_extracts": 40 })).expect("found");
        assert!(found.extracts.len() <= MOST_EXTRACTS && found.extracts.len() > 5);
        assert!(found.extracts.iter().map(|one| one.text.len()).sum::<usize>() <= MOST_BYTES);
    }

    #[test]
    fn the_same_files_give_the_same_findings() {
        let once = find(&[("bees.md", BEES), ("trees.md", TREES)], "bees and trees", json!({}));
        assert_eq!(once, find(&[("bees.md", BEES), ("trees.md", TREES)], "bees and trees", json!({})));
    }

    #[test]
    fn errors_say_what_was_searched() {
        let error = find(&[("bees.md", BEES), ("trees.md", TREES)], "quantum chess", json!({})).expect_err("nothing");
        assert!(!error.retryable);
        assert_eq!(
            error.message,
            "no passage says anything of the topic \"quantum chess\": 3 passages of 2 files in . were searched \
             (bees.md, trees.md); use words that occur in them"
        );
        let error = find(&[], "bees", json!({})).expect_err("empty");
        assert!(error.message.starts_with("no text was found in .: there must be"), "{error}");
        let error = find(&[], " ", json!({})).expect_err("no topic");
        assert!(error.message.starts_with("input.topic is missing or empty"), "{error}");
        let error = find(&[("bees.md", BEES)], "bees", json!({ "max_extracts": 41 })).expect_err("too many");
        assert_eq!(error.message, "params.max_extracts is 41: it must be a whole number from 1 to 40");
        let error =
            run(&json!({ "input": { "topic": "x", "sources": "no/such" } }), &Context::default()).expect_err("missing");
        assert_eq!(error.message, "input.sources: there is no file or directory at no/such");
    }
}
