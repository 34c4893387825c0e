//! Lines of an access log, read by the `log_format` that they were written by.

/// A piece of a format.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(String),
}

/// A format.
#[derive(Debug)]
pub struct Format {
    pieces: Vec<Piece>,
}

impl Format {
    /// Reads a format: the text itself, the quoted strings of a configuration, or a whole
    /// `log_format` of one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = unquoted(text.trim());
        let mut pieces: Vec<Piece> = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let at = rest.find('$').unwrap_or(rest.len());
            let (before, after) = rest.split_at_checked(at).unwrap_or((rest, ""));
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            let Some(name) = after.strip_prefix('$') else { break };
            let (name, after) = match name.strip_prefix('{').and_then(|name| name.split_once('}')) {
                Some(braced) => braced,
                None => {
                    let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                    name.split_at_checked(end.unwrap_or(name.len())).unwrap_or((name, ""))
                }
            };
            if let Some(Piece::Variable(last)) = pieces.last() {
                return Err(format!(
                    "${last} and ${name} stand side by side and cannot be told apart"
                ));
            }
            pieces.push(Piece::Variable(name.into()));
            rest = after;
        }
        Ok(Format { pieces })
    }

    /// Whether the format has a variable.
    pub fn has(&self, name: &str) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Variable(found) if found == name))
    }

    /// Reads a line: `each` is called with the name and the value of each variable. Whether the line
    /// is of this format.
    pub fn read<'a>(&self, line: &'a str, mut each: impl FnMut(&str, &'a str)) -> bool {
        let mut rest = line;
        let mut pieces = self.pieces.iter().peekable();
        while let Some(piece) = pieces.next() {
            match piece {
                Piece::Text(text) => match rest.strip_prefix(text.as_str()) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Piece::Variable(name) => {
                    let end = match pieces.peek() {
                        Some(Piece::Text(text)) => rest.find(text.as_str()),
                        _ => Some(rest.len()),
                    };
                    let Some((value, after)) = end.and_then(|end| rest.split_at_checked(end))
                    else {
                        return false;
                    };
                    each(name, value);
                    rest = after;
                }
            }
        }
        rest.is_empty()
    }
}

/// The text of a `log_format`, without its name and the quotes.
fn unquoted(text: &str) -> String {
    let mut rest = text;
    if let Some(after) = rest.strip_prefix("log_format") {
        // Its name comes first, and after it there may be escape=json.
        let strings = after.find(['\'', '"']).and_then(|at| after.get(at..));
        rest = strings.unwrap_or_else(|| after.trim());
    }
    if !rest.starts_with(['\'', '"']) {
        return rest.into();
    }
    let mut out = String::new();
    let mut quote = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', Some(_)) => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(c @ ('\'' | '"' | '\\')) => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => {}
            },
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => out.push(c),
            ('\'' | '"', None) => quote = Some(c),
            (';', None) => break,
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(format: &str, line: &str) -> Option<Vec<String>> {
        let mut values = Vec::new();
        let format = Format::parse(format).unwrap();
        format.read(line, |name, value| values.push(format!("{name}={value}"))).then_some(values)
    }

    #[test]
    fn variables_end_where_the_text_after_them_begins() {
        let read = values("$a [$time_local] x=$b", "1 [26/Nov/2026:10:14:03 +0000] x=-");
        assert_eq!(read.unwrap(), ["a=1", "time_local=26/Nov/2026:10:14:03 +0000", "b=-"]);
        assert_eq!(values("$a x", "1 y"), None);
        assert_eq!(values("x$a", "y1"), None);
        assert_eq!(values("${a}b", "1b").unwrap(), ["a=1"]);
    }

    #[test]
    fn a_format_may_be_as_the_configuration_has_it() {
        let quoted = "log_format main escape=json '{\"p\":\"$ssl_protocol\",'\n  '\"r\":\"$r\"}';";
        let read = values(quoted, "{\"p\":\"TLSv1.3\",\"r\":\".\"}");
        assert_eq!(read.unwrap(), ["ssl_protocol=TLSv1.3", "r=."]);
        assert_eq!(values("'$a '  '$b'", "1 2").unwrap(), ["a=1", "b=2"]);
        assert_eq!(values("'it\\'s $a'", "it's 1").unwrap(), ["a=1"]);
    }

    #[test]
    fn variables_that_cannot_be_told_apart_are_refused() {
        assert!(Format::parse("$a$b").is_err());
    }
}
