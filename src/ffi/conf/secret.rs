//! Files of passwords and keys.

use std::boxed::Box;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::vec::Vec;

use zeroize::Zeroizing;

use super::reading::{Conf, Refusal};
use crate::ffi::file::{self, Unusable, Watched};
use crate::ffi::log::Level;

impl Conf {
    /// Reads a password from the file that a directive names, whose name may be relative to the
    /// configuration. A line end after the password is left out. With the file, if it can be read
    /// again.
    pub fn password_file(
        &mut self,
        directive: &'static str,
        path: &str,
    ) -> Result<(Zeroizing<Vec<u8>>, Option<Watched>), Refusal> {
        let path = self.full_name(path)?;
        let (mut secret, data) = self.secret_file(directive, &path, file::PASSWORD_FILE)?;
        file::password(&mut secret).map_err(|unusable| {
            self.refuse(format_args!("invalid \"{directive}\": {}", unusable.of(&path)))
        })?;
        Ok((secret, Watched::new(directive, &path, &data)))
    }

    /// Reads a key from a file of exactly its length, whose name may be relative to the
    /// configuration. The key is boxed: moving it would leave a copy behind that nobody wipes.
    pub fn key_file<const N: usize>(
        &mut self,
        directive: &str,
        path: &str,
    ) -> Result<Box<Zeroizing<[u8; N]>>, Refusal> {
        let path = self.full_name(path)?;
        let (read, _) = self.secret_file(directive, &path, N)?;
        let mut key = Box::new(Zeroizing::new([0; N]));
        if read.len() != N {
            return Err(
                self.refuse(format_args!("invalid \"{directive}\": \"{path}\" must be {N} bytes"))
            );
        }
        key.copy_from_slice(&read);
        Ok(key)
    }

    /// Reads a secret from a file: all of it, or `max` bytes and one more.
    fn secret_file(
        &mut self,
        directive: &str,
        path: &str,
        max: usize,
    ) -> Result<(Zeroizing<Vec<u8>>, Metadata), Refusal> {
        let opened = File::open(path).map_err(|error| Unusable::failed("open()", &error));
        let (secret, data) = opened.and_then(|file| file::read(file, max)).map_err(|unusable| {
            self.refuse(format_args!("invalid \"{directive}\": {}", unusable.of(path)))
        })?;
        if data.mode() & libc::S_IROTH != 0 {
            self.say(Level::Warn, format_args!("\"{path}\" can be read by everybody"));
        }
        Ok((secret, data))
    }
}
