//! The parameters of a `server`.

use session_core::parameter::{MAX_WEIGHT, Parameters};
use std::cell::Cell;

/// Words, as a configuration has them.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parameters = Parameters::default();
    for word in text.split_ascii_whitespace() {
        set(&mut parameters, word);
    }
    if let Some(weight) = parameters.weight {
        assert!((1..=MAX_WEIGHT).contains(&weight));
    }
    assert_eq!(parameters.breaker.fail_timeout % 1000, 0);

    let mut again = Parameters::default();
    for word in written(&parameters).split_ascii_whitespace() {
        again.set(word, seconds).unwrap();
    }
    assert_eq!(again, parameters);
}

/// A parameter changes what it names, or nothing if it is refused.
fn set(parameters: &mut Parameters, word: &str) {
    let before = *parameters;
    let timed = Cell::new(false);
    let done = parameters.set(word, |text| {
        timed.set(true);
        assert_eq!(Some(text), word.strip_prefix("fail_timeout="));
        seconds(text)
    });
    assert_eq!(timed.get(), word.starts_with("fail_timeout="));
    if done.is_none() {
        assert_eq!(*parameters, before);
        return;
    }
    let mut expected = before;
    match word.split('=').next().unwrap() {
        "weight" => expected.weight = parameters.weight,
        "max_fails" => expected.breaker.max_fails = parameters.breaker.max_fails,
        "fail_timeout" => expected.breaker.fail_timeout = parameters.breaker.fail_timeout,
        "backup" => expected.backup = true,
        "down" => expected.down = true,
        "replica" => expected.replica = true,
        other => panic!("{other}"),
    }
    assert_eq!(*parameters, expected);
}

fn written(parameters: &Parameters) -> String {
    let weight = parameters.weight.map_or(String::new(), |weight| format!("weight={weight}"));
    let max_fails = parameters.breaker.max_fails;
    let fail_timeout = parameters.breaker.fail_timeout / 1000;
    let backup = if parameters.backup { "backup" } else { "" };
    let down = if parameters.down { "down" } else { "" };
    let replica = if parameters.replica { "replica" } else { "" };
    format!("{weight} max_fails={max_fails} fail_timeout={fail_timeout}s {backup} {down} {replica}")
}

/// In place of nginx's reader of times, which may answer with any number.
fn seconds(text: &str) -> Option<u64> {
    text.strip_suffix('s').unwrap_or(text).parse().ok()
}
