//! The built binary, without a server: what is wrong is said, with the exit code that `--help` promises.

use std::fs;
use std::io::{Read, pipe};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use assert_cmd::assert::OutputAssertExt;

/// The binary, away from the user's own settings and contexts.
fn baton(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.args(arguments).env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR")).env("TERM", "dumb");
    command.current_dir(env!("CARGO_TARGET_TMPDIR")).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    baton(arguments).output().unwrap()
}

#[track_caller]
fn check(arguments: &[&str], code: i32, says: &[&str]) {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in says {
        assert!(stderr.contains(part), "{arguments:?} does not say {part:?}:\n{stderr}");
    }
    output.assert().code(code);
}

/// Where nobody listens.
fn nowhere() -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("nats://127.0.0.1:{port}")
}

#[test]
fn what_is_not_understood_is_a_usage_error() {
    check(&[], 2, &["Usage: baton"]);
    check(&["dance"], 2, &["'dance'"]);
    check(&["run"], 2, &["<WORKFLOW>"]);
    check(&["run", "Article"], 2, &["\"Article\"", "lower-case"]);
    check(&["run", "article", "--input", "topic"], 2, &["KEY=VALUE"]);
    check(&["run", "article", "-i", "a=1", "-i", "a=2"], 2, &["\"a\" is given twice"]);
    check(&["run", "article", "--tenant", "a", "--meta", "tenant=b"], 2, &["\"tenant\" is given twice"]);
    check(&["run", "article", "--input-file", "nowhere.json"], 2, &["nowhere.json"]);
    check(&["runs", "--status", "happy"], 2, &["running, succeeded"]);
    check(&["runs", "--limit", "0"], 2, &["1..=1000"]);
    check(&["runs", "--since", "yesterday"], 2, &["30m", "2026-11-20T10:00:00Z"]);
    check(&["runs", "--meta", "customer"], 2, &["KEY=VALUE"]);
    check(&["cancel"], 2, &["<RUN"]);
    check(&["rerun", "last"], 2, &["--from"]);
    check(&["workflow", "import", "nowhere.json"], 2, &["nowhere.json"]);
    check(&["workflow", "import", "x.json", "--scale", "0"], 2, &["more than 0"]);
    check(&["workflow", "graph", "./nowhere.yaml"], 2, &["nowhere.yaml"]);
    check(&["agent", "sleep"], 2, &["<CAPABILITIES>"]);
    check(&["strategy", "BEST"], 2, &["ROUND_ROBIN, PRIORITY_BASED, LOAD_BALANCED"]);
    check(&["service", "janitor"], 2, &["workflow-manager"]);
    check(&["agent", "stock"], 2, &["<NAMES>"]);
    check(&["agent", "stock", "research", "--sources", "nowhere"], 2, &["nowhere"]);
    check(&["up", "--durability", "none"], 2, &["`process` and `power`"]);
    check(&["runs", "--server", "http://x"], 2, &["nats://127.0.0.1:4222"]);
    check(&["runs", "--context", "nowhere"], 2, &["no NATS context \"nowhere\""]);
}

#[test]
fn settings_that_are_wrong_are_a_usage_error() {
    check(&["runs", "--config", "nowhere.toml"], 2, &["nowhere.toml"]);
    let output = baton(&["runs"]).env("BATON_AGENTS__LEASE_MS", "1").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("agents.lease_ms is 1"));
    output.assert().code(2);
}

#[test]
fn a_broker_that_is_not_there_is_said_with_what_to_do() {
    let server = nowhere();
    check(&["runs", "--server", &server], 4, &["error: no NATS server can be reached", &server, "baton up"]);
    check(&["healthcheck", "optimizer", "--server", &server], 4, &[&server]);
    check(&["service", "optimizer", "--server", &server], 4, &[&server]);
    let output = run(&["doctor", "--server", &server]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("WRONG  broker"));
    output.assert().code(1);
    let output = run(&["doctor", "--json", "--server", &server]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
}

#[test]
fn a_definition_is_checked_without_a_server() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::write(folder.join("good.yaml"), "name: w\nstages:\n  - name: a\n    agent_type: x\n").unwrap();
    fs::write(folder.join("bad.yaml"), "name: w\nstages:\n  - name: a\n    agent_typ: x\n").unwrap();
    run(&["workflow", "validate", "good.yaml"]).assert().code(0).stdout("workflow w is valid: 1 stage (a)\n");
    check(&["workflow", "validate", "bad.yaml"], 2, &["bad.yaml", "agent_typ", "line 4"]);
    check(&["workflow", "register", "bad.yaml"], 2, &["bad.yaml", "agent_typ", "line 4"]);
    let mut command = baton(&["workflow", "validate", "-", "--json"]);
    let output = command.stdin(fs::File::open(folder.join("good.yaml")).unwrap()).output().unwrap();
    let definition: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(definition["stages"][0]["agent_type"], "x");
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("healthcheck") && text.contains("input-file"), "{shell}");
        output.assert().code(0);
    }
}

#[test]
fn help_tells_the_exit_codes_and_every_command_has_one() {
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for part in ["Exit codes:", "3  Baton already runs", "doctor", "BATON_SERVER", "baton demo"] {
        assert!(help.contains(part), "{part} is missing in:\n{help}");
    }
    assert!(!help.contains("--password"), "{help}");
    assert_eq!(
        String::from_utf8(run(&["--version"]).stdout).unwrap(),
        concat!("baton ", env!("CARGO_PKG_VERSION"), "\n")
    );
    let commands = help.split("Commands:").nth(1).unwrap().lines().skip(1).take_while(|line| !line.is_empty());
    let names = commands.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 15, "{names:?}");
    for name in names {
        run(&[name, "--help"]).assert().code(0);
    }
}

/// Whoever reads may go at any time: `baton completions bash | head -1`.
#[test]
fn a_closed_pipe_is_no_failure() {
    let good = "name: w\nstages:\n  - name: a\n    agent_type: x\n";
    fs::write(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("piped.yaml"), good).unwrap();
    for arguments in [
        ["completions", "bash"].as_slice(),
        &["workflow", "validate", "piped.yaml"],
        &["workflow", "validate", "piped.yaml", "--json"],
        &["--help"],
    ] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (mut errors, stderr) = pipe().unwrap();
        let mut command = baton(arguments);
        let mut child = command.stdout(writer).stderr(stderr).spawn().unwrap();
        drop(command);
        let mut said = String::new();
        errors.read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn w1_editors_are_given_a_schema_and_people_the_place() {
    let output = run(&["workflow", "schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let stage = &schema["$defs"]["StageDefinition"]["properties"];
    for key in ["when", "join", "on_failure", "input", "retry"] {
        assert!(stage[key].is_object(), "{key}: {schema}");
    }
    assert_eq!(schema["additionalProperties"], false, "unknown keys are errors in editors, too");
    let bad = concat!(env!("CARGO_MANIFEST_DIR"), "/../services/workflow-manager/tests/bad/dependency-misspelt.yaml");
    check(
        &["workflow", "validate", bad],
        2,
        &["dependency-misspelt.yaml: stage writing depends on reserach", "did you mean research? at line 8, column 18"],
    );
}
