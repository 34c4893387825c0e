//! A configuration that is being read.

use core::ffi::{CStr, c_void};
use core::fmt;
use core::ptr;
use std::string::{String, ToString};

use nginx_sys::{
    NGX_HTTP_UPS_CONF, ngx_conf_full_name, ngx_conf_log_error, ngx_conf_parse, ngx_conf_t,
    ngx_err_t, ngx_module_t, ngx_parse_time, ngx_str_t, ngx_uint_t,
};
use ngx::core::Status;

use crate::ffi::log::{Level, Log};
use crate::ffi::text as nginx_text;

/// Where directives of a block of ours are allowed. The block's module type keeps other modules'
/// directives apart, so any bit would do.
pub const BLOCK_CONF: u32 = NGX_HTTP_UPS_CONF;

/// A configuration that is being read.
#[repr(transparent)]
pub struct Conf(pub(super) ngx_conf_t);

/// Why a directive is refused.
#[derive(Debug)]
pub enum Refusal {
    /// The message has been written.
    Said,
    /// nginx writes `"NAME" directive TEXT` with the place.
    Text(&'static CStr),
}

/// The directive was given before.
pub const DUPLICATE: Refusal = Refusal::Text(c"is duplicate");

/// Where in the configuration something stands.
#[derive(Clone, Debug)]
pub struct Place {
    file: String,
    line: usize,
}

impl Place {
    pub(in crate::ffi) fn new(file: &CStr, line: usize) -> Self {
        Place { file: file.to_string_lossy().into_owned(), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl Conf {
    /// # Safety
    /// `cf` is nginx's, for the current call, and not otherwise referred to during it.
    pub(in crate::ffi) unsafe fn from_ptr<'a>(cf: *mut ngx_conf_t) -> &'a mut Self {
        // SAFETY: the caller's; transparent.
        unsafe { &mut *cf.cast::<Conf>() }
    }

    /// The words of the directive; the first is its name. Words that are not UTF-8 come as empty.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        // SAFETY: while a directive is carried out, args are the words of its line.
        let words =
            unsafe { self.0.args.as_ref().map_or(&[][..], |args| args.as_slice::<ngx_str_t>()) };
        words.iter().map(|word| word.to_str().unwrap_or_default())
    }

    /// The name of the directive.
    pub(super) fn name(&self) -> String {
        self.words().next().unwrap_or_default().to_string()
    }

    pub(in crate::ffi) fn as_ptr(&mut self) -> *mut ngx_conf_t {
        &raw mut self.0
    }

    pub(in crate::ffi) fn raw(&self) -> &ngx_conf_t {
        &self.0
    }

    /// Writes a message with the place of the directive.
    pub fn say(&mut self, level: Level, text: fmt::Arguments<'_>) {
        let text = text.to_string();
        // By hand, since ngx_conf_log_error!() of ngx takes a static text.
        // SAFETY: the format takes one length and one pointer.
        unsafe {
            ngx_conf_log_error(
                level as ngx_uint_t,
                &raw mut self.0,
                0 as ngx_err_t,
                c"%*s".as_ptr(),
                text.len(),
                text.as_ptr(),
            );
        }
    }

    /// Writes why the directive is refused.
    pub fn refuse(&mut self, text: fmt::Arguments<'_>) -> Refusal {
        self.say(Level::Emerg, text);
        Refusal::Said
    }

    /// Writes a message about another place.
    pub fn say_at(&self, level: Level, place: &Place, text: fmt::Arguments<'_>) {
        // SAFETY: the configuration's log.
        let log = unsafe { Log::from_raw(self.0.log) };
        log.write(level, 0, format_args!("{text} in {place}"));
    }

    /// A time in nginx's notation, in seconds.
    pub fn seconds(&self, text: &str) -> Option<u64> {
        // SAFETY: only reads the text.
        u64::try_from(unsafe { ngx_parse_time(&mut nginx_text(text.as_bytes()), 1) }).ok()
    }

    /// A time in nginx's notation, in milliseconds.
    pub fn milliseconds(&self, text: &str) -> Option<u64> {
        // SAFETY: only reads the text.
        u64::try_from(unsafe { ngx_parse_time(&mut nginx_text(text.as_bytes()), 0) }).ok()
    }

    /// Where the directive stands.
    pub fn place(&self) -> Place {
        // SAFETY: conf_file is there while directives are read.
        unsafe {
            match self.0.conf_file.as_ref() {
                Some(file) => Place {
                    file: String::from_utf8_lossy(file.file.name.as_bytes()).into_owned(),
                    line: file.line,
                },
                None => Place { file: String::new(), line: 0 },
            }
        }
    }

    /// The full name of a file whose name may be relative to the configuration.
    pub(in crate::ffi) fn full_name(&mut self, path: &str) -> Result<String, Refusal> {
        // SAFETY: the name is copied to the pool, with the null byte that nginx wants behind it.
        unsafe {
            let terminated = [path.as_bytes(), b"\0"].concat();
            let mut name = ngx_str_t::from_bytes(self.0.pool, &terminated).ok_or(Refusal::Said)?;
            name.len = name.len.saturating_sub(1);
            if !Status(ngx_conf_full_name(self.0.cycle, &raw mut name, 1)).is_ok() {
                return Err(Refusal::Said);
            }
            Ok(String::from_utf8_lossy(name.as_bytes()).into_owned())
        }
    }

    /// Reads a block whose directives are those of `module` and change `conf`.
    pub fn block<C>(&mut self, module: *const ngx_module_t, conf: &mut C) -> Result<(), Refusal> {
        // SAFETY: a configuration is plain data. The context is found as for any module that is
        // neither core nor direct: by the command's `conf` (0) and the module's ctx_index (0), in
        // ngx_conf_handler().
        let rv = unsafe {
            let mut confs = [ptr::from_mut(conf).cast::<c_void>()];
            let mut context = confs.as_mut_ptr();
            let outer = self.0;
            self.0.ctx = (&raw mut context).cast();
            self.0.module_type = (*module).type_;
            self.0.cmd_type = BLOCK_CONF as ngx_uint_t;
            let rv = ngx_conf_parse(&raw mut self.0, ptr::null_mut());
            self.0 = outer;
            rv
        };
        if rv.is_null() { Ok(()) } else { Err(Refusal::Said) }
    }
}
