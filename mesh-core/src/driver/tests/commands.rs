//! Commands, middleware and what becomes of them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    driver::{
        Call, CommandError, Context, Fault, Interceptor, MeshServer, Outcome, Pattern, Payload,
        testkit::{Gate, Sim},
    },
    protocol::Dialect,
};

#[derive(Deserialize)]
struct Sum {
    left: i64,
    right: i64,
}

/// What happened, in order.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[test]
fn the_first_frame_tells_the_id() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    let instance = server.instance_id().as_str().to_owned();
    assert!(
        client.id.starts_with(&format!("{instance}.")),
        "{}",
        client.id
    );
    assert_eq!(client.id.len(), instance.len() + 1 + 24);

    let silent = sim.build(MeshServer::builder().assign_id(false));
    let client = sim.dial(&silent);
    sim.run();
    assert!(client.frames().is_empty());
}

#[test]
fn a_typed_handler_answers_or_tells_the_field() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("sum", async |ctx: Context<Sum>| {
        Ok(ctx.payload.left + ctx.payload.right)
    });
    server.register_command("nothing", async |_: Context| Ok(()));
    let mut client = sim.connect(&server);
    assert_eq!(client.call("sum", json!({"left": 2, "right": 3})), 5);
    assert_eq!(client.call("nothing", json!({})), Value::Null);
    let error = client.call("sum", json!({"left": 2, "right": "3"}));
    assert_eq!(
        (&error["code"], &error["name"]),
        (&json!("EINVALID"), &json!("ValidationError"))
    );
    assert!(
        error["error"].as_str().unwrap().contains("right"),
        "{error}"
    );
    let error = client.call("sum", json!({"left": 2}));
    assert!(
        error["error"].as_str().unwrap().contains("right"),
        "{error}"
    );
}

#[test]
fn an_unknown_command_is_not_found() {
    let sim = Sim::new();
    let server = sim.server();
    let mut client = sim.connect(&server);
    for name in ["x", "constructor", "mesh/none", "mesh/subscribe-presence"] {
        assert_eq!(
            client.call(name, json!({})),
            json!({
                "error": format!("Command \"{name}\" not found"),
                "code": "ENOTFOUND",
                "name": "CommandError",
            })
        );
    }
    assert_eq!(client.call("mesh/noop", json!({})), true);
}

#[test]
fn a_handlers_error_keeps_its_code_and_name() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("plain", async |_: Context| {
        Err::<(), _>(CommandError::new("no"))
    });
    server.register_command("own", async |_: Context| {
        Err::<(), _>(CommandError::new("no").with_code("EMINE").with_name("Mine"))
    });
    let mut client = sim.connect(&server);
    assert_eq!(
        client.call("plain", json!({})),
        json!({"error": "no", "code": "ESERVER", "name": "Error"})
    );
    assert_eq!(
        client.call("own", json!({})),
        json!({"error": "no", "code": "EMINE", "name": "Mine"})
    );
}

#[test]
fn a_panic_is_an_internal_error_and_the_connection_lives() {
    let sim = Sim::new();
    let faults = Journal::default();
    let noted = faults.clone();
    let server = sim.build(MeshServer::builder().on_error(move |fault| {
        if let Fault::Panic { what, .. } = fault {
            noted.note(what.as_str());
        }
    }));
    let gate = Gate::default();
    gate.open();
    server.register_command("early", async |_: Context| -> Result<(), CommandError> {
        panic!("on purpose")
    });
    let shut = Gate::default();
    let waits = shut.clone();
    server.register_command("late", move |_: Context| {
        let shut = waits.clone();
        async move {
            shut.wait().await;
            if shut_is_opened() {
                panic!("on purpose");
            }
            Ok(())
        }
    });
    server.register_command(
        "call",
        |_: Context| -> std::future::Ready<Result<(), CommandError>> { panic!("on purpose") },
    );
    let mut client = sim.connect(&server);
    let internal = json!({"error": "Internal error", "code": "EINTERNAL", "name": "Error"});
    assert_eq!(client.call("early", json!({})), internal);
    assert_eq!(client.call("call", json!({})), internal);
    let id = client.send("late", json!({}));
    sim.run();
    assert!(client.frames().is_empty());
    shut.open();
    sim.run();
    let late = client.frames().remove(0);
    assert_eq!((&late["id"], &late["payload"]), (&json!(id), &internal));
    assert_eq!(client.call("mesh/noop", json!({})), true);
    assert_eq!(faults.take(), ["early", "call", "late"]);
    assert_eq!(server.metrics().handler_panics_total, 3);
}

/// A condition that the compiler does not see through, so that the code behind a panic is not unreachable.
fn shut_is_opened() -> bool {
    true
}

#[test]
fn a_result_without_a_json_form_is_answered_with_an_error() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("map", async |_: Context| {
        Ok(std::collections::BTreeMap::from([((1, 2), 3)]))
    });
    let mut client = sim.connect(&server);
    assert_eq!(client.code("map", json!({})), "ESERVER");
}

#[test]
fn middleware_runs_global_first_then_the_commands_and_a_failure_stops_it() {
    let sim = Sim::new();
    let server = sim.server();
    let journal = Journal::default();
    let note = |what: &'static str| {
        let journal = journal.clone();
        move |ctx: Context| {
            journal.note(format!("{what} {}", ctx.is_known()));
            let fails = ctx.payload.json().contains(what);
            async move {
                if fails {
                    Err(CommandError::new("stopped").with_code("ESTOP"))
                } else {
                    Ok(())
                }
            }
        }
    };
    let noted = journal.clone();
    server
        .register_command("x", move |_: Context| {
            noted.note("handler");
            async { Ok(1) }
        })
        .middleware(note("third"))
        .middleware(note("fourth"));
    server.add_middleware(note("first"));
    server.add_middleware(note("second"));
    let mut client = sim.connect(&server);
    assert_eq!(client.call("x", json!({})), 1);
    let all = [
        "first true",
        "second true",
        "third true",
        "fourth true",
        "handler",
    ];
    assert_eq!(journal.take(), all);
    for (stop, ran) in [("first", 1), ("second", 2), ("third", 3), ("fourth", 4)] {
        assert_eq!(client.code("x", json!(stop)), "ESTOP");
        assert_eq!(journal.take(), all[..ran]);
    }
    // Built-ins and unknown commands pass through the global ones.
    assert_eq!(client.code("mesh/noop", json!("second")), "ESTOP");
    assert_eq!(client.code("unknown", json!({})), "ENOTFOUND");
    assert_eq!(
        journal.take(),
        ["first true", "second true", "first false", "second false"]
    );
}

#[test]
fn middleware_hands_values_and_payloads_downstream() {
    struct User(&'static str);
    let sim = Sim::new();
    let server = sim.server();
    server.add_middleware(async |ctx: Context| {
        ctx.insert(User("first"));
        ctx.insert(User("ann"));
        Ok(())
    });
    server
        .register_command("x", async |ctx: Context<Value>| {
            let user = ctx.extension::<User>().map(|user| user.0);
            let missing = ctx.extension::<String>().is_none();
            Ok(json!([user, missing, ctx.payload]))
        })
        .middleware(async |ctx: Context| {
            ctx.replace_payload(&json!({"was": ctx.payload.json()}))?;
            Ok(())
        })
        .middleware(async |ctx: Context| {
            assert!(ctx.payload.json().contains("was"), "the next one sees it");
            Ok(())
        });
    let mut client = sim.connect(&server);
    assert_eq!(
        client.call("x", json!(7)),
        json!(["ann", true, {"was": "7"}])
    );
}

#[test]
fn what_middleware_put_in_is_gone_with_its_command() {
    struct User;
    let sim = Sim::new();
    let server = sim.server();
    let shown = async |ctx: Context<Value>| {
        let is_known = ctx.extension::<User>().is_some();
        Ok(json!([is_known, ctx.payload]))
    };
    server.register_command("plain", shown);
    server
        .register_command("refused", shown)
        .middleware(async |ctx: Context| {
            ctx.insert(User);
            ctx.replace_payload("another's")?;
            // Nobody takes what was put in.
            Err(CommandError::new("refused").with_code("EREFUSED"))
        });
    let mut client = sim.connect(&server);
    assert_eq!(client.code("refused", json!(1)), "EREFUSED");
    assert_eq!(client.call("plain", json!(2)), json!([false, 2]));
}

#[test]
fn the_outcome_is_told_after_the_reply() {
    let sim = Sim::new();
    let server = sim.server();
    let (journal, gate) = (Journal::default(), Gate::default());
    let noted = journal.clone();
    server.add_middleware(move |ctx: Context| {
        let noted = noted.clone();
        ctx.on_outcome(move |outcome| {
            noted.note(match outcome {
                Outcome::Reply => "reply".to_owned(),
                Outcome::Error(error) => error.code().to_owned(),
                Outcome::Abandoned => "abandoned".to_owned(),
            });
        });
        async { Ok(()) }
    });
    server.register_command("ok", async |_: Context| Ok(()));
    let waits = gate.clone();
    server.register_command("waits", move |_: Context| {
        let gate = waits.clone();
        async move {
            gate.wait().await;
            Ok(())
        }
    });
    let mut client = sim.connect(&server);
    client.call("ok", json!({}));
    client.call("none", json!({}));
    client.send("waits", json!({}));
    sim.run();
    assert_eq!(journal.take(), ["reply", "ENOTFOUND"]);
    client.vanish();
    sim.run();
    gate.open();
    sim.run();
    assert_eq!(journal.take(), ["abandoned"]);
}

#[test]
fn a_panic_of_one_who_is_told_the_outcome_skips_none_of_the_others() {
    struct Panics;
    impl Interceptor for Panics {
        fn after(&self, _: &Call, _: &Outcome) {
            panic!("on purpose");
        }
    }
    let sim = Sim::new();
    let server = sim.server();
    let journal = Journal::default();
    server.add_interceptor(Panics);
    let noted = journal.clone();
    server.add_middleware(move |ctx: Context| {
        let noted = noted.clone();
        ctx.on_outcome(|_| panic!("on purpose"));
        ctx.on_outcome(move |outcome| noted.note(format!("{outcome:?}")));
        async { Ok(()) }
    });
    server.register_command("never", async |_: Context| -> Result<(), CommandError> {
        std::future::pending().await
    });
    let mut client = sim.connect(&server);
    assert_eq!(client.call("mesh/noop", json!({})), true);
    assert_eq!(journal.take(), ["Reply"]);
    client.send("never", json!({}));
    sim.run();
    client.vanish();
    // The handler is dropped once its time is over, which is told just as well.
    sim.advance(Duration::from_secs(11));
    assert_eq!(journal.take(), ["Abandoned"]);
    assert_eq!(server.metrics().handler_panics_total, 2);
}

#[test]
fn a_handler_that_waits_is_overtaken() {
    let sim = Sim::new();
    let server = sim.server();
    let gate = Gate::default();
    let waits = gate.clone();
    server.register_command("slow", move |_: Context| {
        let gate = waits.clone();
        async move {
            gate.wait().await;
            Ok("slow")
        }
    });
    server.register_command("fast", async |ctx: Context<Payload>| Ok(ctx.payload));
    let mut client = sim.connect(&server);
    let ids = client.send_all(&[("slow", json!(1)), ("fast", json!(2)), ("slow", json!(3))]);
    sim.run();
    assert_eq!(client.replies(), [u64::from(ids[1])]);
    gate.open();
    sim.run();
    let mut late = client.replies();
    late.sort_unstable();
    assert_eq!(late, [u64::from(ids[0]), u64::from(ids[2])]);
}

#[test]
fn sequential_commands_run_one_by_one() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().sequential());
    let (gate, running) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let (waits, runs) = (gate.clone(), Arc::clone(&running));
    server.register_command("slow", move |ctx: Context<i64>| {
        let (gate, running) = (waits.clone(), Arc::clone(&runs));
        async move {
            assert_eq!(running.fetch_add(1, Ordering::Relaxed), 0, "side by side");
            gate.wait().await;
            running.fetch_sub(1, Ordering::Relaxed);
            Ok(ctx.payload)
        }
    });
    server.register_command("fast", async |_: Context| Ok(()));
    let mut client = sim.connect(&server);
    let mut commands = Vec::new();
    for number in 0..20 {
        commands.push((if number % 3 == 0 { "slow" } else { "fast" }, json!(number)));
    }
    let ids = client.send_all(&commands);
    sim.run();
    assert!(client.frames().is_empty(), "the first one waits");
    // A pong behind them is heard all the same.
    client.send_text(r#"{"command":"pong"}"#);
    gate.open();
    sim.run();
    let expected: Vec<u64> = ids.into_iter().map(u64::from).collect();
    assert_eq!(client.replies(), expected);
    assert_eq!(client.call("fast", json!({})), Value::Null);
}

#[test]
fn a_handler_registered_later_is_found() {
    let sim = Sim::new();
    let server = sim.server();
    let mut client = sim.connect(&server);
    assert_eq!(client.code("x", json!({})), "ENOTFOUND");
    server.register_command("x", async |_: Context| Ok(1));
    assert_eq!(client.call("x", json!({})), 1);
    server.register_command("x", async |_: Context| Ok(2));
    assert_eq!(client.call("x", json!({})), 2);
}

#[test]
fn a_name_that_no_command_can_have_is_refused_at_once() {
    let sim = Sim::new();
    let server = sim.server();
    let long = "x".repeat(513);
    for name in [
        "mesh/noop",
        "mesh/mine",
        "pong",
        "latency:response",
        "",
        &long,
    ] {
        let register = || drop(server.register_command(name, async |_: Context| Ok("mine")));
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(register));
        assert!(refused.is_err(), "{name:?}");
    }
    let mut client = sim.connect(&server);
    assert_eq!(client.call("mesh/noop", json!({})), true);
}

#[test]
fn metadata_is_the_servers_unless_it_says_otherwise() {
    let sim = Sim::new();
    let server = sim.server();
    let (mut one, two) = (sim.connect(&server), sim.connect(&server));
    let wish = json!({"metadata": {"name": "x"}});
    assert_eq!(
        one.call("mesh/set-my-connection-metadata", wish.clone()),
        json!({"success": false})
    );
    let own = |client: &mut super::super::testkit::Client| {
        client.call("mesh/get-my-connection-metadata", json!({}))["metadata"].clone()
    };
    assert_eq!(own(&mut one), Value::Null);

    let other = json!({"connectionId": two.id});
    let set = server.clone();
    let id = two.id.clone();
    sim.wait(async move { set.connections().set_metadata(&id, &json!({"a": 1})).await })
        .unwrap();
    assert_eq!(
        one.call("mesh/get-connection-metadata", other.clone()),
        json!({"metadata": null}),
        "not exposed"
    );
    server.expose_connection_metadata();
    assert_eq!(
        one.call("mesh/get-connection-metadata", other),
        json!({"metadata": {"a": 1}})
    );

    let open = sim.build(MeshServer::builder().client_metadata(true));
    let mut three = sim.connect(&open);
    assert_eq!(
        three.call("mesh/set-my-connection-metadata", wish),
        json!({"success": true})
    );
    assert_eq!(own(&mut three), json!({"name": "x"}));
    let large = json!({"metadata": "x".repeat(64 << 10)});
    assert_eq!(
        three.code("mesh/set-my-connection-metadata", large),
        "EINVALID"
    );
    assert_eq!(own(&mut three), json!({"name": "x"}));
}

#[test]
fn metadata_that_is_null_is_none() {
    let sim = Sim::new();
    let server = sim.server();
    let client = sim.connect(&server);
    let (set, id) = (server.clone(), client.id.clone());
    let metadata = sim.wait(async move {
        let connections = set.connections();
        connections.set_metadata(&id, &json!({"a": 1})).await?;
        connections.set_metadata(&id, &Value::Null).await?;
        connections
            .metadata::<std::collections::BTreeMap<String, i64>>(&id)
            .await
    });
    assert_eq!(metadata, Ok(None));
}

#[test]
fn long_replies_to_a_client_that_reads_never_close_it() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("long", async |_: Context| Ok("x".repeat(3 << 20)));
    let mut client = sim.connect(&server);
    let commands = vec![("long", json!({})); 8];
    let ids = client.send_all(&commands);
    sim.run();
    let expected: Vec<u64> = ids.into_iter().map(u64::from).collect();
    assert_eq!(client.replies(), expected);
    assert_eq!(client.close_code(), None);
}

#[test]
fn long_replies_that_come_at_once_are_errors_rather_than_a_close() {
    let sim = Sim::new();
    let server = sim.server();
    let gate = Gate::default();
    server.register_command("long", {
        let gate = gate.clone();
        move |_: Context| {
            let gate = gate.clone();
            async move {
                gate.wait().await;
                Ok("x".repeat(3 << 20))
            }
        }
    });
    let mut client = sim.connect(&server);
    let ids = client.send_all(&vec![("long", json!({})); 8]);
    sim.run();
    client.block(true);
    gate.open();
    sim.run();
    // Nothing is read for a while: the server's own probes do not close it either.
    sim.advance(Duration::from_secs(12));
    assert_eq!(client.close_code(), None);
    client.block(false);
    sim.run();
    let mut answered = client.replies();
    answered.sort_unstable();
    let asked: Vec<u64> = ids.into_iter().map(u64::from).collect();
    assert_eq!(answered, asked);
    assert_eq!(client.close_code(), None);
}

/// `protocol.md`, section 10: the prefix is one constant.
#[test]
fn a_server_speaks_the_dialect_it_was_built_with() {
    let sim = Sim::new();
    let dialect = Dialect::new("rt/");
    let server = sim.build(MeshServer::builder().dialect(dialect));
    let mut client = sim.dial(&server);
    assert_eq!(client.call("rt/noop", json!({})), true);
    assert_eq!(client.code("mesh/noop", json!({})), "ENOTFOUND");
    let sent = |event: &'static str| {
        let server = server.clone();
        sim.wait(async move { server.broadcast(event, 1).await })
    };
    assert_eq!(sent("mesh/of-the-application"), Ok(()));
    assert!(sent("rt/of-the-application").is_err());
}

#[test]
fn a_connection_is_its_id_and_tells_its_address() {
    let sim = Sim::new();
    let addr: std::net::SocketAddr = "192.0.2.1:7".parse().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&seen);
    let server = sim.build(MeshServer::builder().on_connection(move |connection| {
        noted.lock().unwrap().push(connection);
        async {}
    }));
    sim.serve(&server, server.admit(Some(addr)).unwrap());
    sim.connect(&server);
    let seen = seen.lock().unwrap();
    let [known, unknown] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert_eq!(known.remote_addr(), Some(addr));
    assert_eq!(unknown.remote_addr(), None);
    assert!(known == &known.clone() && known != unknown);
}

#[test]
fn a_handler_sets_the_metadata_of_its_own_connection() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("name", async |ctx: Context<Value>| {
        ctx.connection.set_metadata(&ctx.payload).await?;
        Ok(ctx.connection.metadata::<Value>().await?)
    });
    let mut client = sim.connect(&server);
    let ada = json!({"name": "Ada"});
    assert_eq!(client.call("name", ada.clone()), ada);
    let told = client.call("mesh/get-my-connection-metadata", json!({}));
    assert_eq!(told["metadata"], ada);
    let id = client.id.clone();
    let all = sim.wait(async move { server.connections().all_metadata::<Value>().await });
    assert_eq!(all, Ok(vec![(id.as_str().into(), Some(ada))]));
}

#[test]
fn a_payload_is_published_and_sent_as_it_came() {
    let sim = Sim::new();
    let server = sim.server();
    server.register_command("store", async |ctx: Context<Payload>| {
        let by_reference = &ctx.payload;
        ctx.server
            .publish_record_update("one", by_reference)
            .await?;
        ctx.server
            .publish_record_update("two", &by_reference)
            .await?;
        ctx.connection.send("sent", &by_reference)?;
        Ok(ctx.payload.clone())
    });
    let mut client = sim.connect(&server);
    let payload = json!({"a": [1, "x"]});
    client.send("store", payload.clone());
    sim.run();
    let frames = client.frames();
    let payloads: Vec<_> = frames.iter().map(|frame| &frame["payload"]).collect();
    assert_eq!(payloads, [&payload, &payload]);
    for record in ["one", "two"] {
        let server = server.clone();
        let stored = sim.wait(async move { server.get_record::<Value>(record).await });
        assert_eq!(stored.unwrap().value.as_ref(), Some(&payload), "{record}");
    }
}

#[test]
fn faults_and_patterns_are_told_in_words() {
    let sim = Sim::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&told);
    let server = sim.build(
        MeshServer::builder().on_error(move |fault| noted.lock().unwrap().push(fault.to_string())),
    );
    server.register_command("boom", async |_: Context| -> Result<(), CommandError> {
        panic!("planted")
    });
    let mut client = sim.connect(&server);
    assert_eq!(client.code("boom", json!({})), "EINTERNAL");
    let told = told.lock().unwrap();
    assert_eq!(
        *told,
        [format!("\"boom\" panicked for connection {}", client.id)]
    );
    assert_eq!(Pattern::exact("a").to_string(), r#""a""#);
    assert_eq!(Pattern::regex("^a$").unwrap().to_string(), "/^a$/");
}

#[test]
fn a_payload_is_json_within_the_levels_allowed() {
    let payload = |json: &str, levels| {
        let payload = Payload::from_json_within(json, levels);
        payload.map(|it| it.json().to_owned())
    };
    assert_eq!(payload(" [[1]] ", 2), Ok("[[1]]".to_owned()));
    for broken in ["[[1]]", "[1", "1 2", ""] {
        let refused = payload(broken, 1).unwrap_err();
        assert_eq!(refused.code(), "EINVALID", "{broken}");
    }
}

#[test]
fn an_interceptor_sees_how_each_command_ends() {
    struct Sees(Journal);
    impl Interceptor for Sees {
        fn after(&self, _: &Call, outcome: &Outcome) {
            self.0.note(format!("{outcome:?}"));
        }
    }
    let sim = Sim::new();
    let server = sim.server();
    let journal = Journal::default();
    server.add_interceptor(Sees(journal.clone()));
    let mut client = sim.connect(&server);
    client.call("mesh/noop", json!({}));
    client.call("nothing like it", json!({}));
    let told = journal.take();
    assert_eq!(told.len(), 2);
    assert_eq!(told[0], "Reply");
    assert_ne!(told[1], "Reply");
}

#[test]
fn middleware_that_waits_runs_once_and_those_behind_it_after_it() {
    let sim = Sim::new();
    let server = sim.server();
    let journal = Journal::default();
    let gate = Gate::default();
    let (noted, waits) = (journal.clone(), gate.clone());
    server.add_middleware(move |_: Context| {
        noted.note("first");
        let opened = waits.wait();
        async move {
            opened.await;
            Ok(())
        }
    });
    let noted = journal.clone();
    server.add_middleware(move |_: Context| {
        noted.note("second");
        async { Ok(()) }
    });
    let mut client = sim.connect(&server);
    client.send("mesh/noop", json!({}));
    sim.run();
    assert_eq!(journal.take(), ["first"]);
    gate.open();
    sim.run();
    assert_eq!(journal.take(), ["second"]);
    assert_eq!(client.replies().len(), 1);
}

#[test]
fn a_client_replaces_its_metadata_or_merges_into_it() {
    let sim = Sim::new();
    let server = sim.build(MeshServer::builder().client_metadata(true));
    let mut client = sim.connect(&server);
    let mut set = |metadata: Value, options: Value| {
        let wish = json!({"metadata": metadata, "options": options});
        client.call("mesh/set-my-connection-metadata", wish);
        client.call("mesh/get-my-connection-metadata", json!({}))["metadata"].clone()
    };
    assert_eq!(set(json!({"a": 1}), json!({})), json!({"a": 1}));
    let merge = json!({"strategy": "merge"});
    assert_eq!(set(json!({"b": 2}), merge), json!({"a": 1, "b": 2}));
    let replace = json!({"strategy": "replace"});
    assert_eq!(set(json!({"c": 3}), replace), json!({"c": 3}));
}

#[test]
fn a_panic_of_an_interceptor_is_counted_though_others_are_calm() {
    struct Is(bool);
    impl Interceptor for Is {
        fn after(&self, _: &Call, _: &Outcome) {
            assert!(self.0, "on purpose");
        }
    }
    let sim = Sim::new();
    let server = sim.server();
    for calm in [true, false, true] {
        server.add_interceptor(Is(calm));
    }
    let mut client = sim.connect(&server);
    assert_eq!(client.call("mesh/noop", json!({})), true);
    assert_eq!(server.metrics().handler_panics_total, 1);
}
