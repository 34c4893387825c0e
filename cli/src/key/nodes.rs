//! `key nodes`: which nodes have which keys, by what their status pages show.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::each::each;
use crate::http::{Url, get};
use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::time;
use crate::tls::plain;

/// What asks for JSON, if the URL does not say what it is.
const ACCEPT: &str = "application/json";
/// The metric that shows keys.
const METRIC: &str = "nginx_ssl_session_key_info";

#[derive(clap::Args)]
pub struct Args {
    /// URL of the ssl_session_status of each node, or a file that has what was there
    #[arg(required = true)]
    node: Vec<String>,
    /// Verify https:// by these CAs [default: those of the system]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// How long an answer may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time::duration)]
    timeout: Duration,
}

/// What was named.
#[derive(PartialEq, Eq)]
enum Place {
    Page(Url),
    File(PathBuf),
}

impl Place {
    fn authority(&self) -> Option<&str> {
        match self {
            Place::Page(url) => Some(&url.authority),
            Place::File(_) => None,
        }
    }
}

/// A key of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    /// `http` or `stream`.
    block: String,
    id: String,
    /// The first one, which issues and seals.
    seals: bool,
}

/// A node, and what it shows.
struct Node {
    name: String,
    keys: std::result::Result<Vec<Key>, Fault>,
}

impl Node {
    fn of<'a>(&'a self, block: &'a str) -> impl Iterator<Item = &'a Key> {
        self.keys.iter().flatten().filter(move |key| key.block == block)
    }

    fn has(&self, block: &str, id: &str) -> bool {
        self.of(block).any(|key| key.id == id)
    }

    fn seals_with(&self, block: &str, id: &str) -> bool {
        self.of(block).any(|key| key.id == id && key.seals)
    }

    /// Whether it is to have the keys of that block: a node may have no `stream{}`, or no `http{}` with
    /// TLS. One without any key lacks them all.
    fn belongs(&self, block: &str) -> bool {
        let is_bare = self.keys.as_ref().is_ok_and(Vec::is_empty);
        is_bare || self.of(block).next().is_some()
    }
}

/// A key that nodes lack, and others seal with.
struct Missing {
    block: String,
    id: String,
    lacking: Vec<String>,
    sealing: Vec<String>,
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    let mut asked: Vec<(&str, Place)> = Vec::new();
    for node in &args.node {
        let place = match Url::parse(node) {
            Some(url) => Place::Page(url.map_err(|why| Fault::usage(format!("{node}: {why}")))?),
            None => Place::File(node.into()),
        };
        if asked.iter().any(|(_, other)| *other == place) {
            return Err(Fault::usage(format!("{node} is named twice")));
        }
        asked.push((node, place));
    }
    let nodes = each("asking", &asked, out, |(node, place)| {
        let text = match place {
            Place::Page(url) => get(url, ACCEPT, args.cacert.as_deref(), args.timeout),
            Place::File(file) => read(file),
        };
        let keys = text
            .and_then(|text| keys(&text).map_err(|why| Fault::unknown(format!("{node}: {why}"))));
        // Its host and port, if they say which one is meant.
        let name = place.authority().filter(|name| {
            let alike = asked.iter().filter(|(_, other)| other.authority() == Some(*name));
            alike.count() == 1
        });
        Node { name: name.unwrap_or(node).to_string(), keys }
    });
    out.progressed();

    let blocks: BTreeSet<&str> =
        nodes.iter().flat_map(|node| node.keys.iter().flatten()).map(|key| &*key.block).collect();
    let missing: Vec<_> = blocks.iter().flat_map(|block| missing(&nodes, block)).collect();
    let done = match nodes.iter().all(|node| node.keys.is_ok()) && !blocks.is_empty() {
        _ if !missing.is_empty() => Done::Finding,
        true => Done::Well,
        false => Done::Unknown,
    };
    if out.is_json() {
        out.value(&json_of(&nodes, &missing, done));
    } else {
        print(&nodes, &blocks, &missing, out);
    }
    Ok(done)
}

fn read(file: &Path) -> std::result::Result<String, Fault> {
    let read = std::fs::read(file);
    let read = read.map_err(|error| {
        Fault::unknown(format!("{}: {}: name a URL or a file", file.display(), plain(&error)))
    })?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// The keys that a status page shows, in JSON or for Prometheus, in their order.
fn keys(text: &str) -> std::result::Result<Vec<Key>, &'static str> {
    const OTHER: &str = "that is no ssl_session_status in JSON or for Prometheus";
    const OLD: &str = "the module there is older than 0.2 and shows no keys";
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let is_status = value.get("listens").is_some_and(Value::is_array);
        let Some(keys) = value.get("keys").and_then(Value::as_array).filter(|_| is_status) else {
            return Err(if is_status { OLD } else { OTHER });
        };
        let keys = keys.iter().map(|key| {
            let of = |name| key.get(name).and_then(Value::as_str);
            key_of(of("block"), of("key_id"), of("position"))
        });
        return keys.collect::<Option<_>>().ok_or(OTHER);
    }
    let mut keys = Vec::new();
    for line in text.lines() {
        let Some(labels) = line.strip_prefix(METRIC).and_then(|line| line.strip_prefix('{')) else {
            continue;
        };
        let labels = labels.split_once('}').map_or(labels, |(labels, _)| labels);
        let of = |name: &str| {
            labels.split(',').find_map(|label| {
                let value = label.trim().strip_prefix(name)?.strip_prefix("=\"")?;
                value.strip_suffix('"')
            })
        };
        keys.push(key_of(of("block"), of("key_id"), of("position")).ok_or(OTHER)?);
    }
    let shows = |metric: &str| text.lines().any(|line| line.starts_with(metric));
    match keys.is_empty() {
        false => Ok(keys),
        true if shows("nginx_ssl_session_build_info{") => Ok(keys),
        true if shows("nginx_ssl_session_") || shows("# HELP nginx_ssl_session_") => Err(OLD),
        true => Err(OTHER),
    }
}

fn key_of(block: Option<&str>, id: Option<&str>, position: Option<&str>) -> Option<Key> {
    let (block, id, position) = (block?, id?, position?);
    let is_id = id.len() == 2 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id.then(|| Key { block: block.into(), id: id.to_lowercase(), seals: position == "1" })
}

/// The keys of a block, in the order in which nodes show them.
fn ids(nodes: &[Node], block: &str) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    for key in nodes.iter().flat_map(|node| node.of(block)) {
        if !ids.contains(&key.id) {
            ids.push(key.id.clone());
        }
    }
    ids
}

fn missing(nodes: &[Node], block: &str) -> Vec<Missing> {
    let names = |is_so: &dyn Fn(&Node) -> bool| -> Vec<String> {
        nodes.iter().filter(|node| is_so(node)).map(|node| node.name.clone()).collect()
    };
    let of = |id: String| {
        let sealing = names(&|node| node.seals_with(block, &id));
        let lacking = names(&|node| node.belongs(block) && !node.has(block, &id));
        let is_missing = !sealing.is_empty() && !lacking.is_empty();
        is_missing.then(|| Missing { block: block.into(), id, lacking, sealing })
    };
    ids(nodes, block).into_iter().filter_map(of).collect()
}

fn print(nodes: &[Node], blocks: &BTreeSet<&str>, missing: &[Missing], out: &mut Out) {
    for block in blocks {
        let ids = ids(nodes, block);
        let heading = Cell::head(format!("{block}{{}}"));
        let head = std::iter::once(heading).chain(ids.iter().map(Cell::head));
        let mut rows: Vec<Vec<Cell>> = vec![head.collect()];
        for node in nodes.iter().filter(|node| node.keys.is_err() || node.belongs(block)) {
            let cell = |id: &String| match (node.has(block, id), node.seals_with(block, id)) {
                _ if node.keys.is_err() => Cell::new("?", Look::Bad),
                (_, true) => Cell::from("seals"),
                (true, _) => Cell::from("opens"),
                _ if missing.iter().any(|missing| missing.block == *block && missing.id == *id) => {
                    Cell::new("-", Look::Bad)
                }
                _ => Cell::new("-", Look::Dim),
            };
            rows.push(
                std::iter::once(Cell::from(&node.name)).chain(ids.iter().map(cell)).collect(),
            );
        }
        out.table(&rows);
        out.line("");
    }
    for (number, of) in (1usize..).zip(missing) {
        let (lacking, sealing) = (of.lacking.join(", "), of.sealing.join(", "));
        let text = format!("{number}. {lacking}: without key {}, by which {sealing} seals", of.id);
        out.lined(text, Look::Bad);
        let block = &of.block;
        out.line(format!(
            "   Sessions of that key are FOREIGN there: add its ssl_session_key to {block}{{}}."
        ));
    }
    for fault in nodes.iter().filter_map(|node| node.keys.as_ref().err()) {
        out.lined(fault, Look::Bad);
    }
    if blocks.is_empty() && nodes.iter().all(|node| node.keys.is_ok()) {
        out.line("No node has an ssl_session_key.");
    }
    let known = nodes.iter().all(|node| node.keys.is_ok()) && !blocks.is_empty();
    if !known || !missing.is_empty() {
        return;
    }
    for block in blocks {
        let ids = ids(nodes, block);
        let sealing: Vec<_> = ids
            .into_iter()
            .filter(|id| nodes.iter().any(|node| node.seals_with(block, id)))
            .collect();
        if sealing.len() > 1 {
            out.line(format!(
                "In {block}{{}} nodes seal by {}: a key is being changed.",
                sealing.join(" and ")
            ));
        }
    }
    out.lined(
        "Each node has the keys by which others seal, as far as key ids tell: one other key in 256 has the same.",
        Look::Good,
    );
}

fn json_of(nodes: &[Node], missing: &[Missing], done: Done) -> Value {
    let nodes = nodes.iter().map(|node| {
        let keys = node.keys.as_ref().ok().map(|keys| {
            let keys = keys
                .iter()
                .map(|key| json!({ "block": key.block, "key_id": key.id, "seals": key.seals }));
            keys.collect::<Vec<_>>()
        });
        let error = node.keys.as_ref().err().map(ToString::to_string);
        json!({ "node": node.name, "keys": keys, "error": error })
    });
    let missing = missing.iter().map(|of| {
        json!({ "block": of.block, "key_id": of.id, "nodes": of.lacking, "sealed_at": of.sealing })
    });
    json!({
        "ok": done == Done::Well, "nodes": nodes.collect::<Vec<_>>(),
        "missing": missing.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: &str, id: &str, seals: bool) -> Key {
        Key { block: block.into(), id: id.into(), seals }
    }

    fn node(name: &str, keys: &[(&str, &[&str])]) -> Node {
        let of = |(block, ids): &(&str, &[&str])| -> Vec<Key> {
            ids.iter().zip(0..).map(|(id, place)| key(block, id, place == 0)).collect()
        };
        Node { name: name.into(), keys: Ok(keys.iter().flat_map(of).collect()) }
    }

    fn found(nodes: &[Node], block: &str) -> Vec<(String, Vec<String>)> {
        missing(nodes, block).into_iter().map(|of| (of.id, of.lacking)).collect()
    }

    #[test]
    fn both_formats_show_the_same_keys() {
        let expected = Ok(vec![key("http", "57", true), key("http", "a3", false)]);
        let json = r#"{"version":2,"listens":[],"keys":[{"block":"http","key_id":"57","position":"1"},
            {"block":"http","key_id":"a3","position":"2"}],"build":null}"#;
        assert_eq!(keys(json), expected);
        let metrics = "# TYPE nginx_ssl_session_key_info gauge\n\
            nginx_ssl_session_key_info{block=\"http\",key_id=\"57\",position=\"1\"} 1\n\
            nginx_ssl_session_key_info{block=\"http\",key_id=\"a3\",position=\"2\"} 1\n\
            nginx_ssl_session_build_info{version=\"0.2.0\"} 1\n";
        assert_eq!(keys(metrics), expected);
    }

    #[test]
    fn what_shows_no_keys_is_no_node_without_keys() {
        assert_eq!(keys(r#"{"listens":[],"keys":[]}"#), Ok(Vec::new()));
        assert_eq!(keys("nginx_ssl_session_build_info{version=\"0.2.0\"} 1\n"), Ok(Vec::new()));
        for wrong in [
            "",
            "<html>",
            "{}",
            "[]",
            r#"{"keys":[]}"#,
            r#"{"listens":[]}"#,
            r#"{"listens":[],"keys":[{"block":"http","key_id":"xx","position":"1"}]}"#,
            "nginx_ssl_session_handshakes_total{} 1\n",
            "nginx_ssl_session_key_info{block=\"http\"} 1\n",
        ] {
            assert!(keys(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_change_of_the_key_costs_nothing_in_its_order() {
        let steps: [(&[&str], &[&str]); 5] = [
            (&["57"], &["57", "a3"]),
            (&["57", "a3"], &["57", "a3"]),
            (&["57", "a3"], &["a3", "57"]),
            (&["a3", "57"], &["a3", "57"]),
            (&["a3"], &["a3", "57"]),
        ];
        for (one, other) in steps {
            let nodes = [node("a", &[("http", one)]), node("b", &[("http", other)])];
            assert_eq!(found(&nodes, "http"), [], "{one:?} {other:?}");
        }
        let nodes = [node("a", &[("http", &["57"])]), node("b", &[("http", &["a3", "57"])])];
        assert_eq!(found(&nodes, "http"), [("a3".to_string(), vec!["a".to_string()])]);
    }

    #[test]
    fn blocks_are_looked_at_by_themselves() {
        let both = node("a", &[("http", &["57"]), ("stream", &["0c"])]);
        let nodes = [both, node("b", &[("http", &["57"])]), node("c", &[])];
        let c = || vec!["c".to_string()];
        assert_eq!(found(&nodes, "http"), [("57".to_string(), c())]);
        assert_eq!(found(&nodes, "stream"), [("0c".to_string(), c())], "b has no stream{{}}");
    }
}
