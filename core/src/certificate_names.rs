//! What the certificates of a server say whom they are for, as what its sessions are bound to in place
//! of the certificates themselves: a certificate that is renewed says the same.

use alloc::vec::Vec;

use sha2::{Digest, Sha256};

use crate::der;
use crate::origin::Fingerprint;

const SEQUENCE: u8 = 0x30;
/// `dNSName` of a `GeneralName` (RFC 5280, section 4.2.1.6).
const DNS_NAME: u8 = 0x82;

/// A digest of the names of one certificate: those of the extension `subjectAltName`, whose value this
/// is, in whatever order and case. Without the extension, of its `subject`, in whatever encoding.
pub fn of_certificate(alternative_names: Option<&[u8]>, subject: &[u8]) -> Fingerprint {
    let Some(der) = alternative_names else { return hash(b"subject", &mut [digest(subject)]) };
    match general_names(der) {
        Some(mut names) => hash(b"names", &mut names),
        // No client can read it either; it is the same when it has the same bytes.
        None => hash(b"unknown", &mut [digest(der)]),
    }
}

/// The session ID context (SSL_CTX_set_session_id_context(3)) of a server in the block `scope` whose
/// certificates have these names, and which tells clients that it takes those that these `authorities`
/// have signed: digests, in whatever order. Several certificates with the same names, as of RSA and of
/// ECDSA, are like one.
pub fn context(
    scope: &str,
    certificates: &mut [Fingerprint],
    authorities: &mut [Fingerprint],
) -> Fingerprint {
    let certificates = hash(b"certificates", certificates);
    let authorities = hash(b"authorities", authorities);
    let mut hash = Sha256::new();
    for part in
        [&b"nginx-ssl-session context"[..], scope.as_bytes(), b"\0", &certificates, &authorities]
    {
        hash.update(part);
    }
    hash.finalize().into()
}

fn general_names(der: &[u8]) -> Option<Vec<Fingerprint>> {
    let mut rest = der::alone(SEQUENCE, der)?;
    let mut names = Vec::new();
    while let Some(&tag) = rest.first() {
        let (name, after) = der::value(tag, rest)?;
        rest = after;
        let mut name = name.to_vec();
        if tag == DNS_NAME {
            name.make_ascii_lowercase();
        }
        let hash = Sha256::new().chain_update([tag]).chain_update(name);
        names.push(hash.finalize().into());
    }
    Some(names)
}

fn digest(bytes: &[u8]) -> Fingerprint {
    Sha256::digest(bytes).into()
}

/// A digest of a set.
fn hash(kind: &[u8], set: &mut [Fingerprint]) -> Fingerprint {
    set.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(kind);
    let mut last = None;
    for fingerprint in set.iter() {
        if last != Some(fingerprint) {
            hash.update(fingerprint);
        }
        last = Some(fingerprint);
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(names: &[(u8, &[u8])]) -> Vec<u8> {
        let mut value = Vec::new();
        for (tag, name) in names {
            value.extend([*tag, u8::try_from(name.len()).unwrap()]);
            value.extend_from_slice(name);
        }
        [&[SEQUENCE, 0x81, u8::try_from(value.len()).unwrap()], &*value].concat()
    }

    fn names(names: &[(u8, &[u8])]) -> Fingerprint {
        of_certificate(Some(&sequence(names)), b"whoever")
    }

    const A: (u8, &[u8]) = (DNS_NAME, b"a.example.com");
    const B: (u8, &[u8]) = (DNS_NAME, b"*.b.example.com");
    const ADDRESS: (u8, &[u8]) = (0x87, &[0x41, 0, 0, 1]);

    #[test]
    fn a_renewed_certificate_is_for_the_same_names() {
        let one = names(&[A, B, ADDRESS]);
        assert_eq!(one, names(&[ADDRESS, B, A]));
        assert_eq!(one, names(&[A, A, B, (DNS_NAME, b"A.Example.COM"), ADDRESS]));
        assert_eq!(one, of_certificate(Some(&sequence(&[A, B, ADDRESS])), b"another subject"));
    }

    #[test]
    fn one_for_another_name_is_not() {
        let one = names(&[A, B, ADDRESS]);
        for other in [
            &[A, B][..],
            &[A, B, ADDRESS, (DNS_NAME, b"c.example.com")],
            &[A, B, (0x87, &[0x61, 0, 0, 1])],
            &[A, (0x81, b"*.b.example.com"), ADDRESS],
            &[],
        ] {
            assert_ne!(one, names(other), "{other:?}");
        }
        // What is neither name is no part of one.
        assert_ne!(
            names(&[(DNS_NAME, b"ab"), (DNS_NAME, b"c")]),
            names(&[(DNS_NAME, b"a"), (DNS_NAME, b"bc")])
        );
    }

    #[test]
    fn without_the_extension_the_subject_counts() {
        assert_eq!(of_certificate(None, b"one"), of_certificate(None, b"one"));
        assert_ne!(of_certificate(None, b"one"), of_certificate(None, b"two"));
        assert_ne!(of_certificate(None, b"one"), of_certificate(Some(b"one"), b""));
    }

    #[test]
    fn what_is_no_list_of_names_is_compared_as_it_is() {
        let good = sequence(&[A, B]);
        for len in 0..good.len() {
            let cut = &good[..len];
            assert_eq!(of_certificate(Some(cut), b""), of_certificate(Some(cut), b""));
            assert_ne!(of_certificate(Some(cut), b""), of_certificate(Some(&good), b""));
        }
        let more = [&good[..], &[0]].concat();
        assert_ne!(of_certificate(Some(&more), b""), of_certificate(Some(&good), b""));
    }

    #[test]
    fn the_context_is_that_of_a_set_of_certificates_in_a_block() {
        let (a, b) = (names(&[A]), names(&[B]));
        let both = context("", &mut [a, b], &mut []);
        assert_eq!(both, context("", &mut [b, a], &mut []));
        assert_eq!(both, context("", &mut [b, a, b], &mut []));
        assert_ne!(both, context("", &mut [a], &mut []));
        assert_ne!(both, context("stream:", &mut [a, b], &mut []));
        assert_ne!(both, context("", &mut [a, b], &mut [a]));
        assert_ne!(both, context("", &mut [a], &mut [b]));
        let authorities = context("", &mut [a], &mut [a, b]);
        assert_eq!(authorities, context("", &mut [a], &mut [b, a]));
    }
}
