//! Writing: composes an article from extracts, every sentence of it cited.
//!
//! Takes every result with `extracts`, and if there is a text among the results, continues it. Reads `input.topic`,
//! `length` (words, or short, medium, long), and the parameters `section` (write one section of this name instead of a
//! whole article), `focus` (what it is to be about, in words) and `title`.
//!
//! The article is extractive: sentences are chosen, not made up. A sentence is worth more the more central it is
//! (TextRank), the more it says of the topic and the better its extract was ranked; less, the more it repeats what was
//! chosen before. Neighbours in the source stay together, because that is what makes chosen sentences read as a text;
//! a sentence that leans on the one before it ("It …") is taken with that one or not at all. Sections are clusters of
//! extracts that share words, under the heading of the source that fits most of them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::bm25::Index;
use crate::document::{Block, Document, Section, Sentence};
use crate::roles::RoleError;
use crate::shape::{Composition, Extract, Material, Task, title_of};
use crate::text::{self, Lexicon, Term};
use crate::textrank;

/// Words of an article unless it is said.
const USUAL_LENGTH: usize = 500;
/// Words of a section unless it is said.
const USUAL_SECTION: usize = 250;
/// Words of the opening.
const LEAD: usize = 70;
/// More extracts than this are not looked at, more sentences neither: comparing all with all must stay quick.
const MOST_EXTRACTS: usize = 80;
const MOST_SENTENCES: usize = 400;
/// A theme with less than this part of the best one's strength makes no section.
const WORTH_A_SECTION: f64 = 0.45;
/// Two sentences that share this much say the same.
const SAME: f64 = 0.7;

/// Does the work.
pub fn run(task: &Value) -> Result<Composition, RoleError> {
    let order = Order::read(Task::new(task)?)?;
    let mut desk = Desk::new(&order);
    if desk.candidates.is_empty() {
        return Err(RoleError::lasting(format!(
            "none of the {} extracts has a complete English sentence that the text does not have already: \
             research must find prose, not only code, tables and headings",
            order.material.extracts.len()
        )));
    }
    let document = desk.compose(&order);
    let mut written = Composition::new(document, &order.topic, &order.material);
    if written.words * 2 < order.words {
        written
            .notes
            .push(format!("only {} words could be written: the extracts hold no more that fits", written.words));
    }
    Ok(written)
}

/// What is to be written, and from what.
pub(crate) struct Order {
    pub(crate) topic: String,
    pub(crate) title: String,
    pub(crate) section: Option<String>,
    pub(crate) focus: Option<String>,
    pub(crate) words: usize,
    pub(crate) material: Material,
}

impl Order {
    pub(crate) fn read(task: Task<'_>) -> Result<Self, RoleError> {
        let mut material = Material::gather(task)?;
        if material.extracts.is_empty() {
            return Err(RoleError::lasting(format!(
                "there is nothing to write from: {}, and none of them has extracts; writing needs the output of a research stage",
                task.result_names()
            )));
        }
        let earlier = material.document.as_ref().map(|document| document.title.clone()).unwrap_or_default();
        if material.topic.is_empty() {
            material.topic.clone_from(&earlier);
        }
        let topic = material.topic.clone();
        if topic.is_empty() {
            return Err(RoleError::lasting(
                "input.topic is missing or empty: it must say in a few words what to write about",
            ));
        }
        let section = task.text("section")?.map(str::to_owned);
        let words = match (task.length()?, &section) {
            (Some(words), Some(_)) if task.field("params", "length").is_none() => words.div_ceil(2),
            (Some(words), _) => words,
            (None, Some(_)) => USUAL_SECTION,
            (None, None) => USUAL_LENGTH,
        };
        let title = match task.text("title")? {
            Some(title) => title.to_owned(),
            None if !earlier.is_empty() => earlier,
            None => title_of(&topic),
        };
        Ok(Self { topic, title, section, focus: task.text("focus")?.map(str::to_owned), words, material })
    }
}

/// A sentence that may be chosen.
struct Candidate {
    text: String,
    /// Index into the extracts.
    extract: usize,
    terms: Vec<Term>,
    words: usize,
    /// The sentence right before it in its paragraph, if that is a candidate too.
    previous: Option<usize>,
    leans: bool,
    /// For the article as a whole, without focus.
    general: f64,
    /// For what is being written.
    relevance: f64,
    used: bool,
}

/// The candidates, and what was chosen of them.
struct Desk<'a> {
    extracts: &'a [Extract],
    candidates: Vec<Candidate>,
    /// The terms of each extract, its heading among them.
    themes: Vec<Vec<Term>>,
    /// What the text says already.
    said: Vec<Vec<Term>>,
    lexicon: Lexicon,
}

impl<'a> Desk<'a> {
    fn new(order: &'a Order) -> Self {
        let mut lexicon = Lexicon::default();
        let extracts = &order.material.extracts[..order.material.extracts.len().min(MOST_EXTRACTS)];
        let earlier = order.material.document.as_ref().map(Document::sentences).unwrap_or_default();
        let said: Vec<Vec<Term>> = earlier.iter().map(|(_, sentence)| lexicon.term_set(&sentence.text)).collect();
        let themes = extracts
            .iter()
            .map(|one| lexicon.term_set(&format!("{} {} {}", one.heading, one.title, one.text)))
            .collect();
        let mut desk = Self { extracts, candidates: Vec::new(), themes, said, lexicon };
        desk.collect();
        desk.weigh(order);
        desk
    }

    fn collect(&mut self) {
        for (at, extract) in self.extracts.iter().enumerate() {
            for paragraph in extract.text.lines() {
                let mut previous = None;
                for sentence in text::sentences(paragraph) {
                    previous = self.consider(at, sentence, previous);
                }
            }
        }
    }

    /// Adds a sentence if it is one; its index then.
    fn consider(&mut self, extract: usize, sentence: &str, previous: Option<usize>) -> Option<usize> {
        let leans = text::leans_back(sentence);
        if self.candidates.len() >= MOST_SENTENCES || !text::is_complete(sentence) || (leans && previous.is_none()) {
            return None;
        }
        let terms = self.lexicon.term_set(sentence);
        let repeats = |other: &[Term]| text::jaccard(&terms, other) >= SAME;
        if self.candidates.iter().any(|one| repeats(&one.terms)) || self.said.iter().any(|other| repeats(other)) {
            return None;
        }
        self.candidates.push(Candidate {
            text: sentence.to_owned(),
            extract,
            words: text::count_words(sentence),
            terms,
            previous,
            leans,
            general: 0.0,
            relevance: 0.0,
            used: false,
        });
        Some(self.candidates.len() - 1)
    }

    fn weigh(&mut self, order: &Order) {
        let sets: Vec<Vec<Term>> = self.candidates.iter().map(|one| one.terms.clone()).collect();
        let central = textrank::rank(&sets);
        let index = Index::new(&sets);
        let topic = self.lexicon.term_set(&order.topic);
        let focus = order.focus.as_deref().map(|focus| self.lexicon.term_set(focus)).unwrap_or_default();
        let best = self.extracts.iter().map(|one| one.score).fold(f64::MIN_POSITIVE, f64::max);
        let headings: Vec<Vec<Term>> = self.extracts.iter().map(|one| self.lexicon.term_set(&one.heading)).collect();
        for (candidate, central) in self.candidates.iter_mut().zip(central) {
            let heading = &headings[candidate.extract];
            let about = |wanted: &[Term]| {
                let weight = |set: &[Term]| {
                    wanted.iter().filter(|term| set.contains(term)).map(|term| 0.2 + index.idf(*term)).sum::<f64>()
                };
                let whole = weight(wanted).max(f64::MIN_POSITIVE);
                ((weight(&candidate.terms) + 0.4 * weight(heading)) / whole).min(1.0)
            };
            let extract = &self.extracts[candidate.extract];
            let standing = extract.score / best;
            // Texts say first what they are about.
            let opens = if extract.text.starts_with(&candidate.text) { 0.06 } else { 0.0 };
            candidate.general = 0.4 * central + 0.4 * about(&topic) + 0.2 * standing + opens
                - awkwardness(&candidate.text, candidate.words);
            candidate.relevance = match focus.is_empty() {
                true => candidate.general,
                false => 0.6 * candidate.general + 0.5 * about(&focus),
            };
        }
    }

    fn compose(&mut self, order: &Order) -> Document {
        let mut document = order.material.document.clone().unwrap_or_default();
        let is_new = document.sections.is_empty();
        document.title.clone_from(&order.title);
        if is_new {
            let lead = self.lead();
            let heading = if order.section.is_some() { "Abstract" } else { "" };
            let blocks = vec![Block::Prose(lead.iter().map(|at| self.sentence(*at)).collect())];
            if !lead.is_empty() {
                document.sections.push(Section { level: 2, heading: heading.to_owned(), blocks });
            }
        }
        match &order.section {
            Some(heading) => {
                let all: Vec<usize> = (0..self.candidates.len()).collect();
                // Where there is little, the next section is left something to say.
                let free: usize = self.candidates.iter().filter(|one| !one.used).map(|one| one.words).sum();
                let budget = if is_new { order.words.min(free / 2).max(30) } else { order.words };
                let chosen = match &order.focus {
                    Some(focus) => self.choose_focused(focus, &all, budget),
                    None => self.choose(&all, budget),
                };
                let section = self.section(heading, &chosen);
                match (document.sections.iter_mut().find(|known| known.heading == *heading), section) {
                    (Some(known), Some(more)) => known.blocks.extend(more.blocks),
                    (None, Some(new)) => document.sections.push(new),
                    (_, None) => {}
                }
            }
            None => {
                let left = order.words.saturating_sub(if is_new { LEAD } else { 0 });
                let taken: Vec<String> =
                    document.sections.iter().map(|section| section.heading.to_lowercase()).collect();
                let sections = self.themed_sections(left, taken);
                document.sections.extend(sections);
            }
        }
        document
    }

    /// Two or three sentences from different extracts that say most of the topic and stand on their own.
    fn lead(&mut self) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        let mut words = 0;
        let all: Vec<usize> = (0..self.candidates.len()).filter(|at| !self.candidates[*at].leans).collect();
        let relevance: Vec<f64> = all.iter().map(|at| self.candidates[*at].general).collect();
        let sets: Vec<Vec<Term>> = all.iter().map(|at| self.candidates[*at].terms.clone()).collect();
        for place in textrank::marginal_order(&relevance, &sets, &[], 0.5) {
            let one = &self.candidates[all[place]];
            let same_extract = chosen.iter().any(|at| self.candidates[*at].extract == one.extract);
            // An opening that takes all there is would leave nothing for the sections.
            let room = chosen.len() < 3 && (chosen.len() + 1) * 3 <= self.candidates.len().max(3);
            if room && !same_extract && one.words <= 32 && words + one.words <= LEAD + 15 {
                words += one.words;
                chosen.push(all[place]);
            }
        }
        for at in &chosen {
            self.take(*at);
        }
        // What opened a text before can open this one.
        chosen.sort_by_key(|at| {
            let one = &self.candidates[*at];
            !self.extracts[one.extract].text.starts_with(&one.text)
        });
        chosen
    }

    fn take(&mut self, at: usize) {
        self.candidates[at].used = true;
        self.said.push(self.candidates[at].terms.clone());
    }

    /// Chooses among `pool` up to about `budget` words.
    fn choose(&mut self, pool: &[usize], budget: usize) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        let mut words = 0;
        loop {
            let best = pool
                .iter()
                .filter_map(|at| self.offer(*at, pool, &chosen))
                .filter(|offer| words + offer.words <= budget + budget / 10)
                .reduce(|best, offer| if offer.worth > best.worth + 1e-12 { offer } else { best });
            let Some(best) = best else { return chosen };
            words += best.words;
            for at in best.sentences {
                self.take(at);
                chosen.push(at);
            }
            if words >= budget {
                return chosen;
            }
        }
    }

    /// From extracts that say something of the focus; from others only if that comes to too little.
    fn choose_focused(&mut self, focus: &str, pool: &[usize], budget: usize) -> Vec<usize> {
        let focus = self.lexicon.term_set(focus);
        // How many of its words each extract has; its heading says more than a sentence in it.
        let weights: Vec<usize> = (0..self.extracts.len())
            .map(|at| {
                let heading = self.lexicon.term_set(&self.extracts[at].heading);
                let body = self.lexicon.term_set(&self.extracts[at].text);
                2 * text::shared(&heading, &focus) + text::shared(&body, &focus)
            })
            .collect();
        let bar = weights.iter().max().copied().unwrap_or_default().div_ceil(2).max(1);
        let near: Vec<usize> = pool.iter().copied().filter(|at| weights[self.candidates[*at].extract] >= bar).collect();
        let mut chosen = self.choose(&near, budget);
        let words: usize = chosen.iter().map(|at| self.candidates[*at].words).sum();
        let least = budget * 2 / 5;
        if words < least {
            chosen.extend(self.choose(pool, least - words));
        }
        chosen
    }

    /// A sentence with those before it that it leans on; `None` if it cannot be had.
    fn offer(&self, at: usize, pool: &[usize], chosen: &[usize]) -> Option<Offer> {
        let mut sentences = vec![at];
        let mut last = at;
        while self.candidates[last].leans {
            last = self.candidates[last].previous?;
            if chosen.contains(&last) {
                break;
            }
            sentences.insert(0, last);
        }
        let mut worth = 0.0;
        for one in &sentences {
            let candidate = &self.candidates[*one];
            let novel = self.said.iter().map(|other| text::jaccard(&candidate.terms, other)).fold(0.0, f64::max);
            if candidate.used || novel >= SAME || !pool.contains(one) {
                return None;
            }
            worth += candidate.relevance - 0.6 * novel;
        }
        let follows = self.candidates[sentences[0]].previous.is_some_and(|before| chosen.contains(&before));
        let leads = chosen.iter().any(|after| self.candidates[*after].previous == Some(at));
        let neighbour = if follows || leads { 0.12 } else { 0.0 };
        let worth = worth / text::ratio(sentences.len(), 1) + neighbour;
        let words = sentences.iter().map(|one| self.candidates[*one].words).sum();
        Some(Offer { sentences, words, worth })
    }

    /// Chosen sentences as paragraphs: by file, best file first, in the order of the source.
    fn section(&self, heading: &str, chosen: &[usize]) -> Option<Section> {
        let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for at in chosen {
            by_source.entry(self.extracts[self.candidates[*at].extract].source.as_str()).or_default().push(*at);
        }
        let worth = |group: &[usize]| group.iter().map(|at| self.candidates[*at].relevance).fold(f64::MIN, f64::max);
        let mut groups: Vec<Vec<usize>> = by_source.into_values().collect();
        groups.sort_by(|a, b| worth(b).total_cmp(&worth(a)));
        let mut paragraphs: Vec<Vec<usize>> = Vec::new();
        for group in &mut groups {
            group.sort_by_key(|at| (self.extracts[self.candidates[*at].extract].start_line, *at));
            for part in self.paragraphs(group) {
                match paragraphs.last_mut() {
                    // A sentence alone makes no paragraph.
                    Some(last) if part.len() == 1 => last.extend(part),
                    Some(last) if last.len() == 1 => last.extend(part),
                    _ => paragraphs.push(part),
                }
            }
        }
        let blocks: Vec<_> = paragraphs
            .iter()
            .map(|paragraph| Block::Prose(paragraph.iter().map(|at| self.sentence(*at)).collect()))
            .collect();
        (!blocks.is_empty()).then(|| Section { level: 2, heading: heading.to_owned(), blocks })
    }

    fn sentence(&self, at: usize) -> Sentence {
        let one = &self.candidates[at];
        Sentence { text: one.text.clone(), citations: vec![self.extracts[one.extract].id] }
    }

    /// Breaks a long run between extracts.
    fn paragraphs(&self, group: &[usize]) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        for at in group {
            match parts.last_mut() {
                Some(part)
                    if part.len() < 3
                        || (part.len() < 6
                            && self.candidates[part[part.len() - 1]].extract == self.candidates[*at].extract) =>
                {
                    part.push(*at);
                }
                _ => parts.push(vec![*at]),
            }
        }
        parts
    }

    /// Sections by theme that together have about `words` words.
    fn themed_sections(&mut self, words: usize, mut headings: Vec<String>) -> Vec<Section> {
        let most = (words / 110).clamp(2, 8);
        let mut themes = self.themes();
        let strength = |desk: &Self, theme: &[usize]| {
            let mut all: Vec<f64> =
                desk.pool(theme).into_iter().map(|at| desk.candidates[at].relevance.max(0.0)).collect();
            all.sort_by(|a, b| b.total_cmp(a));
            all.iter().take(5).sum::<f64>()
        };
        // A theme that can fill no paragraph is none.
        themes.retain(|theme| self.pool(theme).len() >= 2);
        themes.sort_by(|a, b| strength(self, b).total_cmp(&strength(self, a)));
        themes.truncate(most);
        // What is only by the way does not make a section, unless there is nothing else.
        let bar = themes.first().map_or(0.0, |best| strength(self, best) * WORTH_A_SECTION);
        themes.retain(|theme| strength(self, theme) >= bar);
        let whole: f64 = themes.iter().map(|theme| strength(self, theme)).sum();
        let mut left = words;
        let mut sections = Vec::new();
        for (at, theme) in themes.iter().enumerate() {
            let pool = self.pool(theme);
            let even = left / (themes.len() - at);
            let share = strength(self, theme) / whole.max(f64::MIN_POSITIVE) * text::ratio(words, 1);
            // Half by strength and half alike, so that no section is a stub.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a word count is a small positive number"
            )]
            let budget = ((share + text::ratio(even, 1)) / 2.0) as usize;
            let chosen = self.choose(&pool, budget.clamp(40, left.max(40)));
            left = left.saturating_sub(chosen.iter().map(|one| self.candidates[*one].words).sum());
            let heading = self.heading(&chosen, &headings);
            headings.push(heading.to_lowercase());
            sections.extend(self.section(&heading, &chosen));
        }
        if sections.is_empty() {
            // Too little for themes: what there is, under one heading.
            let all: Vec<usize> = (0..self.candidates.len()).collect();
            let chosen = self.choose(&all, words);
            let heading = self.heading(&chosen, &headings);
            sections.extend(self.section(&heading, &chosen));
        }
        sections
    }

    fn pool(&self, theme: &[usize]) -> Vec<usize> {
        (0..self.candidates.len())
            .filter(|at| !self.candidates[*at].used && theme.contains(&self.candidates[*at].extract))
            .collect()
    }

    /// Clusters of extracts: average linkage over shared rare words, starting from those under one heading.
    fn themes(&self) -> Vec<Vec<usize>> {
        const ALIKE: f64 = 0.11;
        let mut by_heading: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (at, extract) in self.extracts.iter().enumerate() {
            by_heading.entry((&extract.source, &extract.heading)).or_default().push(at);
        }
        let mut clusters: Vec<Vec<usize>> = by_heading.into_values().collect();
        clusters.sort();
        let index = Index::new(&self.themes);
        let norm = |set: &[Term]| set.iter().map(|term| index.idf(*term).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = self.themes.iter().map(|set| norm(set)).collect();
        let n = self.extracts.len();
        let mut alike = vec![vec![0.0; n]; n];
        for a in 0..n {
            for b in a + 1..n {
                let dot: f64 = common(&self.themes[a], &self.themes[b]).map(|term| index.idf(term).powi(2)).sum();
                alike[a][b] = dot / (norms[a] * norms[b]).max(f64::MIN_POSITIVE);
                alike[b][a] = alike[a][b];
            }
        }
        let largest = (n / 3).max(5);
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for a in 0..clusters.len() {
                for b in a + 1..clusters.len() {
                    let (one, other) = (&clusters[a], &clusters[b]);
                    let sum: f64 =
                        one.iter().flat_map(|x| other.iter().map(move |y| (x, y))).map(|(x, y)| alike[*x][*y]).sum();
                    let mean = sum / text::ratio(one.len() * other.len(), 1);
                    if mean > best.map_or(ALIKE, |(mean, ..)| mean) && one.len() + other.len() <= largest {
                        best = Some((mean, a, b));
                    }
                }
            }
            let Some((_, a, b)) = best else { return clusters };
            let other = clusters.remove(b);
            clusters[a].extend(other);
            clusters[a].sort_unstable();
        }
    }

    /// The heading of the source that most of the chosen sentences stand under.
    fn heading(&self, chosen: &[usize], taken: &[String]) -> String {
        let mut votes: BTreeMap<String, f64> = BTreeMap::new();
        for at in chosen {
            let one = &self.candidates[*at];
            let extract = &self.extracts[one.extract];
            for (name, weight) in [(&extract.heading, 1.0), (&extract.title, 0.3)] {
                if let Some(name) = heading_of(name).filter(|name| !taken.contains(&name.to_lowercase())) {
                    *votes.entry(name).or_default() += weight * (0.5 + one.relevance.max(0.0));
                }
            }
        }
        votes
            .into_iter()
            .reduce(|best, vote| if vote.1 > best.1 + 1e-12 { vote } else { best })
            .map(|(name, _)| name)
            .or_else(|| {
                ["Findings", "Further findings"]
                    .into_iter()
                    .find(|name| !taken.contains(&name.to_lowercase()))
                    .map(str::to_owned)
            })
            .unwrap_or_else(|| format!("Findings {}", taken.len()))
    }
}

/// Sentences that come together.
struct Offer {
    sentences: Vec<usize>,
    words: usize,
    worth: f64,
}

fn common<'a>(a: &'a [Term], b: &'a [Term]) -> impl Iterator<Item = Term> + 'a {
    a.iter().copied().filter(|term| b.binary_search(term).is_ok())
}

/// What makes a sentence hard to read out of its place: code, numbers, parentheses, many commas, great length.
fn awkwardness(sentence: &str, words: usize) -> f64 {
    let count = |wanted: &[char]| sentence.chars().filter(|c| wanted.contains(c)).count();
    let over = |n: usize, free: usize| text::ratio(n.saturating_sub(free), 1);
    let digits = sentence.chars().filter(char::is_ascii_digit).count();
    // A code span with a space in it is a formula or a command, not a name.
    let formula = sentence.split('`').skip(1).step_by(2).any(|span| span.contains(' '));
    0.03 * over(count(&['`']) / 2, 1)
        + if formula { 0.15 } else { 0.0 }
        // "There are two ways to …" announces what will not follow.
        + if sentence.starts_with("There are ") { 0.1 } else { 0.0 }
        + 0.02 * over(digits, 4)
        + 0.05 * over(count(&['(']), 1)
        + 0.03 * over(count(&[',', ';', ':']), 4)
        + 0.01 * over(words, 32)
        + 0.02 * over(9, words)
}

/// A source's heading fit for an article: no numbering, no trailing remark, none that says nothing.
fn heading_of(heading: &str) -> Option<String> {
    const EMPTY: &[&str] = &[
        "introduction",
        "overview",
        "readme",
        "notes",
        "general",
        "misc",
        "miscellaneous",
        "contents",
        "table of contents",
        "todo",
        "license",
        "changelog",
        "about",
        "index",
        "summary",
        "abstract",
        "conclusion",
        "examples",
        "example",
        "faq",
        "sources",
        "references",
        "see also",
        "further reading",
        "appendix",
    ];
    let mut heading = text::collapse(&heading.replace(['[', ']', '#', '*'], ""));
    while let Some((open, close)) = heading.find('(').zip(heading.find(')')) {
        if close < open {
            return None;
        }
        heading.replace_range(open..=close, "");
    }
    let heading = text::collapse(&heading);
    let trimmed = heading
        .trim_start_matches(|c: char| c.is_ascii_digit() || ".)-– ".contains(c))
        .trim_end_matches([':', '.', ' ']);
    let words = text::count_words(trimmed);
    let fit = (1..=10).contains(&words) && !EMPTY.contains(&trimmed.to_lowercase().as_str());
    fit.then(|| {
        let mut chars = trimmed.chars();
        chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
    })
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "a json! literal reads best as it is")]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn extract(id: u32, source: &str, heading: &str, text: &str) -> Value {
        json!({ "id": id, "source": source, "title": "Notes", "heading": heading, "text": text, "score": 20 - id, "start_line": id * 10 })
    }

    fn bees() -> Value {
        json!([
            extract(
                1,
                "a.md",
                "Honey",
                "Bees make honey from the nectar of flowers. It is stored in combs of wax. Combs are built by young bees."
            ),
            extract(
                2,
                "b.md",
                "The dance",
                "A dancing bee tells the hive where nectar is. The angle of the dance gives the direction of the flowers."
            ),
            extract(
                3,
                "b.md",
                "Winter",
                "Bees live on stored honey during the winter. The hive forms a cluster that keeps the queen warm."
            ),
            extract(
                5,
                "d.md",
                "Swarms",
                "A swarm leaves the hive with the old queen in May. Scouts look for a hollow tree and report by dancing. Most swarms settle within three days."
            ),
            extract(
                6,
                "d.md",
                "Keepers",
                "A keeper gives sugar to a hive in winter. Smoke calms the bees while the keeper works."
            ),
            extract(4, "c.md", "API", "fn honey() -> Bee. | a | b |\nsee the table above. and so on"),
        ])
    }

    fn write(extracts: Value, params: Value) -> Composition {
        run(&json!({
            "input": { "topic": "how bees make honey" },
            "results": { "research": { "extracts": extracts } },
            "params": params,
        }))
        .expect("an article")
    }

    #[test]
    fn every_sentence_is_from_the_extract_it_cites() {
        let written = write(bees(), json!({}));
        assert!(written.sentences.len() >= 5, "{}", written.document);
        for sentence in &written.sentences {
            let [number] = sentence.citations[..] else { panic!("one citation: {sentence:?}") };
            let extract = written.extracts.iter().find(|one| one.id == number).expect("it resolves");
            assert!(extract.text.contains(&sentence.text), "{sentence:?}");
            assert!(written.document.contains(&format!("- [{number}] `{}`", extract.source)));
        }
        assert_eq!(written.title, "How Bees Make Honey");
        assert!(!written.document.contains("fn honey"), "no code");
    }

    #[test]
    fn a_leaning_sentence_comes_right_after_the_one_it_leans_on() {
        let written = write(bees(), json!({}));
        let texts: Vec<_> = written.sentences.iter().map(|one| one.text.as_str()).collect();
        if let Some(at) = texts.iter().position(|text| text.starts_with("It is stored")) {
            assert_eq!(texts[at - 1], "Bees make honey from the nectar of flowers.");
        }
    }

    #[test]
    fn a_section_continues_the_text_and_repeats_nothing() {
        let first = write(bees(), json!({ "section": "Methodology", "focus": "dance direction", "length": 50 }));
        assert_eq!(first.sections, ["Abstract", "Methodology"]);
        let second = run(&json!({
            "input": { "topic": "how bees make honey" },
            "results": { "methodology": first },
            "params": { "section": "Results", "focus": "winter cluster" },
        }))
        .expect("a second section");
        assert_eq!(second.sections, ["Abstract", "Methodology", "Results"]);
        assert_eq!(second.includes, ["methodology"]);
        let mut texts: Vec<_> = second.sentences.iter().map(|one| one.text.as_str()).collect();
        let all = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), all);
        assert!(all > first.sentences.len());
    }

    #[test]
    fn nothing_to_write_from_is_said() {
        let fail = |task: Value| run(&task).expect_err("nothing to write from");
        let error = fail(json!({ "input": { "topic": "x" }, "results": { "other": {} } }));
        assert_eq!(
            error.message,
            "there is nothing to write from: the results are \"other\", and none of them has extracts; \
             writing needs the output of a research stage"
        );
        let error = fail(
            json!({ "input": { "topic": "x" }, "results": { "r": { "extracts": [extract(1, "a", "", "no prose")] } } }),
        );
        assert!(error.message.starts_with("none of the 1 extracts has a complete English sentence"), "{error}");
        let error = fail(json!({ "results": { "r": { "extracts": bees() } } }));
        assert!(error.message.starts_with("input.topic is missing"), "{error}");
        assert!(!error.retryable);
    }

    #[test]
    fn headings_are_made_fit() {
        assert_eq!(heading_of("3.1 Rates (256 bytes) (R1)").as_deref(), Some("Rates"));
        assert_eq!(heading_of("the `log`:").as_deref(), Some("The `log`"));
        assert_eq!(heading_of("Overview"), None);
        assert_eq!(heading_of("4."), None);
        assert_eq!(heading_of("Clients (v2) — traps").as_deref(), Some("Clients — traps"));
        assert_eq!(heading_of(")odd("), None);
    }

    proptest! {
        #[test]
        fn every_citation_resolves(
            extracts in prop::collection::vec((0..4_usize, prop::collection::vec((0..8_usize, 0..8_usize, 0..4_usize), 0..7)), 1..12),
            length in 50..700_usize,
            section in prop::option::of(Just("Results")),
        ) {
            const NOUNS: [&str; 8] = ["bees", "leases", "trees", "agents", "rivers", "logs", "hives", "clocks"];
            const ENDS: [&str; 4] = ["in the long winter", "[3] of the valley", "`a -- b` for ever", "and they never return"];
            let extracts: Vec<Value> = (1..)
                .zip(extracts)
                .map(|(id, (file, sentences))| {
                    let text: String = sentences
                        .into_iter()
                        .map(|(a, b, end)| format!("The {} are made of {} {}. ", NOUNS[a], NOUNS[b], ENDS[end]))
                        .collect();
                    extract(id, &format!("{file}.md"), NOUNS[file], text.trim())
                })
                .collect();
            let task = json!({
                "input": { "topic": "bees and agents", "length": length },
                "results": { "research": { "extracts": extracts } },
                "params": { "section": section, "focus": section.map(|_| "rivers") },
            });
            let Ok(written) = run(&task) else { return Ok(()) };
            let document = Document::parse(&written.document);
            let cited = document.cited();
            let counted: Vec<u32> = (1..).take(cited.len()).collect();
            prop_assert_eq!(&cited, &counted);
            prop_assert_eq!(document.sources.into_keys().collect::<Vec<_>>(), cited);
            for sentence in &written.sentences {
                prop_assert_eq!(sentence.citations.len(), 1);
                let extract = written.extracts.iter().find(|one| one.id == sentence.citations[0]);
                prop_assert!(extract.is_some_and(|one| one.text.contains(&sentence.text)), "{:?}", sentence);
            }
            let mut texts: Vec<_> = written.sentences.iter().map(|one| one.text.as_str()).collect();
            texts.sort_unstable();
            let all = texts.len();
            texts.dedup();
            prop_assert_eq!(texts.len(), all);
        }
    }
}
