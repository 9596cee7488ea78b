//! The proxy, with raw sockets and before a real nats-server.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use async_nats::{Client, ConnectOptions, Event};
use baton_testkit::{Close, Direction, NatsOptions, NatsServer, Proxy, wait_for};
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;

const SOON: Duration = Duration::from_secs(30);
/// How long nothing must come, where nothing may.
const SILENCE: Duration = Duration::from_millis(100);

/// A proxy, what it stands before, and a connection through it.
async fn pair() -> (Proxy, TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap()).await;
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    (proxy, listener, client, server)
}

async fn says(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).await.unwrap();
    hears(to, text).await;
}

async fn hears(to: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    tokio::time::timeout(SOON, to.read_exact(&mut bytes)).await.expect("nothing comes").unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
}

async fn hears_nothing(to: &mut TcpStream) {
    let mut bytes = [0];
    let read = tokio::time::timeout(SILENCE, to.read(&mut bytes)).await;
    assert!(read.is_err(), "{read:?} came through");
}

/// How a connection ends: in order, or with an error.
async fn end(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it does not end");
    assert!(rest.is_empty(), "{rest:?} came before the end");
    read.map(drop).map_err(|error| error.kind())
}

#[tokio::test]
async fn what_is_said_gets_through_and_so_does_an_end() {
    let (proxy, _listener, mut client, mut server) = pair().await;
    says(&mut client, &mut server, "hello").await;
    says(&mut server, &mut client, "good day").await;
    assert_eq!(proxy.connections(), 1);
    // An end of one direction is not the end of the other.
    client.shutdown().await.unwrap();
    assert_eq!(end(&mut server).await, Ok(()));
    says(&mut server, &mut client, "still here").await;
    drop(server);
    assert_eq!(end(&mut client).await, Ok(()));
    wait_for("no connection", SOON, async || proxy.connections() == 0).await;
}

#[tokio::test]
async fn more_than_is_held_gets_through_unharmed() {
    let (_proxy, _listener, client, server) = pair().await;
    let bytes: Vec<u8> = (0..40_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut from, mut to) = (client, server);
    let sent = bytes.clone();
    let sending = tokio::spawn(async move {
        from.write_all(&sent).await.unwrap();
        from.shutdown().await.unwrap();
        from
    });
    let mut received = Vec::new();
    to.read_to_end(&mut received).await.unwrap();
    assert!(received == bytes, "{} bytes came, or others than were sent", received.len());
    sending.await.unwrap();
}

#[tokio::test]
async fn a_reset_gets_through() {
    let (_proxy, _listener, client, mut server) = pair().await;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_cut_closes_and_refuses_until_it_is_healed() {
    for close in [Close::Reset, Close::Finish] {
        let (proxy, listener, mut client, mut server) = pair().await;
        proxy.cut_with(close).await;
        let expected = if close == Close::Reset { Err(ErrorKind::ConnectionReset) } else { Ok(()) };
        assert_eq!(end(&mut client).await, expected);
        assert_eq!(end(&mut server).await, expected);
        assert_eq!(proxy.connections(), 0);
        for _ in 0..2 {
            let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
        // It keeps the port meanwhile.
        let taken = TcpSocket::new_v4().unwrap().bind(proxy.address()).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);
        proxy.heal().await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        says(&mut client, &mut server, "again").await;
    }
}

#[tokio::test]
async fn a_delay_keeps_the_order() {
    let (proxy, _listener, mut client, mut server) = pair().await;
    let delay = Duration::from_millis(150);
    proxy.delay(delay);
    let begun = Instant::now();
    client.write_all(b"one ").await.unwrap();
    tokio::task::yield_now().await;
    hears_nothing(&mut server).await;
    proxy.heal().await;
    // What is said later, with no delay, does not overtake.
    client.write_all(b"two").await.unwrap();
    hears(&mut server, "one two").await;
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    proxy.delay(delay);
    let begun = Instant::now();
    says(&mut client, &mut server, "there").await;
    says(&mut server, &mut client, "and back").await;
    assert!(begun.elapsed() >= 2 * delay, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_black_hole_holds_back_all_until_it_is_healed() {
    let (proxy, listener, mut client, mut server) = pair().await;
    proxy.stall();
    client.write_all(b"held").await.unwrap();
    server.write_all(b"back").await.unwrap();
    let mut late = TcpStream::connect(proxy.address()).await.unwrap();
    late.write_all(b"late").await.unwrap();
    hears_nothing(&mut server).await;
    hears_nothing(&mut client).await;
    assert!(tokio::time::timeout(SILENCE, listener.accept()).await.is_err());
    // Not even an end.
    server.shutdown().await.unwrap();
    hears_nothing(&mut client).await;

    proxy.heal().await;
    hears(&mut server, "held").await;
    hears(&mut client, "back").await;
    assert_eq!(end(&mut client).await, Ok(()));
    let (mut server, _) = listener.accept().await.unwrap();
    hears(&mut server, "late").await;
}

#[tokio::test]
async fn what_a_black_hole_holds_can_be_dropped() {
    let (proxy, listener, mut client, mut server) = pair().await;
    proxy.stall();
    client.write_all(b"held").await.unwrap();
    hears_nothing(&mut server).await;
    proxy.drop_held().await;
    assert_eq!(end(&mut server).await, Err(ErrorKind::ConnectionReset));
    assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    says(&mut client, &mut server, "new").await;
}

#[tokio::test]
async fn one_direction_alone_can_be_stalled() {
    let (proxy, _listener, mut client, mut server) = pair().await;
    proxy.stall_direction(Direction::ToClient);
    says(&mut client, &mut server, "question").await;
    server.write_all(b"answer").await.unwrap();
    hears_nothing(&mut client).await;
    proxy.heal().await;
    hears(&mut client, "answer").await;
}

#[tokio::test]
async fn a_half_closed_connection_still_works_the_other_way() {
    let (proxy, listener, mut client, mut server) = pair().await;
    proxy.half_close(Direction::ToServer);
    assert_eq!(end(&mut server).await, Ok(()));
    // It swallows what it is told, however much.
    client.write_all(&vec![0; 20_000_000]).await.unwrap();
    says(&mut server, &mut client, "do you hear me?").await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    says(&mut client, &mut server, "whole").await;

    proxy.half_close(Direction::ToClient);
    assert_eq!(end(&mut client).await, Ok(()));
    server.write_all(b"lost").await.unwrap();
    says(&mut client, &mut server, "I hear nothing").await;
}

#[tokio::test]
async fn a_dropped_proxy_closes_everything() {
    let (proxy, _listener, mut client, mut server) = pair().await;
    let address = proxy.address();
    drop(proxy);
    let _ = end(&mut client).await;
    let _ = end(&mut server).await;
    wait_for("a refusal", SOON, async || TcpStream::connect(address).await.is_err()).await;
}

#[tokio::test]
async fn who_connects_while_the_target_is_gone_is_reset() {
    let (proxy, listener, client, server) = pair().await;
    drop((listener, client, server));
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(end(&mut client).await, Err(ErrorKind::ConnectionReset));
}

/// A client that tells when it is connected and when it is not, and minds silence soon.
async fn watched(proxy: &Proxy) -> (Client, mpsc::UnboundedReceiver<Event>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let options = ConnectOptions::new()
        .ping_interval(Duration::from_millis(100))
        .connection_timeout(Duration::from_millis(500))
        .event_callback(move |event| {
            let _ = sender.send(event);
            std::future::ready(())
        });
    (options.connect(proxy.url()).await.unwrap(), receiver)
}

async fn sees(events: &mut mpsc::UnboundedReceiver<Event>, wanted: &Event) {
    let seeing = async { while events.recv().await.expect("events") != *wanted {} };
    tokio::time::timeout(SOON, seeing).await.unwrap_or_else(|_| panic!("in vain: {wanted:?}"));
}

#[tokio::test]
async fn a_client_of_nats_meets_each_fault_and_gets_over_it() {
    let nats = NatsServer::start_with(NatsOptions { jetstream: false, ..NatsOptions::default() }).await;
    let proxy = Proxy::start(([127, 0, 0, 1], nats.port()).into()).await;
    let direct = nats.connect().await;
    let (client, mut events) = watched(&proxy).await;
    sees(&mut events, &Event::Connected).await;
    let mut heard = client.subscribe("word").await.unwrap();
    client.flush().await.unwrap();
    // The server has the subscription when the client has an answer of its own.
    let mut check = async |client: &Client, word: &str| {
        wait_for("the word", SOON, || {
            let (client, word) = (client.clone(), word.to_owned());
            async move { client.publish("word", word.into()).await.is_ok() && client.flush().await.is_ok() }
        })
        .await;
        let message = tokio::time::timeout(SOON, heard.next()).await.expect("no word").unwrap();
        assert_eq!(message.payload, word.as_bytes());
    };
    check(&client, "at first").await;

    proxy.cut().await;
    sees(&mut events, &Event::Disconnected).await;
    proxy.heal().await;
    sees(&mut events, &Event::Connected).await;
    check(&client, "after a cut").await;

    proxy.delay(Duration::from_millis(20));
    check(&client, "with a delay").await;
    proxy.heal().await;

    // A client that hears nothing gives the connection up, and gets none that greets.
    proxy.stall();
    sees(&mut events, &Event::Disconnected).await;
    direct.publish("word", "unheard".into()).await.unwrap();
    direct.flush().await.unwrap();
    proxy.drop_held().await;
    sees(&mut events, &Event::Connected).await;
    check(&client, "after a black hole").await;

    // The server closes when it hears an end.
    proxy.half_close(Direction::ToServer);
    sees(&mut events, &Event::Disconnected).await;
    sees(&mut events, &Event::Connected).await;
    check(&client, "after half a close").await;
    proxy.half_close(Direction::ToClient);
    sees(&mut events, &Event::Disconnected).await;
    sees(&mut events, &Event::Connected).await;
    check(&client, "after the other half").await;
}
