//! The ClientHello reader: read as it arrives, the answer is that of all bytes at once, and what it
//! says is in the message.

use session_core::hello::{
    ClientHello, HelloReader, MAX_HELLO, MAX_IDENTITIES, Progress, ServerPolicy, SessionId,
    Setting, wanted_ids,
};

use super::arrivals::{arrivals, split};

const RECORD_HEADER: usize = 5;

/// Lengths of pieces, then what a connection begins with.
pub fn run(data: &[u8]) {
    let Some((lengths, wire)) = split(data) else { return };
    let whole = HelloReader::new().read(wire);

    let mut reader = HelloReader::new();
    for end in arrivals(lengths, wire.len()) {
        let progress = reader.read(&wire[..end]);
        assert_eq!(progress, HelloReader::new().read(&wire[..end]), "at {end}");
        if progress != Progress::Incomplete {
            assert_eq!(progress, whole, "more bytes change nothing");
            break;
        }
    }

    match whole {
        // Records of one byte are the worst that a message can be spread over.
        Progress::Incomplete => assert!(wire.len() <= (RECORD_HEADER + 1) * MAX_HELLO),
        Progress::Complete(hello) => complete(&hello, wire, lengths),
        Progress::Unreadable(_) => {}
    }
}

fn complete(hello: &ClientHello, wire: &[u8], lengths: &[u8]) {
    let message = message(wire);
    assert!(message.len() <= MAX_HELLO);

    // Neither what comes after it nor its records are of any meaning.
    let longer = [wire, &[23, 3, 3, 0, 0, 255]].concat();
    assert_eq!(HelloReader::new().read(&longer), Progress::Complete(hello.clone()));
    let size = usize::from(*lengths.first().unwrap_or(&255)).max(1);
    let again = records(&message, size);
    assert_eq!(HelloReader::new().read(&again), Progress::Complete(hello.clone()));
    let short = &again[..again.len() - 1];
    assert_eq!(HelloReader::new().read(short), Progress::Incomplete);

    // Header, version, random, and then the session ID.
    let session_id = &message[4 + 2 + 32 + 1..][..usize::from(message[4 + 2 + 32])];
    assert_eq!(hello.session_id.as_ref().map_or(&[][..], SessionId::as_bytes), session_id);
    for identity in hello.identities.as_slice() {
        assert_eq!(identity.as_bytes().len(), 32);
        assert!(message.windows(32).any(|bytes| bytes == identity.as_bytes()));
    }

    let settings = [Setting::On, Setting::Off, Setting::Differs];
    for (tls13, tickets) in settings.into_iter().flat_map(|one| settings.map(|two| (one, two))) {
        let wanted = wanted_ids(hello, &ServerPolicy { tls13, tickets });
        let ids = wanted.tickets.as_slice();
        assert!(ids.len() <= MAX_IDENTITIES);
        assert_eq!(wanted.iter().count(), wanted.len());
        if !ids.is_empty() {
            assert!(hello.offers_tls13 && tls13 != Setting::Off && tickets != Setting::On);
        }
        for (n, id) in ids.iter().enumerate() {
            assert!(!ids[..n].contains(id), "an ID comes once");
            assert!(hello.identities.as_slice().contains(id));
        }
        if wanted.session_id.is_some() {
            assert_eq!(hello.session_id, wanted.session_id);
            assert!(!hello.offers_tls13 || tls13 != Setting::On);
        }
        if tls13 != Setting::Differs {
            assert!(ids.is_empty() || wanted.session_id.is_none(), "one version is negotiated");
        }
    }
}

/// The handshake message that complete records begin with, put together in another way than the
/// reader's.
fn message(wire: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = wire;
    loop {
        if let [1, high, middle, low, ..] = message[..] {
            let length = 4 + (usize::from(high) << 16) + (usize::from(middle) << 8);
            let length = length + usize::from(low);
            if message.len() >= length {
                message.truncate(length);
                return message;
            }
        }
        let length = usize::from(rest[3]) << 8 | usize::from(rest[4]);
        let end = rest.len().min(RECORD_HEADER + length);
        message.extend_from_slice(&rest[RECORD_HEADER..end]);
        rest = &rest[end..];
    }
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8], part].concat();
    message.chunks(size).flat_map(record).collect()
}
