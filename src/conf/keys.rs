//! `ssl_session_key`: what sessions are sealed with.

use core::ffi::CStr;
use std::boxed::Box;
use std::vec::Vec;

use session_core::crypto::Failed;
use session_core::key_ring::{KEY_LEN, KeyRing};
use zeroize::Zeroizing;

use super::MainConf;
use crate::ffi::conf::{Conf, DUPLICATE, Directive, Place, Refusal};
use crate::ffi::crypto::Evp;

type Secret = Box<Zeroizing<[u8; KEY_LEN]>>;

/// What the lines say.
#[derive(Default)]
pub enum Keys {
    /// Nothing.
    #[default]
    Unset,
    /// That sessions are not sealed; and where it stands.
    Off(Place),
    /// The keys of the files, in their order. Where they lie they are wiped.
    Files(#[allow(clippy::vec_box, reason = "a list that grows leaves copies behind")] Vec<Secret>),
}

pub struct SslSessionKey;

impl Directive for SslSessionKey {
    type Conf = MainConf;
    const NAME: &'static CStr = c"ssl_session_key";

    fn set(cf: &mut Conf, conf: &mut MainConf) -> Result<(), Refusal> {
        let file = super::word(cf);
        match (&mut conf.keys, file.as_str()) {
            (Keys::Unset, "off") => conf.keys = Keys::Off(cf.place()),
            (Keys::Off(_), "off") => return Err(DUPLICATE),
            (Keys::Off(_), _) | (_, "off") => {
                return Err(
                    cf.refuse(format_args!("\"off\" goes with no other \"ssl_session_key\""))
                );
            }
            (Keys::Unset, _) => {
                conf.keys = Keys::Files(Vec::from([cf.key_file("ssl_session_key", &file)?]))
            }
            (Keys::Files(keys), _) => {
                let key = cf.key_file("ssl_session_key", &file)?;
                if keys.contains(&key) {
                    return Err(cf.refuse(format_args!(
                        "duplicate \"ssl_session_key\": the key in \"{file}\" is already there"
                    )));
                }
                keys.push(key);
            }
        }
        Ok(())
    }
}

impl Keys {
    /// The key ring. The keys that were read are wiped then.
    pub fn into_ring(self, cf: &mut Conf) -> Result<KeyRing<Evp>, Refusal> {
        let Ok(crypto) = Evp::new() else {
            return Err(
                cf.refuse(format_args!("OpenSSL has no AES-256-GCM for \"ssl_session_key\""))
            );
        };
        let mut ring = KeyRing::new(crypto);
        if let Keys::Files(keys) = self {
            for key in &keys {
                ring.add(key).map_err(|Failed| {
                    cf.refuse(format_args!("no memory for an \"ssl_session_key\""))
                })?;
            }
        }
        Ok(ring)
    }
}
