//! The rules of the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Which of Baton's crates each crate may use. Dependencies point one way: the words know nobody, machines know the words,
/// the shell knows machines, and only the command line knows everybody.
#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("baton-protocol", [].as_slice()),
        ("baton-machine", &["baton-protocol"]),
        ("baton-client", &["baton-protocol"]),
        ("baton-telemetry", &["baton-protocol"]),
        ("baton-shell", &["baton-protocol", "baton-machine", "baton-client", "baton-telemetry"]),
        ("baton-post", &["baton-protocol", "baton-client", "baton-telemetry"]),
        ("baton-wfformat", &[]),
        ("baton-broker", &[]),
        ("baton-testkit", &["baton-broker"]),
        ("baton-workflow-manager", &["baton-protocol", "baton-machine"]),
        ("baton-resource-manager", &["baton-protocol", "baton-machine"]),
        ("baton-optimizer", &["baton-protocol", "baton-machine"]),
        (
            "baton-sim",
            &["baton-protocol", "baton-machine", "baton-workflow-manager", "baton-resource-manager", "baton-optimizer"],
        ),
        (
            "baton-micro",
            &["baton-protocol", "baton-machine", "baton-workflow-manager", "baton-resource-manager", "baton-optimizer"],
        ),
        ("baton-simulate", &["baton-protocol", "baton-machine", "baton-optimizer", "baton-wfformat"]),
        ("baton-gateway", &["baton-protocol", "baton-client", "baton-telemetry", "baton-shell"]),
        ("baton-sdk", &["baton-protocol", "baton-client"]),
        ("baton-stock", &["baton-protocol", "baton-client", "baton-sdk"]),
        ("baton-bench", &["baton-protocol", "baton-client", "baton-broker", "baton-sdk", "baton-simulate"]),
        ("baton", &["*"]),
        ("baton-tests", &[]),
        ("baton-faults", &["baton-protocol", "baton-client", "baton-sdk", "baton-testkit"]),
    ]);
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .other_options(vec!["--offline".to_owned()])
        .exec()
        .unwrap();
    for package in &metadata.packages {
        let Some(allowed) = allowed.get(package.name.as_str()) else {
            panic!("{} is not in the table of allowed dependencies", package.name)
        };
        for dependency in &package.dependencies {
            let ours =
                dependency.kind == cargo_metadata::DependencyKind::Normal && dependency.name.starts_with("baton");
            assert!(
                !ours || allowed.contains(&dependency.name.as_str()) || allowed.contains(&"*"),
                "{} may not depend on {}",
                package.name,
                dependency.name
            );
        }
    }
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

/// A machine has no I/O, no clock, no randomness, no async, no logging, and no order that a hash decides.
#[test]
fn machines_are_pure() {
    let banned = [
        ("async_nats", "a machine emits records and effects; the shell knows NATS"),
        ("tokio", "a machine has no I/O and no async"),
        ("async fn", "a machine has no async"),
        ("SystemTime", "the time is `turn.now()`"),
        ("Instant::now", "the time is `turn.now()`"),
        ("std::fs", "a machine has no I/O"),
        ("std::env", "settings come in as the machine's Config"),
        ("std::thread", "a machine has no threads"),
        ("println!", "a machine does not log"),
        ("tracing::", "a machine does not log"),
        ("HashMap", "its order differs from run to run: use BTreeMap"),
        ("HashSet", "its order differs from run to run: use BTreeSet"),
        ("rand::", "a machine has no randomness"),
        ("Uuid::new", "a machine has no randomness"),
    ];
    for crate_folder in [
        "services/workflow-manager/src",
        "services/resource-manager/src",
        "services/optimizer/src",
        "shared/machine/src",
    ] {
        for (path, text) in sources(crate_folder) {
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for (word, why) in banned {
                    assert!(!code.contains(word), "{}:{}: {word}: {why}", path.display(), number + 1);
                }
            }
        }
    }
}

/// Subjects are built in one module.
#[test]
fn subjects_are_built_in_one_module() {
    for folder in ["services", "shared", "agents", "cli"] {
        for (path, text) in sources(folder) {
            let text_path = path.to_string_lossy();
            let exempt =
                text_path.contains("/tests/") || text_path.contains("tests.rs") || text_path.contains("/protocol/");
            if exempt || text_path.contains("/examples/") {
                continue;
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code.lines() {
                let code = line.split("//").next().unwrap_or_default();
                assert!(
                    !code.contains("format!(\"baton.")
                        && !code.contains("\"baton.req.")
                        && !code.contains("\"baton.log."),
                    "{}: a subject is built here, it belongs into protocol::subject: {line}",
                    path.display()
                );
            }
        }
    }
}

/// Every feature that the changelog claims has a test that names its id.
#[test]
fn every_feature_that_is_claimed_has_a_test_that_names_it() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let claimed: BTreeSet<String> = changelog
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| {
            let (letter, number) = word.split_at(word.len().min(1));
            matches!(letter, "W" | "R" | "O" | "M" | "A" | "G" | "C")
                && !number.is_empty()
                && number.bytes().all(|b| b.is_ascii_digit())
        })
        .map(str::to_ascii_lowercase)
        .collect();
    assert!(claimed.len() > 10, "the changelog names features: {claimed:?}");
    let tests: String = ["services", "shared", "agents", "cli", "tests"]
        .into_iter()
        .flat_map(sources)
        .flat_map(|(_, text)| text.lines().filter(|line| line.contains("fn ")).map(str::to_owned).collect::<Vec<_>>())
        .collect::<Vec<_>>()
        .join("\n");
    let missing: Vec<_> = claimed
        .iter()
        .filter(|id| !tests.contains(&format!("fn {id}_")) && !tests.contains(&format!("_{id}_")))
        .collect();
    assert!(missing.is_empty(), "no test names {missing:?}");
}

/// The files under `deploy/` fit together, and the dashboard names metrics that exist.
#[test]
fn c3_the_compose_stack_is_valid() {
    let output = Command::new("python3").arg(root().join("deploy/validate.py")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}
