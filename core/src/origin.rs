//! What a session says about the full handshake that it comes from: when it took place, how long what
//! was verified there is good, and what it was judged by.
//!
//! It travels inside the session, as the ticket data of OpenSSL's (`SSL_SESSION_set1_ticket_appdata`),
//! and so wherever the session goes: into each target, into nginx's own cache, into a stateless ticket.
//! A server that does not know of it leaves it alone, and hands it on to the tickets of a resumption.

use sha2::{Digest, Sha256};

/// The length of a [`Binding`], in bytes.
pub const BINDING_LEN: usize = 16;
/// How long an encoded origin is, in bytes.
pub const ORIGIN_LEN: usize = MAGIC.len() + 1 + 8 + 8 + BINDING_LEN;

/// What an encoded origin begins with: whose it is, and the version of what follows.
const MAGIC: [u8; 5] = *b"nssO\x01";
/// A flag: the session must not be resumed.
const UNUSABLE: u8 = 0x01;

/// What a full handshake was judged by: a digest of how its server verifies clients. Two servers that
/// have the same one come to the same verdict about a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding(pub [u8; BINDING_LEN]);

/// How a server verifies the certificates of clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// `ssl_verify_client`, as nginx numbers it; 0 is `off`.
    pub verify: u64,
    /// `ssl_verify_depth`.
    pub depth: u64,
    /// `ssl_ocsp`, as nginx numbers it.
    pub ocsp: u64,
    /// What OpenSSL asks clients for (`SSL_CTX_get_verify_mode`): nothing where it is 0.
    /// `ssl_conf_command` can set it, too.
    pub mode: u64,
    /// How strong keys have to be (`SSL_CTX_get_security_level`).
    pub level: u64,
    /// Whether the server's own certificate depends on what the client asks for
    /// (`ssl_certificate` with variables): the name counts then.
    pub by_name: bool,
}

/// `ssl_verify_client on`.
const ON: u64 = 1;
/// `ssl_verify_client optional_no_ca`.
const OPTIONAL_NO_CA: u64 = 3;

/// `X509_V_OK`.
const VERIFIED: i64 = 0;
/// What `optional_no_ca` lets pass, of OpenSSL's results (`ngx_ssl_verify_error_optional`): a chain
/// that ends in no certificate that is trusted.
const NO_CA: [i64; 5] = [18, 19, 20, 21, 27];

impl Verification {
    /// Whether clients are asked for certificates.
    pub fn asks(&self) -> bool {
        self.verify != 0 || self.mode != 0
    }

    /// Whether a full handshake has let its client in, as nginx decides it when OpenSSL is done
    /// (`ngx_http_process_request()`, `ngx_stream_ssl_handler()`): whether the client has shown a
    /// `certificate`, and what verifying it came to, in OpenSSL's numbers.
    pub fn lets_in(&self, certificate: bool, result: i64) -> bool {
        match self.verify {
            0 => true,
            OPTIONAL_NO_CA => result == VERIFIED || NO_CA.contains(&result),
            verify => result == VERIFIED && (certificate || verify != ON),
        }
    }
}

/// A SHA-256 digest.
pub type Fingerprint = [u8; 32];

impl Binding {
    /// That of a server that verifies nobody.
    pub const NONE: Self = Binding([0; BINDING_LEN]);

    /// That of a server that verifies clients so, by these certificates and revocation lists in
    /// whatever order, which are sorted.
    pub fn of(verification: &Verification, trusted: &mut [Fingerprint]) -> Self {
        if !verification.asks() {
            return Binding::NONE;
        }
        trusted.sort_unstable();
        let mut hash = Sha256::new();
        hash.update(b"nginx-ssl-session verification");
        let Verification { verify, depth, ocsp, mode, level, by_name: _ } = *verification;
        for number in [verify, depth, ocsp, mode, level] {
            hash.update(number.to_be_bytes());
        }
        trusted.iter().for_each(|fingerprint| hash.update(fingerprint));
        Self::from_hash(hash)
    }

    /// That of the same server where the name that the client asks for counts.
    pub fn for_name(self, name: Option<&[u8]>) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"nginx-ssl-session name");
        hash.update(self.0);
        hash.update([u8::from(name.is_some())]);
        hash.update(name.unwrap_or_default());
        Self::from_hash(hash)
    }

    fn from_hash(hash: Sha256) -> Self {
        let mut binding = [0; BINDING_LEN];
        binding.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
        Binding(binding)
    }
}

/// The longest name of a server, in bytes (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 255;

/// The name of a server as nginx looks it up: in lower case, without a dot at its end
/// (ngx_http_validate_host()). Of others than plain names nothing is known.
pub struct ServerName {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl ServerName {
    /// Reads a name. `None` if it is no plain one.
    pub fn new(name: &[u8]) -> Option<Self> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let plain = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let labels = name.split(|c| *c == b'.');
        let mut bytes = [0; MAX_NAME];
        for label in labels {
            if label.is_empty() || !label.iter().all(plain) {
                return None;
            }
        }
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        bytes.make_ascii_lowercase();
        Some(ServerName { bytes, len: name.len() })
    }

    /// The name.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The full handshake that a session comes from. Times are in seconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// When it took place.
    pub at: i64,
    /// The last second in which verifying the client's chain would come to the same: then one of its
    /// certificates expires, or a revocation list does. None if nothing was verified.
    pub chain_ends: Option<i64>,
    /// What it was judged by.
    pub binding: Binding,
    /// Whether a resumption may come to what a full handshake would: not where that has refused its
    /// client, who may have another certificate by now.
    pub usable: bool,
}

/// Why a session is not resumed, although it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The full handshake was judged by something else than this server would.
    Binding,
    /// It is not known by what it was judged, or by what this server would.
    Unknown,
    /// It took place too long ago.
    Lifetime,
    /// A certificate of the client's chain is good no more, or a revocation list.
    Chain,
    /// Its client was refused, or a resumption cannot verify it again.
    Unusable,
    /// It was made for another server name.
    Name,
}

impl Refusal {
    /// The reason in words, for a log.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Binding => "its client was verified by other rules",
            Refusal::Unknown => "it is not known how its client was verified",
            Refusal::Lifetime => "its full handshake was too long ago",
            Refusal::Chain => "a certificate or revocation list of its client's chain has expired",
            Refusal::Unusable => "its client was refused, or would have to be verified again",
            Refusal::Name => "it was made for another server name",
        }
    }
}

impl Origin {
    /// What is assumed of a session that says nothing, and that [`check`] has let pass at a server that
    /// verifies nobody: its full handshake was when it was `made`.
    pub fn assumed(made: i64) -> Self {
        Origin { at: made, chain_ends: None, binding: Binding::NONE, usable: true }
    }

    /// Encodes the origin.
    pub fn encode(&self) -> [u8; ORIGIN_LEN] {
        let mut out = [0; ORIGIN_LEN];
        let flags = [if self.usable { 0 } else { UNUSABLE }];
        let at = self.at.to_be_bytes();
        let chain_ends = self.chain_ends.unwrap_or(i64::MAX).to_be_bytes();
        let parts: [&[u8]; 5] = [&MAGIC, &flags, &at, &chain_ends, &self.binding.0];
        let bytes = parts.into_iter().flatten();
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        out
    }

    /// Decodes what [`Origin::encode`] made. `None` if it is something else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC)?;
        let (&[flags], rest) = rest.split_first_chunk()?;
        let (at, rest) = rest.split_first_chunk()?;
        let (chain_ends, rest) = rest.split_first_chunk()?;
        let binding = Binding(rest.try_into().ok()?);
        let chain_ends = i64::from_be_bytes(*chain_ends);
        Some(Origin {
            at: i64::from_be_bytes(*at),
            chain_ends: (chain_ends != i64::MAX).then_some(chain_ends),
            binding,
            // Flags that are not known forbid what they were made for.
            usable: flags == 0,
        })
    }

    /// The last second in which the session may be resumed, as far as its origin goes.
    pub fn ends(&self, lifetime: i64) -> i64 {
        let lives = self.at.saturating_add(lifetime);
        self.chain_ends.map_or(lives, |ends| ends.min(lives))
    }
}

/// The first of some moments that is yet to come.
pub fn next(moments: &[i64], now: i64) -> Option<i64> {
    moments.iter().copied().filter(|moment| *moment > now).min()
}

/// Whether a session is resumed at `now`. `origin` is what it says, none if it was made by a version
/// that did not know of it: then `made` is when the session was made, and `shows_certificate` whether
/// its client has shown a certificate. `server` is the binding of the server that the client comes
/// to, none if that is not known.
pub fn check(
    origin: Option<&Origin>,
    server: Option<Binding>,
    made: i64,
    shows_certificate: bool,
    lifetime: i64,
    now: i64,
) -> Result<(), Refusal> {
    let server = server.ok_or(Refusal::Unknown)?;
    let Some(origin) = origin else {
        // Of a server that verifies nobody all sessions without a certificate are alike.
        return if shows_certificate || server != Binding::NONE {
            Err(Refusal::Unknown)
        } else if made.saturating_add(lifetime) < now {
            Err(Refusal::Lifetime)
        } else {
            Ok(())
        };
    };
    if !origin.usable {
        return Err(Refusal::Unusable);
    }
    if origin.binding != server {
        return Err(Refusal::Binding);
    }
    if origin.chain_ends.is_some_and(|ends| ends < now) {
        return Err(Refusal::Chain);
    }
    if origin.at.saturating_add(lifetime) < now {
        return Err(Refusal::Lifetime);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 24 * 60 * 60;
    const VERIFIES: Binding = Binding([7; BINDING_LEN]);

    const ORIGIN: Origin =
        Origin { at: NOW - 100, chain_ends: Some(NOW + 1000), binding: VERIFIES, usable: true };

    fn checked(origin: &Origin, server: Binding) -> Result<(), Refusal> {
        check(Some(origin), Some(server), NOW, true, DAY, NOW)
    }

    #[test]
    fn all_that_a_client_is_judged_by_is_in_the_binding() {
        let on = Verification { verify: 1, depth: 1, ocsp: 0, mode: 1, level: 1, by_name: false };
        let of = |verification: Verification, trusted: &[Fingerprint]| {
            Binding::of(&verification, &mut trusted.to_vec())
        };
        let binding = of(on, &[[1; 32], [2; 32]]);
        assert_eq!(of(on, &[[2; 32], [1; 32]]), binding, "in whatever order");
        assert_ne!(binding, Binding::NONE);
        for other in [
            of(Verification { verify: 2, ..on }, &[[1; 32], [2; 32]]),
            of(Verification { depth: 2, ..on }, &[[1; 32], [2; 32]]),
            of(Verification { ocsp: 1, ..on }, &[[1; 32], [2; 32]]),
            of(Verification { mode: 3, ..on }, &[[1; 32], [2; 32]]),
            of(Verification { level: 2, ..on }, &[[1; 32], [2; 32]]),
            of(on, &[[1; 32]]),
            of(on, &[[1; 32], [3; 32]]),
            binding.for_name(None),
            binding.for_name(Some(b"")),
            binding.for_name(Some(b"a")),
        ] {
            assert_ne!(other, binding);
        }
        let off = Verification { verify: 0, mode: 0, ..on };
        assert_eq!(of(off, &[[1; 32]]), Binding::NONE);
        assert_ne!(of(Verification { mode: 1, ..off }, &[[1; 32]]), Binding::NONE, "OpenSSL asks");
        assert_ne!(binding.for_name(Some(b"a")), binding.for_name(Some(b"b")));
        assert_ne!(binding.for_name(None), binding.for_name(Some(b"")));
    }

    #[test]
    fn clients_are_let_in_as_nginx_does_it() {
        let lets_in = |verify, certificate, result| {
            Verification { verify, ..Verification::default() }.lets_in(certificate, result)
        };
        const EXPIRED: i64 = 10;
        const SELF_SIGNED: i64 = 18;
        // off, on, optional, optional_no_ca
        for (verify, nobody) in [(0, true), (1, false), (2, true), (3, true)] {
            assert_eq!(lets_in(verify, false, VERIFIED), nobody, "{verify}");
            assert!(lets_in(verify, true, VERIFIED), "{verify}");
            assert_eq!(lets_in(verify, true, EXPIRED), verify == 0, "{verify}");
            assert_eq!(lets_in(verify, true, SELF_SIGNED), [0, 3].contains(&verify), "{verify}");
        }
    }

    #[test]
    fn the_next_moment_is_yet_to_come() {
        assert_eq!(next(&[], NOW), None);
        assert_eq!(next(&[NOW, NOW - 5], NOW), None);
        assert_eq!(next(&[NOW + 9, NOW, NOW + 3], NOW), Some(NOW + 3));
    }

    #[test]
    fn names_are_read_as_nginx_reads_them() {
        let read = |name: &str| ServerName::new(name.as_bytes()).map(|n| n.as_bytes().to_vec());
        assert_eq!(read("WWW.Example.com."), Some(b"www.example.com".to_vec()));
        assert_eq!(read("a_b-c"), Some(b"a_b-c".to_vec()));
        assert_eq!(read(&"a".repeat(255)), Some("a".repeat(255).into_bytes()));
        for other in
            ["", ".", ".a", "a..b", "a..", "a:1", "[::1]", "a/b", "a b", "\u{e4}", "*.a", "a\0"]
        {
            assert_eq!(read(other), None, "{other}");
        }
        assert_eq!(read(&"a".repeat(256)), None);
    }

    #[test]
    fn an_origin_comes_back_as_it_was() {
        let plain = Origin { chain_ends: None, binding: Binding::NONE, ..ORIGIN };
        let unusable = Origin { usable: false, at: -1, ..ORIGIN };
        for origin in [ORIGIN, plain, unusable] {
            assert_eq!(Origin::decode(&origin.encode()), Some(origin));
        }
    }

    #[test]
    fn nothing_else_passes_for_one() {
        let good = ORIGIN.encode();
        for len in 0..good.len() {
            assert_eq!(Origin::decode(&good[..len]), None, "{len}");
        }
        let mut longer = good.to_vec();
        longer.push(0);
        assert_eq!(Origin::decode(&longer), None);
        for at in 0..MAGIC.len() {
            let mut other = good;
            other[at] ^= 1;
            assert_eq!(Origin::decode(&other), None, "{at}");
        }
    }

    #[test]
    fn flags_that_are_not_known_make_it_unusable() {
        let mut bytes = ORIGIN.encode();
        bytes[MAGIC.len()] = 0x80;
        assert!(!Origin::decode(&bytes).unwrap().usable);
    }

    #[test]
    fn a_session_is_resumed_where_its_client_would_be_verified_alike() {
        assert_eq!(checked(&ORIGIN, VERIFIES), Ok(()));
        assert_eq!(checked(&ORIGIN, Binding([8; BINDING_LEN])), Err(Refusal::Binding));
        assert_eq!(checked(&ORIGIN, Binding::NONE), Err(Refusal::Binding));
        let anonymous = Origin { binding: Binding::NONE, chain_ends: None, ..ORIGIN };
        assert_eq!(checked(&anonymous, Binding::NONE), Ok(()));
        assert_eq!(checked(&anonymous, VERIFIES), Err(Refusal::Binding));
    }

    #[test]
    fn where_the_server_is_not_known_it_is_not() {
        assert_eq!(check(Some(&ORIGIN), None, NOW, true, DAY, NOW), Err(Refusal::Unknown));
        assert_eq!(check(None, None, NOW, false, DAY, NOW), Err(Refusal::Unknown));
    }

    #[test]
    fn it_lives_no_longer_than_its_chain_and_than_its_lifetime() {
        let at = |at| Origin { at, chain_ends: None, ..ORIGIN };
        assert_eq!(checked(&at(NOW - DAY), VERIFIES), Ok(()));
        assert_eq!(checked(&at(NOW - DAY - 1), VERIFIES), Err(Refusal::Lifetime));
        let until = |ends| Origin { chain_ends: Some(ends), ..ORIGIN };
        assert_eq!(checked(&until(NOW), VERIFIES), Ok(()));
        assert_eq!(checked(&until(NOW - 1), VERIFIES), Err(Refusal::Chain));
        assert_eq!(until(NOW + 5).ends(DAY), NOW + 5);
        assert_eq!(at(NOW).ends(DAY), NOW + DAY);
        assert_eq!(at(i64::MAX).ends(DAY), i64::MAX);
    }

    #[test]
    fn what_cannot_be_looked_at_again_is_not_resumed() {
        let origin = Origin { usable: false, ..ORIGIN };
        assert_eq!(checked(&origin, VERIFIES), Err(Refusal::Unusable));
    }

    #[test]
    fn a_session_of_an_older_version_is_resumed_where_nobody_is_verified() {
        let old =
            |server, made, certificate| check(None, Some(server), made, certificate, DAY, NOW);
        assert_eq!(old(Binding::NONE, NOW, false), Ok(()));
        assert_eq!(old(Binding::NONE, NOW, true), Err(Refusal::Unknown));
        assert_eq!(old(VERIFIES, NOW, false), Err(Refusal::Unknown));
        assert_eq!(old(VERIFIES, NOW, true), Err(Refusal::Unknown));
        assert_eq!(old(Binding::NONE, NOW - DAY - 1, false), Err(Refusal::Lifetime));
        // Its renewals end with it.
        let assumed = Origin::assumed(NOW - DAY);
        assert_eq!(checked(&assumed, Binding::NONE), Ok(()));
        let later = check(Some(&assumed), Some(Binding::NONE), NOW, false, DAY, NOW + 1);
        assert_eq!(later, Err(Refusal::Lifetime));
    }
}
