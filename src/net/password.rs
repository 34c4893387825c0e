//! What the servers of a backend are shown: a password, from a file that may change.

use core::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use session_core::buffer::Secret;
use zeroize::Zeroizing;

use crate::ffi::file::{self, Unusable, Watched};
use crate::ffi::turn::Turn;

/// The password of the servers of a backend, as it is now.
#[derive(Clone)]
pub struct Password {
    current: Rc<RefCell<Secret>>,
    file: Option<Rc<Watched>>,
}

impl Password {
    /// A password. `file`: where it was read from, and is read again when that has changed.
    pub fn new(password: Zeroizing<Vec<u8>>, file: Option<Watched>) -> Self {
        Password { current: Rc::new(RefCell::new(Rc::new(password))), file: file.map(Rc::new) }
    }

    /// No password.
    pub fn none() -> Self {
        Self::new(Zeroizing::new(Vec::new()), None)
    }

    /// The file, if it is read again.
    pub fn file(&self) -> Option<&Rc<Watched>> {
        self.file.as_ref()
    }

    /// The password as it was read last.
    pub fn current(&self) -> Secret {
        // Nobody keeps it borrowed.
        self.current.try_borrow().map(|current| Rc::clone(&current)).unwrap_or_default()
    }

    /// Reads the file if it has changed, or in any case where the server has refused the password: what
    /// is written twice within a tick of the system's clock may look the same. Whether there is another
    /// password.
    pub fn refresh(&self, turn: &Turn, refused: bool) -> Result<bool, Unusable> {
        let Some(file) = &self.file else { return Ok(false) };
        if !file.has_changed(turn)? && !refused {
            return Ok(false);
        }
        let mut read = file.read(turn, file::PASSWORD_FILE)?;
        file::password(&mut read)?;
        let Ok(mut current) = self.current.try_borrow_mut() else { return Ok(false) };
        let is_new = **current != read;
        if is_new {
            *current = Rc::new(read);
        }
        Ok(is_new)
    }
}
