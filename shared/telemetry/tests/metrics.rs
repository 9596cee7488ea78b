//! Metrics, rendered and merged, as Prometheus would read them.

use std::collections::{BTreeMap, BTreeSet};

use baton_telemetry::metrics::{DEFINITIONS, Kind, Metrics, merge};
use proptest::prelude::*;

/// Reads an exposition as strictly as Prometheus' own linter would: one TYPE a family, its samples together and under
/// it, no series twice, every histogram complete. Gives the samples.
fn read(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let mut helped = BTreeSet::new();
    let mut current = (String::new(), String::new());
    assert!(text.is_empty() || text.ends_with('\n'), "the last line does not end");
    for line in text.lines() {
        let error = |what: &str| Err(format!("{what}: {line}"));
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, _] => {
                if !helped.insert(name.to_owned()) || families.contains(name) {
                    return error("HELP again, or after its family");
                }
            }
            ["#", "TYPE", name, kind] => {
                if !families.insert(name.to_owned()) {
                    return error("family twice");
                }
                current = (name.to_owned(), kind.to_owned());
            }
            _ => {
                let Some((series, value)) = line.rsplit_once(' ') else { return error("no value") };
                let name = series.split('{').next().unwrap_or_default();
                let suffix = name.strip_prefix(current.0.as_str());
                let fits = match current.1.as_str() {
                    "histogram" => matches!(suffix, Some("_bucket" | "_sum" | "_count")),
                    "counter" | "gauge" => suffix == Some(""),
                    _ => false,
                };
                if value.parse::<f64>().is_err() {
                    return error("not a value");
                }
                if !fits {
                    return error("sample outside its family");
                }
                if samples.insert(series.to_owned(), value.to_owned()).is_some() {
                    return error("series twice");
                }
            }
        }
    }
    Ok(samples)
}

#[test]
fn every_metric_of_the_table_can_be_used_and_is_rendered() {
    let metrics = Metrics::new("optimizer", "o\"1\\");
    let mut names = BTreeSet::new();
    for definition in DEFINITIONS {
        assert!(names.insert(definition.name), "{} is there twice", definition.name);
        let labels = vec!["a \"quoted\"\nlabel\\"; definition.labels.len()];
        match definition.kind {
            Kind::Counter => metrics.add(definition.name, &labels, 2.0),
            Kind::Gauge => metrics.set(definition.name, &labels, 2.0),
            Kind::Histogram(bounds) => {
                assert!(bounds.is_sorted(), "{}", definition.name);
                metrics.observe(definition.name, &labels, 2.0);
            }
        }
        assert_eq!(definition.name.ends_with("_total"), definition.kind == Kind::Counter, "{}", definition.name);
    }
    let text = metrics.render();
    let samples = read(&text).unwrap();
    for definition in DEFINITIONS {
        assert!(text.contains(&format!("# TYPE {} ", definition.name)), "{} is missing", definition.name);
    }
    assert_eq!(samples[r#"baton_run_queue{service="optimizer",instance="o\"1\\"}"#], "2");
    assert_eq!(
        samples[r#"baton_request_seconds_bucket{service="optimizer",instance="o\"1\\",endpoint="a \"quoted\"\nlabel\\",le="2.5"}"#],
        "1"
    );
}

#[test]
fn rendered_text_is_this() {
    let metrics = Metrics::new("workflow-manager", "w1");
    metrics.count("workflows_executed_total", &["article", "succeeded"]);
    metrics.add("workflows_executed_total", &["article", "failed"], 2.0);
    metrics.set("agent_utilization_ratio", &["ann"], 0.5);
    metrics.set("agent_utilization_ratio", &["bob"], 1.0);
    metrics.remove("agent_utilization_ratio", &["bob"]);
    metrics.remove("agent_utilization_ratio", &["nobody"]);
    let text = metrics.render();
    let of = |start: &str| text.lines().filter(|line| line.contains(start)).collect::<Vec<_>>();
    assert_eq!(
        of("workflows_executed_total"),
        [
            "# HELP workflows_executed_total Runs that ended, by workflow and status.",
            "# TYPE workflows_executed_total counter",
            r#"workflows_executed_total{service="workflow-manager",instance="w1",status="failed",workflow="article"} 2"#,
            r#"workflows_executed_total{service="workflow-manager",instance="w1",status="succeeded",workflow="article"} 1"#,
        ]
    );
    assert_eq!(
        of("agent_utilization_ratio{"),
        [r#"agent_utilization_ratio{service="workflow-manager",instance="w1",agent="ann"} 0.5"#]
    );
    // What has no labels begins at zero.
    assert_eq!(of("messages_sent_total{"), [r#"messages_sent_total{service="workflow-manager",instance="w1"} 0"#]);
    metrics.clear("agent_utilization_ratio");
    assert!(!metrics.render().contains("agent_utilization_ratio"));
}

#[test]
fn clocks_that_differ_and_amounts_that_are_none_do_no_harm() {
    let metrics = Metrics::new("optimizer", "o1");
    metrics.observe("agent_message_latency_seconds", &["direct"], -3.0);
    let samples = read(&metrics.render()).unwrap();
    let sum = r#"agent_message_latency_seconds_sum{service="optimizer",instance="o1",type="direct"}"#;
    assert_eq!(samples[sum], "0");
}

#[cfg(debug_assertions)]
mod mistakes {
    use super::*;

    #[test]
    #[should_panic(expected = "there is no metric \"nonsense\"")]
    fn an_unknown_name_is_one() {
        Metrics::new("optimizer", "o1").count("nonsense", &[]);
    }

    #[test]
    #[should_panic(expected = "other labels")]
    fn a_wrong_number_of_labels_is_one() {
        Metrics::new("optimizer", "o1").count("baton_requests_total", &["one"]);
    }

    #[test]
    #[should_panic(expected = "can not be set")]
    fn setting_a_counter_is_one() {
        Metrics::new("optimizer", "o1").set("baton_commits_total", &[], 1.0);
    }
}

#[test]
fn merging_keeps_each_family_once_and_each_series_once() {
    let render = |service, instance, count| {
        let metrics = Metrics::new(service, instance);
        metrics.add("baton_commits_total", &[], count);
        metrics.observe("baton_commit_records", &[], count);
        metrics.render()
    };
    let (one, two) = (render("optimizer", "o1", 3.0), render("workflow-manager", "w1", 5.0));
    let merged = merge(vec![one.clone(), two.clone(), one.clone()]);
    let samples = read(&merged).unwrap();
    let both: BTreeMap<_, _> = read(&one).unwrap().into_iter().chain(read(&two).unwrap()).collect();
    assert_eq!(samples, both);
    assert_eq!(merge(vec![merged.clone()]), merged);
    assert_eq!(merge(Vec::<String>::new()), "");
}

#[test]
fn merging_leaves_out_what_can_not_be_read_or_contradicts() {
    let first = "# HELP a_total What it is.\n# TYPE a_total counter\na_total{x=\"1\"} 1\n";
    let second = "# TYPE a_total gauge\na_total{x=\"2\"} 2\nnonsense\n# TYPE b gauge\nb 1 1700000000000\nb{x=} 1\n\
                  c 1\n# TYPE d histogram\nd_bucket{le=\"+Inf\"} 1\nd_sum NaN\nd_count 1\nd 1\nb 2\n";
    assert_eq!(
        merge(vec![first.to_owned(), second.to_owned()]),
        "# HELP a_total What it is.\n# TYPE a_total counter\na_total{x=\"1\"} 1\n# TYPE b gauge\nb 1 1700000000000\n\
         # TYPE d histogram\nd_bucket{le=\"+Inf\"} 1\nd_sum NaN\nd_count 1\n"
    );
}

/// What an instance may have counted: which metric, with which label, how much.
fn counted() -> impl Strategy<Value = Vec<(usize, String, f64)>> {
    prop::collection::vec((0..DEFINITIONS.len(), "[a-z\"\\\\\n{}, é]{0,4}", 0.0..100.0), 0..20)
}

fn rendered(service: &str, instance: &str, counted: &[(usize, String, f64)]) -> String {
    let metrics = Metrics::new(service, instance);
    for (index, label, amount) in counted {
        let definition = DEFINITIONS[*index];
        let labels = vec![label.as_str(); definition.labels.len()];
        match definition.kind {
            Kind::Histogram(_) => metrics.observe(definition.name, &labels, *amount),
            _ => metrics.add(definition.name, &labels, *amount),
        }
    }
    metrics.render()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_text_parses_and_loses_nothing(instances in prop::collection::vec(counted(), 0..5)) {
        let texts: Vec<String> = instances
            .iter()
            .enumerate()
            .map(|(n, counted)| rendered(["optimizer", "gateway"][n % 2], &format!("i{n}"), counted))
            .collect();
        let mut expected = BTreeMap::new();
        for text in &texts {
            expected.extend(read(text).map_err(TestCaseError::fail)?);
        }
        let merged = merge(texts);
        prop_assert_eq!(read(&merged).map_err(TestCaseError::fail)?, expected);
        prop_assert_eq!(merge(vec![merged.clone()]), merged);
    }

    #[test]
    fn merged_text_parses_whatever_is_merged(
        lines in prop::collection::vec(
            prop_oneof![
                "# (TYPE|HELP) [ab](_count|_sum|_bucket)? (counter|gauge|histogram|x)",
                "[ab](_count|_sum|_bucket)?(\\{(x|le)=\"[01\\\\\"]\"\\})? [0-9x]",
                "\\PC{0,12}",
            ],
            0..20,
        ),
        cut in 0usize..20,
    ) {
        let (one, two) = lines.split_at(cut.min(lines.len()));
        let merged = merge(vec![one.join("\n"), two.join("\n"), one.join("\r\n")]);
        read(&merged).map_err(TestCaseError::fail)?;
    }
}
