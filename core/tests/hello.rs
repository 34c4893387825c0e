//! The ClientHello reader against recordings of real clients (`hellos/`, made by `hellos/record`)
//! and against bytes made by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use session_core::hello::{
    ClientHello, HelloReader, MAX_HELLO, MAX_IDENTITIES, Progress, ServerPolicy, SessionId,
    Setting, TicketOffer, Unreadable, wanted_ids,
};
use session_core::ticket_keys::KeyName;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

// Recordings.

const RECORDINGS: [&str; 21] = [
    "chromium-full",
    "chromium-resumed",
    "curl-full",
    "gnutls-12-resumed",
    "gnutls-full",
    "gnutls-resumed",
    "openssl-12-full",
    "openssl-12-resumed",
    "openssl-12-resumed-no-ticket",
    "openssl-12-session-at-13",
    "openssl-12-ticket",
    "openssl-13-early-data",
    "openssl-13-full",
    "openssl-13-psk",
    "openssl-13-psk-retried",
    "openssl-13-retried",
    "openssl-13-stateless-ticket",
    "python-12-full",
    "python-12-resumed",
    "python-13-full",
    "python-13-resumed",
];

struct Recording {
    name: &'static str,
    wire: Vec<u8>,
    /// What `record` made out, by its own means.
    expected: ClientHello,
}

fn recordings() -> impl Iterator<Item = Recording> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hellos");
    RECORDINGS.into_iter().map(move |name| {
        let wire = fs::read(folder.join(name).with_extension("bin")).unwrap();
        let facts = fs::read_to_string(folder.join(name).with_extension("txt")).unwrap();
        Recording { name, wire, expected: expectation(&facts) }
    })
}

fn expectation(facts: &str) -> ClientHello {
    let mut hello = ClientHello::default();
    let mut identities = Vec::new();
    let yes = |value| match value {
        "yes" => true,
        "no" => false,
        other => panic!("{other}"),
    };
    for line in facts.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.split_once('=').unwrap();
        match name {
            "tls13" => hello.offers_tls13 = yes(value),
            "early_data" => hello.early_data = yes(value),
            "ticket" => {
                hello.ticket = match value {
                    "absent" => TicketOffer::Absent,
                    "empty" => TicketOffer::Empty,
                    "present" => TicketOffer::Present,
                    other => panic!("{other}"),
                }
            }
            "ticket_key" => hello.ticket_key = Some(key_name(&unhex(value))),
            "session_id" => hello.session_id = SessionId::new(&unhex(value)),
            "identity" => identities.push(unhex(value)),
            other => panic!("{other}"),
        }
    }
    hello.identity_key = identities.first().filter(|it| it.len() >= 96).map(|it| key_name(it));
    identities.retain(|identity| identity.len() == 32);
    hello.identities = identities.iter().filter_map(|identity| SessionId::new(identity)).collect();
    hello
}

/// What a stateless ticket says its key by.
fn key_name(ticket: &[u8]) -> KeyName {
    KeyName(ticket[..16].try_into().unwrap())
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

#[test]
fn every_recording_is_read_as_it_was_recorded() {
    for Recording { name, wire, expected } in recordings() {
        assert_eq!(read(&wire), Progress::Complete(expected), "{name}");
    }
}

#[test]
fn what_others_have_read_of_a_recording_says_the_same() {
    for Recording { name, wire, expected } in recordings() {
        let (message, _) = message_of(&wire);
        let body = &message[4..];
        let id = &body[35..35 + usize::from(body[34])];
        let mut rest = body.get(extensions_at(body) + 2..).unwrap_or_default();
        let mut extensions = Vec::new();
        while let [a, b, high, low, after @ ..] = rest {
            let (data, more) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            extensions.push((u16::from_be_bytes([*a, *b]), data));
            rest = more;
        }
        let of = |kind| extensions.iter().find(|(one, _)| *one == kind).map(|(_, data)| *data);
        assert_eq!(ClientHello::from_parts(id, of), Some(expected.clone()), "{name}");
        // Data that is cut short is malformed, or was not read.
        for (cut, data) in extensions.iter().filter(|(_, data)| !data.is_empty()) {
            let short = |kind| {
                let data = if kind == *cut { Some(&data[..data.len() - 1]) } else { of(kind) };
                data.filter(|_| of(kind).is_some())
            };
            let read = ClientHello::from_parts(id, short);
            let ticket = 35;
            let same = [None, Some(&expected)].contains(&read.as_ref());
            assert!(same || *cut == ticket, "{name}: {cut}: {read:?}");
        }
    }
}

#[test]
fn every_recording_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hellos");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, RECORDINGS);
}

#[test]
fn a_recording_is_incomplete_until_its_message_ends() {
    for Recording { name, wire, expected } in recordings() {
        let (_, end) = message_of(&wire);
        let mut reader = HelloReader::new();
        for length in 0..end {
            assert_eq!(read(&wire[..length]), Progress::Incomplete, "{name} at {length}");
            assert_eq!(reader.read(&wire[..length]), Progress::Incomplete, "{name} at {length}");
        }
        assert_eq!(reader.read(&wire[..end]), Progress::Complete(expected), "{name}");
    }
}

#[test]
fn a_recording_reads_the_same_in_records_of_any_length() {
    for Recording { name, wire, expected } in recordings() {
        let (message, _) = message_of(&wire);
        for size in [1, 2, 3, 7, 31, 32, 33, 100] {
            let wire = records(&message, size);
            let whole = read(&wire);
            assert_eq!(whole, Progress::Complete(expected.clone()), "{name} by {size}");
            assert_eq!(read_bytewise(&wire), (whole, wire.len()), "{name} by {size}");
        }
        let size = message.len().div_ceil(2);
        assert_eq!(read(&records(&message, size)), Progress::Complete(expected), "{name}");
    }
}

#[test]
fn a_corrupted_recording_reads_the_same_however_it_arrives() {
    for Recording { name, wire, .. } in recordings() {
        let (_, end) = message_of(&wire);
        for at in 0..end {
            for mask in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut wire = wire[..end].to_vec();
                wire[at] ^= mask;
                let mut reader = HelloReader::new();
                let progress = match reader.read(&wire[..at + 1]) {
                    Progress::Incomplete => reader.read(&wire),
                    other => other,
                };
                assert_eq!(progress, read(&wire), "{name} at {at} by {mask:#x}");
            }
        }
    }
}

#[test]
fn a_shortened_message_is_never_read() {
    // The lengths outside agree with what is left, those inside do not.
    for Recording { name, wire, .. } in recordings() {
        let (message, _) = message_of(&wire);
        let extensions = extensions_at(&message[4..]);
        for length in (0..message.len() - 4).filter(|length| *length != extensions) {
            let wire = records(&handshake(1, &message[4..4 + length]), 16384);
            assert_eq!(read(&wire), malformed(), "{name} at {length}");
        }
    }
}

/// The handshake message a recording begins with, and where on the wire it ends.
fn message_of(wire: &[u8]) -> (Vec<u8>, usize) {
    let mut message = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(wire[at + 3]) << 8 | usize::from(wire[at + 4]);
        message.extend_from_slice(&wire[at + 5..at + 5 + length]);
        at += 5 + length;
        let end = 4
            + (usize::from(message[1]) << 16 | usize::from(message[2]) << 8)
            + usize::from(message[3]);
        if message.len() >= end {
            at -= message.len() - end;
            message.truncate(end);
            return (message, at);
        }
    }
}

/// Where the extensions begin: a ClientHello may end there.
fn extensions_at(body: &[u8]) -> usize {
    let mut at = 2 + 32;
    at += 1 + usize::from(body[at]);
    at += 2 + (usize::from(body[at]) << 8 | usize::from(body[at + 1]));
    at + 1 + usize::from(body[at])
}

// Made by hand: the framing.

#[test]
fn nothing_is_incomplete() {
    assert_eq!(read(&[]), Progress::Incomplete);
}

#[test]
fn other_protocols_are_not_a_handshake() {
    let sslv2 = [0x80, 0x2e, 0x01, 0x03, 0x01, 0x00, 0x15, 0x00, 0x00];
    for wire in [&b"GET / HTTP/1.1\r\n"[..], b"PROXY TCP4 ", &sslv2, &[0], &[255; 64]] {
        assert_eq!(read(wire), Progress::Unreadable(Unreadable::NotHandshake));
        assert_eq!(read(&wire[..1]), Progress::Unreadable(Unreadable::NotHandshake));
    }
}

#[test]
fn another_record_before_the_message_ends_is_not_a_handshake() {
    let message = Hello::tls13().message();
    for content in [20, 21, 23, 24] {
        let mut wire = records(&message[..40], 40);
        wire.extend([content, 3, 3, 0, 1, 1]);
        wire.extend(records(&message[40..], 16384));
        assert_eq!(read(&wire), Progress::Unreadable(Unreadable::NotHandshake));
        assert_eq!(read(&wire[..46]), Progress::Unreadable(Unreadable::NotHandshake));
    }
}

#[test]
fn another_message_is_not_a_client_hello() {
    for kind in [0, 2, 11, 16, 20, 255] {
        let wire = records(&handshake(kind, &Hello::tls13().body()), 16384);
        assert_eq!(read(&wire), Progress::Unreadable(Unreadable::NotClientHello));
        assert_eq!(read(&wire[..6]), Progress::Unreadable(Unreadable::NotClientHello));
        assert_eq!(read(&wire[..5]), Progress::Incomplete);
    }
}

#[test]
fn a_record_of_another_major_version_is_bad() {
    for major in [0, 1, 2, 4, 254] {
        assert_eq!(read(&[22, major]), Progress::Unreadable(Unreadable::BadRecord));
    }
    for minor in [0, 1, 3, 4, 255] {
        let mut wire = Hello::tls13().wire();
        wire[2] = minor;
        assert!(matches!(read(&wire), Progress::Complete(_)));
    }
}

#[test]
fn an_empty_record_is_bad() {
    assert_eq!(read(&[22, 3, 1, 0, 0]), Progress::Unreadable(Unreadable::BadRecord));
    let mut wire = records(&Hello::tls13().message()[..40], 40);
    wire.extend([22, 3, 1, 0, 0]);
    assert_eq!(read(&wire), Progress::Unreadable(Unreadable::BadRecord));
}

#[test]
fn a_record_that_is_too_long_is_bad() {
    assert_eq!(read(&[22, 3, 1, 0x41, 0x01]), Progress::Unreadable(Unreadable::BadRecord));
    assert_eq!(read(&[22, 3, 1, 0x41, 0x00]), Progress::Incomplete);
}

#[test]
fn a_hello_of_the_greatest_length_is_read_and_no_longer_one() {
    let longest = Hello::tls13().padded_to(MAX_HELLO).message();
    assert!(matches!(read(&records(&longest, 16384)), Progress::Complete(_)));

    let longer = Hello::tls13().padded_to(MAX_HELLO + 1).message();
    let wire = records(&longer, 16384);
    assert_eq!(read(&wire[..9]), Progress::Unreadable(Unreadable::TooLarge));
    assert_eq!(read(&wire[..8]), Progress::Incomplete);
    assert_eq!(read_bytewise(&records(&longer, 1)).0, Progress::Unreadable(Unreadable::TooLarge));
}

#[test]
fn the_work_is_linear_in_the_bytes() {
    let wire = records(&Hello::tls13().padded_to(MAX_HELLO).message(), 1);
    let begin = Instant::now();
    let (progress, end) = read_bytewise(&wire);
    assert!(matches!(progress, Progress::Complete(_)));
    assert_eq!(end, wire.len());
    // 196608 reads: each from the start would be 3 thousand million records to walk.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[test]
fn bytes_after_the_message_are_not_looked_at() {
    let message = Hello::tls13().message();
    let expected = read(&records(&message, 16384));
    assert!(matches!(expected, Progress::Complete(_)));
    for tail in [&[0][..], &[22, 3, 3, 0, 0], &[23, 3, 3, 0, 9, 1, 2], &[255; 100]] {
        let mut wire = records(&message, 100);
        wire.extend_from_slice(tail);
        assert_eq!(read(&wire), expected);
        let same_record = [&message[..], tail].concat();
        assert_eq!(read(&records(&same_record, 16384)), expected);
        let record_cut_short = &records(&same_record, 16384)[..5 + message.len()];
        assert_eq!(read(record_cut_short), expected);
    }
}

#[test]
fn garbage_is_never_read() {
    let mut random = Random(1);
    for round in 0..20_000 {
        let mut wire: Vec<u8> = (0..random.below(200)).map(|_| random.byte()).collect();
        let start = [22, 3, 1, 0, 150, 1, 0, 0, 140, 3, 3];
        let kept = random.below(start.len() + 1).min(wire.len());
        wire[..kept].copy_from_slice(&start[..kept]);
        let progress = read(&wire);
        assert!(!matches!(progress, Progress::Complete(_)), "{round}: {wire:?}");
        let mut reader = HelloReader::new();
        let bytewise = (0..=wire.len())
            .map(|length| reader.read(&wire[..length]))
            .find(|progress| *progress != Progress::Incomplete);
        assert_eq!(bytewise.unwrap_or(Progress::Incomplete), progress, "{round}: {wire:?}");
    }
}

#[test]
fn a_shorter_wire_than_before_is_incomplete() {
    let wire = records(&Hello::tls13().message(), 10);
    let mut reader = HelloReader::new();
    assert_eq!(reader.read(&wire[..100]), Progress::Incomplete);
    assert_eq!(reader.read(&wire[..20]), Progress::Incomplete);
    assert!(matches!(reader.read(&wire), Progress::Complete(_)));
}

// Made by hand: the message.

#[test]
fn a_hello_without_extensions_is_read() {
    let hello = Hello { extensions: None, session_id: vec![7; 5], ..Hello::tls13() };
    let expected = ClientHello { session_id: SessionId::new(&[7; 5]), ..ClientHello::default() };
    assert_eq!(read(&hello.wire()), Progress::Complete(expected));
}

#[test]
fn a_hello_with_no_extension_in_its_list_is_read() {
    let hello = Hello { extensions: Some(vec![]), session_id: vec![], ..Hello::tls13() };
    assert_eq!(read(&hello.wire()), Progress::Complete(ClientHello::default()));
}

#[test]
fn session_ids_of_every_length_are_read_and_no_longer_ones() {
    for length in 0..=32 {
        let session_id = vec![length; usize::from(length)];
        let hello = complete(&Hello { session_id: session_id.clone(), ..Hello::tls13() });
        assert_eq!(hello.session_id, SessionId::new(&session_id));
    }
    assert_malformed(Hello { session_id: vec![1; 33], ..Hello::tls13() });
    assert_malformed(Hello { session_id: vec![1; 255], ..Hello::tls13() });
}

#[test]
fn cipher_suites_and_compression_methods_keep_their_grammar() {
    assert_malformed(Hello { cipher_suites: vec![], ..Hello::tls13() });
    assert_malformed(Hello { cipher_suites: vec![0x13, 0x01, 0x13], ..Hello::tls13() });
    assert_malformed(Hello { compression_methods: vec![], ..Hello::tls13() });
}

#[test]
fn trailing_bytes_are_malformed() {
    let body = Hello::tls13().body();
    let longer = [&body[..], &[0]].concat();
    assert_eq!(read(&records(&handshake(1, &longer), 16384)), malformed());

    let bare = Hello { extensions: None, ..Hello::tls13() }.body();
    for tail in [&[0][..], &[0, 1], &[0, 0, 0], &[0, 4, 0, 9, 0, 1], &[0, 3, 0, 9, 0]] {
        let body = [&bare[..], tail].concat();
        assert_eq!(read(&records(&handshake(1, &body), 16384)), malformed(), "{tail:?}");
    }
}

#[test]
fn an_extension_that_comes_twice_is_malformed() {
    for extension in [
        (SUPPORTED_VERSIONS, vec![2, 3, 4]),
        (SESSION_TICKET, vec![]),
        (EARLY_DATA, vec![]),
        (PSK_MODES, vec![1, 1]),
        (0, vec![1, 2, 3]),
        (63, vec![]),
    ] {
        let once = Hello { extensions: Some(vec![extension.clone()]), ..Hello::tls13() };
        complete(&once);
        let apart = vec![extension.clone(), (1000, vec![]), extension];
        assert_malformed(Hello { extensions: Some(apart), ..Hello::tls13() });
    }
}

#[test]
fn unknown_extensions_are_passed_over() {
    let mut hello = Hello::tls13();
    hello.extensions.as_mut().unwrap().extend([
        (0x0a0a, vec![]),
        (0xfafa, vec![0]),
        (0xff01, vec![0]),
        (65535, vec![9; 5000]),
        (64, vec![9; 3]),
    ]);
    assert!(complete(&hello).offers_tls13);
}

#[test]
fn tls13_is_offered_only_in_supported_versions() {
    for (list, offered) in [
        (vec![2, 3, 4], true),
        (vec![6, 0x7a, 0x7a, 3, 4, 3, 3], true),
        (vec![4, 3, 3, 3, 4], true),
        (vec![2, 3, 3], false),
        (vec![4, 0x04, 0x03, 0x03, 0x03], false),
    ] {
        let extensions = Some(vec![(SUPPORTED_VERSIONS, list)]);
        assert_eq!(complete(&Hello { extensions, ..Hello::tls13() }).offers_tls13, offered);
    }
    let extensions = Some(vec![]);
    assert!(!complete(&Hello { extensions, version: [3, 4], ..Hello::tls13() }).offers_tls13);
}

#[test]
fn small_extensions_keep_their_grammar() {
    for (kind, data) in [
        (SUPPORTED_VERSIONS, vec![]),
        (SUPPORTED_VERSIONS, vec![0]),
        (SUPPORTED_VERSIONS, vec![1, 3]),
        (SUPPORTED_VERSIONS, vec![3, 3, 4, 3]),
        (SUPPORTED_VERSIONS, vec![4, 3, 4]),
        (SUPPORTED_VERSIONS, vec![2, 3, 4, 0]),
        (PSK_MODES, vec![]),
        (PSK_MODES, vec![0]),
        (PSK_MODES, vec![2, 1]),
        (PSK_MODES, vec![1, 1, 1]),
        (EARLY_DATA, vec![0]),
    ] {
        assert_malformed(Hello { extensions: Some(vec![(kind, data)]), ..Hello::tls13() });
    }
}

#[test]
fn a_ticket_is_absent_empty_or_present() {
    let hello = |extensions| Hello { extensions: Some(extensions), ..Hello::tls13() };
    assert_eq!(complete(&hello(vec![])).ticket, TicketOffer::Absent);
    assert_eq!(complete(&hello(vec![(SESSION_TICKET, vec![])])).ticket, TicketOffer::Empty);
    for length in [1, 32, 192, 5000] {
        let ticket = vec![(SESSION_TICKET, vec![5; length])];
        assert_eq!(complete(&hello(ticket)).ticket, TicketOffer::Present);
    }
}

#[test]
fn early_data_is_seen() {
    let mut hello = Hello::tls13();
    assert!(!complete(&hello).early_data);
    hello.extensions.as_mut().unwrap().push((EARLY_DATA, vec![]));
    assert!(complete(&hello).early_data);
}

// Made by hand: pre_shared_key.

#[test]
fn identities_are_read_in_order_and_no_more_than_the_limit() {
    let all: Vec<_> = (1..=7).map(|byte| vec![byte; 32]).collect();
    for count in 1..=7 {
        let hello = complete(&Hello::tls13().with_identities(&all[..count]));
        assert_eq!(ids_of(&hello), all[..count.min(MAX_IDENTITIES)]);
    }
}

#[test]
fn identities_of_other_lengths_are_skipped() {
    let lengths = [1, 31, 32, 33, 64, 208, 3000, 32];
    let identities: Vec<_> = (1..).zip(lengths).map(|(byte, length)| vec![byte; length]).collect();
    let hello = complete(&Hello::tls13().with_identities(&identities));
    assert_eq!(ids_of(&hello), [[3; 32], [8; 32]]);
}

#[test]
fn identities_after_many_skipped_ones_are_read() {
    let mut identities = vec![vec![1; 100]; 50];
    identities.push(vec![2; 32]);
    let hello = complete(&Hello::tls13().with_identities(&identities));
    assert_eq!(ids_of(&hello), [[2; 32]]);
}

#[test]
fn an_identity_that_comes_twice_is_reported_once() {
    let identities = [1, 2, 1, 1, 3, 2, 4].map(|byte| vec![byte; 32]);
    let hello = complete(&Hello::tls13().with_identities(&identities));
    assert_eq!(ids_of(&hello), [[1; 32], [2; 32], [3; 32], [4; 32]]);
    let server = ServerPolicy { tls13: Setting::On, tickets: Setting::Off };
    assert_eq!(wanted_ids(&hello, &server).tickets, hello.identities);
}

#[test]
fn an_identity_is_read_across_records_wherever_they_are_cut() {
    let identities = [(0..32).collect(), (100..132).collect::<Vec<u8>>()];
    let hello = Hello::tls13().with_identities(&identities);
    let message = hello.message();
    for cut in 1..message.len() {
        let mut wire = records(&message[..cut], 16384);
        wire.extend(records(&message[cut..], 16384));
        match read(&wire) {
            Progress::Complete(hello) => assert_eq!(ids_of(&hello), identities, "{cut}"),
            other => panic!("{cut}: {other:?}"),
        }
    }
}

#[test]
fn identities_without_a_known_key_exchange_mode_are_not_kept() {
    for (modes, kept) in [
        (None, 0),
        (Some(vec![1, 0x0b]), 0),
        (Some(vec![1, 0]), 1),
        (Some(vec![1, 1]), 1),
        (Some(vec![3, 0x0b, 0, 1]), 1),
    ] {
        let mut extensions = vec![(SUPPORTED_VERSIONS, vec![2, 3, 4])];
        extensions.extend(modes.map(|modes| (PSK_MODES, modes)));
        extensions.push((PRE_SHARED_KEY, psk(&[vec![1; 32]], &[32])));
        let hello = complete(&Hello { extensions: Some(extensions), ..Hello::tls13() });
        assert_eq!(hello.identities.len(), kept);
    }
}

#[test]
fn pre_shared_key_anywhere_but_last_is_malformed() {
    let mut hello = Hello::tls13().with_identities(&[vec![1; 32]]);
    complete(&hello);
    hello.extensions.as_mut().unwrap().push((1000, vec![]));
    assert_malformed(hello);
}

#[test]
fn pre_shared_key_keeps_its_grammar() {
    let id = vec![1; 32];
    let good = psk(std::slice::from_ref(&id), &[32]);
    let with = |data: Vec<u8>| {
        let mut hello = Hello::tls13();
        hello.extensions.as_mut().unwrap().push((PRE_SHARED_KEY, data));
        hello
    };
    complete(&with(good.clone()));
    complete(&with(psk(&[id.clone(), vec![2; 1]], &[255, 48])));

    for length in 0..good.len() {
        assert_malformed(with(good[..length].to_vec()));
    }
    assert_malformed(with([&good[..], &[0]].concat()));
    assert_malformed(with(psk(&[], &[])));
    assert_malformed(with(psk(&[vec![]], &[32])));
    assert_malformed(with(psk(&[id.clone(), vec![]], &[32, 32])));
    assert_malformed(with(psk(&[id.clone(), id.clone()], &[32])));
    assert_malformed(with(psk(std::slice::from_ref(&id), &[32, 32])));
    assert_malformed(with(psk(std::slice::from_ref(&id), &[31])));
    assert_malformed(with(psk(std::slice::from_ref(&id), &[])));

    // An age cut short, an identity and a binder longer than the list they are in.
    let identities = |list: Vec<u8>| [vector16(&list), vector16(&vector8(&[0; 32]))].concat();
    complete(&with(identities([vector16(&id), vec![0; 4]].concat())));
    assert_malformed(with(identities([vector16(&id), vec![0; 3]].concat())));
    assert_malformed(with(identities([vector16(&id), vec![0; 5]].concat())));
    assert_malformed(with(identities([&[0, 37], &id[..], &[0; 4]].concat())));
    let one = vector16(&[vector16(&id), vec![0; 4]].concat());
    assert_malformed(with([one, vector16(&[33; 33])].concat()));
}

// Help.

const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const PSK_MODES: u16 = 45;

/// A ClientHello to be.
struct Hello {
    version: [u8; 2],
    session_id: Vec<u8>,
    cipher_suites: Vec<u8>,
    compression_methods: Vec<u8>,
    extensions: Option<Vec<(u16, Vec<u8>)>>,
}

impl Hello {
    fn tls13() -> Self {
        Self {
            version: [3, 3],
            session_id: vec![0x5e; 32],
            cipher_suites: vec![0x13, 0x01, 0x13, 0x02],
            compression_methods: vec![0],
            extensions: Some(vec![
                (0, b"\0\x0e\0\0\x0bexample.com".to_vec()),
                (PSK_MODES, vec![1, 1]),
                (SUPPORTED_VERSIONS, vec![4, 3, 4, 3, 3]),
            ]),
        }
    }

    fn with_identities(mut self, identities: &[Vec<u8>]) -> Self {
        let binders = vec![32; identities.len()];
        self.extensions.as_mut().unwrap().push((PRE_SHARED_KEY, psk(identities, &binders)));
        self
    }

    fn padded_to(mut self, length: usize) -> Self {
        let padding = length - self.message().len() - 4;
        self.extensions.as_mut().unwrap().push((21, vec![0; padding]));
        assert_eq!(self.message().len(), length);
        self
    }

    fn body(&self) -> Vec<u8> {
        let mut body = self.version.to_vec();
        body.extend([0xaa; 32]);
        body.extend(vector8(&self.session_id));
        body.extend(vector16(&self.cipher_suites));
        body.extend(vector8(&self.compression_methods));
        if let Some(extensions) = &self.extensions {
            let one =
                |(kind, data): &(u16, Vec<u8>)| [&kind.to_be_bytes()[..], &vector16(data)].concat();
            body.extend(vector16(&extensions.iter().flat_map(one).collect::<Vec<_>>()));
        }
        body
    }

    fn message(&self) -> Vec<u8> {
        handshake(1, &self.body())
    }

    fn wire(&self) -> Vec<u8> {
        records(&self.message(), 16384)
    }
}

fn psk(identities: &[Vec<u8>], binders: &[usize]) -> Vec<u8> {
    let identities: Vec<u8> =
        identities.iter().flat_map(|id| [vector16(id), vec![1, 2, 3, 4]].concat()).collect();
    let binders: Vec<u8> = binders.iter().flat_map(|length| vector8(&vec![6; *length])).collect();
    [vector16(&identities), vector16(&binders)].concat()
}

fn vector8(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap()], content].concat()
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// `message` in handshake records that carry `size` bytes each.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|chunk| [&[22, 3, 1], &vector16(chunk)[..]].concat()).collect()
}

fn read(wire: &[u8]) -> Progress {
    HelloReader::new().read(wire)
}

/// Reads with one reader and one byte more each time; says when it was done.
fn read_bytewise(wire: &[u8]) -> (Progress, usize) {
    let mut reader = HelloReader::new();
    (1..=wire.len())
        .map(|length| (reader.read(&wire[..length]), length))
        .find(|(progress, _)| *progress != Progress::Incomplete)
        .unwrap()
}

fn complete(hello: &Hello) -> ClientHello {
    match read(&hello.wire()) {
        Progress::Complete(hello) => hello,
        other => panic!("{other:?}"),
    }
}

/// Malformed, in one record and in many.
fn assert_malformed(hello: Hello) {
    assert_eq!(read(&hello.wire()), malformed());
    assert_eq!(read(&records(&hello.message(), 1)), malformed());
}

fn malformed() -> Progress {
    Progress::Unreadable(Unreadable::Malformed)
}

fn ids_of(hello: &ClientHello) -> Vec<&[u8]> {
    hello.identities.as_slice().iter().map(SessionId::as_bytes).collect()
}

/// Numbers without a pattern, the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn byte(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u8
    }

    fn below(&mut self, limit: usize) -> usize {
        (usize::from(self.byte()) << 8 | usize::from(self.byte())) % limit
    }
}
