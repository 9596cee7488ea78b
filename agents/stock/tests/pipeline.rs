//! The two predefined workflows, stage after stage, over a small folder of notes about bees.

use std::path::Path;
use std::time::{Duration, Instant};

use baton_stock::document::Document;
use baton_stock::roles::{Context, Role, RoleError};
use expect_test::expect;
use serde_json::{Map, Value, json};

const TOPIC: &str = "how honeybee colonies survive the winter";

/// A run of a workflow: what each stage gave so far.
struct Run {
    input: Value,
    metadata: Value,
    results: Map<String, Value>,
}

impl Run {
    fn new(metadata: Value) -> Self {
        let input = json!({ "topic": TOPIC, "sources": "fixtures", "length": 400 });
        Self { input, metadata, results: Map::new() }
    }

    #[expect(clippy::needless_pass_by_value, reason = "a json! literal reads best as it is")]
    fn stage(&mut self, name: &str, role: Role, params: Value) -> Result<&Value, RoleError> {
        let task = json!({ "input": self.input, "results": self.results, "params": params, "metadata": self.metadata });
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let output = role.run(&task, &Context { root: Some(root), ..Context::default() })?;
        self.results.insert(name.to_owned(), output);
        Ok(&self.results[name])
    }

    fn article(&mut self) -> &Value {
        for role in Role::ALL {
            self.stage(role.name(), role, json!({})).unwrap_or_else(|error| panic!("{role}: {error}"));
        }
        &self.results["verification"]
    }

    /// Up to editing.
    fn paper(&mut self) {
        let methods = json!({ "section": "Methodology", "focus": "method approach design architecture" });
        let results = json!({ "section": "Results", "focus": "result measured finding performance" });
        self.stage("literature_review", Role::Research, json!({})).expect("research");
        self.stage("methodology", Role::Writing, methods).expect("a first section");
        self.stage("results", Role::Writing, results).expect("a second section");
        self.stage("editing", Role::Editing, json!({})).expect("editing");
    }

    fn review(&mut self) -> Result<&Value, RoleError> {
        self.stage("peer_review", Role::Verification, json!({}))
    }
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|item| item.as_str().expect("a text")).collect()
}

/// Every citation resolves, every source is cited, every sentence is in the extract it cites.
fn check_citations(text: &Value) {
    let document = Document::parse(text["document"].as_str().expect("a document"));
    let cited = document.cited();
    assert_eq!(cited, (1..).take(cited.len()).collect::<Vec<u32>>(), "numbered by first appearance");
    assert_eq!(document.sources.keys().copied().collect::<Vec<_>>(), cited, "each has its source");
    for sentence in text["sentences"].as_array().expect("sentences") {
        let numbers = sentence["citations"].as_array().expect("numbers");
        assert!(!numbers.is_empty(), "{sentence}");
        for number in numbers {
            let extract = text["extracts"].as_array().expect("extracts").iter().find(|one| one["id"] == *number);
            let extract =
                extract.unwrap_or_else(|| panic!("{number} does not resolve"))["text"].as_str().expect("a text");
            let said = sentence["text"].as_str().expect("a text").replace('’', "'");
            assert!(extract.contains(&said), "{said:?} is not in {extract:?}");
        }
    }
}

#[test]
fn a3_the_article_reads_as_one() {
    let mut run = Run::new(json!({ "requires_citations": true }));
    let report = run.article().clone();
    expect![[r#"
        # How Honeybee Colonies Survive the Winter

        A colony should weigh at least thirty-five kilograms with its hive when winter begins. [1] Of thirty insulated colonies 27 survived, and of thirty bare colonies 21 survived. [2] When the air falls below about ten degrees, the workers of a colony form a dense ball around the queen, the winter cluster. [3]

        ## Results of three winters

        Sixty colonies on two apiaries were followed over three winters. [4] The method of the trial was a paired design. [5] Each insulated hive stood beside a bare hive of the same strength, and a coin decided which of the two was insulated. [5] Colonies were treated against mites in August with the same method on both apiaries. [5] The temperature of each cluster was measured every ten minutes by a sensor above the brood nest. [5]

        Insulated colonies consumed 22 percent less honey than bare colonies. [2] The result was the same in all three winters, though the winters differed. [2] The measured temperature of the core did not differ between the two groups. [2] Insulation thus saves honey and bees, but it does not make the cluster warmer. [2]

        ## Diary of the apiary

        The first frost came on the second of November. [6] All colonies had formed their clusters by the next morning. [6] The winter losses of the apiary were low this year: of forty colonies three were lost. [6] Two of them had been queenless since autumn, and one had starved with honey only two combs away from the cluster. [6]

        ## Heat and food

        The heat of the cluster comes from honey alone. [7] A colony of ten thousand bees burns between ten and fifteen kilograms of honey from October to March. [7] A cluster that is too small cannot keep its core warm, however much honey it has. [7] Beekeepers therefore unite weak colonies before the first frost. [7]

        ## Sources

        - [1] `feeding.md` — Feeding in autumn, line 3
        - [2] `trial.md` — Results of three winters, line 13
        - [3] `cluster.md` — The winter cluster, line 3
        - [4] `trial.md` — A trial of insulated hives, line 3
        - [5] `trial.md` — Study design, line 7
        - [6] `diary.txt` — Diary of the apiary, line 3
        - [7] `cluster.md` — Heat and food, line 9
    "#]].assert_eq(report["document"].as_str().expect("a document"));
    assert_eq!(report["verdict"], "pass");
    assert_eq!(report["checked"], report["supported"]);
    assert_eq!(report["notes"], json!([]));
    check_citations(&run.results["writing"]);
    check_citations(&run.results["editing"]);
    for banned in ["def stores", "| month", "kilograms\n", "](", "**", "<div", "# in"] {
        assert!(!report["document"].as_str().expect("a document").contains(banned), "{banned}");
    }
}

#[test]
fn the_paper_has_both_sections_and_passes_its_review() {
    let mut run = Run::new(json!({ "requires_citations": true }));
    run.paper();
    for stage in ["methodology", "results", "editing"] {
        check_citations(&run.results[stage]);
    }
    assert_eq!(strings(&run.results["methodology"]["sections"]), ["Abstract", "Methodology"]);
    assert_eq!(strings(&run.results["editing"]["sections"]), ["Abstract", "Methodology", "Results"]);
    assert_eq!(strings(&run.results["editing"]["includes"]), ["methodology", "results"]);
    let document = run.results["editing"]["document"].as_str().expect("a document");
    let results = &document[document.find("## Results").expect("the section")..];
    assert!(results.contains("Insulated colonies consumed 22 percent less honey than bare colonies."), "{results}");
    assert!(
        document[..document.find("## Results").expect("the section")]
            .contains("The method of the trial was a paired design.")
    );
    assert_eq!(run.review().expect("a report")["verdict"], "pass");
}

#[test]
fn a_second_section_needs_only_the_first_ones_result() {
    let mut whole = Run::new(json!({}));
    whole.paper();
    let mut run = Run::new(json!({}));
    run.results.insert("methodology".to_owned(), whole.results["methodology"].clone());
    let params = json!({ "section": "Results", "focus": "result measured finding performance" });
    let text = run.stage("results", Role::Writing, params).expect("a second section");
    assert_eq!(text["document"], whole.results["results"]["document"]);
}

#[test]
fn a_planted_sentence_fails_the_review() {
    let mut run = Run::new(json!({ "requires_citations": true }));
    run.paper();
    let planted = "Colonies that are fed with cinnamon survive every winter without any loss.";
    let document = run.results["editing"]["document"].as_str().expect("a document");
    let document =
        document.replace("## Results\n\n", &format!("## Results\n\n{planted} [1] Nobody knows where this is from. "));
    run.results["editing"]["document"] = document.into();
    let error = run.review().expect_err("it is unsupported");
    assert!(!error.retryable);
    assert!(
        error.message.starts_with(&format!("verification failed: {planted:?} is not supported by [1]: too little")),
        "{error}"
    );
    assert!(error.message.ends_with("\"Nobody knows where this is from.\" cites nothing"), "{error}");
    let report = error.output.expect("the report");
    assert_eq!(report["verdict"], "fail");
    assert_eq!(report["unsupported"][0]["sentence"], planted);
    assert_eq!(report["uncited"][0]["section"], "Results");

    run.metadata = json!({});
    let report = run.review().expect("without the requirement it only reports");
    assert_eq!((&report["verdict"], report["reasons"].as_array().map(Vec::len)), (&json!("pass"), Some(2)));
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let once = Run::new(json!({})).article().to_string();
    assert_eq!(once, Run::new(json!({})).article().to_string());
}

#[test]
fn fifty_files_take_well_under_a_second() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for copy in 0..9 {
        for entry in std::fs::read_dir(&fixtures).expect("fixtures") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("text").replace("honey", &format!("honey{copy}"));
            // A file of usual length: about ten kilobytes.
            let text: String = (0..8).map(|part| text.replace("colon", &format!("colon{part}"))).collect();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            std::fs::write(dir.path().join(format!("{copy}-{name}")), text).expect("write");
        }
    }
    let mut results = Map::new();
    let started = Instant::now();
    for role in Role::ALL {
        let task = json!({ "input": { "topic": TOPIC, "sources": dir.path(), "length": 1000 }, "results": results });
        results.insert(role.name().to_owned(), role.run(&task, &Context::default()).expect("an output"));
    }
    let took = started.elapsed();
    eprintln!("54 files took {took:?}");
    // It takes a quarter of this where nothing else runs.
    assert!(took < Duration::from_secs(4), "{took:?}");
}
