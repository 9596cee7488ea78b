//! The connection to the broker.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server, ServerAddr};
use tokio::sync::watch;
use uuid::Uuid;

use crate::settings::{Auth, ConnectSettings, Resolved, SettingsError, without_secrets};

/// How often the broker is pinged. When the third ping has to be sent and none has been answered, the connection is given up:
/// a server that stands still, or whose host is gone, closes nothing.
const PING: Duration = Duration::from_secs(2);
/// How long it may take to connect to a server.
const CONNECT: Duration = Duration::from_secs(5);
/// The same where there are others to try.
const CONNECT_TO_ONE_OF_MANY: Duration = Duration::from_secs(2);
/// How long the broker may take to answer a request that says nothing else.
const REQUEST: Duration = Duration::from_secs(5);
/// The longest wait between two attempts to reconnect.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The settings make no sense.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A server's URL that is not one.
    #[error("{url:?} (from {from}) is not the URL of a NATS server: {why}; it looks like nats://127.0.0.1:4222")]
    Url {
        /// The URL, without a password.
        url: String,
        /// What named it.
        from: String,
        /// What is wrong.
        why: String,
    },
    /// What we authenticate with can not be used.
    #[error("{what} (from {from}) can not be used: {why}")]
    Credentials {
        /// What it is.
        what: String,
        /// What named it.
        from: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody is there.
    #[error(
        "no NATS server can be reached at {server} (from {from}): {why}. Start one with `baton up`, or say where it is: \
         --server, BATON_SERVER, NATS_URL or a NATS context"
    )]
    Unreachable {
        /// What was tried.
        server: String,
        /// What named it.
        from: String,
        /// What happened.
        why: String,
    },
    /// The broker does not let us in.
    #[error(
        "the NATS server at {server} does not let us in{with}: {why}. Give other credentials: --creds, --nkey, \
             --user, or BATON_… and NATS_… variables, or a NATS context"
    )]
    Denied {
        /// Who refused.
        server: String,
        /// What we authenticated with.
        with: String,
        /// What it said.
        why: String,
    },
}

/// How the connection stands, for those who must act when it comes back or when the broker forbids something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Whether it stands.
    pub connected: bool,
    /// How often it has been established, the first time included.
    pub connects: u64,
    /// The last thing that the broker forbade. A publication that it forbids vanishes, a subscription stays silent:
    /// nothing but this says so.
    pub denied: Option<String>,
    /// How many messages, at the least, were dropped because this process did not read them in time. Those who sent them
    /// are not told. Nobody who watches is woken for it.
    pub dropped: u64,
}

/// A connection, and how it stands.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The connection.
    pub nats: async_nats::Client,
    /// How it stands. Its subscriptions are back when a new connect is seen here.
    pub link: watch::Receiver<Link>,
}

/// Connects to the broker that the settings and the surroundings name.
///
/// A broker that is not there is an error now; one that goes away later is waited for, for ever.
pub async fn connect(settings: &ConnectSettings) -> Result<async_nats::Client, ConnectError> {
    Ok(Connection::open(settings).await?.nats)
}

impl Connection {
    /// Connects as [`connect`] does, and keeps watch over the connection.
    pub async fn open(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        let resolved = settings.resolve_here()?;
        let servers = addresses(&resolved)?;
        let (sender, link) = watch::channel(Link::default());
        let server = without_secrets(&resolved.server);
        let options = options(&resolved, sender);
        let options = if servers.len() > 1 { options.connection_timeout(CONNECT_TO_ONE_OF_MANY) } else { options };
        let options = authenticate(options, &resolved).await?;
        tracing::debug!(%server, from = resolved.server_from, auth = resolved.auth_from, "connecting to NATS");
        let nats = options.connect(servers).await.map_err(|error| refused(&resolved, &error))?;
        Ok(Self { nats, link })
    }
}

fn addresses(resolved: &Resolved) -> Result<Vec<ServerAddr>, ConnectError> {
    let parse = |url: &str| {
        url.trim().parse::<ServerAddr>().map_err(|error| ConnectError::Url {
            url: without_secrets(url),
            from: resolved.server_from.clone(),
            why: error.to_string(),
        })
    };
    // A comma within a password would cut it in two, and either part would be shown.
    if resolved.server.matches("://").count() <= resolved.server.matches(',').count() && resolved.server.contains('@') {
        return Err(ConnectError::Url {
            url: "***".to_owned(),
            from: resolved.server_from.clone(),
            why: "it has a comma that separates no two servers; in a password it is written %2C".to_owned(),
        });
    }
    resolved.server.split(',').map(parse).collect()
}

fn options(resolved: &Resolved, link: watch::Sender<Link>) -> ConnectOptions {
    let mut options = ConnectOptions::new()
        .name(resolved.name.as_deref().unwrap_or("baton"))
        .ping_interval(PING)
        .connection_timeout(CONNECT)
        .request_timeout(Some(REQUEST))
        .reconnect_delay_callback(reconnect_delay)
        .reconnect_to_server_callback({
            let elsewhere = Elsewhere::default();
            move |servers, _| std::future::ready(elsewhere.choose(&servers))
        })
        .event_callback(move |event| {
            note(&link, &event);
            std::future::ready(())
        });
    if let Some(prefix) = &resolved.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if let Some(ca) = &resolved.ca {
        options = options.add_root_certificates(ca.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&resolved.cert, &resolved.key) {
        options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
    }
    options
}

async fn authenticate(options: ConnectOptions, resolved: &Resolved) -> Result<ConnectOptions, ConnectError> {
    let unusable =
        |what: String, why: String| ConnectError::Credentials { what, from: resolved.auth_from.clone(), why };
    Ok(match &resolved.auth {
        Auth::Nothing => options,
        Auth::User(user, password) => options.user_and_password(user.clone(), password.reveal().to_owned()),
        Auth::Token(token) => options.token(token.reveal().to_owned()),
        Auth::Creds(path) => options
            .credentials_file(path)
            .await
            .map_err(|error| unusable(format!("the credentials file {}", path.display()), error.to_string()))?,
        Auth::Nkey(nkey) => {
            // What is not a file may be a seed with a mistake in it: it is never shown.
            let text = tokio::fs::read_to_string(nkey.reveal().trim()).await;
            let seed = text.unwrap_or_else(|_| nkey.reveal().to_owned());
            // The file may have comments or a decoration around the seed.
            let seed = seed.lines().map(str::trim).find(|line| line.starts_with("SU"));
            options.nkey(
                seed.ok_or_else(|| {
                    unusable("the nkey".into(), "it is neither a user's seed nor a file with one in it".into())
                })?
                .into(),
            )
        }
    })
}

fn refused(resolved: &Resolved, error: &async_nats::ConnectError) -> ConnectError {
    let server = without_secrets(&resolved.server);
    let why = error.to_string();
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            let with = match &resolved.auth {
                Auth::Nothing => " without credentials".to_owned(),
                Auth::Creds(path) => format!(" with {} (from {})", path.display(), resolved.auth_from),
                Auth::Nkey(_) => format!(" with the nkey (from {})", resolved.auth_from),
                Auth::User(user, _) => format!(" as {user:?} (from {})", resolved.auth_from),
                Auth::Token(_) => format!(" with the token (from {})", resolved.auth_from),
            };
            ConnectError::Denied { server, with, why }
        }
        _ => ConnectError::Unreachable { server, from: resolved.server_from.clone(), why },
    }
}

/// At once, then after 10, 20, 40 … ms, then every second.
fn reconnect_delay(attempts: usize) -> Duration {
    match attempts {
        0 | 1 => Duration::ZERO,
        n => Duration::from_millis(10 << (n - 2).min(7)).min(MAX_RECONNECT_DELAY),
    }
}

/// Where to go when a connection is lost or given up: to another server, as the last one may stand still, or be cut off from
/// the others of its cluster, and would take us all the same.
#[derive(Debug, Default)]
struct Elsewhere {
    /// Where we went last.
    last: Mutex<Option<ServerAddr>>,
}

impl Elsewhere {
    /// One of the servers that failed least, but not the last one.
    fn choose(&self, servers: &[Server]) -> Option<ReconnectToServer> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // The first connection is made without us. Then the one server that was connected to is the last one.
        let current = last.clone().or_else(|| Some(servers.iter().find(|server| server.did_connect)?.addr.clone()))?;
        let others = || servers.iter().filter(|server| server.addr != current);
        let failed = others().map(|server| server.failed_attempts).min()?;
        let best: Vec<&Server> = others().filter(|server| server.failed_attempts == failed).collect();
        // A version 4 id is random.
        let chance = Uuid::new_v4().as_u128() % u128::try_from(best.len()).ok()?;
        let addr = best.get(usize::try_from(chance).ok()?)?.addr.clone();
        *last = Some(addr.clone());
        Some(ReconnectToServer { addr, delay: None })
    }
}

/// Logs what happens to the connection, and tells those who watch it.
fn note(link: &watch::Sender<Link>, event: &Event) {
    match event {
        Event::Connected => {
            let first = link.borrow().connects == 0;
            link.send_modify(|link| {
                link.connected = true;
                link.connects += 1;
            });
            if first {
                tracing::debug!("connected to NATS");
            } else {
                tracing::info!("connected to NATS again");
            }
        }
        Event::Disconnected | Event::Closed => {
            let was = link.send_if_modified(|link| std::mem::take(&mut link.connected));
            if was && *event == Event::Disconnected {
                tracing::info!("the connection to NATS is lost");
            }
        }
        Event::ServerError(error) => {
            let text = error.to_string();
            tracing::error!(error = text, "the NATS server refuses");
            link.send_modify(|link| link.denied = Some(text));
        }
        Event::SlowConsumer(subscription) => {
            let mut dropped = 0;
            link.send_if_modified(|link| {
                link.dropped += 1;
                dropped = link.dropped;
                false
            });
            // There may be very many.
            if dropped.is_power_of_two() {
                tracing::warn!(subscription, dropped, "messages were dropped: this process reads them too slowly");
            }
        }
        Event::ClientError(error) => tracing::debug!(%error, "NATS client"),
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
        Event::Draining => tracing::debug!("the connection to NATS is being drained"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_to_reconnect_are_at_most_a_second_apart() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert_eq!(reconnect_delay(2), Duration::from_millis(10));
        assert_eq!(reconnect_delay(3), Duration::from_millis(20));
        assert_eq!(reconnect_delay(usize::MAX), MAX_RECONNECT_DELAY);
    }

    #[tokio::test]
    async fn errors_say_what_was_tried_and_show_no_password() {
        // Nobody listens on a port that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("nats://ann:hush@127.0.0.1:{port}");
        let error = connect(&ConnectSettings::server(url)).await.unwrap_err().to_string();
        assert!(error.contains(&format!("nats://127.0.0.1:{port} (from the command line)")), "{error}");
        assert!(error.contains("baton up") && error.contains("BATON_SERVER") && !error.contains("hush"), "{error}");
        let error = connect(&ConnectSettings::server("http://ann:hush@x")).await.unwrap_err().to_string();
        assert!(error.contains("\"http://x\"") && error.contains("nats://127") && !error.contains("hush"), "{error}");
    }
}
