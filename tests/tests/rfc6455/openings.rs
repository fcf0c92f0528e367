//! The list of opening handshakes, and how they must be answered.

use mesh_tests::{Demo, Upgrade};

use crate::case::{Case, Frame, Group, Listed, case, close, echo, frame, ping, text};

/// What stands in the request of [`Upgrade::new`], to be replaced.
const UPGRADE: &str = "Upgrade: websocket\r\n";
const CONNECTION: &str = "Connection: Upgrade\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const KEY: &str = "Sec-WebSocket-Key: bWVzaC1jb25mb3JtYW5jZQ==\r\n";
const KEY_VALUE: &str = "bWVzaC1jb25mb3JtYW5jZQ==";
const HOST: &str = "Host: ";
const END: &str = "\r\n\r\n";

/// One line of the list: a request that differs from an ordinary one, and its answer.
pub(crate) struct Opening {
    what: String,
    changes: Vec<(&'static str, String)>,
    answer: Answer,
}

enum Answer {
    /// The upgrade, behind which this has to hold.
    Accepted(Case),
    /// This status, with a header of this value.
    Refused(u16, Option<(&'static str, &'static str)>),
}

fn opening(what: impl Into<String>) -> Opening {
    Opening {
        what: what.into(),
        changes: Vec::new(),
        answer: Answer::Accepted(case("an ordinary connection")),
    }
}

impl Opening {
    /// With a piece of the request replaced.
    fn with(mut self, from: &'static str, to: impl Into<String>) -> Self {
        self.changes.push((from, to.into()));
        self
    }

    fn without(self, field: &'static str) -> Self {
        self.with(field, "")
    }

    /// With one more line at the end of the head.
    fn adding(self, line: &str) -> Self {
        self.with(END, format!("\r\n{line}{END}"))
    }

    /// Accepted, and the first segment of this case came in that of the request.
    fn then(mut self, upgraded: Case) -> Self {
        self.answer = Answer::Accepted(upgraded);
        self
    }

    fn refused(mut self, status: u16) -> Self {
        self.answer = Answer::Refused(status, None);
        self
    }

    fn refused_with(mut self, status: u16, name: &'static str, value: &'static str) -> Self {
        self.answer = Answer::Refused(status, Some((name, value)));
        self
    }
}

impl Listed for Opening {
    fn what(&self) -> &str {
        &self.what
    }

    fn run(&self, demo: &Demo) {
        let mut upgrade = Upgrade::new(demo.addr());
        for (from, to) in &self.changes {
            upgrade = upgrade.replace(from, to);
        }
        // That a response of 101 holds what it must, and neither an extension nor a subprotocol, `Upgrade` asserts.
        match &self.answer {
            Answer::Accepted(upgraded) => {
                if let Err(response) = upgraded.run_behind(upgrade, demo) {
                    panic!("refused: {response:?}");
                }
            }
            Answer::Refused(status, header) => {
                let Err(response) = upgrade.send(demo.addr()) else {
                    panic!("accepted instead of refused with {status}");
                };
                assert_eq!(response.status, *status, "{response:?}");
                if let Some((name, value)) = header {
                    assert_eq!(response.header(name), Some(*value), "{response:?}");
                }
            }
        }
    }
}

pub(crate) fn list() -> Vec<Group<Opening>> {
    let of_version = |version: &str| {
        opening(format!("the version {version}"))
            .with(VERSION, format!("Sec-WebSocket-Version: {version}\r\n"))
            .refused_with(426, "sec-websocket-version", "13")
    };
    let of_key = |what: &str, key: &str| opening(what).with(KEY_VALUE, key).refused(400);
    let by = |method: &str| {
        opening(method)
            .with("GET / ", format!("{method} / "))
            .refused_with(405, "allow", "GET")
    };
    let with = |what: &str, then: Case| opening(what).then(then);
    let greeting = "Grüße 世界 🎈";
    let whole = || -> Frame { text(echo(greeting)) };
    vec![
        Group {
            number: "10.1",
            section: "4.2.1",
            subject: "requests that open a connection, in whatever spelling",
            cases: vec![
                opening("an ordinary one"),
                opening("names in capitals")
                    .with("Upgrade: w", "UPGRADE: w")
                    .with("Connection:", "CONNECTION:")
                    .with("Host:", "HOST:")
                    .with("Sec-WebSocket-Key:", "SEC-WEBSOCKET-KEY:")
                    .with("Sec-WebSocket-Version:", "SEC-WEBSOCKET-VERSION:"),
                opening("names in small letters")
                    .with("Upgrade: w", "upgrade: w")
                    .with("Connection:", "connection:")
                    .with("Host:", "host:")
                    .with("Sec-WebSocket-Key:", "sec-websocket-key:")
                    .with("Sec-WebSocket-Version:", "sec-websocket-version:"),
                opening("values in capitals")
                    .with(UPGRADE, "Upgrade: WEBSOCKET\r\n")
                    .with(CONNECTION, "Connection: UPGRADE\r\n"),
                opening("spaces and tabs around values")
                    .with(UPGRADE, "Upgrade:\t websocket \t\r\n")
                    .with(CONNECTION, "Connection:   Upgrade  \r\n")
                    .with(VERSION, "Sec-WebSocket-Version:13 \r\n"),
                opening("no spaces around values")
                    .with(UPGRADE, "Upgrade:websocket\r\n")
                    .with(CONNECTION, "Connection:Upgrade\r\n")
                    .with(VERSION, "Sec-WebSocket-Version:13\r\n"),
                opening("a list of connection options")
                    .with(CONNECTION, "Connection: keep-alive, Upgrade\r\n"),
                opening("a list of connection options without spaces")
                    .with(CONNECTION, "Connection: keep-alive,upgrade,x\r\n"),
                opening("connection options in two fields").with(
                    CONNECTION,
                    "Connection: keep-alive\r\nConnection: Upgrade\r\n",
                ),
                opening("a list of protocols to upgrade to")
                    .with(UPGRADE, "Upgrade: h2c, websocket\r\n"),
                opening("protocols to upgrade to in two fields")
                    .with(UPGRADE, "Upgrade: h2c\r\nUpgrade: websocket\r\n"),
                opening("a query").with("GET / ", "GET /?token=x&y=%20 "),
                opening("an origin").adding("Origin: http://example.org"),
                opening("cookies and what nobody knows")
                    .adding("Cookie: a=b; c=d")
                    .adding("X-Unknown: \t x"),
                opening("offers of extensions, none of which is taken")
                    .adding("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
                    .adding("Sec-WebSocket-Extensions: x-unknown"),
                opening("offers of subprotocols, none of which is taken")
                    .adding("Sec-WebSocket-Protocol: chat, superchat"),
            ],
        },
        Group {
            number: "10.2",
            section: "4.2.1",
            subject: "requests that do not ask for a WebSocket",
            cases: vec![
                opening("no Upgrade: a page").without(UPGRADE).refused(200),
                opening("an Upgrade to something else: a page")
                    .with(UPGRADE, "Upgrade: h2c\r\n")
                    .refused(200),
                opening("an Upgrade to a longer name: a page")
                    .with(UPGRADE, "Upgrade: websockets\r\n")
                    .refused(200),
                opening("an empty Upgrade: a page")
                    .with(UPGRADE, "Upgrade:\r\n")
                    .refused(200),
            ],
        },
        Group {
            number: "10.3",
            section: "4.2.1, 4.2.2",
            subject: "requests that ask for one in the wrong way",
            cases: vec![
                opening("no Connection").without(CONNECTION).refused(400),
                opening("another connection option")
                    .with(CONNECTION, "Connection: keep-alive\r\n")
                    .refused(400),
                opening("a connection option with upgrade in its name")
                    .with(CONNECTION, "Connection: no-upgrade\r\n")
                    .refused(400),
                opening("no Host").with(HOST, "X-Host: ").refused(400),
                opening("two Hosts")
                    .adding("Host: example.org")
                    .refused(400),
                opening("no key").without(KEY).refused(400),
                opening("two keys").adding(KEY.trim_end()).refused(400),
                of_key("an empty key", ""),
                of_key("a key of 15 bytes", "bWVzaC1jb25mb3JtYW5j"),
                of_key("a key of 17 bytes", "bWVzaC1jb25mb3JtYW5jZXM="),
                of_key("a key without its padding", "bWVzaC1jb25mb3JtYW5jZQ"),
                of_key("a key that is not base64", "not base64 of 16 bytes!!"),
                of_key("a key in another alphabet", "_-VzaC1jb25mb3JtYW5jZQ=="),
                opening("HTTP/1.0")
                    .with("HTTP/1.1", "HTTP/1.0")
                    .refused(400),
            ],
        },
        Group {
            number: "10.4",
            section: "4.2.1",
            subject: "methods other than GET",
            cases: ["POST", "PUT", "DELETE", "OPTIONS", "get"].map(by).into(),
        },
        Group {
            number: "10.5",
            section: "4.4",
            subject: "another version, which is told the right one",
            cases: [
                "0", "7", "8", "12", "14", "013", "130", "13, 8", "8, 13", "abc", "",
            ]
            .map(of_version)
            .into_iter()
            .chain([
                opening("no version").without(VERSION).refused_with(
                    426,
                    "sec-websocket-version",
                    "13",
                ),
                opening("two versions")
                    .adding("Sec-WebSocket-Version: 8")
                    .refused_with(426, "sec-websocket-version", "13"),
                opening("two versions, the right one first and last")
                    .adding(VERSION.trim_end())
                    .refused_with(426, "sec-websocket-version", "13"),
                opening("what the answer names: the upgrade")
                    .with(VERSION, "Sec-WebSocket-Version: 8\r\n")
                    .refused_with(426, "upgrade", "websocket"),
            ])
            .collect(),
        },
        Group {
            number: "10.6",
            section: "4.1",
            subject: "frames in the segment of the request, though a client has to wait: as if they had come later",
            cases: [1, 2, 5, 6, 10]
                .map(|at| {
                    with(
                        &format!("{at} bytes of one"),
                        case("a text").sends_cut(at, [whole()]).gets_echo(greeting),
                    )
                })
                .into_iter()
                .chain([
                    with("a text", case("").sends([whole()]).gets_echo(greeting)),
                    with("a ping", case("").sends([ping("x")]).gets_pong("x")),
                    with(
                        "a hundred texts",
                        case("")
                            .sends(std::iter::repeat_n(whole(), 100))
                            .repeats(100, |case, _| case.gets_echo(greeting)),
                    ),
                    with(
                        "a text and half of the next",
                        case("")
                            .sends_cut(whole().bytes().len() + 9, [whole(), whole()])
                            .gets_echo(greeting)
                            .gets_echo(greeting),
                    ),
                    with("a close", case("").sends([close(1000, "")]).closes(1000)),
                    with(
                        "a text without a mask",
                        case("").sends([whole().unmasked()]).closes(1002),
                    ),
                    with(
                        "a reserved opcode",
                        case("").sends([frame(0x3, "")]).closes(1002),
                    ),
                    with(
                        "a text that is not UTF-8",
                        case("").sends([text(b"\xff")]).closes(1007),
                    ),
                    with(
                        "a message over the limit",
                        case("").sends([text("").announcing(1 << 40)]).closes(1009),
                    ),
                ])
                .collect(),
        },
    ]
}
