//! The short form: the fastest faults, each once, under a light load.

use baton_faults::faults::{Options, run};
use baton_faults::kind::Kind;
use baton_faults::table;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_nothing_counts_twice() {
    let only = vec![
        Kind::KillWorkflowManager,
        Kind::KillResourceManager,
        Kind::KillBoth,
        Kind::KillAgent,
        Kind::ReplaceAgent,
        Kind::KillBroker,
        Kind::PauseWorkflowManager,
        Kind::LinkCut,
        Kind::FullStore,
        Kind::BadGarbage,
        Kind::BadReplayed,
    ];
    let options = Options {
        minutes: 10.0,
        count: Some(only.len()),
        seed: None,
        runs: 60,
        in_flight: 6,
        agents: 4,
        cluster: false,
        only,
        except: Vec::new(),
        // The least is what services reserve for what they set aside, 64 MiB.
        store_mib: 192,
        keep: false,
        json: false,
        runner: Some(env!("CARGO_BIN_EXE_baton-faults").into()),
    };
    let outcome = run(options).await.unwrap();
    let text = table::of(&outcome);
    eprintln!("{text}");
    assert!(outcome.is_good(), "{text}");
}
