//! `store inspect`: what an entry says.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value, json};
use session_core::cache_key::CacheKey;
use session_core::hello::SessionId;
use session_core::key_ring::{KeyRing, Tls};
use session_core::origin::{Binding, Origin};
use zeroize::Zeroizing;

use super::link::Store;
use super::sealed;
use crate::crypto::OpenSsl;
use crate::key;
use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::session::Session;
use crate::time;

/// The largest file of a session that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// What is shown: a name for programs, one for people, and the value for both.
type Row = (&'static str, Value, String);

/// Which entry is meant.
enum Wanted {
    /// That of a session ID, and its use if that is known.
    Id(SessionId, Option<Tls>),
    /// The one that is called so.
    Name(Vec<u8>),
}

/// Runs it.
pub fn run(
    store: &mut Store,
    prefix: &str,
    name: &str,
    file: Option<&Path>,
    out: &mut Out,
) -> Result {
    let wanted = wanted(name)?;
    let mut ring = KeyRing::<OpenSsl>::new(OpenSsl);
    if let Some(file) = file {
        ring = key::ring(&key::load(file)?)?;
    }
    let (name, entry) = match &wanted {
        Wanted::Name(name) => (name.clone(), None),
        Wanted::Id(id, tls) => {
            let uses = [Tls::V13, Tls::UpTo12];
            let uses = uses.into_iter().filter(|one| tls.is_none_or(|tls| tls == *one));
            let Some(entry) = uses.into_iter().find_map(|tls| ring.known(id, tls)) else {
                let text =
                    "that key has not issued this session ID: the node has another ssl_session_key";
                return Ok(finding(text, out));
            };
            let key = CacheKey::new(prefix.as_bytes(), entry.name());
            let key = key.ok_or_else(|| Fault::usage("--prefix: at most 128 bytes"))?;
            (key.as_bytes().to_vec(), Some(entry))
        }
    };
    let gone = match (&wanted, file) {
        // What it is called is known to none but the key.
        (Wanted::Id(..), None) => {
            "there is no such entry that is not sealed: give --key, which names those that are"
        }
        _ => "there is no such entry: it has expired, was used up, or was never stored",
    };
    let Some(outside) = store.outside(&name)? else {
        return Ok(finding(gone, out));
    };
    let (kind, id) = sealed(&outside.begin);
    let shown = String::from_utf8_lossy(&name).into_owned();
    let mut rows: Vec<Row> = vec![
        ("entry", json!(shown), shown.clone()),
        ("bytes", json!(outside.size), outside.size.to_string()),
        (
            "ttl",
            json!(outside.ttl),
            outside.ttl.map_or("none: it never expires".into(), time::span),
        ),
        ("sealed", json!(kind == "sealed"), if kind == "sealed" { "yes" } else { kind }.into()),
    ];
    if let Some(id) = id {
        rows.push(("key_id", json!(format!("{id:02x}")), format!("{id:02x}")));
    }

    let Some(entry) = entry else {
        print(&rows, out);
        if !out.is_json() {
            out.lined(
                "To open it, name its session ID and --key: it is sealed for that ID.",
                Look::Dim,
            );
        }
        return Ok(Done::Well);
    };
    let Some(value) = store.get(&name)?.map(Zeroizing::new) else {
        return Ok(finding(gone, out));
    };
    let mut room = Zeroizing::new(Vec::new());
    let der = match ring.open(&entry, &value, &mut room) {
        Ok(der) => der,
        Err(error) => return Ok(finding(&format!("{shown}: {error}"), out)),
    };
    let Some(session) = Session::read(der) else {
        return Ok(finding(&format!("{shown}: no session, or give --key"), out));
    };
    rows.extend(said(&session));
    let mut done = Done::Well;
    if session.time.saturating_add(session.timeout) < time::now() {
        rows.push(("finding", json!("expired"), "expired: a clock is wrong".into()));
        done = Done::Finding;
    }
    print(&rows, out);
    Ok(done)
}

fn wanted(name: &str) -> std::result::Result<Wanted, Fault> {
    if let Some(id) = unhex(name).and_then(|id| SessionId::new(&id)) {
        return Ok(Wanted::Id(id, None));
    }
    let file = Path::new(name);
    if !file.is_file() {
        return Ok(Wanted::Name(name.as_bytes().to_vec()));
    }
    let expected =
        || Fault::usage(format!("{name}: a file of \"openssl s_client -sess_out\" expected"));
    let der = read(file).and_then(|text| unpem(&text)).ok_or_else(expected)?;
    let session = Session::read(&der).ok_or_else(expected)?;
    let tls = if session.is_tls13() { Tls::V13 } else { Tls::UpTo12 };
    let id = match &session.ticket {
        None => Some(&session.id),
        Some(ticket) => Some(ticket).filter(|ticket| session.is_tls13() && ticket.len() == 32),
    };
    let id = id.and_then(|id| SessionId::new(id)).ok_or_else(|| {
        Fault::usage(format!(
            "{name}: its session is in a stateless ticket, with the client and in no store"
        ))
    })?;
    Ok(Wanted::Id(id, Some(tls)))
}

/// 32 bytes in hexadecimal digits.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<_> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2).filter_map(|pair| match pair {
        [high, low] => u8::try_from((high << 4) | low).ok(),
        _ => None,
    });
    Some(pairs.collect()).filter(|_| digits.len() == 64)
}

/// The text of a file that is not too large.
fn read(file: &Path) -> Option<Zeroizing<String>> {
    let opened = File::open(file).ok()?;
    let len = opened.metadata().ok().map(|file| file.len()).filter(|&len| len <= MAX_FILE)?;
    let room = usize::try_from(len).ok()?.checked_add(64)?;
    // Neither this nor the body below ever grows: no secret is left in memory that was given back.
    let mut text = Zeroizing::new(String::with_capacity(room));
    opened.take(len).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What is in the first block of PEM.
fn unpem(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("-----BEGIN "));
    lines.next()?;
    let mut body = Zeroizing::new(String::with_capacity(text.len()));
    lines.take_while(|line| !line.starts_with("-----END ")).for_each(|line| body.push_str(line));
    openssl::base64::decode_block(&body).ok().map(Zeroizing::new)
}

/// What a session says, without its secrets.
fn said(session: &Session) -> Vec<Row> {
    let name = session.name.as_ref().map(|name| String::from_utf8_lossy(name).into_owned());
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_string();
    let ends = session.time.saturating_add(session.timeout);
    let moment = |at: i64| (json!(at), time::utc(at));
    let (made, made_text) = moment(session.time);
    let (ends, ends_text) = moment(ends);
    let mut rows: Vec<Row> = vec![
        ("protocol", json!(session.protocol()), session.protocol()),
        ("cipher", json!(session.suite()), session.suite()),
        ("made", made, made_text),
        ("expires", ends, ends_text),
        ("server_name", json!(name), name.clone().unwrap_or_else(|| "none".into())),
        ("client_certificate", json!(session.peer), yes(session.peer)),
        ("max_early_data", json!(session.early_data), session.early_data.to_string()),
    ];
    // TLS 1.3 knows no other ones.
    if !session.is_tls13() {
        rows.push(("extended_master_secret", json!(session.extended), yes(session.extended)));
    }
    let origin = session.data.as_deref().and_then(Origin::decode);
    let Some(origin) = origin else {
        rows.push(("origin", Value::Null, "none: of an older version of the module".into()));
        return rows;
    };
    let (at, at_text) = moment(origin.at);
    rows.push(("full_handshake", at, at_text));
    let chain = origin.chain_ends.map_or_else(|| "nothing was verified".into(), time::utc);
    rows.push(("chain_ends", json!(origin.chain_ends), chain));
    let Binding(binding) = origin.binding;
    let verified = origin.binding != Binding::NONE;
    let hex: String = binding.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = if verified { hex.clone() } else { "none: clients are asked for nothing".into() };
    rows.push(("binding", json!(verified.then_some(hex)), text));
    rows.push(("usable", json!(origin.usable), yes(origin.usable)));
    rows
}

fn print(rows: &[Row], out: &mut Out) {
    if out.is_json() {
        let object: Map<_, _> =
            rows.iter().map(|(name, value, _)| (name.to_string(), value.clone())).collect();
        return out.value(&Value::Object(object));
    }
    let rows = rows
        .iter()
        .map(|(name, _, text)| vec![Cell::head(name.replace('_', " ")), Cell::from(text)]);
    out.table(&rows.collect::<Vec<_>>());
}

fn finding(text: &str, out: &mut Out) -> Done {
    if out.is_json() {
        out.value(&json!({ "finding": text }));
    } else {
        out.lined(text, Look::Bad);
    }
    Done::Finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_is_64_digits() {
        assert_eq!(unhex(&"0f".repeat(32)), Some(vec![15; 32]));
        for wrong in ["", "0f", &"0g".repeat(32), &"0".repeat(63), &"0".repeat(66)] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn pem_is_read_between_its_lines() {
        let text = "x\n-----BEGIN SSL SESSION PARAMETERS-----\nMAA=\n-----END SSL SESSION PARAMETERS-----\n";
        assert_eq!(unpem(text).as_deref(), Some(&vec![0x30, 0]));
        assert_eq!(unpem("MAA="), None);
    }
}
