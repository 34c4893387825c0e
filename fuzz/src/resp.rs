//! Replies of Redis, and the requests, which are made of the same parts.

use session_core::codec::{Answer, Codec, Expected, Expiry, OutOfMemory, Place, Redirect, Unfit};
use session_core::resp::Redis;

use super::arrivals::split;
use super::replies::{said, stream};

/// The longest value that is read here. Small, so that the fuzzer gets beyond it.
const LIMIT: usize = 64;

/// Lengths of pieces, then what a server sends.
pub fn run(data: &[u8]) {
    let Some((lengths, wire)) = split(data) else { return };
    stream(&Redis::default(), lengths, wire, LIMIT, redis);
    said(wire);
    requests(wire);
}

fn redis(answer: &Answer, bytes: &[u8]) {
    assert!(!matches!(answer, Answer::Claim(..)), "a take is one step");
    let word = |text: &[u8]| text.windows(6).any(|word| word == b"secret");
    let redis = Redis {
        authenticates: true,
        client_name: Some(b"web1".to_vec()),
        database: 1,
        master: true,
        ..Redis::default()
    };
    // AUTH, CLIENT SETNAME, SELECT, ROLE, PING, and nothing after it.
    let greeted = [0, 1, 2, 3, 4, 5].map(|step| redis.greeted(step, answer, bytes, b"secret"));
    assert!(greeted[5].is_err());
    match answer {
        Answer::Done => assert_eq!(greeted[..4], [Ok(()), Ok(()), Ok(()), Err(Unfit::OutOfStep)]),
        Answer::Refused(text) => {
            let repeated =
                if word(&bytes[text.clone()]) { Unfit::RefusedAloud } else { Unfit::Refused };
            let password = greeted[0] == Err(Unfit::Password);
            assert!(greeted[0] == Err(repeated) || password && repeated == Unfit::Refused);
            assert!(greeted[2].is_err() && greeted[3].is_err());
            hints(&redis, &bytes[text.clone()], 5);
        }
        Answer::Array(_) => {
            let master = bytes.windows(12).any(|word| word == b"$6\r\nmaster\r\n");
            assert!(greeted[3].is_err() || master);
            for (step, greeted) in greeted.iter().enumerate() {
                assert!(greeted.is_err() || redis.greeting_is_array(step));
            }
        }
        _ => assert!(greeted.iter().all(Result::is_err)),
    }
    if let Answer::Redirect(redirect) = answer {
        let kind = if redirect.ask { "ASK" } else { "MOVED" };
        let host = std::str::from_utf8(&bytes[redirect.host.clone()]).unwrap();
        let line = format!("-{kind} {} ", redirect.slot);
        let again = format!("{line}{host}:{}\r\n", redirect.port);
        let host = line.len()..line.len() + host.len();
        let expected = Answer::Redirect(Redirect { host, ..redirect.clone() });
        assert_eq!(at_once(&redis, again.as_bytes()), Some((expected, again.len())));
    }
}

/// A hint is short, and fits into brackets in a log. There is one where the connection is refused.
pub fn hints(codec: &dyn Codec, text: &[u8], steps: usize) {
    for step in (0..=steps).map(Some).chain([None]) {
        let Some(hint) = codec.hint(text, step) else { continue };
        let shown = hint.to_string();
        assert!(shown.is_ascii() && shown.len() < 150 && !shown.contains(['\n', '(', ')']));
    }
    assert!(!(codec.refuses_connection(text) && codec.is_of_connection(text)));
    assert!(!codec.refuses_connection(text) || codec.hint(text, None).is_some());
}

/// The answer at the beginning of what has come all at once.
fn at_once(redis: &Redis, buf: &[u8]) -> Option<(Answer, usize)> {
    let expected = Expected { limit: LIMIT, array: true };
    redis.decode(buf, &expected, &mut Place::default()).unwrap()
}

/// A request is an array of strings, whatever is in them, and is read as one.
fn requests(key: &[u8]) {
    let redis = Redis { username: Some(key.to_vec()), authenticates: true, ..Redis::default() };
    let one_array = |append: &dyn Fn(&mut Vec<u8>) -> Result<(), OutOfMemory>| {
        let mut request = b"before".to_vec();
        append(&mut request).unwrap();
        let request = &request[b"before".len()..];
        let whole = (Answer::Array(0..request.len()), request.len());
        assert_eq!(at_once(&redis, request), Some(whole));
        let quoted = [format!("${}\r\n", key.len()).as_bytes(), key, b"\r\n"].concat();
        assert!(request.windows(quoted.len()).any(|part| part == quoted));
    };
    one_array(&|out| redis.get(key, out));
    one_array(&|out| redis.take(key, out));
    one_array(&|out| redis.delete(key, out));
    one_array(&|out| redis.set(key, key, Expiry { ttl: 1, at: 1 }, out));
    assert_eq!(redis.greeting_steps(false), 1);
    one_array(&|out| redis.greet(false, key, out));
    one_array(&|out| session_core::resp::master_address(key, out));
}
