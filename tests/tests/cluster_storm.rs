//! Many clients, at once, on three instances: nothing is lost that need not be, and nothing is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_tests::fleet::{REAPED, id_set, servers, shut_down};
use mesh_tests::{Demo, RawClient, Redis, until};
use serde_json::{Value, json};

fn room(name: &str) -> Value {
    json!({ "roomName": name })
}

/// Good enough for a storm (xorshift64*); its seed is told, and can be given by `MESH_STORM_SEED`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn seed() -> u64 {
    let given = std::env::var("MESH_STORM_SEED").ok();
    let drawn = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos() as u64
    };
    let seed = given.map_or_else(drawn, |seed| seed.parse().unwrap()) | 1;
    eprintln!("MESH_STORM_SEED={seed}");
    seed
}

#[test]
fn a_storm_of_5_000_clients_ends_with_exactly_the_right_members_and_an_empty_key_space() {
    const CLIENTS: usize = 5_000;
    const THREADS: usize = 16;
    const ROOMS: u64 = 40;
    let seed = seed();
    let redis = Redis::start();
    let demos: [Demo; 3] = servers(&redis.url());
    let begun = Instant::now();
    // Each thread runs its share, some of them at once; a third stays to the end.
    let stayed: Vec<(RawClient, BTreeSet<String>)> = thread::scope(|scope| {
        let demos = &demos;
        let threads: Vec<_> = (0..THREADS)
            .map(|nth| {
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_add(nth as u64 * 0x9e37_79b9));
                    let (mut stayed, mut passing) = (Vec::new(), Vec::new());
                    for n in (nth..CLIENTS).step_by(THREADS) {
                        let mut client = RawClient::open(demos[random.below(3) as usize].addr());
                        let mut names = BTreeSet::new();
                        while names.len() < 3 {
                            names.insert(format!("storm-{}", random.below(ROOMS)));
                        }
                        // Some go before they know that they are there.
                        let known = random.below(8) > 0;
                        if known {
                            client.assigned();
                        }
                        let joins: Vec<u32> = names
                            .iter()
                            .map(|name| client.send_command("join-room", room(name)))
                            .collect();
                        match random.below(3) {
                            0 if known => {
                                for id in joins {
                                    assert_eq!(client.reply(id), json!({ "success": true }));
                                }
                                // Some change their mind.
                                if random.below(2) == 0 {
                                    let left = names.pop_first().unwrap();
                                    client.succeed("leave-room", room(&left));
                                    client.succeed("set-metadata", json!({ "n": n }));
                                }
                                client.set_aside();
                                stayed.push((client, names));
                            }
                            1 => client.vanish(),
                            _ => passing.push(client),
                        }
                        while passing.len() > 20 {
                            let at = random.below(passing.len() as u64) as usize;
                            let client = passing.swap_remove(at);
                            // In order or not, with much unread.
                            if random.below(2) == 0 {
                                client.vanish();
                            } else {
                                drop(client);
                            }
                        }
                    }
                    stayed
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    eprintln!(
        "{CLIENTS} clients came after {:?}, {} stayed",
        begun.elapsed(),
        stayed.len()
    );
    assert!(stayed.len() > CLIENTS / 5);
    let mut expected: BTreeMap<String, BTreeSet<String>> = (0..ROOMS)
        .map(|n| (format!("storm-{n}"), BTreeSet::new()))
        .collect();
    for (client, names) in &stayed {
        for name in names {
            let members = expected.get_mut(name).unwrap();
            members.insert(client.id().to_owned());
        }
    }
    let connected: BTreeSet<String> = stayed
        .iter()
        .map(|(client, _)| client.id().to_owned())
        .collect();
    for demo in &demos {
        let mut watcher = RawClient::connect(demo);
        until("exactly the right members are there", || {
            expected.iter().all(|(name, members)| {
                id_set(&watcher.command("room-members", room(name))).as_ref() == Ok(members)
            })
        });
        let mine = watcher.id().to_owned();
        until("exactly the right connections are there", || {
            let all = watcher.command("all-metadata", Value::Null);
            let ids = all.as_array().unwrap().iter();
            let mut ids: BTreeSet<String> = ids
                .flat_map(|one| one.as_object().unwrap().keys().cloned())
                .collect();
            ids.remove(&mine) && ids == connected
        });
        watcher.vanish();
        until("the watcher is gone", || {
            demos[0].connections() + demos[1].connections() + demos[2].connections()
                == connected.len() as u64
        });
    }
    // Members get what is for them.
    let mut stayed = stayed;
    let mut speaker = RawClient::connect(&demos[0]);
    for name in expected.keys() {
        let event = json!({ "roomName": name, "command": "news", "payload": name });
        assert_eq!(
            speaker.command("broadcast-room", event),
            json!({ "sent": true })
        );
    }
    for (client, names) in &mut stayed {
        let came: BTreeSet<String> = (0..names.len())
            .map(|_| client.event("news").as_str().unwrap().to_owned())
            .collect();
        assert_eq!(&came, names);
    }
    let ids: Vec<String> = connected.into_iter().collect();
    shut_down(demos.into(), &mut [redis.client()]);
    let left = redis.client().keys();
    let ghost = left.iter().find(|key| {
        key.expires_in.is_none() || ids.iter().any(|id| key.holds.len() > 1 && key.mentions(id))
    });
    assert_eq!(ghost, None);
    drop(stayed);
}

#[test]
fn killing_one_of_three_instances_under_load_loses_nothing_between_the_other_two() {
    let redis = Redis::start();
    let [first, second, victim]: [Demo; 3] = servers(&redis.url());
    let stop = AtomicBool::new(false);
    let (sent, got) = (AtomicU64::new(0), AtomicU64::new(0));
    // Publishers on the two that live, and on the one that dies.
    let survivors = [&first, &second];
    let mut watcher = RawClient::connect(&first);
    let mut dying: Vec<RawClient> = (0..200).map(|_| RawClient::connect(&victim)).collect();
    for client in &mut dying {
        for n in 0..3 {
            client.succeed("join-room", room(&format!("load-{n}")));
        }
        client.succeed("set-metadata", json!({ "dying": true }));
        let granted = client.command("mesh/subscribe-channel", json!({ "channel": "chat:load" }));
        assert_eq!(granted["success"], true);
    }
    let gone: BTreeSet<String> = dying.iter().map(|client| client.id().to_owned()).collect();
    let mut listeners: Vec<RawClient> = (0..10)
        .map(|n| {
            let mut client = RawClient::connect(survivors[n % 2]);
            client.succeed("join-room", room(&format!("load-{}", n % 3)));
            let granted =
                client.command("mesh/subscribe-channel", json!({ "channel": "chat:load" }));
            assert_eq!(granted["success"], true);
            client
        })
        .collect();
    let listening: BTreeSet<String> = listeners
        .iter()
        .map(|client| client.id().to_owned())
        .collect();
    let mut victim = Some(victim);
    thread::scope(|scope| {
        let (stop, sent, got) = (&stop, &sent, &got);
        let publishers: Vec<_> = (0..4)
            .map(|from| {
                scope.spawn(move || {
                    let mut client = RawClient::connect(survivors[from % 2]);
                    let mut n = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        for at in 0..3 {
                            let event = json!({ "roomName": format!("load-{at}"), "command": "load", "payload": [from, n] });
                            assert_eq!(client.command("broadcast-room", event), json!({ "sent": true }));
                        }
                        client.succeed("publish", json!({ "channel": "chat:load", "message": format!("{from} {n}") }));
                        n += 1;
                        sent.fetch_add(4, Ordering::Relaxed);
                        // The listeners shall keep up.
                        thread::sleep(Duration::from_millis(2));
                    }
                    for at in 0..3 {
                        let event = json!({ "roomName": format!("load-{at}"), "command": "load", "payload": [from, null, n] });
                        client.command("broadcast-room", event);
                    }
                    client.succeed("publish", json!({ "channel": "chat:load", "message": format!("{from} end {n}") }));
                })
            })
            .collect();
        let reading: Vec<_> = listeners
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    let (mut rooms, mut messages) = ([0_u64; 4], [0_u64; 4]);
                    let mut ended = 0;
                    while ended < 8 {
                        let frame = client.next_frame();
                        let payload = &frame["payload"];
                        match frame["command"].as_str().unwrap() {
                            "load" => {
                                let from = payload[0].as_u64().unwrap() as usize;
                                if payload[1].is_null() {
                                    assert_eq!(payload[2], rooms[from], "lost at the end");
                                    ended += 1;
                                } else {
                                    assert_eq!(payload[1], rooms[from], "lost or out of order");
                                    rooms[from] += 1;
                                }
                            }
                            "mesh/subscription-message" => {
                                let words: Vec<&str> =
                                    payload["message"].as_str().unwrap().split(' ').collect();
                                let Ok(from) = words[0].parse::<usize>() else {
                                    continue;
                                };
                                if words[1] == "end" {
                                    assert_eq!(
                                        words[2],
                                        messages[from].to_string(),
                                        "lost at the end"
                                    );
                                    ended += 1;
                                } else {
                                    assert_eq!(
                                        words[1],
                                        messages[from].to_string(),
                                        "lost or out of order"
                                    );
                                    messages[from] += 1;
                                }
                            }
                            _ => {}
                        }
                        got.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let watched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // The victim's clients take part until the end.
            let mut busy = RawClient::connect(victim.as_ref().unwrap());
            let event =
                json!({ "roomName": "load-0", "command": "of-the-victim", "payload": null });
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                busy.command("broadcast-room", event.clone());
            }
            for _ in 0..100 {
                busy.send_command("broadcast-room", event.clone());
                busy.send_command("join-room", room("load-1"));
                busy.send_command("leave-room", room("load-1"));
            }
            let mut gone = gone;
            gone.insert(busy.id().to_owned());
            victim.take().unwrap().kill();
            let died = Instant::now();
            loop {
                let listed: BTreeSet<String> = (0..3)
                    .flat_map(|n| {
                        let list = watcher.command("room-members", room(&format!("load-{n}")));
                        id_set(&list).unwrap()
                    })
                    .collect();
                assert!(listening.is_subset(&listed), "someone alive is gone");
                let all = watcher.command("all-metadata", Value::Null).to_string();
                if listed == listening && !gone.iter().any(|id| all.contains(&**id)) {
                    break;
                }
                let took = died.elapsed();
                assert!(took < REAPED, "{} are members after {took:?}", listed.len());
                thread::sleep(Duration::from_millis(100));
            }
            eprintln!("gone {:?} after the kill", died.elapsed());
            // No ghost stays in any key.
            until("no key knows them", || {
                let keys = redis.client().keys();
                let ghost = |key: &&mesh_tests::Key| {
                    key.expires_in.is_none() && gone.iter().any(|id| key.mentions(id))
                };
                keys.iter().find(ghost).is_none()
            });
            let lasting: Vec<_> = redis
                .client()
                .keys()
                .into_iter()
                .filter(|key| key.expires_in.is_none())
                .collect();
            eprintln!(
                "keys that last: {:?}",
                lasting
                    .iter()
                    .map(|key| (&key.name, key.holds.len()))
                    .collect::<Vec<_>>()
            );
        }));
        stop.store(true, Ordering::Relaxed);
        for thread in publishers.into_iter().chain(reading) {
            thread.join().unwrap();
        }
        watched.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    eprintln!("{sent:?} events were sent, {got:?} frames came");
    assert!(sent.into_inner() > 1_000);
    drop((dying, listeners, watcher));
    shut_down(vec![first, second], &mut [redis.client()]);
}
