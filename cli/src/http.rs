//! One page of a server, over HTTP or HTTPS.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::connect::{Stream, secured, tcp};
use crate::out::Fault;
use crate::timed::{Deadline, Timed, is_late};
use crate::tls::{plain, split};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

type Result<T> = std::result::Result<T, Fault>;

/// Where a page is.
#[derive(Debug, PartialEq, Eq)]
pub struct Url {
    tls: bool,
    host: String,
    port: u16,
    target: String,
    /// Host and port as they were written.
    pub authority: String,
}

impl Url {
    /// Reads a URL; `None` if it begins as none.
    pub fn parse(text: &str) -> Option<std::result::Result<Self, &'static str>> {
        let (scheme, rest) = text.split_once("://")?;
        Some(match scheme {
            "http" => Self::of(rest, false),
            "https" => Self::of(rest, true),
            _ => Err("http:// or https:// expected"),
        })
    }

    fn of(rest: &str, tls: bool) -> std::result::Result<Self, &'static str> {
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err("no user and no password expected");
        }
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a path without spaces expected: write them as %20");
        }
        let (host, port) = split(authority, if tls { 443 } else { 80 })?;
        let target =
            if target.starts_with('/') { target.to_string() } else { format!("/{target}") };
        Ok(Url { tls, host, port, target, authority: authority.to_string() })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.target)
    }
}

/// What a server answers with status 200; the best of what it has is `accept`.
pub fn get(url: &Url, accept: &str, cacert: Option<&Path>, timeout: Duration) -> Result<String> {
    let name = url.to_string();
    let deadline = Deadline::after(timeout);
    let tcp = tcp(&name, &url.host, url.port, timeout)?;
    deadline.begin(timeout);
    let host = url.tls.then_some(&*url.host);
    let mut stream = secured(Timed::new(tcp, &deadline), host, cacert, &name)?;
    // In 1.0 an answer is never in chunks.
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\nAccept: {accept}\r\nUser-Agent: nginx-ssl-session/{}\r\n\r\n",
        url.target,
        url.authority,
        env!("CARGO_PKG_VERSION")
    );
    let answer = exchange(&mut *stream, request.as_bytes(), &name)?;
    body(&answer).map_err(|why| Fault::unknown(format!("{name}: {why}")))
}

fn exchange(stream: &mut dyn Stream, request: &[u8], name: &str) -> Result<Vec<u8>> {
    let fault = |error: std::io::Error| {
        if is_late(&error) {
            return Fault::unknown(format!("{name}: no answer in time: see --timeout"));
        }
        Fault::unknown(format!("{name}: connection lost: {}", plain(&error)))
    };
    stream.write_all(request).map_err(fault)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) => return Err(fault(error)),
        }
        if answer.len() > MAX_ANSWER {
            return Err(Fault::unknown(format!("{name}: the answer is too long")));
        }
    }
}

/// The body of an answer that has come to its end.
fn body(answer: &[u8]) -> std::result::Result<String, String> {
    const NOT_HTTP: &str = "what answers does not speak HTTP";
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or(NOT_HTTP)?;
    let (head, body) = answer.split_at_checked(end.saturating_add(4)).ok_or(NOT_HTTP)?;
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let line = lines.next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|line| line.get(2..5)).ok_or(NOT_HTTP)?;
    match status {
        "200" => {}
        "403" => return Err("it answers 403: allow this machine to ask there".into()),
        _ => return Err(format!("it answers {status}: is the path right?")),
    }
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    if length.is_some_and(|length| body.len() < length) {
        return Err("the answer is cut off".into());
    }
    Ok(String::from_utf8_lossy(body).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_a_host_and_a_path() {
        let url = |text: &str| Url::parse(text).unwrap().unwrap();
        assert_eq!(url("http://a:8080/b?c=d#e").to_string(), "http://a:8080/b?c=d");
        assert_eq!(url("https://[::1]").target, "/");
        assert_eq!((url("https://[::1]").port, url("http://a").port), (443, 80));
        assert_eq!(url("http://a?format=json").target, "/?format=json");
        assert!(Url::parse("a/b").is_none(), "a file");
        let wrong = ["ftp://a/", "http://", "http://u:p@a/", "http://a:b/", "http://a/b c"];
        assert!(wrong.iter().all(|wrong| Url::parse(wrong).unwrap().is_err()));
    }

    #[test]
    fn an_answer_is_whole_and_what_was_asked_for() {
        let seen = |answer: &str| body(answer.as_bytes());
        assert_eq!(seen("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Ok("ok".into()));
        assert_eq!(seen("HTTP/1.1 200 OK\r\n\r\nok"), Ok("ok".into()));
        for wrong in [
            "",
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 \r\n\r\n",
            "220 mail.example.com\r\n\r\n",
        ] {
            assert!(seen(wrong).is_err(), "{wrong}");
        }
    }
}
