//! The demo's HTTP side and its life as a process (`demo-server.md`), and what is no HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use mesh_tests::{Demo, PATIENCE, RawClient, until};
use serde_json::json;

#[test]
fn the_root_is_a_web_page() {
    let demo = Demo::shared();
    let page = demo.get("/");
    assert_eq!(page.status, 200);
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html")),
        "{}",
        page.head
    );
    let body = page.body.to_lowercase();
    assert!(
        body.contains("<!doctype html") && body.contains("websocket"),
        "{body}"
    );
}

#[test]
fn health_tells_status_instance_connections_and_backend() {
    let demo = Demo::start(&[]);
    let response = demo.get("/health");
    assert_eq!(response.status, 200);
    assert!(
        response
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("application/json")),
        "{}",
        response.head
    );
    let health = demo.health();
    let wanted = json!({ "status": "ok", "instanceId": health["instanceId"], "connections": 0, "backend": health["backend"] });
    assert_eq!(health, wanted);
    assert!(
        health["instanceId"]
            .as_str()
            .is_some_and(|id| !id.is_empty()),
        "{health}"
    );
    assert!(
        health["backend"] == "memory" || health["backend"] == "redis",
        "{health}"
    );
    let clients: Vec<RawClient> = (0..3).map(|_| RawClient::connect(&demo)).collect();
    assert_eq!(demo.connections(), 3);
    drop(clients);
    until("the connections are counted out", || {
        demo.connections() == 0
    });
}

#[test]
fn an_unknown_path_is_not_found() {
    let demo = Demo::shared();
    for path in [
        "/no-such-page",
        "/health/more",
        "/..%2f..%2fetc%2fpasswd",
        "/../../../etc/passwd",
    ] {
        assert_eq!(demo.get(path).status, 404, "{path}");
    }
}

#[test]
fn one_port_serves_requests_one_after_the_other_and_upgrades() {
    let demo = Demo::shared();
    let mut stream = TcpStream::connect(demo.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..3 {
        write!(
            stream,
            "GET /health HTTP/1.1\r\nHost: {}\r\n\r\n",
            demo.addr()
        )
        .unwrap();
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        while !answer.ends_with(b"}") {
            let len = stream.read(&mut piece).unwrap();
            assert!(
                len > 0,
                "the connection is not kept: {}",
                String::from_utf8_lossy(&answer)
            );
            answer.extend(&piece[..len]);
        }
        assert!(
            answer.starts_with(b"HTTP/1.1 200 "),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
}

/// The samples of `mesh_commands_total` whose label `command` has this value: the labels and the count.
fn samples(metrics: &str, command: &str) -> Vec<(String, u64)> {
    let lines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("mesh_commands_total{"));
    let samples = lines.map(|line| {
        line.rsplit_once("} ")
            .unwrap_or_else(|| panic!("not a sample: {line}"))
    });
    samples
        .filter(|(labels, _)| labels.contains(&format!("command=\"{command}\"")))
        .map(|(labels, count)| {
            (
                labels.to_owned(),
                count.trim().parse::<f64>().expect("a number") as u64,
            )
        })
        .collect()
}

fn total(metrics: &str, command: &str) -> u64 {
    samples(metrics, command)
        .iter()
        .map(|(_, count)| count)
        .sum()
}

#[test]
fn metrics_are_in_the_text_format_of_prometheus() {
    let demo = Demo::start(&[]);
    RawClient::connect(&demo).command("echo", "x");
    let response = demo.get("/metrics");
    assert_eq!(response.status, 200);
    assert!(
        response
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain")),
        "{}",
        response.head
    );
    assert!(response.body.ends_with('\n'), "the last line ends too");
    assert!(
        response
            .body
            .lines()
            .any(|line| line == "# TYPE mesh_commands_total counter"),
        "{}",
        response.body
    );
    for line in response.body.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix('#') {
            assert!(
                comment.starts_with(" HELP ") || comment.starts_with(" TYPE "),
                "{line}"
            );
            continue;
        }
        let (series, value) = line
            .rsplit_once(' ')
            .unwrap_or_else(|| panic!("not a sample: {line}"));
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let name = series.split('{').next().unwrap();
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte)),
            "{line}"
        );
        assert!(!series.contains('{') || series.ends_with('}'), "{line}");
    }
}

#[test]
fn metrics_count_each_command_by_its_outcome() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    for _ in 0..3 {
        client.command("echo", "x");
        client.command("mesh/noop", json!({}));
    }
    client.command("admin-only", json!({}));
    client.succeed("authenticate", json!({ "userId": "u" }));
    client.command("admin-only", json!({}));
    client.command("admin-only", json!({}));
    client.command("this-command-throws", json!({}));
    client.command("panics", json!({}));
    client.command("sleep", json!({ "ms": "wrong" }));
    let metrics = demo.get("/metrics").body;
    for (command, count) in [
        ("echo", 3),
        ("mesh/noop", 3),
        ("authenticate", 1),
        ("admin-only", 3),
        ("this-command-throws", 1),
        ("panics", 1),
        ("sleep", 1),
    ] {
        assert_eq!(total(&metrics, command), count, "{command} in\n{metrics}");
    }
    let outcomes = samples(&metrics, "admin-only");
    let mut counts: Vec<u64> = outcomes
        .iter()
        .map(|(_, count)| *count)
        .filter(|count| *count > 0)
        .collect();
    counts.sort();
    assert_eq!(counts, [1, 2], "one failure, two successes: {outcomes:?}");
    assert!(
        outcomes
            .iter()
            .all(|(labels, _)| labels.contains("outcome=\"")),
        "{outcomes:?}"
    );
}

#[test]
fn metrics_count_unknown_names_under_one_label() {
    let demo = Demo::start(&[]);
    let mut client = RawClient::connect(&demo);
    let series = |metrics: &str| {
        metrics
            .lines()
            .filter(|line| line.starts_with("mesh_commands_total{"))
            .count()
    };
    client.command("zz-unknown-0", json!({}));
    let before = demo.get("/metrics").body;
    for n in 1..50 {
        client.command(&format!("zz-unknown-{n}"), json!({}));
    }
    client.command("zz\"\n\\", json!({}));
    client.command("mesh/zz-unknown", json!({}));
    let after = demo.get("/metrics").body;
    assert!(
        !after.contains("zz"),
        "a name that a stranger made up is a label:\n{after}"
    );
    assert_eq!(
        series(&after),
        series(&before),
        "the series grow with made-up names:\n{after}"
    );
    let sum = |metrics: &str| -> u64 {
        let lines = metrics
            .lines()
            .filter(|line| line.starts_with("mesh_commands_total{"));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap() as u64)
            .sum()
    };
    assert_eq!(sum(&after) - sum(&before), 51, "unknown names are counted");
}

#[test]
fn the_line_on_stdout_is_the_only_one() {
    let demo = Demo::start(&[]);
    RawClient::connect(&demo).command("panics", json!({}));
    let line = format!("listening on ws://{}\n", demo.addr());
    demo.signal("TERM");
    assert_eq!(demo.end(std::time::Instant::now()).stdout, line);
}

/// Asserts that a demo with these options ends with status 2 and one clear line.
#[track_caller]
fn assert_refused(args: &[&str], port: &str, told: &str) {
    let outcome = Demo::fail(args, port);
    assert_eq!(outcome.status.code(), Some(2), "{args:?}: {outcome:?}");
    assert_eq!(outcome.stdout, "", "{args:?}");
    assert_eq!(
        outcome.stderr.trim_end().lines().count(),
        1,
        "{args:?}: not one line: {}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains(told),
        "{args:?}: {:?} does not tell {told:?}",
        outcome.stderr
    );
    assert!(
        outcome.took < Duration::from_secs(5),
        "{args:?}: {:?}",
        outcome.took
    );
}

#[test]
fn a_bad_option_is_one_line_on_stderr_and_status_2() {
    assert_refused(&["--no-such-option"], "0", "--no-such-option");
    assert_refused(&["--max-in-flight"], "0", "--max-in-flight");
    for option in [
        "--ping-interval",
        "--latency-interval",
        "--max-missed-pongs",
        "--max-connections",
        "--max-message-bytes",
        "--max-queue-bytes",
        "--max-in-flight",
    ] {
        for value in ["many", "", "1.5", "-1"] {
            assert_refused(&[&format!("{option}={value}")], "0", option);
        }
    }
    assert_refused(&[], "65536", "port");
    assert_refused(&[], "http", "port");
    assert_refused(&["stray-argument"], "0", "stray-argument");
    assert_refused(&["--host", "no such host"], "0", "no such host");
}

#[test]
fn a_port_in_use_is_one_line_on_stderr_and_status_2() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    assert_refused(&[], &port, &port);
}

#[test]
fn a_redis_that_cannot_be_reached_is_one_line_on_stderr_and_status_2() {
    let unused = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let outcome = Demo::fail(&["--redis", &format!("redis://{unused}")], "0");
    assert_eq!(
        (outcome.status.code(), outcome.stdout.as_str()),
        (Some(2), ""),
        "{outcome:?}"
    );
    assert_eq!(
        outcome.stderr.trim_end().lines().count(),
        1,
        "{}",
        outcome.stderr
    );
    assert!(outcome.took < Duration::from_secs(5), "{:?}", outcome.took);
}

#[test]
fn the_host_and_the_port_are_options() {
    let demo = Demo::start(&["--host", "127.0.0.2"]);
    assert_eq!(demo.addr().ip().to_string(), "127.0.0.2");
    assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
}

#[test]
fn what_is_no_http_ends_and_harms_nobody() {
    let demo = Demo::shared();
    let long = format!("GET / HTTP/1.1\r\nX-Long: {}", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}", "X-Many: x\r\n".repeat(50_000));
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"rubbish\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = TcpStream::connect(demo.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        drop(stream.write_all(rubbish));
        let mut answer = Vec::new();
        // The end may be a reset; what counts is that it comes, and comes with no success.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_ne!(
                error.kind(),
                std::io::ErrorKind::WouldBlock,
                "still open: {:?}",
                &rubbish[..20.min(rubbish.len())]
            );
        }
        assert!(
            !answer.starts_with(b"HTTP/1.1 1") && !answer.starts_with(b"HTTP/1.1 2"),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
        assert_eq!(RawClient::connect(&demo).command("echo", "x"), "echo: x");
    }
}
