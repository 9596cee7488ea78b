//! `baton doctor`

use std::fmt::Write as _;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use async_nats::jetstream::{self};
use baton_broker::{MINIMUM_VERSION, Version};
use baton_client::{Client, now};
use baton_protocol::pressure::{PressureLevel, PressureView};
use baton_protocol::request::{AgentStatus, InstanceStatus, ListAgents, Role};
use baton_protocol::subject::{ASIDE_STREAM, MESSAGES_STREAM, Shard, log_stream};
use baton_protocol::{Millis, Service};
use clap::Args;
use serde::Serialize;

use crate::Context;
use crate::failure::Exit;
use crate::style::{Style, Tone};
use crate::text::{bytes, count};

/// How long a service may take to answer; a doctor asks no twice.
const PATIENCE: Duration = Duration::from_secs(2);
/// Clocks that differ by more than that make times in the log hard to read.
const SKEW_MS: Millis = 1000;
/// After this long an instance has told anew how far it has read.
const TOLD_AGAIN: Duration = Duration::from_millis(500);
/// A service that is further behind than so many messages does not keep up.
const LAG: u64 = 1000;

/// Looks at the broker, the log, the services, the agents and the clocks, and says what is wrong and what to do
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Write the answer as JSON
    #[arg(long)]
    json: bool,
}

/// What was looked at, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    area: String,
    verdict: Verdict,
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    /// It works, and somebody should know.
    Look,
    Wrong,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

impl Check {
    fn ok(area: impl Into<String>, found: impl Into<String>) -> Self {
        Self { area: area.into(), verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn look(area: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Look, advice: Some(advice.into()), ..Self::ok(area, found) }
    }

    fn wrong(area: impl Into<String>, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, ..Self::look(area, found, advice) }
    }
}

impl Doctor {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let checks = match context.client().await {
            Ok(client) => examine(&client.with_deadline(PATIENCE)).await,
            Err(error) => {
                let advice = "start everything with `baton up`, or say where the broker is: --server URL";
                vec![Check::wrong("broker", format!("{error:#}"), advice)]
            }
        };
        let ok = checks.iter().all(|check| check.verdict != Verdict::Wrong);
        if self.json {
            context.out.json(&Report { ok, checks })?;
        } else {
            context.out.text(&write(&checks, context.out.style))?;
        }
        Ok(if ok { Exit::Done } else { Exit::Failed })
    }
}

async fn examine(client: &Client) -> Vec<Check> {
    let mut checks = broker(client);
    let mut context = jetstream::new(client.nats().clone());
    context.set_timeout(PATIENCE);
    checks.push(jetstream(&context).await);
    let (log, end, copies) = log(&context).await;
    checks.push(durability(sync(client).await, copies));
    checks.push(log);
    let mut asked_at = now();
    let mut statuses = client.all_statuses().await;
    if statuses.as_ref().is_ok_and(|statuses| statuses.iter().any(|status| is_behind(status, end))) {
        // An instance tells how far it has read once in a while: who was just behind is asked again.
        tokio::time::sleep(TOLD_AGAIN).await;
        asked_at = now();
        statuses = client.all_statuses().await;
    }
    let answered_at = now();
    match statuses {
        Ok(statuses) => {
            checks.extend(Service::ALL.map(|service| service_check(service, &statuses, end)));
            checks.extend(clocks(&statuses, asked_at, answered_at));
        }
        Err(error) => checks.push(Check::wrong("services", error.to_string(), "see what the broker's log says")),
    }
    checks.extend(aside(&context).await);
    checks.push(messages(&context).await);
    checks.push(agents(client).await);
    // Where the resource-manager does not answer, that is said already.
    checks.extend(client.pressure().await.ok().map(|view| pressure(&view)));
    checks
}

fn is_behind(status: &InstanceStatus, end: u64) -> bool {
    status.role == Role::Leading && status.read < end
}

fn broker(client: &Client) -> Vec<Check> {
    let info = client.nats().server_info();
    let found = format!("nats-server {} at {}:{}", info.version, info.host, info.port);
    vec![match info.version.parse::<Version>() {
        Ok(version) if version < MINIMUM_VERSION => {
            Check::wrong("broker", found, format!("Baton needs nats-server {MINIMUM_VERSION} or newer: upgrade it"))
        }
        _ => Check::ok("broker", found),
    }]
}

async fn jetstream(context: &jetstream::Context) -> Check {
    match context.query_account().await {
        Ok(account) => {
            let limit = account.limits.max_storage.unwrap_or(-1);
            let used = account.storage;
            let found = match u64::try_from(limit) {
                Ok(limit) => format!("on; {} of {} used", bytes(used), bytes(limit)),
                Err(_) => format!("on; {} used", bytes(used)),
            };
            match u64::try_from(limit) {
                // A full store refuses: nothing is lost, but nothing goes on either.
                Ok(limit) if used > limit / 10 * 9 => {
                    Check::wrong("jetstream", found, "give the account more storage, or purge what is not Baton's")
                }
                _ => Check::ok("jetstream", found),
            }
        }
        Err(error) => Check::wrong(
            "jetstream",
            format!("it does not answer: {error}"),
            "start nats-server with --jetstream, and allow this account to use it",
        ),
    }
}

/// When the broker syncs what it was told to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Before it acknowledges.
    Always,
    /// Once in so many seconds.
    Every(u64),
    /// Only a system account can see it.
    Hidden,
}

async fn sync(client: &Client) -> Sync {
    let ask = client.nats().request("$SYS.REQ.SERVER.PING.VARZ", "".into());
    let answer = tokio::time::timeout(Duration::from_millis(500), ask).await;
    let settings = match answer {
        Ok(Ok(message)) => serde_json::from_slice::<serde_json::Value>(&message.payload).unwrap_or_default(),
        _ => serde_json::Value::Null,
    };
    let Some(config) = settings.pointer("/data/jetstream/config") else { return Sync::Hidden };
    if config.get("sync_always").and_then(serde_json::Value::as_bool) == Some(true) {
        return Sync::Always;
    }
    let interval = config.get("sync_interval").and_then(serde_json::Value::as_u64).map(Duration::from_nanos);
    Sync::Every(interval.map_or(120, |interval| interval.as_secs()))
}

/// What an acknowledgement survives. Each line says no more than is known.
fn durability(sync: Sync, copies: usize) -> Check {
    let synced = match sync {
        Sync::Always => "power: synced before it is acknowledged, so it survives the loss of power".to_owned(),
        Sync::Every(seconds) => {
            let whose = if copies > 1 { " of most servers at once" } else { "" };
            format!("process: survives the kill of any process; the loss of power{whose} may take the last {seconds} s")
        }
        Sync::Hidden => "survives the kill of any process; whether also the loss of power is not visible from this account \
                         (only with `sync_interval: always` in the server's configuration, or `baton up --durability power`)"
            .to_owned(),
    };
    let disk = match copies {
        0 => return Check::ok("durability", synced),
        1 => "1 copy: not the loss of its disk".to_owned(),
        copies => format!("{copies} copies: also the loss of {} of the servers with its disk", (copies - 1) / 2),
    };
    Check::ok("durability", format!("{synced}; {disk}"))
}

/// The log, the sequence of its last message, and how many copies of it there are.
async fn log(context: &jetstream::Context) -> (Check, u64, usize) {
    let name = log_stream(Shard::default());
    let info = match context.get_stream(&name).await {
        Ok(stream) => stream.cached_info().clone(),
        Err(error) => {
            let advice = "the first service that starts makes it: `baton up`, or `baton service workflow-manager`";
            return (Check::wrong("log", format!("no stream {name}: {error}"), advice), 0, 0);
        }
    };
    let state = &info.state;
    let mut found = format!(
        "{name}: {}, {}, {}, last sequence {}",
        count(usize::try_from(state.messages).unwrap_or(usize::MAX), "commit"),
        bytes(state.bytes),
        match info.config.num_replicas {
            1 => "1 copy".to_owned(),
            copies => format!("{copies} copies"),
        },
        state.last_sequence
    );
    if state.first_sequence > 1 {
        let _ = write!(found, ", begins with {} (trimmed)", state.first_sequence);
    }
    let check = match forgetful(&info.config) {
        Some(why) => Check::wrong("log", format!("{found}; {why}"), format!("`nats stream edit {name}`")),
        None if is_nearly_full(state.bytes, info.config.max_bytes) => {
            let found = format!("{found}, of at most {}", bytes(info.config.max_bytes.unsigned_abs()));
            let advice = format!("it is about to refuse: `nats stream edit {name} --max-bytes …` gives it more room");
            Check::look("log", found, advice)
        }
        None => Check::ok("log", found),
    };
    (check, state.last_sequence, info.config.num_replicas)
}

/// Whether less than a tenth of the room that a stream has is left.
fn is_nearly_full(used: u64, limit: i64) -> bool {
    u64::try_from(limit).is_ok_and(|limit| limit > 0 && used > limit / 10 * 9)
}

/// What lets the log lose something, if anything does.
fn forgetful(config: &Config) -> Option<&'static str> {
    if config.storage != StorageType::File {
        return Some("it is kept in memory only");
    }
    if config.discard != DiscardPolicy::New || !config.max_age.is_zero() || config.max_messages > 0 {
        return Some("it forgets its oldest messages");
    }
    None
}

fn service_check(service: Service, statuses: &[InstanceStatus], end: u64) -> Check {
    let area = service.as_str();
    let mine: Vec<_> = statuses.iter().filter(|status| status.service == service).collect();
    let start = format!("start it: `baton service {service}`, or everything with `baton up`");
    if mine.is_empty() {
        // Nobody needs the HTTP API to coordinate.
        let check = if service == Service::Gateway { Check::look } else { Check::wrong };
        return check(area.to_owned(), "no instance answers".to_owned(), start);
    }
    let mut found = count(mine.len(), "instance");
    if let Some(why) = mine.iter().find_map(|status| status.full.as_ref()) {
        let _ = write!(found, ", refuses every request, for the log is full: {why}");
        let name = log_stream(Shard::default());
        let advice = format!(
            "make room, and it goes on by itself: raise the broker's max_file_store or the account's storage, purge streams \
             that are not Baton's, or raise the log's own limit (`nats stream edit {name} --max-bytes …`)"
        );
        return Check::wrong(area, found, advice);
    }
    let versions: Vec<_> = mine.iter().filter(|status| status.version != env!("CARGO_PKG_VERSION")).collect();
    if service == Service::Gateway {
        found.push_str(", serving");
    } else {
        let leaders: Vec<_> = mine.iter().filter(|status| status.role == Role::Leading).collect();
        let [leader] = leaders.as_slice() else {
            let roles: Vec<_> = mine.iter().map(|s| format!("{} {}", s.instance, s.role.as_str())).collect();
            let _ = write!(found, ", {} lead: {}", leaders.len(), roles.join(", "));
            return Check::wrong(
                area,
                found,
                "if it stays so for more than a few seconds, see the logs of the instances",
            );
        };
        let lag = end.saturating_sub(leader.read);
        let records = count(usize::try_from(leader.number).unwrap_or(usize::MAX), "record");
        let _ = write!(found, ", {} leads in term {}, {records}", leader.instance, leader.term);
        if lag > 0 {
            let _ = write!(found, ", {lag} behind the log");
        }
        if lag > LAG {
            return Check::wrong(area, found, "it does not keep up, or stands still: see its log");
        }
    }
    let aside: u64 = mine.iter().map(|status| status.set_aside).sum();
    if aside > 0 {
        let _ = write!(found, ", {aside} unreadable requests set aside");
        let advice =
            format!("some client speaks another version: `nats stream view {ASIDE_STREAM}` shows what it sent");
        return Check::look(area, found, advice);
    }
    if let Some(other) = versions.first() {
        let _ = write!(found, ", version {}", other.version);
        return Check::look(area, found, format!("this command line is version {}", env!("CARGO_PKG_VERSION")));
    }
    Check::ok(area, found)
}

/// Compares clocks. An answer was written between the asking and the last answer: a clock that is outside of that is off.
fn clocks(statuses: &[InstanceStatus], asked_at: Millis, answered_at: Millis) -> Option<Check> {
    let off = |status: &InstanceStatus| asked_at.saturating_sub(status.now).max(status.now.saturating_sub(answered_at));
    let worst = statuses.iter().max_by_key(|status| off(status))?;
    let ms = off(worst);
    Some(if ms > SKEW_MS {
        let found = format!("{} {} is off by {ms} ms from here", worst.service, worst.instance);
        Check::look("clocks", found, "set the clocks (NTP): nothing is lost by it, but times and timeouts are off")
    } else {
        Check::ok("clocks", format!("within {SKEW_MS} ms of this machine's"))
    })
}

async fn aside(context: &jetstream::Context) -> Option<Check> {
    let stream = context.get_stream(ASIDE_STREAM).await.ok()?;
    let messages = stream.cached_info().state.messages;
    (messages > 0).then(|| {
        let found =
            format!("{} that could not be read", count(usize::try_from(messages).unwrap_or(usize::MAX), "request"));
        Check::look("set aside", found, format!("`nats stream view {ASIDE_STREAM}` shows them"))
    })
}

async fn messages(context: &jetstream::Context) -> Check {
    let Ok(stream) = context.get_stream(MESSAGES_STREAM).await else {
        let advice =
            "it is made by the resource-manager; agents can not send guaranteed messages without it: see its log";
        return Check::look("messages", format!("there is no stream {MESSAGES_STREAM}"), advice);
    };
    let (state, config) = (&stream.cached_info().state, &stream.cached_info().config);
    let held = count(usize::try_from(state.messages).unwrap_or(usize::MAX), "guaranteed message");
    let found = format!("{held} kept, {}", bytes(state.bytes));
    if is_nearly_full(state.bytes, config.max_bytes) {
        let advice = format!(
            "the oldest are lost, read or not, once there are {}: `nats stream edit {MESSAGES_STREAM} --max-bytes …` if agents \
             that are away for long must get them",
            bytes(u64::try_from(config.max_bytes).unwrap_or_default())
        );
        return Check::look("messages", found, advice);
    }
    Check::ok("messages", found)
}

async fn agents(client: &Client) -> Check {
    let list = match client.list_agents(&ListAgents { gone: true, ..ListAgents::default() }).await {
        Ok(list) => list.agents,
        Err(error) => return Check::wrong("agents", error.to_string(), "see what is said of the resource-manager"),
    };
    let of = |status| list.iter().filter(|agent| agent.status == status).count();
    let (idle, busy, gone) = (of(AgentStatus::Idle), of(AgentStatus::Busy), of(AgentStatus::Gone));
    let found = format!("{} there: {busy} busy, {idle} idle; {gone} gone", idle + busy);
    if idle + busy == 0 {
        return Check::look("agents", found, "nobody does the work: `baton agent stock all`, or agents of your own");
    }
    Check::ok("agents", found)
}

fn pressure(view: &PressureView) -> Check {
    let waiting = count(usize::try_from(view.waiting).unwrap_or(usize::MAX), "task");
    let memory = view.memory_percent.map_or_else(String::new, |percent| format!(", {percent} % of the memory taken"));
    let found = format!("{}: {waiting} waiting, {} slots{memory}", view.level, view.slots);
    let Some(below) = view.below.filter(|_| view.level > PressureLevel::None) else {
        return Check::ok("pressure", found);
    };
    let causes: Vec<_> = view.causes.iter().map(|cause| cause.as_str()).collect();
    let found = format!(
        "{found}; because of {}, runs of less priority than {below} are refused, and {} of less may have to wait",
        causes.join(" and "),
        count(usize::try_from(view.waiting_below).unwrap_or(usize::MAX), "task")
    );
    Check::look("pressure", found, "it falls by itself; more agents make it fall sooner (`baton capacity WORKFLOW`)")
}

fn write(checks: &[Check], style: Style) -> String {
    let width = checks.iter().map(|check| check.area.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (word, tone) = match check.verdict {
            Verdict::Ok => ("ok", Tone::Good),
            Verdict::Look => ("look", Tone::Busy),
            Verdict::Wrong => ("WRONG", Tone::Bad),
        };
        let _ = writeln!(text, "{}  {:<width$}  {}", style.tone(tone, &format!("{word:<5}")), check.area, check.found);
        if let Some(advice) = &check.advice {
            let _ = writeln!(text, "       {:<width$}  {}", "", style.bold(&format!("-> {advice}")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use baton_protocol::pressure::PressureCause;
    use expect_test::expect;

    use super::*;

    fn status(service: Service, role: Role, read: u64) -> InstanceStatus {
        InstanceStatus {
            service,
            instance: "7-abc".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role,
            term: 3,
            read,
            number: 12,
            set_aside: 0,
            full: None,
            now: 5000,
            started_at: 0,
        }
    }

    #[test]
    fn what_is_said_of_durability_is_what_is_known() {
        let kinds =
            [(Sync::Always, 1), (Sync::Every(120), 1), (Sync::Every(120), 3), (Sync::Hidden, 1), (Sync::Hidden, 0)];
        let checks: Vec<_> = kinds.into_iter().map(|(sync, copies)| durability(sync, copies)).collect();
        expect![[r#"
            ok     durability  power: synced before it is acknowledged, so it survives the loss of power; 1 copy: not the loss of its disk
            ok     durability  process: survives the kill of any process; the loss of power may take the last 120 s; 1 copy: not the loss of its disk
            ok     durability  process: survives the kill of any process; the loss of power of most servers at once may take the last 120 s; 3 copies: also the loss of 1 of the servers with its disk
            ok     durability  survives the kill of any process; whether also the loss of power is not visible from this account (only with `sync_interval: always` in the server's configuration, or `baton up --durability power`); 1 copy: not the loss of its disk
            ok     durability  survives the kill of any process; whether also the loss of power is not visible from this account (only with `sync_interval: always` in the server's configuration, or `baton up --durability power`)
        "#]].assert_eq(&write(&checks, Style::plain()));
    }

    #[test]
    fn r13_pressure_is_said_with_what_it_does() {
        let calm = PressureView {
            level: PressureLevel::None,
            causes: vec![],
            since: None,
            below: None,
            retry_after_ms: None,
            waiting: 1,
            waiting_below: 0,
            slots: 8,
            memory_percent: None,
        };
        let pressed = PressureView {
            level: PressureLevel::Critical,
            causes: vec![PressureCause::Queue, PressureCause::Memory],
            since: Some(5),
            below: Some(1),
            waiting: 1200,
            waiting_below: 1190,
            memory_percent: Some(91),
            ..calm
        };
        expect![[r#"
            ok     pressure  none: 1 task waiting, 8 slots
            look   pressure  critical: 1200 tasks waiting, 8 slots, 91 % of the memory taken; because of queue and memory, runs of less priority than 1 are refused, and 1190 tasks of less may have to wait
                             -> it falls by itself; more agents make it fall sooner (`baton capacity WORKFLOW`)
        "#]].assert_eq(&write(&[pressure(&calm), pressure(&pressed)], Style::plain()));
    }

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        use Service::{Gateway, Optimizer, ResourceManager, WorkflowManager};
        let mut outdated = status(Gateway, Role::Serving, 0);
        outdated.version = "0.0.1".to_owned();
        let statuses = [
            status(WorkflowManager, Role::Leading, 40),
            status(WorkflowManager, Role::Following, 40),
            status(ResourceManager, Role::Leading, 41),
            status(ResourceManager, Role::Leading, 42),
            outdated,
        ];
        let mut checks: Vec<_> = Service::ALL.map(|service| service_check(service, &statuses, 42)).into();
        checks.push(service_check(Optimizer, &[status(Optimizer, Role::Leading, 1)], 5000));
        checks.push(service_check(
            Optimizer,
            &[InstanceStatus { set_aside: 2, ..status(Optimizer, Role::Leading, 1) }],
            1,
        ));
        let full = Some("maximum bytes exceeded".to_owned());
        let following = InstanceStatus { full, ..status(WorkflowManager, Role::Following, 42) };
        checks.push(service_check(WorkflowManager, &[following], 42));
        checks.extend(clocks(&statuses, 4900, 5100));
        checks.extend(clocks(&statuses, 1000, 2000));
        expect![[r#"
            ok     workflow-manager  2 instances, 7-abc leads in term 3, 12 records, 2 behind the log
            WRONG  resource-manager  2 instances, 2 lead: 7-abc leading, 7-abc leading
                                     -> if it stays so for more than a few seconds, see the logs of the instances
            WRONG  optimizer         no instance answers
                                     -> start it: `baton service optimizer`, or everything with `baton up`
            look   gateway           1 instance, serving, version 0.0.1
                                     -> this command line is version 0.1.0
            WRONG  optimizer         1 instance, 7-abc leads in term 3, 12 records, 4999 behind the log
                                     -> it does not keep up, or stands still: see its log
            look   optimizer         1 instance, 7-abc leads in term 3, 12 records, 2 unreadable requests set aside
                                     -> some client speaks another version: `nats stream view BATON_ASIDE` shows what it sent
            WRONG  workflow-manager  1 instance, refuses every request, for the log is full: maximum bytes exceeded
                                     -> make room, and it goes on by itself: raise the broker's max_file_store or the account's storage, purge streams that are not Baton's, or raise the log's own limit (`nats stream edit BATON_LOG_0 --max-bytes …`)
            ok     clocks            within 1000 ms of this machine's
            look   clocks            gateway 7-abc is off by 3000 ms from here
                                     -> set the clocks (NTP): nothing is lost by it, but times and timeouts are off
        "#]].assert_eq(&write(&checks, Style::plain()));
    }
}
