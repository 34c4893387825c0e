//! How all subcommands speak: tables for people, JSON for programs, an exit status.

use std::cmp::Ordering;
use std::fmt::{self, Display, Write as _};
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

/// What the exit status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// All is well.
    Well,
    /// Something is not as it should be.
    Finding,
    /// It could not be found out.
    Unknown,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        ExitCode::from(match done {
            Done::Well => 0,
            Done::Finding => 1,
            // 2 is clap's, for wrong usage.
            Done::Unknown => 3,
        })
    }
}

/// Why a command has ended early: one line that says what to do.
#[derive(Debug)]
pub struct Fault {
    usage: bool,
    text: String,
}

impl Fault {
    /// The arguments are wrong.
    pub fn usage(text: impl Display) -> Self {
        Fault { usage: true, text: text.to_string() }
    }

    /// It could not be found out.
    pub fn unknown(text: impl Display) -> Self {
        Fault { usage: false, text: text.to_string() }
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What others have said may have lines of its own.
        let mut lines = self.text.split(['\r', '\n']).filter(|line| !line.is_empty());
        f.write_str(lines.next().unwrap_or_default())?;
        lines.try_for_each(|line| write!(f, " {line}"))
    }
}

/// What a subcommand comes to.
pub type Result = std::result::Result<Done, Fault>;

/// How a cell of a table looks on a terminal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// As it is.
    Plain,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
    /// Of less interest.
    Dim,
    /// A heading.
    Head,
}

/// A cell of a table.
#[derive(Clone)]
pub struct Cell {
    text: String,
    look: Look,
}

impl Cell {
    /// A cell.
    pub fn new(text: impl Display, look: Look) -> Self {
        Cell { text: printable(&text.to_string()), look }
    }

    /// One of a heading.
    pub fn head(text: impl Display) -> Self {
        Cell::new(text, Look::Head)
    }
}

impl<T: Display> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell::new(text, Look::Plain)
    }
}

/// What others have written may not move the cursor, nor turn the direction of what is around it
/// (Unicode's bidirectional controls).
fn printable(text: &str) -> String {
    let marks = ['\u{61c}', '\u{200e}', '\u{200f}'];
    let turns =
        |c| marks.contains(&c) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '?' } else { c }).collect()
}

/// Standard output and standard error.
pub struct Out {
    json: bool,
    colour: bool,
    progress: bool,
    text: String,
}

impl Out {
    /// With `json` nothing but JSON is written to standard output.
    pub fn new(json: bool) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Out {
            json,
            colour: !json && !plain && io::stdout().is_terminal(),
            progress: io::stderr().is_terminal(),
            text: String::new(),
        }
    }

    /// Whether programs are to read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person watches standard output.
    pub fn is_watched(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// What a program reads: one line.
    pub fn value(&mut self, value: &Value) {
        self.text.push_str(&value.to_string());
        self.text.push('\n');
    }

    /// Text for programs, as it is.
    pub fn raw(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// A line for people.
    pub fn line(&mut self, text: impl Display) {
        self.cell(&Cell::from(text), 0);
        self.text.push('\n');
    }

    /// A line of that look.
    pub fn lined(&mut self, text: impl Display, look: Look) {
        self.cell(&Cell::new(text, look), 0);
        self.text.push('\n');
    }

    /// Rows whose columns stand one below the other.
    pub fn table(&mut self, rows: &[Vec<Cell>]) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            // Nothing is left to stand below: no spaces at the end.
            let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or_default();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match column.cmp(&last) {
                    Ordering::Less => self.cell(cell, width.saturating_add(2)),
                    Ordering::Equal => self.cell(cell, 0),
                    Ordering::Greater => {}
                }
            }
            self.text.push('\n');
        }
    }

    fn cell(&mut self, cell: &Cell, width: usize) {
        let code = match cell.look {
            _ if !self.colour => "",
            Look::Plain => "",
            Look::Good => "\x1b[32m",
            Look::Bad => "\x1b[31m",
            Look::Dim => "\x1b[2m",
            Look::Head => "\x1b[1m",
        };
        let reset = if code.is_empty() { "" } else { "\x1b[0m" };
        let pad = width.saturating_sub(cell.text.chars().count());
        // A String takes whatever is written.
        let _ = write!(self.text, "{code}{}{reset}{:pad$}", cell.text, "");
    }

    /// How far it is, for a person who waits; the next one takes its place.
    pub fn progress(&self, text: impl Display) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    /// Ends that.
    pub fn progressed(&self) {
        self.progress("");
    }

    /// What is worth knowing and no result.
    pub fn note(&self, text: impl Display) {
        let _ = writeln!(io::stderr(), "nginx-ssl-session: {}", printable(&text.to_string()));
    }

    /// Says why the command has ended early.
    pub fn fault(&mut self, fault: &Fault) -> Exit {
        self.progressed();
        if self.json {
            self.value(&json!({ "error": fault.to_string() }));
        }
        self.note(fault);
        if fault.usage { Exit::Usage } else { Exit::Done(Done::Unknown) }
    }

    /// Writes what was said so far.
    pub fn flush(&mut self) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(std::mem::take(&mut self.text).as_bytes())?;
        stdout.flush()
    }
}

/// How the process ends.
pub enum Exit {
    /// A command has come to its end.
    Done(Done),
    /// Its arguments were wrong.
    Usage,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done(done) => done.into(),
            Exit::Usage => ExitCode::from(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_one_below_the_other() {
        let mut out = Out::new(false);
        let row = |cells: [&str; 3]| cells.map(Cell::from).to_vec();
        out.table(&[row(["a", "b", "c"]), row(["long", "", "d"]), row(["e", "f", ""])]);
        assert_eq!(out.text, "a     b  c\nlong     d\ne     f\n");
    }

    #[test]
    fn what_others_say_does_not_move_the_cursor() {
        let mut out = Out::new(false);
        out.line("a\u{1b}[2Jb\nc\u{202e}d");
        assert_eq!(out.text, "a?[2Jb?c?d\n");
        assert_eq!(Fault::unknown("one\r\ntwo\n").to_string(), "one two");
    }
}
