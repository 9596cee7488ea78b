//! A run's events as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use baton_client::{ClientError, RunEvent, RunEventStream};
use baton_protocol::record::Event;
use baton_protocol::{Position, RunId};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::extract::{Id, Query, header};
use crate::problem::Problem;
use crate::{Door, Inner};

/// How often something is sent at least, so that whoever is in between does not think the connection dead, and that a
/// client that has gone is noticed.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long a client waits before it comes back.
const RETRY: Duration = Duration::from_secs(1);

/// The kind of a run's last record.
const LAST_KIND: &str = "run_finished";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

#[derive(Debug, Deserialize)]
pub(crate) struct Events {
    after: Option<Position>,
}

pub(crate) async fn of_run(
    State(door): State<Door>,
    Id(run): Id<RunId>,
    Query(asked): Query<Events>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // A browser that comes back repeats the query it began with; the header says how far it came.
    let after = match header(&headers, &LAST_EVENT_ID)?.filter(|id| !id.is_empty()) {
        Some(id) => Some(id.parse().map_err(|error| Problem::invalid(format!("Last-Event-ID: {error}")))?),
        None => asked.after,
    };
    if let Some(after) = after
        && is_over(&door, run, after).await?
    {
        // The one answer after which an EventSource does not come back.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let events = door.client.run_events(run, after).await?;
    let sent = sent(run, events).take_until(door.shutdown.clone().cancelled_owned());
    Ok(response(sent, KEEP_ALIVE))
}

/// Whether that is the position of the run's last record. A position that the log has not reached is an error: waiting
/// for it would show nothing and say nothing.
async fn is_over(door: &Inner, run: RunId, after: Position) -> Result<bool, Problem> {
    let view = door.client.get_run(run).await?;
    let last = door.client.log_ends().await?.last;
    if after.seq > last {
        let detail = format!("position {after} is behind the end of the log, which has {last} messages");
        return Err(Problem::invalid(detail));
    }
    if !view.status.is_end() || after.seq < view.first_seq {
        return Ok(false);
    }
    let mut log = door.client.log(after.seq, Some(after.seq));
    let Some((seq, commit)) = log.try_next().await? else { return Ok(false) };
    let unreadable = |error: serde_json::Error| ClientError::Log(format!("message {seq}: {error}"));
    let events = commit.events(seq).map_err(unreadable)?;
    Ok(events.iter().any(|event| event.position == after && event.run == Some(run) && event.kind == LAST_KIND))
}

/// The events as they are sent, then how it ended.
fn sent(run: RunId, events: RunEventStream) -> impl Stream<Item = Sent> + Send {
    let first = stream::iter([opening("the events of a run")]);
    let rest = stream::unfold(Some(events), move |events| async move {
        let mut events = events?;
        Some(match events.next().await {
            Some(Ok(RunEvent::Record(event))) => (record(&event), Some(events)),
            Some(Ok(RunEvent::Progress(progress))) => (data("progress", &progress), Some(events)),
            Some(Err(error)) => (data("problem", &Problem::from(error).details()), None),
            None => (data("end", &json!({ "run": run })), None),
        })
    });
    first.chain(rest)
}

/// What is sent first, and says what this is.
pub(crate) fn opening(what: &str) -> Sent {
    Sent::default().retry(RETRY).comment(what)
}

fn record(event: &Event) -> Sent {
    data(&event.kind, event).id(event.position.to_string())
}

pub(crate) fn data<T: Serialize>(kind: &str, data: &T) -> Sent {
    let sent = Sent::default().event(kind);
    match serde_json::to_string(data) {
        // A user's JSON is carried as it was written. Line breaks are blanks in JSON, and one line of data is easier to
        // read for those who have no library for it.
        Ok(text) => sent.data(text.replace(['\r', '\n'], " ")),
        Err(error) => {
            // Nothing in the protocol is like that; it must not end the stream if something ever is.
            tracing::error!(kind, %error, "an event can not be written");
            sent
        }
    }
}

pub(crate) fn response(events: impl Stream<Item = Sent> + Send + 'static, keep_alive: Duration) -> Response {
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(keep_alive).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn g1_a_silent_stream_is_kept_alive_by_comments() {
        let silent = response(stream::pending(), Duration::from_millis(5));
        let mut body = silent.into_body().into_data_stream();
        for _ in 0..2 {
            let chunk = body.next().await.unwrap().unwrap();
            assert_eq!(chunk, ": keep-alive\n\n");
        }
    }

    #[tokio::test]
    async fn g1_what_breaks_a_stream_is_told_and_is_not_its_end() {
        let broken = ClientError::Log("message 7: it is not JSON".to_owned());
        let events = stream::iter([Err(broken)]).boxed();
        let run = RunId::derive(1, 1);
        let body = response(sent(run, events), KEEP_ALIVE).into_body();
        let text = axum::body::to_bytes(body, 10_000).await.unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("event: problem\ndata: {\"type\":\"/problems/unavailable\""), "{text}");
        assert!(text.contains("message 7") && !text.contains("event: end"), "{text}");
    }
}
