//! The machine that keeps the way to Redis: it connects, registers, watches, gives up and tries again.
//!
//! It has no socket and no clock. Events go in by `handle_*`, orders come out of `poll_action`. One *epoch* is one
//! attempt and, if it succeeds, the time until it is lost; reports of an epoch that is over are ignored.
//!
//! ```text
//! Connecting → Registering → Resubscribing → Up
//!      ↑            │              │          │   a failure, a deadline, or being judged dead
//!      └─── Down ←──┴──────────────┴──────────┘   (backoff with full jitter, without end)
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Times, all of them longer than zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkConfig {
    /// How long connecting may take.
    pub(crate) connect: Duration,
    /// How long registering may take.
    pub(crate) register: Duration,
    /// How long taking all topics again may take.
    pub(crate) resubscribe: Duration,
    /// From one ping's answer to the next ping.
    pub(crate) ping_interval: Duration,
    /// How long the answer to a ping may take.
    pub(crate) ping_timeout: Duration,
    /// From one heartbeat to the next.
    pub(crate) heartbeat: Duration,
    /// How long an instance that is silent counts as alive.
    pub(crate) lease: Duration,
    /// The longest wait before the second attempt; it doubles with each further one.
    pub(crate) backoff_min: Duration,
    /// The longest wait of all.
    pub(crate) backoff_max: Duration,
}

/// What to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum LinkAction {
    /// Drop what there is of this epoch's connections, and what is being opened; it never was up.
    Abandon { reason: String },
    /// Open both connections and check the server. Answered by `handle_connected`.
    Connect { epoch: u64 },
    /// Renew the lease. Answered by `handle_heartbeat`.
    Heartbeat { epoch: u64, may_reap: bool },
    /// Drop both connections and fail all that is under way: the epoch was up.
    Lost { reason: String },
    /// Ask both connections for a sign of life. Answered by `handle_pong`.
    Ping { epoch: u64 },
    /// Draw an incarnation, take its lease, entomb those before it. Answered by `handle_registered`.
    Register { epoch: u64 },
    /// Take all topics again. Answered by `handle_resubscribed`.
    Resubscribe { epoch: u64 },
    /// Serve operations.
    Up {
        epoch: u64,
        data_kept: Option<bool>,
        /// It was up before.
        again: bool,
    },
}

#[derive(Debug)]
enum State {
    Connecting {
        deadline: Instant,
    },
    Registering {
        deadline: Instant,
    },
    Resubscribing {
        deadline: Instant,
        data_kept: Option<bool>,
    },
    Up(Up),
    Down {
        until: Instant,
    },
    Closed,
}

/// Both connections work, as far as is known.
#[derive(Debug)]
struct Up {
    since: Instant,
    /// Redis has answered without a break since.
    steady_since: Instant,
    last_pong: Instant,
    /// The next ping, or the deadline of its answer.
    ping: Ping,
    /// `None` while one is under way: its ping vouches for it.
    next_heartbeat: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Ping {
    At(Instant),
    Sent {
        deadline: Instant,
        /// This process stood still over the last deadline, and the answer may be there, unread.
        extended: bool,
    },
}

/// Keeps the way to Redis.
#[derive(Debug)]
pub(crate) struct Link {
    config: LinkConfig,
    state: State,
    epoch: u64,
    was_up: bool,
    /// Failed attempts and short successes since it was last up for as long as a lease.
    failures: u32,
    random: u64,
    actions: VecDeque<LinkAction>,
}

impl Link {
    /// Begins with a first attempt; `seed` draws the jitter.
    pub(crate) fn new(config: LinkConfig, seed: u64, now: Instant) -> Self {
        let mut link = Self {
            config,
            state: State::Closed,
            epoch: 0,
            was_up: false,
            failures: 0,
            random: seed,
            actions: VecDeque::new(),
        };
        link.connect(now);
        link
    }

    /// Would these connections be used, or has the attempt been given up?
    pub(crate) fn awaits_connections(&self, epoch: u64) -> bool {
        epoch == self.epoch && matches!(self.state, State::Connecting { .. })
    }

    /// Is it this epoch's topics that are being taken again?
    pub(crate) fn awaits_topics(&self, epoch: u64) -> bool {
        epoch == self.epoch && matches!(self.state, State::Resubscribing { .. })
    }

    /// The connections are open, or could not be opened.
    pub(crate) fn handle_connected(
        &mut self,
        epoch: u64,
        result: Result<(), String>,
        now: Instant,
    ) {
        if !self.awaits_connections(epoch) {
            return;
        }
        match result {
            Ok(()) => {
                let deadline = now + self.config.register;
                self.state = State::Registering { deadline };
                self.actions.push_back(LinkAction::Register { epoch });
            }
            Err(reason) => self.fail(&reason, now),
        }
    }

    /// The instance has a lease, or could not get one. With it comes whether the store kept its data, if known.
    pub(crate) fn handle_registered(
        &mut self,
        epoch: u64,
        result: Result<Option<bool>, String>,
        now: Instant,
    ) {
        if epoch != self.epoch || !matches!(self.state, State::Registering { .. }) {
            return;
        }
        match result {
            Ok(data_kept) => {
                let deadline = now + self.config.resubscribe;
                self.state = State::Resubscribing {
                    deadline,
                    data_kept,
                };
                self.actions.push_back(LinkAction::Resubscribe { epoch });
            }
            Err(reason) => self.fail(&reason, now),
        }
    }

    /// All topics are in force again, or could not be taken.
    pub(crate) fn handle_resubscribed(
        &mut self,
        epoch: u64,
        result: Result<(), String>,
        now: Instant,
    ) {
        let State::Resubscribing { data_kept, .. } = self.state else {
            return;
        };
        if epoch != self.epoch {
            return;
        }
        if let Err(reason) = result {
            return self.fail(&reason, now);
        }
        self.state = State::Up(Up {
            since: now,
            steady_since: now,
            last_pong: now,
            ping: Ping::At(now + self.config.ping_interval),
            next_heartbeat: Some(now + self.config.heartbeat),
        });
        let again = std::mem::replace(&mut self.was_up, true);
        self.actions.push_back(LinkAction::Up {
            epoch,
            data_kept,
            again,
        });
    }

    /// Both connections answered the ping.
    pub(crate) fn handle_pong(&mut self, epoch: u64, now: Instant) {
        let Some(up) = self.up(epoch) else {
            return;
        };
        // Longer than a ping may take: this process stood still, or nobody asked.
        let steady = up.last_pong + self.config.ping_interval + self.config.ping_timeout;
        let next = now + self.config.ping_interval;
        if let State::Up(up) = &mut self.state {
            if now > steady {
                up.steady_since = now;
            }
            up.last_pong = now;
            up.ping = Ping::At(next);
        }
    }

    /// The lease is renewed; `next` is how long until another's ends, if this instance may clean up.
    pub(crate) fn handle_heartbeat(&mut self, epoch: u64, next: Option<Duration>, now: Instant) {
        let heartbeat = self.config.heartbeat;
        // Not at once, or an end that cannot be cleaned up would spin.
        let soonest = heartbeat / 10;
        if self.up(epoch).is_none() {
            return;
        }
        if let State::Up(up) = &mut self.state {
            let wait = next.map_or(heartbeat, |next| next.clamp(soonest, heartbeat));
            up.next_heartbeat = Some(now + wait);
        }
    }

    /// A connection broke, an operation could not be carried out, or the store holds this instance for dead.
    pub(crate) fn handle_failure(&mut self, epoch: u64, reason: &str, now: Instant) {
        let waits = matches!(self.state, State::Down { .. } | State::Closed);
        if epoch == self.epoch && !waits {
            self.fail(reason, now);
        }
    }

    /// The instance closes: nothing more is done.
    pub(crate) fn handle_close(&mut self) {
        self.state = State::Closed;
        self.actions.clear();
    }

    /// Advances time to `now`. Calling it early is harmless.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        match &mut self.state {
            State::Connecting { .. } => self.fail("connecting took too long", now),
            State::Registering { .. } => self.fail("registering took too long", now),
            State::Resubscribing { .. } => self.fail("taking the topics again took too long", now),
            State::Down { .. } => self.connect(now),
            State::Closed => {}
            State::Up(up) => {
                match up.ping {
                    Ping::Sent { deadline, extended } if now >= deadline => {
                        if extended || now <= deadline + self.config.ping_interval / 2 {
                            return self.fail("Redis does not answer", now);
                        }
                        up.ping = Ping::Sent {
                            deadline: now + self.config.ping_interval,
                            extended: true,
                        };
                    }
                    Ping::At(at) if now >= at => {
                        up.ping = Ping::Sent {
                            deadline: now + self.config.ping_timeout,
                            extended: false,
                        };
                        let epoch = self.epoch;
                        self.actions.push_back(LinkAction::Ping { epoch });
                    }
                    Ping::At(_) | Ping::Sent { .. } => {}
                }
                if up.next_heartbeat.is_some_and(|at| now >= at) {
                    up.next_heartbeat = None;
                    // After a pause of this process, what was steady is judged by the next pong.
                    let pause = self.config.ping_interval + self.config.ping_timeout;
                    let may_reap =
                        now >= up.steady_since + self.config.lease && now <= up.last_pong + pause;
                    let epoch = self.epoch;
                    self.actions
                        .push_back(LinkAction::Heartbeat { epoch, may_reap });
                }
            }
        }
    }

    /// The next thing to do, oldest first.
    pub(crate) fn poll_action(&mut self) -> Option<LinkAction> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is next wanted, if ever.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Connecting { deadline }
            | State::Registering { deadline }
            | State::Resubscribing { deadline, .. } => Some(*deadline),
            State::Down { until } => Some(*until),
            State::Closed => None,
            State::Up(up) => {
                let ping = match up.ping {
                    Ping::At(at) => at,
                    Ping::Sent { deadline, .. } => deadline,
                };
                Some(up.next_heartbeat.map_or(ping, |at| at.min(ping)))
            }
        }
    }

    fn up(&self, epoch: u64) -> Option<&Up> {
        match &self.state {
            State::Up(up) if epoch == self.epoch => Some(up),
            _ => None,
        }
    }

    fn connect(&mut self, now: Instant) {
        self.epoch += 1;
        let deadline = now + self.config.connect;
        self.state = State::Connecting { deadline };
        let epoch = self.epoch;
        self.actions.push_back(LinkAction::Connect { epoch });
    }

    fn fail(&mut self, reason: &str, now: Instant) {
        // What was ordered for this epoch and not yet begun is void.
        self.actions
            .retain(|action| matches!(action, LinkAction::Lost { .. } | LinkAction::Up { .. }));
        if let State::Up(up) = &self.state
            && now >= up.since + self.config.lease
        {
            self.failures = 0;
        }
        let reason = reason.to_owned();
        self.actions
            .push_back(if matches!(self.state, State::Up(_)) {
                LinkAction::Lost { reason }
            } else {
                LinkAction::Abandon { reason }
            });
        let doubled = self
            .config
            .backoff_min
            .saturating_mul(1 << self.failures.min(16));
        let most = doubled.min(self.config.backoff_max);
        // Full jitter above a floor, so that instances come back spread out and none of them spins.
        let floor = self.config.backoff_min / 2;
        let spread = most.saturating_sub(floor);
        let wait = floor + spread.mul_f64(self.draw());
        self.failures = self.failures.saturating_add(1);
        self.state = State::Down { until: now + wait };
    }

    /// A number from 0 to 1, by splitmix64.
    fn draw(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.random;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        (bits >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const CONFIG: LinkConfig = LinkConfig {
        connect: Duration::from_secs(7),
        register: Duration::from_secs(4),
        resubscribe: Duration::from_secs(30),
        ping_interval: Duration::from_secs(1),
        ping_timeout: Duration::from_millis(2_500),
        heartbeat: Duration::from_secs(5),
        lease: Duration::from_secs(15),
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_secs(2),
    };

    /// What happens next. Answers are to what was ordered last, or to an older epoch.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Connected {
            well: bool,
            stale: bool,
        },
        Fail {
            stale: bool,
        },
        Heartbeat {
            next_ms: Option<u64>,
        },
        Pong,
        Registered {
            well: bool,
        },
        Resubscribed {
            well: bool,
        },
        /// Exactly until the machine wants to hear of it, and as much longer.
        Sleep {
            late_ms: u64,
        },
        WaitMs(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let often = any::<u8>().prop_map(|number| number > 40);
        let seldom = any::<u8>().prop_map(|number| number < 20);
        prop_oneof![
            4 => (often.clone(), seldom.clone()).prop_map(|(well, stale)| Step::Connected { well, stale }),
            1 => any::<bool>().prop_map(|stale| Step::Fail { stale }),
            4 => proptest::option::of(0..20_000_u64).prop_map(|next_ms| Step::Heartbeat { next_ms }),
            8 => Just(Step::Pong),
            4 => often.clone().prop_map(|well| Step::Registered { well }),
            4 => often.prop_map(|well| Step::Resubscribed { well }),
            6 => prop_oneof![9 => Just(0), 1 => 0..60_000_u64].prop_map(|late_ms| Step::Sleep { late_ms }),
            2 => (0..3_000_u64).prop_map(Step::WaitMs),
        ]
    }

    /// What the outside knows.
    struct Model {
        link: Link,
        now: Instant,
        epoch: u64,
        /// Orders of this epoch that are not answered.
        open: Vec<LinkAction>,
        lost_told: bool,
        up: bool,
        was_up: bool,
        /// Since when pongs came without a break.
        steady_since: Option<Instant>,
        last_pong: Option<Instant>,
    }

    impl Model {
        fn new() -> Self {
            let now = Instant::now(); // An arbitrary origin; every later instant is simulated.
            Self {
                link: Link::new(CONFIG, 7, now),
                now,
                epoch: 0,
                open: Vec::new(),
                lost_told: false,
                up: false,
                was_up: false,
                steady_since: None,
                last_pong: None,
            }
        }

        fn take(&mut self, wanted: impl Fn(&LinkAction) -> bool) -> bool {
            let found = self.open.iter().position(wanted);
            found.map(|at| self.open.remove(at)).is_some()
        }

        fn step(&mut self, step: Step) {
            let text = |well: bool| if well { Ok(()) } else { Err("no".to_owned()) };
            let (epoch, now) = (self.epoch, self.now);
            match step {
                Step::Connected { stale: true, well } => {
                    self.link.handle_connected(epoch - 1, text(well), now);
                }
                Step::Connected { well, .. } => {
                    if self.take(|action| matches!(action, LinkAction::Connect { .. })) {
                        self.link.handle_connected(epoch, text(well), now);
                    }
                }
                Step::Fail { stale } => {
                    self.link
                        .handle_failure(epoch - u64::from(stale), "test", now);
                }
                Step::Heartbeat { next_ms } => {
                    if self.take(|action| matches!(action, LinkAction::Heartbeat { .. })) {
                        self.link
                            .handle_heartbeat(epoch, next_ms.map(Duration::from_millis), now);
                    }
                }
                Step::Pong => {
                    if self.take(|action| matches!(action, LinkAction::Ping { .. })) {
                        let most = CONFIG.ping_interval + CONFIG.ping_timeout;
                        if self.last_pong.is_some_and(|last| now > last + most) {
                            self.steady_since = Some(now);
                        }
                        self.last_pong = Some(now);
                        self.link.handle_pong(epoch, now);
                    }
                }
                Step::Registered { well } => {
                    if self.take(|action| matches!(action, LinkAction::Register { .. })) {
                        self.link
                            .handle_registered(epoch, text(well).map(|()| None), now);
                    }
                }
                Step::Resubscribed { well } => {
                    if self.take(|action| matches!(action, LinkAction::Resubscribe { .. })) {
                        self.link.handle_resubscribed(epoch, text(well), now);
                    }
                }
                Step::Sleep { late_ms } => {
                    if let Some(at) = self.link.poll_timeout() {
                        self.now = at.max(now) + Duration::from_millis(late_ms);
                    }
                }
                Step::WaitMs(ms) => self.now += Duration::from_millis(ms),
            }
            self.link.handle_timeout(self.now);
        }

        fn drain(&mut self) -> Result<(), TestCaseError> {
            while let Some(action) = self.link.poll_action() {
                match &action {
                    LinkAction::Abandon { .. } => {
                        prop_assert!(!self.up);
                        self.open.clear();
                        continue;
                    }
                    LinkAction::Connect { epoch } => {
                        prop_assert!(*epoch > self.epoch, "an epoch twice");
                        prop_assert!(
                            !self.up && self.open.is_empty(),
                            "two attempts at once: {:?}",
                            self.open
                        );
                        self.epoch = *epoch;
                    }
                    LinkAction::Heartbeat { may_reap, .. } => {
                        prop_assert!(self.up);
                        let steady = self.steady_since.unwrap();
                        let pause = CONFIG.ping_interval + CONFIG.ping_timeout;
                        let quiet = self.now > self.last_pong.unwrap() + pause;
                        prop_assert_eq!(*may_reap, self.now >= steady + CONFIG.lease && !quiet);
                    }
                    LinkAction::Lost { .. } => {
                        prop_assert!(self.up, "lost twice");
                        (self.up, self.lost_told) = (false, true);
                        self.open.clear();
                        continue;
                    }
                    LinkAction::Ping { .. } => prop_assert!(self.up),
                    LinkAction::Register { .. } | LinkAction::Resubscribe { .. } => {
                        prop_assert!(!self.up);
                    }
                    LinkAction::Up { again, .. } => {
                        prop_assert!(!self.up, "up twice");
                        prop_assert_eq!(*again, self.was_up);
                        prop_assert_eq!(*again, self.lost_told);
                        (self.up, self.was_up) = (true, true);
                        (self.steady_since, self.last_pong) = (Some(self.now), Some(self.now));
                        continue;
                    }
                }
                self.open.push(action);
            }
            let next = self.link.poll_timeout();
            prop_assert!(
                next.is_some_and(|at| at > self.now),
                "the driver would spin, or stop for ever"
            );
            Ok(())
        }
    }

    #[test]
    fn whoever_stood_still_looks_once_more_before_it_gives_up() {
        let answered = |late_ms: u64, answers: bool| {
            let mut model = Model::new();
            let sleep = |late_ms| Step::Sleep { late_ms };
            let up = [
                Step::Connected {
                    well: true,
                    stale: false,
                },
                Step::Registered { well: true },
                Step::Resubscribed { well: true },
            ];
            for step in up.into_iter().chain([sleep(0), sleep(late_ms)]) {
                model.drain().unwrap();
                model.step(step);
            }
            model.drain().unwrap();
            if answers {
                model.step(Step::Pong);
            }
            for _ in 0..2 {
                model.step(sleep(40_000));
                model.drain().unwrap();
            }
            model.up
        };
        assert!(answered(40_000, true));
        assert!(!answered(40_000, false));
        assert!(!answered(100, true), "there was time enough");
    }

    #[test]
    fn outages_in_a_row_come_further_and_further_apart() {
        let mut now = Instant::now(); // An arbitrary origin; every later instant is simulated.
        let mut link = Link::new(CONFIG, 7, now);
        let mut outage = |epoch, lasts: Duration| {
            link.handle_connected(epoch, Ok(()), now);
            link.handle_registered(epoch, Ok(None), now);
            link.handle_resubscribed(epoch, Ok(()), now);
            now += lasts;
            link.handle_failure(epoch, "test", now);
            let until = link.poll_timeout().unwrap();
            let wait = until - now;
            now = until;
            link.handle_timeout(now);
            wait
        };
        let waits: Vec<_> = (1..=20)
            .map(|epoch| outage(epoch, CONFIG.heartbeat))
            .collect();
        assert!(waits[0] <= CONFIG.backoff_min, "{waits:?}");
        assert!(waits.iter().max() > Some(&(CONFIG.backoff_max / 2)));
        assert!(outage(21, CONFIG.lease) <= CONFIG.backoff_min);
    }

    proptest! {
        #[test]
        fn it_is_lost_and_found_in_turn_and_never_gives_up(steps in vec(step(), 0..300)) {
            let mut model = Model::new();
            model.drain()?;
            for step in steps {
                model.step(step);
                model.drain()?;
            }
            // Whatever it was, with answers it comes up in the end, and stays up.
            for _ in 0..40 {
                for step in [
                    Step::Connected { well: true, stale: false },
                    Step::Registered { well: true },
                    Step::Resubscribed { well: true },
                    Step::Pong,
                    Step::Heartbeat { next_ms: None },
                    Step::Sleep { late_ms: 0 },
                ] {
                    model.step(step);
                    model.drain()?;
                }
            }
            prop_assert!(model.up);
            // Without answers it is known within four seconds.
            let silent = model.now;
            while model.up {
                model.step(Step::Sleep { late_ms: 0 });
                model.drain()?;
            }
            prop_assert!(model.now - silent <= Duration::from_secs(4));
        }

        #[test]
        fn attempts_spread_out_and_never_end(seed: u64) {
            let mut now = Instant::now(); // An arbitrary origin; every later instant is simulated.
            let mut link = Link::new(CONFIG, seed, now);
            let mut waits = Vec::new();
            for epoch in 1..=40 {
                let connect = std::iter::from_fn(|| link.poll_action()).last();
                prop_assert_eq!(connect, Some(LinkAction::Connect { epoch }));
                link.handle_connected(epoch, Err("no".to_owned()), now);
                let until = link.poll_timeout().unwrap();
                waits.push(until - now);
                now = until;
                link.handle_timeout(now);
            }
            for (attempt, wait) in waits.iter().enumerate() {
                let most = CONFIG.backoff_min * (1 << attempt.min(10));
                prop_assert!(*wait >= CONFIG.backoff_min / 2 && *wait <= most.min(CONFIG.backoff_max), "{attempt}: {wait:?}");
            }
            prop_assert!(waits[8..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        }
    }
}
