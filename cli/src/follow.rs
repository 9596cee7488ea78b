//! What services answer, shown as it changes.

use baton_client::{Live, Shown};
use futures::StreamExt;
use serde::Serialize;

use crate::Context;
use crate::failure::Exit;
use crate::fleet::Signals;
use crate::output::Table;
use crate::watch::say;

/// Shows answers until somebody ends it: on a terminal in place, into a pipe whenever they change, one after the other.
pub(crate) async fn follow<A: Serialize>(
    context: &Context,
    mut live: Live<A>,
    json: bool,
    table: impl Fn(&A) -> Table,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::listen()?;
    let mut first = true;
    loop {
        let shown = tokio::select! {
            shown = live.next() => shown,
            () = signals.next() => return Ok(Exit::Done),
        };
        match shown {
            Some(Ok(Shown { answer, changed })) if json => {
                if changed {
                    context.out.json_line(&answer)?;
                }
            }
            // How long ago something was is always another time.
            Some(Ok(Shown { answer, changed })) if changed || context.out.terminal => {
                if !context.out.terminal && !first {
                    context.out.line("")?;
                }
                context.out.table_in_place(&table(&answer))?;
                first = false;
            }
            Some(Ok(_)) => {}
            Some(Err(error)) if error.is_transient() => say(&context.err.dim(&format!("{error}; it is asked on"))),
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(Exit::Done),
        }
    }
}
