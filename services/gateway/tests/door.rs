//! The gateway over HTTP, against a real nats-server; the services' side is a script. Every answer is also held against
//! the OpenAPI document: see `House::ask`.

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use baton_client::{Client, ConnectSettings};
use baton_protocol::record::Topic;
use baton_protocol::request::{ProgressEvent, Role};
use baton_protocol::run::RunStatus;
use baton_protocol::trace::run_span;
use baton_protocol::{AgentId, RunId, Service, subject};
use baton_shell::{Instance, Settings, Telemetry};
use baton_telemetry::spans::TraceConfig;
use baton_telemetry::{Metrics, Spans};
use baton_testkit::{OtlpReceiver, wait_for};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use support::{House, SOON, finished, ready, started, task};

const JSON: (&str, &str) = ("content-type", "application/json");
const RUN: &str = "0199a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b";

#[tokio::test]
async fn g1_workflows_are_registered_checked_listed_and_given() {
    let house = House::open().await;
    let definition = json!({ "name": "article", "stages": [{ "name": "a", "agent_type": "x" }] });

    let registered = house.post("/v1/workflows", &json!({ "definition": definition })).await;
    assert_eq!((registered.status, registered.json["version"].as_u64()), (201, Some(3)));
    assert_eq!(registered.header("location"), "/v1/workflows/article?version=3");
    assert_eq!(house.last_asked().body, json!({ "definition": definition }));

    let found = house.get(registered.header("location")).await;
    assert_eq!(found.status, 200);
    assert_eq!(house.last_asked().body, json!({ "name": "article", "version": 3 }));
    house.get("/v1/workflows/article").await;
    assert_eq!(house.last_asked().body, json!({ "name": "article" }));

    let yaml = "name: article\nstages:\n  - {name: a, agent_type: x}\n";
    for media in ["application/yaml", "text/yaml; charset=utf-8", "TEXT/YAML"] {
        let sent = house.ask(Method::POST, "/v1/workflows", &[("content-type", media)], Some(yaml)).await;
        assert_eq!(sent.status, 201, "{media}");
        assert_eq!(house.last_asked().body, json!({ "source": yaml }));
    }

    let checked = house.post("/v1/workflows/validate", &json!({ "source": yaml })).await;
    assert_eq!((checked.status, checked.json["version"].as_u64()), (200, Some(0)));
    assert_eq!(house.last_asked().endpoint, "workflow.validate");
    let wrong = house.post("/v1/workflows/validate", &json!({ "source": "nonsense" })).await;
    assert_eq!(wrong.code(), (422, "invalid_workflow"));
    assert_eq!(wrong.json["detail"], "line 1: nonsense is no definition");

    let list = house.get("/v1/workflows").await;
    assert_eq!((list.status, &list.json["workflows"][0]["name"]), (200, &json!("article")));

    // A workflow may be called like the path beside it.
    assert_eq!(house.get("/v1/workflows/validate?version=2").await.status, 200);
    assert_eq!(house.last_asked().body, json!({ "name": "validate", "version": 2 }));
}

#[tokio::test]
async fn g1_runs_are_started_listed_given_and_cancelled() {
    let house = House::open().await;
    let started = house.post("/v1/runs", &json!({ "workflow": "article", "input": { "topic": "x" } })).await;
    assert_eq!(started.status, 201);
    let run: RunId = started.json["run"].as_str().unwrap().parse().unwrap();
    assert_eq!(run.as_uuid().get_version_num(), 7);
    assert_eq!(started.header("location"), format!("/v1/runs/{run}"));
    assert_eq!(started.json["existing"], false);
    assert_eq!(house.last_asked().body["input"], json!({ "topic": "x" }));

    assert_eq!(house.get(started.header("location")).await.code(), (404, "unknown_run"));
    house.show(run, RunStatus::Running, 1);
    let view = house.get(started.header("location")).await;
    assert_eq!((view.status, &view.json["run"]), (200, &started.json["run"]));

    let list = house.get(&format!("/v1/runs?workflow=article&status=timed_out&limit=7&before={run}")).await;
    assert_eq!((list.status, &list.json["counts"]["running"]), (200, &json!(2)));
    let asked = json!({ "workflow": "article", "status": "timed_out", "limit": 7, "before": run });
    assert_eq!(house.last_asked().body, asked);
    house.get("/v1/runs").await;
    assert_eq!(house.last_asked().body, json!({}));

    let cancel = format!("/v1/runs/{run}/cancel");
    let plain = json!({ "run": run });
    let because = json!({ "run": run, "reason": "it is late" });
    for (method, path, body, asked) in [
        (Method::POST, cancel.clone(), Some("{\"reason\":\"it is late\"}"), &because),
        (Method::POST, cancel.clone(), None, &plain),
        (Method::DELETE, format!("/v1/runs/{run}"), None, &plain),
        (Method::DELETE, format!("/v1/runs/{run}?reason=it%20is+late"), None, &because),
    ] {
        let headers: &[_] = if body.is_some() { &[JSON] } else { &[] };
        let cancelled = house.ask(method, &path, headers, body).await;
        assert_eq!((cancelled.status, &cancelled.json["status"]), (200, &json!("cancelled")));
        assert_eq!(&house.last_asked().body, asked);
    }
    assert_eq!(house.post(&cancel, &json!({ "reason": "too late" })).await.code(), (409, "run_ended"));
}

#[tokio::test]
async fn w19_runs_are_found_paused_repeated_and_cancelled_together() {
    let house = House::open().await;
    let run = RunId::derive(1000, 1);
    let found = house.get("/v1/runs?since=5&until=9&paused=true&metadata=%7B%22customer%22%3A%22ann%22%7D").await;
    assert_eq!(found.status, 200);
    let asked = json!({ "since": 5, "until": 9, "paused": true, "metadata": { "customer": "ann" } });
    assert_eq!(house.last_asked().body, asked);
    assert_eq!(house.get("/v1/runs?metadata=ann").await.code(), (400, "invalid_request"));

    let paused = house.post(&format!("/v1/runs/{run}/pause"), &json!({ "reason": "lunch" })).await;
    assert_eq!((paused.status, &paused.json["paused"]), (200, &json!(true)));
    assert_eq!(house.last_asked().body, json!({ "run": run, "reason": "lunch" }));
    let resumed = house.ask(Method::POST, &format!("/v1/runs/{run}/resume"), &[], None).await;
    assert_eq!((resumed.status, house.last_asked().endpoint.as_str()), (200, "run.resume"));

    let rerun = format!("/v1/runs/{run}/rerun");
    let again = house.post(&rerun, &json!({ "from": "writing" })).await;
    assert_eq!(
        (again.status, again.header("location")),
        (201, format!("/v1/runs/{}", RunId::derive(1000, 99)).as_str())
    );
    assert_eq!(house.last_asked().body["from"], "writing");
    let key = [JSON, ("idempotency-key", "again")];
    assert_eq!(house.ask(Method::POST, &rerun, &key, Some("{\"from\":\"writing\"}")).await.status, 200);
    assert_eq!(house.last_asked().body["key"], "again");
    assert_eq!(house.post(&rerun, &json!({ "from": "absent" })).await.code(), (400, "invalid_request"));

    let filter = json!({ "filter": { "workflow": "article" }, "reason": "enough" });
    let cancelled = house.post("/v1/runs/cancel", &filter).await;
    assert_eq!((cancelled.status, &cancelled.json["more"]), (200, &json!(false)));
    assert_eq!(house.last_asked().body, filter);

    // What a stage waits for is put together from the run, its workflow and the agents.
    assert_eq!(house.get(&format!("/v1/runs/{run}/stages/research/why")).await.code(), (404, "unknown_run"));
    house.show(run, RunStatus::Running, 1);
    assert_eq!(house.get(&format!("/v1/runs/{run}/stages/nothing/why")).await.code(), (400, "invalid_request"));
    assert_eq!(house.get(&format!("/v1/runs/{run}/stages/No%20name/why")).await.code(), (400, "invalid_request"));
}

#[tokio::test]
async fn w18_people_decide_on_stages_and_give_signals() {
    let house = House::open().await;
    let run = RunId::derive(1_763_665_200_000, 1);
    for (verb, approved) in [("approve", true), ("reject", false)] {
        let said = json!({ "stage": "sign", "by": "eve", "reason": "I read it" });
        let decided = house.post(&format!("/v1/runs/{run}/{verb}"), &said).await;
        assert_eq!((decided.status, &decided.json["approved"]), (200, &json!(approved)));
        let asked = json!({ "run": run, "stage": "sign", "approved": approved, "by": "eve", "reason": "I read it" });
        assert_eq!(house.last_asked().body, asked);
        let early = house.post(&format!("/v1/runs/{run}/{verb}"), &json!({ "stage": "pending" })).await;
        assert_eq!(early.code(), (409, "not_waiting"));
    }
    let given = house.post(&format!("/v1/runs/{run}/signal"), &json!({ "signal": "paid", "payload": [1] })).await;
    assert_eq!((given.status, &given.json["signal"]), (200, &json!("paid")));
    assert_eq!(house.last_asked().body, json!({ "run": run, "signal": "paid", "payload": [1] }));
    let wrong = house.post(&format!("/v1/runs/{run}/signal"), &json!({ "signal": "Paid!" })).await;
    assert_eq!(wrong.code(), (400, "invalid_request"));
}

#[tokio::test]
async fn g1_a_key_gives_the_same_run_from_the_header_and_from_the_body() {
    let house = House::open().await;
    let start = async |key: Option<&str>, body: Value| {
        let mut headers = vec![JSON];
        headers.extend(key.map(|key| ("idempotency-key", key)));
        house.ask(Method::POST, "/v1/runs", &headers, Some(&body.to_string())).await
    };
    let first = start(Some("k-1"), json!({ "workflow": "article", "input": { "n": 1 } })).await;
    assert_eq!(first.status, 201);
    assert_eq!(house.last_asked().body["key"], "k-1");
    assert!(house.last_asked().body.get("run").is_none(), "the key says which run it is");

    for (key, body) in [
        (Some("k-1"), json!({ "workflow": "article", "input": { "n": 1 } })),
        (Some("\"k-1\""), json!({ "workflow": "article", "input": { "n": 1 } })),
        (None, json!({ "workflow": "article", "input": { "n": 1 }, "key": "k-1" })),
        (Some("k-1"), json!({ "workflow": "article", "input": { "n": 1 }, "key": "k-1" })),
    ] {
        let again = start(key, body).await;
        assert_eq!((again.status, &again.json["existing"]), (200, &json!(true)));
        assert_eq!(again.json["run"], first.json["run"]);
        assert_eq!(again.header("location"), first.header("location"));
    }

    let other = start(Some("k-1"), json!({ "workflow": "article", "input": { "n": 2 } })).await;
    assert_eq!(other.code(), (409, "key_conflict"));
    let asked = house.times_asked("run.start");
    let both = start(Some("k-1"), json!({ "workflow": "article", "key": "k-2" })).await;
    assert_eq!(both.code(), (400, "invalid_request"));
    assert!(both.json["detail"].as_str().unwrap().contains("\"k-2\""));
    let twice = [JSON, ("idempotency-key", "a"), ("idempotency-key", "b")];
    let twice = house.ask(Method::POST, "/v1/runs", &twice, Some("{\"workflow\":\"article\"}")).await;
    assert_eq!(twice.code(), (400, "invalid_request"));
    assert_eq!(house.times_asked("run.start"), asked, "nothing was asked");

    // Without a key, two starts are two runs.
    let one = start(None, json!({ "workflow": "article" })).await;
    let two = start(None, json!({ "workflow": "article" })).await;
    assert_ne!(one.json["run"], two.json["run"]);
}

#[tokio::test]
async fn g1_the_span_of_a_start_is_in_the_run_s_trace() {
    let receiver = OtlpReceiver::start().await;
    let config = TraceConfig { endpoint: Some(receiver.endpoint()), ..TraceConfig::default() };
    let spans = Spans::start("gateway", "g", &config).unwrap();
    let house = House::open_with(spans.clone()).await;
    let start = async |headers: &[(&str, &str)], body: Value| {
        let headers = [&[JSON], headers].concat();
        let answer = house.ask(Method::POST, "/v1/runs", &headers, Some(&body.to_string())).await;
        (answer, house.last_asked())
    };
    // The run is the trace.
    let (own, own_asked) = start(&[], json!({ "workflow": "article" })).await;
    // The caller's trace.
    let caller = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let (joined, joined_asked) = start(&[caller], json!({ "workflow": "article" })).await;
    // With a key the trace is made here too; the repetition joins the run that is there.
    let (keyed, keyed_asked) = start(&[("idempotency-key", "k")], json!({ "workflow": "article" })).await;
    let (_, _) = start(&[("idempotency-key", "k")], json!({ "workflow": "article" })).await;
    // What is no traceparent is left out of account; what is refused is shown all the same.
    let (refused, refused_asked) = start(&[("traceparent", "nonsense")], json!({ "workflow": "absent" })).await;
    assert_eq!(refused.status, 404);
    // What nobody recorded so far is not recorded here.
    let unsampled = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00");
    start(&[unsampled], json!({ "workflow": "article" })).await;

    spans.flush().await;
    let shown = wait_for("five spans", SOON, async || {
        let spans = receiver.spans();
        if spans.len() == 5 { Ok(spans) } else { Err(spans) }
    })
    .await;
    assert!(shown.iter().all(|span| span.name == "POST /v1/runs" && span.kind == "server" && !span.is_error));
    let of = |traceparent: &str| {
        let mut parts = traceparent.split('-').skip(1);
        let (trace, span) = (parts.next().unwrap(), parts.next().unwrap());
        shown.iter().find(|s| s.trace_id == trace && s.span_id == span).expect("the run's parent is exported")
    };
    let run = own.json["run"].as_str().unwrap();
    let span = of(own_asked.body["trace"].as_str().unwrap());
    assert_eq!(own_asked.traceparent.as_deref(), own_asked.body["trace"].as_str());
    assert_eq!((span.trace_id.as_str(), span.parent_id.as_str()), (run.replace('-', "").as_str(), ""));
    assert_eq!(span.attributes["baton.run.id"], run);
    assert_eq!(span.attributes["http.response.status_code"], "201");
    assert_eq!(own.json["trace_id"], span.trace_id.as_str());

    let span = of(joined_asked.body["trace"].as_str().unwrap());
    assert_eq!(span.trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(span.parent_id, "00f067aa0ba902b7");
    assert_eq!(joined.json["trace_id"], span.trace_id.as_str());

    let span = of(keyed_asked.body["trace"].as_str().unwrap());
    assert_eq!(keyed.json["trace_id"], span.trace_id.as_str());
    let keyed: RunId = keyed.json["run"].as_str().unwrap().parse().unwrap();
    let again = shown.iter().find(|span| span.attributes["http.response.status_code"] == "200").unwrap();
    assert_eq!(again.parent_id, format!("{:016x}", run_span(keyed)));

    let span = of(refused_asked.body["trace"].as_str().unwrap());
    assert_eq!(span.attributes["error.type"], "unknown_workflow");
}

#[tokio::test]
async fn g1_agents_placement_and_services_are_shown() {
    let house = House::open().await;
    assert_eq!(house.get("/v1/agents").await.status, 200);
    assert_eq!(house.last_asked().body, json!({ "gone": false }));
    let metadata = "%7B%22formats%22%3A%5B%22json%22%5D%7D";
    assert_eq!(house.get(&format!("/v1/agents?capability=research&metadata={metadata}&gone=true")).await.status, 200);
    let asked = json!({ "capability": "research", "requires": { "formats": ["json"] }, "gone": true });
    assert_eq!(house.last_asked().body, asked);
    let wanted = "capability=research&require=formats=%5B%22json%22%5D&require=size%3E%3D3&require=version%5E1.2";
    assert_eq!(house.get(&format!("/v1/agents?{wanted}")).await.status, 200);
    let requires = json!({ "formats": ["json"], "size": ">=3", "version": "^1.2" });
    assert_eq!(house.last_asked().body["requires"], requires);
    assert_eq!(house.get(&format!("/v1/agents/best?{wanted}&limit=3")).await.status, 200);
    assert_eq!(house.last_asked().body, json!({ "capability": "research", "requires": requires, "limit": 3 }));

    assert_eq!(house.get("/v1/alerts?all=true&severity=warning&kind=agent_lost&limit=3&before=9").await.status, 200);
    let asked = json!({ "all": true, "severity": "warning", "kind": "agent_lost", "limit": 3, "before": 9 });
    assert_eq!(house.last_asked().body, asked);
    assert_eq!(house.post("/v1/alerts/7/acknowledge", &json!({ "by": "ann" })).await.status, 200);
    assert_eq!(house.last_asked().body, json!({ "alert": 7, "by": "ann" }));
    assert_eq!(house.ask(Method::POST, "/v1/alerts/7/acknowledge", &[], None).await.status, 200);
    assert_eq!(house.last_asked().body, json!({ "alert": 7 }));
    let pressure = house.get("/v1/pressure").await.json;
    assert_eq!((&pressure["level"], &pressure["waiting_below"]), (&json!("elevated"), &json!(200)));

    let placement = house.get("/v1/placement").await;
    assert_eq!((placement.status, &placement.json["strategy"]), (200, &json!("ROUND_ROBIN")));
    let set = house.ask(Method::PUT, "/v1/placement/strategy", &[JSON], Some("{\"strategy\":\"LOAD_BALANCED\"}")).await;
    assert_eq!((set.status, &set.json), (200, &json!({})));
    assert_eq!(house.last_asked().body, json!({ "strategy": "LOAD_BALANCED" }));

    let services = house.get("/v1/services").await;
    let instances = services.json["instances"].as_array().unwrap();
    let seen: BTreeSet<_> =
        instances.iter().map(|i| (i["service"].as_str().unwrap(), i["role"].as_str().unwrap())).collect();
    let leading = Service::WRITERS.map(|service| (service.as_str(), "leading"));
    assert_eq!(seen, leading.into_iter().chain([("gateway", "serving")]).collect());
}

#[tokio::test]
async fn g1_the_gateway_shows_itself_on_nats() {
    let house = House::open().await;
    let client = Client::new(house.nats.clone());
    let statuses = client.statuses(Service::Gateway).await.unwrap();
    assert_eq!(statuses.iter().map(|status| status.role).collect::<Vec<_>>(), [Role::Serving]);
    let pong = house.nats.request("$SRV.PING.baton-gateway", "".into()).await.unwrap();
    let pong: Value = serde_json::from_slice(&pong.payload).unwrap();
    assert_eq!(pong["metadata"]["instance"], statuses[0].instance.as_str());
}

#[tokio::test]
async fn g1_every_error_is_a_problem() {
    let house = House::open().await;
    let post = |path: &'static str, headers: &'static [(&'static str, &'static str)], body: &'static str| {
        (Method::POST, path.to_owned(), headers, Some(body), 400, "invalid_request")
    };
    let get = |path: String, status, code| (Method::GET, path, [].as_slice(), None, status, code);
    const YAML: &[(&str, &str)] = &[("content-type", "application/yaml")];
    let cases = [
        get("/nowhere".to_owned(), 404, "not_found"),
        get("/v1/runs/".to_owned(), 404, "not_found"),
        get("/v1/workflows/absent".to_owned(), 404, "unknown_workflow"),
        get("/v1/workflows/Article".to_owned(), 400, "invalid_request"),
        get("/v1/workflows/%FF".to_owned(), 400, "invalid_request"),
        get("/v1/workflows/article?version=two".to_owned(), 400, "invalid_request"),
        get("/v1/runs/7".to_owned(), 400, "invalid_request"),
        get(format!("/v1/runs/{RUN}"), 404, "unknown_run"),
        get("/v1/runs?status=dead".to_owned(), 400, "invalid_request"),
        get("/v1/runs?limit=-1".to_owned(), 400, "invalid_request"),
        get("/v1/runs?stauts=running".to_owned(), 400, "invalid_request"),
        get("/v1/agents?metadata=7".to_owned(), 400, "invalid_request"),
        get("/v1/agents?capability=No".to_owned(), 400, "invalid_request"),
        get("/v1/agents?capability=a&require=size%3E%3Dmuch".to_owned(), 400, "invalid_request"),
        get("/v1/agents/best".to_owned(), 400, "invalid_request"),
        get("/v1/alerts?severity=urgent".to_owned(), 400, "invalid_request"),
        get(format!("/v1/runs/{RUN}/events?after=x"), 400, "invalid_request"),
        get(format!("/v1/runs/{RUN}/events"), 404, "unknown_run"),
        get(format!("/v1/runs/{RUN}/events?after=1.0"), 404, "unknown_run"),
        get("/problems/nonsense".to_owned(), 404, "not_found"),
        post("/v1/runs", &[JSON], ""),
        post("/v1/runs", &[JSON], "{"),
        post("/v1/runs", &[JSON], "{}"),
        post("/v1/runs", &[JSON], "{\"workflow\":\"A\"}"),
        post("/v1/runs", &[JSON], "{\"workflow\":7}"),
        post("/v1/workflows", &[JSON], "[]"),
        (Method::POST, format!("/v1/runs/{RUN}/cancel"), &[JSON], Some("{\"reason\":7}"), 400, "invalid_request"),
        (Method::POST, "/v1/runs".to_owned(), YAML, Some("workflow: a"), 415, "unsupported_media_type"),
        (Method::POST, "/v1/runs".to_owned(), &[], Some("{}"), 415, "unsupported_media_type"),
        (
            Method::POST,
            "/v1/workflows".to_owned(),
            &[("content-type", "text/plain")],
            Some("{}"),
            415,
            "unsupported_media_type",
        ),
        (Method::POST, format!("/v1/runs/{RUN}/cancel"), &[], Some("{}"), 415, "unsupported_media_type"),
        (
            Method::PUT,
            "/v1/placement/strategy".to_owned(),
            &[JSON],
            Some("{\"strategy\":\"x\"}"),
            400,
            "invalid_request",
        ),
    ];
    for (method, path, headers, body, status, code) in cases {
        let answer = house.ask(method.clone(), &path, headers, body).await;
        assert_eq!(answer.code(), (status, code), "{method} {path} {body:?}: {}", answer.text);
        assert_eq!(answer.json["type"], format!("/problems/{code}"));
        assert_eq!(answer.json["retry_after_ms"], Value::Null);
        // The type leads to an explanation.
        let page = house.get(answer.json["type"].as_str().unwrap()).await;
        assert!(page.text.starts_with(answer.json["title"].as_str().unwrap()), "{}", page.text);
    }

    for (method, path, allow) in
        [(Method::DELETE, "/v1/runs", "GET,HEAD,POST"), (Method::OPTIONS, "/v1/placement/strategy", "PUT")]
    {
        let wrong = house.ask(method, path, &[], None).await;
        assert_eq!(wrong.code(), (405, "method_not_allowed"));
        let mut allowed: Vec<_> = wrong.header("allow").split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow);
    }

    let large = format!("{{\"workflow\":\"article\",\"input\":\"{}\"}}", "x".repeat(3 * 1024 * 1024));
    let large = house.ask(Method::POST, "/v1/runs", &[JSON], Some(&large)).await;
    assert_eq!(large.code(), (413, "too_large"));

    let garbled = house.post("/v1/runs", &json!({ "workflow": "garbled" })).await;
    assert_eq!(garbled.code(), (500, "internal"));
    let busy = house.post("/v1/runs", &json!({ "workflow": "busy" })).await;
    assert_eq!(busy.code(), (503, "unavailable"));
    assert_eq!((busy.header("retry-after"), &busy.json["retry_after_ms"]), ("9", &json!(9000)));
    // A refusal for the moment is passed on, though waiting might help: who waits here is one more who waits.
    let crowded = house.post("/v1/runs", &json!({ "workflow": "crowded" })).await;
    assert_eq!(crowded.code(), (503, "overloaded"));
    assert_eq!((crowded.header("retry-after"), &crowded.json["retry_after_ms"]), ("2", &json!(1200)));
}

#[tokio::test]
async fn g1_a_service_that_is_away_is_waited_for_and_then_503() {
    let mut house = House::open().await;
    let silent = house.post("/v1/runs", &json!({ "workflow": "silent" })).await;
    assert_eq!(silent.code(), (503, "unavailable"));
    assert!(house.times_asked("run.start") > 1, "it is asked again");
    house.stop(Service::WorkflowManager).await;
    let away = house.get("/v1/workflows").await;
    assert_eq!((away.code(), away.header("retry-after")), ((503, "unavailable"), "1"));
    assert!(away.json["detail"].as_str().unwrap().contains("workflow-manager"));
}

#[tokio::test]
async fn g1_without_nats_the_gateway_lives_and_says_what_is_missing() {
    let mut house = House::open().await;
    assert_eq!(house.get("/readyz").await.status, 200);
    house.server.kill().await;
    let gone = wait_for("the gateway is not ready", SOON, async || {
        let answer = house.get("/readyz").await;
        if answer.status == 503 { Ok(answer) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(gone.code(), (503, "unavailable"));
    assert_eq!(gone.json["missing"][0], "nats");
    assert_eq!(house.get("/healthz").await.status, 200);
    let metrics = house.get("/metrics").await;
    assert!(metrics.text.contains("baton_http_requests_total{service=\"gateway\""));
    assert_eq!(house.get("/v1/workflows").await.code(), (503, "unavailable"));

    // It comes back by itself.
    house.server.restart().await;
    wait_for("the gateway is ready", SOON, async || {
        let answer = house.get("/readyz").await;
        if answer.status == 200 { Ok(()) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(house.get("/v1/workflows").await.status, 200);
}

#[tokio::test]
async fn g1_readiness_names_the_service_that_has_no_leader() {
    let mut house = House::open().await;
    let ready = house.get("/readyz").await;
    assert_eq!(ready.status, 200);
    let leaders: Vec<_> = ready.json["leaders"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(leaders, ["optimizer", "resource-manager", "workflow-manager"]);

    house.stop(Service::Optimizer).await;
    // A standby does not lead.
    let standby = Instance::new(Service::Optimizer);
    standby.update(|status| status.role = Role::Following);
    let mut tasks = tokio::task::JoinSet::new();
    let metrics = Metrics::new("optimizer", standby.name());
    baton_shell::serve_status(&house.nats, &standby, &metrics, &mut tasks).await.unwrap();
    house.nats.flush().await.unwrap();
    let missing = wait_for("the gateway is not ready", SOON, async || {
        let answer = house.get("/readyz").await;
        if answer.status == 503 { Ok(answer) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(missing.json["missing"], json!(["optimizer"]));
    assert_eq!(missing.header("retry-after"), "1");

    standby.update(|status| status.role = Role::Leading);
    wait_for("the gateway is ready", SOON, async || house.get("/readyz").await.status == 200).await;
}

#[tokio::test]
async fn g1_metrics_of_all_services_are_one_exposition() {
    let house = House::open().await;
    house.get("/v1/workflows/article").await;
    house.get("/v1/workflows/Wrong").await;
    house.get("/nowhere/at/all").await;
    let metrics = house.get("/metrics").await;
    assert_eq!(metrics.header("content-type"), baton_telemetry::metrics::CONTENT_TYPE);
    for service in Service::ALL {
        let series = format!("baton_commits_total{{service=\"{service}\"");
        assert_eq!(metrics.text.matches(&series).count(), 1, "{}", metrics.text);
    }
    assert_eq!(metrics.text.matches("# TYPE baton_commits_total ").count(), 1);
    for labels in [
        "method=\"GET\",route=\"/v1/workflows/{name}\",status=\"200\"} 1",
        "method=\"GET\",route=\"/v1/workflows/{name}\",status=\"400\"} 1",
        "method=\"GET\",route=\"other\",status=\"404\"} 1",
        "baton_http_request_seconds_count{service=\"gateway\"",
    ] {
        assert!(metrics.text.contains(labels), "{labels} is not in {}", metrics.text);
    }
    assert!(!metrics.text.contains("nowhere"));
}

#[tokio::test]
async fn g1_a_run_s_events_are_streamed_and_taken_up_where_they_were_left() {
    let mut house = House::open().await;
    house.make_log().await;
    let (run, other) = (RunId::derive(1, 1), RunId::derive(1, 2));
    house.commit(vec![started(other)]).await;
    let first = house.commit(vec![started(run), ready(other, "x"), ready(run, "a")]).await;
    house.show(run, RunStatus::Running, first);
    let path = format!("/v1/runs/{run}/events");
    let at = |seq: u64, index: u32| Some(format!("{seq}.{index}"));

    let mut events = house.events(&path, None).await;
    let begun = events.next().await.unwrap();
    assert_eq!((begun.kind.as_str(), begun.id), ("run_started", at(first, 0)));
    assert_eq!(begun.data["record"]["run_started"]["input"], json!({ "topic": "x" }));
    assert_eq!(begun.data["position"], at(first, 0).unwrap());
    assert_eq!(events.next_kind().await, ("stage_ready".to_owned(), at(first, 2)));

    // Live: progress, which has no id, and records.
    let progress = ProgressEvent {
        task: task(run, "a"),
        agent: AgentId::new("ann").unwrap(),
        fraction: 0.5,
        message: "reading".to_owned(),
        at: 1,
    };
    let topic = subject::event(Topic::Run(&run), "progress");
    house.nats.publish(topic, serde_json::to_vec(&progress).unwrap().into()).await.unwrap();
    let told = events.next().await.unwrap();
    assert_eq!((told.kind.as_str(), &told.id, &told.data["fraction"]), ("progress", &None, &json!(0.5)));
    let second = house.commit(vec![ready(run, "b")]).await;
    assert_eq!(events.next_kind().await, ("stage_ready".to_owned(), at(second, 0)));

    // The header counts, not the query that a browser repeats.
    let mut again = house.events(&format!("{path}?after={first}.0"), Some(&format!("{first}.2"))).await;
    assert_eq!(again.next_kind().await, ("stage_ready".to_owned(), at(second, 0)));
    let mut again = house.events(&format!("{path}?after={first}.0"), Some("")).await;
    assert_eq!(again.next_kind().await, ("stage_ready".to_owned(), at(first, 2)));
    // A position that is not reached yet would never be answered.
    let far = house.ask(Method::GET, &path, &[("last-event-id", "999.0")], None).await;
    assert_eq!(far.code(), (400, "invalid_request"));

    let last = house.commit(vec![finished(run), ready(other, "y")]).await;
    house.show(run, RunStatus::Succeeded, first);
    for events in [&mut events, &mut again] {
        while events.next_kind().await != ("run_finished".to_owned(), at(last, 0)) {}
        let end = events.next().await.unwrap();
        assert_eq!((end.kind.as_str(), end.id, end.data), ("end", None, json!({ "run": run })));
        assert_eq!(events.next().await, None);
    }

    // Who comes back after the end is told not to; who missed the end gets it.
    let over = house.ask(Method::GET, &path, &[("last-event-id", &format!("{last}.0"))], None).await;
    assert_eq!(over.status, 204);
    assert_eq!(house.get(&format!("{path}?after={last}.0")).await.status, 204);
    let mut missed = house.events(&path, Some(&format!("{second}.0"))).await;
    assert_eq!(missed.next_kind().await, ("run_finished".to_owned(), at(last, 0)));
    assert_eq!(missed.next_kind().await, ("end".to_owned(), None));
    let mut whole = house.events(&path, None).await;
    let mut kinds = Vec::new();
    while let Some(event) = whole.next().await {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, ["run_started", "stage_ready", "stage_ready", "run_finished", "end"]);
}

#[tokio::test]
async fn g1_a_shutdown_ends_event_streams_and_frees_the_port() {
    let mut house = House::open().await;
    house.make_log().await;
    let run = RunId::derive(1, 1);
    let first = house.commit(vec![started(run)]).await;
    house.show(run, RunStatus::Running, first);
    let mut events = house.events(&format!("/v1/runs/{run}/events"), None).await;
    assert_eq!(events.next_kind().await.0, "run_started");
    house.shutdown.cancel();
    // The run has not ended, so there is no `end`: the client will come back, to another gateway.
    assert_eq!(events.next().await, None);
    tokio::time::timeout(SOON, &mut house.gateway).await.unwrap().unwrap().unwrap();
    tokio::net::TcpListener::bind(house.address).await.unwrap();
}

#[tokio::test]
async fn g1_only_who_asks_for_this_machine_is_answered() {
    let house = House::open().await;
    let port = house.address.port();
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", &format!("localhost:{port}"), "[::1]:99"] {
        let answer = house.ask(Method::GET, "/healthz", &[("host", host)], None).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    for host in ["evil.example", &format!("evil.example:{port}"), "localhost.evil.example", "10.0.0.1", ""] {
        for path in ["/healthz", "/v1/runs", "/nowhere"] {
            let answer = house.ask(Method::GET, path, &[("host", host)], None).await;
            assert_eq!(answer.code(), (421, "misdirected"), "{host}");
        }
    }
    let own = format!("http://127.0.0.1:{port}");
    assert_eq!(house.ask(Method::GET, "/healthz", &[("origin", &own)], None).await.status, 200);
    for origin in ["http://evil.example", "null", "http://localhost:1"] {
        let path = format!("/v1/runs/{RUN}/cancel");
        let answer = house.ask(Method::POST, &path, &[("origin", origin)], None).await;
        assert_eq!(answer.code(), (403, "foreign_origin"), "{origin}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(house.times_asked("run.cancel"), 0);
}

#[tokio::test]
async fn g1_the_document_is_valid_and_says_what_the_router_does() {
    let house = House::open().await;
    let document = house.get("/openapi.json").await.json;
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document, baton_gateway::document());

    let mut references = BTreeSet::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 20, "{references:?}");
    for reference in &references {
        let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(found.is_some(), "{reference} leads nowhere");
    }
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in schemas {
        assert!(jsonschema::meta::is_valid(schema), "{name} is no JSON Schema");
        assert!(references.contains(&format!("#/components/schemas/{name}")), "nothing refers to {name}");
    }

    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let mut documented = BTreeSet::new();
        for (method, operation) in item.as_object().unwrap() {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()));
            assert!(operation["responses"]["default"].is_object());
            documented.insert(method.to_ascii_uppercase());
        }
        // The router says itself what it knows, of a path with its parameters filled in and of a method it does not.
        let concrete = path.replace("{name}", "article").replace("{run}", RUN).replace("{code}", "internal");
        let answer = house.ask(Method::PATCH, &concrete, &[], None).await;
        assert_eq!(answer.status, 405, "{path}");
        let mut routed: BTreeSet<_> = answer.header("allow").split(',').map(str::to_owned).collect();
        routed.remove("HEAD");
        if path == "/v1/workflows/validate" {
            // A GET is that of the path beside it.
            routed.remove("GET");
        }
        assert_eq!(routed, documented, "{path}");
    }
    for path in [
        "/v1/workflows",
        "/v1/workflows/{name}",
        "/v1/workflows/validate",
        "/v1/runs",
        "/v1/runs/{run}",
        "/v1/runs/{run}/cancel",
        "/v1/runs/{run}/events",
        "/v1/agents",
        "/v1/placement",
        "/v1/placement/strategy",
        "/v1/services",
        "/healthz",
        "/readyz",
        "/metrics",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
}

fn collect_references(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            into.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| collect_references(value, into));
        }
        Value::Array(array) => array.iter().for_each(|value| collect_references(value, into)),
        _ => {}
    }
}

#[tokio::test]
async fn g1_pages_for_people_lead_on() {
    let house = House::open().await;
    let index = house.get("/").await;
    assert!(index.header("content-type").starts_with("text/html"));
    for path in index.text.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        assert_eq!(house.get(path).await.status, 200, "{path}");
    }
    assert_eq!(house.get("/healthz").await.json["version"], env!("CARGO_PKG_VERSION"));
    let page = house.get("/problems/key_conflict").await;
    assert!(page.text.contains("The idempotency key was used for a different request."), "{}", page.text);
    assert!(page.text.contains("409"));
    // HEAD is GET without a body.
    let head = house.http.head(format!("{}/v1/workflows", house.base)).send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.bytes().await.unwrap().len()), (200, 0));
}

#[tokio::test]
async fn g1_an_address_that_is_taken_and_a_broker_that_is_away_are_said() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let run = async |listen: SocketAddr, server: String| {
        let mut settings = Settings::default();
        settings.http.listen = listen.to_string();
        let instance = Instance::new(Service::Gateway);
        let telemetry = Telemetry { spans: Spans::none(), metrics: Metrics::new("gateway", instance.name()) };
        let connect = ConnectSettings::server(server);
        let shutdown = CancellationToken::new();
        baton_gateway::run(instance, connect, settings, telemetry, shutdown, None).await.unwrap_err().to_string()
    };
    let error = run(address, "nats://127.0.0.1:1".to_owned()).await;
    assert!(error.contains(&address.to_string()) && error.contains("http.listen"), "{error}");
    // Nobody listens on this one after this line.
    drop(taken);
    let error = run("127.0.0.1:0".parse().unwrap(), format!("nats://{address}")).await;
    assert!(error.contains("no NATS server can be reached"), "{error}");
}

#[tokio::test]
async fn g1_requests_at_once_are_answered_at_once() {
    let house = House::open().await;
    let paths = ["/v1/workflows", "/v1/runs", "/v1/agents", "/v1/placement", "/readyz", "/healthz"];
    let many = futures::stream::iter((0..120).map(|n| house.get(paths[n % paths.len()])));
    let answers: Vec<_> = many.buffer_unordered(40).map(|answer| answer.status).collect().await;
    assert!(answers.iter().all(|status| *status == 200), "{answers:?}");
}
