//! How fast agents talk: one sends to another, each in a process of its own.
//!
//! The time is from just before the sender's SDK is given a message until the receiver's handler has it, by the one clock of
//! the machine. Without a rate it is as fast as it goes: guaranteed messages in the SDK's window, the others as fast as the
//! receiver confirms (an answer every 512 messages, at most 8192 under way), so that none has to be lost.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use baton_client::{ConnectSettings, Connection};
use baton_sdk::AgentId;
use baton_sdk::messages::{Listen, Messages, Options, Outgoing, Received};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::measurement::Latency;

/// What is measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) guaranteed: bool,
    /// Messages a second; none for as many as go.
    pub(crate) rate: Option<u32>,
    pub(crate) seconds: u64,
    /// Bytes of a body.
    pub(crate) bytes: usize,
    pub(crate) server: String,
    /// Tells these agents from those of another measurement.
    pub(crate) name: String,
}

/// What came out.
pub(crate) struct Figures {
    /// Messages that were sent, and for guaranteed ones stored.
    pub(crate) sent: u64,
    /// Messages that a handler has had.
    pub(crate) handled: u64,
    pub(crate) per_second: f64,
    pub(crate) latency: Latency,
}

/// The first second is not measured: connections, caches and clocks warm up.
const WARM_UP_US: u64 = 1_000_000;
const CONFIRM: u64 = 512;
const UNDER_WAY: usize = 8192;

/// Measures one kind of work with two processes of that program.
pub(crate) async fn measure(program: &Path, work: &Work) -> anyhow::Result<Figures> {
    let (mut receiver, mut told) = start(program, "receiver", work)?;
    let mut lines = BufReader::new(&mut told).lines();
    let ready = lines.next_line().await?;
    if ready.as_deref() != Some("ready") {
        bail!("the receiver says {ready:?}");
    }
    let (mut sender, mut said) = start(program, "sender", work)?;
    let mut counted = BufReader::new(&mut said).lines();
    let sent: Sent = serde_json::from_str(&counted.next_line().await?.context("the sender says nothing")?)?;
    let stdin = receiver.stdin.as_mut().context("no way to tell the receiver")?;
    stdin.write_all(format!("{}\n", sent.sent).as_bytes()).await?;
    let heard: Heard = serde_json::from_str(&lines.next_line().await?.context("the receiver says nothing")?)?;
    sender.wait().await?;
    receiver.wait().await?;
    let [p50, p90, p99, max] = heard.percentiles.map(|micros| f64::from(micros) / 1000.0);
    Ok(Figures {
        sent: sent.sent,
        handled: heard.handled,
        per_second: heard.per_second as f64,
        latency: Latency { p50_ms: p50, p90_ms: p90, p99_ms: p99, max_ms: max },
    })
}

fn start(program: &Path, role: &str, work: &Work) -> anyhow::Result<(Child, ChildStdout)> {
    let mut child = Command::new(program)
        .args(["bench-messages", role, &serde_json::to_string(work)?])
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
}

#[derive(Serialize, Deserialize)]
struct Heard {
    handled: u64,
    per_second: u64,
    percentiles: [u32; 4],
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

/// Is one of the two agents: `sender` or `receiver`. What it does is given as JSON.
///
/// # Errors
/// Says what went wrong.
pub async fn run_messages(role: &str, work: &str) -> anyhow::Result<()> {
    let work: Work = serde_json::from_str(work).context("what is to be measured")?;
    if role == "sender" { send(&work).await } else { receive(&work).await }
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
    println!("{}", serde_json::to_string(&Sent { sent: kept })?);
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
    let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    seen.times.sort_unstable();
    let at = |part: f64| seen.times.get(((seen.times.len() as f64 - 1.0) * part) as usize).copied().unwrap_or(0);
    let span = seen.last.saturating_sub(seen.first + WARM_UP_US).max(1);
    let heard = Heard {
        handled: count.load(Ordering::Relaxed),
        per_second: seen.measured * 1_000_000 / span,
        percentiles: [at(0.5), at(0.9), at(0.99), at(1.0)],
    };
    println!("{}", serde_json::to_string(&heard)?);
    Ok(())
}
