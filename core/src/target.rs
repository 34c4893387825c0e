//! The targets of `ssl_session_fetch` and `ssl_session_store`, as written in a configuration.

use core::fmt;

/// Where sessions are looked up or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `off`
    Off,
    /// `shared:NAME:SIZE`, a zone of this machine's memory
    Shared(Shared<'a>),
    /// `redis://ADDRESS[/DATABASE]`
    Redis(Redis<'a>),
    /// the name of an `ssl_session_backend`
    Backend(&'a str),
}

/// A shared-memory zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared<'a> {
    /// Name of the zone.
    pub name: &'a str,
    /// Its size, still to be parsed as nginx parses sizes.
    pub size: &'a str,
}

/// One Redis server, without a backend block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redis<'a> {
    /// `host`, `host:port`, `[address]:port` or `unix:path`, as nginx's `server` has it.
    pub address: &'a str,
    /// The logical database.
    pub database: u32,
}

/// Why a target cannot be used. The text ends a sentence that names the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Nothing there.
    Empty,
    /// Not a scheme that we speak.
    Scheme,
    /// A URL without a host.
    NoHost,
    /// User or password in a URL.
    Credentials,
    /// Not a number of a database.
    Database,
    /// A zone without a name or size.
    Zone,
}

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TargetError::Empty => "empty target",
            TargetError::Scheme => "unsupported scheme",
            TargetError::NoHost => "no host",
            TargetError::Credentials => "user and password are not supported",
            TargetError::Database => "invalid database",
            TargetError::Zone => "invalid zone, \"shared:NAME:SIZE\" expected",
        })
    }
}

impl<'a> Target<'a> {
    /// Reads a target. An address and a size are only cut out, not checked.
    pub fn parse(text: &'a str) -> Result<Self, TargetError> {
        if text.is_empty() {
            return Err(TargetError::Empty);
        }
        if text == "off" {
            return Ok(Target::Off);
        }
        if let Some(zone) = text.strip_prefix("shared:") {
            return match zone.split_once(':') {
                Some((name, size)) if !name.is_empty() && !size.is_empty() => {
                    Ok(Target::Shared(Shared { name, size }))
                }
                _ => Err(TargetError::Zone),
            };
        }
        match text.split_once("://") {
            Some(("redis", rest)) => Redis::parse(rest).map(Target::Redis),
            Some(_) => Err(TargetError::Scheme),
            None => Ok(Target::Backend(text)),
        }
    }
}

impl<'a> Redis<'a> {
    /// Reads what follows `redis://`: `host[:port][/database]`, or `unix:/path[:/database]` with
    /// the colon that nginx has between a socket's path and what follows it.
    fn parse(rest: &'a str) -> Result<Self, TargetError> {
        let (address, database) = match rest.strip_prefix("unix:") {
            Some("") => return Err(TargetError::NoHost),
            Some(_) => match rest.rsplit_once(":/") {
                // The colon of "unix:/path" itself is no separator.
                Some((address, database)) if address != "unix" => (address, database),
                _ => (rest, ""),
            },
            None => rest.split_once('/').unwrap_or((rest, "")),
        };
        if address.is_empty() {
            return Err(TargetError::NoHost);
        }
        if address.contains('@') && !address.starts_with("unix:") {
            return Err(TargetError::Credentials);
        }
        let database = match database {
            "" => 0,
            digits if digits.bytes().all(|c| c.is_ascii_digit()) => {
                digits.parse().map_err(|_| TargetError::Database)?
            }
            _ => return Err(TargetError::Database),
        };
        Ok(Redis { address, database })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(address: &str, database: u32) -> Result<Target<'_>, TargetError> {
        Ok(Target::Redis(Redis { address, database }))
    }

    #[test]
    fn targets_are_read_as_documented() {
        assert_eq!(Target::parse("off"), Ok(Target::Off));
        assert_eq!(Target::parse("fleet"), Ok(Target::Backend("fleet")));
        assert_eq!(
            Target::parse("shared:tls:10m"),
            Ok(Target::Shared(Shared { name: "tls", size: "10m" }))
        );
        assert_eq!(Target::parse("redis://127.0.0.1:6379"), redis("127.0.0.1:6379", 0));
        assert_eq!(Target::parse("redis://cache/3"), redis("cache", 3));
        assert_eq!(Target::parse("redis://cache/"), redis("cache", 0));
        assert_eq!(Target::parse("redis://[::1]:7000/15"), redis("[::1]:7000", 15));
        assert_eq!(Target::parse("redis://unix:/run/r.sock"), redis("unix:/run/r.sock", 0));
        assert_eq!(Target::parse("redis://unix:/run/r.sock:/2"), redis("unix:/run/r.sock", 2));
        assert_eq!(Target::parse("redis://unix:/a@b"), redis("unix:/a@b", 0));
    }

    #[test]
    fn wrong_targets_say_what_is_wrong() {
        for (text, error) in [
            ("", TargetError::Empty),
            ("http://a", TargetError::Scheme),
            ("redis://", TargetError::NoHost),
            ("redis:///1", TargetError::NoHost),
            ("redis://unix:", TargetError::NoHost),
            ("redis://u:p@host", TargetError::Credentials),
            ("redis://host/x", TargetError::Database),
            ("redis://host/1/2", TargetError::Database),
            ("redis://host/-1", TargetError::Database),
            ("redis://host/+1", TargetError::Database),
            ("redis://host/4294967296", TargetError::Database),
            ("shared:", TargetError::Zone),
            ("shared:tls", TargetError::Zone),
            ("shared::1m", TargetError::Zone),
            ("shared:tls:", TargetError::Zone),
        ] {
            assert_eq!(Target::parse(text), Err(error), "{text}");
        }
    }
}
