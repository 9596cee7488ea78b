//! Whether the stages of a run kept to the edges of a graph: by the log, in which a stage becomes ready at a position, and is
//! over at another.

use std::collections::BTreeMap;

use baton_client::{Client, RunEvent};
use baton_protocol::record::{Event, WorkflowRecord};
use baton_protocol::{Position, RunId};
use futures::StreamExt;

/// When each stage of a run began, and was over.
#[derive(Debug, Default)]
pub(crate) struct Order {
    began: BTreeMap<String, Position>,
    over: BTreeMap<String, Position>,
    /// How many records there were.
    pub(crate) records: usize,
}

impl Order {
    /// Reads a run's records to its end.
    pub(crate) async fn of(client: &Client, run: RunId) -> Self {
        let mut order = Self::default();
        let mut events = client.run_events(run, None).await.expect("the run's events");
        while let Some(event) = events.next().await {
            if let RunEvent::Record(event) = event.expect("an event") {
                order.take(&event);
            }
        }
        order
    }

    fn take(&mut self, event: &Event) {
        self.records += 1;
        match event.record.read() {
            Ok(WorkflowRecord::StageReady(record)) => {
                self.began.entry(record.task.stage.to_string()).or_insert(event.position);
            }
            Ok(WorkflowRecord::StageEnded(record)) => {
                self.over.insert(record.task.stage.to_string(), event.position);
            }
            _ => {}
        }
    }

    /// How many edges there are, each of which leads from a stage that was over before the other began.
    ///
    /// # Panics
    /// At one of which that is not so.
    pub(crate) fn check<'a>(&self, edges: impl IntoIterator<Item = (&'a str, &'a str)>) -> usize {
        let mut count = 0;
        for (from, to) in edges {
            let over = self.over.get(from).unwrap_or_else(|| panic!("stage {from} never ended"));
            let began = self.began.get(to).unwrap_or_else(|| panic!("stage {to} never began"));
            assert!(over < began, "stage {to} began at {began}, before {from} was over at {over}");
            count += 1;
        }
        count
    }
}
