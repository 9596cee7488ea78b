//! A TCP proxy that can be made as bad as a network.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use crate::port::Port;

/// The largest piece that is forwarded at once, in bytes.
const PIECE: usize = 64 * 1024;

/// How many pieces a direction of a connection holds back, before its sender feels it.
const HELD: usize = 256;

/// How long nothing is accepted after that has failed.
const PAUSE: Duration = Duration::from_millis(20);

/// A direction of the connections through a [`Proxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client, which connected to the proxy, says.
    ToServer,
    /// What the server, to which the proxy connected, says.
    ToClient,
}

/// How a [`Proxy`] closes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// With RST, as when a host has lost its memory of the connection. Bytes that were under way may be lost.
    Reset,
    /// With FIN, as when the other side closes in order.
    Finish,
}

/// A TCP proxy on a free port of the loopback interface, in front of one address.
///
/// At first it passes everything on. Each fault takes effect at once, also on connections that exist, and lasts until
/// [`Proxy::heal`]; faults may be combined. Dropping the proxy closes its connections and stops listening.
///
/// It works in tasks of the runtime in which it was started.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    target: SocketAddr,
    state: watch::Sender<State>,
    /// What the tasks have made of the state so far.
    seen: watch::Sender<Seen>,
    acceptor: JoinHandle<()>,
}

/// What is wanted of the tasks.
#[derive(Debug, Clone, Default)]
struct State {
    refusing: bool,
    delay: Duration,
    stalled: PerDirection<bool>,
    /// Connections with numbers below this are to be closed.
    closed_below: u64,
    close: Option<Close>,
    /// Connections with numbers below this are half closed.
    half_closed_below: PerDirection<u64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct PerDirection<T> {
    to_server: T,
    to_client: T,
}

impl<T> PerDirection<T> {
    fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::ToServer => &self.to_server,
            Direction::ToClient => &self.to_client,
        }
    }

    fn of_mut(&mut self, direction: Direction) -> &mut T {
        match direction {
            Direction::ToServer => &mut self.to_server,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// What there is.
#[derive(Debug, Default)]
struct Seen {
    listening: bool,
    /// The number of the next connection.
    next: u64,
    open: BTreeSet<u64>,
}

impl Proxy {
    /// Starts a proxy in front of an address. Nothing need listen there yet: whoever connects to the proxy while its
    /// target can not be reached is reset.
    ///
    /// # Panics
    /// When no port of the loopback interface can be had.
    pub async fn start(target: SocketAddr) -> Self {
        let port = Port::reserve().unwrap_or_else(|error| panic!("no port for a proxy: {error}"));
        let address = port.address();
        let (state, _) = watch::channel(State::default());
        let (seen, _) = watch::channel(Seen::default());
        let acceptor = tokio::spawn(accept(port, target, state.subscribe(), seen.clone()));
        let proxy = Self { address, target, state, seen, acceptor };
        proxy.listens(true).await;
        proxy
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`Proxy::address`].
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where clients of NATS connect.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// What it stands in front of.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// How many connections are open, also those that are half closed or held back.
    pub fn connections(&self) -> usize {
        self.seen.borrow().open.len()
    }

    /// Resets all connections and refuses new ones until [`Proxy::heal`]; returns when that is so.
    pub async fn cut(&self) {
        self.cut_with(Close::Reset).await;
    }

    /// Closes all connections and refuses new ones until [`Proxy::heal`]; returns when that is so.
    pub async fn cut_with(&self, close: Close) {
        self.state.send_modify(|state| state.refusing = true);
        self.listens(false).await;
        self.close_all(close).await;
    }

    /// Delays each direction by this much from now on, and keeps the order. What is under way already keeps its time.
    ///
    /// A direction holds back some megabytes, then its sender feels it.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }

    /// Becomes a black hole: accepts and keeps connections, but forwards nothing, not even that one of the sides has
    /// closed. [`Proxy::heal`] forwards what was held back, [`Proxy::drop_held`] loses it.
    ///
    /// A direction holds back some megabytes, then its sender feels it. New connections get to the server when it is over.
    pub fn stall(&self) {
        self.state.send_modify(|state| state.stalled = PerDirection { to_server: true, to_client: true });
    }

    /// Does as [`Proxy::stall`], in one direction only.
    pub fn stall_direction(&self, direction: Direction) {
        self.state.send_modify(|state| *state.stalled.of_mut(direction) = true);
    }

    /// Shuts one direction of the existing connections down: the receiver is told of an end (FIN), and what the sender goes
    /// on saying is swallowed without a word; the other direction still works. New connections are whole.
    ///
    /// It can not be healed, as the end has been told.
    pub fn half_close(&self, direction: Direction) {
        let next = self.seen.borrow().next;
        self.state.send_modify(|state| *state.half_closed_below.of_mut(direction) = next);
    }

    /// Passes everything on again, first of all what was held back. Returns when new connections are taken.
    pub async fn heal(&self) {
        self.state.send_modify(|state| {
            state.refusing = false;
            state.delay = Duration::ZERO;
            state.stalled = PerDirection::default();
        });
        self.listens(true).await;
    }

    /// Heals, but resets all existing connections, so that what was held back in them is lost.
    pub async fn drop_held(&self) {
        self.close_all(Close::Reset).await;
        self.heal().await;
    }

    async fn close_all(&self, close: Close) {
        let next = self.seen.borrow().next;
        self.state.send_modify(|state| {
            state.closed_below = next;
            state.close = Some(close);
        });
        let mut seen = self.seen.subscribe();
        // The sender is ours, so it is there.
        let _ = seen.wait_for(|seen| seen.open.range(..next).next().is_none()).await;
    }

    async fn listens(&self, wanted: bool) {
        let mut seen = self.seen.subscribe();
        let _ = seen.wait_for(|seen| seen.listening == wanted).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The tasks of the connections belong to it.
        self.acceptor.abort();
    }
}

/// Accepts connections, except while they are refused.
async fn accept(port: Port, target: SocketAddr, mut state: watch::Receiver<State>, seen: watch::Sender<Seen>) {
    let mut connections = JoinSet::new();
    // The proxy is gone when its state is.
    while state.wait_for(|state| !state.refusing).await.is_ok() {
        let listener = port.listen().unwrap_or_else(|error| panic!("cannot listen at {}: {error}", port.address()));
        seen.send_modify(|seen| seen.listening = true);
        loop {
            tokio::select! {
                // What comes after a refusal is refused.
                biased;
                refusing = refused(&mut state) => match refusing {
                    true => break,
                    false => return,
                },
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    let Ok((client, _)) = accepted else {
                        // No descriptors, say: nothing announces when there are some again.
                        sleep(PAUSE).await;
                        continue;
                    };
                    let open = Open::new(seen.clone());
                    connections.spawn(serve(client, target, state.clone(), open));
                }
            }
        }
        // What waits to be accepted is reset with it.
        drop(listener);
        seen.send_modify(|seen| seen.listening = false);
    }
}

async fn refused(state: &mut watch::Receiver<State>) -> bool {
    state.wait_for(|state| state.refusing).await.is_ok()
}

/// An entry among the open connections.
struct Open {
    number: u64,
    seen: watch::Sender<Seen>,
}

impl Open {
    fn new(seen: watch::Sender<Seen>) -> Self {
        let mut number = 0;
        seen.send_modify(|seen| {
            number = seen.next;
            seen.next += 1;
            seen.open.insert(number);
        });
        Self { number, seen }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.seen.send_modify(|seen| {
            seen.open.remove(&self.number);
        });
    }
}

/// One connection, until both sides have ended it or something else has.
async fn serve(mut client: TcpStream, target: SocketAddr, state: watch::Receiver<State>, open: Open) {
    let mut ending = state.clone();
    let number = open.number;
    let mut server = None;
    let close = tokio::select! {
        biased;
        // An error means that the proxy is gone.
        wanted = ending.wait_for(|state| number < state.closed_below) => {
            wanted.map_or(Close::Reset, |state| state.close.unwrap_or(Close::Reset))
        }
        close = forward(&mut client, &mut server, target, state, number) => close,
    };
    if close == Close::Reset {
        for stream in server.iter().chain([&client]) {
            // If the system refuses, they are closed in order, or reset, as it likes.
            let _ = stream.set_zero_linger();
        }
    }
    drop((client, server));
    // Only now may it count as closed.
    drop(open);
}

async fn forward(
    client: &mut TcpStream,
    server: &mut Option<TcpStream>,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
    number: u64,
) -> Close {
    // In a black hole the server hears of nobody new.
    if state.wait_for(|state| !state.stalled.to_server).await.is_err() {
        return Close::Reset;
    }
    let Ok(connected) = TcpStream::connect(target).await else { return Close::Reset };
    let server = server.insert(connected);
    let _ = client.set_nodelay(true).and(server.set_nodelay(true));
    let (client_reads, client_writes) = client.split();
    let (server_reads, server_writes) = server.split();
    let to_server = pass(Direction::ToServer, number, client_reads, server_writes, state.clone());
    let to_client = pass(Direction::ToClient, number, server_reads, client_writes, state);
    match tokio::try_join!(to_server, to_client) {
        Ok(_) => Close::Finish,
        Err(Broken) => Close::Reset,
    }
}

/// The connection is to be reset.
struct Broken;

/// A piece of what one side says.
enum Piece {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// Passes one direction on until its end.
async fn pass(
    direction: Direction,
    number: u64,
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    state: watch::Receiver<State>,
) -> Result<(), Broken> {
    let (held, pieces) = mpsc::channel(HELD);
    let ((), outcome) = tokio::join!(
        take_in(from, held, state.clone()),
        // When this ends early the other does, too, as nobody takes its pieces any more.
        give_out(direction, number, pieces, to, state)
    );
    outcome
}

/// Reads pieces and says when each is due.
async fn take_in(mut from: ReadHalf<'_>, held: mpsc::Sender<(Instant, Piece)>, state: watch::Receiver<State>) {
    let mut buffer = vec![0; PIECE];
    let mut due = Instant::now();
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = held.closed() => return,
        };
        let piece = match read {
            Ok(0) => Piece::End,
            Ok(count) => Piece::Bytes(buffer[..count].to_vec()),
            Err(_) => Piece::Reset,
        };
        let last = !matches!(piece, Piece::Bytes(_));
        // A delay that was made smaller must not change the order.
        due = due.max(Instant::now() + state.borrow().delay);
        if held.send((due, piece)).await.is_err() || last {
            return;
        }
    }
}

/// Writes pieces when they are due and nothing holds them back.
async fn give_out(
    direction: Direction,
    number: u64,
    mut pieces: mpsc::Receiver<(Instant, Piece)>,
    mut to: WriteHalf<'_>,
    mut state: watch::Receiver<State>,
) -> Result<(), Broken> {
    let mut closing = state.clone();
    let writing = async {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            state.wait_for(|state| !state.stalled.of(direction)).await.map_err(|_| Broken)?;
            match piece {
                Piece::Bytes(bytes) => to.write_all(&bytes).await.map_err(|_| Broken)?,
                Piece::End => return to.shutdown().await.map_err(|_| Broken),
                Piece::Reset => return Err(Broken),
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        wanted = closing.wait_for(|state| number < *state.half_closed_below.of(direction)) => {
            wanted.map_err(|_| Broken)?;
        }
        outcome = writing => return outcome,
    }
    to.shutdown().await.map_err(|_| Broken)?;
    while let Some((_, piece)) = pieces.recv().await {
        if matches!(piece, Piece::Reset) {
            return Err(Broken);
        }
    }
    Ok(())
}
