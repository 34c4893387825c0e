//! The parameters of a `server` in `ssl_session_backend`, as written in a configuration.

use crate::breaker;

/// The largest `weight`.
pub const MAX_WEIGHT: u32 = 65535;

/// What the parameters of one `server` say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `weight=`, from 1 to [`MAX_WEIGHT`], if there is one.
    pub weight: Option<u32>,
    /// `max_fails=` and `fail_timeout=`.
    pub breaker: breaker::Config,
    /// `backup`
    pub backup: bool,
    /// `down`
    pub down: bool,
    /// `replica`
    pub replica: bool,
}

impl Parameters {
    /// Carries out a parameter; of one that comes twice the last counts. `None` if it is invalid:
    /// nothing has changed then. `seconds` reads a time in nginx's notation.
    pub fn set(
        &mut self,
        parameter: &str,
        seconds: impl FnOnce(&str) -> Option<u64>,
    ) -> Option<()> {
        match parameter.split_once('=') {
            Some(("weight", n)) => {
                self.weight = Some(number(n).filter(|n| (1..=MAX_WEIGHT).contains(n))?);
            }
            Some(("max_fails", n)) => self.breaker.max_fails = number(n)?,
            Some(("fail_timeout", time)) => {
                self.breaker.fail_timeout = seconds(time)?.checked_mul(1000)?;
            }
            None if parameter == "backup" => self.backup = true,
            None if parameter == "down" => self.down = true,
            None if parameter == "replica" => self.replica = true,
            _ => return None,
        }
        Some(())
    }
}

/// A number without a sign, as nginx takes it.
fn number(digits: &str) -> Option<u32> {
    digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole seconds only: which notations there are is nginx's to say.
    fn seconds(text: &str) -> Option<u64> {
        text.strip_suffix('s')?.parse().ok()
    }

    fn read(words: &[&str]) -> Option<Parameters> {
        let mut parameters = Parameters::default();
        words.iter().try_for_each(|word| parameters.set(word, seconds))?;
        Some(parameters)
    }

    #[test]
    fn nothing_said_is_what_nginx_has_by_default() {
        let parameters = read(&[]).unwrap();
        assert_eq!(parameters.weight, None);
        assert_eq!(parameters.breaker, breaker::Config { max_fails: 1, fail_timeout: 10_000 });
        assert!(!parameters.backup && !parameters.down && !parameters.replica);
    }

    #[test]
    fn every_parameter_is_read() {
        let words = [
            "weight=65535",
            "max_fails=4294967295",
            "fail_timeout=2s",
            "backup",
            "down",
            "replica",
        ];
        let expected = Parameters {
            weight: Some(65535),
            breaker: breaker::Config { max_fails: u32::MAX, fail_timeout: 2000 },
            backup: true,
            down: true,
            replica: true,
        };
        assert_eq!(read(&words), Some(expected));
        assert_eq!(read(&["weight=01"]).unwrap().weight, Some(1));
        assert_eq!(read(&["max_fails=0"]).unwrap().breaker.max_fails, 0);
        assert_eq!(read(&["fail_timeout=0s"]).unwrap().breaker.fail_timeout, 0);
    }

    #[test]
    fn the_last_of_two_counts() {
        let parameters = read(&["weight=2", "max_fails=5", "weight=3", "backup", "backup"]);
        assert_eq!(parameters.unwrap().weight, Some(3));
    }

    #[test]
    fn a_wrong_parameter_is_refused_and_changes_nothing() {
        for word in [
            "",
            "=",
            "weight",
            "weight=",
            "weight=0",
            "weight=65536",
            "weight=4294967297",
            "weight=+1",
            "weight=-1",
            "weight= 1",
            "weight=1 ",
            "weight=1=1",
            "weight=\u{661}",
            "Weight=1",
            "max_fails",
            "max_fails=",
            "max_fails=4294967296",
            "max_fails=+1",
            "fail_timeout",
            "fail_timeout=",
            "fail_timeout=soon",
            "fail_timeout=18446744073709552s",
            "backup=",
            "backup=on",
            "down=",
            "downs",
            "slow_start=1s",
        ] {
            let mut parameters = read(&["weight=7", "fail_timeout=3s"]).unwrap();
            let before = parameters;
            assert_eq!(parameters.set(word, seconds), None, "{word}");
            assert_eq!(parameters, before, "{word}");
        }
    }
}
