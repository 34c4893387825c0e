//! What a cluster and sentinels say about who has what.

use session_core::codec::{Answer, Codec, Expected, Place};
use session_core::resp::{Redis, SLOTS};
use session_core::topology::{
    MAX_NODES, MAX_REPLICAS, Node, SlotMap, hash_slot, parse_master_address, parse_replicas,
};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A reply of a server.
pub fn run(data: &[u8]) {
    // Without a look at the codec's answer first, which bounds what comes here.
    let _ = SlotMap::parse(data);
    slot_of(data);

    let expected = Expected { limit: 0, array: true };
    let decoded = Redis::default().decode(data, &expected, &mut Place::default());
    let Ok(Some((Answer::Array(range), _))) = decoded else { return };
    let reply = &data[range];
    if let Ok(map) = SlotMap::parse(reply) {
        slot_map(map, data);
    }
    if let Ok(replicas) = parse_replicas(reply) {
        assert!(replicas.len() <= MAX_REPLICAS);
        for (n, replica) in replicas.iter().enumerate() {
            can_be_connected_to(replica);
            assert!(!replica.host.is_empty() && !replicas[..n].contains(replica));
        }
        assert_eq!(parse_master_address(reply), None, "the two are told apart");
    }
    if let Some((host, port)) = parse_master_address(reply) {
        assert!(!host.is_empty() && host.len() <= 255 && port != 0);
        let again = format!("*2\r\n${}\r\n{host}\r\n{}", host.len(), bulk(&port.to_string()));
        assert_eq!(parse_master_address(again.as_bytes()), Some((host, port)));
    }
}

fn slot_map(mut map: SlotMap, data: &[u8]) {
    assert!(map.nodes().len() <= MAX_NODES);
    map.nodes().iter().for_each(can_be_connected_to);
    for n in 0..map.nodes().len() {
        assert!(map.replicas(n).len() <= MAX_REPLICAS);
        map.replicas(n).iter().for_each(can_be_connected_to);
    }
    assert_eq!(map.replicas(map.nodes().len()), []);
    let used: BTreeSet<_> = (0..SLOTS).filter_map(|slot| map.index(slot)).collect();
    assert!(used.into_iter().eq(0..map.nodes().len()), "every node has a slot");
    assert_eq!(map.index(SLOTS), None);

    let again = SlotMap::parse(&written(&map)).unwrap();
    assert!((0..SLOTS).all(|slot| map.node(slot) == again.node(slot)));

    // Slots that move, to nodes that there are and are not.
    let before: Vec<_> = (0..SLOTS).map(|slot| map.index(slot)).collect();
    for pair in data.chunks_exact(3).take(64) {
        let slot = u16::from_be_bytes([pair[0], pair[1]]);
        let node = usize::from(pair[2]);
        let there = slot < SLOTS && node < map.nodes().len();
        let expected = if there { Some(node) } else { map.index(slot) };
        map.assign(slot, node);
        assert_eq!(map.index(slot), expected);
    }
    let moved = (0..SLOTS).filter(|&slot| map.index(slot) != before[usize::from(slot)]);
    assert!(moved.count() <= 64);
}

fn can_be_connected_to(node: &Node) {
    assert!(node.port != 0 && node.host.len() <= 255);
    assert!(!node.host.contains(['/', '@', ' ', '[', ']']));
}

/// The same as an answer to `CLUSTER SLOTS`, in the notation of Redis 7.
fn written(map: &SlotMap) -> Vec<u8> {
    let mut ranges: Vec<(u16, u16, &Node)> = Vec::new();
    for slot in 0..SLOTS {
        let Some(node) = map.node(slot) else { continue };
        match ranges.last_mut() {
            Some((_, last, same)) if *last + 1 == slot && *same == node => *last = slot,
            _ => ranges.push((slot, slot, node)),
        }
    }
    let mut reply = format!("*{}\r\n", ranges.len());
    for (first, last, Node { host, port }) in ranges {
        reply += &format!("*3\r\n:{first}\r\n:{last}\r\n*4\r\n");
        // An address stands behind an unknown name.
        let is_address = host.parse::<IpAddr>().is_ok();
        reply += &bulk(if is_address { "?" } else { host });
        reply += &format!(":{port}\r\n{}", bulk("id"));
        reply += &match is_address {
            true => format!("*2\r\n{}{}", bulk("ip"), bulk(host)),
            false => "*0\r\n".into(),
        };
    }
    reply.into_bytes()
}

fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// Keys with one tag share a slot.
fn slot_of(tag: &[u8]) {
    assert!(hash_slot(tag) < SLOTS);
    if !tag.is_empty() && !tag.contains(&b'}') {
        let tagged = [b"tls:{", tag, b"}{rest}"].concat();
        assert_eq!(hash_slot(&tagged), hash_slot(tag));
    }
}
