//! Who is let in, and what else the port answers.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, request::Parts};
use serde_json::json;

use crate::driver::{
    Accept, FrontDoor, MeshServer, MeshServerBuilder, Refusal, UpgradeRequest, testkit::Sim,
};

fn request(uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

/// A request for an upgrade that is sound in form.
pub(super) fn upgrade(more: &[(&str, &str)]) -> Parts {
    let mut fields = vec![
        ("host", "example.org"),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    fields.extend(more);
    request("/chat?token=t&empty", &fields)
}

fn ask(sim: &Sim, server: &MeshServer, head: Parts) -> FrontDoor {
    let server = server.clone();
    sim.wait(async move { server.handle_request(head, None).await })
}

/// Status and body of the answer; 101 without one for an upgrade.
fn answer(sim: &Sim, server: &MeshServer, head: Parts) -> (u16, String) {
    match ask(sim, server, head) {
        FrontDoor::Respond(response) => {
            let body = String::from_utf8(response.body().to_vec()).unwrap();
            (response.status().as_u16(), body)
        }
        FrontDoor::Upgrade { response, .. } => (response.status().as_u16(), String::new()),
    }
}

fn build(sim: &Sim, change: impl FnOnce(MeshServerBuilder) -> MeshServerBuilder) -> MeshServer {
    sim.build(change(MeshServer::builder()))
}

#[test]
fn an_upgrade_is_answered_with_its_key() {
    let sim = Sim::new();
    let server = sim.server();
    let FrontDoor::Upgrade { response, .. } = ask(&sim, &server, upgrade(&[])) else {
        panic!("refused");
    };
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(
        response.headers()["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    let wrong = upgrade(&[("sec-websocket-key", "another")]);
    assert_eq!(answer(&sim, &server, wrong).0, 400);
    assert_eq!(server.health().connections, 0, "places are given back");
}

#[test]
fn authenticate_accepts_with_metadata_refuses_or_panics() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder.authenticate(async |request: UpgradeRequest| {
            assert_eq!(request.query("token"), Some("t"));
            assert_eq!(request.query("empty"), Some(""));
            match request.bearer_token() {
                Some("panic") => panic!("on purpose"),
                Some("large") => Ok(Accept::with_metadata(&"x".repeat(65 << 10))?),
                Some(user) => Ok(Accept::with_metadata(&json!({"user": user}))?),
                None => Err(Refusal::unauthorized("no token")),
            }
        })
    });
    assert_eq!(
        answer(&sim, &server, upgrade(&[])),
        (401, "no token".to_owned())
    );
    for (token, status) in [("panic", 500), ("large", 500), ("ann", 101)] {
        let head = upgrade(&[("authorization", &format!("Bearer {token}"))]);
        assert_eq!(answer(&sim, &server, head).0, status, "{token}");
    }
    // Two such fields are none: which one is meant would be a guess.
    let twice = upgrade(&[
        ("authorization", "Bearer ann"),
        ("authorization", "Bearer bob"),
    ]);
    assert_eq!(answer(&sim, &server, twice).0, 401);
    assert_eq!(server.health().connections, 0);

    let head = upgrade(&[("authorization", "bearer ann")]);
    let FrontDoor::Upgrade { admission, .. } = ask(&sim, &server, head) else {
        panic!("refused");
    };
    let mut client = sim.serve(&server, admission);
    assert_eq!(
        client.call("mesh/get-my-connection-metadata", json!({})),
        json!({"metadata": {"user": "ann"}})
    );
}

#[test]
fn only_pages_of_allowed_origins_connect() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder.allowed_origins(["https://Example.org/"])
    });
    for (origin, status) in [
        ("https://example.org", 101),
        ("https://EXAMPLE.org", 101),
        ("http://example.org", 403),
        ("https://example.org.evil.com", 403),
        ("https://example.org:8443", 403),
        ("null", 403),
        ("", 403),
    ] {
        let head = upgrade(&[("origin", origin)]);
        assert_eq!(answer(&sim, &server, head).0, status, "{origin:?}");
    }
    let both = upgrade(&[
        ("origin", "https://example.org"),
        ("origin", "https://evil.com"),
    ]);
    assert_eq!(answer(&sim, &server, both).0, 403);
    assert_eq!(answer(&sim, &server, upgrade(&[])).0, 101, "no browser");
}

#[test]
fn metadata_that_is_null_is_none() {
    assert_eq!(Accept::with_metadata(&json!(null)), Ok(Accept::new()));
    assert_ne!(Accept::with_metadata(&json!({})), Ok(Accept::new()));
}

#[test]
fn a_full_server_says_so_and_takes_the_next_when_one_has_gone() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder.limits(|limits| limits.connections_max = Some(2))
    });
    let one = sim.connect(&server);
    let door = ask(&sim, &server, upgrade(&[]));
    let FrontDoor::Respond(refused) = ask(&sim, &server, upgrade(&[])) else {
        panic!("let in");
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert!(server.admit(None).is_err());
    drop(door);
    assert_eq!(
        answer(&sim, &server, upgrade(&[])).0,
        101,
        "a handshake that failed"
    );
    let two = sim.connect(&server);
    assert_eq!(answer(&sim, &server, upgrade(&[])).0, 503);
    one.close();
    sim.run();
    assert_eq!(answer(&sim, &server, upgrade(&[])).0, 101);
    drop(two);
}

#[test]
fn plain_requests_get_pages_or_404() {
    let sim = Sim::new();
    assert_eq!(answer(&sim, &sim.server(), request("/", &[])).0, 404);
    let server = build(&sim, |builder| {
        builder.http(
            async |request: UpgradeRequest| match request.head.uri.path() {
                "/health" => Some(Response::new(Bytes::from_static(b"ok"))),
                "/panic" => panic!("on purpose"),
                _ => None,
            },
        )
    });
    assert_eq!(
        answer(&sim, &server, request("/health", &[])),
        (200, "ok".to_owned())
    );
    assert_eq!(answer(&sim, &server, request("/none", &[])).0, 404);
    assert_eq!(answer(&sim, &server, request("/panic", &[])).0, 500);
    let mut head = request("/health", &[]);
    head.method = http::Method::HEAD;
    assert_eq!(answer(&sim, &server, head), (200, String::new()));
}

#[test]
fn nobody_is_let_in_once_the_end_has_begun() {
    let sim = Sim::new();
    let server = sim.server();
    let ending = server.clone();
    sim.wait(async move { ending.shutdown().await }).unwrap();
    assert_eq!(answer(&sim, &server, upgrade(&[])).0, 503);
    assert!(server.health().is_stopping);
}

#[test]
fn pages_and_authenticate_reach_the_server() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder
            .http(async |request: UpgradeRequest| {
                let here = request.server.health().connections;
                Some(Response::new(Bytes::from(here.to_string())))
            })
            .authenticate(async |request: UpgradeRequest| {
                let members = request.server.room_members("r").await;
                Ok(Accept::with_metadata(&members.unwrap().len())?)
            })
    });
    let client = sim.connect(&server);
    let (s, id) = (server.clone(), client.id.clone());
    sim.wait(async move { s.add_to_room("r", &id).await })
        .unwrap();
    let page = answer(&sim, &server, request("/health", &[]));
    assert_eq!(page, (200, "1".to_owned()));
    let FrontDoor::Upgrade { admission, .. } = ask(&sim, &server, upgrade(&[])) else {
        panic!("refused");
    };
    assert_eq!(admission.metadata.as_deref(), Some("1"));
}

#[test]
fn who_was_upgraded_elsewhere_is_served_or_closed() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder.limits(|limits| limits.connections_max = Some(1))
    });
    let refused = |head| {
        let (socket, client) = sim.pair();
        let serving = sim.start(server.serve_upgraded_socket(head, None, socket));
        sim.run();
        assert!(serving.is_done() && client.is_dropped());
        client.close_code()
    };
    let wrong = || upgrade(&[("sec-websocket-key", "another")]);
    assert_eq!(refused(Some(wrong())), Some(1008));

    let (socket, client) = sim.pair();
    let serving = sim.start(server.serve_upgraded_socket(Some(upgrade(&[])), None, socket));
    sim.run();
    assert!(!serving.is_done());
    assert_eq!(client.frames()[0]["command"], "mesh/assign-id");
    for head in [None, Some(upgrade(&[]))] {
        assert_eq!(refused(head), Some(1013));
    }

    let (socket, client) = sim.pair();
    client.ignore_close();
    let serving = sim.start(server.serve_upgraded_socket(Some(wrong()), None, socket));
    let close_time_max = server.limits().close_time_max;
    sim.advance(close_time_max - Duration::from_millis(1));
    assert!(!serving.is_done());
    sim.advance(Duration::from_millis(1));
    assert!(serving.is_done() && client.is_dropped());
}

#[test]
fn a_decision_that_never_comes_is_a_refusal_and_keeps_no_place() {
    let sim = Sim::new();
    let server = build(&sim, |builder| {
        builder
            .limits(|limits| limits.connections_max = Some(1))
            .authenticate(async |_: UpgradeRequest| pending().await)
            .http(async |_: UpgradeRequest| pending().await)
    });
    let time_max = server.limits().handshake_time_max;
    let asking = |head| {
        let server = server.clone();
        sim.start(async move { server.handle_request(head, None).await })
    };
    let mut head = request("/", &[]);
    head.method = http::Method::HEAD;
    let asked = [
        asking(upgrade(&[])),
        asking(request("/", &[])),
        asking(head),
    ];
    sim.advance(time_max - Duration::from_millis(1));
    assert!(asked.iter().all(|asked| !asked.is_done()));
    assert_eq!(answer(&sim, &server, upgrade(&[])).0, 503, "it is full");
    sim.advance(Duration::from_millis(1));
    let texts = asked.map(|asked| match asked.take() {
        Some(FrontDoor::Respond(response)) => {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()["retry-after"], "1");
            String::from_utf8(response.body().to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    });
    let late = "no answer in time";
    assert_eq!(texts, [late, late, ""]);
    assert_eq!(server.health().connections, 0);

    let (socket, client) = sim.pair();
    let serving = sim.start(server.serve_upgraded_socket(Some(upgrade(&[])), None, socket));
    sim.advance(time_max - Duration::from_millis(1));
    assert_eq!(client.close_code(), None);
    sim.advance(Duration::from_millis(1));
    assert_eq!(client.close_code(), Some(1013));
    assert!(serving.is_done() && client.is_dropped());
    assert_eq!(server.health().connections, 0);
}
