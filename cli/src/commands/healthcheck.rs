//! `baton healthcheck`

use std::time::Duration;

use baton_client::Client;
use baton_protocol::Service;
use baton_protocol::request::{InstanceStatus, Role};
use clap::Args;
use tokio::time::timeout;

use crate::Context;
use crate::failure::{Exit, Failure};

/// How long it may take. Whoever asks usually waits five seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// Ends with exit code 0 when an instance of the service leads, follows or serves
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    /// workflow-manager, resource-manager, optimizer or gateway
    service: Service,
}

impl Healthcheck {
    pub(crate) async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let service = self.service;
        let is_well = timeout(PATIENCE, async {
            let client = Client::connect(&context.connect_settings()).await?;
            // The first answer usually is the only one; all of them take a while to gather.
            let well = |statuses: &[InstanceStatus]| statuses.iter().any(|status| status.role != Role::Loading);
            let first = client.statuses_of(service, 1).await?;
            anyhow::Ok(well(&first) || (!first.is_empty() && well(&client.statuses(service).await?)))
        });
        let unwell = |why: &str| Failure::new(Exit::Unavailable, format!("the {service} {why}"));
        match is_well.await {
            Ok(Ok(true)) => Ok(Exit::Done),
            Ok(Ok(false)) => Err(unwell("does not answer, or is still reading the log").into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unwell("was not heard of in time").into()),
        }
    }
}
