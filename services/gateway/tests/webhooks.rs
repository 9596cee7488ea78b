//! Webhooks of the gateway, against a real nats-server and real HTTP servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use baton_client::ConnectSettings;
use baton_protocol::Service;
use baton_protocol::alert::AlertSeverity;
use baton_shell::{Instance, Settings, Telemetry, WebhookSettings};
use baton_telemetry::{Metrics, Spans};
use baton_testkit::{NatsServer, wait_for};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(30);

/// Serves `/hook`: it answers with what `answer` says of the count of requests so far.
async fn serve(
    answer: impl Fn(usize) -> StatusCode + Clone + Send + Sync + 'static,
) -> (String, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (told, heard) = mpsc::unbounded_channel();
    let count = Arc::new(AtomicUsize::new(0));
    let hook = move |headers: HeaderMap, body: Bytes| {
        let status = answer(count.fetch_add(1, Ordering::SeqCst));
        let _ = told.send((headers, body));
        async move { status }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/hook", post(hook))).await });
    (url, heard)
}

fn webhook(name: &str, url: String, secret: Option<&str>, severity: AlertSeverity) -> WebhookSettings {
    WebhookSettings { url, name: Some(name.to_owned()), secret: secret.map(str::to_owned), severity }
}

#[tokio::test]
async fn r11_webhooks_are_told_signed_again_and_apart_from_each_other() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = NatsServer::start().await;
    let (good, mut heard) = serve(|_| StatusCode::NO_CONTENT).await;
    let (flaky, mut retried) = serve(|n| if n == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }).await;
    let (refusing, mut refused) = serve(|_| StatusCode::FORBIDDEN).await;
    let mut settings = Settings::default();
    settings.http.listen = "127.0.0.1:0".to_owned();
    settings.alerts.webhooks = vec![
        webhook("refusing", refusing, None, AlertSeverity::Informational),
        webhook("flaky", flaky, None, AlertSeverity::Critical),
        webhook("good", good, Some("Jefe"), AlertSeverity::Warning),
    ];
    let instance = Instance::new(Service::Gateway);
    let metrics = Metrics::new("gateway", instance.name());
    let telemetry = Telemetry { spans: Spans::none(), metrics: metrics.clone() };
    let shutdown = CancellationToken::new();
    let _end = shutdown.clone().drop_guard();
    let connect = ConnectSettings::server(server.client_url());
    let (bound, address) = oneshot::channel();
    tokio::spawn(baton_gateway::run(instance, connect, settings, telemetry, shutdown.clone(), Some(bound)));
    address.await.unwrap();

    let nats = server.connect().await;
    let event = |number: u64| {
        format!(
            r#"{{"position":"{number}.0","service":"resource-manager","number":{number},"at":1,"cause":"timer","kind":"alert_raised","record":{{"alert_raised":{{}}}}}}"#
        )
    };
    for (number, severity) in [(7, "informational"), (8, "warning"), (9, "critical")] {
        let subject = format!("baton.event.alert.{severity}.agent_lost.alert_raised");
        nats.publish(subject, event(number).into()).await.unwrap();
    }
    let take = async |from: &mut mpsc::UnboundedReceiver<(HeaderMap, Bytes)>| {
        let (headers, body) = tokio::time::timeout(SOON, from.recv()).await.unwrap().unwrap();
        (headers["baton-event"].to_str().unwrap().to_owned(), headers, body)
    };
    // What matters too little is not told; what is told is signed.
    for number in [8, 9] {
        let (id, headers, body) = take(&mut heard).await;
        assert_eq!(id, format!("{number}.0"));
        assert_eq!(body, event(number));
        let signature = headers["baton-signature"].to_str().unwrap();
        assert!(signature.starts_with("sha256=") && signature.len() == 71, "{signature}");
    }
    // One that fails is told again, and holds nobody up; one that refuses is not.
    for _ in 0..2 {
        assert_eq!(take(&mut retried).await.0, "9.0");
    }
    for number in [7, 8, 9] {
        assert_eq!(take(&mut refused).await.0, format!("{number}.0"));
    }
    wait_for("all of it is counted", SOON, || {
        let text = metrics.render();
        async move {
            let has = |webhook: &str, outcome: &str, count: u32| {
                let is_it = |line: &&str| {
                    line.starts_with("baton_webhooks_total")
                        && line.contains(&format!("webhook=\"{webhook}\""))
                        && line.contains(&format!("outcome=\"{outcome}\""))
                        && line.ends_with(&format!(" {count}"))
                };
                text.lines().any(|line| is_it(&line))
            };
            match has("good", "delivered", 2) && has("flaky", "delivered", 1) && has("refusing", "failed", 3) {
                true => Ok(()),
                false => Err(text),
            }
        }
    })
    .await;
}
