//! How fast agents talk: `cargo run --release -p baton-sdk --example messages`.
//!
//! One agent sends to another, each in a process of its own, through a broker in a third and a post office in a fourth (this
//! one), all on this machine. The time is from just before the sender's SDK is given a message until the receiver's handler
//! has it, by the one clock of the machine.
//!
//! ```text
//! messages [guaranteed|fire] [--rate N] [--seconds N] [--bytes N] [--runs N] [--server URL]
//! ```
//!
//! Without a rate it is as fast as it goes: guaranteed messages in the SDK's window, the others as fast as the receiver
//! confirms (an answer every 512 messages, at most 8192 under way), so that none has to be lost.

use std::io::Write as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use baton_client::{ConnectSettings, Connection};
use baton_protocol::subject::MESSAGES_STREAM;
use baton_sdk::AgentId;
use baton_sdk::messages::{Listen, Messages, Options, Outgoing, Received};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

/// What is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Work {
    guaranteed: bool,
    /// Messages a second; none for as many as go.
    rate: Option<u32>,
    seconds: u64,
    /// Bytes of a body.
    bytes: usize,
    server: String,
    /// Tells these agents from those of another measurement.
    name: String,
}

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    work: String,
    rate: Option<u32>,
    bytes: usize,
    sent: u64,
    handled: u64,
    per_second: u64,
    p50_us: u32,
    p90_us: u32,
    p99_us: u32,
    max_us: u32,
    refetched: u64,
    repeated: u64,
}

/// The first second is not measured: connections, caches and clocks warm up.
const WARM_UP_US: u64 = 1_000_000;
const CONFIRM: u64 = 512;
const UNDER_WAY: usize = 8192;

/// Measures one kind of work with two processes of this program. The broker at `work.server` has a post office.
async fn measure(work: &Work) -> anyhow::Result<Figures> {
    let (mut receiver, mut told) = start("receiver", work)?;
    let mut lines = BufReader::new(&mut told).lines();
    let ready = lines.next_line().await?;
    if ready.as_deref() != Some("ready") {
        bail!("the receiver says {ready:?}");
    }
    let (mut sender, mut said) = start("sender", work)?;
    let mut counted = BufReader::new(&mut said).lines();
    let sent: Sent = serde_json::from_str(&counted.next_line().await?.context("the sender says nothing")?)?;
    let stdin = receiver.stdin.as_mut().context("no way to tell the receiver")?;
    stdin.write_all(format!("{}\n", sent.sent).as_bytes()).await?;
    let heard: Heard = serde_json::from_str(&lines.next_line().await?.context("the receiver says nothing")?)?;
    sender.wait().await?;
    receiver.wait().await?;
    Ok(Figures {
        work: if work.guaranteed { "guaranteed" } else { "fire-and-forget" }.to_owned(),
        rate: work.rate,
        bytes: work.bytes,
        sent: sent.sent,
        handled: heard.handled,
        per_second: heard.per_second,
        p50_us: heard.percentiles[0],
        p90_us: heard.percentiles[1],
        p99_us: heard.percentiles[2],
        max_us: heard.percentiles[3],
        refetched: heard.refetched,
        repeated: sent.repeated,
    })
}

fn start(role: &str, work: &Work) -> anyhow::Result<(Child, ChildStdout)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--role", role, &serde_json::to_string(work)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = child.stdout.take().context("no output")?;
    Ok((child, stdout))
}

#[derive(Serialize, Deserialize)]
struct Sent {
    sent: u64,
    repeated: u64,
}

#[derive(Serialize, Deserialize)]
struct Heard {
    handled: u64,
    per_second: u64,
    percentiles: [u32; 4],
    refetched: u64,
}

#[derive(Serialize, Deserialize)]
struct Body {
    at: u64,
    pad: String,
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

async fn messages(id: &str, work: &Work) -> anyhow::Result<Messages> {
    let connection = Connection::open(&ConnectSettings::alone(work.server.clone())).await?;
    Ok(Messages::new(&connection, AgentId::new(id)?, Options::default()))
}

async fn send(work: &Work) -> anyhow::Result<()> {
    let me = messages(&format!("bench-sender-{}", work.name), work).await?;
    let to = AgentId::new(&format!("bench-receiver-{}", work.name))?;
    let room = Arc::new(Semaphore::new(UNDER_WAY));
    let more = Arc::clone(&room);
    let confirmed = Listen::new().on_any(move |_: Received| {
        more.add_permits(CONFIRM as usize);
        async { Ok(()) }
    });
    if !work.guaranteed {
        me.listen(confirmed).await?;
    }
    let pad = "x".repeat(work.bytes.saturating_sub(33));
    let begin = Instant::now();
    let end = begin + Duration::from_secs(work.seconds) + Duration::from_micros(WARM_UP_US);
    let mut sent = 0u64;
    while Instant::now() < end {
        // What is due by now, in portions of a millisecond.
        let due = match work.rate {
            Some(rate) => {
                let due = (begin.elapsed().as_micros() * u128::from(rate) / 1_000_000) as u64;
                if due <= sent {
                    sleep_until(Instant::now() + Duration::from_millis(1)).await;
                }
                due
            }
            None => sent + 64,
        };
        while sent < due {
            if work.rate.is_none() && !work.guaranteed {
                room.acquire().await?.forget();
            }
            let message = Outgoing::json(&Body { at: now_us(), pad: pad.clone() })?;
            if work.guaranteed {
                drop(me.post(&to, message).await?);
            } else {
                me.send(&to, message).await?;
            }
            sent += 1;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while work.guaranteed && me.numbers().stored < sent && Instant::now() < deadline {
        sleep(Duration::from_millis(5)).await;
    }
    let numbers = me.numbers();
    let kept = if work.guaranteed { numbers.stored } else { sent };
    println!("{}", serde_json::to_string(&Sent { sent: kept, repeated: numbers.repeated })?);
    // What is under way leaves before the connection.
    sleep(Duration::from_millis(300)).await;
    Ok(())
}

#[derive(Default)]
struct Seen {
    first: u64,
    last: u64,
    measured: u64,
    times: Vec<u32>,
}

async fn receive(work: &Work) -> anyhow::Result<()> {
    let me = messages(&format!("bench-receiver-{}", work.name), work).await?;
    let (answers, from) = (me.clone(), AgentId::new(&format!("bench-sender-{}", work.name))?);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let count = Arc::new(AtomicU64::new(0));
    let confirms = !work.guaranteed && work.rate.is_none();
    let (handler_seen, handler_count) = (Arc::clone(&seen), Arc::clone(&count));
    let listen = Listen::new().on_any(move |message: Received| {
        let (seen, count, answers, from) =
            (Arc::clone(&handler_seen), Arc::clone(&handler_count), answers.clone(), from.clone());
        async move {
            let body: Body = message.json()?;
            let now = now_us();
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            {
                let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if seen.first == 0 {
                    seen.first = now;
                }
                if body.at > seen.first + WARM_UP_US {
                    seen.measured += 1;
                    seen.last = now;
                    seen.times.push(u32::try_from(now.saturating_sub(body.at)).unwrap_or(u32::MAX));
                }
            }
            if confirms && number % CONFIRM == 0 {
                answers.send(&from, Outgoing::raw("null")).await?;
            }
            Ok(())
        }
    });
    // Room for what comes while the machine is busy elsewhere: a loss would be the measurement's, not the system's.
    me.listen(listen.queue(16384)).await?;
    println!("ready");
    std::io::stdout().flush()?;
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await?.context("nobody tells")??;
    let expected: u64 = line.trim().parse()?;
    let mut quiet = 0;
    let mut before = 0;
    while count.load(Ordering::Relaxed) < expected && quiet < 100 {
        sleep(Duration::from_millis(50)).await;
        let now = count.load(Ordering::Relaxed);
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
    }
    let numbers = me.numbers();
    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    seen.times.sort_unstable();
    let at = |part: f64| seen.times.get(((seen.times.len() as f64 - 1.0) * part) as usize).copied().unwrap_or(0);
    let span = seen.last.saturating_sub(seen.first + WARM_UP_US).max(1);
    let heard = Heard {
        handled: count.load(Ordering::Relaxed),
        per_second: seen.measured * 1_000_000 / span,
        percentiles: [at(0.5), at(0.9), at(0.99), at(1.0)],
        refetched: numbers.refetched,
    };
    println!("{}", serde_json::to_string(&heard)?);
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, role, work] = arguments.as_slice()
        && flag == "--role"
    {
        let work: Work = serde_json::from_str(work)?;
        return if role == "sender" { send(&work).await } else { receive(&work).await };
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let number = |name: &str| value(name).map(|text| text.parse::<u32>()).transpose();
    let own = if value("--server").is_none() { Some(baton_testkit::NatsServer::start().await) } else { None };
    let server = match &own {
        Some(own) => own.client_url(),
        None => value("--server").context("--server")?,
    };
    let metrics = baton_telemetry::Metrics::new("bench", "bench");
    let stop = baton_sdk::CancellationToken::new();
    let settings = baton_post::Settings::default();
    let post = tokio::spawn(baton_post::run(ConnectSettings::alone(server.clone()), settings, metrics, stop));
    let nats = baton_client::connect(&ConnectSettings::alone(server.clone())).await?;
    let js = async_nats::jetstream::new(nats);
    while js.get_stream(MESSAGES_STREAM).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    let kinds: Vec<bool> = match arguments.first().map(String::as_str) {
        Some("guaranteed") => vec![true],
        Some("fire") => vec![false],
        _ => vec![true, false],
    };
    for _ in 0..number("--runs")?.unwrap_or(1) {
        for guaranteed in &kinds {
            let work = Work {
                guaranteed: *guaranteed,
                rate: number("--rate")?,
                seconds: u64::from(number("--seconds")?.unwrap_or(5)),
                bytes: number("--bytes")?.unwrap_or(128) as usize,
                server: server.clone(),
                name: now_us().to_string(),
            };
            println!("{}", serde_json::to_string(&measure(&work).await?)?);
        }
    }
    post.abort();
    Ok(())
}
