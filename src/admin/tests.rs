//! The whole server on an executor, asked over loopback.

use super::*;
use crate::bus::AdminCommand;
use crate::telemetry::{EventLog, Telemetry};
use std::net::SocketAddr;

/// Octets in, octets out, until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> String {
    let deadline = rt::now() + Duration::from_secs(20);
    let mut stream = rt::TcpStream::connect(address, None, deadline).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut octets = [0; 4096];
    loop {
        match stream.read(&mut octets).await {
            Ok(0) | Err(_) => return String::from_utf8(answer).unwrap(),
            Ok(count) => answer.extend_from_slice(&octets[..count]),
        }
    }
}

/// Status and body.
async fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let answer = exchange(address, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {answer:?}"));
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Answers each question with its own name.
async fn scheduler(mut questions: rt::Receiver<ToScheduler>) {
    while let Some(question) = questions.recv().await {
        let ToScheduler::Admin(request) = question else { panic!("{question:?}") };
        request.answer.send(match request.command {
            AdminCommand::QueueShow(id) => Err(format!("{id} is not in the queue")),
            command => Ok(format!("{:?}", format!("{command:?}"))),
        });
    }
}

/// Runs the server for the time of a test.
fn with_server<Fut: Future<Output = ()>>(test: impl FnOnce(SocketAddr, Telemetry) -> Fut) {
    let (log, thread) = EventLog::start(std::io::sink()).unwrap();
    rt::run_to_end("test", || async move {
        let telemetry = Telemetry::new();
        let listener = rt::TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr();
        let (sender, receiver) = rt::channel(4);
        rt::spawn(scheduler(receiver));
        let context = Context {
            listener: Some(listener),
            publisher: Publisher::new(telemetry.clone(), log),
            meter: telemetry.register("control"),
            scheduler: sender,
            reload: None,
        };
        let (stop, stopped) = rt::oneshot();
        let server = rt::TaskGroup::default();
        server.spawn(run(context, stopped));
        test(address, telemetry).await;
        stop.send(());
        server.all_ended().await;
    })
    .unwrap();
    thread.finish();
}

#[test]
fn pages() {
    with_server(|address, telemetry| async move {
        let shard = telemetry.register("shard-0");
        assert_eq!(ask(address, "GET", "/healthz").await, (200, "ok\n".into()));
        assert_eq!(ask(address, "GET", "/readyz").await, (503, "shard-0: starting\n".into()));
        shard.set_ready();
        assert_eq!(ask(address, "GET", "/readyz").await, (200, "ok\n".into()));
        shard.counters.messages_accepted.add(7);
        let (status, metrics) = ask(address, "GET", "/metrics").await;
        assert!(status == 200 && metrics.contains("\nringmail_messages_accepted_total 7\n"), "{metrics}");
        assert_eq!(ask(address, "GET", "/v1/queue?limit=3").await, (200, "\"QueueList { filter: QueueFilter { queue_id: None, sender: None, recipient: None, domain: None, site: None }, limit: 3 }\"".into()));
        assert_eq!(ask(address, "GET", "/v1/summary").await, (200, "\"QueueSummary\"".into()));
        assert_eq!(ask(address, "POST", "/v1/queue/flush").await, (200, "\"QueueFlush\"".into()));
        let missing = ask(address, "GET", "/v1/queue/0000000G0001").await;
        assert_eq!(missing, (404, "0000000G0001 is not in the queue\n".into()));
        assert_eq!(ask(address, "GET", "/nothing").await.0, 404);
        assert_eq!(ask(address, "DELETE", "/v1/queue").await.0, 405);
        assert_eq!(ask(address, "HEAD", "/healthz").await, (200, String::new()));
        assert_eq!(ask(address, "HEAD", "/v1/queue/flush").await.0, 405);
    });
}

#[test]
fn hostile_requests_end_their_own_connection_only() {
    with_server(|address, _| async move {
        let many = (0..100).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
        for (request, expected) in [
            ("\0\0\0\r\n\r\n".to_owned(), "HTTP/1.1 400"),
            (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(20_000)), "HTTP/1.1 4"),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), "HTTP/1.1 431"),
            ("POST /v1/queue/flush HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\n\r\n".to_owned(), "HTTP/1.1 403"),
        ] {
            let answer = exchange(address, &request).await;
            assert!(answer.starts_with(expected), "{:.60} gives {answer:?}", request);
        }
        assert_eq!(ask(address, "GET", "/healthz").await.0, 200);
    });
}

#[test]
fn too_many_connections_are_closed_and_room_comes_back() {
    with_server(|address, _| async move {
        let deadline = rt::now() + Duration::from_secs(20);
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            idle.push(rt::TcpStream::connect(address, None, deadline).await.unwrap());
        }
        let refused = exchange(address, "").await;
        assert_eq!(refused, "");
        drop(idle);
        while exchange(address, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.is_empty() {
            rt::sleep(Duration::from_millis(5)).await;
        }
    });
}
