//! The start, and what it refuses.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may")]

mod support;

use std::time::{Duration, Instant};

use mesh_core::backend::{Backend as _, BackendError, Op, Reply};
use mesh_redis::ConnectError;
use support::{Instance, RedisServer, run, until};

#[test]
fn without_redis_it_fails_clearly_and_quickly() {
    run(async {
        let began = Instant::now();
        let error = mesh_redis::connect("redis://127.0.0.1:1")
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1));

        // One that takes connections and says nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let timeout = Duration::from_millis(300);
        let error = mesh_redis::builder(url)
            .connect_timeout(timeout)
            .connect()
            .await
            .unwrap_err();
        assert!(
            matches!(error, ConnectError::Unreachable { .. }),
            "{error:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(2));
    });
}

#[test]
fn it_waits_where_it_is_told_to() {
    run(async {
        let server = RedisServer::start();
        server.kill();
        let builder = server.builder().wait(true);
        let connecting = tokio::spawn(builder.connect());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!connecting.is_finished());
        server.restart();
        let backend = connecting.await.unwrap().unwrap();
        assert_eq!(
            backend
                .execute(Op::OpenInstance {
                    instance: "a".into()
                })
                .await,
            Ok(Reply::Done)
        );
    });
}

#[test]
fn what_cannot_be_is_refused() {
    run(async {
        let server = RedisServer::start();
        for prefix in ["", "a{b", "}"] {
            let error = server.builder().prefix(prefix).connect().await.unwrap_err();
            assert!(matches!(error, ConnectError::Config(_)), "{error:?}");
        }
        assert!(matches!(
            mesh_redis::connect("http://localhost").await,
            Err(ConnectError::Config(_))
        ));
        assert!(matches!(
            mesh_redis::connect("").await,
            Err(ConnectError::Config(_))
        ));

        server.ask(&["SET", "mesh:{i}:format", "2"]);
        let error = server.builder().wait(true).connect().await.unwrap_err();
        let expected = ConnectError::Format {
            found: "2".into(),
            expected: "1".into(),
        };
        assert_eq!(error, expected);

        server.ask(&["CONFIG", "SET", "requirepass", "secret"]);
        let other = || server.builder().prefix("other:");
        let error = other().wait(true).connect().await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Authentication(_)),
            "{error:?}"
        );
        let error = other().password("wrong").connect().await.unwrap_err();
        assert!(
            matches!(error, ConnectError::Authentication(_)),
            "{error:?}"
        );
        assert!(other().password("secret").connect().await.is_ok());
    });
}

#[test]
fn instances_agree_whether_topics_are_sharded() {
    for sharded in [false, true] {
        run(async {
            let server = RedisServer::start().sharded(sharded);
            let other = || server.builder().sharded(!sharded);
            let one = Instance::open(server.builder(), "one").await;
            let error = other().wait(true).connect().await.unwrap_err();
            assert_eq!(error, ConnectError::Sharding { found: sharded });
            Instance::open(server.builder(), "two").await.close().await;
            assert!(other().connect().await.is_err(), "one still runs");
            one.close().await;
            assert_eq!(server.lasting_keys(), Vec::<String>::new());

            // Two that connect before anybody is open: the first to open decides.
            let (two, three) = (other().connect().await.unwrap(), server.builder());
            let three = Instance::open(three, "three").await;
            let open = Op::OpenInstance {
                instance: "two".into(),
            };
            let result = two.execute(open.clone()).await;
            assert!(
                matches!(&result, Err(BackendError::Usage(text)) if text.contains("sharded")),
                "{result:?}"
            );

            // One that died has no say, once its lease is over.
            drop(three);
            until("the lease is over", || async {
                two.execute(open.clone()).await.is_ok()
            })
            .await;
            let error = server.builder().connect().await.unwrap_err();
            assert_eq!(error, ConnectError::Sharding { found: !sharded });
            until("the dead one is cleaned up behind", || async {
                two.stats().instances_reaped == 1
            })
            .await;
            two.execute(Op::CloseInstance).await.unwrap();
            assert_eq!(server.lasting_keys(), Vec::<String>::new());
        });
    }
}

#[test]
fn an_id_is_one_instances() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "a").await;
        let backend = server.builder().connect().await.unwrap();
        for id in ["", "a.b", "a"] {
            let result = backend
                .execute(Op::OpenInstance {
                    instance: id.into(),
                })
                .await;
            assert!(
                matches!(result, Err(BackendError::Usage(_))),
                "{id:?}: {result:?}"
            );
        }
        assert!(matches!(
            backend.execute(Op::Connections).await,
            Err(BackendError::Usage(_))
        ));
        assert_eq!(
            backend
                .execute(Op::OpenInstance {
                    instance: "b".into()
                })
                .await,
            Ok(Reply::Done)
        );
        let result = backend
            .execute(Op::OpenInstance {
                instance: "c".into(),
            })
            .await;
        assert!(matches!(result, Err(BackendError::Usage(_))), "{result:?}");
        one.close().await;
        assert!(matches!(
            one.try_run(Op::Connections).await,
            Err(BackendError::Usage(_))
        ));
        let again = Instance::open(server.builder(), "a").await;
        again.close().await;
    });
}

#[test]
fn databases_are_apart() {
    run(async {
        let server = RedisServer::start();
        let one = Instance::open(server.builder(), "a").await;
        let two = Instance::open(server.builder().database(3), "b").await;
        one.connect("a.1").await;
        assert_eq!(two.connections().await, Vec::<String>::new());
        assert!(format!("{two:?}", two = two.backend).contains("mesh:"));
    });
}
