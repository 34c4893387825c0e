//! Why sessions are not resumed, as far as a client can know.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::time::span;
use crate::tls::Failure;

/// How far clocks may differ, in seconds: dates of answers are whole seconds, and some time old.
const CLOCKS: i64 = 5;

/// A version of TLS; its place in lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

impl Version {
    /// All that are looked at.
    pub const ALL: [Version; 2] = [Version::V12, Version::V13];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Version::V12 => "TLS 1.2",
            Version::V13 => "TLS 1.3",
        }
    }

    /// Its name in `ssl_protocols`.
    pub fn directive(self) -> &'static str {
        match self {
            Version::V12 => "TLSv1.2",
            Version::V13 => "TLSv1.3",
        }
    }
}

/// How a server gives a session to its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not at all.
    None,
    /// By an ID of 32 bytes: the session stays with the server.
    Stateful,
    /// By an ID of another length, which is not the module's.
    OtherId,
    /// In a ticket, encrypted.
    Stateless,
}

/// What a node is like in one version of TLS.
#[derive(Clone, Debug)]
pub struct Facts {
    /// SHA-256 of its certificate.
    pub leaf: Vec<u8>,
    /// Its cipher suite.
    pub suite: String,
    /// Its master secrets are extended (RFC 7627).
    pub extended: bool,
    /// How it gives sessions.
    pub kind: Kind,
    /// What its stateless tickets say their keys by.
    pub tickets: BTreeSet<Vec<u8>>,
    /// How long its tickets are good, in seconds.
    pub lifetime: Option<i64>,
    /// How many bytes of early data it takes.
    pub early_data: i64,
    /// The status of its answer.
    pub status: Option<u16>,
}

/// What session IDs say of who has issued them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyId {
    /// None was seen, or one, which says nothing.
    Unknown,
    /// They do not begin alike: the module has not issued them with a key.
    None,
    /// The key id with which all of them begin.
    Of(u8),
}

/// A node.
pub struct Node {
    /// What it is called in the matrix.
    pub label: String,
    /// What it is like in each version of TLS.
    pub facts: [Result<Facts, Failure>; 2],
    /// The key that issues its session IDs.
    pub key: KeyId,
    /// How far its clock is ahead of ours, in seconds.
    pub ahead: Option<i64>,
}

impl Node {
    /// What it is like in that version.
    pub fn in_version(&self, version: Version) -> Result<&Facts, &Failure> {
        let [tls12, tls13] = &self.facts;
        match version {
            Version::V12 => tls12.as_ref(),
            Version::V13 => tls13.as_ref(),
        }
    }

    fn answers(&self) -> bool {
        self.facts.iter().any(|facts| !matches!(facts, Err(failure) if is_away(failure)))
    }
}

/// Whether nothing was heard of the server.
fn is_away(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Name(_) | Failure::Connect(_) | Failure::NoConnection | Failure::Late
    )
}

/// Offers of sessions of one node to another one, or to itself.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The place of the node that has made the sessions.
    pub from: usize,
    /// The place of the one that they were offered to.
    pub to: usize,
    /// The version of TLS.
    pub version: Version,
    /// How many were offered; 0 where one of the two does not speak that version.
    pub tries: usize,
    /// How many were resumed.
    pub resumed: usize,
    /// The visit that has failed, if one has.
    pub failure: Option<Failed>,
}

/// A visit that has failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// A session was offered in it; else one was to be made.
    pub offering: bool,
    /// Why it has failed.
    pub why: Failure,
}

impl Pair {
    /// Whether all were resumed.
    pub fn is_good(&self) -> bool {
        self.tries > 0 && self.resumed == self.tries
    }
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its kind, for programs.
    pub code: &'static str,
    /// In which versions of TLS.
    pub versions: BTreeSet<Version>,
    /// The places of the nodes that differ from the others.
    pub nodes: BTreeSet<usize>,
    /// What was seen.
    pub message: String,
    /// What to do.
    pub advice: &'static str,
    /// The directive to look at.
    pub directive: &'static str,
}

/// The kinds of findings: what to do, and the directive to look at.
fn advice(code: &'static str) -> (&'static str, &'static str) {
    match code {
        "unreachable" => ("Start nginx there, or let connections through to it.", "listen"),
        "handshake" => (
            "Look at what listens there, and give the server name of the site by --name.",
            "listen ... ssl",
        ),
        "verify" => (
            "Correct its ssl_certificate, or name the CA that has signed it by --cacert.",
            "ssl_certificate",
        ),
        "protocols" => ("Set the same ssl_protocols on all nodes.", "ssl_protocols"),
        "certificate" => (
            "Give all nodes the same ssl_certificate, or set ssl_session_bind names on all of them.",
            "ssl_certificate",
        ),
        "extended-master-secret" => {
            ("Remove ssl_conf_command Options -ExtendedMasterSecret.", "ssl_conf_command")
        }
        "cipher-suites" => {
            ("Set the same ssl_conf_command Ciphersuites on all nodes.", "ssl_conf_command")
        }
        "no-session" => (
            "Remove \"ssl_session_cache off\" from the default server of that socket.",
            "ssl_session_cache",
        ),
        "tickets" => (
            "Set ssl_session_tickets off there, or share the keys by ssl_session_ticket_keys.",
            "ssl_session_tickets",
        ),
        "not-issued" => (
            "Load the module with the fleet's ssl_session_key there, and remove \"ssl_session_cache off\".",
            "ssl_session_key",
        ),
        "clock" => (
            "Set the clock there, and have NTP keep it: ssl_session_timeout is counted by it.",
            "ssl_session_timeout",
        ),
        "key" => ("Give all nodes the same first ssl_session_key.", "ssl_session_key"),
        "client-certificate" => (
            "Name a client certificate by --cert and --key, for ssl_verify_client.",
            "ssl_verify_client",
        ),
        "own" => (
            "Set ssl_session_fetch and ssl_session_store there, and look for its store in its error log.",
            "ssl_session_store",
        ),
        "one-way" => (
            "Check ssl_session_store where they were made, and ssl_session_fetch and the clock where they are \
             not resumed.",
            "ssl_session_store",
        ),
        "store" => (
            "See in the error logs whether the store is down. Set the same targets, key_prefix and database in \
             ssl_session_fetch and ssl_session_store on all nodes, then the same ssl_verify_client and files of \
             CAs.",
            "ssl_session_fetch",
        ),
        "sometimes" => (
            "List the same servers in ssl_session_backend on all nodes, and look whether the store answers late.",
            "ssl_session_backend",
        ),
        "lifetime" => ("Set the same ssl_session_timeout on all nodes.", "ssl_session_timeout"),
        "early-data" => ("Set the same ssl_early_data on all nodes.", "ssl_early_data"),
        "replay" => {
            ("Set single_use in ssl_session_fetch, or ssl_early_data off.", "ssl_session_fetch")
        }
        "replay-unknown" => (
            "Find out what keeps ssl_early_data from being used there, such as a slow store, and check again.",
            "ssl_early_data",
        ),
        _ => ("", ""),
    }
}

/// A finding of that kind.
pub fn finding(
    code: &'static str,
    versions: impl IntoIterator<Item = Version>,
    nodes: impl IntoIterator<Item = usize>,
    message: String,
) -> Finding {
    let (advice, directive) = advice(code);
    let (versions, nodes) = (versions.into_iter().collect(), nodes.into_iter().collect());
    Finding { code, versions, nodes, message, advice, directive }
}

/// All findings about a fleet, and for each pair the codes of those that explain it.
pub fn judge(nodes: &[Node], pairs: &[Pair]) -> (Vec<Finding>, Vec<Vec<&'static str>>) {
    let reasons: Vec<_> = pairs.iter().map(|pair| reasons(nodes, pairs, pair)).collect();
    let judge = Judge { nodes, pairs, reasons: &reasons };
    let mut findings = Vec::new();
    judge.failures(&mut findings);
    for code in ["certificate", "extended-master-secret", "cipher-suites", "key"] {
        judge.differing(code, &mut findings);
    }
    judge.clocks(&mut findings);
    for code in ["no-session", "tickets", "not-issued", "client-certificate", "own"] {
        judge.of_nodes(code, &mut findings);
    }
    for code in ["store", "one-way", "sometimes"] {
        judge.of_pairs(code, &mut findings);
    }
    judge.settings(&mut findings);
    (findings, reasons)
}

/// Why a pair has failed: codes, most important first; none if it has not.
fn reasons(nodes: &[Node], pairs: &[Pair], pair: &Pair) -> Vec<&'static str> {
    let (Some(from), Some(to)) = (nodes.get(pair.from), nodes.get(pair.to)) else {
        return Vec::new();
    };
    let version = pair.version;
    let (here, there) = match (from.in_version(version), to.in_version(version)) {
        (Ok(here), Ok(there)) => (here, there),
        // Where both do not speak it there is nothing to be resumed.
        (Err(Failure::Version), Err(Failure::Version)) => return Vec::new(),
        _ => {
            let failures = [from, to].into_iter().filter_map(|node| {
                node.in_version(version).err().map(|failure| code_of(node, failure))
            });
            return failures.collect::<BTreeSet<_>>().into_iter().collect();
        }
    };
    if pair.is_good() {
        return Vec::new();
    }
    if pair.tries == 0 || pair.failure.is_some() {
        return vec!["handshake"];
    }
    if pair.resumed > 0 {
        return vec!["sometimes"];
    }
    if here.kind == Kind::None {
        return vec!["no-session"];
    }

    let mut reasons = Vec::new();
    if here.leaf != there.leaf {
        reasons.push("certificate");
    }
    if version == Version::V12 && here.extended != there.extended {
        reasons.push("extended-master-secret");
    }
    if version == Version::V13 && hash_of(&here.suite) != hash_of(&there.suite) {
        reasons.push("cipher-suites");
    }
    let own = |place: usize| {
        let mut own = pairs.iter().filter(|own| own.from == place && own.to == place);
        own.any(|own| own.version == version && own.resumed > 0)
    };
    let refused = [here, there].iter().any(|facts| facts.status == Some(400));
    let itself = pair.from == pair.to;
    match (here.kind, there.kind) {
        // Its own ticket keys do not help it.
        (Kind::Stateless, _) if !own(pair.from) && refused => reasons.push("client-certificate"),
        (Kind::Stateless, _) if !own(pair.from) => reasons.push("own"),
        (Kind::Stateless, _) if here.tickets.is_disjoint(&there.tickets) => reasons.push("tickets"),
        (Kind::Stateless, _) => {}
        (_, Kind::Stateless) if version == Version::V13 => reasons.push("tickets"),
        (_, Kind::None) => reasons.push("no-session"),
        (Kind::OtherId, _) | (_, Kind::OtherId) => reasons.push("not-issued"),
        _ if from.key == KeyId::None || to.key == KeyId::None => reasons.push("not-issued"),
        _ => match (known_key(nodes, pairs, pair.from), known_key(nodes, pairs, pair.to)) {
            (KeyId::Of(here), KeyId::Of(there)) if here != there => reasons.push("key"),
            _ => {}
        },
    }
    if reasons.is_empty() {
        let back = pairs
            .iter()
            .find(|back| back.from == pair.to && back.to == pair.from && back.version == version);
        reasons.push(if (!own(pair.from) || !own(pair.to)) && refused {
            "client-certificate"
        } else if has_expired(from, to) {
            "clock"
        } else if itself || !own(pair.from) || !own(pair.to) {
            "own"
        } else if back.is_some_and(|back| back.resumed > 0) {
            "one-way"
        } else {
            "store"
        });
    }
    reasons
}

/// The key of a node; of one that issues no session IDs that of a node whose sessions it resumes.
fn known_key(nodes: &[Node], pairs: &[Pair], place: usize) -> KeyId {
    let key = |place: usize| nodes.get(place).map_or(KeyId::Unknown, |node| node.key);
    let own = key(place);
    if own != KeyId::Unknown {
        return own;
    }
    let resumed = pairs.iter().filter(|pair| pair.to == place && pair.resumed > 0);
    let mut known = resumed.map(|pair| key(pair.from)).filter(|key| *key != KeyId::Unknown);
    known.next().unwrap_or(KeyId::Unknown)
}

/// Whether a new session of one is over by the clock of the other.
fn has_expired(from: &Node, to: &Node) -> bool {
    let (Some(here), Some(there)) = (from.ahead, to.ahead) else { return false };
    let ahead = there.saturating_sub(here);
    let lifetime =
        |node: &Node| node.in_version(Version::V13).ok().and_then(|facts| facts.lifetime);
    // Where it is not known the clock is the first thing to look at.
    let lifetime = lifetime(from).or_else(|| lifetime(to)).unwrap_or_default();
    ahead > CLOCKS && ahead.saturating_add(CLOCKS) >= lifetime
}

/// How far the clock of each node is ahead of that of most; 0 where it is the same, or not known.
fn clocks(nodes: &[Node]) -> Vec<i64> {
    let known = || nodes.iter().filter_map(|node| node.ahead);
    let alike = |one: i64, other: i64| one.abs_diff(other) <= CLOCKS.unsigned_abs();
    let usual = known().max_by_key(|&one| {
        // Where there are as many of another time, our own clock decides.
        (known().filter(|&other| alike(one, other)).count(), Reverse(one.unsigned_abs()))
    });
    let ahead = |node: &Node| {
        let (ahead, usual) = (node.ahead?, usual?);
        Some(ahead.saturating_sub(usual)).filter(|_| !alike(ahead, usual))
    };
    nodes.iter().map(|node| ahead(node).unwrap_or_default()).collect()
}

/// A failure as a finding.
fn code_of(node: &Node, failure: &Failure) -> &'static str {
    match failure {
        _ if !node.answers() => "unreachable",
        Failure::Version => "protocols",
        Failure::Certificate(_) => "verify",
        _ => "handshake",
    }
}

/// The hash of a cipher suite, of which there are two in TLS 1.3.
fn hash_of(suite: &str) -> &str {
    suite.rsplit_once('_').map_or(suite, |(_, hash)| hash)
}

/// The first bytes of a digest.
pub fn short(digest: &[u8]) -> String {
    let bytes = digest.iter().take(4).map(|byte| format!("{byte:02x}"));
    bytes.collect::<Vec<_>>().join(":")
}

/// Where something is so.
type Where = (BTreeSet<Version>, BTreeSet<usize>);

struct Judge<'a> {
    nodes: &'a [Node],
    pairs: &'a [Pair],
    reasons: &'a [Vec<&'static str>],
}

impl Judge<'_> {
    /// The pairs that a code explains.
    fn explained<'a>(&'a self, code: &'a str) -> impl Iterator<Item = &'a Pair> {
        let both = self.pairs.iter().zip(self.reasons);
        both.filter(move |(_, reasons)| reasons.contains(&code)).map(|(pair, _)| pair)
    }

    fn names(&self, nodes: impl IntoIterator<Item = usize>) -> String {
        let names = nodes.into_iter().filter_map(|place| self.nodes.get(place));
        names.map(|node| node.label.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Nodes that do not answer, do not shake hands, or lack a version that others have.
    fn failures(&self, findings: &mut Vec<Finding>) {
        let mut seen: BTreeMap<(&str, String), Where> = BTreeMap::new();
        for version in Version::ALL {
            let spoken = self.nodes.iter().any(|node| node.in_version(version).is_ok());
            for (place, node) in self.nodes.iter().enumerate() {
                let Err(failure) = node.in_version(version) else { continue };
                let code = code_of(node, failure);
                // That nobody has it is a choice, and no difference.
                if *failure == Failure::Version && !spoken {
                    continue;
                }
                let (versions, nodes) = seen.entry((code, failure.to_string())).or_default();
                versions.insert(version);
                nodes.insert(place);
            }
        }
        let codes = ["unreachable", "handshake", "verify", "protocols"];
        for ((code, message), (versions, nodes)) in seen {
            if let Some(code) = codes.into_iter().find(|known| *known == code) {
                findings.push(finding(code, versions, nodes, message));
            }
        }
        // By the node that fails: in which versions, and whose sessions it does not like.
        let mut broken: BTreeMap<(usize, bool, String), Where> = BTreeMap::new();
        for pair in self.pairs {
            let Some(Failed { offering, why }) = &pair.failure else { continue };
            let place = if *offering { pair.to } else { pair.from };
            let (versions, nodes) = broken.entry((place, *offering, why.to_string())).or_default();
            versions.insert(pair.version);
            nodes.insert(pair.from);
        }
        for ((place, offering, why), (versions, nodes)) in broken {
            let message = if offering {
                format!("when sessions of {} are offered: {why}", self.names(nodes))
            } else {
                format!("when more sessions are to be made: {why}")
            };
            findings.push(finding("handshake", versions, [place], message));
        }
    }

    /// Nodes of another certificate, key or the like than most.
    fn differing(&self, code: &'static str, findings: &mut Vec<Finding>) {
        let versions: BTreeSet<_> = self.explained(code).map(|pair| pair.version).collect();
        if versions.is_empty() {
            return;
        }
        let value = |node: &Node| -> Option<String> {
            let version = versions.iter().find(|version| node.in_version(**version).is_ok())?;
            let facts = node.in_version(*version).ok()?;
            Some(match (code, node.key) {
                ("certificate", _) => short(&facts.leaf),
                ("extended-master-secret", _) => {
                    if facts.extended {
                        "yes".into()
                    } else {
                        "no".into()
                    }
                }
                ("cipher-suites", _) => hash_of(&facts.suite).into(),
                (_, KeyId::Of(id)) => format!("{id:02x}"),
                _ => return None,
            })
        };
        let values: Vec<_> = self.nodes.iter().map(value).collect();
        let (usual, others) = odd_ones(&values);
        let what = match code {
            "certificate" => "certificates differ",
            "extended-master-secret" => "the extended master secret differs",
            "cipher-suites" => "hashes of the cipher suites differ",
            _ => "key ids differ",
        };
        let message = format!("{what}: {}", self.groups(&values, usual.as_deref()));
        findings.push(finding(code, versions, others, message));
    }

    /// Nodes with another time than most.
    fn clocks(&self, findings: &mut Vec<Finding>) {
        let clocks = clocks(self.nodes);
        let others = || (0..).zip(&clocks).filter(|(_, ahead)| **ahead != 0);
        let texts = others().map(|(place, ahead)| {
            let way = if *ahead > 0 { "ahead" } else { "behind" };
            let span = span(ahead.saturating_abs());
            format!("{} is {span} {way}", self.names([place]))
        });
        let texts: Vec<_> = texts.collect();
        if !texts.is_empty() {
            let nodes: BTreeSet<usize> = others().map(|(place, _)| place).collect();
            let spoken = |version: &Version| {
                let mut nodes = nodes.iter().filter_map(|place| self.nodes.get(*place));
                nodes.any(|node| node.in_version(*version).is_ok())
            };
            let versions: Vec<_> = Version::ALL.into_iter().filter(spoken).collect();
            let message = format!("clocks differ: {}", texts.join(", "));
            findings.push(finding("clock", versions, nodes, message));
        }
    }

    /// Who has which value, the usual one first.
    fn groups(&self, values: &[Option<String>], usual: Option<&str>) -> String {
        let mut groups: BTreeMap<(bool, &str), Vec<usize>> = BTreeMap::new();
        for (place, value) in values.iter().enumerate() {
            if let Some(value) = value.as_deref() {
                groups.entry((Some(value) != usual, value)).or_default().push(place);
            }
        }
        let groups = groups
            .into_iter()
            .map(|((_, value), nodes)| format!("{value} at {}", self.names(nodes)));
        groups.collect::<Vec<_>>().join(", ")
    }

    /// What is wrong with a node whoever the other one is.
    fn of_nodes(&self, code: &'static str, findings: &mut Vec<Finding>) {
        let mut nodes: BTreeMap<usize, BTreeSet<Version>> = BTreeMap::new();
        for pair in self.explained(code) {
            for place in [pair.from, pair.to] {
                let Some(node) = self.nodes.get(place) else { continue };
                let Ok(facts) = node.in_version(pair.version) else { continue };
                let is_so = match code {
                    "no-session" => facts.kind == Kind::None,
                    "tickets" => facts.kind == Kind::Stateless,
                    "not-issued" => facts.kind == Kind::OtherId || node.key == KeyId::None,
                    "client-certificate" => facts.status == Some(400),
                    _ => !self.resumes_own(place, pair.version),
                };
                if is_so {
                    nodes.entry(place).or_default().insert(pair.version);
                }
            }
        }
        let mut alike: BTreeMap<BTreeSet<Version>, Vec<usize>> = BTreeMap::new();
        for (place, versions) in nodes {
            alike.entry(versions).or_default().push(place);
        }
        for (versions, nodes) in alike {
            let message = match code {
                "no-session" => "gives neither session ID nor ticket: resumption is off",
                "tickets" => "sessions are in stateless tickets, which others cannot open",
                "not-issued" => "session IDs are not the module's: they begin at random",
                "client-certificate" => "answers 400: it seems to ask clients for certificates",
                _ => "does not resume its own sessions",
            };
            findings.push(finding(code, versions, nodes, message.into()));
        }
    }

    fn resumes_own(&self, place: usize, version: Version) -> bool {
        let mut own = self.pairs.iter().filter(|pair| pair.from == place && pair.to == place);
        own.any(|pair| pair.version == version && pair.resumed > 0)
    }

    /// What is wrong between two nodes that are both right.
    fn of_pairs(&self, code: &'static str, findings: &mut Vec<Finding>) {
        let mut ways: BTreeMap<String, BTreeSet<Version>> = BTreeMap::new();
        for version in Version::ALL {
            let text = match code {
                "store" => self.islands(version),
                "one-way" => self.ways(code, version),
                _ => self.shares(version),
            };
            if self.explained(code).any(|pair| pair.version == version) {
                ways.entry(text).or_default().insert(version);
            }
        }
        for (text, versions) in ways {
            let of_these = |pair: &&Pair| versions.contains(&pair.version);
            let values: Vec<_> = self.explained(code).filter(of_these).collect();
            let nodes: BTreeSet<_> = values.iter().flat_map(|pair| [pair.from, pair.to]).collect();
            findings.push(finding(code, versions, nodes, text));
        }
    }

    /// Groups of nodes that resume each other's sessions, and not those of other groups.
    fn islands(&self, version: Version) -> String {
        let pairs = self.explained("store").filter(|pair| pair.version == version);
        let places: BTreeSet<_> = pairs.flat_map(|pair| [pair.from, pair.to]).collect();
        let resumes = |from: usize, to: usize| {
            let mut ways = self.pairs.iter().filter(|pair| pair.from == from && pair.to == to);
            ways.any(|pair| pair.version == version && pair.resumed > 0)
        };
        let mut groups: Vec<BTreeSet<usize>> = Vec::new();
        for place in places {
            let mut known = groups.iter_mut();
            let of = |other: &usize| resumes(place, *other) || resumes(*other, place);
            match known.find(|group| group.iter().all(of)) {
                Some(group) => {
                    group.insert(place);
                }
                None => groups.push(BTreeSet::from([place])),
            }
        }
        let groups: Vec<_> = groups.into_iter().map(|group| self.names(group)).collect();
        format!(
            "each resumes its own sessions, and not those of the others: {}. The store is not shared or not \
             reached, or clients are verified differently",
            groups.join(" | ")
        )
    }

    fn ways(&self, code: &str, version: Version) -> String {
        let mut ways: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for pair in self.explained(code).filter(|pair| pair.version == version) {
            ways.entry(pair.from).or_default().insert(pair.to);
        }
        let ways = ways.into_iter().map(|(from, to)| {
            format!("sessions of {} are not resumed at {}", self.names([from]), self.names(to))
        });
        format!("{}; the other way they are", ways.collect::<Vec<_>>().join(", "))
    }

    fn shares(&self, version: Version) -> String {
        let pairs = self.explained("sometimes").filter(|pair| pair.version == version);
        let shares = pairs.map(|pair| {
            let (from, to) = (self.names([pair.from]), self.names([pair.to]));
            format!("{from} to {to} {} of {}", pair.resumed, pair.tries)
        });
        format!("sessions are resumed sometimes: {}", shares.collect::<Vec<_>>().join(", "))
    }

    /// Settings that differ and do not keep sessions from being resumed.
    fn settings(&self, findings: &mut Vec<Finding>) {
        let tls13 = |node: &Node| node.in_version(Version::V13).ok().cloned();
        let lifetime = |node: &Node| {
            let facts = tls13(node).filter(|facts| facts.kind != Kind::None)?;
            Some(format!("{} s", facts.lifetime?))
        };
        let early = |node: &Node| {
            let facts = tls13(node).filter(|facts| facts.kind != Kind::None)?;
            Some(if facts.early_data > 0 { "on".to_string() } else { "off".to_string() })
        };
        let all = |value: &dyn Fn(&Node) -> Option<String>| -> Vec<_> {
            self.nodes.iter().map(value).collect()
        };
        let settings = [
            ("lifetime", all(&lifetime), "lifetimes of tickets differ"),
            ("early-data", all(&early), "early data differs"),
        ];
        for (code, values, what) in settings {
            let (usual, others) = odd_ones(&values);
            if !others.is_empty() {
                let message = format!("{what}: {}", self.groups(&values, usual.as_deref()));
                findings.push(finding(code, [Version::V13], others, message));
            }
        }
    }
}

/// The value that most have, of several the one that comes first, and the places of all others.
fn odd_ones(values: &[Option<String>]) -> (Option<String>, Vec<usize>) {
    let count = |value: &String| values.iter().flatten().filter(|other| *other == value).count();
    let mut usual: Option<&String> = None;
    for value in values.iter().flatten() {
        if usual.is_none_or(|usual| count(value) > count(usual)) {
            usual = Some(value);
        }
    }
    let others =
        values.iter().enumerate().filter(|(_, value)| value.is_some() && value.as_ref() != usual);
    (usual.cloned(), others.map(|(place, _)| place).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            leaf: vec![1, 2, 3, 4, 5],
            suite: "TLS_AES_256_GCM_SHA384".into(),
            extended: true,
            kind: Kind::Stateful,
            tickets: BTreeSet::new(),
            lifetime: Some(300),
            early_data: 0,
            status: Some(200),
        }
    }

    fn node(label: &str, key: u8, facts: &Facts) -> Node {
        let facts = [Ok(facts.clone()), Ok(facts.clone())];
        Node { label: label.into(), facts, key: KeyId::Of(key), ahead: Some(0) }
    }

    /// Each offers to each; `resumes` says what came of it.
    fn pairs(count: usize, resumes: impl Fn(usize, usize) -> bool) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for version in Version::ALL {
            for from in 0..count {
                for to in 0..count {
                    let resumed = if resumes(from, to) { 1 } else { 0 };
                    pairs.push(Pair { from, to, version, tries: 1, resumed, failure: None });
                }
            }
        }
        pairs
    }

    fn codes(nodes: &[Node], pairs: &[Pair]) -> Vec<(&'static str, Vec<usize>)> {
        let (findings, _) = judge(nodes, pairs);
        findings.into_iter().map(|f| (f.code, f.nodes.into_iter().collect())).collect()
    }

    #[test]
    fn nothing_is_found_where_all_is_well() {
        let nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        assert_eq!(codes(&nodes, &pairs(3, |_, _| true)), []);
    }

    #[test]
    fn another_certificate_is_that_of_the_fewer() {
        let other = Facts { leaf: vec![9; 5], ..facts() };
        let nodes = [node("A", 1, &facts()), node("B", 1, &other), node("C", 1, &facts())];
        let pairs = pairs(3, |from, to| (from == 1) == (to == 1));
        assert_eq!(codes(&nodes, &pairs), [("certificate", vec![1])]);
        let (findings, _) = judge(&nodes, &pairs);
        let message = "certificates differ: 01:02:03:04 at A C, 09:09:09:09 at B";
        assert_eq!(findings.first().unwrap().message, message);
    }

    #[test]
    fn certificates_may_differ_where_sessions_are_resumed() {
        let other = Facts { leaf: vec![9; 5], ..facts() };
        let nodes = [node("A", 1, &facts()), node("B", 1, &other)];
        assert_eq!(codes(&nodes, &pairs(2, |_, _| true)), []);
    }

    #[test]
    fn other_keys_are_told_by_their_ids() {
        let nodes = [node("A", 1, &facts()), node("B", 1, &facts()), node("C", 7, &facts())];
        let pairs = pairs(3, |from, to| (from == 2) == (to == 2));
        assert_eq!(codes(&nodes, &pairs), [("key", vec![2])]);
    }

    #[test]
    fn a_node_that_keeps_sessions_in_tickets_is_named() {
        let tickets = Facts { kind: Kind::Stateless, tickets: [vec![1; 16]].into(), ..facts() };
        let nodes = [node("A", 1, &facts()), node("B", 1, &facts()), node("C", 1, &tickets)];
        let pairs = pairs(3, |from, to| (from == 2) == (to == 2));
        let found = codes(&nodes, &pairs);
        assert!(found.contains(&("tickets", vec![2])), "{found:?}");
    }

    #[test]
    fn a_node_that_gives_no_sessions_is_named() {
        let off = Facts { kind: Kind::None, lifetime: None, ..facts() };
        let nodes = [node("A", 1, &facts()), node("B", 1, &off)];
        let found = codes(&nodes, &pairs(2, |from, to| from == 0 && to == 0));
        assert_eq!(found, [("no-session", vec![1])]);
    }

    #[test]
    fn ids_that_begin_at_random_are_not_the_modules() {
        let mut nodes = [node("A", 1, &facts()), node("B", 1, &facts())];
        nodes[1].key = KeyId::None;
        let found = codes(&nodes, &pairs(2, |from, to| from == 0 && to == 0));
        assert_eq!(found, [("not-issued", vec![1])]);
    }

    #[test]
    fn whose_sessions_a_node_resumes_tells_its_key() {
        let tickets = Facts { kind: Kind::Stateless, tickets: [vec![1; 16]].into(), ..facts() };
        let mut nodes = [node("A", 1, &facts()), node("B", 1, &tickets), node("C", 7, &facts())];
        nodes[1].key = KeyId::Unknown;
        let pairs = pairs(3, |from, to| (from == 2) == (to == 2));
        let reasons = super::reasons(&nodes, &pairs, &pairs[2 * 3 + 1]);
        assert_eq!(reasons, ["key"], "TLS 1.2, from C to B");
    }

    #[test]
    fn stores_that_are_not_shared_make_islands() {
        let nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        let pairs = pairs(3, |from, to| (from == 2) == (to == 2));
        let (findings, _) = judge(&nodes, &pairs);
        let finding = findings.first().unwrap();
        assert_eq!((findings.len(), finding.code), (1, "store"));
        assert!(finding.message.contains("others: A B | C."), "{}", finding.message);
        // With a zone in front a store that is down looks like that, too.
        assert!(finding.advice.contains("whether the store is down"), "{}", finding.advice);
    }

    #[test]
    fn a_way_that_does_not_work_is_told_from_one_that_does() {
        let nodes = ["A", "B"].map(|label| node(label, 1, &facts()));
        let (findings, _) = judge(&nodes, &pairs(2, |from, to| (from, to) != (1, 0)));
        let finding = findings.first().unwrap();
        assert_eq!((findings.len(), finding.code), (1, "one-way"));
        assert!(finding.message.starts_with("sessions of B are not resumed at A"));
        // For A, if its clock is ahead, the sessions of B have expired.
        assert!(
            finding.advice.contains("the clock where they are not resumed"),
            "{}",
            finding.advice
        );
    }

    #[test]
    fn a_clock_that_is_ahead_explains_sessions_that_have_expired() {
        let mut nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        nodes[1].ahead = Some(600);
        let pairs = pairs(3, |from, to| to != 1 || from == 1);
        let (findings, reasons) = judge(&nodes, &pairs);
        let finding = findings.first().unwrap();
        assert_eq!((findings.len(), finding.code), (1, "clock"));
        assert_eq!(finding.message, "clocks differ: B is 10m00s ahead");
        assert_eq!(finding.versions, BTreeSet::from(Version::ALL));
        assert_eq!(reasons[1], ["clock"], "TLS 1.2, from A to B");
    }

    #[test]
    fn a_clock_that_differs_by_less_than_a_lifetime_explains_nothing_else() {
        let mut nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        nodes[2].ahead = Some(20);
        let pairs = pairs(3, |from, to| (from == 2) == (to == 2));
        assert_eq!(codes(&nodes, &pairs), [("clock", vec![2]), ("store", vec![0, 1, 2])]);
    }

    #[test]
    fn clocks_of_two_are_judged_by_our_own() {
        let mut nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        nodes[0].ahead = Some(-90);
        nodes[1].ahead = Some(-CLOCKS);
        nodes[2].ahead = None;
        assert_eq!(clocks(&nodes), [-85, 0, 0]);
        nodes[0].ahead = Some(-2 * CLOCKS);
        assert_eq!(clocks(&nodes), [0, 0, 0], "what dates do not tell");
    }

    #[test]
    fn a_node_that_resumes_nothing_is_named() {
        let nodes = ["A", "B"].map(|label| node(label, 1, &facts()));
        let found = codes(&nodes, &pairs(2, |from, to| from == 0 && to == 0));
        assert_eq!(found, [("own", vec![1])]);
    }

    #[test]
    fn clients_that_are_refused_are_no_fault_of_the_store() {
        let refuses = Facts { status: Some(400), ..facts() };
        let nodes = ["A", "B"].map(|label| node(label, 1, &refuses));
        assert_eq!(codes(&nodes, &pairs(2, |_, _| false)), [("client-certificate", vec![0, 1])]);
    }

    #[test]
    fn a_node_that_does_not_answer_is_no_riddle_for_the_others() {
        let mut nodes = [node("A", 1, &facts()), node("B", 1, &facts())];
        let away = || Err(Failure::Connect("connection refused".into()));
        nodes[1].facts = [away(), away()];
        let mut pairs = pairs(2, |_, _| true);
        pairs.iter_mut().filter(|pair| pair.from + pair.to > 0).for_each(|pair| pair.tries = 0);
        assert_eq!(codes(&nodes, &pairs), [("unreachable", vec![1])]);
    }

    #[test]
    fn a_visit_that_fails_is_the_fault_of_who_was_visited() {
        let nodes = ["A", "B", "C"].map(|label| node(label, 1, &facts()));
        let mut pairs = pairs(3, |_, _| true);
        for pair in pairs.iter_mut().filter(|pair| pair.version == Version::V13) {
            let offering = match (pair.from, pair.to) {
                (1, _) => false,
                (_, 2) => true,
                _ => continue,
            };
            (pair.resumed, pair.failure) = (0, Some(Failed { offering, why: Failure::Closed }));
        }
        let (findings, _) = judge(&nodes, &pairs);
        let said: Vec<_> = findings.iter().map(|f| (f.code, &f.nodes, &*f.message)).collect();
        let closes = "it closes the connection in the handshake";
        let expected = [
            (1, format!("when more sessions are to be made: {closes}")),
            (2, format!("when sessions of A C are offered: {closes}")),
        ];
        let expected = expected.map(|(place, text)| (BTreeSet::from([place]), text));
        let expected: Vec<_> =
            expected.iter().map(|(nodes, text)| ("handshake", nodes, &**text)).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn islands_of_one_version_are_those_of_that_version() {
        let nodes = ["A", "B"].map(|label| node(label, 1, &facts()));
        let mut pairs = pairs(2, |from, to| from == to);
        pairs
            .iter_mut()
            .filter(|pair| pair.version == Version::V12)
            .for_each(|pair| pair.resumed = 1);
        let (findings, _) = judge(&nodes, &pairs);
        let finding = findings.first().unwrap();
        assert_eq!((findings.len(), finding.code), (1, "store"));
        assert_eq!(finding.versions, BTreeSet::from([Version::V13]));
        assert!(finding.message.contains("others: A | B."), "{}", finding.message);
    }

    #[test]
    fn nothing_that_is_not_resumed_goes_without_a_finding() {
        let kinds = [
            (Kind::None, 0),
            (Kind::Stateful, 0),
            (Kind::OtherId, 0),
            (Kind::Stateless, 1),
            (Kind::Stateless, 2),
        ];
        let mut every = Vec::new();
        for (kind, ticket) in kinds {
            for key in [KeyId::Unknown, KeyId::None, KeyId::Of(1), KeyId::Of(2)] {
                for status in [200, 400] {
                    for leaf in [1, 2] {
                        let facts = Facts {
                            kind,
                            tickets: [vec![ticket; 16]].into(),
                            status: Some(status),
                            leaf: vec![leaf; 32],
                            ..facts()
                        };
                        every.push(Node { key, ..node("", 1, &facts) });
                    }
                }
            }
        }
        let patterns: Vec<_> =
            (0..15).map(|bits| pairs(2, |from, to| bits & (1 << (2 * from + to)) != 0)).collect();
        for one in &every {
            for other in every.iter().filter(|other| other.facts[0].as_ref().unwrap().leaf[0] == 1)
            {
                let nodes = [clone(one), clone(other)];
                for pairs in &patterns {
                    let (findings, _) = judge(&nodes, pairs);
                    assert!(!findings.is_empty(), "{:?} {:?} {pairs:?}", one.facts, other.facts);
                }
            }
        }
    }

    fn clone(node: &Node) -> Node {
        let (label, facts) = (node.label.clone(), node.facts.clone());
        Node { label, facts, key: node.key, ahead: node.ahead }
    }

    #[test]
    fn a_version_that_one_lacks_is_a_finding_and_one_that_nobody_has_is_not() {
        let mut nodes = [node("A", 1, &facts()), node("B", 1, &facts())];
        let pairs: Vec<_> = pairs(2, |_, _| true);
        nodes[1].facts[0] = Err(Failure::Version);
        assert_eq!(codes(&nodes, &pairs), [("protocols", vec![1])]);
        nodes[0].facts[0] = Err(Failure::Version);
        assert_eq!(codes(&nodes, &pairs), []);
        let (_, reasons) = judge(&nodes, &pairs);
        assert!(reasons.iter().all(Vec::is_empty), "{reasons:?}");
    }

    #[test]
    fn settings_that_differ_are_findings_all_the_same() {
        let other = Facts { lifetime: Some(60), early_data: 16384, ..facts() };
        let nodes = [node("A", 1, &facts()), node("B", 1, &other)];
        let found = codes(&nodes, &pairs(2, |_, _| true));
        assert_eq!(found, [("lifetime", vec![1]), ("early-data", vec![1])]);
    }

    #[test]
    fn what_is_resumed_now_and_then_is_said_so() {
        let nodes = ["A", "B"].map(|label| node(label, 1, &facts()));
        let mut pairs = pairs(2, |_, _| true);
        pairs.iter_mut().for_each(|pair| pair.tries = if pair.from == pair.to { 1 } else { 3 });
        let (findings, _) = judge(&nodes, &pairs);
        let finding = findings.first().unwrap();
        assert_eq!((findings.len(), finding.code), (1, "sometimes"));
        assert!(finding.message.contains("A to B 1 of 3"), "{}", finding.message);
    }
}
