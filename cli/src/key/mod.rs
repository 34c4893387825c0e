//! `key`: files for `ssl_session_key`, and which nodes have which of them.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use openssl::memcmp;
use openssl::rand::rand_bytes;
use serde_json::json;
use session_core::key_ring::{KEY_LEN, KeyRing, Tls};
use zeroize::Zeroizing;

use crate::crypto::OpenSsl;
use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::tls::plain;

mod nodes;

/// The mode of a new file: for its owner alone.
const MODE: u32 = 0o600;
/// What lets others than owner and group read a file, and write to it.
const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;

/// Make and compare files for ssl_session_key; which nodes have which? No key is ever shown
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key of 32 random bytes, for its owner alone; an existing file is left as it is
    New {
        /// File to make
        file: PathBuf,
    },
    /// Show key id and mode of files; one that everybody can read or change is a finding
    Show {
        #[arg(required = true)]
        file: Vec<PathBuf>,
    },
    /// Are these the same key? Takes copies of the file, or key ids such as 5c
    Check {
        /// A file, or a key id of two hexadecimal digits
        #[arg(required = true, num_args = 2..)]
        key: Vec<PathBuf>,
    },
    /// Which nodes have which keys? One that lacks a key by which another seals is a finding
    Nodes(nodes::Args),
}

/// A key. It is wiped when it is dropped, and no copy is left behind when it is passed on.
pub type Key = Box<Zeroizing<[u8; KEY_LEN]>>;

/// A ring for one key.
pub fn ring(key: &Key) -> std::result::Result<KeyRing<OpenSsl>, Fault> {
    let mut ring = KeyRing::new(OpenSsl);
    ring.add(key).map_err(|_| Fault::unknown("no memory for the key"))?;
    Ok(ring)
}

/// The key id of a key, with which all that it issues begins.
fn id_of(key: &Key) -> std::result::Result<u8, Fault> {
    let issued =
        ring(key)?.issue(Tls::V13).map_err(|_| Fault::unknown("OpenSSL gives no random bytes"))?;
    let [id, ..] = issued;
    Ok(id)
}

/// What is wrong with a file that can be read.
type Wrong = String;

/// Reads the key of a file, and the file's mode.
fn read(file: &Path) -> std::result::Result<(std::result::Result<Key, Wrong>, u32), Fault> {
    let fault = |error: std::io::Error| {
        Fault::unknown(format!(
            "{}: {}: name a file that you may read",
            file.display(),
            plain(&error)
        ))
    };
    let mut opened = File::open(file).map_err(fault)?;
    let mode = opened.metadata().map_err(fault)?.mode() & 0o7777;
    // One more than there should be.
    let mut bytes = Zeroizing::new([0; KEY_LEN + 1]);
    let mut len = 0;
    while let Some(rest) = bytes.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match opened.read(rest) {
            Ok(0) => break,
            Ok(read) => len = len.saturating_add(read),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(fault(error)),
        }
    }
    let key = bytes.get(..KEY_LEN).filter(|_| len == KEY_LEN).map(|bytes| {
        let mut key = Key::default();
        key.copy_from_slice(bytes);
        key
    });
    let len = if len > KEY_LEN { "more than 32".to_string() } else { len.to_string() };
    Ok((key.ok_or_else(|| format!("{len} bytes, 32 expected: make one by key new")), mode))
}

/// The key of a file, for other commands.
pub fn load(file: &Path) -> std::result::Result<Key, Fault> {
    let (key, _) = read(file)?;
    key.map_err(|wrong| Fault::unknown(format!("{}: {wrong}", file.display())))
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    match &args.command {
        Command::New { file } => new(file, out),
        Command::Show { file } => show(file, out),
        Command::Check { key } => check(key, out),
        Command::Nodes(args) => nodes::run(args, out),
    }
}

fn new(file: &Path, out: &mut Out) -> Result {
    let mut key = Key::default();
    rand_bytes(&mut **key).map_err(|_| Fault::unknown("OpenSSL gives no random bytes"))?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(file);
    let mut opened = opened.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Fault::usage(format!(
            "{} exists and is left as it is: name another file",
            file.display()
        )),
        _ => Fault::unknown(format!("{}: {}", file.display(), plain(&error))),
    })?;
    let written = opened.write_all(&**key).and_then(|()| opened.sync_all());
    if let Err(error) = written {
        // Half a key is none.
        let _ = std::fs::remove_file(file);
        return Err(Fault::unknown(format!("{}: {}", file.display(), plain(&error))));
    }
    let id = format!("{:02x}", id_of(&key)?);
    if out.is_json() {
        out.value(&json!({ "file": file.display().to_string(), "key_id": id, "mode": "0600" }));
    } else {
        out.line(format!("{}: key id {id}, mode 0600", file.display()));
    }
    Ok(Done::Well)
}

fn show(files: &[PathBuf], out: &mut Out) -> Result {
    let mut done = Done::Well;
    let mut rows = vec![["file", "key id", "mode", ""].map(Cell::head).to_vec()];
    let mut values = Vec::new();
    for file in files {
        let (key, mode) = read(file)?;
        let mut wrong = Vec::new();
        let id = match key {
            Ok(key) => Some(format!("{:02x}", id_of(&key)?)),
            Err(why) => {
                wrong.push(why);
                None
            }
        };
        let others = [(OTHERS_READ, "read"), (OTHERS_WRITE, "change")];
        let others: Vec<_> =
            others.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, what)| *what).collect();
        if !others.is_empty() {
            let what = others.join(" and ");
            wrong.push(format!("everybody can {what} it: chmod 600 {}", file.display()));
        }
        if !wrong.is_empty() {
            done = Done::Finding;
        }
        let (name, mode) = (file.display().to_string(), format!("{mode:04o}"));
        values.push(json!({ "file": name, "key_id": id, "mode": mode, "findings": wrong }));
        rows.push(vec![
            Cell::from(name),
            Cell::from(id.unwrap_or_else(|| "-".into())),
            Cell::from(mode),
            Cell::new(wrong.join("; "), Look::Bad),
        ]);
    }
    if out.is_json() {
        out.value(&json!({ "ok": done == Done::Well, "keys": values }));
    } else {
        out.table(&rows);
    }
    Ok(done)
}

/// What was named to be compared.
struct Named {
    name: String,
    id: u8,
    key: Option<Key>,
}

fn check(keys: &[PathBuf], out: &mut Out) -> Result {
    let mut named: Vec<Named> = Vec::new();
    for path in keys {
        let name = path.display().to_string();
        let is_id = name.len() == 2 && name.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = u8::from_str_radix(&name, 16).ok().filter(|_| is_id && !path.exists());
        named.push(match id {
            Some(id) => Named { name, id, key: None },
            None => {
                let key = load(path)?;
                Named { name, id: id_of(&key)?, key: Some(key) }
            }
        });
    }
    let differs = |one: &Named, other: &Named| match (&one.key, &other.key) {
        (Some(one), Some(other)) => !memcmp::eq(&***one, &***other),
        _ => one.id != other.id,
    };
    // By an id alone files of two keys may look alike: if there is a file, all are compared with it.
    let first = named.iter().find(|named| named.key.is_some()).or(named.first());
    let other = |named: &Named| first.is_some_and(|first| differs(first, named));
    let same = !named.iter().any(other);
    let by_id = named.iter().any(|named| named.key.is_none());
    if out.is_json() {
        let keys = named.iter().map(|named| {
            json!({ "key": named.name, "key_id": format!("{:02x}", named.id), "same": !other(named) })
        });
        out.value(&json!({ "ok": same, "by_key_id": by_id, "keys": keys.collect::<Vec<_>>() }));
    } else {
        let mut rows = vec![["key", "key id", ""].map(Cell::head).to_vec()];
        rows.extend(named.iter().map(|named| {
            let look =
                if other(named) { Cell::new("another key", Look::Bad) } else { Cell::from("") };
            vec![Cell::from(&named.name), Cell::from(format!("{:02x}", named.id)), look]
        }));
        out.table(&rows);
        match (same, by_id) {
            (true, false) => out.lined("the same key", Look::Good),
            (true, true) => {
                out.lined("the same key id, as one other key in 256 has it", Look::Good)
            }
            (false, _) => {
                out.lined("not the same: copy one of them to all servers, and reload", Look::Bad)
            }
        }
    }
    Ok(if same { Done::Well } else { Done::Finding })
}
