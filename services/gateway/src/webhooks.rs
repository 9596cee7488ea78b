//! Webhooks: alerts, told to whoever is named in the settings.
//!
//! Each webhook has a task and a queue of its own: one that is slow, or fails, holds up no other and nothing else. Of several
//! gateways one tells each alert. What can not be told after some attempts is given up and counted; the alert itself is in
//! the log, and in `GET /v1/alerts`.

use std::time::Duration;

use async_nats::Client;
use baton_protocol::record::Event;
use baton_protocol::subject;
use baton_shell::WebhookSettings;
use baton_telemetry::Metrics;
use bytes::Bytes;
use futures::StreamExt;
use ring::hmac;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How many alerts wait for one webhook; of more, the latest are given up.
const QUEUE: usize = 1000;
/// How often one is told at the most.
const ATTEMPTS: u32 = 5;
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The wait before the second attempt; each later one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The queue group of the gateways: one of them tells.
const GROUP: &str = "baton-webhooks";

/// What signs a body: `sha256=` and the HMAC in hexadecimal digits, as GitHub has it.
pub(crate) const SIGNATURE: &str = "baton-signature";

/// An alert to be told.
#[derive(Debug, Clone)]
struct News {
    id: String,
    body: Bytes,
}

/// Tells alerts until it is dropped.
pub(crate) async fn start(
    nats: &Client,
    webhooks: &[WebhookSettings],
    metrics: &Metrics,
    tasks: &mut JoinSet<()>,
) -> Result<(), async_nats::SubscribeError> {
    if webhooks.is_empty() {
        return Ok(());
    }
    // What is signed for one is not told to another, so nobody is redirected.
    let http = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("baton/", env!("CARGO_PKG_VERSION")));
    let http = match http.build() {
        Ok(http) => http,
        Err(error) => {
            tracing::error!(%error, "webhooks can not be called");
            return Ok(());
        }
    };
    let mut told = Vec::new();
    for webhook in webhooks.iter().cloned() {
        let (sender, receiver) = mpsc::channel(QUEUE);
        told.push((webhook.clone(), sender));
        tasks.spawn(tell(webhook, http.clone(), receiver, metrics.clone()));
    }
    let mut alerts = nats.queue_subscribe(subject::ALERTS, GROUP.to_owned()).await?;
    let metrics = metrics.clone();
    tasks.spawn(async move {
        while let Some(message) = alerts.next().await {
            let Ok(event) = serde_json::from_slice::<Event>(&message.payload) else {
                tracing::warn!(subject = %message.subject, "an event can not be read");
                continue;
            };
            let severity = subject::severity_of(&message.subject);
            let news = News { id: event.position.to_string(), body: message.payload };
            for (webhook, queue) in &told {
                let wanted = severity.is_none_or(|severity| severity >= webhook.severity);
                if wanted && queue.try_send(news.clone()).is_err() {
                    metrics.add("baton_webhooks_total", &[webhook.name(), "dropped"], 1.0);
                }
            }
        }
    });
    Ok(())
}

async fn tell(webhook: WebhookSettings, http: reqwest::Client, mut queue: mpsc::Receiver<News>, metrics: Metrics) {
    let key = webhook.secret.as_ref().map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()));
    while let Some(news) = queue.recv().await {
        let outcome = match tell_one(&webhook, &http, key.as_ref(), &news).await {
            Ok(()) => "delivered",
            Err(why) => {
                tracing::warn!(webhook = webhook.name(), alert = news.id, why, "a webhook was not told of an alert");
                "failed"
            }
        };
        metrics.add("baton_webhooks_total", &[webhook.name(), outcome], 1.0);
    }
}

async fn tell_one(
    webhook: &WebhookSettings,
    http: &reqwest::Client,
    key: Option<&hmac::Key>,
    news: &News,
) -> Result<(), String> {
    let mut wait = FIRST_WAIT;
    let mut attempt = 1;
    loop {
        let mut request =
            http.post(&webhook.url).header("content-type", "application/json").header("baton-event", &news.id);
        if let Some(key) = key {
            request = request.header(SIGNATURE, signature(key, &news.body));
        }
        let (why, again) = match request.body(news.body.clone()).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                let status = answer.status();
                // What is refused as it is will be refused again; what is too much, or comes too early, may not be.
                let again = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
                (format!("it answered {status}"), again)
            }
            Err(error) => (error.without_url().to_string(), true),
        };
        if !again || attempt == ATTEMPTS {
            return Err(format!("{why} (attempt {attempt} of {ATTEMPTS})"));
        }
        tokio::time::sleep(wait).await;
        (wait, attempt) = (2 * wait, attempt + 1);
    }
}

/// The signature of a body.
fn signature(key: &hmac::Key, body: &[u8]) -> String {
    use std::fmt::Write as _;

    let mut text = "sha256=".to_owned();
    for byte in hmac::sign(key, body).as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2.
    #[test]
    fn r11_a_body_is_signed_as_others_sign() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            signature(&key, b"what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
