//! One test for each promise of the client, named after what went wrong elsewhere.

use std::time::{Duration, Instant};

use mesh_core::{
    protocol::{builtin::RecordMode, parse},
    websocket::{CloseCode, CloseFrame},
};

use crate::{
    Action, Client, ClientConfig, CommandOptions, ConnectError, Loss, OfflinePolicy, Outcome,
    Refusal, Status, time::origin,
};

mod records;

const SECOND: Duration = Duration::from_secs(1);

/// A client and a clock.
struct Bench {
    client: Client<u32>,
    now: Instant,
    last_id: u32, // of what was sent
}

impl Bench {
    fn new(change: impl FnOnce(&mut ClientConfig)) -> Self {
        let mut config = ClientConfig::default();
        change(&mut config);
        let client = Client::new(config, [3; 32]);
        let (now, last_id) = (origin(), 0);
        Self {
            client,
            now,
            last_id,
        }
    }

    /// Connected for the first time, with nothing left to do.
    fn online() -> Self {
        let mut bench = Self::new(|_| {});
        bench.client.handle_connect(0, bench.now);
        bench.client.handle_socket_opened(1, bench.now);
        bench.actions();
        bench
    }

    fn actions(&mut self) -> Vec<Action<u32>> {
        let actions: Vec<_> = std::iter::from_fn(|| self.client.poll_action()).collect();
        for action in &actions {
            if let Action::Send { frame, .. } = action {
                let id = parse(frame.text(), 8).unwrap().id;
                self.last_id = id.unwrap_or(self.last_id);
            }
        }
        actions
    }

    /// What is sent, without the envelope's `{"id":`.
    fn sent(&mut self) -> Vec<String> {
        let sent = |action| match action {
            Action::Send { frame, .. } => Some(frame.text().to_owned()),
            _ => None,
        };
        self.actions().into_iter().filter_map(sent).collect()
    }

    fn outcomes(&mut self) -> Vec<(u32, Outcome)> {
        let outcome = |action| match action {
            Action::Complete { token, outcome } => Some((token, outcome)),
            _ => None,
        };
        self.actions().into_iter().filter_map(outcome).collect()
    }

    fn statuses(&mut self) -> Vec<Status> {
        let status = |action| match action {
            Action::Status(status) => Some(status),
            _ => None,
        };
        self.actions().into_iter().filter_map(status).collect()
    }

    fn command(&mut self, token: u32, options: CommandOptions) {
        let payload = token.to_string();
        self.client
            .handle_command(token, "x", &payload, options, self.now);
    }

    fn text(&mut self, attempt: u64, text: &str) {
        self.client.handle_text(attempt, text, self.now);
    }

    /// Grants a subscription that has no history.
    fn subscribed(&mut self, attempt: u64, id: u32) {
        let payload = r#"{"success":true,"history":[]}"#;
        let reply =
            format!(r#"{{"id":{id},"command":"mesh/subscribe-channel","payload":{payload}}}"#);
        self.text(attempt, &reply);
    }

    fn unsubscribed(&mut self, attempt: u64, id: u32) {
        let reply = format!(r#"{{"id":{id},"command":"mesh/unsubscribe-channel","payload":true}}"#);
        self.text(attempt, &reply);
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.client.handle_timeout(self.now);
    }

    /// Waits out the backoff and opens the next socket.
    fn reopen(&mut self, attempt: u64) {
        self.wait(30 * SECOND);
        self.client.handle_socket_opened(attempt, self.now);
    }

    /// Loses the connection, and has another.
    fn reconnect(&mut self) {
        let attempt = self.client.attempt;
        self.client
            .handle_socket_closed(attempt, Loss::Gone, self.now);
        self.reopen(attempt + 1);
    }
}

fn network() -> ConnectError {
    ConnectError::Io {
        kind: std::io::ErrorKind::ConnectionRefused,
        message: "refused".to_owned(),
    }
}

fn closed(code: CloseCode) -> Loss {
    let reason = "bye".to_owned();
    Loss::Closed(Some(CloseFrame { code, reason }))
}

fn timeout(seconds: u64) -> CommandOptions {
    CommandOptions {
        timeout: Some(Duration::from_secs(seconds)),
        ..CommandOptions::default()
    }
}

fn idempotent() -> CommandOptions {
    CommandOptions {
        idempotent: true,
        timeout: Some(600 * SECOND),
        ..CommandOptions::default()
    }
}

#[test]
fn a_late_reply_answers_nobody_and_its_id_rests_until_then() {
    let mut bench = Bench::online();
    bench.command(1, timeout(5));
    bench.wait(5 * SECOND);
    let after = 5 * SECOND;
    assert_eq!(
        bench.outcomes(),
        [(1, Outcome::Timeout { after, sent: true })]
    );
    // Go once around all ids: only the reserved one is never used.
    for token in 2..65_537 {
        bench.command(token, timeout(5));
        let frame = bench.sent().remove(0);
        let id = parse(&frame, 8).unwrap().id.unwrap();
        assert_ne!(id, 0);
        bench.text(
            1,
            &format!(r#"{{"id":{id},"command":"x","payload":{token}}}"#),
        );
        assert_eq!(
            bench.outcomes(),
            [(token, Outcome::Reply(token.to_string()))]
        );
    }
    bench.text(1, r#"{"id":0,"command":"x","payload":1}"#);
    assert_eq!(bench.outcomes(), []);
    assert_eq!(bench.client.stats().replies_late, 1);
    bench.command(9, timeout(5));
    assert_eq!(bench.sent(), [r#"{"id":0,"command":"x","payload":9}"#]);
}

#[test]
fn unknown_and_duplicate_replies_are_counted_and_ignored() {
    let mut bench = Bench::online();
    bench.command(1, timeout(5));
    for reply in [
        r#"{"id":7,"command":"x","payload":1}"#,
        r#"{"id":70000,"command":"x","payload":1}"#,
        r#"{"id":0,"command":"another","payload":1}"#,
        r#"{"id":0,"command":"x","payload":1}"#,
        r#"{"id":0,"command":"x","payload":2}"#,
    ] {
        bench.text(1, reply);
    }
    assert_eq!(bench.outcomes(), [(1, Outcome::Reply("1".into()))]);
    assert_eq!(bench.client.stats().replies_unknown, 4);
}

#[test]
fn pending_commands_end_at_the_disconnect_and_only_idempotent_ones_are_repeated() {
    let mut bench = Bench::online();
    bench.command(1, idempotent());
    bench.command(2, CommandOptions::default());
    assert_eq!(bench.sent().len(), 2);
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    assert_eq!(bench.outcomes(), [(2, Outcome::Disconnected)]);
    bench.wait(20 * SECOND);
    bench.client.handle_socket_opened(2, bench.now);
    let sent = bench.sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert!(
        sent[0].ends_with(r#""command":"x","payload":1}"#),
        "{sent:?}"
    );
}

#[test]
fn a_dead_sockets_late_events_never_touch_its_successor() {
    let mut bench = Bench::online();
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.reopen(2);
    bench.command(1, timeout(5));
    bench.actions();
    bench.text(1, r#"{"id":0,"command":"x","payload":1}"#);
    bench.text(1, r#"{"command":"e","payload":1}"#);
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.client.handle_socket_failed(1, network(), bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    assert_eq!(bench.actions(), []);
    assert!(bench.client.is_online());
    assert_eq!(bench.client.stats().stale_events, 5);
}

#[test]
fn what_was_granted_is_put_back_before_the_reconnect_is_reported() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "chat:a", 2, bench.now);
    bench.client.handle_join(2, "room:a", bench.now);
    bench.client.handle_set_metadata(3, r#"{"n":1}"#, bench.now);
    let requests = [
        r#""command":"mesh/subscribe-channel","payload":{"channel":"chat:a","historyLimit":2}}"#,
        r#""command":"mesh/join-room","payload":{"roomName":"room:a"}}"#,
        r#""command":"mesh/set-my-connection-metadata","payload":{"metadata":{"n":1}}}"#,
    ];
    let sent = bench.sent();
    for (sent, request) in sent.iter().zip(requests) {
        assert!(sent.ends_with(request), "{sent}");
    }
    bench.text(1, r#"{"id":0,"command":"mesh/subscribe-channel","payload":{"success":true,"history":["b","a"]}}"#);
    bench.text(
        1,
        r#"{"id":1,"command":"mesh/join-room","payload":{"success":true,"present":["me"]}}"#,
    );
    bench.text(
        1,
        r#"{"id":2,"command":"mesh/set-my-connection-metadata","payload":{"success":true}}"#,
    );
    let history = vec!["b".to_owned(), "a".to_owned()];
    let present = r#"["me"]"#.to_owned();
    assert_eq!(
        bench.outcomes(),
        [
            (1, Outcome::Subscribed { history }),
            (2, Outcome::Joined { present }),
            (3, Outcome::MetadataSet)
        ]
    );

    bench
        .client
        .handle_socket_closed(1, closed(CloseCode::GOING_AWAY), bench.now);
    bench.command(4, CommandOptions::default());
    bench.wait(2 * SECOND);
    bench.client.handle_socket_opened(2, bench.now);
    let mut sent = bench.sent();
    sent.sort_by_key(|text| requests.iter().position(|request| text.ends_with(request)));
    assert_eq!(
        sent.len(),
        3,
        "the queue waits until things are put back: {sent:?}"
    );
    let id = |text: &str| parse(text, 8).unwrap().id.unwrap();
    bench.text(
        2,
        &format!(
            r#"{{"id":{},"command":"mesh/join-room","payload":{{"success":true}}}}"#,
            id(&sent[1])
        ),
    );
    bench.text(
        2,
        &format!(r#"{{"id":{},"command":"mesh/set-my-connection-metadata","payload":{{"success":true}}}}"#, id(&sent[2])),
    );
    assert_eq!(bench.actions(), []);
    bench.text(
        2,
        &format!(
            r#"{{"id":{},"command":"mesh/subscribe-channel","payload":{{"success":true,"history":["c","b"]}}}}"#,
            id(&sent[0])
        ),
    );
    let actions = bench.actions();
    let history = vec!["c".to_owned(), "b".to_owned()];
    assert_eq!(
        actions[..2],
        [
            Action::Resubscribed {
                subscription,
                history
            },
            Action::Status(Status::Reconnected)
        ]
    );
    assert!(
        matches!(&actions[2..], [Action::Send { .. }]),
        "{actions:?}"
    );
}

#[test]
fn an_unavailable_backend_delays_the_report_but_not_the_commands() {
    let mut bench = Bench::online();
    bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.subscribed(1, 0);
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.command(2, CommandOptions::default());
    bench.wait(2 * SECOND);
    bench.client.handle_socket_opened(2, bench.now);
    bench.actions();
    bench.text(
        2,
        r#"{"id":1,"command":"mesh/subscribe-channel","payload":{"error":"no","code":"EUNAVAILABLE","name":"BackendError"}}"#,
    );
    assert_eq!(bench.sent(), [r#"{"id":2,"command":"x","payload":2}"#]);
    assert!(!bench.client.is_online());
    bench.wait(SECOND);
    assert_eq!(
        bench.sent(),
        [r#"{"id":3,"command":"mesh/subscribe-channel","payload":{"channel":"a"}}"#]
    );
    bench.text(
        2,
        r#"{"id":3,"command":"mesh/subscribe-channel","payload":{"success":true,"history":[]}}"#,
    );
    assert_eq!(bench.statuses(), [Status::Reconnected]);
}

#[test]
fn a_refused_resubscription_ends_and_the_rest_goes_on() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.client.handle_join(2, "r", bench.now);
    bench.subscribed(1, 0);
    bench.text(
        1,
        r#"{"id":1,"command":"mesh/join-room","payload":{"success":true,"present":[]}}"#,
    );
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.reopen(2);
    bench.actions();
    bench.text(
        2,
        r#"{"id":2,"command":"mesh/subscribe-channel","payload":{"success":false,"history":[]}}"#,
    );
    bench.text(
        2,
        r#"{"id":3,"command":"mesh/join-room","payload":{"success":false,"present":[]}}"#,
    );
    let refusal = Refusal::NotExposed;
    let room = "r".to_owned();
    assert_eq!(
        bench.actions(),
        [
            Action::SubscriptionEnded {
                subscription,
                refusal: Some(refusal.clone())
            },
            Action::Status(Status::RoomRefused { room, refusal }),
            Action::Status(Status::Reconnected),
        ]
    );
}

#[test]
fn a_server_that_never_puts_back_is_left() {
    let mut bench = Bench::online();
    bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.subscribed(1, 0);
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.reopen(2);
    bench.actions();
    bench.wait(30 * SECOND);
    let actions = bench.actions();
    assert!(
        matches!(actions[0], Action::CloseSocket { attempt: 2, .. }),
        "{actions:?}"
    );
}

#[test]
fn several_subscriptions_share_one_on_the_wire() {
    let mut bench = Bench::online();
    let first = bench.client.handle_subscribe(1, "a", 5, bench.now);
    let second = bench.client.handle_subscribe(2, "a", 1, bench.now);
    assert_eq!(bench.sent().len(), 1, "one request at a time");
    let reply = |id| {
        format!(
            r#"{{"id":{id},"command":"mesh/subscribe-channel","payload":{{"success":true,"history":["b","a"]}}}}"#
        )
    };
    let message =
        r#"{"command":"mesh/subscription-message","payload":{"channel":"a","message":"c"}}"#;
    bench.text(1, &reply(0));
    bench.text(1, message);
    let subscription = first;
    let expected = Action::ChannelMessage {
        subscription,
        message: "c".into(),
    };
    let messages = |actions: Vec<Action<u32>>| -> Vec<_> {
        let message = |action: &Action<u32>| matches!(action, Action::ChannelMessage { .. });
        actions.into_iter().filter(message).collect()
    };
    assert_eq!(messages(bench.actions()), std::slice::from_ref(&expected));
    bench.text(1, &reply(1));
    let history = vec!["b".to_owned()];
    assert_eq!(bench.outcomes(), [(2, Outcome::Subscribed { history })]);
    bench.text(1, message);
    assert_eq!(messages(bench.actions()).len(), 2);
    // The first to go asks nothing of the server, the last one does.
    bench.client.handle_unsubscribe(second, Some(3), bench.now);
    assert_eq!(
        bench.actions(),
        [Action::Complete {
            token: 3,
            outcome: Outcome::Unsubscribed
        }]
    );
    bench.text(1, message);
    assert_eq!(messages(bench.actions()), [expected]);
    bench.client.handle_unsubscribe(first, Some(4), bench.now);
    assert_eq!(
        bench.sent(),
        [r#"{"id":2,"command":"mesh/unsubscribe-channel","payload":{"channel":"a"}}"#]
    );
    bench.text(1, message);
    assert_eq!(bench.actions(), [], "nothing after unsubscribe");
    bench.unsubscribed(1, 2);
    assert_eq!(bench.outcomes(), [(4, Outcome::Unsubscribed)]);
}

#[test]
fn a_subscribe_that_is_taken_back_is_given_back_once_granted() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench
        .client
        .handle_unsubscribe(subscription, Some(2), bench.now);
    assert_eq!(bench.outcomes(), [(1, Outcome::Cancelled)]);
    bench.subscribed(1, 0);
    assert_eq!(
        bench.sent(),
        [r#"{"id":1,"command":"mesh/unsubscribe-channel","payload":{"channel":"a"}}"#]
    );
    bench.unsubscribed(1, 1);
    assert_eq!(bench.outcomes(), [(2, Outcome::Unsubscribed)]);
}

#[test]
fn an_unsubscribe_that_the_server_refuses_says_so() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.subscribed(1, 0);
    bench.actions();
    let token = Some(2);
    bench
        .client
        .handle_unsubscribe(subscription, token, bench.now);
    bench.text(
        1,
        r#"{"id":1,"command":"mesh/unsubscribe-channel","payload":{"error":"no","code":"ENO","name":"Error"}}"#,
    );
    let outcomes = bench.outcomes();
    let [(2, Outcome::Refused(Refusal::Error(error)))] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!((error.code(), error.message()), ("ENO", "no"));
}

#[test]
fn an_unsubscribe_while_the_subscription_is_put_back_follows_it() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.subscribed(1, 0);
    bench.actions();
    let loss = Loss::Closed(None);
    bench.client.handle_socket_closed(1, loss, bench.now);
    bench.reopen(2);
    let asked = r#"{"id":1,"command":"mesh/subscribe-channel","payload":{"channel":"a"}}"#;
    assert_eq!(bench.sent(), [asked]);
    let token = Some(2);
    bench
        .client
        .handle_unsubscribe(subscription, token, bench.now);
    assert_eq!((bench.sent(), bench.outcomes()), (vec![], vec![]));
    bench.subscribed(2, 1);
    assert_eq!(
        bench.sent(),
        [r#"{"id":2,"command":"mesh/unsubscribe-channel","payload":{"channel":"a"}}"#]
    );
    bench.unsubscribed(2, 2);
    assert_eq!(bench.outcomes(), [(2, Outcome::Unsubscribed)]);
}

#[test]
fn what_a_late_reply_grants_is_given_back() {
    let mut bench = Bench::online();
    bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.client.handle_join(2, "r", bench.now);
    bench.wait(30 * SECOND);
    assert_eq!(bench.outcomes().len(), 2);
    bench.subscribed(1, 0);
    bench.text(
        1,
        r#"{"id":1,"command":"mesh/join-room","payload":{"success":true,"present":[]}}"#,
    );
    assert_eq!(
        bench.sent(),
        [
            r#"{"id":2,"command":"mesh/unsubscribe-channel","payload":{"channel":"a"}}"#,
            r#"{"id":3,"command":"mesh/leave-room","payload":{"roomName":"r"}}"#
        ]
    );
}

#[test]
fn probes_are_answered_without_an_id() {
    let mut bench = Bench::online();
    bench.text(1, r#"{"command":"ping","payload":{}}"#);
    bench.text(1, r#"{"command":"latency:request","payload":{}}"#);
    bench.text(1, r#"{"command":"latency","payload":1.5}"#);
    let actions = bench.actions();
    assert_eq!(
        actions[2..],
        [Action::Latency(Duration::from_micros(1_500))]
    );
    let texts: Vec<_> = actions[..2]
        .iter()
        .map(|action| match action {
            Action::Send { frame, .. } => frame.text(),
            _ => "",
        })
        .collect();
    assert_eq!(
        texts,
        [
            r#"{"command":"pong","payload":{}}"#,
            r#"{"command":"latency:response","payload":{}}"#
        ]
    );
}

#[test]
fn a_silent_server_is_dropped_after_the_second_missed_ping() {
    let mut bench = Bench::online();
    bench.wait(30 * SECOND);
    bench.text(1, r#"{"command":"ping","payload":{}}"#);
    bench.wait(30 * SECOND);
    bench.wait(29 * SECOND);
    assert!(bench.client.is_online());
    bench.actions();
    bench.wait(SECOND);
    let actions = bench.actions();
    assert!(
        matches!(actions[0], Action::CloseSocket { attempt: 1, .. }),
        "{actions:?}"
    );
    assert!(
        matches!(actions[3], Action::Status(Status::Waiting { .. })),
        "{actions:?}"
    );
}

#[test]
fn forbidden_ends_overload_waits_and_anything_else_is_retried() {
    for status in [401, 403] {
        let mut bench = Bench::new(|_| {});
        bench.client.handle_connect(1, bench.now);
        bench.actions();
        let body = "not you".to_owned();
        let error = ConnectError::Refused {
            status,
            body: body.clone(),
        };
        bench.client.handle_socket_failed(1, error, bench.now);
        assert_eq!(bench.statuses(), [Status::Refused { status, body }]);
        assert_eq!(bench.client.poll_timeout(), None);
    }
    let mut bench = Bench::new(|_| {});
    bench.client.handle_connect(1, bench.now);
    for attempt in 1..20 {
        bench.actions();
        let error = if attempt % 2 == 0 {
            ConnectError::Refused {
                status: 503,
                body: String::new(),
            }
        } else {
            network()
        };
        bench
            .client
            .handle_socket_failed(attempt, error.clone(), bench.now);
        let statuses = bench.statuses();
        let &[
            Status::Waiting {
                delay,
                error: ref told,
            },
        ] = &statuses[..]
        else {
            panic!("{statuses:?}");
        };
        assert_eq!(told, &error);
        let longest = (Duration::from_millis(500) * (1 << (attempt - 1).min(6))).min(30 * SECOND);
        assert!(
            delay <= longest && (attempt % 2 == 1 || delay >= longest / 2),
            "{attempt}: {delay:?}"
        );
        bench.wait(delay);
    }
}

#[test]
fn the_reason_is_told_with_what_follows_and_kept_until_the_connection_is_up() {
    let mut bench = Bench::new(|config| config.max_reconnect_attempts = Some(1));
    bench.client.handle_connect(1, bench.now);
    assert_eq!(bench.client.last_error(), None);
    bench.client.handle_socket_failed(1, network(), bench.now);
    assert_eq!(bench.client.last_error(), Some(&network()));
    bench.wait(SECOND);
    assert_eq!(
        bench.client.last_error(),
        Some(&network()),
        "an attempt is no success"
    );
    bench.client.handle_socket_opened(2, bench.now);
    assert_eq!(bench.client.last_error(), None);
    bench.actions();

    let loss = closed(CloseCode::GOING_AWAY);
    let error = ConnectError::from(loss.clone());
    bench
        .client
        .handle_socket_closed(2, loss.clone(), bench.now);
    assert_eq!(bench.client.last_error(), Some(&error));
    let statuses = bench.statuses();
    assert_eq!(statuses[0], Status::Disconnected { loss });
    assert!(
        matches!(&statuses[1], Status::Waiting { error: told, .. } if *told == error),
        "{statuses:?}"
    );

    // The attempt that hangs is the last one.
    bench.wait(SECOND);
    bench.wait(10 * SECOND);
    let error = ConnectError::Timeout(10 * SECOND);
    let ended = Status::ReconnectFailed {
        error: error.clone(),
    };
    assert_eq!(bench.statuses().last(), Some(&ended));
    assert_eq!(bench.client.last_error(), Some(&error));
    bench.client.handle_close(bench.now);
    assert_eq!(
        bench.client.last_error(),
        Some(&error),
        "what ended it stays to be read"
    );
    bench.client.handle_connect(2, bench.now);
    assert_eq!(bench.client.last_error(), None);
    bench.client.handle_close(bench.now);
    assert_eq!(bench.client.last_error(), None, "a close is no failure");
    assert!(
        bench
            .outcomes()
            .contains(&(2, Outcome::ConnectFailed(ConnectError::Closed)))
    );
}

#[test]
fn a_server_that_falls_silent_or_owes_replies_is_named_as_the_reason() {
    let mut bench = Bench::online();
    bench.wait(30 * SECOND);
    bench.wait(30 * SECOND);
    let silent = Loss::Silent.into();
    assert_eq!(bench.client.last_error(), Some(&silent));
    let lost = Status::Disconnected { loss: Loss::Silent };
    assert!(bench.statuses().contains(&lost));

    let mut bench = Bench::new(|config| config.abandoned_max = 0);
    bench.client.handle_connect(0, bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    bench.command(1, timeout(1));
    bench.wait(SECOND);
    let unanswered = Loss::Unanswered.into();
    assert_eq!(bench.client.last_error(), Some(&unanswered));
}

#[test]
fn only_the_first_failure_of_a_series_is_news() {
    let mut bench = Bench::new(|config| config.ping_timeout = 3_600 * SECOND);
    let news = |bench: &mut Bench| -> Vec<bool> {
        let actions = bench.actions().into_iter();
        let is_first = |action| match action {
            Action::Failed { is_first, .. } => Some(is_first),
            _ => None,
        };
        actions.filter_map(is_first).collect()
    };
    bench.client.handle_connect(1, bench.now);
    for attempt in 1..=3 {
        bench
            .client
            .handle_socket_failed(attempt, network(), bench.now);
        bench.wait(30 * SECOND);
    }
    assert_eq!(news(&mut bench), [true, false, false]);
    // Up, but not for long.
    bench.client.handle_socket_opened(4, bench.now);
    bench.wait(9 * SECOND);
    bench.client.handle_socket_closed(4, Loss::Gone, bench.now);
    bench.reopen(5);
    assert_eq!(news(&mut bench), [false]);
    // Being overloaded does not make what worked for so long no news.
    bench.wait(10 * SECOND);
    let overloaded = closed(CloseCode::TRY_AGAIN_LATER);
    bench.client.handle_socket_closed(5, overloaded, bench.now);
    bench.reopen(6);
    assert_eq!(news(&mut bench), [true]);
    bench.client.handle_socket_closed(6, Loss::Gone, bench.now);
    bench.client.handle_close(bench.now);
    bench.client.handle_connect(2, bench.now);
    bench.client.handle_socket_failed(7, network(), bench.now);
    assert_eq!(news(&mut bench), [false, true]);
}

#[test]
fn a_recovery_is_told_once_and_at_its_time() {
    let recoveries = |bench: &mut Bench| {
        let actions = bench.actions().into_iter();
        actions.filter(|one| *one == Action::Recovered).count()
    };
    for (seconds, is_late) in [(0, false), (10, false), (10, true)] {
        let stable_after = Duration::from_secs(seconds);
        let mut bench = Bench::new(|config| {
            config.ping_timeout = 3_600 * SECOND;
            config.stable_after = stable_after;
        });
        bench.client.handle_connect(1, bench.now);
        bench.client.handle_socket_failed(1, network(), bench.now);
        bench.reopen(2);
        if is_late {
            // A driver that is behind hears of the loss first.
            bench.now += stable_after;
            bench.client.handle_socket_closed(2, Loss::Gone, bench.now);
        } else if seconds > 0 {
            assert_eq!(recoveries(&mut bench), 0);
            let due = bench.client.poll_timeout();
            assert_eq!(due, Some(bench.now + stable_after));
            bench.wait(stable_after);
        }
        assert_eq!(recoveries(&mut bench), 1);
        assert!(bench.client.poll_timeout().is_none_or(|at| at > bench.now));
        bench.wait(60 * SECOND);
        assert_eq!(recoveries(&mut bench), 0);
    }
}

#[test]
fn only_a_stable_connection_starts_the_backoff_anew() {
    for (online, loss, anew) in [
        (9, Loss::Gone, false),
        (10, Loss::Gone, true),
        (10, closed(CloseCode::TRY_AGAIN_LATER), false),
    ] {
        let mut bench = Bench::new(|config| config.ping_timeout = 3_600 * SECOND);
        bench.client.handle_connect(1, bench.now);
        for attempt in 1..8 {
            bench
                .client
                .handle_socket_failed(attempt, network(), bench.now);
            bench.wait(30 * SECOND);
        }
        bench.client.handle_socket_opened(8, bench.now);
        // Whatever the jitter, among ten waits from the eighth step on one is long.
        let mut longest = Duration::ZERO;
        for attempt in 8..18 {
            bench.wait(online * SECOND);
            bench.actions();
            bench
                .client
                .handle_socket_closed(attempt, loss.clone(), bench.now);
            for status in bench.statuses() {
                if let Status::Waiting { delay, .. } = status {
                    longest = longest.max(delay);
                }
            }
            bench.reopen(attempt + 1);
        }
        assert_eq!(
            longest <= Duration::from_millis(500),
            anew,
            "{online} {loss:?} {longest:?}"
        );
    }
}

#[test]
fn fail_fast_concerns_the_first_attempt_only() {
    let mut bench = Bench::new(|config| config.fail_fast = true);
    bench.client.handle_connect(1, bench.now);
    bench.client.handle_socket_failed(1, network(), bench.now);
    assert_eq!(bench.outcomes(), [(1, Outcome::ConnectFailed(network()))]);
    bench.client.handle_connect(2, bench.now);
    bench.client.handle_socket_opened(2, bench.now);
    assert_eq!(bench.outcomes(), [(2, Outcome::Connected)]);
    bench.client.handle_socket_closed(2, Loss::Gone, bench.now);
    bench.wait(SECOND);
    bench.actions();
    bench.client.handle_socket_failed(3, network(), bench.now);
    assert!(matches!(bench.statuses()[..], [Status::Waiting { .. }]));
}

#[test]
fn the_client_gives_up_after_the_attempts_it_was_allowed() {
    let mut bench = Bench::new(|config| config.max_reconnect_attempts = Some(2));
    bench.client.handle_connect(1, bench.now);
    bench.command(2, CommandOptions::default());
    for attempt in 1..=2 {
        bench
            .client
            .handle_socket_failed(attempt, network(), bench.now);
        bench.wait(2 * SECOND);
    }
    bench.actions();
    bench.client.handle_socket_failed(3, network(), bench.now);
    let outcome = |token, outcome| Action::Complete { token, outcome };
    assert_eq!(
        bench.actions(),
        [
            Action::Failed {
                error: network(),
                is_first: false
            },
            outcome(2, Outcome::Closed),
            outcome(1, Outcome::ConnectFailed(network())),
            Action::Status(Status::ReconnectFailed { error: network() })
        ]
    );
    bench.command(3, CommandOptions::default());
    assert_eq!(bench.outcomes(), [(3, Outcome::Closed)]);
}

#[test]
fn an_attempt_that_hangs_is_abandoned_at_its_deadline() {
    let mut bench = Bench::new(|_| {});
    bench.client.handle_connect(1, bench.now);
    bench.actions();
    bench.wait(10 * SECOND);
    let actions = bench.actions();
    assert!(
        matches!(actions[0], Action::CloseSocket { attempt: 1, .. }),
        "{actions:?}"
    );
    bench.client.handle_socket_opened(1, bench.now);
    assert_eq!(bench.actions(), []);
}

#[test]
fn a_hundred_queued_commands_survive_a_restart_in_order() {
    let mut bench = Bench::online();
    bench
        .client
        .handle_socket_closed(1, closed(CloseCode::GOING_AWAY), bench.now);
    bench.actions();
    for token in 1..=100 {
        bench.command(token, CommandOptions::default());
    }
    assert_eq!(bench.outcomes(), []);
    bench.wait(SECOND);
    bench.client.handle_socket_opened(2, bench.now);
    let sent = bench.sent();
    assert_eq!(sent.len(), 100);
    for (n, frame) in sent.iter().enumerate() {
        assert!(
            frame.ends_with(&format!("\"payload\":{}}}", n + 1)),
            "{frame}"
        );
        bench.text(2, frame);
    }
    assert_eq!(bench.outcomes().len(), 100);
}

#[test]
fn the_queue_is_bounded_in_commands_bytes_and_time() {
    let mut bench = Bench::new(|config| {
        config.queue_commands_max = 3;
        config.queue_bytes_max = 20;
        config.command_bytes_max = 100;
    });
    let offline = CommandOptions {
        offline: OfflinePolicy::Fail,
        ..CommandOptions::default()
    };
    bench.command(1, offline);
    assert_eq!(bench.outcomes(), [(1, Outcome::Offline)]);
    let long = format!("{:18}", 1);
    bench
        .client
        .handle_command(2, "x", &long, timeout(60), bench.now);
    bench.command(3, timeout(60));
    assert_eq!(bench.outcomes(), [(3, Outcome::QueueFull)], "bytes");
    bench.wait(30 * SECOND);
    let expired = Outcome::Timeout {
        after: 30 * SECOND,
        sent: false,
    };
    assert_eq!(bench.outcomes(), [(2, expired)]);
    for token in 4..8 {
        bench.command(token, timeout(60));
    }
    assert_eq!(bench.outcomes(), [(7, Outcome::QueueFull)], "commands");
    let long = format!("{:100}", 1);
    bench
        .client
        .handle_command(8, "x", &long, timeout(60), bench.now);
    assert_eq!(
        bench.outcomes(),
        [(8, Outcome::TooLarge { len: 142, max: 100 })]
    );
}

#[test]
fn what_is_in_flight_and_what_waits_at_the_socket_is_bounded() {
    let mut bench = Bench::new(|config| {
        config.in_flight_max = 2;
        config.backlog_bytes_max = 90;
        config.abandoned_max = 3;
    });
    bench.client.handle_connect(0, bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    bench.actions();
    for token in 1..=4 {
        bench.command(token, timeout(5));
    }
    assert_eq!(bench.sent().len(), 2, "two in flight");
    bench.text(1, r#"{"id":0,"command":"x","payload":1}"#);
    assert_eq!(bench.sent().len(), 1, "a reply makes room");
    // Nothing was written so far, so even a ping goes unanswered.
    bench.text(1, r#"{"id":1,"command":"x","payload":1}"#);
    bench.text(1, r#"{"command":"ping","payload":{}}"#);
    assert_eq!(bench.sent().len(), 0, "the socket takes nothing");
    bench.client.handle_backlog(1, 0, bench.now);
    assert_eq!(bench.sent().len(), 1);
    // Two time out, and two more: more late replies are awaited than there is room for.
    for token in 5..7 {
        bench.command(token, timeout(5));
    }
    bench.client.handle_backlog(1, 0, bench.now);
    bench.wait(5 * SECOND);
    bench.client.handle_backlog(1, 0, bench.now);
    for token in 7..9 {
        bench.command(token, timeout(5));
    }
    bench.actions();
    bench.wait(5 * SECOND);
    let actions = bench.actions();
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::CloseSocket { .. })),
        "{actions:?}"
    );
}

#[test]
fn closing_ends_everything_and_connecting_again_starts_clean() {
    let mut bench = Bench::online();
    let subscription = bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.subscribed(1, 0);
    bench.command(2, idempotent());
    bench.actions();
    bench.client.handle_close(bench.now);
    let (attempt, code) = (1, CloseCode::NORMAL);
    assert_eq!(
        bench.actions(),
        [
            Action::CloseSocket { attempt, code },
            Action::Complete {
                token: 2,
                outcome: Outcome::Disconnected
            },
            Action::SubscriptionEnded {
                subscription,
                refusal: None
            },
            Action::Status(Status::Closed)
        ]
    );
    assert_eq!(bench.client.poll_timeout(), None);
    bench.client.handle_connect(3, bench.now);
    bench.client.handle_socket_opened(2, bench.now);
    assert_eq!(bench.sent().len(), 0);
    assert!(bench.client.is_online());
}

#[test]
fn rubbish_is_counted_and_durations_beyond_reason_do_not_panic() {
    let mut bench = Bench::new(|config| {
        config.ping_timeout = Duration::MAX;
        config.connect_timeout = Duration::MAX;
        config.command_timeout = Duration::MAX;
        config.queue_expiry = Duration::MAX;
    });
    bench.client.handle_connect(0, bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    bench.command(1, CommandOptions::default());
    bench.actions();
    for rubbish in [
        "",
        "{",
        "[]",
        r#"{"command":1}"#,
        r#"{"id":null,"command":"x"}"#,
        r#"{"command":"latency","payload":-1}"#,
        r#"{"command":"latency","payload":1e400}"#,
        r#"{"command":"mesh/assign-id","payload":7}"#,
        r#"{"command":"mesh/subscription-message","payload":{"channel":7}}"#,
    ] {
        bench.text(1, rubbish);
    }
    bench.client.handle_binary(1);
    assert_eq!(bench.actions(), []);
    assert_eq!(bench.client.stats().frames_malformed, 10);
    bench.text(1, r#"{"command":"mesh/assign-id","payload":"me"}"#);
    assert_eq!(bench.client.connection_id(), Some("me"));
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    assert_eq!(bench.client.connection_id(), None);
}

#[test]
fn what_is_sent_may_be_as_long_as_allowed_and_no_longer() {
    type Ask = fn(&mut Client<u32>, Instant);
    let asks: [Ask; 3] = [
        |client, now| client.handle_command(7, "x", "1", CommandOptions::default(), now),
        // What is escaped is longer on the wire than when it was called.
        |client, now| {
            let name = "\u{1}".repeat(50);
            client.handle_command(7, &name, "1", CommandOptions::default(), now);
        },
        |client, now| client.handle_join(7, "r", now),
    ];
    for ask in asks {
        let mut shortest = None;
        for max in 1..600 {
            let mut bench = Bench::new(|config| config.command_bytes_max = max);
            bench.client.handle_connect(0, bench.now);
            bench.client.handle_socket_opened(1, bench.now);
            bench.actions();
            ask(&mut bench.client, bench.now);
            for action in bench.actions() {
                match action {
                    Action::Send { frame, .. } => {
                        let len = frame.payload().len();
                        assert!(len <= max, "{max}: {frame:?}");
                        shortest.get_or_insert((max, len));
                    }
                    Action::Complete { outcome, .. } => {
                        let Outcome::TooLarge { len, max: told } = outcome else {
                            panic!("{outcome:?}");
                        };
                        assert!(told == max && len > max, "{len} over {max}");
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        // The longest id there is counts, though this one is short.
        let (max, len) = shortest.unwrap();
        assert!(max - len < 32, "{len} bytes need {max}");
    }
}

/// Joins a room of its own with each token.
fn join(bench: &mut Bench, tokens: impl IntoIterator<Item = u32>) {
    for token in tokens {
        let room = format!("r{token}");
        bench.client.handle_join(token, &room, bench.now);
    }
}

#[test]
fn requests_take_room_in_the_queue_while_they_wait() {
    let mut bench = Bench::new(|config| config.queue_commands_max = 2);
    bench.client.handle_connect(0, bench.now);
    bench.actions();
    join(&mut bench, 1..=3);
    assert_eq!(bench.outcomes(), [(3, Outcome::QueueFull)]);

    let one = r#"mesh/join-room{"roomName":"r1"}"#.len();
    let mut bench = Bench::new(|config| config.queue_bytes_max = 2 * one);
    bench.client.handle_connect(0, bench.now);
    bench.actions();
    join(&mut bench, 1..=3);
    assert_eq!(bench.outcomes(), [(3, Outcome::QueueFull)]);
    // Whatever was sent waits no more.
    bench.client.handle_socket_opened(1, bench.now);
    assert_eq!(bench.outcomes(), [(0, Outcome::Connected)]);
    join(&mut bench, 4..9);
    assert_eq!(bench.outcomes(), []);
}

#[test]
fn a_backlog_of_another_attempt_is_none_of_this_one() {
    let mut bench = Bench::online();
    let max = ClientConfig::default().backlog_bytes_max;
    bench.client.handle_backlog(7, max, bench.now);
    let (client, now) = (&mut bench.client, bench.now);
    client.handle_command(7, "x", "1", CommandOptions::default(), now);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn messages_that_nobody_is_subscribed_to_are_counted_each() {
    let mut bench = Bench::online();
    for n in 1..=3 {
        let message =
            r#"{"command":"mesh/subscription-message","payload":{"channel":"c","message":"m"}}"#;
        bench.client.handle_text(1, message, bench.now);
        assert_eq!(bench.client.stats().messages_unclaimed, n);
    }
}

#[test]
fn a_latency_that_is_none_is_malformed() {
    for (payload, latency) in [
        ("1500", Some(Duration::from_millis(1_500))),
        ("-1", None),
        ("\"x\"", None),
    ] {
        let mut bench = Bench::online();
        let event = format!(r#"{{"command":"latency","payload":{payload}}}"#);
        bench.client.handle_text(1, &event, bench.now);
        let told = bench.actions().into_iter().find_map(|action| match action {
            Action::Latency(latency) => Some(latency),
            _ => None,
        });
        assert_eq!(told, latency, "{payload}");
        let malformed = bench.client.stats().frames_malformed;
        assert_eq!(malformed == 1, latency.is_none(), "{payload}");
    }
}

#[test]
fn a_message_counts_as_claimed_by_who_was_granted_it() {
    let mut bench = Bench::online();
    let message =
        r#"{"command":"mesh/subscription-message","payload":{"channel":"a","message":"m"}}"#;
    bench.client.handle_subscribe(1, "a", 0, bench.now);
    bench.text(1, message);
    assert_eq!(bench.client.stats().messages_unclaimed, 1);
    bench.subscribed(1, 0);
    bench.text(1, message);
    assert_eq!(bench.client.stats().messages_unclaimed, 1);
}

#[test]
fn memberships_are_limited_and_one_that_is_held_is_no_other() {
    let ask = |bench: &mut Bench, kind: usize, name: &str| {
        let (client, now) = (&mut bench.client, bench.now);
        match kind {
            0 => {
                client.handle_subscribe(9, name, 0, now);
            }
            1 => {
                client.handle_subscribe_record(9, name, RecordMode::Full, now);
            }
            _ => client.handle_join(9, name, now),
        }
        !bench.outcomes().contains(&(9, Outcome::TooMany))
    };
    for last in 0..3 {
        let mut bench = Bench::new(|config| config.memberships_max = 3);
        bench.client.handle_connect(0, bench.now);
        bench.client.handle_socket_opened(1, bench.now);
        bench.actions();
        for kind in 0..3 {
            assert!(ask(&mut bench, kind, "held"));
        }
        for kind in 0..3 {
            assert!(ask(&mut bench, kind, "held"), "{kind} again");
        }
        assert!(!ask(&mut bench, last, "one more"), "{last}");
    }
}

#[test]
fn as_many_replies_may_be_owed_as_was_said_and_no_more() {
    let mut bench = Bench::new(|config| config.abandoned_max = 2);
    bench.client.handle_connect(0, bench.now);
    bench.client.handle_socket_opened(1, bench.now);
    bench.actions();
    for owed in 1..=3 {
        bench.command(owed, timeout(1));
        bench.wait(SECOND);
        let dropped = bench
            .actions()
            .iter()
            .any(|action| matches!(action, Action::CloseSocket { .. }));
        assert_eq!(dropped, owed == 3, "{owed} are owed");
    }
}

#[test]
fn a_request_that_waited_too_long_gives_its_room_back() {
    let one = r#"mesh/join-room{"roomName":"r1"}"#.len();
    let mut bench = Bench::new(|config| {
        config.queue_bytes_max = 2 * one;
        config.connect_timeout = 600 * SECOND;
    });
    bench.client.handle_connect(0, bench.now);
    bench.actions();
    for _ in 0..3 {
        for token in 1..=3 {
            let room = format!("r{token}");
            bench.client.handle_join(token, &room, bench.now);
        }
        assert_eq!(bench.outcomes(), [(3, Outcome::QueueFull)]);
        bench.wait(30 * SECOND);
        assert_eq!(bench.outcomes().len(), 2);
    }
}

#[test]
fn a_late_grant_of_a_room_that_is_asked_for_again_is_not_given_back() {
    let mut bench = Bench::online();
    bench.client.handle_join(1, "r", bench.now);
    bench.wait(30 * SECOND);
    bench.client.handle_join(2, "r", bench.now);
    bench.actions();
    let granted = |id| {
        format!(
            r#"{{"id":{id},"command":"mesh/join-room","payload":{{"success":true,"present":[]}}}}"#
        )
    };
    bench.text(1, &granted(0));
    assert_eq!(bench.sent(), [""; 0]);
    bench.text(1, &granted(1));
    assert_eq!(bench.actions().len(), 1, "the outcome, and nothing to send");
}

#[test]
fn a_late_reply_to_a_leave_asks_for_nothing() {
    let mut bench = Bench::online();
    bench.client.handle_join(1, "r", bench.now);
    bench.text(
        1,
        r#"{"id":0,"command":"mesh/join-room","payload":{"success":true,"present":[]}}"#,
    );
    bench.client.handle_leave(2, "r", bench.now);
    bench.wait(30 * SECOND);
    bench.actions();
    bench.text(
        1,
        r#"{"id":1,"command":"mesh/leave-room","payload":{"success":true}}"#,
    );
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn a_room_is_left_at_once_where_there_is_no_connection() {
    let mut bench = Bench::online();
    bench.client.handle_join(1, "r", bench.now);
    bench.text(
        1,
        r#"{"id":0,"command":"mesh/join-room","payload":{"success":true,"present":[]}}"#,
    );
    bench.client.handle_socket_closed(1, Loss::Gone, bench.now);
    bench.actions();
    bench.client.handle_leave(2, "r", bench.now);
    assert_eq!(bench.outcomes(), [(2, Outcome::Left)]);
}
