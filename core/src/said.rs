//! What a server has said, fit for a log.

use core::fmt::{self, Write};

/// The most that is shown, in bytes.
const MAX_SHOWN: usize = 200;
/// The longest quoted word that is shown, in bytes: the name of a command. Anything longer may be
/// a key, a session or a password.
const MAX_QUOTED: usize = 16;
/// What Redis says before it repeats the arguments of a command that it does not know.
const ARGUMENTS: &[u8] = b", with args";

/// The text of an error reply. Servers repeat what they do not understand, and we send them
/// sessions and passwords: arguments and long quotations are left out, and what is not printable
/// is escaped.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a>(pub &'a [u8]);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.0.windows(ARGUMENTS.len()).position(|words| words == ARGUMENTS);
        let mut rest = self.0.get(..end.unwrap_or(self.0.len())).unwrap_or_default();
        let cut = end.is_some() || rest.len() > MAX_SHOWN;
        rest = rest.get(..MAX_SHOWN).unwrap_or(rest);
        let mut in_word = false;
        while let Some((&c, after)) = rest.split_first() {
            rest = after;
            match c {
                // Within a word it is an apostrophe.
                b'\'' | b'"' | b'`' if !in_word => {
                    let close = |&other: &u8| other == c || (c == b'`' && other == b'\'');
                    f.write_char(char::from(c))?;
                    let quoted = rest.iter().position(close).filter(|len| *len <= MAX_QUOTED);
                    let Some(len) = quoted else { return f.write_str("...") };
                    let (quoted, after) = rest.split_at(len.saturating_add(1));
                    write_printable(f, quoted)?;
                    rest = after;
                }
                c => write_printable(f, &[c])?,
            }
            in_word = c.is_ascii_alphanumeric();
        }
        if cut { f.write_str("...") } else { Ok(()) }
    }
}

fn write_printable(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|&c| match c {
        b' '..=b'~' => f.write_char(char::from(c)),
        _ => write!(f, "\\x{c:02x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn said(text: &str) -> std::string::String {
        Said(text.as_bytes()).to_string()
    }

    #[test]
    fn errors_are_shown_as_they_are() {
        for text in [
            "WRONGPASS invalid username-password pair or user is disabled.",
            "ERR Client sent AUTH, but no password is set",
            "NOPERM User nginx has no permissions to run the 'get' command",
            "READONLY You can't write against a read only replica.",
            "OOM command not allowed when used memory > 'maxmemory'.",
            "",
        ] {
            assert_eq!(said(text), text);
        }
        assert_eq!(said("ERR\u{1b}[0m\n"), "ERR\\x1b[0m\\x0a");
    }

    #[test]
    fn nothing_of_what_was_sent_is_shown() {
        for text in [
            "ERR unknown command 'AUTH', with args beginning with: 'nginx' 'secret' ",
            "ERR unknown command `AUTH`, with args beginning with: `nginx`, `secret`, ",
        ] {
            let shown = said(text);
            assert!(shown.starts_with("ERR unknown command "), "{shown}");
            assert!(shown.ends_with("..."), "{shown}");
            assert!(!shown.contains("secret"), "{shown}");
        }
        assert_eq!(said("ERR bad key 'tls:0123456789abcdef' here"), "ERR bad key '...");
        assert_eq!(said("ERR no end 'abc"), "ERR no end '...");
        assert_eq!(said(&"x".repeat(201)), "x".repeat(200) + "...");
    }
}
