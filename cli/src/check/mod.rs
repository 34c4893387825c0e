//! `check`: who resumes whose sessions.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use openssl::ssl::SslVersion;
use serde_json::{Value, json};

use crate::each::each;
use crate::out::{Cell, Done, Fault, Look, Out, Result};
use crate::time;
use crate::tls::{Client, Failure, Kept, Talk, Trust, Visit, resolve, split};
use judge::{Facts, Failed, Finding, KeyId, Kind, Node, Pair, Version, judge, short};

mod judge;
mod replay;

/// The port of a node that is named without one.
const PORT: u16 = 443;
/// How often a session of a pair is offered that is not resumed.
const TRIES: usize = 3;
/// How long a store may take for a new session before it is asked for.
const STORED: Duration = Duration::from_millis(300);

/// Make sessions at each node and offer them to each: who resumes whose, and why not
#[derive(clap::Args)]
pub struct Args {
    /// host[:port] of each server itself, and not of a load balancer
    #[arg(required = true)]
    node: Vec<String>,
    /// Server name that is asked for [default: the first NODE that is a name]
    #[arg(long, value_name = "SNI")]
    name: Option<String>,
    /// Verify the nodes by these CAs, and the server name [default: they are not verified]
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Certificate to show, where clients are verified
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The most that a visit may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time::duration)]
    timeout: Duration,
    /// Send no "HEAD /" after handshakes, as for stream{}
    #[arg(long)]
    no_request: bool,
    /// Send a GET in early data several times, with one ticket: is it accepted twice?
    #[arg(long)]
    replay: bool,
    /// Path of that GET, which must be harmless
    #[arg(long, value_name = "PATH", default_value = "/", requires = "replay", value_parser = target)]
    path: String,
    /// Check again every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

/// Runs it.
pub fn run(args: &Args, out: &mut Out) -> Result {
    let fleet = Fleet::new(args, out)?;
    loop {
        let report = fleet.report(args, out)?;
        let Some(seconds) = args.watch else {
            report.print(&fleet, out);
            return Ok(report.done());
        };
        if out.is_watched() {
            // Home, and what is below it is gone.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), b"\x1b[H\x1b[J");
        }
        if !out.is_json() {
            out.lined(time::utc(time::now()), Look::Dim);
        }
        report.print(&fleet, out);
        out.flush().map_err(Fault::unknown)?;
        thread::sleep(Duration::from_secs(seconds));
    }
}

/// A node, as it was named.
struct Place {
    label: String,
    node: String,
    /// One, or one of each family, of which the first that lets connect counts.
    addresses: std::result::Result<Vec<SocketAddr>, Failure>,
}

/// What is looked at, and by which clients.
struct Fleet {
    places: Vec<Place>,
    name: Option<String>,
    verified: bool,
    clients: [Client; 2],
}

/// What was seen.
struct Report {
    nodes: Vec<Node>,
    pairs: Vec<Pair>,
    findings: Vec<Finding>,
    reasons: Vec<Vec<&'static str>>,
    replays: Vec<replay::Replay>,
    replayed: bool,
}

/// What one node has given in one version of TLS.
type Survey = std::result::Result<Visit, Failure>;

impl Fleet {
    fn new(args: &Args, out: &Out) -> std::result::Result<Self, Fault> {
        let hosts: Vec<_> = args.node.iter().map(|node| split(node, PORT)).collect();
        let mut places: Vec<Place> = Vec::new();
        for (node, host) in args.node.iter().zip(&hosts) {
            let (host, port) =
                host.as_ref().map_err(|why| Fault::usage(format!("{node}: {why}")))?;
            let found = resolve(host, *port);
            let addresses = found.map(|found| {
                let mut addresses: Vec<SocketAddr> = Vec::new();
                for address in &found {
                    if !addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                        addresses.push(*address);
                    }
                }
                if let (true, Some(first)) = (addresses.len() < found.len(), found.first()) {
                    let ip = first.ip();
                    out.note(format!(
                        "{node} has several addresses, {ip} is taken: name each as a NODE"
                    ));
                }
                addresses
            });
            let node = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
            if places.iter().any(|place| place.node == node) {
                return Err(Fault::usage(format!("{node} is named twice")));
            }
            places.push(Place { label: label(places.len()), node, addresses });
        }
        let mut hosts = hosts.iter().flatten().map(|(host, _)| host.clone());
        let first = hosts.clone().next().unwrap_or_default();
        let name = args.name.clone().or_else(|| hosts.find(|host| host.parse::<IpAddr>().is_err()));
        let host = name
            .clone()
            .unwrap_or_else(|| if first.contains(':') { format!("[{first}]") } else { first });
        let trust = Trust {
            cacert: args.cacert.as_deref(),
            cert: args.cert.as_deref(),
            key: args.key.as_deref(),
        };
        let client = |version| {
            Client::new(version, name.as_deref(), &host, args.timeout, trust).map_err(Fault::usage)
        };
        let clients = [client(SslVersion::TLS1_2)?, client(SslVersion::TLS1_3)?];
        Ok(Fleet { places, name, verified: args.cacert.is_some(), clients })
    }

    fn client(&self, version: Version) -> &Client {
        let [tls12, tls13] = &self.clients;
        match version {
            Version::V12 => tls12,
            Version::V13 => tls13,
        }
    }

    fn visit(
        &self,
        place: usize,
        version: Version,
        session: Option<&Kept>,
        talk: Talk<'_>,
    ) -> Survey {
        let place = self.places.get(place).ok_or(Failure::Closed)?;
        let mut last = Failure::Name("none".into());
        for address in place.addresses.as_ref().map_err(Clone::clone)? {
            match self.client(version).visit(*address, session, talk) {
                Err(failure @ (Failure::Connect(_) | Failure::NoConnection)) => last = failure,
                other => return other,
            }
        }
        Err(last)
    }

    fn report(&self, args: &Args, out: &Out) -> std::result::Result<Report, Fault> {
        let talk = |version| match (args.no_request, version) {
            (false, _) => Talk::Request,
            // Its sessions come with the handshake.
            (true, Version::V12) => Talk::Nothing,
            (true, Version::V13) => Talk::Tickets,
        };
        let count = self.places.len();
        let places: Vec<_> =
            (0..count).flat_map(|place| Version::ALL.map(|version| (place, version))).collect();
        let surveys = each("visiting", &places, out, |&(place, version)| {
            self.visit(place, version, None, talk(version))
        });
        let spoken = |place, version| {
            let mut both = places.iter().zip(&surveys);
            both.any(|(at, survey)| *at == (place, version) && survey.is_ok())
        };

        let mut pairs = Vec::new();
        for version in Version::ALL {
            for from in 0..count {
                for to in 0..count {
                    pairs.push(Pair { from, to, version, tries: 0, resumed: 0, failure: None });
                }
            }
        }
        let mut made: Vec<(usize, Visit)> = Vec::new();
        for round in 0..TRIES {
            let again: Vec<_> = pairs
                .iter()
                .enumerate()
                .filter(|(_, pair)| {
                    spoken(pair.from, pair.version) && spoken(pair.to, pair.version)
                })
                .filter(|(_, pair)| {
                    round == 0 || (pair.failure.is_none() && pair.resumed < pair.tries)
                })
                .map(|(index, pair)| (index, pair.clone()))
                .collect();
            if again.is_empty() {
                break;
            }
            let new = each("making sessions", &again, out, |(_, pair)| {
                self.visit(pair.from, pair.version, None, talk(pair.version))
            });
            thread::sleep(STORED);
            let offers: Vec<_> = again.iter().zip(&new).collect();
            let offered = each("offering them", &offers, out, |((_, pair), visit)| {
                let failed = |offering, why| Failed { offering, why };
                let made = visit.as_ref().map_err(|why| failed(false, why.clone()))?;
                match made.given.last() {
                    // Nothing to offer: a full handshake is what it comes to.
                    None => Ok(false),
                    Some(kept) => self
                        .visit(pair.to, pair.version, Some(kept), Talk::Nothing)
                        .map(|visit| visit.reused)
                        .map_err(|why| failed(true, why)),
                }
            });
            for ((index, pair), resumed) in again.iter().zip(offered) {
                let Some(of) = pairs.get_mut(*index) else { continue };
                of.tries = pair.tries.saturating_add(1);
                match resumed {
                    Ok(resumed) => of.resumed = of.resumed.saturating_add(usize::from(resumed)),
                    Err(failed) => of.failure = Some(failed),
                }
            }
            let visits = again.iter().zip(new);
            made.extend(visits.filter_map(|((_, pair), visit)| Some((pair.from, visit.ok()?))));
        }

        let mut surveys = surveys.into_iter();
        let mut nodes = Vec::new();
        for (place, at) in self.places.iter().enumerate() {
            let mut next = || surveys.next().unwrap_or(Err(Failure::Closed));
            let (tls12, tls13) = (next(), next());
            let seen = [&tls12, &tls13].into_iter().flatten();
            let visits: Vec<_> = seen
                .chain(made.iter().filter(|(from, _)| *from == place).map(|(_, v)| v))
                .collect();
            let facts = [tls12.as_ref(), tls13.as_ref()]
                .map(|survey| survey.map(|first| facts(first, &visits)).map_err(Clone::clone));
            // The one that took the least time is the one to believe.
            let ahead = visits.iter().filter_map(|visit| visit.ahead).max();
            nodes.push(Node { label: at.label.clone(), facts, key: key_of(&visits), ahead });
        }
        let (mut findings, reasons) = judge(&nodes, &pairs);
        let mut replays = Vec::new();
        if args.replay {
            replays = replay::run(self, &nodes, &args.path, talk(Version::V13), out);
            findings.extend(replay::judge(&replays));
        }
        out.progressed();
        Ok(Report { nodes, pairs, findings, reasons, replays, replayed: args.replay })
    }
}

/// Reads the path of a request (RFC 9112, section 3.2.1).
fn target(text: &str) -> std::result::Result<String, &'static str> {
    let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_path { Ok(text.into()) } else { Err("a path such as /health expected") }
}

/// The letter of a node.
fn label(place: usize) -> String {
    let letters = 'A'..='Z';
    letters
        .clone()
        .nth(place)
        .map_or_else(|| place.saturating_add(1).to_string(), |letter| letter.to_string())
}

/// What a node is like, by its first visit; its tickets by all.
fn facts(first: &Visit, visits: &[&Visit]) -> Facts {
    let is_tls13 = first.own.is_tls13();
    let given = visits.iter().flat_map(|visit| &visit.given).map(|kept| &kept.says);
    let names = given
        .filter(|session| session.is_tls13() == is_tls13)
        .filter_map(|session| session.ticket.as_ref()?.get(..16).map(<[u8]>::to_vec));
    let newest = first.given.last().map(|kept| &kept.says);
    let kind = newest.map_or(Kind::None, |session| match (&session.ticket, is_tls13) {
        (Some(ticket), true) if ticket.len() == 32 => Kind::Stateful,
        (Some(_), _) => Kind::Stateless,
        (None, _) if session.id.len() == 32 => Kind::Stateful,
        (None, _) if session.id.is_empty() => Kind::None,
        (None, _) => Kind::OtherId,
    });
    Facts {
        leaf: first.leaf.clone().unwrap_or_default(),
        suite: first.own.suite(),
        extended: first.own.extended,
        kind,
        tickets: if kind == Kind::Stateless { names.collect() } else { BTreeSet::new() },
        lifetime: newest.and_then(|session| session.hint),
        early_data: newest.map_or(0, |session| session.early_data),
        status: first.status,
    }
}

/// The key by which a node issues session IDs.
fn key_of(visits: &[&Visit]) -> KeyId {
    let given = visits.iter().flat_map(|visit| &visit.given).map(|kept| &kept.says);
    let ids = given.filter_map(|session| match &session.ticket {
        Some(ticket) => (session.is_tls13() && ticket.len() == 32).then_some(ticket),
        None => (session.id.len() == 32).then_some(&session.id),
    });
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    ids.dedup();
    let begin: BTreeSet<u8> = ids.iter().filter_map(|id| id.first().copied()).collect();
    match (ids.len(), begin.len(), begin.first()) {
        (2.., 1, Some(&id)) => KeyId::Of(id),
        (2.., _, _) => KeyId::None,
        _ => KeyId::Unknown,
    }
}

impl Report {
    fn done(&self) -> Done {
        let spoken =
            self.nodes.iter().any(|node| node.facts.iter().any(std::result::Result::is_ok));
        let both = |pair: &Pair| {
            let mut both = [pair.from, pair.to].into_iter().filter_map(|at| self.nodes.get(at));
            both.all(|node| node.in_version(pair.version).is_ok())
        };
        // Whatever was found: all is well only where each pair was seen to be.
        let good = self.pairs.iter().filter(|pair| both(pair)).all(Pair::is_good);
        match self.findings.is_empty() && good {
            _ if !spoken => Done::Unknown,
            true => Done::Well,
            false => Done::Finding,
        }
    }

    fn print(&self, fleet: &Fleet, out: &mut Out) {
        if out.is_json() {
            return out.value(&self.json(fleet));
        }
        let name = fleet.name.as_deref().unwrap_or("none");
        let verified =
            if fleet.verified { "" } else { ", certificates are not verified (--cacert)" };
        out.lined(format!("server name {name}{verified}"), Look::Dim);
        out.line("");
        self.print_nodes(fleet, out);
        for version in Version::ALL {
            if self.nodes.iter().any(|node| node.in_version(version).is_ok()) {
                out.line("");
                self.print_matrix(version, out);
            }
        }
        if !self.replays.is_empty() {
            out.line("");
            self.replays.iter().for_each(|replay| replay.print(fleet, out));
        } else if self.replayed {
            out.line("");
            out.line("early data: no node takes any");
        }
        out.line("");
        for (number, finding) in (1usize..).zip(&self.findings) {
            let nodes = finding.nodes.iter().filter_map(|place| fleet.places.get(*place));
            let nodes: Vec<_> = nodes.map(|place| place.label.as_str()).collect();
            let versions: Vec<_> = finding.versions.iter().map(|version| version.name()).collect();
            let (nodes, versions) = (nodes.join(" "), versions.join(", "));
            out.lined(format!("{number}. {nodes} ({versions}): {}", finding.message), Look::Bad);
            out.line(format!("   {}", finding.advice));
        }
        match (self.done(), self.nodes.len()) {
            (Done::Well, 1) => out.lined("It resumes its own sessions.", Look::Good),
            (Done::Well, count) => {
                out.lined(format!("All {count} nodes resume each other's sessions."), Look::Good);
            }
            _ => {}
        }
    }

    fn print_nodes(&self, fleet: &Fleet, out: &mut Out) {
        let titles =
            ["", "node", "TLS 1.2", "TLS 1.3", "certificate", "key id", "lifetime", "early data"];
        let mut rows = vec![titles.map(Cell::head).to_vec()];
        for (node, place) in self.nodes.iter().zip(&fleet.places) {
            let [tls12, tls13] = &node.facts;
            let any = tls13.as_ref().or(tls12.as_ref()).ok();
            let dash = || "-".to_string();
            let key = match node.key {
                KeyId::Of(id) => format!("{id:02x}"),
                KeyId::None => "none".into(),
                KeyId::Unknown => "-".into(),
            };
            let tls13_facts = tls13.as_ref().ok().filter(|facts| facts.kind != Kind::None);
            let early = tls13_facts.map_or_else(dash, |facts| {
                if facts.early_data > 0 { "on".into() } else { "off".into() }
            });
            let lifetime = tls13_facts.and_then(|facts| facts.lifetime);
            rows.push(vec![
                Cell::new(&node.label, Look::Head),
                Cell::from(&place.node),
                kind(tls12),
                kind(tls13),
                Cell::from(any.map_or_else(dash, |facts| short(&facts.leaf))),
                Cell::from(key),
                Cell::from(lifetime.map_or_else(dash, time::span)),
                Cell::from(early),
            ]);
        }
        out.table(&rows);
    }

    fn print_matrix(&self, version: Version, out: &mut Out) {
        let heading = format!("{}: sessions made at, offered to", version.name());
        out.line(heading);
        let labels = self.nodes.iter().map(|node| Cell::head(&node.label));
        let mut rows = vec![std::iter::once(Cell::from("")).chain(labels).collect::<Vec<_>>()];
        for (from, node) in self.nodes.iter().enumerate() {
            let of = self.pairs.iter().filter(|pair| pair.version == version && pair.from == from);
            let cells = of.map(|pair| match (pair.tries, pair.resumed) {
                (0, _) => Cell::new("-", Look::Dim),
                _ if pair.failure.is_some() => Cell::new("failed", Look::Bad),
                (tries, resumed) if tries == resumed => Cell::new("yes", Look::Good),
                (_, 0) => Cell::new("no", Look::Bad),
                (tries, resumed) => Cell::new(format!("{resumed}/{tries}"), Look::Bad),
            });
            rows.push(std::iter::once(Cell::head(&node.label)).chain(cells).collect());
        }
        out.table(&rows);
    }

    fn json(&self, fleet: &Fleet) -> Value {
        let label = |place: usize| fleet.places.get(place).map(|place| place.node.as_str());
        let facts = |facts: &std::result::Result<Facts, Failure>| match facts {
            Err(failure) => json!({ "error": failure.to_string() }),
            Ok(facts) => json!({
                "certificate_sha256": hex(&facts.leaf),
                "cipher": facts.suite,
                "extended_master_secret": facts.extended,
                "sessions": match facts.kind {
                    Kind::None => "none",
                    Kind::Stateful => "stateful",
                    Kind::OtherId => "other",
                    Kind::Stateless => "stateless",
                },
                "lifetime": facts.lifetime,
                "max_early_data": facts.early_data,
                "status": facts.status,
            }),
        };
        let nodes = self.nodes.iter().zip(&fleet.places).map(|(node, place)| {
            let [tls12, tls13] = &node.facts;
            json!({
                "node": place.node,
                "addresses": place.addresses.iter().flatten().map(ToString::to_string).collect::<Vec<_>>(),
                "key_id": if let KeyId::Of(id) = node.key { Some(format!("{id:02x}")) } else { None },
                "clock_ahead": node.ahead,
                "TLSv1.2": facts(tls12),
                "TLSv1.3": facts(tls13),
            })
        });
        let pairs = self.pairs.iter().zip(&self.reasons).map(|(pair, reasons)| {
            json!({
                "protocol": pair.version.directive(),
                "from": label(pair.from),
                "to": label(pair.to),
                "tries": pair.tries,
                "resumed": pair.resumed,
                "error": pair.failure.as_ref().map(|failed| failed.why.to_string()),
                "reasons": reasons,
            })
        });
        let findings = self.findings.iter().map(|finding| {
            let nodes = finding.nodes.iter().filter_map(|place| label(*place));
            let protocols = finding.versions.iter().map(|version| version.directive());
            json!({
                "code": finding.code,
                "nodes": nodes.collect::<Vec<_>>(),
                "protocols": protocols.collect::<Vec<_>>(),
                "message": finding.message,
                "advice": finding.advice,
                "directive": finding.directive,
            })
        });
        let replays = self.replays.iter().map(|replay| replay.json(fleet));
        json!({
            "version": 1,
            "time": time::now(),
            "server_name": fleet.name,
            "ok": self.done() == Done::Well,
            "nodes": nodes.collect::<Vec<_>>(),
            "pairs": pairs.collect::<Vec<_>>(),
            "findings": findings.collect::<Vec<_>>(),
            "replays": replays.collect::<Vec<_>>(),
        })
    }
}

/// How a node gives sessions, for people.
fn kind(facts: &std::result::Result<Facts, Failure>) -> Cell {
    match facts {
        Err(Failure::Version) => Cell::new("off", Look::Dim),
        Err(_) => Cell::new("failed", Look::Bad),
        Ok(facts) => match facts.kind {
            Kind::None => Cell::new("none", Look::Bad),
            Kind::Stateful => Cell::from("stateful"),
            Kind::OtherId => Cell::new("other IDs", Look::Bad),
            Kind::Stateless => Cell::from("stateless"),
        },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_letters_as_long_as_there_are_some() {
        assert_eq!(label(0), "A");
        assert_eq!(label(25), "Z");
        assert_eq!(label(26), "27");
    }
}
