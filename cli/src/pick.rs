//! Which run is meant: a whole id, the beginning or the end of one, or `last`.

use baton_client::Client;
use baton_protocol::RunId;
use baton_protocol::request::ListRuns;

use crate::failure::{Exit, Failure};

/// Among how many runs, the newest ones, a part of an id is looked for.
const RECENT: u32 = 1000;

/// The run that is meant. A whole id is taken as it is: the service says whether there is such a run.
pub(crate) async fn run(client: &Client, text: &str) -> anyhow::Result<RunId> {
    if let Ok(run) = text.parse() {
        return Ok(run);
    }
    let limit = Some(if text == "last" { 1 } else { RECENT });
    let list = client.list_runs(&ListRuns { limit, ..ListRuns::default() }).await?;
    let runs: Vec<RunId> = list.runs.iter().map(|run| run.run).collect();
    Ok(choose(text, &runs)?)
}

/// Chooses among runs, the newest first.
fn choose(text: &str, runs: &[RunId]) -> Result<RunId, Failure> {
    let hint = "`baton runs` shows the runs; `last` is the newest one";
    if text == "last" {
        let none = || Failure::new(Exit::Rejected, "there is no run yet").hint("`baton run WORKFLOW` starts one");
        return runs.first().copied().ok_or_else(none);
    }
    let part = text.to_ascii_lowercase().replace('-', "");
    if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(
            Failure::usage(format!("{text:?} is not a run: it must be an id, a part of one, or `last`")).hint(hint)
        );
    }
    let is_meant = |run: &&RunId| {
        let id = run.as_uuid().simple().to_string();
        id.starts_with(&part) || id.ends_with(&part)
    };
    let meant: Vec<RunId> = runs.iter().filter(is_meant).copied().collect();
    match meant.as_slice() {
        [run] => Ok(*run),
        [] => {
            let message = format!("no run's id begins or ends with {text:?}, among the {} newest", runs.len());
            Err(Failure::new(Exit::Rejected, message).hint(hint))
        }
        several => {
            let mut message = format!("{} runs' ids begin or end with {text:?}:", several.len());
            several.iter().take(5).for_each(|run| message.push_str(&format!(" {run}")));
            if several.len() > 5 {
                message.push_str(" …");
            }
            Err(Failure::usage(message).hint("give more of it; the last eight characters usually do"))
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const RUNS: [&str; 3] = [
        "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b",
        "0199a1b2-aaaa-7e5f-8a9b-0c1d2e3f4a5c",
        "01980000-0000-7000-8000-00000000beef",
    ];

    fn check(text: &str, expected: &Expect) {
        let runs: Vec<RunId> = RUNS.iter().map(|run| run.parse().unwrap()).collect();
        expected.assert_eq(&match choose(text, &runs) {
            Ok(run) => run.to_string(),
            Err(failure) => failure.to_string(),
        });
    }

    #[test]
    fn the_beginning_and_the_end_of_an_id_will_do() {
        check("last", &expect!["0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"]);
        check("0199a1b2-c", &expect!["0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"]);
        check("BEEF", &expect!["01980000-0000-7000-8000-00000000beef"]);
        check("4a5c", &expect!["0199a1b2-aaaa-7e5f-8a9b-0c1d2e3f4a5c"]);
        check("0199a1b2aaaa", &expect!["0199a1b2-aaaa-7e5f-8a9b-0c1d2e3f4a5c"]);
    }

    #[test]
    fn what_means_no_run_or_several_is_said() {
        check(
            "0199",
            &expect![[
                r#"2 runs' ids begin or end with "0199": 0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b 0199a1b2-aaaa-7e5f-8a9b-0c1d2e3f4a5c"#
            ]],
        );
        check("c3d4", &expect![[r#"no run's id begins or ends with "c3d4", among the 3 newest"#]]);
        check("latest", &expect![[r#""latest" is not a run: it must be an id, a part of one, or `last`"#]]);
        check("", &expect![[r#""" is not a run: it must be an id, a part of one, or `last`"#]]);
        assert_eq!(choose("last", &[]).unwrap_err().to_string(), "there is no run yet");
    }
}
