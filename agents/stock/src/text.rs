//! Words, stems and sentences of English prose.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_segmentation::UnicodeSegmentation;

/// A stemmed word, by number; see [`Lexicon`].
pub type Term = u32;

/// Numbers for stemmed words, so that comparing texts is comparing integers.
///
/// Stemming is the slowest step of the whole pipeline, so each distinct word is stemmed once a lexicon.
pub struct Lexicon {
    stemmer: Stemmer,
    /// From a lower-case word to its stem's number; `None` for a word that carries no content.
    words: HashMap<String, Option<Term>>,
    stems: HashMap<String, Term>,
}

impl Default for Lexicon {
    fn default() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English), words: HashMap::new(), stems: HashMap::new() }
    }
}

impl std::fmt::Debug for Lexicon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lexicon").field("words", &self.words.len()).field("stems", &self.stems.len()).finish()
    }
}

impl Lexicon {
    /// The content words of a text, stemmed, in order, with repetitions.
    pub fn terms(&mut self, text: &str) -> Vec<Term> {
        let mut terms = Vec::new();
        for_each_word(text, |word| terms.extend(self.term(word)));
        terms
    }

    /// The distinct content words of a text, in ascending order: what the set functions below take.
    pub fn term_set(&mut self, text: &str) -> Vec<Term> {
        let mut terms = self.terms(text);
        terms.sort_unstable();
        terms.dedup();
        terms
    }

    fn term(&mut self, word: &str) -> Option<Term> {
        if let Some(known) = self.words.get(word) {
            return *known;
        }
        let term = (!is_stop_word(word)).then(|| {
            let stem = self.stemmer.stem(word);
            let next = Term::try_from(self.stems.len()).expect("fewer than four billion distinct words");
            *self.stems.entry(stem.into_owned()).or_insert(next)
        });
        self.words.insert(word.to_owned(), term);
        term
    }
}

/// Calls `each` with every word, in lower case; hyphens and underscores separate words, apostrophes are straightened.
fn for_each_word(text: &str, mut each: impl FnMut(&str)) {
    let mut lower = String::new();
    for word in text.unicode_words() {
        for part in word.split('_').filter(|part| !part.is_empty()) {
            lower.clear();
            lower.extend(part.chars().flat_map(char::to_lowercase).map(|c| if c == '\u{2019}' { '\'' } else { c }));
            each(lower.strip_suffix("'s").unwrap_or(&lower));
        }
    }
}

/// Every word in lower case, stop words included.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for_each_word(text, |word| words.push(word.to_owned()));
    words
}

/// How many words a text has.
#[must_use]
pub fn count_words(text: &str) -> usize {
    text.unicode_words().count()
}

/// How alike two ascending sets are: shared over all, 0 to 1.
#[must_use]
pub fn jaccard(a: &[Term], b: &[Term]) -> f64 {
    let shared = shared(a, b);
    let all = a.len() + b.len() - shared;
    if all == 0 { 0.0 } else { ratio(shared, all) }
}

/// How much of the smaller ascending set the other holds, 0 to 1.
#[must_use]
pub fn containment(a: &[Term], b: &[Term]) -> f64 {
    let least = a.len().min(b.len());
    if least == 0 { 0.0 } else { ratio(shared(a, b), least) }
}

/// How many members two ascending sets share.
#[must_use]
pub fn shared(a: &[Term], b: &[Term]) -> usize {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    shared
}

/// One count over another, as a fraction.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts of words are far below 2^52")]
pub fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Rounded to three places, so that scores read well and compare equal across machines.
#[must_use]
pub fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Every run of white space as one space, none at the ends.
#[must_use]
pub fn collapse(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(part);
    }
    out
}

/// The first `max` characters, with an ellipsis if something was cut.
#[must_use]
pub fn clip(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut out: String = text.chars().take(max.saturating_sub(1)).collect();
    out.truncate(out.trim_end().len());
    out.push('…');
    out
}

/// The sentences of a paragraph, trimmed; abbreviations, initials and code spans do not end one.
#[must_use]
pub fn sentences(paragraph: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut end = 0;
    for piece in paragraph.split_sentence_bounds() {
        end += piece.len();
        let so_far = &paragraph[start..end];
        let open_code = so_far.bytes().filter(|&b| b == b'`').count() % 2 == 1;
        if open_code || ends_in_abbreviation(so_far) {
            continue;
        }
        found.push(so_far.trim());
        start = end;
    }
    found.push(paragraph[start..end].trim());
    found.retain(|sentence| !sentence.is_empty());
    found.into_iter().flat_map(at_odd_ends).collect()
}

/// Two ends that Unicode does not know: "…" before a capital, and a stop before a code span (whatever that begins with).
fn at_odd_ends(sentence: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (at, mark) in sentence.match_indices(['…', '.']) {
        let end = at + mark.len();
        let Some(next) = sentence[end..].strip_prefix(' ').and_then(|rest| rest.chars().next()) else { continue };
        let opens =
            if mark == "…" { next.is_uppercase() } else { next == '`' && !ends_in_abbreviation(&sentence[..end]) };
        if opens && sentence[..at].bytes().filter(|&b| b == b'`').count() % 2 == 0 {
            parts.push(sentence[start..end].trim());
            start = end;
        }
    }
    parts.push(sentence[start..].trim());
    parts
}

fn ends_in_abbreviation(text: &str) -> bool {
    // A unit ("3 ms.") ends a sentence, a title ("Ms. Lee") does not.
    const KNOWN: &[&str] = &[
        "e.g", "E.g", "i.e", "I.e", "cf", "Cf", "vs", "fig", "Fig", "figs", "Figs", "Dr", "Mr", "Mrs", "Ms", "Prof",
        "St", "al", "approx", "eq", "Eq", "sec", "Sec", "ch", "Ch", "vol", "Vol", "pp", "resp", "incl", "viz",
    ];
    let Some(text) = text.trim_end().strip_suffix('.') else { return false };
    let word = text.rsplit(|c: char| c.is_whitespace() || "([{\"“".contains(c)).next().unwrap_or_default();
    let mut chars = word.chars();
    match (chars.next(), chars.next()) {
        // An initial, as in "J. Gray"; "I." ends a sentence more often than it abbreviates a name.
        (Some(initial), None) => initial.is_uppercase() && initial != 'I',
        _ => KNOWN.contains(&word),
    }
}

/// The text outside code spans.
fn outside_code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').step_by(2)
}

/// Whether a sentence stands as prose: begins with a capital, ends with a stop, has a sensible length, has a verb as
/// far as that can be told, and is neither code nor a row of a table nor about "the table above".
#[must_use]
pub fn is_complete(sentence: &str) -> bool {
    let starts = sentence.chars().next().is_some_and(|c| c.is_alphabetic() && !c.is_lowercase());
    let body = sentence.trim_end_matches(['"', '”', '’', ')']);
    let ends = (body.ends_with(['.', '!', '。'])) && !body.ends_with("..");
    if !starts || !ends || sentence.len() > 420 {
        return false;
    }
    let words = words(sentence);
    if !(6..=48).contains(&words.len()) || !is_balanced(sentence) || !is_mostly_letters(sentence) {
        return false;
    }
    if outside_code(sentence).any(|part| part.contains(UNPROSE) || part.contains("://") || part.contains(" _")) {
        return false;
    }
    has_verb(&main_clause(sentence)) && !points_elsewhere(&words)
}

/// The words without parentheses and without a subordinate clause at the end: a verb only there makes no sentence.
fn main_clause(sentence: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut depth = 0_usize;
    for c in sentence.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => outside.push(c),
            _ => {}
        }
    }
    let subordinate = [" when ", " while ", " because ", " unless ", " if ", " since ", " until ", " where "]
        .iter()
        .filter_map(|opening| outside.rfind(opening))
        .filter(|at| !outside[*at..].contains([',', ';', ':']))
        .min();
    words(&outside[..subordinate.unwrap_or(outside.len())])
}

/// Characters that prose does not have outside code spans; they would also be markup in the article.
const UNPROSE: &[char] =
    &['|', '{', '}', '<', '>', '\\', '^', '~', '*', '[', ']', '#', '=', '$', '@', '\t', '\n', '→', '⇒', '÷', '·'];

fn is_balanced(sentence: &str) -> bool {
    let count = |wanted: char| sentence.chars().filter(|&c| c == wanted).count();
    count('(') == count(')') && count('"').is_multiple_of(2) && count('`').is_multiple_of(2) && count('“') == count('”')
}

fn is_mostly_letters(sentence: &str) -> bool {
    let all = sentence.chars().count();
    let letters = sentence.chars().filter(|c| c.is_alphabetic() || *c == ' ').count();
    let code: usize = sentence.split('`').skip(1).step_by(2).map(|span| span.chars().count()).sum();
    letters * 100 >= all * 80 && code * 100 <= all * 35
}

/// Says "the table above", "as below" or "this file": sense is lost outside its place. "Below zero" is none of these.
fn points_elsewhere(words: &[String]) -> bool {
    const PLACES: &[&str] = &[
        "file",
        "document",
        "section",
        "chapter",
        "table",
        "page",
        "figure",
        "list",
        "example",
        "folder",
        "guide",
        "appendix",
        "repository",
        "readme",
        "code",
        "diagram",
    ];
    const SAID: &[&str] =
        &["the", "as", "see", "listed", "described", "shown", "given", "mentioned", "named", "defined", "on", "of"];
    let is_place = |word: &str| PLACES.contains(&word) || PLACES.contains(&word.trim_end_matches('s'));
    let directs = |word: &str| matches!(word, "above" | "below" | "following");
    words.first().is_some_and(|first| matches!(first.as_str(), "see" | "cf"))
        || words.starts_with(&["for".to_owned(), "more".to_owned()])
        || words.last().is_some_and(|last| directs(last))
        || words.iter().any(|word| matches!(word.as_str(), "tbd" | "todo" | "fixme"))
        || words.windows(3).any(|three| three[0] == "the" && matches!(three[2].as_str(), "above" | "below"))
        || words.windows(2).any(|pair| {
            let (first, second) = (pair[0].as_str(), pair[1].as_str());
            (matches!(first, "this" | "see") && is_place(second))
                || (directs(second) && (SAID.contains(&first) || is_place(first)))
        })
}

/// Whether the sentence leans on the one before it ("It …", "This …", "However, …").
#[must_use]
pub fn leans_back(sentence: &str) -> bool {
    const LEANING: &[&str] = &[
        "it",
        "its",
        "this",
        "that",
        "these",
        "those",
        "they",
        "them",
        "their",
        "he",
        "she",
        "his",
        "her",
        "such",
        "so",
        "but",
        "and",
        "or",
        "nor",
        "also",
        "however",
        "therefore",
        "thus",
        "hence",
        "otherwise",
        "instead",
        "then",
        "both",
        "neither",
        "moreover",
        "furthermore",
        "additionally",
        "similarly",
        "consequently",
        "likewise",
        "nevertheless",
        "still",
        "yet",
        "again",
        "meanwhile",
        "finally",
        "secondly",
        "others",
        "another",
        "here",
        "which",
        "either",
        "accordingly",
        "conversely",
        "afterwards",
        "besides",
        "worse",
        "better",
        "everything",
        "none",
        "same",
        "second",
        "third",
    ];
    const PAIRS: &[&str] = &[
        "for example",
        "for instance",
        "in contrast",
        "in addition",
        "as such",
        "the former",
        "the latter",
        "the same",
        "the other",
        "the others",
        "the second",
        "the third",
        "the result",
        "because of",
        "in short",
        "at that",
        "from there",
        "in that",
        "in this",
        "for this",
        "for that",
        "on this",
        "with this",
        "with that",
        "to that",
        "to this",
        "by this",
        "one of",
        "some of",
        "most of",
        "all of",
        "each of",
        "none of",
        "in both",
        "in other",
        "after that",
        "until then",
        "not so",
        "the reason",
        "the exception",
        "the latest",
        "if so",
        "if not",
    ];
    let mut words = sentence.unicode_words().map(str::to_lowercase);
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    let third = words.next().unwrap_or_default();
    if LEANING.contains(&first.as_str()) {
        // "It is …" leans; "That is why" leans; a cleft such as "It takes a lease to …" is rare enough to lose.
        return true;
    }
    // "Beekeepers therefore unite …": the reason was said before.
    if [&second, &third]
        .iter()
        .any(|word| matches!(word.as_str(), "therefore" | "thus" | "hence" | "also" | "likewise" | "however"))
    {
        return true;
    }
    let pair = format!("{first} {second}");
    let of_those = matches!(third.as_str(), "these" | "those" | "them" | "which" | "this" | "that");
    match second.as_str() {
        "of" => of_those,
        _ => PAIRS.contains(&pair.as_str()),
    }
}

/// A word that is surely a verb, or one in "-ed" or "-s" before a word that opens an object; but not a third person
/// as the first word ("Runs over the list"), which has no subject.
fn has_verb(words: &[String]) -> bool {
    let opens_object = |word: &str| {
        matches!(
            word,
            "a" | "an"
                | "the"
                | "its"
                | "their"
                | "one"
                | "no"
                | "every"
                | "each"
                | "what"
                | "that"
                | "which"
                | "who"
                | "when"
                | "how"
                | "to"
                | "it"
                | "them"
                | "only"
                | "all"
                | "any"
                | "into"
                | "from"
                | "another"
                | "itself"
                | "until"
                | "after"
                | "before"
                | "back"
                | "up"
                | "down"
                | "out"
                | "nothing"
        )
    };
    let opens_phrase =
        |word: &str| opens_object(word) || matches!(word, "in" | "on" | "at" | "with" | "by" | "for" | "as" | "over");
    let is_known = |word: &str| VERBS.binary_search(&word).is_ok();
    if words.first().is_some_and(|first| (first.ends_with('s') && is_known(first)) || CHANGES.contains(&first.as_str()))
    {
        return false;
    }
    words.iter().enumerate().any(|(at, word)| {
        let word = word.as_str();
        let next = words.get(at + 1).map(String::as_str);
        let is_number = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
        let after_plural = at > 0 && words[at - 1].ends_with('s') && words[at - 1].len() > 3;
        let past = word.len() > 4
            && word.ends_with("ed")
            && (after_plural || next.is_none_or(|next| opens_phrase(next) || is_number(next)));
        let present = word.len() > 3
            && word.ends_with('s')
            && !word.ends_with("ss")
            && !matches!(
                word,
                "minus" | "plus" | "versus" | "this" | "thus" | "across" | "always" | "perhaps" | "various"
            )
            && next.is_some_and(|next| {
                opens_object(next)
                    || matches!(next, "between" | "through" | "against" | "around" | "more" | "less" | "much")
            });
        is_known(word) || (at > 0 && (past || present))
    })
}

/// How entries of change logs begin ("Added a flag …"): they have no subject either.
const CHANGES: &[&str] = &[
    "add",
    "added",
    "bumped",
    "changed",
    "deprecated",
    "documented",
    "ensure",
    "ensured",
    "fix",
    "fixed",
    "implemented",
    "improved",
    "introduce",
    "introduced",
    "remove",
    "removed",
    "rename",
    "renamed",
    "replaced",
    "supported",
    "updated",
    "upgraded",
];

/// Common finite verbs, in order.
const VERBS: &[&str] = &[
    "allow",
    "allows",
    "appear",
    "appears",
    "apply",
    "are",
    "aren't",
    "arrive",
    "arrives",
    "ask",
    "asks",
    "be",
    "become",
    "becomes",
    "began",
    "begin",
    "begins",
    "bring",
    "brings",
    "build",
    "builds",
    "came",
    "can",
    "can't",
    "cannot",
    "carries",
    "carry",
    "choose",
    "chooses",
    "come",
    "comes",
    "contain",
    "contains",
    "cost",
    "costs",
    "could",
    "couldn't",
    "cut",
    "cuts",
    "decide",
    "decides",
    "depend",
    "depends",
    "describe",
    "describes",
    "did",
    "didn't",
    "do",
    "does",
    "doesn't",
    "don't",
    "ends",
    "expire",
    "expires",
    "fail",
    "fails",
    "fell",
    "find",
    "finds",
    "folds",
    "gave",
    "get",
    "gets",
    "give",
    "gives",
    "go",
    "goes",
    "grow",
    "grows",
    "had",
    "happen",
    "happens",
    "has",
    "hasn't",
    "have",
    "haven't",
    "held",
    "help",
    "helps",
    "hold",
    "holds",
    "include",
    "includes",
    "is",
    "isn't",
    "keep",
    "keeps",
    "kept",
    "knew",
    "know",
    "knows",
    "lead",
    "leads",
    "let",
    "lets",
    "lies",
    "live",
    "lives",
    "lose",
    "loses",
    "lost",
    "made",
    "make",
    "makes",
    "may",
    "mean",
    "means",
    "might",
    "move",
    "moves",
    "must",
    "need",
    "needs",
    "never",
    "offers",
    "owns",
    "prevent",
    "prevents",
    "produce",
    "produces",
    "provide",
    "provides",
    "ran",
    "reach",
    "reaches",
    "read",
    "reads",
    "receive",
    "receives",
    "refuse",
    "refuses",
    "remain",
    "remains",
    "report",
    "reports",
    "require",
    "requires",
    "run",
    "runs",
    "said",
    "say",
    "says",
    "see",
    "seems",
    "sees",
    "send",
    "sends",
    "sent",
    "set",
    "sets",
    "shall",
    "should",
    "show",
    "shown",
    "shows",
    "sits",
    "start",
    "starts",
    "stay",
    "stays",
    "stop",
    "stops",
    "take",
    "takes",
    "tell",
    "tells",
    "took",
    "travel",
    "travels",
    "tries",
    "try",
    "turns",
    "use",
    "uses",
    "wait",
    "waits",
    "want",
    "wants",
    "was",
    "wasn't",
    "went",
    "were",
    "will",
    "win",
    "wins",
    "won't",
    "work",
    "works",
    "would",
    "write",
    "writes",
    "wrote",
];

/// Words that say nothing of a text's subject. Negations are not among them: they carry the sense of a sentence.
fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.binary_search(&word).is_ok()
}

/// In order.
const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "again", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because",
    "been", "before", "being", "both", "but", "by", "can", "could", "did", "do", "does", "doing", "during", "each",
    "etc", "every", "few", "for", "from", "further", "had", "has", "have", "having", "he", "her", "here", "hers",
    "him", "his", "how", "i", "if", "in", "into", "is", "it", "its", "itself", "just", "may", "me", "might", "more",
    "most", "must", "my", "of", "off", "on", "once", "only", "or", "other", "our", "ours", "out", "over", "own",
    "same", "shall", "she", "should", "so", "some", "such", "than", "that", "the", "their", "theirs", "them", "then",
    "there", "these", "they", "this", "those", "through", "to", "too", "under", "until", "up", "us", "very", "was",
    "we", "were", "what", "when", "where", "which", "while", "who", "whom", "whose", "why", "will", "with", "would",
    "you", "your", "yours",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_lists_are_in_order() {
        assert!(STOP_WORDS.is_sorted());
        assert!(VERBS.is_sorted());
    }

    #[test]
    fn sentences_end_where_a_reader_ends_them() {
        assert_eq!(
            sentences("It waits… Then 3 ms. `a` is, e.g. `b`."),
            ["It waits…", "Then 3 ms.", "`a` is, e.g. `b`."]
        );
        let found = sentences("Dr. J. Gray wrote it, e.g. Transactions. It costs 3.5 ms. Call `a. B` twice. Done!");
        assert_eq!(
            found,
            ["Dr. J. Gray wrote it, e.g. Transactions.", "It costs 3.5 ms.", "Call `a. B` twice.", "Done!"]
        );
    }

    #[test]
    fn words_are_stemmed_and_stop_words_dropped() {
        let mut lexicon = Lexicon::default();
        assert_eq!(lexicon.terms("The lease's leases"), lexicon.terms("lease LEASE"));
        assert_eq!(lexicon.terms("fenced_token"), lexicon.terms("fencing, tokens"));
        assert!(lexicon.terms("it is of the").is_empty());
        assert_eq!(lexicon.terms("not").len(), 1);
    }

    #[test]
    fn only_prose_is_complete() {
        for good in [
            "A lease gives one agent the right to do one task.",
            "The server refuses the write with `error 10071`, and the leader steps down.",
            "Agents use core messaging only (publish and subscribe).",
            "When the air falls below about ten degrees, the workers form a ball.",
        ] {
            assert!(is_complete(good), "{good}");
        }
        for bad in [
            "a lease gives one agent the right to do one task.",
            "A lease gives one agent the right to do one",
            "Fencing token on each lease and lock.",
            "It is so.",
            "Run cargo test --all | tee out.log and it is done there.",
            "As the benchmarks above show, most agents were lost.",
            "The table above shows how many agents were lost.",
            "Call `fn very_long_code(a: u32, b: u32) -> Result<(), Error>` and it is.",
            "He said (that the lease was lost and never came back.",
            "See https://example.org for what the lease is about today.",
            "It was lost and so on and so forth...",
            "Two-level queue: jobs by index, ready tasks by rank within a job.",
            "Shared-queue order as fallback when the planner is late or history is invalid.",
            "Added a new flag that is read when the agent starts.",
            "Introduced a trait which is meant for all agents.",
            "For more details, read what is said about closing spans.",
            "See the feeding notes for how much is left to them.",
            "Runs over the instances and prints what each of them gives.",
            "Latency, agents with many slots (these are not modelled), failures, budgets.",
        ] {
            assert!(!is_complete(bad), "{bad}");
        }
    }

    #[test]
    fn leaning_sentences_are_known() {
        assert!(leans_back("It is fenced."));
        assert!(leans_back("For example, a lease."));
        assert!(leans_back("None of them holds."));
        assert!(leans_back("Beekeepers therefore unite weak colonies."));
        assert!(!leans_back("One of the agents leads."));
        assert!(!leans_back("The lease is fenced."));
    }

    #[test]
    fn sets_compare() {
        assert!((jaccard(&[1, 2, 3], &[2, 3, 4]) - 0.5).abs() < 1e-9);
        assert!((containment(&[1, 2], &[1, 2, 3]) - 1.0).abs() < 1e-9);
        assert!(jaccard(&[], &[]).abs() < 1e-9);
    }

    #[test]
    fn clipping_counts_characters() {
        assert_eq!(clip("Überraschung", 4), "Übe…");
        assert_eq!(clip("Über", 4), "Über");
    }
}
