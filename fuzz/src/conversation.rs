//! Conversations with a server: an input is a program of requests, replies and time, which runs
//! beside a model that knows what has to become of each request.
//!
//! The model is exact as long as the server keeps to the protocol. After bytes that are no answer
//! to what was asked it knows only what holds in any case: each waiter is told once, time goes on,
//! and memory has its bounds.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::rc::Rc;

use session_core::buffer::KEPT;
use session_core::codec::{Codec, Expiry, OutOfMemory};
use session_core::conversation::{
    Command, Conversation, Counts, Ended, Ends, Failure, IDLE, Limits, Refused, Reply, Request,
};
use session_core::inflight::Kind;
use session_core::memcached::Memcached;
use session_core::outcome::Outcome;
use session_core::resp::{self, Redis};
use zeroize::Zeroizing;

/// The longest value here. Small, so that the fuzzer gets beyond it.
const MAX_VALUE: usize = 64;
/// More than may come between two answers and answer nothing, in bytes.
const MAX_ASIDE: usize = 64 * 1024;
/// A member of a push that has not to be repeated often to be too much.
const PUSHED: usize = 9000;
/// A server that knows more than it was asked for.
const MASTER: &[u8] = b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";

/// A server and its limits, then steps.
pub fn run(data: &[u8]) {
    let mut program = Program(data);
    let Some(mut run) = Run::begin(&mut program) else { return };
    let outcome = loop {
        let Some(step) = program.byte() else { break Outcome::Down };
        match run.step(step, &mut program) {
            Ok(()) => run.check(),
            Err(outcome) => break outcome,
        }
    };
    run.fail(outcome);
}

/// The bytes that have not been used.
struct Program<'a>(&'a [u8]);

impl<'a> Program<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    /// The next byte; 0 after the end.
    fn arg(&mut self) -> usize {
        self.byte().unwrap_or(0).into()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// A conversation and what there is to know of it.
struct Run {
    conversation: Conversation<u32>,
    codec: Rc<dyn Codec>,
    is_redis: bool,
    limits: Limits,
    probe: bool,
    now: u64,
    model: Model,
    /// Whoever has asked and was not told. Each has asked once.
    waiting: BTreeSet<u32>,
    questions: usize,
    next: u32,
}

/// What was asked, and what is on the wire.
struct Model {
    /// Whether the server has said what it was not asked for.
    strayed: bool,
    /// When the connection was there, and when an answer was complete after that.
    connected: Option<u64>,
    heard: u64,
    stale: bool,
    silent: bool,
    late_since: Option<u64>,
    greeting: Vec<u8>,
    /// How much of the greeting, and then of all requests, has been taken.
    greeted: usize,
    requests: Vec<u8>,
    sent: usize,
    asked: VecDeque<Asked>,
    /// How many of those the server has answered.
    answered: usize,
    /// What the server says: how many bytes of it have come, and what has not come.
    arrived: usize,
    wire: VecDeque<u8>,
    /// What those are, up to where each goes.
    units: VecDeque<(usize, Unit)>,
    /// How much was taken out of what has come.
    taken: usize,
    aside: usize,
    counts: Counts,
    proven: bool,
    good: bool,
    accepted: bool,
    has_refused: bool,
    suspect: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Greeting,
    Asking,
    Fetch(u32),
    Take(u32),
    Claim(u32),
    Update(Option<u32>),
    Query,
}

impl What {
    fn waiter(self) -> Option<u32> {
        match self {
            What::Fetch(waiter) | What::Take(waiter) | What::Claim(waiter) => Some(waiter),
            What::Update(waiter) => waiter,
            What::Greeting | What::Asking | What::Query => None,
        }
    }

    fn is_awaited(self) -> bool {
        self.waiter().is_some() || self == What::Query
    }

    fn is_lookup(self) -> bool {
        matches!(self, What::Fetch(_) | What::Take(_) | What::Claim(_) | What::Query)
    }

    /// As [`show`] has it.
    fn name(self) -> String {
        match (self, self.waiter()) {
            (_, Some(waiter)) => waiter.to_string(),
            (What::Query, None) => "query".to_owned(),
            (_, None) => "nobody".to_owned(),
        }
    }
}

/// What has no answer.
struct Asked {
    what: What,
    timeout: u64,
    deadline: Option<u64>,
    fixed: bool,
    submitted: bool,
    written: Option<u64>,
    expired: bool,
    /// Where it ends in the greeting, or among the requests.
    end: usize,
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Accepted,
    Value,
    Claim,
    TooLarge,
    Skipped,
    Missing,
    Done,
    Refused,
    Moved,
    Array,
    Push,
}

impl Run {
    fn begin(program: &mut Program<'_>) -> Option<Self> {
        let (server, limits) = (program.byte()?, program.byte()?);
        let redis = match server % 3 {
            0 => Some(Redis::default()),
            1 => Some(Redis {
                authenticates: true,
                client_name: Some(b"web1".to_vec()),
                master: true,
                ..Redis::default()
            }),
            _ => None,
        };
        let is_redis = redis.is_some();
        let codec: Rc<dyn Codec> = match redis {
            Some(redis) => Rc::new(redis),
            None => Rc::new(Memcached),
        };
        let probe = server & 0x80 != 0;
        let limits = Limits {
            fetch_timeout: 50,
            store_timeout: if limits & 0x40 != 0 { 200 } else { 20 },
            greet_timeout: 70,
            mute: 4,
            silence: 4,
            queue: usize::from(limits % 16),
            max_value: MAX_VALUE,
            redirects: limits & 0x80 != 0,
        };
        let conversation = Conversation::new(Rc::clone(&codec), limits.clone(), probe).unwrap();
        let mut greeting = Vec::new();
        codec.greet(probe, b"secret", &mut greeting).unwrap();
        let steps = codec.greeting_steps(probe);
        let mut model = Model::new(greeting);
        for _ in 0..steps {
            let end = model.greeting.len();
            model.asked.push_back(Asked::new(What::Greeting, 0, 0, None, end));
        }
        Some(Run {
            conversation,
            codec,
            is_redis,
            limits,
            probe,
            now: 0,
            model,
            waiting: BTreeSet::new(),
            questions: 0,
            next: 0,
        })
    }

    /// One step. `Err` is how the connection ends.
    fn step(&mut self, step: u8, program: &mut Program<'_>) -> Result<(), Outcome> {
        match step % 16 {
            0 => self.ask(Command::Get, true, None, false),
            1 => self.ask(Command::Take, true, None, false),
            2 => {
                let deadline = self.now + program.arg() as u64;
                self.ask(Command::Claim(1), true, Some(deadline), false);
            }
            3 => {
                let arg = program.arg();
                let value = vec![b'v'; arg];
                let expiry = Expiry { ttl: 300, at: 1 };
                let command = match arg % 4 < 2 {
                    true => Command::Set { value: &value, expiry },
                    false => Command::Add { value: &value, expiry },
                };
                self.ask(command, arg % 2 == 0, None, false);
            }
            4 => self.ask(Command::Delete, program.arg() % 2 == 0, None, false),
            5 => self.query(),
            6 => {
                // A request that is sent on.
                let arg = program.arg();
                let command = if arg % 2 == 0 { Command::Get } else { Command::Delete };
                let deadline = (arg % 4 < 2).then_some(self.now + arg as u64 / 4);
                self.ask(command, true, deadline, self.is_redis);
            }
            7 => self.connect(),
            8 => self.write(usize::MAX),
            9 => self.write(program.arg()),
            10 => {
                self.conversation.submit(self.now);
                self.model.submit(self.now);
            }
            11 => self.answer(program.arg()),
            12 => {
                let len = program.arg() % 32;
                let raw = program.bytes(len);
                self.model.strayed |= !raw.is_empty();
                self.model.wire.extend(raw);
            }
            13 => {
                let arg = program.arg();
                return self.arrive(if arg == 0 { usize::MAX } else { arg });
            }
            14 => {
                let arg = program.arg();
                self.now += arg as u64 / 2;
                if arg % 2 == 0 {
                    return self.tick();
                }
            }
            _ => match program.arg() {
                0 => return Err(Outcome::Error),
                arg if arg % 2 == 0 => {
                    self.conversation.suspect();
                    self.model.suspect += 1;
                }
                _ => {
                    self.conversation.trust();
                    if self.model.suspect < 2 {
                        self.model.suspect = 0;
                    }
                }
            },
        }
        Ok(())
    }

    fn ask(&mut self, command: Command<'_>, awaited: bool, deadline: Option<u64>, asking: bool) {
        let number = self.next;
        self.next += 1;
        let waiter = awaited.then_some(number);
        let key = number.to_string();
        let key = key.as_bytes();
        let request = Request { key, command, asking };
        let result = self.conversation.request(self.now, &request, waiter, deadline);
        if !self.is_taken(result.map(|_| ())) {
            return;
        }
        self.model.begin(self.now);
        let (codec, out) = (&self.codec, &mut self.model.requests);
        if asking {
            resp::asking(out).unwrap();
            let end = out.len();
            self.model.asked.push_back(Asked::new(What::Asking, self.now, 0, None, end));
        }
        match command {
            Command::Get => codec.get(key, out),
            Command::Take => codec.take(key, out),
            Command::Claim(claim) => codec.claim(key, claim, out),
            Command::Set { value, expiry } => codec.set(key, value, expiry, out),
            Command::Add { value, expiry } => codec.add(key, value, expiry, out),
            Command::Delete => codec.delete(key, out),
        }
        .unwrap();
        let what = match (command, waiter) {
            (Command::Get, Some(waiter)) => What::Fetch(waiter),
            (Command::Take, Some(waiter)) => What::Take(waiter),
            (Command::Claim(_), Some(waiter)) => What::Claim(waiter),
            _ => What::Update(waiter),
        };
        self.waiting.extend(waiter);
        self.asked(what, deadline);
    }

    fn query(&mut self) {
        let encode = |out: &mut Vec<u8>| -> Result<(), OutOfMemory> {
            out.extend_from_slice(b"question\r\n");
            Ok(())
        };
        let result = self.conversation.query(self.now, encode);
        if self.is_taken(result.map(|_| ())) {
            self.model.begin(self.now);
            encode(&mut self.model.requests).unwrap();
            self.questions += 1;
            self.asked(What::Query, None);
        }
    }

    /// Whether a request was made, which it is if there is room for it.
    fn is_taken(&self, result: Result<(), Refused>) -> bool {
        let greets = |asked: &&Asked| asked.what == What::Greeting;
        let (asked, greeting) = (&self.model.asked, self.model.asked.iter().filter(greets).count());
        if !self.model.strayed {
            assert_eq!(result.is_err(), asked.len() - greeting >= self.limits.queue);
        }
        result.is_ok()
    }

    fn asked(&mut self, what: What, deadline: Option<u64>) {
        let timeout = match what {
            What::Update(_) => self.limits.store_timeout,
            _ => self.limits.fetch_timeout,
        };
        let end = self.model.requests.len();
        self.model.asked.push_back(Asked::new(what, self.now, timeout, deadline, end));
    }

    fn connect(&mut self) {
        let password = Rc::new(Zeroizing::new(b"secret".to_vec()));
        self.conversation.connected(self.now, &password).unwrap();
        if self.model.connected.is_none() {
            self.model.connected = Some(self.now);
            self.model.heard = self.now;
        }
    }

    /// The system takes so many bytes.
    fn write(&mut self, most: usize) {
        let open = self.conversation.is_open();
        let unsent = self.conversation.unsent(self.now);
        let taken = unsent.len().min(most);
        let model = &mut self.model;
        // Nothing else is written, and nothing is left out.
        if model.suspect >= 2 {
            assert!(unsent.is_empty());
        } else if open {
            assert_eq!(unsent, &model.requests[model.sent..]);
            model.sent += taken;
            model.write(self.now);
        } else if model.connected.is_some() {
            assert_eq!(unsent, &model.greeting[model.greeted..]);
            model.greeted += taken;
        } else {
            assert!(unsent.is_empty());
        }
        self.conversation.sent(taken);
    }

    /// The server says something of a kind: where it can it is an answer to what was asked first.
    fn answer(&mut self, kind: usize) {
        let model = &self.model;
        let next = model.asked.get(model.answered).map(|asked| (asked.what, asked.end));
        // A greeting may be answered before its end has been written.
        let next = next.filter(|(what, end)| match what {
            What::Greeting => model.greeted > 0,
            _ => *end <= model.sent,
        });
        let number = next.and_then(|(what, _)| what.waiter()).map_or(0, |n| n as usize);
        let value = format!("value of {number}");
        let (bytes, head, unit) = if self.is_redis {
            let bulk = |value: &str| format!("${}\r\n{value}\r\n", value.len());
            match kind % 10 {
                0 | 1 => (bulk(&value), None, Unit::Value),
                2 => ("$-1\r\n".to_owned(), None, Unit::Missing),
                3 => ("+OK\r\n".to_owned(), None, Unit::Done),
                4 => ("-ERR no\r\n".to_owned(), None, Unit::Refused),
                5 => ("-MOVED 7 a.b:80\r\n".to_owned(), None, Unit::Moved),
                6 => {
                    let long = "v".repeat(MAX_VALUE + 1 + kind);
                    let all = bulk(&long);
                    let head = all.len() - long.len() - 2;
                    (all, Some(head), Unit::TooLarge)
                }
                7 => ("*2\r\n:1\r\n*1\r\n+a\r\n".to_owned(), None, Unit::Array),
                8 => (format!(">1\r\n{}", bulk(&"p".repeat(PUSHED))), None, Unit::Push),
                _ => (">2\r\n+a\r\n:1\r\n".to_owned(), None, Unit::Push),
            }
        } else {
            let va = |value: &str, flags| format!("VA {}{flags}\r\n{value}\r\n", value.len());
            match kind % 8 {
                0 => (va(&value, ""), None, Unit::Value),
                1 => (va(&value, " c7"), None, Unit::Claim),
                2 => ("EN\r\n".to_owned(), None, Unit::Missing),
                3 => ("HD\r\n".to_owned(), None, Unit::Done),
                4 => ("SERVER_ERROR no\r\n".to_owned(), None, Unit::Refused),
                5 | 6 => {
                    let long = "v".repeat(MAX_VALUE + 1 + kind);
                    let all = va(&long, " c9");
                    let head = all.len() - long.len() - 2;
                    (all, Some(head), Unit::TooLarge)
                }
                _ => ("NF \r\n".to_owned(), None, Unit::Missing),
            }
        };
        // A greeting is accepted, but for one answer in a few.
        let greets = next.is_some_and(|(what, _)| what == What::Greeting);
        let (bytes, head, unit) = if greets && kind & 0x40 == 0 && !matches!(unit, Unit::Push) {
            (self.accepted(), None, Unit::Accepted)
        } else {
            (bytes.into_bytes(), head, unit)
        };
        let model = &mut self.model;
        let start = model.arrived + model.wire.len();
        let fits = match (unit, next.map(|(what, _)| what)) {
            (Unit::Push, _) | (Unit::Accepted, _) => true,
            (_, None | Some(What::Greeting)) => false,
            (Unit::Missing | Unit::Refused | Unit::Moved, _) => true,
            (Unit::Value | Unit::Claim | Unit::TooLarge, Some(what)) => {
                matches!(what, What::Fetch(_) | What::Take(_))
            }
            (Unit::Done, Some(what)) => {
                matches!(what, What::Claim(_) | What::Update(_) | What::Asking)
            }
            (Unit::Array, Some(what)) => what == What::Query,
            (Unit::Skipped, _) => false,
        };
        model.strayed |= !fits;
        if !matches!(unit, Unit::Push) {
            model.answered += 1;
        }
        model.wire.extend(&bytes);
        let end = start + bytes.len();
        model.units.push_back((head.map_or(end, |head| start + head), unit));
        if head.is_some() {
            model.units.push_back((end, Unit::Skipped));
        }
    }

    /// What the server says to the next step of the greeting.
    fn accepted(&self) -> Vec<u8> {
        let steps = self.model.asked.iter().filter(|asked| asked.what == What::Greeting).count();
        let all = self.codec.greeting_steps(self.probe);
        // Those before it are answered, or their answers are under way.
        let step = all - steps + self.model.answered;
        match (self.is_redis, self.codec.greeting_is_array(step)) {
            (false, _) if step == 0 => b"VERSION 1.6.18\r\n".to_vec(),
            (false, _) => b"MN\r\n".to_vec(),
            (true, true) => MASTER.to_vec(),
            (true, false) => b"+OK\r\n".to_vec(),
        }
    }

    /// So many bytes of what the server says have come.
    fn arrive(&mut self, most: usize) -> Result<(), Outcome> {
        let some = most.min(self.model.wire.len());
        self.model.arrived += some;
        let bytes: Vec<_> = self.model.wire.drain(..some).collect();
        self.conversation.input().extend_from_slice(&bytes);
        let before = self.conversation.unanswered();
        let result = self.conversation.received(self.now);
        let (expected, told) = self.model.hear(self.now, &self.limits, self.probe);
        if self.model.strayed {
            let answers = before - self.conversation.unanswered();
            for _ in 0..answers {
                self.model.asked.pop_front();
            }
        } else {
            assert_eq!(result, expected);
        }
        if let Err(failure) = result {
            // What has ended before it is told all the same.
            self.told_at_last(told);
            return Err(failure.outcome());
        }
        self.tell(&told, true);
        if !self.model.strayed {
            let left = self.model.arrived - self.model.taken;
            assert_eq!(self.conversation.input().len(), left);
        }
        Ok(())
    }

    /// With what the model expects to have ended, the rest is told in [`Run::fail`].
    fn told_at_last(&mut self, told: Vec<String>) {
        if !self.model.strayed {
            let ends = self.conversation.take_ends();
            let shown = ends.as_ref().map_or_else(Vec::new, |ends| self.show_all(ends));
            assert_eq!(shown, told);
        }
    }

    fn tick(&mut self) -> Result<(), Outcome> {
        let result = self.conversation.tick(self.now);
        let (failed, told) = self.model.tick(self.now, &self.limits);
        if !self.model.strayed {
            assert_eq!(result.is_err(), failed, "{result:?}");
            assert_eq!(self.conversation.is_silent(), self.model.silent);
        }
        if let Err(failure) = result {
            let expected = matches!(failure, Failure::Silent(ms) | Failure::Slow(ms) if ms > 0);
            assert!(expected, "{failure:?}");
            self.tell(&told, false);
            return Err(failure.outcome());
        }
        self.tell(&told, false);
        assert!(self.conversation.next_deadline().is_none_or(|next| next > self.now));
        Ok(())
    }

    /// Tells what has ended, and claims what wants to be claimed.
    fn tell(&mut self, expected: &[String], in_order: bool) {
        let Some(ends) = self.conversation.take_ends() else {
            assert!(self.model.strayed || expected.is_empty(), "{expected:?}");
            return;
        };
        assert!(!self.conversation.has_ends() && self.conversation.input().is_empty());
        let mut shown = self.show_all(&ends);
        let mut expected = expected.to_vec();
        if !in_order {
            shown.sort();
            expected.sort();
        }
        if !self.model.strayed {
            assert_eq!(shown, expected);
        }
        for end in ends.iter() {
            if let Some(Reply::Claim(_, claim)) = end.reply {
                self.ask(Command::Claim(claim), true, Some(end.deadline), false);
            }
        }
        self.conversation.put_back(ends);
        assert!(self.conversation.input().capacity() <= KEPT.max(2 * (MAX_ASIDE + PUSHED)));
    }

    /// Who is told of what, each for the first time.
    fn show_all(&mut self, ends: &Ends<u32>) -> Vec<String> {
        let mut shown = Vec::new();
        for end in ends.iter() {
            match (end.kind.waiter(), &end.reply) {
                (_, None) => assert!(end.refusal.is_some(), "else there is nothing to say"),
                (Some(waiter), Some(_)) => {
                    assert!(self.waiting.remove(&waiter), "{waiter} is told twice");
                }
                (None, Some(_)) => {
                    assert_eq!(end.kind, Kind::Query);
                    assert!(self.questions > 0, "a question is answered twice");
                    self.questions -= 1;
                }
            }
            shown.push(show(&end));
        }
        shown
    }

    /// What holds after each step.
    fn check(&mut self) {
        let Run { conversation, model, limits, .. } = self;
        assert!(conversation.unanswered() <= limits.queue + 2 + 5);
        assert_eq!(conversation.is_doubtful(), model.suspect > 0);
        assert_eq!(conversation.is_suspect(), model.suspect >= 2);
        assert_eq!(conversation.unanswered(), model.asked.len());
        assert_eq!(conversation.waiting(), model.requests.len() - model.sent);
        if model.strayed {
            return;
        }
        assert_eq!(conversation.is_open(), model.is_open());
        assert_eq!(conversation.is_proven(), model.proven);
        assert_eq!(conversation.has_refused(), model.has_refused);
        assert_eq!(conversation.take_good(), mem::take(&mut model.good));
        assert_eq!(conversation.take_accepted(), mem::take(&mut model.accepted));
        assert_eq!(conversation.is_stale(), model.stale);
        let awaited = model.asked.iter().filter(|one| one.deadline.is_some() && !one.expired);
        assert_eq!(conversation.awaited(), awaited.count());
        assert_eq!(conversation.take_counts(), mem::take(&mut model.counts));
        assert_eq!(conversation.next_deadline(), model.next_deadline(limits));
        let front = conversation.front().map(|kind| (kind.waiter(), kind.is_awaited()));
        let first = model.asked.front().map(|asked| (asked.what.waiter(), asked.what.is_awaited()));
        assert_eq!(front, first);
    }

    /// The connection ends: nobody waits any more.
    fn fail(mut self, outcome: Outcome) {
        let rest =
            self.model.asked.iter().filter(|asked| asked.what.is_awaited() && !asked.expired);
        let again = self.conversation.is_stale();
        let expected = rest.map(|asked| match asked.what {
            What::Fetch(waiter) if again => format!("{waiter}: again, or {outcome}"),
            what => format!("{}: {outcome}", what.name()),
        });
        let expected: Vec<_> = expected.collect();
        let lost = self.model.asked.iter().filter(|asked| match asked.what {
            What::Update(_) => true,
            What::Fetch(_) if again => false,
            what => what.is_awaited() && !asked.expired,
        });
        let expected_loss = lost.count();
        let limits = self.limits.clone();
        let codec = Rc::clone(&self.codec);
        let empty = Conversation::new(codec, limits, false).unwrap();
        let (lost, ends) = mem::replace(&mut self.conversation, empty).fail(outcome, again);
        let shown = self.show_all(&ends);
        if !self.model.strayed {
            assert_eq!(shown, expected);
            assert_eq!(lost, expected_loss);
        }
        assert!(self.waiting.is_empty(), "{:?} are not told", self.waiting);
        assert_eq!(self.questions, 0);
    }
}

impl Asked {
    fn new(what: What, now: u64, timeout: u64, deadline: Option<u64>, end: usize) -> Self {
        let has_deadline = !matches!(what, What::Greeting | What::Asking);
        Asked {
            what,
            timeout,
            deadline: deadline.or(has_deadline.then_some(now + timeout)),
            fixed: deadline.is_some() || !has_deadline,
            submitted: false,
            written: None,
            expired: false,
            end,
        }
    }
}

impl Model {
    fn new(greeting: Vec<u8>) -> Self {
        Model {
            strayed: false,
            connected: None,
            heard: 0,
            stale: false,
            silent: false,
            late_since: None,
            greeting,
            greeted: 0,
            requests: Vec::new(),
            sent: 0,
            asked: VecDeque::new(),
            answered: 0,
            arrived: 0,
            wire: VecDeque::new(),
            units: VecDeque::new(),
            taken: 0,
            aside: 0,
            counts: Counts::default(),
            proven: false,
            good: false,
            accepted: false,
            has_refused: false,
            suspect: 0,
        }
    }

    fn is_open(&self) -> bool {
        let greets = self.asked.front().is_some_and(|first| first.what == What::Greeting);
        self.connected.is_some() && !greets && self.greeted == self.greeting.len()
    }

    /// A request begins.
    fn begin(&mut self, now: u64) {
        self.stale |= self.is_open() && self.asked.is_empty() && now - self.heard >= IDLE;
    }

    fn submit(&mut self, now: u64) {
        for asked in &mut self.asked {
            let submitted = mem::replace(&mut asked.submitted, true);
            if !submitted && !asked.fixed && !asked.expired {
                asked.deadline = Some(now + asked.timeout);
            }
        }
    }

    fn write(&mut self, now: u64) {
        self.submit(now);
        for asked in self.asked.iter_mut().filter(|asked| asked.written.is_none()) {
            asked.written = Some(now);
        }
    }

    /// What has come is read: how that ends, and who is told what.
    fn hear(
        &mut self,
        now: u64,
        limits: &Limits,
        probe: bool,
    ) -> (Result<(), Failure>, Vec<String>) {
        let mut told = Vec::new();
        if self.strayed {
            return (Ok(()), told);
        }
        while let Some(&(end, unit)) = self.units.front() {
            if end > self.arrived {
                if let Unit::Skipped = unit {
                    self.taken = self.arrived;
                }
                break;
            }
            match unit {
                Unit::Push => {
                    self.aside += end - self.taken;
                    if self.aside > MAX_ASIDE {
                        return (Err(Failure::Unasked), told);
                    }
                }
                Unit::Skipped => self.heard(now),
                _ => told.extend(self.answer(now, unit, limits, probe)),
            }
            self.taken = end;
            self.units.pop_front();
        }
        (Ok(()), told)
    }

    fn heard(&mut self, now: u64) {
        self.heard = now;
        self.stale = false;
        self.silent = false;
    }

    fn answer(&mut self, now: u64, unit: Unit, limits: &Limits, probe: bool) -> Option<String> {
        let asked = self.asked.pop_front().unwrap();
        self.answered -= 1;
        self.aside = 0;
        if !matches!(unit, Unit::TooLarge) {
            self.heard(now);
        }
        let what = asked.what;
        if what.is_lookup() && !asked.expired {
            self.late_since = None;
        }
        let follows = limits.redirects && what.waiter().is_some();
        let refusal = match unit {
            Unit::Refused => Some("no"),
            Unit::Moved if !follows => Some("MOVED 7 a.b:80"),
            _ => None,
        };
        if refusal.is_some() {
            self.has_refused = true;
            self.counts.refused += 1;
        }
        let greets = self.asked.front().is_some_and(|next| next.what == What::Greeting);
        if what == What::Greeting {
            self.accepted |= probe && !greets;
        } else if refusal.is_none() {
            self.proven = true;
            self.good |= !asked.expired;
        }
        let number = what.waiter().unwrap_or(0);
        let reply = match unit {
            Unit::Value => format!("value of {number}"),
            Unit::Claim => format!("value of {number} by claim 7"),
            Unit::TooLarge => "CORRUPT".to_owned(),
            Unit::Missing => "missing".to_owned(),
            Unit::Refused => "refused".to_owned(),
            Unit::Moved if follows => "moved".to_owned(),
            Unit::Moved => "ERROR".to_owned(),
            Unit::Array => "array".to_owned(),
            Unit::Accepted | Unit::Done | Unit::Skipped | Unit::Push => "done".to_owned(),
        };
        let told = what.is_awaited() && !asked.expired;
        let reply = if told { reply } else { "-".to_owned() };
        (told || refusal.is_some())
            .then(|| format!("{}: {reply}{}", what.name(), refusal.unwrap_or_default()))
    }

    /// Time has passed: whether the connection is given up, and who is told what.
    fn tick(&mut self, now: u64, limits: &Limits) -> (bool, Vec<String>) {
        let mut told = Vec::new();
        let mut slow = false;
        for asked in &mut self.asked {
            if !asked.expired && asked.deadline.is_some_and(|deadline| deadline <= now) {
                asked.expired = true;
                self.counts.late += 1;
                let until = asked.written.map(|written| written + asked.timeout);
                slow |= asked.what.is_lookup() && until.is_some_and(|until| until <= now);
                if asked.what.is_awaited() {
                    told.push(format!("{}: TIMEOUT", asked.what.name()));
                }
            }
        }
        let greeting = self.greeting_until(limits).is_some_and(|until| until <= now);
        let silence = self.silence(limits);
        self.silent |= !greeting && silence.is_some_and(|(from, _)| from <= now);
        let ended = silence.is_some_and(|(_, until)| until <= now);
        let late = slow && now - *self.late_since.get_or_insert(now) >= 20 * limits.fetch_timeout;
        (greeting || ended || late, told)
    }

    fn greeting_until(&self, limits: &Limits) -> Option<u64> {
        let greeting = self.connected.filter(|_| !self.is_open());
        greeting.map(|since| since + limits.greet_timeout)
    }

    /// From when on the connection is silent, and when it will have been for too long.
    fn silence(&self, limits: &Limits) -> Option<(u64, u64)> {
        let front = self.asked.front().filter(|_| self.is_open())?;
        let since = front.written?.max(self.heard);
        let timeout = if front.what == What::Asking { limits.fetch_timeout } else { front.timeout };
        let patience = if self.stale { (limits.fetch_timeout / 2).min(timeout) } else { timeout };
        Some((since + patience, since + 4 * timeout))
    }

    fn next_deadline(&self, limits: &Limits) -> Option<u64> {
        let deadlines = self.asked.iter().filter(|asked| !asked.expired);
        let deadlines = deadlines.filter_map(|asked| asked.deadline);
        let silence =
            self.silence(limits).map(|(from, until)| if self.silent { until } else { from });
        deadlines.chain(silence).chain(self.greeting_until(limits)).min()
    }
}

/// `WAITER: REPLY`, and what the server has said if it has refused.
fn show(end: &Ended<'_, u32>) -> String {
    let who = match (end.kind, end.kind.waiter()) {
        (_, Some(waiter)) => waiter.to_string(),
        (Kind::Query, None) => "query".to_owned(),
        (_, None) => "nobody".to_owned(),
    };
    let text = String::from_utf8_lossy;
    let what = match end.reply {
        Some(Reply::Value(value)) => text(value).into_owned(),
        Some(Reply::Claim(value, claim)) => format!("{} by claim {claim}", text(value)),
        Some(Reply::Missing) => "missing".to_owned(),
        Some(Reply::Done) => "done".to_owned(),
        Some(Reply::Redirect(_)) => "moved".to_owned(),
        Some(Reply::Array(_)) => "array".to_owned(),
        Some(Reply::Refused(_)) => "refused".to_owned(),
        Some(Reply::Failed(outcome)) => outcome.to_string(),
        Some(Reply::Again(outcome)) => format!("again, or {outcome}"),
        None => "-".to_owned(),
    };
    let refusal = end.refusal.map_or_else(String::new, |refusal| {
        let refusal = refusal.to_string();
        refusal.strip_suffix("no").map_or(refusal.clone(), |_| "no".to_owned())
    });
    format!("{who}: {what}{refusal}")
}
