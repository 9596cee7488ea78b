//! What every command needs: a fleet, clients with a notebook, and an end at which the history is checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use baton_client::Client;
use baton_protocol::record::AnyCommit;
use baton_protocol::request::{ListAgents, ListRuns};
use baton_protocol::run::RunStatus;
use futures::StreamExt;
use tokio::time::{Instant, sleep};

use crate::check::{History, Verdict, check};
use crate::fleet::{Fleet, FleetOptions, PATIENCE};
use crate::load::{self, Clients, Load};
use crate::notes::{Notebook, read_reports};

/// A fleet under the eyes of clients.
pub(crate) struct World {
    pub(crate) fleet: Fleet,
    pub(crate) clients: Clients,
    /// What is not as it should be, beside what the checker finds.
    pub(crate) troubles: Vec<String>,
    notes: Notebook,
    folder: PathBuf,
}

/// What came of it.
pub(crate) struct Ended {
    pub(crate) verdict: Verdict,
    pub(crate) troubles: Vec<String>,
    /// Where everything is, if there is anything to look at.
    pub(crate) folder: Option<PathBuf>,
}

/// The binary that has the command `agent`.
pub(crate) fn runner(given: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    Ok(match given {
        Some(runner) => runner.clone(),
        None => std::env::current_exe()?,
    })
}

impl World {
    pub(crate) async fn start(options: FleetOptions) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("baton-faults-").tempdir()?.keep();
        eprintln!("seed {}; files in {}", options.seed, folder.display());
        let seed = options.seed;
        let fleet = Fleet::start(options, &folder).await?;
        let notes = Notebook::create(&folder.join("clients.notes.jsonl"))?;
        load::register(&fleet.client).await?;
        let clients = Clients::new(&fleet.client, &fleet.gateways, &notes, seed).await?;
        Ok(Self { fleet, clients, troubles: Vec::new(), notes, folder })
    }

    /// Ends the load, and waits until everything is at rest: then it must be as if nothing had happened.
    pub(crate) async fn calm(&mut self, load: Load) -> anyhow::Result<()> {
        if !load.stop(PATIENCE + PATIENCE).await? {
            self.troubles.push(format!("runs that never end: {:?}", self.clients.open()));
        }
        if let Err(error) = self.fleet.whole().await {
            self.troubles.push(format!("{error:#}"));
        }
        Ok(())
    }

    /// Ends everything, and checks what happened. Notes and logs are kept, unless they are not wanted and all is well.
    pub(crate) async fn end(mut self, unwanted: bool) -> anyhow::Result<Ended> {
        let client = self.fleet.client.clone();
        if let Err(open) = at_rest(&client).await {
            self.troubles.push(format!("something is open when all is over: {open}"));
        }
        self.troubles.extend(self.fleet.ended().iter().cloned());
        let (commits, trouble) = read_log(&client).await;
        self.troubles.extend(trouble);
        let tails = self.fleet.log_tails();
        self.fleet.keep_broker_log();
        self.fleet.stop().await;
        let history = History { commits, clients: self.notes.notes(), agents: read_reports(&self.folder)? };
        let verdict = check(&history);
        if unwanted && verdict.findings.is_empty() && self.troubles.is_empty() {
            let _ = std::fs::remove_dir_all(&self.folder);
            return Ok(Ended { verdict, troubles: self.troubles, folder: None });
        }
        if !verdict.findings.is_empty() || !self.troubles.is_empty() {
            eprintln!("{tails}\n");
        }
        keep_log(&history, &self.folder)?;
        Ok(Ended { verdict, troubles: self.troubles, folder: Some(self.folder) })
    }
}

/// Waits until no run is under way, nothing waits for an agent, and no agent holds anything.
async fn at_rest(client: &Client) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let open = open(client).await;
        match open {
            None => return Ok(()),
            Some(open) if Instant::now() > end => return Err(open),
            Some(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn open(client: &Client) -> Option<String> {
    let runs = match client.list_runs(&ListRuns { limit: Some(1), ..ListRuns::default() }).await {
        Ok(runs) => runs.counts.get(&RunStatus::Running).copied().unwrap_or_default(),
        Err(error) => return Some(error.to_string()),
    };
    let queued = match client.get_placement().await {
        Ok(placement) => placement.queued,
        Err(error) => return Some(error.to_string()),
    };
    let held: BTreeMap<_, _> = match client.list_agents(&ListAgents { gone: true, ..ListAgents::default() }).await {
        Ok(list) => list.agents.into_iter().filter(|a| !a.leases.is_empty()).map(|a| (a.agent, a.leases)).collect(),
        Err(error) => return Some(error.to_string()),
    };
    let nothing = runs == 0 && queued == 0 && held.is_empty();
    (!nothing).then(|| format!("{runs} runs, {queued} tasks in the queue, leases {held:?}"))
}

/// The whole log, and what can not be read of it.
async fn read_log(client: &Client) -> (Vec<(u64, AnyCommit)>, Option<String>) {
    let ends = match client.log_ends().await {
        Ok(ends) => ends,
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let mut commits = Vec::new();
    let mut log = client.log(1, Some(ends.last));
    while let Some(read) = log.next().await {
        match read {
            Ok(read) => commits.push(read),
            Err(error) => return (commits, Some(error.to_string())),
        }
    }
    if ends.first > 1 {
        return (commits, Some(format!("the log was trimmed: it begins with message {}", ends.first)));
    }
    let short = commits.last().is_none_or(|(seq, _)| *seq != ends.last);
    let trouble =
        short.then(|| format!("the log ends at {}, and was read up to {:?}", ends.last, commits.last().map(|c| c.0)));
    (commits, trouble)
}

/// The log as text, for people.
fn keep_log(history: &History, folder: &Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = std::io::BufWriter::new(std::fs::File::create(folder.join("log.jsonl"))?);
    for (seq, commit) in &history.commits {
        for event in commit.events(*seq)? {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
    }
    file.flush()?;
    Ok(())
}
