//! The conversation with a server, by a clock and bytes that the test has in hand: what
//! docs/design.md says in "Asking the servers", and what the module itself promises.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::arithmetic_side_effects)]

use std::rc::Rc;

use session_core::buffer::{KEPT, Secret};
use session_core::codec::{Codec, DecodeError, Expiry};
use session_core::conversation::{
    Command, Conversation, Counts, Ended, Ends, Failure, IDLE, Limits, Refused, Reply, Request,
};
use session_core::hint::Hint;
use session_core::inflight::Kind;
use session_core::memcached::Memcached;
use session_core::outcome::Outcome;
use session_core::resp::{self, Redis};
use zeroize::Zeroizing;

const FETCH: u64 = 50;
const STORE: u64 = 200;
const GREET: u64 = 100;
/// So many timeouts of silence end a connection.
const SILENCE: u64 = 4;
const QUEUE: usize = 100;
const MAX_VALUE: usize = 20;

const LIMITS: Limits = Limits {
    fetch_timeout: FETCH,
    store_timeout: STORE,
    greet_timeout: GREET,
    mute: SILENCE,
    silence: SILENCE,
    queue: QUEUE,
    max_value: MAX_VALUE,
    redirects: true,
};

/// A conversation and its clock. Whoever waits has a number, and asks for the entry of that name.
struct Script {
    conversation: Conversation<u32>,
    now: u64,
}

impl Script {
    fn new(codec: impl Codec + 'static, limits: Limits, probe: bool) -> Self {
        Script { conversation: Conversation::new(Rc::new(codec), limits, probe).unwrap(), now: 0 }
    }

    /// Redis, which is connected and wants no greeting.
    fn redis() -> Self {
        Self::connected(Redis::default(), LIMITS)
    }

    /// memcached, which has accepted the greeting.
    fn memcached() -> Self {
        let mut script = Self::connected(Memcached, LIMITS);
        assert_eq!(script.write(), "version\r\nmn\r\n");
        assert_eq!(script.read("VERSION 1.6.18\r\nMN\r\n"), NONE);
        script
    }

    fn connected(codec: impl Codec + 'static, limits: Limits) -> Self {
        let mut script = Self::new(codec, limits, false);
        script.connect();
        script
    }

    /// Redis that wants a password and a name, and has to be a master.
    fn greeting() -> Self {
        let mut script = Self::new(secured(), LIMITS, false);
        script.connect();
        script
    }

    fn at(&mut self, now: u64) -> &mut Self {
        assert!(now >= self.now, "the clock does not go back");
        self.now = now;
        self
    }

    fn connect(&mut self) {
        self.connect_with("secret");
    }

    fn connect_with(&mut self, password: &str) {
        self.conversation.connected(self.now, &secret(password)).unwrap();
    }

    fn try_ask(
        &mut self,
        waiter: Option<u32>,
        command: Command<'_>,
        deadline: Option<u64>,
    ) -> Result<(), Refused> {
        let key = waiter.map_or("k".to_owned(), |waiter| waiter.to_string());
        let request = Request { key: key.as_bytes(), command, asking: false };
        self.conversation.request(self.now, &request, waiter, deadline).map(|_| ())
    }

    fn ask(&mut self, waiter: u32, command: Command<'_>) {
        self.try_ask(Some(waiter), command, None).unwrap();
    }

    fn get(&mut self, waiter: u32) {
        self.ask(waiter, Command::Get);
    }

    /// A lookup that has to end at `deadline`, as it was sent on.
    fn get_by(&mut self, waiter: u32, deadline: u64) {
        self.try_ask(Some(waiter), Command::Get, Some(deadline)).unwrap();
    }

    /// A change that nobody waits for.
    fn delete(&mut self) {
        self.try_ask(None, Command::Delete, None).unwrap();
    }

    fn query(&mut self) {
        self.conversation.query(self.now, resp::cluster_slots).unwrap();
    }

    /// The turn ends.
    fn submit(&mut self) {
        self.conversation.submit(self.now);
    }

    /// Writes all there is.
    fn write(&mut self) -> String {
        self.write_some(usize::MAX)
    }

    /// Writes what the system takes.
    fn write_some(&mut self, most: usize) -> String {
        let unsent = self.conversation.unsent(self.now);
        let piece = unsent[..unsent.len().min(most)].to_vec();
        self.conversation.sent(piece.len());
        String::from_utf8(piece).unwrap()
    }

    /// Reads what the server says: who is told what.
    fn read(&mut self, bytes: impl AsRef<[u8]>) -> Vec<String> {
        let result = self.receive(bytes);
        assert_eq!(result, Ok(()));
        self.told()
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
        self.conversation.input().extend_from_slice(bytes.as_ref());
        self.conversation.received(self.now)
    }

    fn told(&mut self) -> Vec<String> {
        let Some(ends) = self.conversation.take_ends() else { return vec![] };
        let told = show_all(&ends);
        self.conversation.put_back(ends);
        told
    }

    /// Time has passed: who is told what.
    fn tick(&mut self) -> Vec<String> {
        assert_eq!(self.conversation.tick(self.now), Ok(()));
        self.told()
    }

    fn try_tick(&mut self) -> Result<(), Failure> {
        self.conversation.tick(self.now)
    }

    fn next(&mut self) -> Option<u64> {
        self.conversation.next_deadline()
    }

    fn counts(&mut self) -> (u64, u64) {
        let Counts { late, refused } = self.conversation.take_counts();
        (late, refused)
    }

    /// The connection is lost: how many requests are, and who is told what.
    fn fail(self, outcome: Outcome) -> (usize, Vec<String>) {
        let (lost, ends) = self.conversation.fail(outcome, false);
        (lost, show_all(&ends))
    }

    /// The connection is to blame: who may ask again?
    fn dies(self) -> Vec<String> {
        show_all(&self.conversation.fail(Outcome::Error, true).1)
    }

    fn is_silent(&self) -> bool {
        self.conversation.is_silent()
    }
}

/// Nobody is told anything.
const NONE: [&str; 0] = [];

fn show_all(ends: &Ends<u32>) -> Vec<String> {
    ends.iter().map(show).collect()
}

/// `WAITER: REPLY`, with what there is for the log behind it.
fn show(end: Ended<'_, u32>) -> String {
    let who = match (end.kind, end.kind.waiter()) {
        (_, Some(waiter)) => waiter.to_string(),
        (Kind::Query, None) => "query".to_owned(),
        (_, None) => "nobody".to_owned(),
    };
    let text = |bytes| std::str::from_utf8(bytes).unwrap().to_owned();
    let what = match end.reply {
        Some(Reply::Value(value)) => text(value),
        Some(Reply::Claim(value, claim)) => format!("{} by claim {claim}", text(value)),
        Some(Reply::Missing) => "missing".to_owned(),
        Some(Reply::Done) => "done".to_owned(),
        Some(Reply::Redirect(node)) => format!("{node:?}"),
        Some(Reply::Array(array)) => format!("array of {} bytes", array.len()),
        Some(Reply::Refused(_)) => "refused".to_owned(),
        Some(Reply::Failed(outcome)) => outcome.to_string(),
        Some(Reply::Again(outcome)) => format!("again, or {outcome}"),
        None => "-".to_owned(),
    };
    let log = end.refusal.map_or_else(String::new, |refusal| format!(" [{refusal}]"));
    format!("{who}: {what}{log}")
}

fn secret(password: &str) -> Secret {
    Rc::new(Zeroizing::new(password.into()))
}

fn secured() -> Redis {
    Redis {
        authenticates: true,
        client_name: Some(b"web1".to_vec()),
        master: true,
        ..Redis::default()
    }
}

const AUTH: &str = "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n";
const SETNAME: &str = "*3\r\n$6\r\nCLIENT\r\n$7\r\nSETNAME\r\n$4\r\nweb1\r\n";
const ROLE: &str = "*1\r\n$4\r\nROLE\r\n";
const MASTER: &str = "*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n";
const REPLICA: &str = "*2\r\n$5\r\nslave\r\n:0\r\n";

fn get(key: &str) -> String {
    format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len())
}

fn value(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

// The greeting.

#[test]
fn nothing_is_written_before_there_is_a_connection() {
    let mut script = Script::new(Redis::default(), LIMITS, false);
    script.get(1);
    assert_eq!(script.write(), "");
    assert!(!script.conversation.is_open());
    script.connect();
    assert!(script.conversation.is_open());
    assert_eq!(script.write(), get("1"));
}

#[test]
fn nothing_but_the_greeting_is_written_before_the_server_has_accepted_all_of_it() {
    let mut script = Script::greeting();
    script.get(1);
    assert_eq!(script.write(), [AUTH, SETNAME, ROLE].concat());
    for accepted in ["+OK\r\n", "+OK\r\n"] {
        script.get(2);
        assert_eq!(script.read(accepted), NONE);
        assert_eq!(script.write(), "");
        assert!(!script.conversation.is_open());
    }
    assert_eq!(script.read(MASTER), NONE);
    assert!(script.conversation.is_open());
    assert_eq!(script.write(), [get("1"), get("2"), get("2")].concat());
}

#[test]
fn an_answer_to_half_a_greeting_does_not_let_requests_out() {
    let mut script = Script::greeting();
    script.get(1);
    let mut written = script.write_some(10);
    assert_eq!(script.conversation.waiting(), get("1").len(), "of requests");
    assert_eq!(script.read(["+OK\r\n+OK\r\n", MASTER].concat()), NONE);
    written += &script.write();
    assert_eq!(written, [AUTH, SETNAME, ROLE].concat());
    assert_eq!(script.write(), get("1"));
}

#[test]
fn a_password_that_is_wrong_ends_the_connection_in_the_servers_words() {
    let mut script = Script::greeting();
    script.write();
    let failure = script.receive("-WRONGPASS invalid password\r\n").unwrap_err();
    assert_eq!(failure, Failure::Password("WRONGPASS invalid password".into()));
    assert_eq!(failure.to_string(), "server refused: \"WRONGPASS invalid password\"");
    assert_eq!(failure.outcome(), Outcome::Error);
}

#[test]
fn a_connection_is_greeted_with_the_password_that_there_is_when_it_is_made() {
    let mut script = Script::new(secured(), LIMITS, false);
    script.get(1);
    script.connect_with("newest");
    assert_eq!(script.write(), [&AUTH.replace("secret", "newest"), SETNAME, ROLE].concat());
    // Once.
    script.connect_with("another");
    assert_eq!(script.write(), "");
    assert_eq!(
        script.receive("-ERR what is newest?\r\n"),
        Err(Failure::Greeting("(the password)".into()))
    );
}

#[test]
fn a_password_that_was_accepted_is_let_go() {
    let password = secret("secret");
    let mut script = Script::new(secured(), LIMITS, false);
    script.conversation.connected(0, &password).unwrap();
    script.write();
    assert_eq!(Rc::strong_count(&password), 2);
    script.read(["+OK\r\n+OK\r\n", MASTER].concat());
    assert_eq!(Rc::strong_count(&password), 1);
}

#[test]
fn what_waits_for_a_greeting_waits_for_another_one_where_there_is_another_password() {
    for probe in [false, true] {
        let mut script = Script::new(secured(), LIMITS, probe);
        script.get(1);
        script.at(5).connect();
        script.write();
        script.receive("-WRONGPASS no\r\n-NOAUTH no\r\n-NOAU").unwrap_err();
        assert!(!script.conversation.restart(b"secret"), "the same one");
        assert!(script.conversation.restart(b"newest"));
        assert_eq!(script.write(), "", "there is no connection");
        assert!(!script.conversation.restart(b"another"), "nor was anything refused");

        script.at(7).connect_with("newest");
        let ping = if probe { "*1\r\n$4\r\nPING\r\n" } else { "" };
        let greeting = [&AUTH.replace("secret", "newest"), SETNAME, ROLE, ping].concat();
        assert_eq!(script.write(), greeting);
        assert_eq!(script.next(), Some(FETCH));
        script.get(2);
        let pong = if probe { "+PONG\r\n" } else { "" };
        assert_eq!(script.read(["+OK\r\n+OK\r\n", MASTER, pong].concat()), NONE);
        assert_eq!(script.write(), [get("1"), get("2")].concat());
        assert_eq!(script.read([value("a"), value("b")].concat()), ["1: a", "2: b"]);
        assert_eq!(script.conversation.take_accepted(), probe);
    }
}

#[test]
fn a_password_is_tried_once_and_nothing_is_begun_anew_that_was_accepted() {
    let mut script = Script::greeting();
    script.get(1);
    script.write();
    script.receive("-WRONGPASS no\r\n").unwrap_err();
    assert!(script.conversation.restart(b"newest"));
    script.connect_with("newest");
    script.write();
    assert_eq!(script.receive("-WRONGPASS no\r\n"), Err(Failure::Password("WRONGPASS no".into())));
    assert!(!script.conversation.restart(b"newest"));
    assert_eq!(script.fail(Outcome::Error).1, ["1: ERROR"]);

    let mut script = Script::greeting();
    script.write();
    script.read("+OK\r\n");
    assert!(!script.conversation.restart(b"newest"), "AUTH was accepted");
}

#[test]
fn a_request_is_late_whatever_password_its_connection_waits_for() {
    let mut script = Script::greeting();
    script.get(1);
    script.conversation.submit(0);
    script.write();
    script.at(FETCH - 1).receive("-WRONGPASS no\r\n").unwrap_err();
    assert!(script.conversation.restart(b"newest"));
    assert_eq!(script.next(), Some(FETCH));
    assert_eq!(script.at(FETCH).tick(), ["1: TIMEOUT"]);
}

#[test]
fn a_server_that_repeats_the_password_is_not_quoted() {
    let mut script = Script::greeting();
    script.write();
    let failure = script.receive("-ERR what is secret?\r\n").unwrap_err();
    assert_eq!(failure, Failure::Greeting("(the password)".into()));
}

#[test]
fn a_server_that_is_not_the_master_is_none_to_talk_to() {
    let mut script = Script::greeting();
    script.write();
    let failure = script.receive(["+OK\r\n+OK\r\n", REPLICA].concat()).unwrap_err();
    assert_eq!(failure, Failure::NotMaster);
    assert_eq!(failure.to_string(), "server is not the master");
}

#[test]
fn an_answer_of_another_kind_than_the_greeting_leads_to_ends_the_connection() {
    for (accepted, answer, failure) in [
        ("", "$2\r\nab\r\n", Failure::OutOfStep),
        ("", "$-1\r\n", Failure::OutOfStep),
        ("", "$21\r\n", Failure::OutOfStep),
        ("", "-MOVED 1 a:1\r\n", Failure::OutOfStep),
        ("", MASTER, Failure::Decode(DecodeError::UnexpectedType(b'*'))),
        ("", "HTTP/1.1", Failure::Decode(DecodeError::UnexpectedType(b'H'))),
        ("+OK\r\n+OK\r\n", "+OK\r\n", Failure::OutOfStep),
        ("+OK\r\n+OK\r\n", "*0\r\n", Failure::OutOfStep),
    ] {
        let mut script = Script::greeting();
        script.get(1);
        script.write();
        assert_eq!(script.read(accepted), NONE);
        assert_eq!(script.receive(answer), Err(failure), "{answer}");
        assert_eq!(script.fail(Outcome::Error), (1, vec!["1: ERROR".into()]));
    }
}

#[test]
fn a_name_that_the_server_does_not_like_is_only_a_name() {
    let mut script = Script::greeting();
    script.write();
    assert_eq!(script.read(["+OK\r\n-ERR no\r\n", MASTER].concat()), NONE);
    assert!(script.conversation.is_open());
    assert!(!script.conversation.has_refused());
    assert_eq!(script.counts(), (0, 0));
}

#[test]
fn a_memcached_that_is_too_old_is_refused_by_its_version() {
    let mut script = Script::connected(Memcached, LIMITS);
    script.write();
    let failure = script.receive("VERSION 1.5.22\r\n").unwrap_err();
    assert_eq!(failure, Failure::Greeting("VERSION 1.5.22".into()));
}

#[test]
fn a_proxy_without_meta_commands_gets_no_session() {
    let mut script = Script::connected(Memcached, LIMITS);
    script.get(1);
    script.write();
    let failure = script.receive("VERSION 1.6.21\r\nERROR\r\n").unwrap_err();
    assert_eq!(failure, Failure::Greeting("ERROR".into()));
    assert_eq!(script.write(), "", "nothing of it would be taken for what it is");
}

#[test]
fn a_server_that_does_not_accept_the_greeting_in_its_time_is_silent() {
    let mut script = Script::new(secured(), LIMITS, false);
    assert_eq!(script.next(), None);
    script.at(10).connect();
    script.at(12).write();
    assert_eq!(script.next(), Some(10 + GREET));
    assert_eq!(script.at(50).read("+OK\r\n+OK\r\n"), NONE);
    assert_eq!(script.at(109).tick(), NONE);
    assert_eq!(script.at(110).try_tick(), Err(Failure::Silent(GREET)));
}

#[test]
fn a_greeting_that_is_accepted_has_no_deadline() {
    let mut script = Script::greeting();
    script.write();
    assert_eq!(script.read(["+OK\r\n+OK\r\n", MASTER].concat()), NONE);
    assert_eq!(script.next(), None);
    assert_eq!(script.at(GREET).tick(), NONE);
}

#[test]
fn a_greeting_alone_shows_nothing_but_a_probe_does() {
    let mut script = Script::greeting();
    script.write();
    script.read(["+OK\r\n+OK\r\n", MASTER].concat());
    assert!(!script.conversation.take_accepted() && !script.conversation.take_good());

    let mut script = Script::new(Redis::default(), LIMITS, true);
    script.connect();
    assert_eq!(script.write(), "*1\r\n$4\r\nPING\r\n");
    assert!(!script.conversation.take_accepted());
    script.read("+PONG\r\n");
    assert!(script.conversation.take_accepted() && script.conversation.is_open());
    assert!(!script.conversation.take_accepted(), "it is told once");
}

#[test]
fn a_probe_that_is_accepted_answers_no_request() {
    let mut script = Script::new(Redis::default(), LIMITS, true);
    script.connect();
    script.write();
    script.read("+PONG\r\n");
    assert!(!script.conversation.is_proven() && !script.conversation.take_good());
    script.get(1);
    script.write();
    script.read("$-1\r\n");
    assert!(script.conversation.is_proven() && script.conversation.take_good());
    assert!(!script.conversation.take_good(), "it is told once");
}

#[test]
fn a_probe_that_is_half_accepted_shows_nothing() {
    let mut script = Script::new(secured(), LIMITS, true);
    script.connect();
    assert_eq!(script.write(), [AUTH, SETNAME, ROLE, "*1\r\n$4\r\nPING\r\n"].concat());
    script.read(["+OK\r\n+OK\r\n", MASTER].concat());
    assert!(!script.conversation.take_accepted());
    assert_eq!(script.receive("-LOADING soon\r\n"), Err(Failure::Greeting("LOADING soon".into())));
    assert!(!script.conversation.take_accepted());
}

// Requests and answers.

#[test]
fn requests_of_one_turn_leave_in_one_piece_and_in_their_order() {
    let mut script = Script::redis();
    script.get(1);
    script.ask(2, Command::Take);
    script.ask(3, Command::Set { value: b"v", expiry: Expiry { ttl: 9, at: 0 } });
    script.delete();
    script.query();
    let expected = [
        &get("1"),
        "*2\r\n$6\r\nGETDEL\r\n$1\r\n2\r\n",
        "*5\r\n$3\r\nSET\r\n$1\r\n3\r\n$1\r\nv\r\n$2\r\nEX\r\n$1\r\n9\r\n",
        "*2\r\n$3\r\nDEL\r\n$1\r\nk\r\n",
        "*2\r\n$7\r\nCLUSTER\r\n$5\r\nSLOTS\r\n",
    ];
    assert_eq!(script.conversation.waiting(), expected.concat().len());
    assert_eq!(script.write(), expected.concat());
    assert_eq!(script.write(), "");
    assert_eq!(script.conversation.waiting(), 0);
}

#[test]
fn what_the_system_does_not_take_at_once_is_written_later() {
    let mut script = Script::redis();
    script.get(1);
    let mut written = script.write_some(5);
    script.get(2);
    for _ in 0..10 {
        written += &script.write_some(7);
    }
    assert_eq!(written, [get("1"), get("2")].concat());
}

#[test]
fn a_server_that_is_always_a_little_behind_gets_all_of_it() {
    let mut script = Script::connected(Redis::default(), Limits { queue: 100_000, ..LIMITS });
    let (mut wanted, mut written) = (String::new(), String::new());
    for n in 0..10_000 {
        script.get(n);
        wanted += &get(&n.to_string());
        written += &script.write_some(24);
        assert_eq!(script.conversation.waiting(), wanted.len() - written.len());
    }
    written += &script.write();
    assert_eq!(written, wanted);
}

#[test]
fn answers_belong_to_the_requests_in_order() {
    let mut script = Script::redis();
    (1..=4).for_each(|waiter| script.get(waiter));
    script.write();
    assert_eq!(script.conversation.front(), Some(Kind::Fetch(1)));
    assert_eq!(script.read(value("one")), ["1: one"]);
    let more = [&value("two"), "$-1\r\n", "-ERR no\r\n"].concat();
    assert_eq!(script.read(more), ["2: two", "3: missing", "4: refused [ERR no]"]);
    assert_eq!(script.conversation.unanswered(), 0);
    assert_eq!(script.conversation.front(), None);
    assert_eq!(script.next(), None);
}

#[test]
fn answers_are_the_same_in_whatever_pieces_they_come() {
    let wire = [
        &value("one"),
        "$-1\r\n",
        ">2\r\n+a\r\n$3\r\nabc\r\n",
        "$25\r\nlonger than twenty bytes.\r\n",
        "-MOVED 7 10.0.0.1:6379\r\n",
        ":1\r\n",
        "*2\r\n:1\r\n*1\r\n+x\r\n",
        "-ERR no\r\n",
        &value(""),
    ]
    .concat();
    let expected = [
        "1: one",
        "2: missing",
        "3: CORRUPT",
        "4: Node { ask: false, slot: 7, host: \"10.0.0.1\", port: 6379 }",
        "5: done",
        "query: array of 16 bytes",
        "nobody: - [ERR no]",
        "6: ",
    ];
    for piece in 1..=wire.len() {
        let mut script = Script::redis();
        (1..=4).for_each(|waiter| script.get(waiter));
        script.ask(5, Command::Delete);
        script.query();
        script.delete();
        script.get(6);
        script.write();
        let pieces = wire.as_bytes().chunks(piece);
        let told: Vec<_> = pieces.flat_map(|piece| script.read(piece)).collect();
        assert_eq!(told, expected, "by {piece}");
        assert_eq!(script.conversation.unanswered(), 0);
    }
}

#[test]
fn a_change_that_nobody_waits_for_ends_in_silence() {
    let mut script = Script::redis();
    script.delete();
    script.write();
    assert_eq!(script.read(":1\r\n"), NONE);
    assert!(script.conversation.is_proven());
}

#[test]
fn a_reply_that_no_request_leads_to_ends_the_connection() {
    let mut script = Script::redis();
    assert_eq!(script.receive("+OK\r\n"), Err(Failure::OutOfStep));

    let claim = Command::Claim(7);
    for (command, reply) in [
        (Command::Get, "HD\r\n"),
        (Command::Take, "HD\r\n"),
        (Command::Delete, "VA 1\r\na\r\n"),
        (claim, "VA 1 c7\r\na\r\n"),
        (claim, "VA 21 c7\r\n"),
    ] {
        let mut script = Script::memcached();
        script.ask(1, command);
        script.write();
        assert_eq!(script.receive(reply), Err(Failure::OutOfStep), "{command:?}");
        assert_eq!(script.fail(Outcome::Error), (1, vec!["1: ERROR".into()]));
    }
}

#[test]
fn a_reply_is_none_to_a_request_that_is_not_written() {
    let mut script = Script::greeting();
    script.get(1);
    script.write();
    let twice = ["+OK\r\n+OK\r\n", MASTER, &value("one")].concat();
    assert_eq!(script.receive(twice), Err(Failure::OutOfStep));

    // A reply that comes twice is noticed, whether or not there is a next request.
    let mut script = Script::redis();
    script.get(1);
    script.write();
    assert_eq!(script.read(value("one")), ["1: one"]);
    script.get(2);
    assert_eq!(script.receive(value("one")), Err(Failure::OutOfStep));
    assert_eq!(script.fail(Outcome::Error), (1, vec!["2: ERROR".into()]));
}

#[test]
fn a_server_that_refuses_before_it_is_asked_is_given_up_in_its_words() {
    let words = "ERR max number of clients reached";
    let refused = Err(Failure::Greeting(words.into()));
    let mut script = Script::redis();
    assert_eq!(script.receive(format!("-{words}\r\n")), refused);

    // Whether that is read before a request is written or after it.
    for writes in [false, true] {
        let mut script = Script::redis();
        script.get(1);
        if writes {
            script.write();
        }
        assert_eq!(script.receive(format!("-{words}\r\n")), refused);
        assert_eq!(script.fail(Outcome::Error), (1, vec!["1: ERROR".into()]));
    }
}

/// What Redis says to a connection from another machine as long as it has no password.
const PROTECTED: &str = "DENIED Redis is running in protected mode because protected mode is \
    enabled and no password is set for the default user. In this mode connections are only \
    accepted from the loopback interface. If you want to connect from external computers to Redis \
    you may adopt one of the following solutions: 1) Just disable protected mode sending the \
    command 'CONFIG SET protected-mode no' from the loopback interface by connecting to Redis from \
    the same host the server is running, however MAKE SURE Redis is not publicly accessible from \
    internet if you do so. Use CONFIG REWRITE to make this change permanent. 2) Alternatively you \
    can just disable the protected mode by editing the Redis configuration file, and setting the \
    protected mode option to 'no', and then restarting the server. 3) If you started the server \
    manually just for testing, restart it with the '--protected-mode no' option. 4) Setup a an \
    authentication password for the default user. NOTE: You only need to do one of the above \
    things in order for the server to start accepting connections from the outside.";

#[test]
fn the_long_words_of_a_redis_in_protected_mode_are_read() {
    assert_eq!(PROTECTED.len(), 1067 - "-\r\n".len());
    let shown = format!("{}...", PROTECTED.get(..200).unwrap());
    for script in [Script::redis(), Script::greeting()] {
        let mut script = script;
        script.get(1);
        script.write();
        let failure = script.receive(format!("-{PROTECTED}\r\n")).unwrap_err();
        assert_eq!(failure, Failure::Greeting(shown.clone().into()));
        assert_eq!(secured().hint(shown.as_bytes(), None), Some(Hint::ProtectedMode));
    }
}

#[test]
fn what_is_no_reply_ends_the_connection_and_what_came_before_it_counts() {
    let mut script = Script::redis();
    (1..=3).for_each(|waiter| script.get(waiter));
    script.write();
    let failure = script.receive(value("one") + "HTTP/1.1 400").unwrap_err();
    assert_eq!(failure, Failure::Decode(DecodeError::UnexpectedType(b'H')));
    assert_eq!(failure.to_string(), "reply of unexpected type 0x48");
    let told = ["1: one", "2: ERROR", "3: ERROR"].map(String::from).to_vec();
    assert_eq!(script.fail(failure.outcome()), (2, told));
}

#[test]
fn an_array_is_the_answer_to_a_question_about_servers_and_to_nothing_else() {
    let mut script = Script::redis();
    script.query();
    script.get(1);
    script.write();
    assert_eq!(script.read("*1\r\n:1\r\n"), ["query: array of 8 bytes"]);
    let unexpected = Failure::Decode(DecodeError::UnexpectedType(b'*'));
    assert_eq!(script.receive("*1\r\n:1\r\n"), Err(unexpected));

    let mut script = Script::redis();
    script.query();
    script.write();
    assert_eq!(script.receive("+OK\r\n"), Err(Failure::OutOfStep));
}

#[test]
fn a_server_that_refuses_a_question_has_answered_it() {
    let mut script = Script::redis();
    script.query();
    script.query();
    script.write();
    assert_eq!(
        script.read("-ERR This instance has cluster support disabled\r\n*-1\r\n"),
        ["query: refused [ERR This instance has cluster support disabled]", "query: missing"]
    );
    assert_eq!(script.counts(), (0, 1));
}

#[test]
fn a_refusal_is_no_proof_and_a_proper_answer_is() {
    let mut script = Script::redis();
    (1..=2).for_each(|waiter| script.get(waiter));
    script.write();
    script.read("-NOAUTH no\r\n");
    assert!(script.conversation.has_refused());
    assert!(!script.conversation.is_proven() && !script.conversation.take_good());
    assert_eq!(script.counts(), (0, 1));
    assert_eq!(script.counts(), (0, 0), "they are told once");
    script.read("$-1\r\n");
    assert!(script.conversation.is_proven() && script.conversation.take_good());
}

#[test]
fn a_queue_that_is_full_takes_no_request() {
    let mut script = Script::connected(Redis::default(), Limits { queue: 2, ..LIMITS });
    script.at(1);
    (1..=2).for_each(|waiter| script.get(waiter));
    assert_eq!(script.try_ask(Some(3), Command::Get, None), Err(Refused::Full));
    assert_eq!(script.conversation.query(1, resp::cluster_slots), Err(Refused::Full));
    assert_eq!(script.write(), [get("1"), get("2")].concat());
    assert_eq!(script.try_ask(Some(3), Command::Get, None), Err(Refused::Full));
    // One that is late has its place still: what has to be kept of late answers has a bound.
    assert_eq!(script.at(1 + FETCH).tick(), ["1: TIMEOUT", "2: TIMEOUT"]);
    assert_eq!(script.try_ask(Some(3), Command::Get, None), Err(Refused::Full));
    assert_eq!(script.read("$-1\r\n"), NONE);
    script.get(3);
    assert_eq!(script.write(), get("3"));
}

#[test]
fn the_greeting_takes_no_place_in_the_queue() {
    let mut script = Script::new(secured(), Limits { queue: 1, ..LIMITS }, false);
    assert_eq!(script.conversation.unanswered(), 3);
    script.get(1);
    assert_eq!(script.try_ask(Some(2), Command::Get, None), Err(Refused::Full));
}

#[test]
fn too_much_that_waits_to_be_written_is_a_full_queue() {
    let mut script = Script::redis();
    let value = vec![b'v'; 1024 * 1024];
    let set = Command::Set { value: &value, expiry: Expiry { ttl: 9, at: 0 } };
    let taken = (0..QUEUE).take_while(|_| script.try_ask(None, set, None).is_ok()).count();
    assert_eq!(taken, 4);
    assert_eq!(script.try_ask(Some(1), Command::Get, None), Err(Refused::Full));
    // What was written does not count.
    let waiting = script.conversation.waiting();
    assert_eq!(script.write_some(1024 * 1024).len(), 1024 * 1024);
    assert_eq!(script.conversation.waiting(), waiting - 1024 * 1024);
    script.get(1);
    assert!(script.write().ends_with(&get("1")));
}

#[test]
fn a_failed_request_leaves_nothing_to_be_written() {
    let mut script = Script::redis();
    let failed = script.conversation.query(0, |_| Err(session_core::codec::OutOfMemory));
    assert_eq!(failed, Err(Refused::OutOfMemory));
    assert_eq!(script.write(), "");
    assert_eq!(script.conversation.unanswered(), 0);
}

// Deadlines.

#[test]
fn a_late_request_is_told_once_and_its_late_answer_is_discarded_in_its_turn() {
    let mut script = Script::redis();
    script.get(1);
    script.write();
    script.at(30).get(2);
    script.write();
    script.at(40).get(3);
    script.write();
    assert_eq!(script.next(), Some(FETCH));
    assert_eq!(script.at(45).read("$-1\r\n"), ["1: missing"]);
    assert_eq!(script.next(), Some(80));
    assert_eq!(script.at(79).tick(), NONE);
    assert_eq!(script.at(80).tick(), ["2: TIMEOUT"]);
    assert_eq!(script.tick(), NONE, "once");
    assert_eq!(script.conversation.unanswered(), 2, "it keeps its place");
    assert_eq!(script.conversation.front(), Some(Kind::Fetch(2)));
    let answers = [value("two"), value("three")].concat();
    assert_eq!(script.at(85).read(answers), ["3: three"]);
    assert_eq!(script.counts(), (1, 0));
    assert_eq!(script.next(), None);
}

#[test]
fn what_the_server_says_in_a_late_refusal_is_for_the_log_only() {
    let mut script = Script::redis();
    (1..=2).for_each(|waiter| script.get(waiter));
    script.write();
    script.at(40).read("$-1\r\n");
    assert_eq!(script.at(50).tick(), ["2: TIMEOUT"]);
    assert_eq!(script.at(60).read("-BUSY script\r\n"), ["2: - [BUSY script]"]);
    assert_eq!(script.counts(), (1, 1));
}

#[test]
fn a_deadline_counts_from_when_a_request_is_written_and_not_from_when_it_is_made() {
    let mut script = Script::redis();
    script.get(1);
    script.at(30).get(2);
    script.at(35).submit();
    assert_eq!(script.next(), Some(35 + FETCH));
    script.get(3);
    script.at(40).write();
    assert_eq!(script.at(84).tick(), NONE);
    assert_eq!(script.at(85).tick(), ["1: TIMEOUT", "2: TIMEOUT"]);
    assert_eq!(script.next(), Some(90));
}

#[test]
fn a_turn_that_takes_longer_than_the_timeout_harms_nobody() {
    let mut script = Script::redis();
    script.get(1);
    // Other clients of the same turn take their time; then what there is to write is written, and
    // then the deadlines are looked at.
    script.at(10 * FETCH).write();
    assert_eq!(script.tick(), NONE);
    assert_eq!(script.next(), Some(11 * FETCH));
    // The answer comes while others take their time: it is read before the deadline is looked at.
    script.at(13 * FETCH);
    assert_eq!(script.read(value("one")), ["1: one"]);
    assert_eq!(script.tick(), NONE);
}

#[test]
fn nobody_waits_longer_for_connection_and_answer_than_for_an_answer() {
    let mut script = Script::new(Redis::default(), LIMITS, false);
    script.get(1);
    script.at(20).submit();
    script.at(60).connect();
    script.write();
    assert_eq!(script.next(), Some(20 + FETCH));
    assert_eq!(script.at(70).tick(), ["1: TIMEOUT"]);
    // The server was asked ten milliseconds ago.
    assert_eq!(script.next(), Some(60 + FETCH));
    assert_eq!(script.at(75).read(value("one")), NONE);
    assert_eq!(script.next(), None);
}

#[test]
fn who_waits_for_the_greeting_is_told_in_time() {
    let mut script = Script::greeting();
    script.get(1);
    script.write();
    script.submit();
    assert_eq!(script.at(FETCH).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.conversation.unanswered(), 4);
    // It is asked all the same, and its answer is nobody's.
    script.at(60).read(["+OK\r\n+OK\r\n", MASTER].concat());
    script.get(2);
    assert_eq!(script.write(), [get("1"), get("2")].concat());
    assert_eq!(script.read([value("one"), value("two")].concat()), ["2: two"]);
}

#[test]
fn lookups_and_changes_have_timeouts_of_their_own() {
    let mut script = Script::redis();
    script.get(1);
    script.ask(2, Command::Delete);
    script.get(3);
    script.delete();
    script.query();
    script.write();
    assert_eq!(script.at(10).read("$-1\r\n"), ["1: missing"]);
    assert_eq!(script.at(FETCH).tick(), ["3: TIMEOUT", "query: TIMEOUT"]);
    assert_eq!(script.next(), Some(STORE));
    assert_eq!(script.at(STORE - 1).tick(), NONE);
    assert_eq!(script.at(STORE).tick(), ["2: TIMEOUT"]);
    assert_eq!(script.counts(), (4, 0));
}

#[test]
fn a_lookup_that_is_sent_on_keeps_the_deadline_that_it_had() {
    let mut script = Script::redis();
    script.at(100).get_by(1, 120);
    script.get(2);
    script.at(110).write();
    assert_eq!(script.next(), Some(120));
    assert_eq!(script.at(120).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.at(130).read([value("one"), value("two")].concat()), ["2: two"]);
}

#[test]
fn ends_tell_the_deadline_that_a_request_had() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.at(20).write();
    script.get_by(2, 33);
    script.write();
    script.receive("-ASK 7 :1\r\n-ASK 7 :1\r\n").unwrap();
    let ends = script.conversation.take_ends().unwrap();
    let deadlines: Vec<_> = ends.iter().map(|end| end.deadline).collect();
    assert_eq!(deadlines, [20 + FETCH, 33]);
}

// Silence.

#[test]
fn a_late_lookup_ends_nothing_but_itself() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.delete();
    script.write();
    script.at(59).get(2);
    script.write();
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    script.at(61).get(3);
    script.write();
    // The server was away for 52 ms, and answers all that it was asked, in order.
    let answers = [&value("one"), ":1\r\n", &value("two"), &value("three")].concat();
    assert_eq!(script.at(62).read(answers), ["2: two", "3: three"]);
    assert_eq!(script.counts(), (1, 0));
    assert_eq!(script.conversation.unanswered(), 0);
    assert_eq!(script.next(), None);
}

#[test]
fn a_connection_is_silent_when_the_request_in_front_has_had_its_timeout() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    script.at(40).get(2);
    script.write();
    assert_eq!(script.at(59).tick(), NONE);
    assert!(!script.is_silent());
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert!(script.is_silent());
    assert_eq!(script.conversation.silent_for(60), FETCH);
    // An answer, whichever it is, ends that.
    assert_eq!(script.at(70).read("$-1\r\n"), NONE);
    assert!(!script.is_silent());
    // The next one has had 30 ms, and the server 20 ms since it said something.
    assert_eq!(script.at(90).tick(), ["2: TIMEOUT"]);
    assert!(!script.is_silent());
    assert_eq!(script.next(), Some(70 + FETCH));
    assert_eq!(script.at(120).tick(), NONE);
    assert!(script.is_silent());
}

#[test]
fn a_silent_connection_is_given_up_after_some_timeouts_more() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    script.at(180).get(2);
    script.write();
    assert_eq!(script.next(), Some(10 + SILENCE * FETCH));
    assert_eq!(script.at(209).tick(), NONE);
    let failure = script.at(210).try_tick().unwrap_err();
    assert_eq!(failure, Failure::Silent(SILENCE * FETCH));
    assert_eq!(failure.to_string(), "no answer within 200 ms");
    assert_eq!(failure.outcome(), Outcome::Timeout);
    assert_eq!(script.fail(failure.outcome()), (1, vec!["2: TIMEOUT".into()]));
}

#[test]
fn a_silence_that_is_long_is_told_once_before_the_connection_is_given_up() {
    let mut script = Script::connected(Redis::default(), Limits { silence: 20, ..LIMITS });
    script.at(10).get(1);
    script.write();
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.conversation.take_muted(), None);
    assert_eq!(script.next(), Some(10 + SILENCE * FETCH));
    assert_eq!(script.at(210).tick(), NONE);
    assert_eq!(script.conversation.take_muted(), Some(10), "since it was asked");
    assert_eq!(script.conversation.take_muted(), None);
    assert_eq!(script.next(), Some(10 + 20 * FETCH));
    assert!(!script.conversation.is_amid_reply());
    let reply = value("one");
    let (begin, rest) = reply.split_at(5);
    assert_eq!(script.at(490).read(begin), NONE);
    assert!(script.conversation.is_amid_reply(), "which is no silence that can be waited for");
    // A late answer ends it, and the next silence is another one.
    assert_eq!(script.at(500).read(rest), NONE);
    assert!(!script.conversation.is_amid_reply());
    assert!(!script.is_silent());
    script.at(600).get(2);
    script.write();
    script.at(650).tick();
    script.at(800).tick();
    assert_eq!(script.conversation.take_muted(), Some(600));
    assert_eq!(script.at(1600).try_tick(), Err(Failure::Silent(20 * FETCH)));
}

#[test]
fn answers_that_are_late_or_refuse_show_that_a_server_is_there_and_a_part_of_the_greeting_does_not()
{
    let mut script = Script::greeting();
    script.write();
    assert_eq!(script.read("+OK\r\n"), NONE);
    assert!(!script.conversation.take_answered());
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.at(70).read(value("one")), NONE);
    assert!(!script.conversation.take_good());
    assert!(script.conversation.take_answered());
    assert!(!script.conversation.take_answered(), "told once");
    script.get(2);
    script.write();
    script.read("-ERR no\r\n");
    assert!(script.conversation.take_answered());
}

#[test]
fn a_server_that_rested_was_not_late_all_the_time() {
    let mut script = Script::redis();
    let late = |script: &mut Script, now: u64| {
        script.at(now).get(1);
        script.write();
        let ticked = script.at(now + FETCH).try_tick();
        script.at(now + FETCH + 1).read(value("one"));
        ticked
    };
    let mut now = 10;
    while now < 900 {
        late(&mut script, now).unwrap();
        now += 60;
    }
    script.conversation.rest();
    late(&mut script, 5000).unwrap();
}

#[test]
fn a_change_in_front_has_its_own_timeout() {
    let mut script = Script::redis();
    script.at(10).delete();
    script.get(1);
    script.write();
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert!(!script.is_silent());
    assert_eq!(script.at(209).tick(), NONE);
    assert!(!script.is_silent());
    assert_eq!(script.at(210).tick(), NONE);
    assert!(script.is_silent());
    assert_eq!(script.next(), Some(10 + SILENCE * STORE));
    assert_eq!(script.at(810).try_tick(), Err(Failure::Silent(SILENCE * STORE)));
}

#[test]
fn bytes_that_drip_are_no_sign_of_life() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    for (n, byte) in value("one").bytes().take(8).enumerate() {
        assert_eq!(script.at(15 + 5 * n as u64).read([byte]), NONE);
    }
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert!(script.is_silent());
    assert_eq!(script.at(210).try_tick(), Err(Failure::Silent(SILENCE * FETCH)));
}

#[test]
fn late_answers_keep_the_connection() {
    let mut script = Script::redis();
    // A lookup every 20 ms, each of which the server answers a little later than the one before: in
    // the end after 80 ms.
    let asked = |n: u32| 100 + 20 * u64::from(n);
    let answered = |n: u32| asked(n) + 80.min(10 + 10 * u64::from(n));
    let (mut in_time, mut late) = (vec![], vec![]);
    for now in (100..1000).step_by(10) {
        script.at(now);
        for _ in (0..40).filter(|&n| answered(n) == now) {
            in_time.extend(script.read(value("it")));
        }
        for n in (0..40).filter(|&n| asked(n) == now) {
            script.get(n);
            script.write();
        }
        late.extend(script.tick());
        assert!(!script.is_silent());
    }
    assert_eq!(in_time, (0..5).map(|n| format!("{n}: it")).collect::<Vec<_>>());
    assert_eq!(late, (5..40).map(|n| format!("{n}: TIMEOUT")).collect::<Vec<_>>());
    assert_eq!(script.conversation.unanswered(), 0);
}

/// A server that takes 60 ms for each lookup, of which one is made every `pause` milliseconds: after
/// how many of them it is too slow.
fn slow(pause: u64) -> (u64, Failure) {
    let mut script = Script::redis();
    for n in 0..1000 {
        script.at(n * pause).get(1);
        script.write();
        if let Err(failure) = script.at(n * pause + FETCH).try_tick() {
            return (n + 1, failure);
        }
        assert_eq!(script.told(), ["1: TIMEOUT"]);
        assert_eq!(script.at(n * pause + 60).read("$-1\r\n"), NONE);
    }
    panic!("never");
}

#[test]
fn a_server_that_is_never_in_time_is_too_slow() {
    assert_eq!(slow(100), (11, Failure::Slow(1000)));
    assert_eq!(slow(5000), (2, Failure::Slow(5000)));
    assert_eq!(Failure::Slow(1000).to_string(), "no answer in time for 1000 ms");
    assert_eq!(Failure::Slow(1000).outcome(), Outcome::Timeout);
}

#[test]
fn a_server_that_is_in_time_once_is_not_too_slow() {
    let mut script = Script::redis();
    for n in 0..100 {
        script.at(n * 1000).get(1);
        script.write();
        if n % 2 == 0 {
            assert_eq!(script.at(n * 1000 + FETCH).tick(), ["1: TIMEOUT"]);
            assert_eq!(script.at(n * 1000 + 60).read("$-1\r\n"), NONE);
        } else {
            assert_eq!(script.at(n * 1000 + 40).read("$-1\r\n"), ["1: missing"]);
        }
    }
}

#[test]
fn a_server_that_was_asked_late_has_its_whole_timeout() {
    let mut script = Script::greeting();
    script.get(1);
    script.write();
    script.at(5).submit();
    script.at(49).read(["+OK\r\n+OK\r\n", MASTER].concat());
    script.at(50).write();
    assert_eq!(script.at(55).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.next(), Some(100));
    assert_eq!(script.at(99).tick(), NONE);
    assert!(!script.is_silent());
    assert_eq!(script.at(100).tick(), NONE);
    assert!(script.is_silent());
}

#[test]
fn what_was_heard_before_a_request_is_no_answer_to_it_however_short_before() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    assert_eq!(script.at(20).read("$-1\r\n"), ["1: missing"]);
    script.get(2);
    script.write();
    assert_eq!(script.at(70).tick(), ["2: TIMEOUT"]);
    assert!(script.is_silent());
}

#[test]
fn a_lookup_with_little_time_left_says_nothing_about_the_server() {
    let mut script = Script::redis();
    script.at(10).get_by(1, 20);
    script.write();
    assert_eq!(script.at(20).tick(), ["1: TIMEOUT"]);
    assert!(!script.is_silent());
    assert_eq!(script.next(), Some(10 + FETCH));
}

#[test]
fn a_push_is_no_sign_of_life() {
    let mut script = Script::redis();
    script.at(10).get(1);
    script.write();
    assert_eq!(script.at(30).read(">1\r\n+hello\r\n"), NONE);
    assert_eq!(script.at(60).tick(), ["1: TIMEOUT"]);
    assert!(script.is_silent());
}

#[test]
fn a_value_that_is_skipped_is_a_sign_of_life_when_all_of_it_has_come() {
    for (at, whole) in [(55, true), (65, false)] {
        let mut script = Script::redis();
        script.at(10).get(1);
        script.get(2);
        script.write();
        assert_eq!(script.at(20).read("$21\r\n01234567"), ["1: CORRUPT"]);
        if whole {
            assert_eq!(script.at(at).read("8901234567890\r\n"), NONE);
        }
        assert_eq!(script.at(60).tick(), ["2: TIMEOUT"]);
        assert_eq!(script.is_silent(), !whole);
    }
}

#[test]
fn a_server_that_nobody_asks_may_be_silent() {
    let mut script = Script::redis();
    script.get(1);
    script.write();
    script.read("$-1\r\n");
    assert_eq!(script.next(), None);
    assert_eq!(script.at(1_000_000).tick(), NONE);
    script.get(2);
    script.write();
    assert_eq!(script.read(value("two")), ["2: two"]);
}

// Connections that were idle.

/// A connection that has worked, and on which nothing has been said for so long.
fn idle(ms: u64) -> Script {
    let mut script = Script::redis();
    script.get(0);
    script.write();
    script.at(10).read("$-1\r\n");
    script.at(10 + ms);
    script
}

#[test]
fn a_connection_that_was_idle_is_silent_with_time_left_to_ask_again() {
    for (ms, is_stale) in [(IDLE - 1, false), (IDLE, true)] {
        let mut script = idle(ms);
        let now = script.now;
        assert_eq!(script.conversation.is_idle(now), is_stale);
        script.get(1);
        script.write();
        assert_eq!(script.conversation.is_stale(), is_stale);
        assert_eq!(script.next(), Some(now + if is_stale { FETCH / 2 } else { FETCH }));
        assert_eq!(script.at(now + FETCH / 2).tick(), NONE);
        assert_eq!(script.is_silent(), is_stale);
        // It is there after all.
        assert_eq!(script.at(now + 30).read("$-1\r\n"), ["1: missing"]);
        assert!(!script.conversation.is_stale() && !script.is_silent());
        assert_eq!(script.next(), None);
    }
}

#[test]
fn a_connection_that_was_idle_from_the_beginning_is_no_other() {
    let mut script = Script::redis();
    script.at(IDLE).get(1);
    assert!(script.conversation.is_stale());
    let mut script = Script::new(Redis::default(), LIMITS, false);
    script.at(IDLE).get(1);
    assert!(!script.conversation.is_stale(), "it is only being made");
}

#[test]
fn a_connection_with_something_to_answer_is_not_idle() {
    let mut script = idle(10);
    script.get(1);
    script.write();
    script.at(5000).get(2);
    assert!(!script.conversation.is_stale() && !script.conversation.is_idle(5000));
}

#[test]
fn a_change_on_a_connection_that_was_idle_asks_about_it_as_soon_as_a_lookup() {
    let mut script = idle(IDLE);
    let now = script.now;
    script.delete();
    script.write();
    assert_eq!(script.at(now + FETCH / 2).tick(), NONE);
    assert!(script.is_silent());
    assert_eq!(script.next(), Some(now + STORE));
}

#[test]
fn of_a_dead_connection_plain_lookups_are_made_again_and_nothing_else() {
    let mut script = idle(IDLE);
    script.get(1);
    script.ask(2, Command::Take);
    script.ask(3, Command::Claim(7));
    script.ask(4, Command::Delete);
    script.query();
    script.delete();
    script.get(5);
    script.write();
    let (lost, ends) = script.conversation.fail(Outcome::Error, true);
    let told = ["1: again, or ERROR", "2: ERROR", "3: ERROR", "4: ERROR", "query: ERROR"];
    assert_eq!(show_all(&ends), [&told[..], &["5: again, or ERROR"]].concat());
    assert_eq!(lost, 5, "what is made again is not lost");
}

#[test]
fn a_lookup_that_is_late_is_not_made_again() {
    let mut script = idle(IDLE);
    let now = script.now;
    script.get_by(1, now + 5);
    script.write();
    script.get(2);
    assert_eq!(script.at(now + 5).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.dies(), ["2: again, or ERROR"]);
}

// What is discarded.

#[test]
fn a_value_over_the_limit_is_skipped_and_the_next_answer_is_found() {
    let mut script = Script::redis();
    (1..=3).for_each(|waiter| script.get(waiter));
    script.write();
    let longest = "x".repeat(MAX_VALUE);
    assert_eq!(script.read(value(&longest)), [format!("1: {longest}")]);
    assert_eq!(script.read(value(&"x".repeat(500)) + &value("ok")), ["2: CORRUPT", "3: ok"]);
    assert!(script.conversation.is_proven());
}

#[test]
fn a_value_over_the_limit_does_not_pile_up() {
    let mut script = Script::redis();
    (1..=2).for_each(|waiter| script.get(waiter));
    script.write();
    assert_eq!(script.read(format!("${}\r\n", 60 * 1024)), ["1: CORRUPT"]);
    for _ in 0..60 {
        assert_eq!(script.read([b'x'; 1024]), NONE);
        assert!(script.conversation.input().is_empty());
        assert!(script.conversation.input().capacity() <= KEPT);
    }
    assert_eq!(script.read("\r\n".to_owned() + &value("ok")), ["2: ok"]);
}

#[test]
fn a_value_that_is_not_worth_waiting_for_ends_the_connection_and_only_its_own_lookup() {
    for (codec, long) in [
        (true, "$65537\r\n"),
        (true, "$104857600\r\nxxx"),
        (false, "VA 65537\r\n"),
        (false, "VA 104857600 c1\r\nxxx"),
    ] {
        let mut script = if codec { Script::redis() } else { Script::memcached() };
        (1..=2).for_each(|waiter| script.get(waiter));
        script.ask(3, Command::Take);
        script.write();
        let failure = script.receive(long).unwrap_err();
        assert!(matches!(failure, Failure::Oversized(_)), "{failure}");
        let (_, ends) = script.conversation.fail(failure.outcome(), true);
        assert_eq!(show_all(&ends), ["1: CORRUPT", "2: again, or ERROR", "3: ERROR"]);
    }
}

#[test]
fn a_value_over_the_limit_that_is_late_is_skipped_too() {
    let mut script = Script::redis();
    (1..=2).for_each(|waiter| script.get(waiter));
    script.write();
    script.at(1).read("$-1\r\n");
    assert_eq!(script.at(FETCH).tick(), ["2: TIMEOUT"]);
    assert_eq!(script.read(value(&"x".repeat(MAX_VALUE + 1))), NONE);
    assert_eq!(script.conversation.unanswered(), 0);
    script.get(3);
    script.write();
    assert_eq!(script.read(value("three")), ["3: three"]);
}

#[test]
fn a_push_comes_at_any_time_and_answers_nothing() {
    let mut script = Script::redis();
    assert_eq!(script.read(">1\r\n+hello\r\n"), NONE);
    script.get(1);
    script.write();
    let push = ">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n";
    assert_eq!(script.read([push, push, &value("one"), push].concat()), ["1: one"]);
    assert!(script.conversation.input().is_empty());
}

#[test]
fn pushes_without_end_are_the_end() {
    let mut script = Script::redis();
    script.get(1);
    script.write();
    let push = format!(">1\r\n{}", value(&"x".repeat(1000)));
    let fit = 64 * 1024 / push.len();
    assert_eq!(script.read(push.repeat(fit)), NONE);
    // An answer begins a new account.
    assert_eq!(script.read(value("one")), ["1: one"]);
    assert_eq!(script.read(push.repeat(fit)), NONE);
    let failure = script.receive(push).unwrap_err();
    assert_eq!(failure, Failure::Unasked);
    assert_eq!(failure.to_string(), "too many messages that answer no request");
}

// Redirections.

#[test]
fn a_redirection_is_for_its_waiter_to_follow() {
    let mut script = Script::redis();
    script.get(1);
    script.ask(2, Command::Delete);
    script.write();
    assert_eq!(
        script.read("-MOVED 7 10.0.0.1:6379\r\n-ASK 16383 :7000\r\n"),
        [
            "1: Node { ask: false, slot: 7, host: \"10.0.0.1\", port: 6379 }",
            "2: Node { ask: true, slot: 16383, host: \"\", port: 7000 }",
        ]
    );
    assert_eq!(script.counts(), (0, 0));
    assert!(script.conversation.is_proven());
}

#[test]
fn a_redirection_that_nobody_follows_is_a_refusal() {
    let mut script = Script::connected(Redis::default(), Limits { redirects: false, ..LIMITS });
    script.get(1);
    script.delete();
    script.write();
    assert_eq!(
        script.read("-MOVED 7 a:1\r\n-ASK 8 b:2\r\n"),
        ["1: ERROR [MOVED 7 a:1]", "nobody: - [ASK 8 b:2]"]
    );
    assert!(!script.conversation.is_proven());
    assert!(script.conversation.has_refused());
    assert_eq!(script.counts(), (0, 2));

    // Nor has a change that nobody waits for anybody to follow it, nor a question.
    let mut script = Script::redis();
    script.delete();
    script.query();
    script.write();
    assert_eq!(
        script.read("-MOVED 7 a:1\r\n-MOVED 8 b:2\r\n"),
        ["nobody: - [MOVED 7 a:1]", "query: ERROR [MOVED 8 b:2]"]
    );
}

#[test]
fn a_request_that_follows_an_ask_says_so_and_has_two_answers() {
    let mut script = Script::redis();
    let request = Request { key: b"1", command: Command::Get, asking: true };
    script.conversation.request(0, &request, Some(1), Some(30)).unwrap();
    script.get(2);
    assert_eq!(script.write(), ["*1\r\n$6\r\nASKING\r\n", &get("1"), &get("2")].concat());
    assert_eq!(script.conversation.unanswered(), 3);
    assert_eq!(script.read("+OK\r\n"), NONE);
    assert_eq!(script.read([value("one"), value("two")].concat()), ["1: one", "2: two"]);
}

#[test]
fn a_request_that_follows_an_ask_is_late_and_lost_once() {
    for lost in [true, false] {
        let mut script = Script::redis();
        let request = Request { key: b"1", command: Command::Delete, asking: true };
        script.get(2);
        script.at(5).conversation.request(5, &request, Some(1), None).unwrap();
        script.write();
        script.at(10).read("$-1\r\n");
        if lost {
            assert_eq!(script.fail(Outcome::Error), (1, vec!["1: ERROR".into()]));
        } else {
            assert_eq!(script.at(5 + STORE).tick(), ["1: TIMEOUT"]);
            assert_eq!(script.counts(), (1, 0));
        }
    }
}

// Suspect replies.

#[test]
fn two_suspect_replies_in_a_row_end_the_connection() {
    let mut script = Script::redis();
    assert!(!script.conversation.is_doubtful());
    script.conversation.suspect();
    assert!(script.conversation.is_doubtful() && !script.conversation.is_suspect());
    script.conversation.suspect();
    assert!(script.conversation.is_suspect());
    // Too much speaks against it by now.
    script.conversation.trust();
    assert!(script.conversation.is_suspect());
    assert_eq!(Failure::Suspect.to_string(), "reply with another session");
    assert_eq!(Failure::Suspect.outcome(), Outcome::Error);
}

#[test]
fn replies_that_changed_places_cost_no_entry_whenever_there_is_room_to_write() {
    let mut script = Script::redis();
    (1..=4).for_each(|waiter| script.get(waiter));
    script.write();
    let swapped = [value("two"), value("one")].concat();
    assert_eq!(script.read(swapped), ["1: two", "2: one"]);
    // Each of the two has the other's session, and removes its own entry.
    for waiter in [1, 2] {
        script.ask(waiter, Command::Delete);
        script.conversation.suspect();
    }
    // The next answers come, and with them the news that there is room to write, before the
    // connection is ended.
    let others = [value("three"), value("four")].concat();
    assert_eq!(script.read(others), ["3: three", "4: four"]);
    assert_eq!(script.write(), "");
    script.conversation.trust();
    assert_eq!(script.write(), "");
    let told = ["1: ERROR", "2: ERROR"].map(String::from).to_vec();
    assert_eq!(script.fail(Failure::Suspect.outcome()), (2, told));
}

#[test]
fn a_good_reply_makes_up_for_a_suspect_one() {
    let mut script = Script::redis();
    script.conversation.suspect();
    script.conversation.trust();
    assert!(!script.conversation.is_doubtful());
    script.conversation.suspect();
    assert!(!script.conversation.is_suspect());
}

// A take in two steps.

#[test]
fn a_take_from_memcached_is_a_claim_with_the_deadline_that_the_lookup_had() {
    let mut script = Script::memcached();
    script.at(10).ask(1, Command::Take);
    assert_eq!(script.write(), "mg 1 v c\r\n");
    assert_eq!(script.at(40).read("VA 3 c17\r\none\r\n"), ["1: one by claim 17"]);
    script.try_ask(Some(1), Command::Claim(17), Some(60)).unwrap();
    assert_eq!(script.conversation.front(), Some(Kind::Claim(1)));
    assert_eq!(script.write(), "md 1 C17\r\n");
    assert_eq!(script.next(), Some(60));
    assert_eq!(script.at(59).read("HD\r\n"), ["1: done"]);
}

#[test]
fn a_claim_that_another_was_first_with_takes_nothing() {
    for lost in ["EX\r\n", "NF\r\n"] {
        let mut script = Script::memcached();
        script.try_ask(Some(1), Command::Claim(17), Some(60)).unwrap();
        script.write();
        assert_eq!(script.read(lost), ["1: missing"]);
    }
}

#[test]
fn a_claim_whose_answer_is_late_takes_nothing() {
    let mut script = Script::memcached();
    script.at(10).try_ask(Some(1), Command::Claim(17), Some(15)).unwrap();
    script.write();
    assert_eq!(script.at(15).tick(), ["1: TIMEOUT"]);
    assert_eq!(script.at(16).read("HD\r\n"), NONE);
    // The server has answered in its own time.
    assert_eq!(script.at(60).tick(), NONE);
}

// The end.

#[test]
fn a_connection_that_is_lost_tells_each_waiter_once() {
    let mut script = Script::redis();
    (1..=3).for_each(|waiter| script.get(waiter));
    script.ask(4, Command::Delete);
    script.delete();
    script.query();
    script.write();
    script.receive(value("one")).unwrap();
    let (lost, told) = script.fail(Outcome::Error);
    assert_eq!(told, ["1: one", "2: ERROR", "3: ERROR", "4: ERROR", "query: ERROR"]);
    assert_eq!(lost, 5);
}

#[test]
fn who_was_told_of_a_timeout_is_not_told_of_the_loss() {
    let mut script = Script::redis();
    (1..=2).for_each(|waiter| script.get(waiter));
    script.write();
    script.at(30).get(3);
    script.write();
    script.at(45).read("$-1\r\n");
    assert_eq!(script.at(50).tick(), ["2: TIMEOUT"]);
    assert_eq!(script.fail(Outcome::Error), (1, vec!["3: ERROR".into()]));
}

#[test]
fn a_change_is_lost_with_the_connection_whoever_waits_for_it() {
    let mut script = Script::redis();
    script.delete();
    script.write();
    script.at(10).get(1);
    script.write();
    script.at(20).read(":1\r\n");
    script.delete();
    script.write();
    script.at(60).tick();
    // 60 is the deadline of the lookup; that of the change has not come.
    assert_eq!(script.fail(Outcome::Error), (1, vec![]));
}

#[test]
fn a_connection_that_never_was_tells_its_waiters_too() {
    let mut script = Script::new(secured(), LIMITS, false);
    script.get(1);
    script.delete();
    assert_eq!(script.fail(Outcome::Down), (2, vec!["1: DOWN".into()]));
}

#[test]
fn a_greeting_is_not_among_what_is_lost() {
    let mut script = Script::greeting();
    script.write();
    assert_eq!(script.fail(Outcome::Error), (0, vec![]));
}

// Memory.

#[test]
fn what_was_read_is_used_again_and_what_has_grown_is_freed() {
    let limits = Limits { max_value: 10 * KEPT, ..LIMITS };
    let mut script = Script::connected(Redis::default(), limits);
    script.get(1);
    script.write();
    assert_eq!(script.read(value("one")), ["1: one"]);
    let capacity = script.conversation.input().capacity();
    assert!(capacity > 0 && script.conversation.input().is_empty());

    script.get(2);
    script.write();
    assert_eq!(script.read(value(&"x".repeat(2 * KEPT))).len(), 1);
    assert!(script.conversation.input().capacity() <= KEPT);
}

#[test]
fn what_follows_an_answer_stays_while_its_waiter_is_told() {
    let mut script = Script::redis();
    (1..=3).for_each(|waiter| script.get(waiter));
    script.write();
    script.receive(value("one") + "$3\r\ntw").unwrap();
    let ends = script.conversation.take_ends().unwrap();
    assert_eq!(show_all(&ends), ["1: one"]);
    assert!(!script.conversation.has_ends() && script.conversation.take_ends().is_none());
    // Whoever is told may make a request.
    script.get(4);
    script.conversation.put_back(ends);
    assert_eq!(script.read("o\r\n$5\r\nthree\r\n"), ["2: two", "3: three"]);
    assert_eq!(script.write(), get("4"));
}
