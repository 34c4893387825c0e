//! Files that are read with the configuration, and again when they have changed.

use core::cell::Cell;
use core::ffi::CStr;
use core::fmt;
use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{ngx_core_conf_t, ngx_core_module, ngx_cycle, ngx_worker};
use zeroize::Zeroizing;

use super::turn::Turn;

/// The longest password in a file, in bytes.
const MAX_PASSWORD: usize = 4096;
/// In place of an errno: there is a directory, a pipe or the like.
const NOT_REGULAR: i32 = 0;

/// Tells one content of a file from another, whether it was replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    place: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(data: &Metadata) -> Self {
        Version {
            place: (data.dev(), data.ino()),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
            // Also that it can be read now.
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}

/// Why a file is of no use.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// A call failed with this errno.
    Failed(&'static str, i32),
    /// It is a directory, a pipe or the like.
    NotRegular,
    /// There is nothing in it.
    Empty,
    /// It has more than so many bytes.
    TooLong(usize),
    /// There is a line end or a null byte in the password.
    Broken,
    /// OpenSSL does not take it for this.
    Not(&'static str),
}

impl Unusable {
    /// A call failed.
    pub fn failed(call: &'static str, error: &io::Error) -> Self {
        Unusable::Failed(call, error.raw_os_error().unwrap_or(0))
    }

    /// The same about a file, in words.
    pub fn of<'a>(&'a self, path: &'a str) -> impl fmt::Display + use<'a> {
        Shown(self, path)
    }
}

struct Shown<'a>(&'a Unusable, &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shown(unusable, path) = self;
        match unusable {
            Unusable::Failed(call, errno) => {
                write!(f, "{call} \"{path}\" failed ({})", Errno(*errno))
            }
            Unusable::NotRegular => write!(f, "\"{path}\" is no regular file"),
            Unusable::Empty => write!(f, "\"{path}\" is empty"),
            Unusable::TooLong(max) => write!(f, "\"{path}\" is longer than {max} bytes"),
            Unusable::Not(what) => write!(f, "\"{path}\" is not {what}"),
            Unusable::Broken => write!(f, "\"{path}\" has a line end or a null byte in it"),
        }
    }
}

/// An errno in nginx's form, `number: text`.
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        write!(f, "{}: {text}", self.0)
    }
}

/// All of a file, or `max` bytes and one more, in a buffer that is wiped; and what the system says of
/// the file.
pub fn read(file: File, max: usize) -> Result<(Zeroizing<Vec<u8>>, Metadata), Unusable> {
    let data = file.metadata().map_err(|error| Unusable::failed("fstat()", &error))?;
    // The buffer never fills: growing it would leave a copy of the secret behind.
    let mut bytes = Zeroizing::new(Vec::new());
    bytes
        .try_reserve_exact(max.saturating_mul(2))
        .map_err(|_| Unusable::Failed("malloc()", libc::ENOMEM))?;
    file.take(max.saturating_add(1) as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| Unusable::failed("read()", &error))?;
    Ok((bytes, data))
}

/// How much of a password file is read, in bytes: [`password`] tells whether it was all.
pub const PASSWORD_FILE: usize = MAX_PASSWORD + b"\r\n".len();

/// Makes of the bytes of a file the password in it. A line end after it is left out.
pub fn password(bytes: &mut Vec<u8>) -> Result<(), Unusable> {
    let end = bytes.strip_suffix(b"\n").map(|rest| rest.strip_suffix(b"\r").unwrap_or(rest));
    let len = end.map_or(bytes.len(), <[u8]>::len);
    bytes.truncate(len);
    match len {
        0 => Err(Unusable::Empty),
        1..=MAX_PASSWORD if bytes.iter().any(|c| matches!(c, b'\0' | b'\r' | b'\n')) => {
            Err(Unusable::Broken)
        }
        1..=MAX_PASSWORD => Ok(()),
        _ => Err(Unusable::TooLong(MAX_PASSWORD)),
    }
}

/// A file of the configuration that may change. It is opened by its name each time: whoever replaces
/// it, or a link on the way to it, puts another one there.
pub struct Watched {
    path: String,
    directive: &'static str,
    /// What was there when it was last looked at; an errno if nothing could be seen.
    seen: Cell<Result<Version, i32>>,
}

impl Watched {
    /// A file that was read with the configuration. `None` if it is none that can be read again.
    pub fn new(directive: &'static str, path: &str, data: &Metadata) -> Option<Self> {
        let seen = Cell::new(Ok(Version::of(data)));
        data.is_file().then(|| Watched { path: path.to_string(), directive, seen })
    }

    /// One that somebody else is about to read with the configuration. `None`, too, if it is not there,
    /// of which that one has more to say.
    pub fn unread(directive: &'static str, path: &str) -> Option<Self> {
        Self::new(directive, path, &fs::metadata(path).ok()?)
    }

    /// Its full name.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directive that names it.
    pub fn directive(&self) -> &'static str {
        self.directive
    }

    /// Whether there is something else than when this was last asked: one stat(2). What is newer than
    /// that when it is read is read again.
    pub fn has_changed(&self, _: &Turn) -> Result<bool, Unusable> {
        let now = match fs::metadata(&self.path) {
            Ok(data) if data.is_file() => Ok(Version::of(&data)),
            Ok(_) => Err(NOT_REGULAR),
            Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        let before = self.seen.replace(now);
        match now {
            _ if before == now => Ok(false),
            Ok(_) => Ok(true),
            Err(NOT_REGULAR) => Err(Unusable::NotRegular),
            Err(errno) => Err(Unusable::Failed("stat()", errno)),
        }
    }

    /// Reads it, whether it has changed or not: at most `max` bytes and one more.
    pub fn read(&self, _: &Turn, max: usize) -> Result<Zeroizing<Vec<u8>>, Unusable> {
        // Opening a pipe must not wait for its writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(|error| Unusable::failed("open()", &error))?;
        let (bytes, data) = read(file, max)?;
        if data.is_file() { Ok(bytes) } else { Err(Unusable::NotRegular) }
    }

    /// A worker begins, which has not the rights of the process that has read the configuration. Why it
    /// cannot read the file, if it cannot.
    pub fn begin(&self) -> Option<impl fmt::Display + use<>> {
        let path = CString::new(self.path.as_bytes()).ok()?;
        // SAFETY: access(2) only reads the name.
        if unsafe { libc::access(path.as_ptr(), libc::R_OK) } == 0 {
            return None;
        }
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        if fs::metadata(&self.path).is_err() {
            self.seen.set(Err(errno));
        }
        Some(Errno(errno))
    }
}

/// Whether this is the worker that speaks for all.
pub fn is_first_worker() -> bool {
    // SAFETY: set before the worker's modules begin.
    unsafe { ngx_worker == 0 }
}

/// The user that workers run as.
pub fn worker_user() -> String {
    // SAFETY: the running configuration has one of the core module, whose text stays as long. The
    // user is set where the master is root's only.
    unsafe {
        let conf = (*ngx_cycle).conf_ctx.add(ngx_core_module.index);
        let conf = (*conf).cast::<ngx_core_conf_t>();
        let name = conf.as_ref().map_or(core::ptr::null_mut(), |conf| conf.username);
        if libc::geteuid() != 0 && !name.is_null() {
            return CStr::from_ptr(name.cast()).to_string_lossy().into_owned();
        }
        libc::geteuid().to_string()
    }
}
