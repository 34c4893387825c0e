//! Which node of a Redis Cluster has an entry, and which server is the master that sentinels
//! watch.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::resp::{self, SLOTS, Value, Values};

/// How many nodes a cluster may have. The specification recommends no more than 1000.
pub const MAX_NODES: usize = 1024;

/// How many replicas of a master are of interest. Others are left out.
pub const MAX_REPLICAS: usize = 16;

/// What a slot without a node has in place of an index; more than any index.
const NOBODY: u16 = u16::MAX;

/// The slot of an entry (Redis Cluster specification, "Key distribution model"): a checksum of its
/// key, or of the part in braces, if there is one that is not empty, so that entries can be kept
/// together.
pub fn hash_slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key).unwrap_or(key)) % SLOTS
}

/// What lies between the first opening brace and the next closing one, if anything does.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let (_, tagged) = split_at_byte(key, b'{')?;
    let (tag, _) = split_at_byte(tagged, b'}')?;
    if tag.is_empty() { None } else { Some(tag) }
}

fn split_at_byte(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let mut parts = bytes.splitn(2, |&c| c == byte);
    Some((parts.next()?, parts.next()?))
}

/// CRC-16/XMODEM: polynomial 0x1021, nothing reflected, beginning at 0.
///
/// A byte at a time without a table: the polynomial has the bits 12, 5 and 0, so that a byte that
/// leaves on the left comes back in these places, its upper half twice.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, &byte| {
        let out = (crc >> 8) ^ u16::from(byte);
        let out = out ^ (out >> 4);
        (crc << 8) ^ (out << 12) ^ (out << 5) ^ out
    })
}

/// A node of the cluster, or a server that sentinels name.
#[derive(Debug, PartialEq, Eq)]
pub struct Node {
    /// Its address or name, as it is announced. Empty if the cluster does not know it: the host is
    /// then the one that was asked.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Why a cluster's answer cannot be used. The text is part of a log message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopologyError {
    /// A value of another kind than expected, or none.
    Value,
    /// Slots that do not exist, or that two nodes have.
    Slots,
    /// Neither an address nor a name.
    Host,
    /// Not a port.
    Port,
    /// More than [`MAX_NODES`].
    TooManyNodes,
    /// Something after the end.
    TrailingBytes,
    /// There is no memory.
    OutOfMemory,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TopologyError::Value => f.write_str("slot map with an unexpected value"),
            TopologyError::Slots => f.write_str("slot map with invalid slots"),
            TopologyError::Host => f.write_str("slot map with an invalid host"),
            TopologyError::Port => f.write_str("slot map with an invalid port"),
            TopologyError::TooManyNodes => write!(f, "slot map with more than {MAX_NODES} nodes"),
            TopologyError::TrailingBytes => f.write_str("slot map with trailing bytes"),
            TopologyError::OutOfMemory => f.write_str("no memory for the slot map"),
        }
    }
}

/// The master of each slot, with its replicas. The default knows none.
#[derive(Debug, Default)]
pub struct SlotMap {
    /// The masters.
    nodes: Vec<Node>,
    /// The replicas of each, in the same places.
    replicas: Vec<Vec<Node>>,
    /// For each slot the index of its node, or [`NOBODY`]. Empty until there is a node.
    owners: Vec<u16>,
}

impl SlotMap {
    /// Reads the answer to `CLUSTER SLOTS`. Slots may be without a node. A replica with a host or a
    /// port that nobody can connect to is left out.
    pub fn parse(reply: &[u8]) -> Result<Self, TopologyError> {
        let mut map = SlotMap::default();
        let mut values = Values::new(reply);
        let ranges = values.array().ok_or(TopologyError::Value)?;
        for _ in 0..ranges {
            map.read_range(&mut values)?;
        }
        if values.is_empty() { Ok(map) } else { Err(TopologyError::TrailingBytes) }
    }

    /// The masters. Their places do not change while the map lives.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The replicas of a master, by its place in [`nodes`](SlotMap::nodes).
    pub fn replicas(&self, node: usize) -> &[Node] {
        self.replicas.get(node).map_or(&[], Vec::as_slice)
    }

    /// The place of a slot's node in [`nodes`](SlotMap::nodes).
    pub fn index(&self, slot: u16) -> Option<usize> {
        let &owner = self.owners.get(usize::from(slot))?;
        if owner == NOBODY { None } else { Some(usize::from(owner)) }
    }

    /// The node of a slot.
    pub fn node(&self, slot: u16) -> Option<&Node> {
        self.nodes.get(self.index(slot)?)
    }

    /// Notes that a slot is with another node of the map, by its index. Of no effect where there is
    /// no such slot or node.
    pub fn assign(&mut self, slot: u16, node: usize) {
        let owner = u16::try_from(node).ok().filter(|_| node < self.nodes.len());
        if let (Some(owner), Some(place)) = (owner, self.owners.get_mut(usize::from(slot))) {
            *place = owner;
        }
    }

    /// Reads the first and the last slot of a range, its master and its replicas.
    fn read_range(&mut self, values: &mut Values<'_>) -> Result<(), TopologyError> {
        let len = values.array().ok_or(TopologyError::Value)?;
        let others = len.checked_sub(3).ok_or(TopologyError::Value)?;
        let first = values.integer().ok_or(TopologyError::Value)?;
        let last = values.integer().ok_or(TopologyError::Value)?;
        let (host, port) = read_node(values)??;
        let index = match self.nodes.iter().position(|node| node.is_at(host, port)) {
            Some(index) => index,
            None => self.add(host, port)?,
        };
        for _ in 0..others {
            if let Ok((host, port)) = read_node(values)? {
                let replicas = self.replicas.get_mut(index).ok_or(TopologyError::Slots)?;
                add_replica(replicas, host, port)?;
            }
        }

        let owner = u16::try_from(index).map_err(|_| TopologyError::TooManyNodes)?;
        self.make_room()?;
        if first > last || last >= self.owners.len() {
            return Err(TopologyError::Slots);
        }
        let range = self.owners.get_mut(first..=last).ok_or(TopologyError::Slots)?;
        // What two nodes claim is a lie, and would let a reply cost more than one pass.
        if range.iter().any(|&owner| owner != NOBODY) {
            return Err(TopologyError::Slots);
        }
        range.fill(owner);
        Ok(())
    }

    fn add(&mut self, host: &str, port: u16) -> Result<usize, TopologyError> {
        let index = self.nodes.len();
        if index >= MAX_NODES {
            return Err(TopologyError::TooManyNodes);
        }
        let node = Node::new(host, port)?;
        self.nodes.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
        self.replicas.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
        self.nodes.push(node);
        self.replicas.push(Vec::new());
        Ok(index)
    }

    fn make_room(&mut self) -> Result<(), TopologyError> {
        let slots = usize::from(SLOTS);
        let need = slots.saturating_sub(self.owners.len());
        self.owners.try_reserve_exact(need).map_err(|_| TopologyError::OutOfMemory)?;
        self.owners.resize(slots, NOBODY);
        Ok(())
    }
}

impl Node {
    fn new(host: &str, port: u16) -> Result<Self, TopologyError> {
        let mut name = String::new();
        name.try_reserve_exact(host.len()).map_err(|_| TopologyError::OutOfMemory)?;
        name.push_str(host);
        Ok(Node { host: name, port })
    }

    fn is_at(&self, host: &str, port: u16) -> bool {
        self.port == port && self.host == host
    }
}

/// Adds a replica, unless it is there already or there are enough.
fn add_replica(replicas: &mut Vec<Node>, host: &str, port: u16) -> Result<(), TopologyError> {
    if replicas.len() >= MAX_REPLICAS || replicas.iter().any(|node| node.is_at(host, port)) {
        return Ok(());
    }
    replicas.try_reserve(1).map_err(|_| TopologyError::OutOfMemory)?;
    replicas.push(Node::new(host, port)?);
    Ok(())
}

/// Reads a node: host, port, and from Redis 4 and 7 on its identifier and pairs of names and values.
/// The outer error is of what ends the reading, the inner one of what the node says of itself.
fn read_node<'a>(
    values: &mut Values<'a>,
) -> Result<Result<(&'a str, u16), TopologyError>, TopologyError> {
    let len = values.array().ok_or(TopologyError::Value)?;
    let endpoint = match values.value().ok_or(TopologyError::Value)? {
        Value::Bulk(host) => host,
        Value::Null => b"",
        _ => return Err(TopologyError::Value),
    };
    let mut host = resp::parse_host(endpoint);
    let port = values.integer().ok_or(TopologyError::Value)?;

    if let Some(others) = len.checked_sub(4) {
        values.skip(1).ok_or(TopologyError::Value)?;
        let ip = read_ip(values).ok_or(TopologyError::Value)?;
        // Names are announced, and this node lacks one. One that has a name is at that name: the
        // password is not for whoever is at an address beside it.
        if endpoint == b"?" {
            host = ip.or(host);
        }
        values.skip(others).ok_or(TopologyError::Value)?;
    } else {
        let others = len.checked_sub(2).ok_or(TopologyError::Value)?;
        values.skip(others).ok_or(TopologyError::Value)?;
    }
    Ok(match (host, resp::parse_port(port)) {
        (None, _) => Err(TopologyError::Host),
        (_, None) => Err(TopologyError::Port),
        (Some(host), Some(port)) => Ok((host, port)),
    })
}

/// Reads one value. If it is an array of names and values, what it has for `ip`, if that is an
/// address.
fn read_ip<'a>(values: &mut Values<'a>) -> Option<Option<&'a str>> {
    let Value::Array(len) = values.value()? else {
        return Some(None);
    };
    let mut ip = None;
    let mut named_ip = false;
    for n in 0..len {
        let bytes = match values.value()? {
            Value::Bulk(bytes) => bytes,
            Value::Array(count) => {
                values.skip(count)?;
                b""
            }
            _ => b"",
        };
        if n % 2 == 0 {
            named_ip = bytes == b"ip";
        } else if named_ip {
            let is_address = |text: &&str| text.parse::<IpAddr>().is_ok();
            ip = core::str::from_utf8(bytes).ok().filter(is_address);
        }
    }
    Some(ip)
}

/// Reads the answer to `SENTINEL get-master-addr-by-name` about a master that is known: its host
/// and port. `None` if it is something else.
pub fn parse_master_address(reply: &[u8]) -> Option<(&str, u16)> {
    let mut values = Values::new(reply);
    if values.array()? != 2 {
        return None;
    }
    let host = resp::parse_host(values.bulk()?).filter(|host| !host.is_empty())?;
    let port = resp::parse_port(resp::parse_length(values.bulk()?)?)?;
    values.is_empty().then_some((host, port))
}

/// Reads the answer to `SENTINEL replicas`: those that the sentinel takes for up, and that follow
/// their master.
pub fn parse_replicas(reply: &[u8]) -> Result<Vec<Node>, TopologyError> {
    let mut values = Values::new(reply);
    let count = values.array().ok_or(TopologyError::Value)?;
    let mut replicas = Vec::new();
    for _ in 0..count {
        if let Some((host, port)) = read_replica(&mut values)? {
            add_replica(&mut replicas, host, port)?;
        }
    }
    if values.is_empty() { Ok(replicas) } else { Err(TopologyError::TrailingBytes) }
}

/// Reads one of them, an array of names and values. `None` if it cannot be asked.
fn read_replica<'a>(values: &mut Values<'a>) -> Result<Option<(&'a str, u16)>, TopologyError> {
    let len = values.array().ok_or(TopologyError::Value)?;
    let (mut host, mut port, mut is_well) = (None, None, true);
    let mut name: &[u8] = b"";
    for n in 0..len {
        let bytes = match values.value().ok_or(TopologyError::Value)? {
            Value::Bulk(bytes) => bytes,
            Value::Array(count) => {
                values.skip(count).ok_or(TopologyError::Value)?;
                b""
            }
            _ => b"",
        };
        match name {
            _ if n % 2 == 0 => name = bytes,
            b"ip" => host = resp::parse_host(bytes).filter(|host| !host.is_empty()),
            b"port" => port = resp::parse_length(bytes).and_then(resp::parse_port),
            b"flags" => {
                let bad = |flag: &[u8]| matches!(flag, b"s_down" | b"o_down" | b"disconnected");
                is_well &= !bytes.split(|&c| c == b',').any(bad);
            }
            b"master-link-status" => is_well &= bytes == b"ok",
            _ => {}
        }
    }
    Ok(host.zip(port).filter(|_| is_well))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Answer, Codec, Expected, Place};
    use crate::resp::Redis;
    use std::format;
    use std::string::ToString;
    use std::vec;

    /// `CLUSTER SLOTS` of Redis 7.0.15: two masters on `::1`, slots 100 to 199 and 16383 left out.
    const TWO_MASTERS: &[u8] = b"*3\r\n\
        *3\r\n:0\r\n:99\r\n*4\r\n$3\r\n::1\r\n:21711\r\n\
        $40\r\n06fb02d0479b2cdbd041d6b9fd0fb707e3647a50\r\n*0\r\n\
        *3\r\n:200\r\n:8191\r\n*4\r\n$3\r\n::1\r\n:21711\r\n\
        $40\r\n06fb02d0479b2cdbd041d6b9fd0fb707e3647a50\r\n*0\r\n\
        *3\r\n:8192\r\n:16382\r\n*4\r\n$3\r\n::1\r\n:21712\r\n\
        $40\r\n7ba8d74c86d6605cb82665f7f42b5f7a3cd63689\r\n*0\r\n";

    /// The same of a node that has met no other and does not know its address.
    const ALONE: &[u8] = b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$0\r\n\r\n:21711\r\n\
        $40\r\n32dbe7966b85d22fcbcd06e6a6138b23166bb179\r\n*0\r\n";

    /// The same with `cluster-preferred-endpoint-type hostname`, and a node without a name for
    /// replica.
    const NAMED: &[u8] = b"*1\r\n*4\r\n:0\r\n:16383\r\n\
        *4\r\n$17\r\nnode1.example.com\r\n:21711\r\n\
        $40\r\n32dbe7966b85d22fcbcd06e6a6138b23166bb179\r\n*2\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n\
        *4\r\n$1\r\n?\r\n:21713\r\n\
        $40\r\n6280f772a986fdc281bf4fba5708d91dc5f01cc1\r\n*2\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n";

    /// The same with `cluster-preferred-endpoint-type unknown-endpoint`.
    const HIDDEN: &[u8] = b"*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n$-1\r\n:21711\r\n\
        $40\r\n32dbe7966b85d22fcbcd06e6a6138b23166bb179\r\n*4\r\n$2\r\nip\r\n$9\r\n127.0.0.1\r\n\
        $8\r\nhostname\r\n$17\r\nnode1.example.com\r\n";

    fn node(host: &str, port: u16) -> Node {
        Node { host: host.into(), port }
    }

    /// A range with one node, as Redis 3 has it.
    fn range(first: &str, last: &str, host: &str, port: &str) -> Vec<u8> {
        let mut reply = b"*1\r\n".to_vec();
        reply.extend(bare_range(first, last, host, port));
        reply
    }

    fn bare_range(first: &str, last: &str, host: &str, port: &str) -> Vec<u8> {
        let len = host.len();
        format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n${len}\r\n{host}\r\n:{port}\r\n").into_bytes()
    }

    fn error(reply: &[u8]) -> TopologyError {
        SlotMap::parse(reply).unwrap_err()
    }

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
        for key in 0..=u16::MAX {
            let bytes = key.to_be_bytes();
            let by_bits = bytes.iter().fold(0_u16, |crc, &byte| {
                (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                    if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
                })
            });
            assert_eq!(crc16(&bytes), by_bits);
        }
    }

    #[test]
    fn slots_are_those_that_redis_computes() {
        // `CLUSTER KEYSLOT` of Redis 7.0.15.
        assert_eq!(hash_slot(b"foo"), 12182);
        assert_eq!(hash_slot(b"123456789"), 12739);
        assert_eq!(hash_slot(b""), 0);
    }

    #[test]
    fn only_the_first_part_in_braces_counts() {
        assert_eq!(hash_slot(b"{user1000}.following"), 3443);
        assert_eq!(hash_slot(b"{user1000}.followers"), 3443);
        assert_eq!(hash_slot(b"foo{bar}{zap}"), hash_slot(b"bar"));
        assert_eq!(hash_slot(b"foo{bar}{zap}"), 5061);
        assert_eq!(hash_slot(b"foo{{bar}}zap"), hash_slot(b"{bar"));
        assert_eq!(hash_slot(b"foo{{bar}}zap"), 4015);
        assert_eq!(hash_slot(b"}{a}"), 15495);
    }

    #[test]
    fn empty_or_open_braces_hash_the_whole_key() {
        assert_eq!(hash_slot(b"foo{}{bar}"), 8363);
        assert_eq!(hash_slot(b"{}"), 15257);
        assert_eq!(hash_slot(b"{a"), 10276);
    }

    #[test]
    fn the_masters_of_a_cluster_are_found_by_slot() {
        let map = SlotMap::parse(TWO_MASTERS).unwrap();
        assert_eq!(map.nodes(), [node("::1", 21711), node("::1", 21712)]);
        for (slot, index) in [
            (0, Some(0)),
            (99, Some(0)),
            (100, None),
            (199, None),
            (200, Some(0)),
            (8191, Some(0)),
            (8192, Some(1)),
            (16382, Some(1)),
            (16383, None),
            (16384, None),
            (u16::MAX, None),
        ] {
            assert_eq!(map.index(slot), index, "{slot}");
            assert_eq!(map.node(slot), index.map(|index| &map.nodes()[index]), "{slot}");
        }
    }

    #[test]
    fn a_node_that_does_not_know_its_host_is_where_it_was_asked() {
        for reply in [ALONE, HIDDEN, &range("0", "16383", "?", "21711")] {
            let map = SlotMap::parse(reply).unwrap();
            assert_eq!(map.nodes(), [node("", 21711)]);
            assert_eq!(map.index(16383), Some(0));
        }
    }

    #[test]
    fn a_node_is_at_the_name_that_is_announced_and_its_replicas_are_with_it() {
        let map = SlotMap::parse(NAMED).unwrap();
        assert_eq!(map.nodes(), [node("node1.example.com", 21711)]);
        assert_eq!(map.replicas(0), [node("127.0.0.1", 21713)]);
        assert_eq!(map.replicas(1), []);
        assert_eq!(SlotMap::parse(TWO_MASTERS).unwrap().replicas(1), []);
    }

    /// A range of slots with a master and replicas, by port.
    fn with_replicas(first: u16, last: u16, ports: &[&str]) -> String {
        let mut reply = format!("*{}\r\n:{first}\r\n:{last}\r\n", ports.len() + 2);
        for port in ports {
            reply += &format!("*3\r\n$8\r\n10.0.0.1\r\n:{port}\r\n$2\r\nid\r\n");
        }
        reply
    }

    #[test]
    fn each_master_has_its_replicas_once() {
        let ranges = [
            with_replicas(0, 9, &["1", "11", "12"]),
            with_replicas(10, 19, &["2"]),
            with_replicas(20, 29, &["1", "12", "13"]),
        ];
        let map = SlotMap::parse(format!("*3\r\n{}", ranges.concat()).as_bytes()).unwrap();
        assert_eq!(map.nodes(), [node("10.0.0.1", 1), node("10.0.0.1", 2)]);
        assert_eq!(map.replicas(0), [11, 12, 13].map(|port| node("10.0.0.1", port)));
        assert_eq!(map.replicas(1), []);
    }

    #[test]
    fn a_replica_that_nobody_can_connect_to_does_not_spoil_the_map() {
        let range = with_replicas(0, 9, &["1", "0", "65536", "11"]);
        let map = SlotMap::parse(format!("*1\r\n{range}").as_bytes()).unwrap();
        assert_eq!(map.replicas(0), [node("10.0.0.1", 11)]);
        let reply = format!("*1\r\n{range}").replace("10.0.0.1\r\n:11\r\n", "10.0.0/1\r\n:11\r\n");
        assert_eq!(SlotMap::parse(reply.as_bytes()).unwrap().replicas(0), []);
        let many: Vec<String> = (1..100).map(|port| format!("{port}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let map = format!("*1\r\n{}", with_replicas(0, 9, &many));
        assert_eq!(SlotMap::parse(map.as_bytes()).unwrap().replicas(0).len(), MAX_REPLICAS);
    }

    /// A replica as `SENTINEL replicas` of Redis 7.0.15 has it, shortened.
    fn watched(port: &str, flags: &str, link: &str) -> String {
        let words = [
            "name",
            "127.0.0.1:1",
            "ip",
            "127.0.0.1",
            "port",
            port,
            "flags",
            flags,
            "master-link-status",
            link,
            "master-port",
            "7000",
        ];
        let bulk = |word: &&str| format!("${}\r\n{word}\r\n", word.len());
        format!("*{}\r\n{}", words.len(), words.iter().map(bulk).collect::<String>())
    }

    fn watched_by(replicas: &[String]) -> Result<Vec<Node>, TopologyError> {
        parse_replicas(format!("*{}\r\n{}", replicas.len(), replicas.concat()).as_bytes())
    }

    #[test]
    fn replicas_are_those_that_sentinels_take_for_up() {
        let reply = [
            watched("7001", "slave", "ok"),
            watched("7002", "s_down,slave", "ok"),
            watched("7003", "slave,disconnected", "ok"),
            watched("7004", "slave", "err"),
            watched("7005", "slave", "ok"),
            watched("7005", "slave", "ok"),
            watched("0", "slave", "ok"),
        ];
        assert_eq!(watched_by(&reply), Ok(vec![node("127.0.0.1", 7001), node("127.0.0.1", 7005)]));
        assert_eq!(watched_by(&[]), Ok(vec![]));
        // What is not known of them is let pass.
        assert_eq!(parse_replicas(b"*1\r\n*2\r\n$2\r\nip\r\n*1\r\n$1\r\nx\r\n"), Ok(vec![]));
        assert_eq!(parse_replicas(b"*1\r\n*1\r\n$2\r\nip\r\n"), Ok(vec![]));
    }

    #[test]
    fn the_answer_about_the_master_is_none_about_replicas() {
        let master = b"*2\r\n$9\r\n127.0.0.1\r\n$4\r\n7000\r\n";
        assert_eq!(parse_replicas(master), Err(TopologyError::Value));
        for count in 0..4 {
            let replicas = std::vec![watched("7001", "slave", "ok"); count].concat();
            let reply = format!("*{count}\r\n{replicas}");
            assert_eq!(parse_master_address(reply.as_bytes()), None);
            assert!(parse_replicas(reply.as_bytes()).is_ok());
            let trailing = format!("{reply}:0\r\n");
            let error = Err(TopologyError::TrailingBytes);
            assert_eq!(parse_replicas(trailing.as_bytes()), error);
        }
    }

    #[test]
    fn a_node_that_lacks_a_name_still_has_its_address() {
        let text = std::str::from_utf8(NAMED).unwrap();
        let reply = text.replace("$17\r\nnode1.example.com", "$1\r\n?");
        let map = SlotMap::parse(reply.as_bytes()).unwrap();
        assert_eq!(map.nodes(), [node("127.0.0.1", 21711)]);
    }

    #[test]
    fn metadata_of_other_shapes_is_passed_over() {
        for (metadata, ip) in [
            ("*0\r\n", None),
            ("$-1\r\n", None),
            ("*-1\r\n", None),
            ("$1\r\nx\r\n", None),
            ("*1\r\n$2\r\nip\r\n", None),
            ("*2\r\n$2\r\nip\r\n$-1\r\n", None),
            ("*2\r\n$2\r\nip\r\n$4\r\nhost\r\n", None),
            ("*2\r\n$1\r\nx\r\n$2\r\nip\r\n", None),
            ("*4\r\n$1\r\nx\r\n*2\r\n:1\r\n*0\r\n$2\r\nip\r\n$3\r\n::2\r\n", Some("::2")),
            ("*2\r\n$2\r\nip\r\n$3\r\n::2\r\n:1\r\n", Some("::2")),
        ] {
            let len = if metadata.ends_with(":1\r\n") { 5 } else { 4 };
            let reply = format!(
                "*1\r\n*3\r\n:0\r\n:1\r\n*{len}\r\n$1\r\n?\r\n:1\r\n$2\r\nid\r\n{metadata}"
            );
            let map = SlotMap::parse(reply.as_bytes()).expect(metadata);
            assert_eq!(map.nodes(), [node(ip.unwrap_or(""), 1)], "{metadata}");
        }
    }

    #[test]
    fn a_cluster_without_slots_is_an_empty_map() {
        let map = SlotMap::parse(b"*0\r\n").unwrap();
        assert!(map.nodes().is_empty());
        assert_eq!(map.node(0), None);
    }

    #[test]
    fn every_truncation_of_a_slot_map_is_an_error() {
        let expected = Expected { limit: 0, array: true };
        let decode = |buf| Redis::default().decode(buf, &expected, &mut Place::default());
        for whole in [TWO_MASTERS, ALONE, NAMED, HIDDEN] {
            for n in 0..whole.len() {
                assert_eq!(error(&whole[..n]), TopologyError::Value, "{n}");
                assert_eq!(decode(&whole[..n]), Ok(None), "{n}");
            }
            assert_eq!(decode(whole), Ok(Some((Answer::Array(0..whole.len()), whole.len()))));
        }
    }

    #[test]
    fn trailing_bytes_are_an_error() {
        let mut reply = ALONE.to_vec();
        reply.push(b'*');
        assert_eq!(error(&reply), TopologyError::TrailingBytes);
        assert_eq!(error(b"*0\r\n*0\r\n"), TopologyError::TrailingBytes);
    }

    #[test]
    fn slots_that_cannot_be_are_an_error() {
        use TopologyError::{Slots, Value};
        for (first, last, error) in [
            ("0", "16384", Slots),
            ("16384", "16384", Slots),
            ("2", "1", Slots),
            ("0", "18446744073709551615", Slots),
            ("18446744073709551615", "0", Slots),
            ("0", "18446744073709551616", Value),
            ("-1", "1", Value),
            ("", "1", Value),
        ] {
            let reply = range(first, last, "a", "1");
            assert_eq!(SlotMap::parse(&reply).unwrap_err(), error, "{first} {last}");
        }
        let mut twice = b"*2\r\n".to_vec();
        twice.extend(bare_range("0", "5", "a", "1"));
        twice.extend(bare_range("5", "6", "a", "1"));
        assert_eq!(error(&twice), Slots);
    }

    #[test]
    fn places_that_cannot_be_connected_to_are_an_error() {
        for port in ["0", "65536", "18446744073709551615"] {
            assert_eq!(error(&range("0", "1", "a", port)), TopologyError::Port, "{port}");
        }
        assert_eq!(error(&range("0", "1", "a", "-1")), TopologyError::Value);
        let long = "a".repeat(256);
        for host in ["unix:/tmp/s", "unix:s", "a:1", "[::1]", "a b", "a/b", "a\n", "\u{e4}", &long]
        {
            assert_eq!(error(&range("0", "1", host, "1")), TopologyError::Host, "{host}");
        }
    }

    #[test]
    fn values_in_the_wrong_place_are_an_error() {
        for reply in [
            &b""[..],
            b"+OK\r\n",
            b"$1\r\nx\r\n",
            b"*-1\r\n",
            b"*1\r\n:1\r\n",
            b"*1\r\n*0\r\n",
            b"*1\r\n*2\r\n:0\r\n:1\r\n",
            b"*1\r\n*3\r\n$1\r\n0\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n:2\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n*0\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\na\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\na\r\n:1\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n:1\r\n:1\r\n",
            b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n$1\r\n1\r\n",
            b"*18446744073709551615\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
            b"*1\r\n*18446744073709551615\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
        ] {
            assert_eq!(error(reply), TopologyError::Value, "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn there_are_no_more_nodes_than_the_limit() {
        let reply = |nodes: usize| {
            let mut reply = format!("*{nodes}\r\n").into_bytes();
            for n in 0..nodes {
                let slot = n.to_string();
                reply.extend(bare_range(&slot, &slot, "a", &(n + 1).to_string()));
            }
            reply
        };
        let map = SlotMap::parse(&reply(MAX_NODES)).unwrap();
        assert_eq!(map.nodes().len(), MAX_NODES);
        assert_eq!(map.node(1023).unwrap().port, 1024);
        assert_eq!(error(&reply(MAX_NODES + 1)), TopologyError::TooManyNodes);
    }

    #[test]
    fn a_slot_goes_to_another_node_alone() {
        let mut map = SlotMap::parse(TWO_MASTERS).unwrap();
        map.assign(0, 1);
        let places: Vec<_> = [0, 1, 2].map(|slot| map.index(slot)).into();
        assert_eq!(places, [Some(1), Some(0), Some(0)]);
        assert_eq!(map.nodes().len(), 2);
    }

    #[test]
    fn a_slot_goes_to_no_node_that_is_not_there() {
        let mut map = SlotMap::parse(ALONE).unwrap();
        map.assign(1, 1);
        map.assign(1, usize::MAX);
        map.assign(16384, 0);
        assert_eq!(map.index(1), Some(0));
        let mut nobody = SlotMap::default();
        nobody.assign(0, 0);
        assert_eq!(nobody.index(0), None);
    }

    #[test]
    fn a_sentinel_names_the_master() {
        // Redis 7.0.15.
        let whole = b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n21711\r\n";
        assert_eq!(parse_master_address(whole), Some(("127.0.0.1", 21711)));
        for n in 0..whole.len() {
            assert_eq!(parse_master_address(&whole[..n]), None, "{n}");
        }
        assert_eq!(parse_master_address(b"*2\r\n$3\r\n::1\r\n$1\r\n1\r\n"), Some(("::1", 1)));
    }

    #[test]
    fn anything_else_names_no_master() {
        for reply in [
            &b"*-1\r\n"[..],
            b"*0\r\n",
            b"*1\r\n$1\r\na\r\n",
            b"*3\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\n1\r\n",
            b"*2\r\n$1\r\na\r\n:1\r\n",
            b"*2\r\n$1\r\na\r\n$1\r\n0\r\n",
            b"*2\r\n$1\r\na\r\n$5\r\n65536\r\n",
            b"*2\r\n$1\r\na\r\n$2\r\n+1\r\n",
            b"*2\r\n$0\r\n\r\n$1\r\n1\r\n",
            b"*2\r\n$1\r\n?\r\n$1\r\n1\r\n",
            b"*2\r\n$-1\r\n$1\r\n1\r\n",
            b"*2\r\n$6\r\nunix:a\r\n$1\r\n1\r\n",
            b"*2\r\n$1\r\na\r\n$1\r\n1\r\n+",
        ] {
            assert_eq!(parse_master_address(reply), None, "{}", reply.escape_ascii());
        }
    }

    #[test]
    fn errors_read_as_a_part_of_a_message() {
        let errors = [
            TopologyError::Value,
            TopologyError::Slots,
            TopologyError::Host,
            TopologyError::Port,
            TopologyError::TooManyNodes,
            TopologyError::TrailingBytes,
            TopologyError::OutOfMemory,
        ];
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts[4], "slot map with more than 1024 nodes");
        assert!(texts.iter().all(|text| text.contains("slot map")), "{texts:?}");
    }
}
