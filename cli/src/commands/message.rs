//! `baton message`

use std::io::Read as _;
use std::time::Duration;

use baton_client::Connection;
use baton_protocol::header::Priority;
use baton_protocol::message::MessageType;
use baton_protocol::{AgentId, TopicFilter, TopicName, header, subject};
use baton_sdk::messages::{MessageError, Messages, Options, Outgoing, Received, Route};
use clap::{Args, Subcommand};
use futures::StreamExt;
use futures::stream::select_all;
use serde::Serialize;
use serde_json::Value;

use crate::Context;
use crate::commands::open;
use crate::failure::{Exit, Failure};
use crate::fleet::Signals;
use crate::text::{short, time};

/// Messages between agents
#[derive(Debug, Subcommand)]
pub(crate) enum Message {
    /// Send a message to an agent, to all, or to a topic
    Send(Send),
    /// Show messages as they are sent, until Ctrl-C
    Watch(Watch),
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// What is said, as JSON; what is not JSON is text, and `-` is standard input
    body: String,
    /// The agent that it is for; several get one each
    #[arg(long, value_name = "AGENT", required_unless_present_any = ["topic", "all"], conflicts_with_all = ["topic", "all"])]
    to: Vec<AgentId>,
    /// The topic that it is about
    #[arg(long, value_name = "TOPIC", conflicts_with = "all")]
    topic: Option<TopicName>,
    /// It is for all agents
    #[arg(long)]
    all: bool,
    /// Store it, so that the agent gets it even if it is away
    #[arg(long, requires = "to", conflicts_with = "wait_ms")]
    guaranteed: bool,
    /// Wait that long for the agent's answer, in milliseconds, and print it
    #[arg(long, requires = "to", value_name = "MS")]
    wait_ms: Option<u64>,
    /// Its type: one of Baton's, or x-NAME
    #[arg(long = "type", value_name = "TYPE")]
    message_type: Option<MessageType>,
    /// Whoever gets it later than that drops it, in milliseconds
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// low, normal, high or critical
    #[arg(long, value_name = "WORD", default_value = "normal", value_parser = priority)]
    priority: Priority,
    /// What it belongs to: the header Baton-Correlation-Id
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
    /// Under which name it is sent
    #[arg(long = "as", value_name = "NAME", default_value = "operator")]
    from: AgentId,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Only what is said to this agent alone
    #[arg(long, value_name = "AGENT", conflicts_with = "topic")]
    to: Option<AgentId>,
    /// Only what is published to these topics: `prices.eu`, `prices.*`, `prices.>`
    #[arg(long, value_name = "FILTER")]
    topic: Option<TopicFilter>,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Write each message as one line of JSON
    #[arg(long)]
    json: bool,
}

impl Message {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Send(send) => send.run(context).await,
            Self::Watch(watch) => watch.run(context).await,
        }
    }
}

impl Send {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let connection = open(&context.connect_settings()).await?;
        let options = Options { patience: Duration::from_secs(5), ..Options::default() };
        let messages = Messages::new(&connection, self.from.clone(), options);
        let sent = self.send(context, &messages).await;
        // What was only handed over must leave before this process does.
        connection.nats.flush().await?;
        sent
    }

    async fn send(&self, context: &Context, messages: &Messages) -> anyhow::Result<Exit> {
        let message = self.message()?;
        if let Some(topic) = &self.topic {
            messages.publish(topic, message).await.map_err(|error| failed(&error))?;
        } else if self.all {
            messages.broadcast(message).await.map_err(|error| failed(&error))?;
        } else if let Some(wait) = self.wait_ms {
            for to in &self.to {
                let answer = messages
                    .request(to, message.clone(), Duration::from_millis(wait))
                    .await
                    .map_err(|error| failed(&error))?;
                context.out.line(&String::from_utf8_lossy(&answer))?;
            }
        } else if self.guaranteed {
            for stored in messages.multicast_guaranteed(&self.to, message).await.map_err(|error| failed(&error))? {
                context.out.line(&format!("stored as {}", stored.sequence))?;
            }
        } else if let [to] = self.to.as_slice() {
            messages.send(to, message).await.map_err(|error| failed(&error))?;
        } else {
            messages.multicast(&self.to, message).await.map_err(|error| failed(&error))?;
        }
        Ok(Exit::Done)
    }

    fn message(&self) -> anyhow::Result<Outgoing> {
        let mut body = self.body.clone();
        if body == "-" {
            body.clear();
            std::io::stdin().read_to_string(&mut body)?;
        }
        let body: Value = serde_json::from_str(&body).unwrap_or(Value::String(body));
        let mut message = Outgoing::json(&body)?.priority(self.priority);
        if let Some(message_type) = &self.message_type {
            message = message.of(message_type.clone());
        }
        if let Some(ttl) = self.ttl_ms {
            message = message.ttl(Duration::from_millis(ttl));
        }
        if let Some(correlation) = &self.correlation {
            message = message.correlation(correlation);
        }
        Ok(message)
    }
}

impl Watch {
    async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let mut signals = Signals::listen()?;
        let Connection { nats, .. } = open(&context.connect_settings()).await?;
        let subjects = match (&self.to, &self.topic) {
            (Some(to), _) => vec![subject::said_to(to), subject::mail_to(to)],
            (None, Some(topic)) => vec![subject::topics(topic)],
            (None, None) => vec![
                subject::SAID.to_owned(),
                subject::MESSAGES_SUBJECTS.to_owned(),
                subject::SAID_TO_ALL.to_owned(),
                subject::topics(&TopicFilter::all()),
            ],
        };
        let mut heard = Vec::new();
        for subject in subjects {
            heard.push(nats.subscribe(subject).await?);
        }
        nats.flush().await?;
        let mut heard = select_all(heard);
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let message = tokio::select! {
                message = heard.next() => message,
                () = signals.next() => return Ok(Exit::Done),
            };
            let Some(message) = message else { break };
            let to = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
            let Some(message) = Received::read(message) else { continue };
            let seen = Seen::new(&message, to);
            if self.json {
                context.out.json_line(&seen)?;
            } else {
                context.out.line(&seen.line(context.out.width(), context.out.terminal))?;
            }
            left -= 1;
        }
        Ok(Exit::Done)
    }
}

/// A message as it is shown.
#[derive(Debug, Serialize)]
struct Seen {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<u64>,
    from: AgentId,
    to: String,
    #[serde(rename = "type")]
    message_type: MessageType,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    guaranteed: bool,
    body: Value,
}

impl Seen {
    fn new(message: &Received, to: String) -> Self {
        let to = match message.route() {
            Route::Direct => to,
            Route::Broadcast => "all".to_owned(),
            Route::Topic(topic) => format!("topic {topic}"),
        };
        let body = || Value::String(String::from_utf8_lossy(message.body()).into_owned());
        Self {
            time: message.time(),
            from: message.from().clone(),
            to,
            message_type: message.message_type().clone(),
            id: message.id().map(str::to_owned),
            guaranteed: message.header(NATS_MSG_ID).is_some(),
            body: serde_json::from_slice(message.body()).unwrap_or_else(|_| body()),
        }
    }

    fn line(&self, width: usize, cut: bool) -> String {
        let at = self.time.map(time).unwrap_or_default();
        let kind = if self.guaranteed { "=>" } else { "->" };
        let line = format!("{at}  {} {kind} {}  {}  {}", self.from, self.to, self.message_type, self.body);
        if cut { short(&line, width) } else { line }
    }
}

/// Only guaranteed messages have it.
const NATS_MSG_ID: &str = "Nats-Msg-Id";

fn failed(error: &MessageError) -> anyhow::Error {
    let (exit, hint) = match error {
        MessageError::NobodyThere(_) | MessageError::NoAnswer { .. } => {
            (Exit::Unavailable, Some("--guaranteed stores the message until the agent is there"))
        }
        MessageError::Unknown => (Exit::Unavailable, Some("`baton doctor` says whether the messages' stream is there")),
        MessageError::Unsent(_) | MessageError::Closed => (Exit::Unavailable, None),
        MessageError::Refused(_) | MessageError::Failed { .. } => (Exit::Rejected, None),
        MessageError::Listening => (Exit::Failed, None),
    };
    let failure = Failure::new(exit, error.to_string());
    match hint {
        Some(hint) => failure.hint(hint).into(),
        None => failure.into(),
    }
}

fn priority(word: &str) -> Result<Priority, String> {
    let found = Priority::ALL.into_iter().find(|priority| priority.as_str() == word);
    found.ok_or_else(|| format!("it must be low, normal, high or critical (the header {})", header::PRIORITY))
}
