//! The ClientHello, read as it arrives, and the session IDs OpenSSL will ask its cache for because
//! of it.
//!
//! The reader allocates nothing and gathers nothing: it walks the TLS records where they lie and
//! copies the session IDs only. It reads what the decision needs and refuses what OpenSSL refuses;
//! whatever it refuses is OpenSSL's to answer, so a refusal costs a resumption and never a
//! handshake.

use core::fmt;

use subtle::ConstantTimeEq;

use crate::key_ring::Tls;
use crate::ticket_keys::{KeyName, NAME_LEN};

/// The most `pre_shared_key` identities kept of one ClientHello. Clients offer one or two; OpenSSL
/// asks its cache for each until one is found.
pub const MAX_IDENTITIES: usize = 4;

/// The longest ClientHello read, in bytes of handshake message, its four bytes of header included.
/// OpenSSL goes on to 131396 and decides about those alone.
pub const MAX_HELLO: usize = 32 * 1024;

/// The longest record taken for one that may carry a ClientHello: the bound on TLSCiphertext
/// (RFC 8446 §5.2). TLSPlaintext may hold 2^14 bytes; what lies between is OpenSSL's to refuse.
const MAX_RECORD: usize = 16384 + 256;

/// The longest session ID (RFC 5246 §7.4.1.2), and the length of each stateful TLS 1.3 ticket.
pub const MAX_SESSION_ID: usize = 32;

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
const RANDOM: usize = 32;

const CONTENT_HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
const CLIENT_HELLO: u8 = 1;
const TLS13: u16 = 0x0304;
const PSK_KE: u8 = 0;
const PSK_DHE_KE: u8 = 1;
const OBFUSCATED_TICKET_AGE: usize = 4;
const MIN_BINDER: usize = 32;
/// The name of a key, an initialisation vector, at least a block, and a MAC (RFC 5077 §4). Longer than a
/// stateful ticket.
const MIN_TICKET: usize = NAME_LEN + 16 + 16 + 32;

const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
const EARLY_DATA: u16 = 42;
const SUPPORTED_VERSIONS: u16 = 43;
const PSK_KEY_EXCHANGE_MODES: u16 = 45;

/// What the server would negotiate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerPolicy {
    /// TLS 1.3 is enabled.
    pub tls13: Setting,
    /// Stateless tickets are in use: `SSL_OP_NO_TICKET` is not set.
    pub tickets: Setting,
}

/// A setting of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// It is on.
    On,
    /// It is off.
    Off,
    /// It depends on which of several servers will answer.
    Differs,
}

/// The session IDs OpenSSL will ask its cache for, or may ask for where settings differ; none if it
/// will not ask.
///
/// - TLS 1.3 will be negotiated: the 32-byte identities of `pre_shared_key` (RFC 8446 §4.2.11), if
///   tickets are stateful. `legacy_session_id` is never looked up then (RFC 8446 §4.1.2).
/// - TLS 1.2 and below: the session ID (RFC 5246 §7.4.1.2), unless a ticket that is not empty is
///   offered to a server that takes tickets, where the ticket alone counts (RFC 5077 §3.4).
pub fn wanted_ids(hello: &ClientHello, server: &ServerPolicy) -> WantedIds {
    let tickets = hello.offers_tls13 && server.tls13 != Setting::Off;
    let session_id = !hello.offers_tls13 || server.tls13 != Setting::On;
    let ticket_counts = server.tickets == Setting::On && hello.ticket == TicketOffer::Present;
    let tickets = (tickets && server.tickets != Setting::On).then_some(hello.identities);
    WantedIds {
        tickets: tickets.unwrap_or_default(),
        session_id: hello.session_id.filter(|_| session_id && !ticket_counts),
    }
}

/// What [`wanted_ids`] answers. If no setting differs, one of the two is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedIds {
    /// Tickets of TLS 1.3, in the order in which OpenSSL asks for them.
    pub tickets: SessionIds,
    /// The session ID of TLS 1.2 and below.
    pub session_id: Option<SessionId>,
}

impl WantedIds {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.tickets.len().saturating_add(self.session_id.iter().len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, and what each is for.
    pub fn iter(&self) -> impl Iterator<Item = (&SessionId, Tls)> {
        let tickets = self.tickets.as_slice().iter().map(|id| (id, Tls::V13));
        tickets.chain(self.session_id.iter().map(|id| (id, Tls::UpTo12)))
    }
}

impl From<bool> for Setting {
    fn from(on: bool) -> Self {
        if on { Setting::On } else { Setting::Off }
    }
}

/// Where the reading of one ClientHello stands.
///
/// It remembers the record and the message length reached, so the work is linear in the bytes
/// received, however they are cut into segments and records.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// Where in the wire bytes the record begins that is being read.
    record: usize,
    /// Bytes of the message in the records before it.
    received: usize,
    /// The handshake header, as far as it has arrived.
    header: [u8; MESSAGE_HEADER],
}

/// What [`HelloReader::read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "it is handed over once, without an allocation")]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// The whole message has been read.
    Complete(ClientHello),
    /// Nothing for us to read: OpenSSL gets every byte untouched and decides.
    Unreadable(Unreadable),
}

/// Why the first bytes of a connection are not read as a ClientHello. The texts are log fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// A record that is not a handshake record came before the message was complete; SSLv2 and
    /// plain HTTP end here too.
    NotHandshake,
    /// The first handshake message is another one.
    NotClientHello,
    /// A record header with an unknown major version, or a length that is zero or out of bounds
    /// (RFC 8446 §5.1).
    BadRecord,
    /// The message is longer than [`MAX_HELLO`].
    TooLarge,
    /// The message breaks its grammar (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2).
    Malformed,
}

/// What a ClientHello says about the sessions its client would resume. It owns copies and outlives
/// the bytes it was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// `session_id` (RFC 5246 §7.4.1.2), `legacy_session_id` in RFC 8446 §4.1.2; `None` when empty.
    pub session_id: Option<SessionId>,
    /// TLS 1.3 is among `supported_versions` (RFC 8446 §4.2.1).
    pub offers_tls13: bool,
    /// The `session_ticket` extension (RFC 5077 §3.2).
    pub ticket: TicketOffer,
    /// What the ticket in that extension says its key by.
    pub ticket_key: Option<KeyName>,
    /// The first [`MAX_IDENTITIES`] different `pre_shared_key` identities of 32 bytes, the length
    /// of a stateful ticket (RFC 8446 §4.2.11), in order. Identities of other lengths are skipped;
    /// all are, as OpenSSL does, where the client names no key exchange mode for them (§4.2.9).
    pub identities: SessionIds,
    /// What the first of all identities says its key by, if it is a stateless ticket.
    pub identity_key: Option<KeyName>,
    /// Early data follows (RFC 8446 §4.2.10).
    pub early_data: bool,
}

/// The `session_ticket` extension of a ClientHello (RFC 5077 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TicketOffer {
    /// The extension is absent: the client takes no tickets.
    #[default]
    Absent,
    /// The extension is empty: the client has no ticket and would take one.
    Empty,
    /// A ticket is offered.
    Present,
}

/// A session ID of 1 to 32 bytes. It is a secret: `Debug` shows the length only, and comparison
/// takes the same time whatever the bytes are.
#[derive(Clone, Copy)]
pub struct SessionId {
    /// Zero from `length` on.
    bytes: [u8; MAX_SESSION_ID],
    length: u8,
}

/// Up to [`MAX_IDENTITIES`] different session IDs, in order.
#[derive(Clone, Copy)]
pub struct SessionIds {
    /// Unused from `length` on.
    ids: [SessionId; MAX_IDENTITIES],
    length: usize,
}

impl ClientHello {
    /// A ClientHello that somebody else has read, of whose extensions `extension` gives the data;
    /// `None` if what is read of them is malformed.
    pub fn from_parts<'a>(
        session_id: &[u8],
        extension: impl Fn(u16) -> Option<&'a [u8]>,
    ) -> Option<Self> {
        let mut hello = ClientHello::default();
        if !session_id.is_empty() {
            hello.session_id = Some(SessionId::new(session_id)?);
        }
        let mut psk_usable = false;
        // In an order in which each finds what it depends on.
        for kind in
            [SUPPORTED_VERSIONS, SESSION_TICKET, PSK_KEY_EXCHANGE_MODES, EARLY_DATA, PRE_SHARED_KEY]
        {
            if let Some(data) = extension(kind) {
                hello.extension(kind, Cursor::of(data), &mut psk_usable)?;
            }
        }
        Some(hello)
    }

    /// Takes in what an extension says.
    fn extension(&mut self, kind: u16, data: Cursor<'_>, psk_usable: &mut bool) -> Option<()> {
        match kind {
            SUPPORTED_VERSIONS => self.offers_tls13 = offers_tls13(data)?,
            SESSION_TICKET if data.is_empty() => self.ticket = TicketOffer::Empty,
            SESSION_TICKET => {
                self.ticket = TicketOffer::Present;
                self.ticket_key = key_name(data);
            }
            PSK_KEY_EXCHANGE_MODES => *psk_usable = psk_usable_with(data)?,
            EARLY_DATA => {
                data.end()?;
                self.early_data = true;
            }
            PRE_SHARED_KEY => {
                let (identities, key) = pre_shared_key(data)?;
                if *psk_usable {
                    self.identities = identities;
                    self.identity_key = key;
                }
            }
            _ => {}
        }
        Some(())
    }
}

impl HelloReader {
    /// A reader for the first bytes of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads on. `wire` is everything received since the connection began, as OpenSSL would get it:
    /// each call passes what the one before passed, and more. Bytes after the ClientHello are not
    /// looked at. Once the answer is not [`Progress::Incomplete`] there is nothing more to ask.
    pub fn read(&mut self, wire: &[u8]) -> Progress {
        match self.whole_message(wire) {
            Ok(None) => Progress::Incomplete,
            Ok(Some(message)) => match client_hello(message) {
                Some(hello) => Progress::Complete(hello),
                None => Progress::Unreadable(Unreadable::Malformed),
            },
            Err(reason) => Progress::Unreadable(reason),
        }
    }

    /// The body of the message once all of it has arrived. Moves over complete records only, so
    /// each byte is passed once, and at most four are looked at again.
    fn whole_message<'a>(&mut self, wire: &'a [u8]) -> Result<Option<Cursor<'a>>, Unreadable> {
        loop {
            let rest = wire.get(self.record..).unwrap_or_default();
            let Some((length, rest)) = record_header(rest)? else { return Ok(None) };
            let payload = rest.get(..length).unwrap_or(rest);

            for (slot, byte) in self.header.iter_mut().skip(self.received).zip(payload) {
                *slot = *byte;
            }
            let received = self.received.saturating_add(payload.len());
            let [kind, length_bytes @ ..] = self.header;
            if received > 0 && kind != CLIENT_HELLO {
                return Err(Unreadable::NotClientHello);
            }
            if received >= MESSAGE_HEADER {
                let body = uint24(length_bytes);
                let message = body.saturating_add(MESSAGE_HEADER);
                if message > MAX_HELLO {
                    return Err(Unreadable::TooLarge);
                }
                if received >= message {
                    let mut cursor = Cursor { chunk: &[], rest: wire, left: message };
                    return Ok(cursor.skip(MESSAGE_HEADER).map(|()| cursor));
                }
            }
            if payload.len() < length {
                return Ok(None);
            }
            self.received = received;
            self.record = self.record.saturating_add(RECORD_HEADER).saturating_add(length);
        }
    }
}

/// The length of the record that begins here, and what follows its header; `None` if the header is
/// incomplete (RFC 8446 §5.1).
fn record_header(wire: &[u8]) -> Result<Option<(usize, &[u8])>, Unreadable> {
    match *wire {
        [content, ..] if content != CONTENT_HANDSHAKE => Err(Unreadable::NotHandshake),
        [_, major, ..] if major != VERSION_MAJOR => Err(Unreadable::BadRecord),
        [_, _, _, high, low, ref rest @ ..] => match uint24([0, high, low]) {
            0 => Err(Unreadable::BadRecord),
            length if length > MAX_RECORD => Err(Unreadable::BadRecord),
            length => Ok(Some((length, rest))),
        },
        _ => Ok(None),
    }
}

/// Reads the body of a ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2); `None` if it is malformed.
fn client_hello(mut body: Cursor<'_>) -> Option<ClientHello> {
    let mut hello = ClientHello::default();

    let _legacy_version = body.u16()?;
    body.skip(RANDOM)?;
    let session_id = body.vector8()?;
    if !session_id.is_empty() {
        hello.session_id = Some(session_id.session_id()?);
    }
    let cipher_suites = body.vector16()?;
    if cipher_suites.is_empty() || cipher_suites.left % 2 != 0 {
        return None;
    }
    let compression_methods = body.vector8()?;
    if compression_methods.is_empty() {
        return None;
    }
    // TLS 1.2 and below may leave the extensions out.
    if !body.is_empty() {
        extensions(body.vector16()?, &mut hello)?;
    }
    body.end()?;
    Some(hello)
}

/// Reads the extensions (RFC 8446 §4.2).
fn extensions(mut list: Cursor<'_>, hello: &mut ClientHello) -> Option<()> {
    let mut seen = 0_u64;
    let mut psk_usable = false;

    while !list.is_empty() {
        let kind = list.u16()?;
        let data = list.vector16()?;

        // No type may come twice. One bit each has every type that is read here and nearly all
        // that OpenSSL knows; it refuses the rest by itself.
        if let Some(bit) = 1_u64.checked_shl(u32::from(kind)) {
            if seen & bit != 0 {
                return None;
            }
            seen |= bit;
        }
        // The binders cover all that comes before them: it is the last one (§4.2.11).
        if kind == PRE_SHARED_KEY && !list.is_empty() {
            return None;
        }
        hello.extension(kind, data, &mut psk_usable)?;
    }
    Some(())
}

/// The name in the data of a `server_name` extension (RFC 6066 §3); none if there is none that is
/// well-formed.
pub fn server_name(data: &[u8]) -> Option<&[u8]> {
    const HOST_NAME: u8 = 0;
    let (list, names) = data.split_first_chunk()?;
    let (&[HOST_NAME, high, low], name) = names.split_first_chunk()? else { return None };
    let whole = usize::from(u16::from_be_bytes(*list)) == names.len();
    let alone = usize::from(u16::from_be_bytes([high, low])) == name.len();
    (whole && alone && !name.is_empty()).then_some(name)
}

/// Reads `supported_versions` (RFC 8446 §4.2.1).
fn offers_tls13(mut data: Cursor<'_>) -> Option<bool> {
    let mut versions = data.vector8()?;
    data.end()?;
    if versions.is_empty() {
        return None;
    }
    let mut found = false;
    while !versions.is_empty() {
        found |= versions.u16()? == TLS13;
    }
    Some(found)
}

/// Reads `psk_key_exchange_modes` (RFC 8446 §4.2.9): whether a known mode is among them. Whether
/// `psk_ke` is let in is an option of OpenSSL; nginx leaves it off.
fn psk_usable_with(mut data: Cursor<'_>) -> Option<bool> {
    let mut modes = data.vector8()?;
    data.end()?;
    if modes.is_empty() {
        return None;
    }
    let mut usable = false;
    while !modes.is_empty() {
        usable |= matches!(modes.u8()?, PSK_KE | PSK_DHE_KE);
    }
    Some(usable)
}

/// What a stateless ticket says its key by; none if it is too short for one.
fn key_name(mut ticket: Cursor<'_>) -> Option<KeyName> {
    if ticket.left < MIN_TICKET {
        return None;
    }
    Some(KeyName(ticket.array()?))
}

/// Reads `pre_shared_key` (RFC 8446 §4.2.11): the identities of 32 bytes, and what the first of all says
/// its key by if it is a stateless ticket.
fn pre_shared_key(mut data: Cursor<'_>) -> Option<(SessionIds, Option<KeyName>)> {
    let mut identities = data.vector16()?;
    let mut binders = data.vector16()?;
    data.end()?;
    if identities.is_empty() {
        return None;
    }

    let mut ids = SessionIds::new();
    let first = identities.clone().vector16().and_then(key_name);
    while !identities.is_empty() {
        let identity = identities.vector16()?;
        identities.skip(OBFUSCATED_TICKET_AGE)?;
        match identity.left {
            0 => return None,
            MAX_SESSION_ID => ids.push(identity.session_id()?),
            _ => {}
        }
        // One binder for each identity.
        if binders.vector8()?.left < MIN_BINDER {
            return None;
        }
    }
    binders.end()?;
    Some((ids, first))
}

/// A vector of the message, or what is left of it to read, where it lies on the wire: spread over
/// as many records as the client chose. A read that goes beyond its end is refused.
#[derive(Clone)]
struct Cursor<'a> {
    /// What is left of the current record's payload.
    chunk: &'a [u8],
    /// The records after it. Their headers have been checked.
    rest: &'a [u8],
    /// Bytes left of the vector.
    left: usize,
}

impl<'a> Cursor<'a> {
    /// What lies together.
    fn of(data: &'a [u8]) -> Self {
        Cursor { chunk: data, rest: &[], left: data.len() }
    }

    fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Refuses trailing bytes.
    fn end(&self) -> Option<()> {
        self.is_empty().then_some(())
    }

    fn u8(&mut self) -> Option<u8> {
        let [byte] = self.array()?;
        Some(byte)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        match self.chunk.split_first_chunk() {
            // They lie together, as nearly always.
            Some((bytes, chunk)) => {
                self.chunk = chunk;
                self.left = self.left.checked_sub(N)?;
                Some(*bytes)
            }
            _ => {
                let mut bytes = [0; N];
                self.copy_to(&mut bytes)?;
                Some(bytes)
            }
        }
    }

    /// The vector whose length the next byte says.
    fn vector8(&mut self) -> Option<Self> {
        let length = usize::from(self.u8()?);
        self.vector(length)
    }

    /// The vector whose length the next two bytes say.
    fn vector16(&mut self) -> Option<Self> {
        let length = usize::from(self.u16()?);
        self.vector(length)
    }

    fn vector(&mut self, length: usize) -> Option<Self> {
        let vector = Self { left: length, ..self.clone() };
        self.skip(length)?;
        Some(vector)
    }

    /// All that is left, as a session ID; `None` if it is empty or too long for one.
    fn session_id(mut self) -> Option<SessionId> {
        let mut bytes = [0; MAX_SESSION_ID];
        let id = bytes.get_mut(..self.left)?;
        self.copy_to(id)?;
        SessionId::new(id)
    }

    fn copy_to(&mut self, mut to: &mut [u8]) -> Option<()> {
        while !to.is_empty() {
            let part = self.part(to.len())?;
            let (now, later) = to.split_at_mut_checked(part.len())?;
            now.copy_from_slice(part);
            to = later;
        }
        Some(())
    }

    fn skip(&mut self, mut length: usize) -> Option<()> {
        while length > 0 {
            length = length.checked_sub(self.part(length)?.len())?;
        }
        Some(())
    }

    /// The next bytes that lie together: at least one, and no more than `most`, which is not zero.
    /// `None` if fewer than `most` bytes are left.
    fn part(&mut self, most: usize) -> Option<&'a [u8]> {
        if most > self.left {
            return None;
        }
        if self.chunk.is_empty() {
            let (length, rest) = record_header(self.rest).ok()??;
            (self.chunk, self.rest) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        }
        let (part, chunk) = self.chunk.split_at_checked(most).unwrap_or((self.chunk, &[]));
        self.chunk = chunk;
        self.left = self.left.checked_sub(part.len())?;
        (!part.is_empty()).then_some(part)
    }
}

fn uint24([high, middle, low]: [u8; 3]) -> usize {
    usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
}

impl SessionId {
    /// The session ID with these bytes; `None` unless there are 1 to 32.
    pub fn new(id: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_SESSION_ID];
        bytes.get_mut(..id.len())?.copy_from_slice(id);
        let length = u8::try_from(id.len()).ok()?;
        (length > 0).then_some(Self { bytes, length })
    }

    /// A name for the ID in logs: 32 bits of it that give nothing away (FNV-1a).
    pub fn short_hash(&self) -> u32 {
        self.as_bytes()
            .iter()
            .fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&self.bytes)
    }

    /// What fills the unused places of a list; it is not a session ID and never leaves it.
    const UNUSED: Self = Self { bytes: [0; MAX_SESSION_ID], length: 0 };
}

impl PartialEq for SessionId {
    fn eq(&self, other: &Self) -> bool {
        (self.length.ct_eq(&other.length) & self.bytes.ct_eq(&other.bytes)).into()
    }
}

impl Eq for SessionId {}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({} bytes)", self.length)
    }
}

impl SessionIds {
    /// No session IDs.
    pub const fn new() -> Self {
        Self { ids: [SessionId::UNUSED; MAX_IDENTITIES], length: 0 }
    }

    /// The session IDs.
    pub fn as_slice(&self) -> &[SessionId] {
        self.ids.get(..self.length).unwrap_or(&self.ids)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Adds `id` unless it is here already or the list is full.
    fn push(&mut self, id: SessionId) {
        // A full list needs no comparisons: there may be hundreds more.
        if self.length == MAX_IDENTITIES || self.as_slice().contains(&id) {
            return;
        }
        if let Some(place) = self.ids.get_mut(self.length) {
            *place = id;
            self.length = self.length.saturating_add(1);
        }
    }
}

impl Default for SessionIds {
    fn default() -> Self {
        Self::new()
    }
}

impl FromIterator<SessionId> for SessionIds {
    /// The first [`MAX_IDENTITIES`] different ones.
    fn from_iter<I: IntoIterator<Item = SessionId>>(ids: I) -> Self {
        let mut list = Self::new();
        ids.into_iter().for_each(|id| list.push(id));
        list
    }
}

impl PartialEq for SessionIds {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for SessionIds {}

impl fmt::Debug for SessionIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHandshake => "not a handshake record",
            Self::NotClientHello => "not a client hello",
            Self::BadRecord => "bad record header",
            Self::TooLarge => "client hello too large",
            Self::Malformed => "malformed client hello",
        })
    }
}

impl core::error::Error for Unreadable {}

#[cfg(test)]
mod tests {
    use super::Setting::{Differs, Off, On};
    use super::*;
    use std::format;
    use std::vec::Vec;

    const TICKETS: ServerPolicy = policy(On, On);
    const NO_TICKETS: ServerPolicy = policy(On, Off);
    const SETTINGS: [Setting; 3] = [On, Off, Differs];

    const fn policy(tls13: Setting, tickets: Setting) -> ServerPolicy {
        ServerPolicy { tls13, tickets }
    }

    fn id(byte: u8) -> SessionId {
        SessionId::new(&[byte; 32]).unwrap()
    }

    fn tls12_hello(ticket: TicketOffer) -> ClientHello {
        ClientHello { session_id: Some(id(1)), ticket, ..ClientHello::default() }
    }

    fn tls13_hello() -> ClientHello {
        ClientHello {
            session_id: Some(id(1)),
            offers_tls13: true,
            identities: [id(2), id(3)].into_iter().collect(),
            ..ClientHello::default()
        }
    }

    fn wanted(hello: &ClientHello, server: ServerPolicy) -> Vec<(SessionId, Tls)> {
        wanted_ids(hello, &server).iter().map(|(id, tls)| (*id, tls)).collect()
    }

    #[test]
    fn tls13_wants_the_identities_in_order_where_tickets_are_stateful() {
        assert_eq!(wanted(&tls13_hello(), NO_TICKETS), [(id(2), Tls::V13), (id(3), Tls::V13)]);
    }

    #[test]
    fn tls13_wants_nothing_where_tickets_are_stateless() {
        assert!(wanted_ids(&tls13_hello(), &TICKETS).is_empty());
    }

    #[test]
    fn tls13_never_wants_the_legacy_session_id() {
        let hello = ClientHello { identities: SessionIds::new(), ..tls13_hello() };
        for tickets in SETTINGS {
            assert!(wanted_ids(&hello, &policy(On, tickets)).is_empty());
        }
    }

    #[test]
    fn a_tls13_client_at_a_tls12_server_wants_its_session_id() {
        for tickets in SETTINGS {
            assert_eq!(wanted(&tls13_hello(), policy(Off, tickets)), [(id(1), Tls::UpTo12)]);
        }
    }

    #[test]
    fn a_tls12_client_wants_its_session_id_whatever_the_server_speaks() {
        for tls13 in SETTINGS {
            for ticket in [TicketOffer::Absent, TicketOffer::Empty, TicketOffer::Present] {
                assert_eq!(
                    wanted(&tls12_hello(ticket), policy(tls13, Off)),
                    [(id(1), Tls::UpTo12)]
                );
            }
        }
    }

    #[test]
    fn a_ticket_takes_the_place_of_the_session_id_only_where_tickets_are_taken() {
        for tls13 in SETTINGS {
            let server = policy(tls13, On);
            assert!(wanted_ids(&tls12_hello(TicketOffer::Present), &server).is_empty());
            for ticket in [TicketOffer::Absent, TicketOffer::Empty] {
                assert_eq!(wanted(&tls12_hello(ticket), server), [(id(1), Tls::UpTo12)]);
            }
        }
    }

    #[test]
    fn where_settings_differ_all_is_wanted_that_either_server_wants() {
        let choices = |setting| match setting {
            Differs => [On, Off],
            known => [known; 2],
        };
        for hello in [
            tls13_hello(),
            ClientHello { ticket: TicketOffer::Present, ..tls13_hello() },
            tls12_hello(TicketOffer::Absent),
            tls12_hello(TicketOffer::Present),
        ] {
            for (tls13, tickets) in [(Differs, On), (Differs, Off), (On, Differs), (Off, Differs)] {
                let either: Vec<_> = choices(tls13)
                    .into_iter()
                    .flat_map(|tls13| choices(tickets).map(|tickets| policy(tls13, tickets)))
                    .flat_map(|server| wanted(&hello, server))
                    .collect();
                let both = wanted(&hello, policy(tls13, tickets));
                assert!(either.iter().all(|one| both.contains(one)));
                assert!(both.iter().all(|one| either.contains(one)));
            }
        }
        let all = wanted(&tls13_hello(), policy(Differs, Differs));
        assert_eq!(all, [(id(2), Tls::V13), (id(3), Tls::V13), (id(1), Tls::UpTo12)]);
    }

    #[test]
    fn a_hello_without_ids_wants_nothing() {
        for tls13 in SETTINGS {
            for tickets in SETTINGS {
                let server = policy(tls13, tickets);
                assert!(wanted_ids(&ClientHello::default(), &server).is_empty());
            }
        }
    }

    #[test]
    fn a_list_keeps_the_first_different_ids_in_order() {
        let ids: SessionIds = [3, 1, 3, 2, 1, 4, 5, 6].map(id).into_iter().collect();
        assert_eq!(ids.as_slice(), [id(3), id(1), id(2), id(4)]);
        assert_eq!(ids.len(), MAX_IDENTITIES);
    }

    #[test]
    fn the_server_name_is_the_one_host_name_of_the_list() {
        assert_eq!(server_name(b"\0\x06\0\0\x03a.b"), Some(&b"a.b"[..]));
        for wrong in [
            &b""[..],
            b"\0\0",
            b"\0\x03\0\0\0",
            b"\0\x06\0\0\x03a.",
            b"\0\x06\0\0\x03a.bc",
            b"\0\x05\0\0\x03a.b",
            b"\0\x06\0\0\x02a.b",
            b"\0\x06\x01\0\x03a.b",
            b"\0\x0c\0\0\x03a.b\0\0\x03c.d",
        ] {
            assert_eq!(server_name(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_session_id_has_1_to_32_bytes() {
        assert_eq!(SessionId::new(&[]), None);
        assert_eq!(SessionId::new(&[7; 33]), None);
        assert_eq!(SessionId::new(&[7; 256]), None);
        assert_eq!(SessionId::new(&[7]).unwrap().as_bytes(), [7]);
        assert_eq!(SessionId::new(&[7; 32]).unwrap().as_bytes(), [7; 32]);
    }

    #[test]
    fn session_ids_differ_by_length_and_by_each_byte() {
        assert_ne!(SessionId::new(&[0]), SessionId::new(&[0, 0]));
        for place in 0..32 {
            let mut bytes = [9; 32];
            bytes[place] ^= 0x80;
            assert_ne!(SessionId::new(&bytes), Some(id(9)));
        }
    }

    #[test]
    fn debug_shows_no_byte_of_a_session_id() {
        let hello = ClientHello { session_id: Some(id(0xab)), ..tls13_hello() };
        let shown = format!("{hello:?} {:?}", hello.identities);
        assert!(shown.contains("SessionId(32 bytes)"));
        for secret in ["171", "ab", "AB", "[2", "[3"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }

    #[test]
    fn texts_are_log_fragments() {
        for reason in [
            Unreadable::NotHandshake,
            Unreadable::NotClientHello,
            Unreadable::BadRecord,
            Unreadable::TooLarge,
            Unreadable::Malformed,
        ] {
            let text = format!("{reason}");
            assert_eq!(text, text.to_lowercase());
            assert!(!text.is_empty() && !text.ends_with('.'));
        }
    }
}
