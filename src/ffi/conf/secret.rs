//! Files of passwords and keys.

use std::boxed::Box;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::vec::Vec;

use zeroize::Zeroizing;

use super::reading::{Conf, Refusal};
use crate::ffi::log::Level;

/// The longest password in a file, in bytes.
const MAX_PASSWORD: usize = 4096;

impl Conf {
    /// Reads a password from a file, whose name may be relative to the configuration. A line end
    /// after the password is left out.
    pub fn password_file(&mut self, path: &str) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let path = self.full_name(path)?;
        let mut secret = self.secret_file(&path, MAX_PASSWORD.saturating_add(b"\r\n".len()))?;
        let end = secret.strip_suffix(b"\n").map(|rest| rest.strip_suffix(b"\r").unwrap_or(rest));
        let len = end.map_or(secret.len(), <[u8]>::len);
        secret.truncate(len);
        match len {
            0 => Err(self.refuse(format_args!("\"{path}\" is empty"))),
            1..=MAX_PASSWORD => Ok(secret),
            _ => Err(self.refuse(format_args!("\"{path}\" is longer than {MAX_PASSWORD} bytes"))),
        }
    }

    /// Reads a key from a file of exactly its length, whose name may be relative to the
    /// configuration. The key is boxed: moving it would leave a copy behind that nobody wipes.
    pub fn key_file<const N: usize>(
        &mut self,
        path: &str,
    ) -> Result<Box<Zeroizing<[u8; N]>>, Refusal> {
        let path = self.full_name(path)?;
        let read = self.secret_file(&path, N)?;
        let mut key = Box::new(Zeroizing::new([0; N]));
        if read.len() != N {
            return Err(self.refuse(format_args!("\"{path}\" must be {N} bytes")));
        }
        key.copy_from_slice(&read);
        Ok(key)
    }

    /// Reads a secret from a file: all of it, or `max` bytes and one more.
    fn secret_file(&mut self, path: &str, max: usize) -> Result<Zeroizing<Vec<u8>>, Refusal> {
        let file = File::open(path).map_err(|error| self.failed("open()", path, &error))?;
        match file.metadata() {
            Ok(data) if data.mode() & libc::S_IROTH != 0 => {
                self.say(Level::Warn, format_args!("\"{path}\" can be read by everybody"));
            }
            Ok(_) => {}
            Err(error) => return Err(self.failed("fstat()", path, &error)),
        }
        // The buffer never fills: growing it would leave a copy of the secret behind.
        let mut secret = Zeroizing::new(Vec::with_capacity(max.saturating_mul(2)));
        file.take(max.saturating_add(1) as u64)
            .read_to_end(&mut secret)
            .map_err(|error| self.failed("read()", path, &error))?;
        Ok(secret)
    }

    fn failed(&mut self, call: &str, path: &str, error: &io::Error) -> Refusal {
        let errno = error.raw_os_error().unwrap_or(0);
        self.say_errno(Level::Emerg, errno, format_args!("{call} \"{path}\" failed"));
        Refusal::Said
    }
}
