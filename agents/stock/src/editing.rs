//! Editing: the same document without duplicates, in order, at the wanted length, with clean typography.
//!
//! Takes the texts among the results (or `input.document`), merged into one. Reads `length` (words, or short, medium,
//! long): the text is cut down to it by dropping the least central sentences, never a section's last. Sentences are
//! dropped, never rewritten. Editing what was edited changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::{Block, Document, Sentence};
use crate::roles::RoleError;
use crate::shape::{Composition, Material, Task};
use crate::text::{self, Lexicon, Term};
use crate::textrank;

/// Sentences that share this much of their words are the same.
const SAME: f64 = 0.85;
/// How many changes are described one by one; `counts` counts all.
const MOST_CHANGES: usize = 100;

/// An edited text, and what was done to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Edited {
    /// The text; of the extracts, those it cites.
    #[serde(flatten)]
    pub text: Composition,
    /// What was changed; the first hundred changes.
    pub changes: Vec<Change>,
    /// How often each kind of change was made.
    pub counts: BTreeMap<String, usize>,
    /// How it reads.
    pub readability: BeforeAfter,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `duplicate`, `shortened`, `typography`, `heading`, `order` or `citation`.
    pub kind: String,
    /// What it was.
    pub detail: String,
}

/// Readability before and after editing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// Before.
    pub before: Readability,
    /// After.
    pub after: Readability,
}

/// How hard a text is to read.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Readability {
    /// Words.
    pub words: usize,
    /// Sentences.
    pub sentences: usize,
    /// Words a sentence.
    pub average_sentence_length: f64,
    /// Flesch: 100 is very easy, 30 and less is for academics.
    pub flesch_reading_ease: f64,
    /// Flesch and Kincaid: years of school that it takes.
    pub flesch_kincaid_grade: f64,
}

/// Does the work.
pub fn run(task: &Value) -> Result<Edited, RoleError> {
    let task = Task::new(task)?;
    let material = Material::gather(task)?;
    let document = material.expect_document(task, "editing")?;
    Ok(finish(document.clone(), &material, task.length()?))
}

/// Edits a document that cites the extracts of `material`.
#[must_use]
pub fn finish(document: Document, material: &Material, length: Option<usize>) -> Edited {
    let before = readability(&document);
    let mut log = Log::default();
    let mut edited = document;
    // Removing something can make something else removable, and cleaned marks can move the end of a sentence.
    for _ in 0..6 {
        let last = edited.render();
        pass(&mut edited, &material.topic, length, &mut log);
        edited = Document { sources: edited.sources.clone(), ..Document::parse(&edited.render()) };
        if edited.render() == last {
            break;
        }
    }
    let after = readability(&edited);
    let cited = edited.cited();
    let (mut text, numbers) = Composition::numbered(edited, &material.topic, material);
    let original = |number: &u32| material.original.get(number).copied().unwrap_or(*number);
    let renumbered = cited.iter().filter(|number| numbers.get(number).copied() != Some(original(number))).count();
    if renumbered > 0 {
        log.add(
            "citation",
            format!("{renumbered} sources were numbered anew, in the order of their first citation"),
            renumbered,
        );
    }
    let kept: Vec<u32> = cited.iter().filter_map(|number| numbers.get(number).copied()).collect();
    text.extracts.retain(|extract| kept.contains(&extract.id));
    if length.is_some_and(|length| after.words > length) {
        text.notes.push(format!("it has {} words still: no section can lose its last sentence", after.words));
    }
    Edited { text, changes: log.changes, counts: log.counts, readability: BeforeAfter { before, after } }
}

struct Log {
    changes: Vec<Change>,
    counts: BTreeMap<String, usize>,
}

impl Default for Log {
    fn default() -> Self {
        let kinds = ["citation", "duplicate", "heading", "order", "shortened", "typography"];
        Self { changes: Vec::new(), counts: kinds.iter().map(|kind| ((*kind).to_owned(), 0)).collect() }
    }
}

impl Log {
    fn add(&mut self, kind: &str, detail: String, count: usize) {
        *self.counts.entry(kind.to_owned()).or_default() += count;
        if self.changes.len() < MOST_CHANGES {
            self.changes.push(Change { kind: kind.to_owned(), detail });
        }
    }
}

fn pass(document: &mut Document, topic: &str, length: Option<usize>, log: &mut Log) {
    clean(document, log);
    drop_duplicates(document, log);
    if let Some(length) = length {
        shorten(document, topic, length, log);
    }
    for heading in document.prune() {
        log.add("heading", format!("nothing was under the heading {heading:?}"), 1);
    }
    put_in_order(document, log);
}

fn clean(document: &mut Document, log: &mut Log) {
    let mut tidy = |text: &mut String| {
        let clean = typography(text);
        if clean != *text {
            log.add("typography", text::clip(&clean, 100), 1);
            *text = clean;
        }
    };
    tidy(&mut document.title);
    for section in &mut document.sections {
        tidy(&mut section.heading);
    }
    for sentence in document.runs_mut().flatten() {
        tidy(&mut sentence.text);
    }
}

fn drop_duplicates(document: &mut Document, log: &mut Log) {
    let mut lexicon = Lexicon::default();
    let mut seen: Vec<(Vec<String>, Vec<Term>)> = Vec::new();
    // What exact copies cited, by the place of the sentence that stays.
    let mut more: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
    let mut places: Vec<usize> = Vec::new();
    for run in document.runs_mut() {
        run.retain(|sentence| {
            let words = text::words(&sentence.text);
            let set = lexicon.term_set(&sentence.text);
            let exact = seen.iter().position(|(other, _)| *other == words && words.len() > 3);
            let near = || seen.iter().any(|(other, terms)| is_near(&words, &set, other, terms));
            if let Some(first) = exact {
                more.entry(first).or_default().extend(&sentence.citations);
            }
            let is_duplicate = exact.is_some() || near();
            if is_duplicate {
                log.add("duplicate", text::clip(&sentence.text, 100), 1);
            } else {
                places.push(seen.len());
                seen.push((words, set));
            }
            !is_duplicate
        });
    }
    for (sentence, place) in document.runs_mut().flatten().zip(places) {
        if let Some(citations) = more.get(&place) {
            sentence.citations.extend(citations);
            sentence.citations.sort_unstable();
            sentence.citations.dedup();
        }
    }
}

/// Nearly the same words; but another number or a "not" makes another sentence.
fn is_near(words: &[String], set: &[Term], other: &[String], terms: &[Term]) -> bool {
    let telling = |words: &[String]| {
        let mut telling: Vec<String> = words
            .iter()
            .filter(|word| word.contains(|c: char| c.is_ascii_digit()) || is_negation(word))
            .cloned()
            .collect();
        telling.sort();
        telling
    };
    set.len().min(terms.len()) >= 4 && text::jaccard(set, terms) >= SAME && telling(words) == telling(other)
}

/// Whether a word (in lower case) turns a sentence into its opposite.
#[must_use]
pub fn is_negation(word: &str) -> bool {
    matches!(
        word,
        "not" | "no" | "never" | "none" | "nothing" | "neither" | "nor" | "cannot" | "without" | "nobody" | "nowhere"
    ) || word.ends_with("n't")
}

/// Drops the least central sentences, each with those that lean on it, until there are at most `length` words.
fn shorten(document: &mut Document, topic: &str, length: usize, log: &mut Log) {
    let mut words: usize = document.sections.iter().map(crate::document::Section::words).sum();
    if words <= length {
        return;
    }
    let mut lexicon = Lexicon::default();
    let topic = lexicon.term_set(topic);
    let mut units = units(document, &mut lexicon, &topic);
    let mut left: BTreeMap<usize, usize> = BTreeMap::new();
    for unit in &units {
        *left.entry(unit.section).or_default() += 1;
    }
    units.sort_by(|a, b| a.worth.total_cmp(&b.worth).then(b.first.cmp(&a.first)));
    let mut dropped: Vec<(usize, usize)> = Vec::new();
    for unit in units {
        let others = left.entry(unit.section).or_default();
        if words > length && *others > 1 {
            *others -= 1;
            words -= unit.words;
            dropped.extend((0..unit.sentences).map(|offset| (unit.run, unit.first.1 + offset)));
        }
    }
    for (at, run) in document.runs_mut().enumerate() {
        let mut place = 0;
        run.retain(|sentence| {
            let is_dropped = dropped.contains(&(at, place));
            place += 1;
            if is_dropped {
                log.add("shortened", text::clip(&sentence.text, 100), 1);
            }
            !is_dropped
        });
    }
}

/// A sentence with those that lean on it.
struct Unit {
    section: usize,
    /// Among all runs of the document.
    run: usize,
    /// Its run, and its place in that run.
    first: (usize, usize),
    sentences: usize,
    words: usize,
    worth: f64,
}

fn units(document: &mut Document, lexicon: &mut Lexicon, topic: &[Term]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut sets: Vec<Vec<Term>> = Vec::new();
    let mut run_at = 0;
    for (section_at, section) in document.sections.iter().enumerate() {
        // The opening is worth more: it is what most people read.
        let opening =
            if section.heading.is_empty() || section.heading.eq_ignore_ascii_case("abstract") { 0.5 } else { 0.0 };
        for run in section.blocks.iter().flat_map(runs) {
            for (place, sentence) in run.iter().enumerate() {
                let words = text::count_words(&sentence.text);
                if let Some(unit) =
                    units.last_mut().filter(|unit| place > 0 && unit.run == run_at && text::leans_back(&sentence.text))
                {
                    unit.sentences += 1;
                    unit.words += words;
                    continue;
                }
                let set = lexicon.term_set(&sentence.text);
                let about = text::ratio(text::shared(&set, topic), topic.len().max(1));
                let worth = opening + 0.5 * about;
                units.push(Unit {
                    section: section_at,
                    run: run_at,
                    first: (run_at, place),
                    sentences: 1,
                    words,
                    worth,
                });
                sets.push(set);
            }
            run_at += 1;
        }
    }
    for (unit, central) in units.iter_mut().zip(textrank::rank(&sets)) {
        unit.worth += central;
    }
    units
}

fn runs(block: &Block) -> &[Vec<Sentence>] {
    match block {
        Block::Prose(sentences) => std::slice::from_ref(sentences),
        Block::List(_, items) => items,
        Block::Raw(_) | Block::Code(_) => &[],
    }
}

/// Sections that have a place by custom are put there, among themselves; all others stay where they are.
fn put_in_order(document: &mut Document, log: &mut Log) {
    const CUSTOM: &[&[&str]] = &[
        &["abstract"],
        &["introduction"],
        &["background", "related work", "literature review"],
        &["methodology", "methods", "method"],
        &["results", "findings"],
        &["discussion"],
        &["limitations"],
        &["conclusion", "conclusions"],
    ];
    let rank = |heading: &str| CUSTOM.iter().position(|names| names.contains(&heading.to_lowercase().as_str()));
    // A section moves with all that is under it.
    let mut groups = Vec::new();
    for section in std::mem::take(&mut document.sections) {
        match groups.last_mut() {
            Some((_, group)) if section.level > 2 => Vec::push(group, section),
            _ => groups.push((rank(&section.heading), vec![section])),
        }
    }
    let places: Vec<usize> = (0..groups.len()).filter(|at| groups[*at].0.is_some()).collect();
    let mut order = places.clone();
    order.sort_by_key(|at| groups[*at].0);
    let mut groups: Vec<_> = groups.into_iter().map(Some).collect();
    let moved: BTreeMap<usize, usize> = places.into_iter().zip(order).collect();
    for at in 0..groups.len() {
        let from = moved.get(&at).copied().unwrap_or(at);
        let Some((_, group)) = groups[from].take() else { continue };
        if from != at && from > at {
            log.add("order", format!("{:?} moved up", group[0].heading), 1);
        }
        document.sections.extend(group);
    }
}

/// Curly quotes, real dashes and ellipses, no space before a stop; code, links and HTML stay as they are.
#[must_use]
pub fn typography(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    while !rest.is_empty() {
        let kept = protected(rest, &out);
        if kept > 0 {
            out.push_str(&rest[..kept]);
            rest = &rest[kept..];
            continue;
        }
        rest = &rest[one_mark(rest, &mut out)..];
    }
    out
}

/// How many bytes at the front are to be left alone.
fn protected(rest: &str, before: &str) -> usize {
    let upto = |start: usize, end: &str| rest[start..].find(end).map_or(0, |at| start + at + end.len());
    let next = |at: usize| rest[at..].chars().next();
    match next(0) {
        Some('\\') => 1 + next(1).map_or(0, char::len_utf8),
        Some('`') => upto(1, "`").max(1),
        Some('(') if before.ends_with(']') => upto(1, ")"),
        Some('<') if next(1).is_some_and(|c| c.is_ascii_alphabetic() || c == '/') => upto(1, ">"),
        Some('h') if rest.starts_with("http://") || rest.starts_with("https://") => {
            rest.find(char::is_whitespace).unwrap_or(rest.len())
        }
        _ => 0,
    }
}

/// Writes the first mark or character of `rest`, cleaned; how many bytes that took.
fn one_mark(rest: &str, out: &mut String) -> usize {
    let before = out.trim_end_matches(['*', '_']).chars().next_back();
    let opens = before.is_none_or(|c| c.is_whitespace() || "([{—–-/“‘".contains(c));
    let run = |mark: char| rest.chars().take_while(|c| *c == mark).count();
    let after = |bytes: usize| rest[bytes..].chars().next();
    let first = rest.chars().next().expect("it is not empty");
    match first {
        '"' => out.push(if opens { '“' } else { '”' }),
        '\'' if opens && after(1).is_some_and(char::is_alphabetic) => out.push('‘'),
        '\'' => out.push('’'),
        '.' if run('.') >= 3 => {
            out.push_str(if run('.') > 3 { "…." } else { "…" });
            return run('.');
        }
        '-' => {
            let dashes = run('-');
            let (left, right) = (out.chars().next_back(), after(dashes));
            let spaced = left == Some(' ') && right == Some(' ');
            let digits = out.trim_end().ends_with(|c: char| c.is_ascii_digit())
                && rest[dashes..].trim_start().starts_with(|c: char| c.is_ascii_digit());
            let words = left.is_some_and(char::is_alphanumeric) && right.is_some_and(char::is_alphanumeric);
            match dashes {
                1 if spaced && !digits => out.push('–'),
                2 if spaced || (words && digits) => out.push('–'),
                2 | 3 if words || (dashes == 3 && spaced) => out.push('—'),
                _ => out.push_str(&rest[..dashes]),
            }
            return dashes;
        }
        ',' | ';' | ':' | '!' | '?' | '.' if after(1).is_none_or(char::is_whitespace) => {
            out.truncate(out.trim_end().len());
            out.push(first);
        }
        ' ' if out.ends_with([' ', '(']) => {}
        ')' if !out.trim_end().is_empty() => {
            out.truncate(out.trim_end().len());
            out.push(')');
        }
        _ => out.push(first),
    }
    first.len_utf8()
}

/// How a document reads.
#[must_use]
pub fn readability(document: &Document) -> Readability {
    let sentences = document.sentences();
    let words: Vec<String> = sentences.iter().flat_map(|(_, sentence)| text::words(&sentence.text)).collect();
    if words.is_empty() {
        return Readability::default();
    }
    let syllables: usize = words.iter().map(|word| syllables(word)).sum();
    let length = text::ratio(words.len(), sentences.len());
    let weight = text::ratio(syllables, words.len());
    let round1 = |value: f64| (value * 10.0).round() / 10.0;
    Readability {
        words: words.len(),
        sentences: sentences.len(),
        average_sentence_length: round1(length),
        flesch_reading_ease: round1(206.835 - 1.015 * length - 84.6 * weight),
        flesch_kincaid_grade: round1(0.39 * length + 11.8 * weight - 15.59),
    }
}

/// Vowel groups, less a silent e; right for about nine words of ten.
fn syllables(word: &str) -> usize {
    let is_vowel = |c: char| "aeiouyäöüáéíóúàèìòù".contains(c);
    let mut count = 0;
    let mut after_vowel = false;
    for c in word.chars() {
        let vowel = is_vowel(c);
        count += usize::from(vowel && !after_vowel);
        after_vowel = vowel;
    }
    let silent_e = word.ends_with('e') && !word.ends_with("le") && !word.ends_with("ee");
    let silent_ed = word.ends_with("ed") && !word.ends_with("ted") && !word.ends_with("ded");
    if count > 1 && (silent_e || silent_ed) {
        count -= 1;
    }
    count.max(1)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn edit(markdown: &str, input: Value) -> Edited {
        let mut input = input;
        input["document"] = markdown.into();
        run(&json!({ "input": input })).expect("an edited text")
    }

    #[test]
    fn an_article_is_cleaned() {
        let edited = edit(
            "# The \"log\"\n\n## Results\n\nA lease ends when its agent is lost... [7] It's fenced -- always. [7]\n\n## Empty\n\n\
             ## Methodology\n\nAgents take a lease for every task they do. [4] A lease ends when its agent is lost... [4]\n\n\
             Agents take a lease for each task that they do. Agents do not take a lease for every task they do. [4]\n\n\
             ## Sources\n\n- [4] a.md\n- [5] unused.md\n- [7] b.md\n",
            json!({}),
        );
        expect![[r#"
            # The “log”

            ## Methodology

            Agents take a lease for every task they do. [1]

            Agents do not take a lease for every task they do. [1]

            ## Results

            A lease ends when its agent is lost… [1][2] It’s fenced – always. [2]

            ## Sources

            - [1] a.md
            - [2] b.md
        "#]]
        .assert_eq(&edited.text.document);
        assert_eq!(edited.counts["duplicate"], 2);
        assert_eq!(edited.counts["heading"], 1);
        assert_eq!(edited.counts["order"], 1);
        assert!(edited.counts["typography"] >= 3);
    }

    #[test]
    fn typography_leaves_code_and_links_alone() {
        for (text, clean) in [
            ("He said \"no\" ('never').", "He said “no” (‘never’)."),
            ("Run `a -- \"b\"...` now -- or never.", "Run `a -- \"b\"...` now – or never."),
            ("See [it's](http://x.y/a--b) and <a href=\"x\">.", "See [it’s](http://x.y/a--b) and <a href=\"x\">."),
            ("A word--word, pages 3--5, --flag, a - b, 5 - 3.", "A word—word, pages 3–5, --flag, a – b, 5 - 3."),
            ("Space , before ; marks . In ( brackets ) too .md", "Space, before; marks. In (brackets) too .md"),
            ("*\"Quoted\"* and \\\"escaped\\\"....", "*“Quoted”* and \\\"escaped\\\"…."),
        ] {
            assert_eq!(typography(text), clean);
            assert_eq!(typography(clean), clean);
        }
    }

    #[test]
    fn a_text_is_cut_to_length_by_what_matters_least() {
        let markdown = "The lease of an agent is the right to do a task.\n\n## More\n\n\
            A lease of an agent ends with its task. It is not given back. Bananas are yellow in the summer time. \
            The task of an agent needs the lease for every write.\n\n## Last\n\nCoffee.\n";
        let edited = edit(markdown, json!({ "length": 50, "topic": "leases" }));
        assert_eq!(edited.counts["shortened"], 0);
        let edited =
            finish(Document::parse(markdown), &Material { topic: "lease".into(), ..Material::default() }, Some(38));
        assert!(!edited.text.document.contains("Bananas"), "{}", edited.text.document);
        let edited =
            finish(Document::parse(markdown), &Material { topic: "lease".into(), ..Material::default() }, Some(5));
        assert_eq!(edited.text.sections, ["More", "Last"], "no section loses its last sentence");
        assert!(
            !edited.text.document.contains("It is not given back")
                || edited.text.document.contains("ends with its task")
        );
        assert_eq!(edited.text.notes.len(), 1);
    }

    #[test]
    fn readability_is_as_published() {
        let figures = readability(&Document::parse("The cat sat on the mat. The dog ran to the cat.\n"));
        assert_eq!((figures.words, figures.sentences), (12, 2));
        // 6 words a sentence, 1 syllable a word: 206.835 - 6.09 - 84.6 and 2.34 + 11.8 - 15.59.
        assert!((figures.flesch_reading_ease - 116.1).abs() < 0.05, "{figures:?}");
        assert!((figures.flesch_kincaid_grade + 1.45).abs() < 0.06, "{figures:?}");
        for (word, count) in
            [("lease", 1), ("agent", 2), ("independent", 4), ("table", 2), ("fenced", 1), ("the", 1), ("10", 1)]
        {
            assert_eq!(syllables(word), count, "{word}");
        }
    }

    #[test]
    fn without_a_text_it_says_what_was_searched() {
        let error = run(&json!({ "results": { "research": { "extracts": [] } } })).expect_err("no text");
        assert_eq!(
            error.message,
            "there is nothing for editing: the results are \"research\", and none of them has a document with text in it; \
             editing needs the output of a writing stage, or input.document"
        );
        assert!(!error.retryable);
        let error = run(&json!({ "input": { "document": "# Only a title\n" } })).expect_err("empty");
        assert!(error.message.starts_with("there is nothing for editing: there are no results"), "{error}");
    }

    fn sentence() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec![
            "lease",
            "agent",
            "task",
            "fence",
            "it's",
            "\"log\"",
            "--",
            "not",
            "10",
            "`code -- x`",
            "*bold*",
            "(or",
            "so)",
            "e.g.",
            "…",
        ]);
        let start = prop::sample::select(vec!["A", "It", "The", "However,", "-", "1.", "#"]);
        let end = prop::sample::select(vec![".", "...", "!", ". [1]", " [2].", ". [3][1]", "?", ". [9]"]);
        (start, prop::collection::vec(word, 1..7), end)
            .prop_map(|(start, words, end)| format!("{start} {}{end}", words.join(" ")))
    }

    proptest! {
        #[test]
        fn editing_twice_is_editing_once(
            sections in prop::collection::vec((prop::sample::select(vec!["A", "Results", "Methods", "\"B\"", "Abstract"]),
                prop::collection::vec(prop::collection::vec(sentence(), 0..5), 0..3)), 1..5),
            length in prop::option::of(50_usize..80),
        ) {
            let mut markdown = "# Title\n\nAn opening.\n\n".to_owned();
            for (heading, paragraphs) in sections {
                markdown.push_str(&format!("## {heading}\n\n"));
                for paragraph in paragraphs {
                    markdown.push_str(&format!("{}\n\n", paragraph.join(" ")));
                }
            }
            markdown.push_str("## Sources\n\n- [1] a.md\n- [2] b.md\n- [3] c.md\n");
            let once = edit(&markdown, json!({ "length": length }));
            let twice = edit(&once.text.document, json!({ "length": length }));
            prop_assert_eq!(&once.text.document, &twice.text.document);
            prop_assert_eq!(twice.counts.values().sum::<usize>(), 0, "{:?}", twice.changes);
            prop_assert_eq!(once.readability.after, twice.readability.before);
        }
    }
}
