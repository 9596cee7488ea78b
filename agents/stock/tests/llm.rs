//! The roles against a stand-in that speaks the protocol.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use baton_stock::llm::{Client, LlmConfig};
use baton_stock::roles::{Context, Role, RoleError};
use rust_decimal::Decimal;
use serde_json::{Value, json};
use wiremock::matchers::{body_partial_json, header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

const KEY: &str = "sk-very-secret-0123456789";

fn client(server: &MockServer) -> Client {
    client_with(&server.uri(), &[])
}

fn client_with(uri: &str, more: &[(&str, &str)]) -> Client {
    static TLS: Once = Once::new();
    TLS.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let base = format!("{uri}/v1/");
    let settings = [
        ("OPENAI_BASE_URL", base.as_str()),
        ("OPENAI_API_KEY", KEY),
        ("OPENAI_MODEL", "test-model"),
        ("OPENAI_PRICE_IN", "0.15"),
        ("OPENAI_PRICE_OUT", "0.60"),
    ];
    let lookup =
        |name: &str| more.iter().chain(&settings).find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    Client::new(LlmConfig::from_lookup(lookup).expect("a configuration")).expect("a client")
}

fn completion(content: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "test-model-0613",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": content }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200 },
    })
}

async fn server(template: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("POST")).and(path("/v1/chat/completions")).respond_with(template).mount(&server).await;
    server
}

async fn answering(content: &str) -> MockServer {
    server(ResponseTemplate::new(200).set_body_json(completion(content))).await
}

fn context() -> Context {
    Context { root: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")), ..Context::default() }
}

#[expect(clippy::needless_pass_by_value, reason = "a json! literal reads best as it is")]
fn task(results: Value) -> Value {
    json!({
        "input": { "topic": "bees in winter", "sources": "fixtures" },
        "results": results,
        "metadata": { "requires_citations": true },
    })
}

fn research() -> Value {
    json!({ "extracts": [
        { "id": 1, "source": "a.md", "heading": "Cluster", "text": "The workers form a ball around the queen. It is called the winter cluster." },
        { "id": 2, "source": "b.md", "text": "The heat of the cluster comes from honey alone." },
    ] })
}

#[tokio::test]
async fn a_question_is_asked_as_the_protocol_wants_it_and_paid_exactly() {
    let server = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/v1/chat/completions"))
        .and(header("authorization", format!("Bearer {KEY}")))
        .and(body_partial_json(json!({
            "model": "test-model",
            "messages": [{ "role": "system", "content": "Be brief." }, { "role": "user", "content": "Well?" }],
            "max_completion_tokens": 50,
        })))
        .respond_with(ResponseTemplate::new(200).set_body_json(completion("Well.")))
        .expect(1)
        .mount(&server)
        .await;
    let answer =
        client_with(&server.uri(), &[("OPENAI_MAX_TOKENS", "50")]).chat("Be brief.", "Well?").await.expect("an answer");
    assert_eq!(answer.text, "Well.");
    assert_eq!((answer.spent.tokens_in, answer.spent.tokens_out), (1000, 200));
    assert_eq!(answer.spent.model, "test-model-0613");
    // 1000 × 0.15 + 200 × 0.60, by the million.
    assert_eq!(answer.spent.cost, Decimal::new(27, 5));
}

#[tokio::test]
async fn a_server_that_leaves_things_out_is_understood() {
    let server =
        server(ResponseTemplate::new(200).set_body_json(json!({ "choices": [{ "message": { "content": "Yes." } }] })))
            .await;
    let answer = client(&server).chat("", "").await.expect("an answer");
    assert_eq!((answer.text.as_str(), answer.spent.tokens_in, answer.spent.model.as_str()), ("Yes.", 0, "test-model"));
}

#[tokio::test]
async fn refusals_say_whether_and_when_to_try_again() {
    let refuse = |status: u16, body: Value| ResponseTemplate::new(status).set_body_json(body);
    let said = json!({ "error": { "message": format!("bad key {KEY}, sorry") } });
    let broke = json!({ "error": { "message": "no money", "code": "insufficient_quota" } });
    for (template, retryable, retry_after, message) in [
        (
            refuse(429, said.clone()).insert_header("retry-after", "7"),
            true,
            Some(7),
            "429 Too Many Requests: bad key ***, sorry",
        ),
        (refuse(429, broke), false, None, "429 Too Many Requests: no money"),
        (refuse(500, json!({})), true, None, "500 Internal Server Error"),
        (refuse(503, json!({})).insert_header("retry-after", "2"), true, Some(2), "503 Service Unavailable"),
        (refuse(400, said.clone()), false, None, "400 Bad Request: bad key ***, sorry"),
        (refuse(401, said.clone()), false, None, "401 Unauthorized (is OPENAI_API_KEY right?)"),
        (refuse(404, json!("odd")), false, None, "404 Not Found"),
        (refuse(302, json!({})).insert_header("location", "http://elsewhere.invalid/"), false, None, "302 Found"),
    ] {
        let server = server(template).await;
        let error = client(&server).chat("", "").await.expect_err("a refusal");
        assert_eq!(error.message, format!("127.0.0.1 refused with {message}"));
        assert_eq!(
            (error.retryable, error.retry_after.map(|wait| wait.as_secs())),
            (retryable, retry_after),
            "{message}"
        );
    }
}

#[tokio::test]
async fn silence_and_absence_may_be_tried_again() {
    let slow = server(ResponseTemplate::new(200).set_delay(Duration::from_secs(30))).await;
    let error = client_with(&slow.uri(), &[("OPENAI_TIMEOUT_SECS", "1")]).chat("", "").await.expect_err("too slow");
    assert_eq!((error.message.as_str(), error.retryable), ("127.0.0.1 did not answer within 1 s", true));
    // A port that was just free and is free again.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let uri = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let error = client_with(&uri, &[]).chat("", "").await.expect_err("nobody is there");
    assert!(error.retryable && error.message.starts_with("127.0.0.1 cannot be reached"), "{error}");
}

#[tokio::test]
async fn the_key_is_shown_nowhere() {
    let server = server(ResponseTemplate::new(500).set_body_json(json!({ "error": { "message": KEY } }))).await;
    let client = client(&server);
    let error: RoleError = client.chat("", "").await.expect_err("a refusal");
    let shown = format!("{client:?} {error:?} {error}");
    assert!(!shown.contains("very-secret"), "{shown}");
}

#[tokio::test]
async fn answers_that_are_none_are_refused_with_what_they_cost() {
    let mut refused = completion("");
    refused["choices"][0]["message"]["refusal"] = "I will not".into();
    let mut withheld = completion("x");
    withheld["choices"][0]["finish_reason"] = "content_filter".into();
    for (body, retryable, message) in [
        (refused, false, "the model test-model-0613 refused: I will not"),
        (withheld, false, "the answer of test-model-0613 was withheld by a content filter"),
        (completion(" "), true, "the model test-model-0613 gave an empty answer"),
    ] {
        let server = server(ResponseTemplate::new(200).set_body_json(body)).await;
        let error = client(&server).chat("", "").await.expect_err("no answer");
        assert_eq!((error.message.as_str(), error.retryable), (message, retryable));
        assert_eq!(error.spent.expect("it cost something").tokens_in, 1000);
    }
    let server = server(ResponseTemplate::new(200).set_body_string("<html>")).await;
    let error = client(&server).chat("", "").await.expect_err("no completion");
    assert!(!error.retryable && error.message.contains("is no chat completion"), "{error}");
}

#[tokio::test]
async fn research_keeps_the_words_of_the_files_and_the_models_choice() {
    let server = answering(
        "Here: {\"extracts\": [{\"id\": 3, \"summary\": \"In short.\"}, {\"id\": 1}, {\"id\": 99}, {\"id\": 3}]}",
    )
    .await;
    let done = client(&server).run(Role::Research, &task(json!({})), &context()).await.expect("findings");
    let local = Role::Research.run(&task(json!({})), &context()).expect("findings");
    let chosen = done.output["extracts"].as_array().expect("extracts");
    assert_eq!(chosen.len(), 2);
    assert_eq!((&chosen[0]["id"], &chosen[0]["text"]), (&json!(1), &local["extracts"][2]["text"]));
    assert_eq!(chosen[0]["summary"], "In short.");
    assert_eq!((&chosen[1]["id"], &chosen[1]["text"]), (&json!(2), &local["extracts"][0]["text"]));
    assert_eq!(done.spent.tokens_out, 200);

    let server = answering("I cannot do JSON.").await;
    let done = client(&server).run(Role::Research, &task(json!({})), &context()).await.expect("findings all the same");
    assert_eq!(done.output["extracts"], local["extracts"]);
    assert_eq!(done.output["notes"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn writing_is_read_back_into_the_same_shape() {
    let server = answering(
        "```markdown\n# Bees in Winter\n\nHoney alone heats the cluster [2].\n\n## The ball\n\nWorkers form a ball around \
         the queen. [1][2] This is not known. [7]\n\n## References\n\n[1] something made up\n```",
    )
    .await;
    let done =
        client(&server).run(Role::Writing, &task(json!({ "r": research() })), &context()).await.expect("an article");
    assert_eq!(
        done.output["document"],
        "# Bees in Winter\n\nHoney alone heats the cluster. [1]\n\n## The ball\n\nWorkers form a ball around the queen. [1][2] \
         This is not known. [7]\n\n## Sources\n\n- [1] `b.md`\n- [2] `a.md` — Cluster\n"
    );
    assert_eq!(done.output["extracts"][0]["source"], "b.md");
    assert_eq!(
        done.output["sentences"][1],
        json!({ "text": "Workers form a ball around the queen.", "citations": [1, 2], "section": "The ball" })
    );

    // What the model made up is found by the mechanical check.
    let verification = task(json!({ "w": done.output }));
    let error = client(&server).run(Role::Verification, &verification, &context()).await.expect_err("a false citation");
    assert_eq!(error.message, "verification failed: [7] is cited, but there is no such source");
}

#[tokio::test]
async fn a_section_continues_the_text() {
    let first = json!({ "document": "# Bees\n\n## Methodology\n\nThe heat of the cluster comes from honey alone. [1]\n",
        "extracts": [{ "id": 1, "source": "b.md", "text": "The heat of the cluster comes from honey alone." }] });
    let server = answering("## Results\n\nThe workers form a ball. [2] It is cut he").await;
    let mut task = task(json!({ "methodology": first, "r": research() }));
    task["params"] = json!({ "section": "Results" });
    let done = client(&server).run(Role::Writing, &task, &context()).await.expect("a section");
    assert_eq!(done.output["sections"], json!(["Methodology", "Results"]));
    assert_eq!(done.output["includes"], json!(["methodology"]));
    assert!(
        done.output["document"].as_str().expect("text").starts_with("# Bees\n\n## Methodology\n"),
        "{}",
        done.output["document"]
    );
    let asked: Value = server.received_requests().await.expect("requests")[0].body_json().expect("JSON");
    let question = asked["messages"][1]["content"].as_str().expect("text");
    assert!(
        question.contains("Write only the section \"## Results\"") && question.contains("must not be repeated"),
        "{question}"
    );
}

#[tokio::test]
async fn an_article_that_cites_nothing_is_not_taken() {
    let server = answering("# Bees\n\nBees are nice.").await;
    let error = client(&server)
        .run(Role::Writing, &task(json!({ "r": research() })), &context())
        .await
        .expect_err("no citation");
    assert!(error.retryable);
    assert_eq!(error.message, "the model's article cites none of the extracts it was given");
    assert_eq!(error.spent.expect("it cost something").cost, Decimal::new(27, 5));
}

#[tokio::test]
async fn an_edit_is_taken_only_if_it_keeps_the_citations() {
    let text = json!({
        "document": "# Bees\n\nThe heat of the cluster comes from honey alone. [2] The workers form a ball around the queen. [1]\n",
        "extracts": research()["extracts"],
    });
    let server =
        answering("# Bees\n\nOnly honey heats the cluster. [1] The \"workers\" form a ball around the queen. [2]\n")
            .await;
    let done = client(&server).run(Role::Editing, &task(json!({ "w": text })), &context()).await.expect("an edit");
    assert_eq!(
        done.output["document"],
        "# Bees\n\nOnly honey heats the cluster. [1] The “workers” form a ball around the queen. [2]\n\n## Sources\n\n\
         - [1] `b.md`\n- [2] `a.md` — Cluster\n"
    );
    assert_eq!(done.output["changes"][0], json!({ "kind": "model", "detail": "revised by test-model-0613" }));

    for (answer, why) in [
        ("# Bees\n\nGone.", "of 2 sentences with citations it kept 0"),
        ("# Bees\n\nNew. [1] Other. [5]", "it cites [5], which the text did not"),
        ("# Bees\n\nOnly honey heats it. [1] Bees are nice.", "1 of its sentences cite nothing"),
    ] {
        let server = answering(answer).await;
        let done = client(&server).run(Role::Editing, &task(json!({ "w": text })), &context()).await.expect("an edit");
        assert_eq!(done.output["notes"], json!([format!("the model's edit was not taken: {why}")]));
        assert!(
            done.output["document"]
                .as_str()
                .expect("text")
                .contains("The heat of the cluster comes from honey alone. [1]")
        );
    }
}

#[tokio::test]
async fn a_model_may_comment_on_what_passed_and_decides_nothing() {
    let good = json!({ "document": "The heat of the cluster comes from honey alone. [2]\n", "extracts": research()["extracts"] });
    let server = answering("Short, but sound.").await;
    let done =
        client(&server).run(Role::Verification, &task(json!({ "w": good })), &context()).await.expect("a report");
    assert_eq!((&done.output["verdict"], &done.output["opinion"]), (&json!("pass"), &json!("Short, but sound.")));

    let down = server_down().await;
    let done = client(&down).run(Role::Verification, &task(json!({ "w": good })), &context()).await.expect("a report");
    assert_eq!(done.output["verdict"], "pass");
    let notes = done.output["notes"].as_array().expect("notes");
    assert_eq!(notes.last(), Some(&json!("no opinion: 127.0.0.1 refused with 503 Service Unavailable")));

    let mut quiet = task(json!({ "w": good }));
    quiet["params"] = json!({ "opinion": false });
    let done = client(&server).run(Role::Verification, &quiet, &context()).await.expect("a report");
    assert_eq!((done.spent.tokens_in, done.output.get("opinion")), (0, None));
}

async fn server_down() -> MockServer {
    server(ResponseTemplate::new(503)).await
}

#[tokio::test]
async fn wrong_input_costs_nothing() {
    let server = answering("x").await;
    for role in Role::ALL {
        let error =
            client(&server).run(role, &json!({ "input": {} }), &context()).await.expect_err("there is nothing to do");
        assert!(!error.retryable && error.spent.is_none(), "{role}: {error}");
    }
    assert!(server.received_requests().await.expect("requests").is_empty());
}
