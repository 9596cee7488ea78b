//! Verification: whether a document's sentences say what the sources they cite say.
//!
//! Takes the texts among the results (or `input.document`) with their extracts. If the files that `input.sources` names
//! can be read, extracts are checked against them too. Reads `requires_citations` (of the parameters or the workflow's
//! metadata), `support` (a fraction; see below) and `on_fail` (`error` or `report`).
//!
//! # The support score
//!
//! A sentence is compared with every sentence, and every two neighbouring sentences, of what it cites. The score is the
//! mean of two fractions over its content words (stemmed, without stop words): how many of them are there at all, and
//! how many are there in the same order (longest common subsequence). Word-for-word quotations have 1, rephrasings
//! 0.6 to 0.9, other sentences about the same subject 0.1 to 0.35; [`SUPPORT`] lies between.
//!
//! Two things are checked besides, because they change few words and everything else: each number of the sentence must
//! be in what it cites, and a sentence that matches otherwise must not have a "not" more or less.
//!
//! It cannot see that a true sentence is misleading, or that two swapped names make a false one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus;
use crate::document::Sentence;
use crate::editing::is_negation;
use crate::roles::{Context, RoleError, to_value};
use crate::shape::{Composition, Material, Source, Task};
use crate::text::{self, Lexicon, Term};

/// From this score on a sentence counts as supported.
pub const SUPPORT: f64 = 0.5;
/// A sentence that matches this much says the same, or with another "not" the opposite.
const ALIKE: f64 = 0.8;
/// Shorter ones state nothing that could be checked.
const LEAST_WORDS: usize = 4;
/// How many reasons an error's message has.
const MOST_REASONS: usize = 5;

/// What verification found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `pass` or `fail`; without `requires_citations` it is always `pass`, and `reasons` say what there is to see.
    pub verdict: Verdict,
    /// Why it failed, or would have.
    pub reasons: Vec<String>,
    /// Sentences that cite something and were compared with it.
    pub checked: usize,
    /// Those of them that it supports.
    pub supported: usize,
    /// Those that it does not.
    pub unsupported: Vec<Unsupported>,
    /// Sentences that cite nothing.
    pub uncited: Vec<Uncited>,
    /// Numbers that are cited and that no source has.
    pub missing_sources: Vec<u32>,
    /// Sources that nothing cites.
    pub unused_sources: Vec<UnusedSource>,
    /// Whether citations were required.
    pub requires_citations: bool,
    /// The document's title.
    pub title: String,
    /// What it is about.
    pub topic: String,
    /// The document that was checked, as Markdown.
    pub document: String,
    /// The files its extracts are from.
    pub sources: Vec<Source>,
    /// What could not be checked, and the like.
    pub notes: Vec<String>,
    /// What a model thinks of it, if one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opinion: Option<String>,
}

/// Whether a document may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    Pass,
    /// It may not.
    Fail,
}

/// A sentence that its sources do not support.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unsupported {
    /// The sentence.
    pub sentence: String,
    /// Where it stands.
    pub section: String,
    /// The number it cites; of several, the one that comes nearest.
    pub citation: u32,
    /// The support score.
    pub score: f64,
    /// What is wrong.
    pub why: String,
}

/// A sentence without a citation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncited {
    /// The sentence.
    pub sentence: String,
    /// Where it stands.
    pub section: String,
}

/// A source that nothing cites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnusedSource {
    /// The source.
    pub source: String,
    /// Where it was named.
    pub why: String,
}

/// Does the work; a bad verdict is a result here, see [`settle`].
pub fn run(task: &Value, context: &Context) -> Result<Report, RoleError> {
    let task = Task::new(task)?;
    let material = Material::gather(task)?;
    let document = material.expect_document(task, "verification")?;
    let requires_citations = requires_citations(task)?;
    let least = support(task)?;

    let listed = document.sources.clone();
    let cited_before = document.cited();
    let text = Composition::new(document.clone(), &material.topic, &material);
    let mut files =
        Files { names: task.sources()?.unwrap_or_default(), context, read: BTreeMap::new(), notes: Vec::new() };
    let mut judge = Judge { lexicon: Lexicon::default(), evidence: BTreeMap::new(), least };
    for extract in &text.extracts {
        judge.evidence.insert(extract.id, files.evidence(extract, &material.sources));
    }

    let mut report = Report {
        verdict: Verdict::Pass,
        reasons: Vec::new(),
        checked: 0,
        supported: 0,
        unsupported: Vec::new(),
        uncited: Vec::new(),
        missing_sources: Vec::new(),
        unused_sources: Vec::new(),
        requires_citations,
        title: text.title.clone(),
        topic: text.topic.clone(),
        document: text.document.clone(),
        sources: text.sources.clone(),
        notes: Vec::new(),
        opinion: None,
    };
    for sentence in &text.sentences {
        let known: Vec<u32> =
            sentence.citations.iter().copied().filter(|number| judge.evidence.contains_key(number)).collect();
        if text::count_words(&sentence.text) < LEAST_WORDS && sentence.citations.is_empty() {
            continue;
        }
        if sentence.citations.is_empty() {
            report.uncited.push(Uncited { sentence: sentence.text.clone(), section: sentence.section.clone() });
            continue;
        }
        report.missing_sources.extend(sentence.citations.iter().filter(|number| !known.contains(number)));
        report.checked += 1;
        let one = Sentence { text: sentence.text.clone(), citations: known };
        match judge.judge(&one) {
            Ok(()) => report.supported += 1,
            Err(finding) => report.unsupported.push(Unsupported {
                sentence: sentence.text.clone(),
                section: sentence.section.clone(),
                citation: finding.citation.or(sentence.citations.first().copied()).unwrap_or_default(),
                score: text::round3(finding.score),
                why: finding.why,
            }),
        }
    }
    report.missing_sources.sort_unstable();
    report.missing_sources.dedup();
    report.unused_sources = listed
        .iter()
        .filter(|(number, _)| !cited_before.contains(number))
        .map(|(_, label)| UnusedSource {
            source: label.clone(),
            why: "it is listed, but no sentence cites it".to_owned(),
        })
        .chain(unused_files(&text))
        .collect();
    report.notes = files.notes;
    report.reasons = reasons(&report);
    if requires_citations && !report.reasons.is_empty() {
        report.verdict = Verdict::Fail;
    }
    Ok(report)
}

/// Makes an error of a bad verdict, unless the task's `on_fail` is `report`.
pub fn settle(task: &Value, report: Report) -> Result<Report, RoleError> {
    let task = Task::new(task)?;
    let as_error = match task.text("on_fail")? {
        None | Some("error") => true,
        Some("report") => false,
        Some(other) => {
            return Err(RoleError::lasting(format!("params.on_fail is {other:?}: it must be \"error\" or \"report\"")));
        }
    };
    if report.verdict == Verdict::Pass || !as_error {
        return Ok(report);
    }
    let mut named: Vec<_> = report.reasons.iter().take(MOST_REASONS).cloned().collect();
    if report.reasons.len() > named.len() {
        named.push(format!("and {} more", report.reasons.len() - named.len()));
    }
    let message = format!("verification failed: {}", named.join("; "));
    Err(RoleError { output: Some(Box::new(to_value(report))), ..RoleError::lasting(message) })
}

fn requires_citations(task: Task<'_>) -> Result<bool, RoleError> {
    if let Some(flag) = task.flag("requires_citations")? {
        return Ok(flag);
    }
    match task.field("metadata", "requires_citations") {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => {
            Err(RoleError::lasting(format!("metadata.requires_citations is {other}: it must be true or false")))
        }
    }
}

fn support(task: Task<'_>) -> Result<f64, RoleError> {
    let Some((path, value)) = task.setting("support") else { return Ok(SUPPORT) };
    value.as_f64().filter(|least| (0.1..=1.0).contains(least)).ok_or_else(|| {
        RoleError::lasting(format!("{path} is {value}: it must be a number from 0.1 to 1, such as {SUPPORT}"))
    })
}

fn unused_files(text: &Composition) -> impl Iterator<Item = UnusedSource> {
    let cited: Vec<u32> = text.sentences.iter().flat_map(|sentence| sentence.citations.iter().copied()).collect();
    let is_cited = move |path: &str| text.extracts.iter().any(|one| one.source == path && cited.contains(&one.id));
    text.sources.iter().filter(move |source| !is_cited(&source.path)).map(|source| UnusedSource {
        source: source.path.clone(),
        why: "research found it, but no sentence cites it".to_owned(),
    })
}

fn reasons(report: &Report) -> Vec<String> {
    let missing =
        report.missing_sources.iter().map(|number| format!("[{number}] is cited, but there is no such source"));
    let unsupported =
        report.unsupported.iter().filter(|one| !report.missing_sources.contains(&one.citation)).map(|one| {
            format!("{:?} is not supported by [{}]: {}", text::clip(&one.sentence, 120), one.citation, one.why)
        });
    let uncited = report.uncited.iter().map(|one| format!("{:?} cites nothing", text::clip(&one.sentence, 120)));
    let mut reasons: Vec<String> = missing.chain(unsupported).chain(uncited).collect();
    if report.checked == 0 && reasons.is_empty() {
        reasons.push("no sentence cites anything".to_owned());
    }
    reasons
}

/// The source files, read again where that is possible.
struct Files<'a> {
    names: Vec<String>,
    context: &'a Context,
    /// Their paragraphs; `None` for a file that cannot be read.
    read: BTreeMap<String, Option<Vec<String>>>,
    notes: Vec<String>,
}

impl Files<'_> {
    /// The paragraphs that a citation of the extract may lean on.
    fn evidence(&mut self, extract: &crate::shape::Extract, sources: &[Source]) -> Evidence {
        let own: Vec<String> = extract.text.lines().map(str::to_owned).collect();
        let path = extract.source.clone();
        if !self.read.contains_key(&path) {
            let paragraphs = self.read_again(&path, sources);
            self.read.insert(path.clone(), paragraphs);
        }
        let Some(Some(file)) = self.read.get(&path) else { return Evidence { near: own, far: Vec::new() } };
        let is_there = |line: &String| file.iter().any(|paragraph| paragraph.contains(line.as_str()));
        if own.iter().all(is_there) {
            return Evidence { near: own, far: file.clone() };
        }
        self.notes.push(format!(
            "extract [{}] is not in {path} as it is now; the file was believed, not the extract",
            extract.id
        ));
        Evidence { near: Vec::new(), far: file.clone() }
    }

    fn read_again(&mut self, path: &str, sources: &[Source]) -> Option<Vec<String>> {
        if self.names.is_empty() {
            return None;
        }
        let root = self.context.root.as_deref();
        let Some(content) = corpus::reread(&self.names, root, path, self.context.limits) else {
            self.notes.push(format!("{path} cannot be read here: its extracts were believed"));
            return None;
        };
        let known = sources.iter().find(|source| source.path == path).map_or("", |source| source.sha256.as_str());
        if !known.is_empty() && known != corpus::fingerprint(&content) {
            self.notes.push(format!("{path} has changed since research read it"));
        }
        Some(corpus::paragraphs(path, &content))
    }
}

/// What may support a sentence.
struct Evidence {
    /// The extract itself.
    near: Vec<String>,
    /// The file it is from; looked at if the extract does not do.
    far: Vec<String>,
}

struct Judge {
    lexicon: Lexicon,
    evidence: BTreeMap<u32, Evidence>,
    least: f64,
}

/// Why a sentence is not supported.
struct Finding {
    citation: Option<u32>,
    score: f64,
    why: String,
}

/// The best match of a sentence in some evidence.
#[derive(Default, Clone)]
struct Match {
    score: f64,
    text: String,
    terms: Vec<Term>,
}

impl Judge {
    fn judge(&mut self, sentence: &Sentence) -> Result<(), Finding> {
        if sentence.citations.is_empty() {
            return Err(Finding { citation: None, score: 0.0, why: "what it cites does not exist".to_owned() });
        }
        let terms = self.lexicon.terms(&sentence.text);
        let mut matches: Vec<(u32, Match)> = Vec::new();
        for number in &sentence.citations {
            let Some(evidence) = self.evidence.get(number) else { continue };
            let mut best = best_match(&mut self.lexicon, &terms, &evidence.near);
            if best.score < self.least {
                let far = best_match(&mut self.lexicon, &terms, &evidence.far);
                best = if far.score > best.score { far } else { best };
            }
            matches.push((*number, best));
        }
        let (citation, best) =
            matches.iter().cloned().reduce(|a, b| if b.1.score > a.1.score { b } else { a }).unwrap_or_default();
        // A sentence that draws on several sources is covered by them together.
        let mut together: Vec<Term> = matches.iter().flat_map(|(_, one)| one.terms.iter().copied()).collect();
        together.sort_unstable();
        together.dedup();
        let joint = if matches.len() > 1 { 0.9 * covered(&terms, &together) } else { 0.0 };
        let score = best.score.max(joint);
        let finding = |why: String| Err(Finding { citation: Some(citation), score, why });
        if score < self.least {
            return finding(format!("too little of it is there (support {score:.2}, needed {:.2})", self.least));
        }
        if let Some(number) = self.foreign_number(sentence) {
            return finding(format!("the number {number} is not there"));
        }
        let negations = |text: &str| text::words(text).iter().filter(|word| is_negation(word)).count();
        let is_one = text::sentences(&best.text).len() == 1;
        if is_one && best.score >= ALIKE && negations(&sentence.text) % 2 != negations(&best.text) % 2 {
            return finding(format!("it says the opposite of {:?}", text::clip(&best.text, 100)));
        }
        Ok(())
    }

    /// A number of the sentence that nothing it cites has.
    fn foreign_number(&self, sentence: &Sentence) -> Option<String> {
        let is_number = |word: &String| word.chars().any(|c| c.is_ascii_digit());
        let numbers: Vec<String> = text::words(&sentence.text).into_iter().filter(is_number).collect();
        if numbers.is_empty() {
            return None;
        }
        let evidence = sentence.citations.iter().filter_map(|number| self.evidence.get(number));
        let there: Vec<String> = evidence
            .flat_map(|evidence| evidence.near.iter().chain(&evidence.far))
            .flat_map(|paragraph| text::words(paragraph))
            .filter(is_number)
            .collect();
        numbers.into_iter().find(|number| !there.contains(number))
    }
}

fn best_match(lexicon: &mut Lexicon, terms: &[Term], paragraphs: &[String]) -> Match {
    let mut best = Match::default();
    for paragraph in paragraphs {
        let sentences = text::sentences(paragraph);
        let each: Vec<Vec<Term>> = sentences.iter().map(|one| lexicon.terms(one)).collect();
        for at in 0..sentences.len() {
            for (text, window) in [
                (sentences[at].to_owned(), each[at].clone()),
                (
                    format!("{} {}", sentences[at], sentences.get(at + 1).unwrap_or(&"")),
                    each[at..(at + 2).min(each.len())].concat(),
                ),
            ] {
                let covered = covered(terms, &window);
                // The order can at best be as good as the cover: most windows need no closer look.
                if covered <= best.score {
                    continue;
                }
                let score = f64::midpoint(covered, text::ratio(common_subsequence(terms, &window), terms.len()));
                if score > best.score + 1e-12 {
                    best = Match { score, text: text.trim().to_owned(), terms: window };
                }
            }
        }
    }
    best
}

/// How much of the terms is in the window.
fn covered(terms: &[Term], window: &[Term]) -> f64 {
    text::ratio(terms.iter().filter(|term| window.contains(term)).count(), terms.len())
}

/// The length of the longest common subsequence.
fn common_subsequence(a: &[Term], b: &[Term]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    const LEASE: &str =
        "A lease gives one agent the right to do one task. It ends after 30 seconds without a heartbeat.";
    const FENCE: &str =
        "The broker refuses the write of a deposed leader. Every commit carries the number of the one before it.";

    fn task(document: &str) -> Value {
        json!({
            "results": { "editing": {
                "document": document,
                "extracts": [
                    { "id": 1, "source": "a.md", "text": LEASE },
                    { "id": 2, "source": "b.md", "text": FENCE },
                ],
                "sources": [{ "path": "a.md" }, { "path": "b.md" }],
            }},
            "metadata": { "requires_citations": true },
        })
    }

    fn check(document: &str) -> Report {
        run(&task(document), &Context::default()).expect("a report")
    }

    #[test]
    fn quotations_and_rephrasings_are_supported() {
        let report = check(
            "A lease gives one agent the right to do one task. [1] One agent is given the right to do a task by its lease. [1]\n\n\
             Without a heartbeat, the lease of one agent ends after 30 seconds, and the broker refuses the write. [1][2]\n",
        );
        assert_eq!((report.verdict, report.checked, report.supported), (Verdict::Pass, 3, 3), "{report:?}");
        assert!(report.reasons.is_empty() && report.unused_sources.is_empty());
    }

    #[test]
    fn everything_that_is_wrong_is_said() {
        let report = check(
            "# T\n\nThe broker refuses the write of a deposed leader. [2]\n\n## Wrong\n\n\
             Agents are paid in gold for all the work they do. [1] It ends after 45 seconds without a heartbeat. [1] \
             The broker never refuses the write of a deposed leader. [2] This sentence stands alone here. \
             A lease gives one agent the right to do one task. [8]\n\n## Sources\n\n- [1] `a.md`\n- [2] `b.md`\n- [3] `c.md`\n",
        );
        let text: String = report.reasons.iter().map(|reason| format!("{reason}\n")).collect();
        expect![[r#"
            [8] is cited, but there is no such source
            "Agents are paid in gold for all the work they do." is not supported by [2]: too little of it is there (support 0.25, needed 0.50)
            "It ends after 45 seconds without a heartbeat." is not supported by [2]: the number 45 is not there
            "The broker never refuses the write of a deposed leader." is not supported by [1]: it says the opposite of "The broker refuses the write of a deposed leader."
            "This sentence stands alone here." cites nothing
        "#]]
        .assert_eq(&text);
        assert_eq!((report.verdict, report.checked, report.supported), (Verdict::Fail, 5, 1));
        assert_eq!(report.missing_sources, [8]);
        assert_eq!(report.unused_sources.len(), 1);
        assert!(report.unused_sources[0].source.contains("c.md"));
        assert!(report.document.contains("the right to do one task. [8]"));
    }

    #[test]
    fn a_bad_verdict_is_an_error_that_holds_the_report() {
        let bad = task("Agents are paid in gold for all the work they do. [1]\n");
        let error = crate::roles::verification(&bad, &Context::default()).expect_err("it fails");
        assert!(!error.retryable);
        assert!(error.message.starts_with("verification failed: \"Agents are paid in gold"), "{error}");
        assert_eq!(error.output.expect("a report")["verdict"], "fail");

        let mut report = bad;
        report["params"] = json!({ "on_fail": "report" });
        assert_eq!(crate::roles::verification(&report, &Context::default()).expect("a report")["verdict"], "fail");
        report["params"] = json!({ "requires_citations": false });
        let lenient = crate::roles::verification(&report, &Context::default()).expect("a report");
        assert_eq!((&lenient["verdict"], lenient["unsupported"].as_array().map(Vec::len)), (&json!("pass"), Some(1)));
        report["params"] = json!({ "on_fail": "cry" });
        let error = crate::roles::verification(&report, &Context::default()).expect_err("no such way");
        assert_eq!(error.message, "params.on_fail is \"cry\": it must be \"error\" or \"report\"");
    }

    #[test]
    fn a_text_without_any_citation_fails_where_they_are_required() {
        let report = check("Well.\n");
        assert_eq!((report.verdict, report.reasons), (Verdict::Fail, vec!["no sentence cites anything".to_owned()]));
    }

    #[test]
    fn files_are_believed_rather_than_extracts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(
            dir.path().join("a.md"),
            "# A\n\nThe lease ends when its agent is lost.\n\nElsewhere, honey is made by bees.\n",
        )
        .expect("write");
        let context = Context { root: Some(dir.path().to_owned()), ..Context::default() };
        let report = |document: &str, extract: &str| {
            let task = json!({
                "input": { "sources": "." },
                "results": { "writing": { "document": document, "extracts": [{ "id": 1, "source": "a.md", "text": extract }],
                    "sources": [{ "path": "a.md", "sha256": "0" }] } },
                "metadata": { "requires_citations": true },
            });
            run(&task, &context).expect("a report")
        };
        let true_extract = "The lease ends when its agent is lost.";
        assert_eq!(report("The lease ends when its agent is lost. [1]", true_extract).verdict, Verdict::Pass);
        assert_eq!(
            report("Honey is made by bees elsewhere. [1]", true_extract).verdict,
            Verdict::Pass,
            "the file says so"
        );
        let forged = report(
            "The lease is sold at an auction to the highest bidder. [1]",
            "The lease is sold at an auction to the highest bidder.",
        );
        assert_eq!(forged.verdict, Verdict::Fail);
        assert_eq!(
            forged.notes,
            [
                "a.md has changed since research read it",
                "extract [1] is not in a.md as it is now; the file was believed, not the extract"
            ]
        );
    }

    #[test]
    fn subsequences_are_counted() {
        assert_eq!(common_subsequence(&[1, 2, 3, 4], &[2, 4, 3, 4]), 3);
        assert_eq!(common_subsequence(&[], &[1]), 0);
    }
}
