//! nginx's configuration, while it is read.

use core::ffi::{CStr, c_char, c_void};
use core::fmt;
use core::mem;
use core::ptr;
use std::boxed::Box;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::string::{String, ToString};
use std::vec::Vec;

use nginx_sys::{
    NGX_CONF_UNSET, NGX_ERROR, NGX_OK, NGX_SSL_SSLv2, NGX_SSL_SSLv3, NGX_SSL_TLSv1,
    NGX_SSL_TLSv1_1, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3, in_addr_t, ngx_array_t, ngx_command_t,
    ngx_conf_bitmask_t, ngx_conf_full_name, ngx_conf_log_error, ngx_conf_parse,
    ngx_conf_set_bitmask_slot, ngx_conf_set_flag_slot, ngx_conf_set_keyval_slot,
    ngx_conf_set_msec_slot, ngx_conf_set_num_slot, ngx_conf_set_str_slot, ngx_conf_t, ngx_cycle_t,
    ngx_err_t, ngx_flag_t, ngx_inet_addr, ngx_int_t, ngx_log_t, ngx_module_t, ngx_msec_t,
    ngx_pagesize, ngx_parse_size, ngx_parse_time, ngx_parse_url, ngx_shared_memory_add,
    ngx_shm_zone_t, ngx_ssl_read_password_file, ngx_str_t, ngx_uint_t, ngx_url_t,
};
use session_core::target::Redacted;
use zeroize::Zeroizing;

use super::address::Address;
use super::counters::Counters;
use super::log::Level;
use super::zone::Zone;

/// The smallest shared zone, in pages, as nginx's own modules have it.
const MIN_ZONE_PAGES: usize = 8;
/// The longest password in a file, in bytes.
const MAX_PASSWORD: usize = 4096;

/// A configuration that is being read.
#[repr(transparent)]
pub struct Conf(ngx_conf_t);

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

/// A directive of configuration type `Conf`.
pub trait Directive {
    /// What the directive changes.
    type Conf;
    /// Its name.
    const NAME: &'static CStr;
    /// Carries it out.
    fn set(cf: &mut Conf, conf: &mut Self::Conf) -> Result<(), Refusal>;
}

/// A value that nginx itself parses and stores.
#[derive(Clone, Copy, Debug)]
pub enum Slot {
    /// [`Msec`]
    Msec,
    /// [`Str`]
    Str,
    /// [`Num`]
    Num,
    /// [`Flag`]
    Flag,
    /// [`Protocols`]
    Protocols,
    /// [`KeyVals`]; with two values, any number of times.
    KeyVals,
    /// [`Passwords`]
    PasswordFile,
}

/// A time, in milliseconds, once it is set.
#[repr(transparent)]
#[derive(Debug)]
pub struct Msec(ngx_msec_t);

impl Msec {
    /// Not set.
    pub const UNSET: Self = Msec(NGX_CONF_UNSET as ngx_msec_t);

    /// The time, or `default`.
    pub fn or(&self, default: u64) -> u64 {
        if self.0 == NGX_CONF_UNSET as ngx_msec_t { default } else { self.0 as u64 }
    }
}

/// A number, once it is set.
#[repr(transparent)]
#[derive(Debug)]
pub struct Num(ngx_int_t);

impl Num {
    /// Not set.
    pub const UNSET: Self = Num(NGX_CONF_UNSET as ngx_int_t);

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0 != NGX_CONF_UNSET as ngx_int_t
    }

    /// The number, or `default`. nginx takes no sign, so it is not negative.
    pub fn or(&self, default: usize) -> usize {
        usize::try_from(self.0).unwrap_or(default)
    }
}

/// A string, once it is set.
#[repr(transparent)]
pub struct Str(ngx_str_t);

impl Str {
    /// Not set.
    pub const UNSET: Self = Str(ngx_str_t::empty());

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        !self.0.data.is_null()
    }

    /// The string, if it is set.
    pub fn get(&self) -> Option<&[u8]> {
        self.is_set().then(|| self.0.as_bytes())
    }

    /// nginx's string, if it is set and not empty. A null byte comes behind it.
    pub(super) fn raw(&self) -> Option<ngx_str_t> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

/// `on` or `off`, once it is set.
#[repr(transparent)]
#[derive(Debug)]
pub struct Flag(ngx_flag_t);

impl Flag {
    /// Not set.
    pub const UNSET: Self = Flag(NGX_CONF_UNSET as ngx_flag_t);

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0 != NGX_CONF_UNSET as ngx_flag_t
    }

    /// The value, or `default`.
    pub fn or(&self, default: bool) -> bool {
        if self.0 == NGX_CONF_UNSET as ngx_flag_t { default } else { self.0 != 0 }
    }
}

/// Versions of TLS, once they are set.
#[repr(transparent)]
#[derive(Debug)]
pub struct Protocols(ngx_uint_t);

impl Protocols {
    /// Not set.
    pub const UNSET: Self = Protocols(0);

    /// Whether they are set.
    pub fn is_set(&self) -> bool {
        self.0 != 0
    }

    /// nginx's bits, or `default`.
    pub(super) fn or(&self, default: ngx_uint_t) -> ngx_uint_t {
        if self.0 == 0 { default } else { self.0 }
    }
}

/// What a [`Slot::Protocols`] may say, as nginx has it.
static PROTOCOLS: Masks<7> = Masks([
    mask(c"SSLv2", NGX_SSL_SSLv2),
    mask(c"SSLv3", NGX_SSL_SSLv3),
    mask(c"TLSv1", NGX_SSL_TLSv1),
    mask(c"TLSv1.1", NGX_SSL_TLSv1_1),
    mask(c"TLSv1.2", NGX_SSL_TLSv1_2),
    mask(c"TLSv1.3", NGX_SSL_TLSv1_3),
    mask(c"", 0),
]);

#[repr(transparent)]
struct Masks<const N: usize>([ngx_conf_bitmask_t; N]);

// SAFETY: nginx only reads them, from its one thread.
unsafe impl<const N: usize> Sync for Masks<N> {}

const fn mask(name: &'static CStr, mask: u32) -> ngx_conf_bitmask_t {
    let name = ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() };
    ngx_conf_bitmask_t { name, mask: mask as ngx_uint_t }
}

/// Pairs of words, in the order of the configuration.
#[repr(transparent)]
pub struct KeyVals(*mut ngx_array_t);

impl KeyVals {
    /// None.
    pub const UNSET: Self = KeyVals(ptr::null_mut());

    /// Null if there are none.
    pub(super) fn as_ptr(&self) -> *mut ngx_array_t {
        self.0
    }
}

/// Passwords of keys, read from a file while the configuration is. nginx keeps and clears them.
#[repr(transparent)]
pub struct Passwords(*mut ngx_array_t);

impl Passwords {
    /// None.
    pub const UNSET: Self = Passwords(ptr::null_mut());

    /// Null if there are none. Good as long as the configuration is read.
    pub(super) fn as_ptr(&self) -> *mut ngx_array_t {
        self.0
    }
}

unsafe extern "C" fn set_password_file(
    cf: *mut ngx_conf_t,
    command: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx calls with its configuration, the command and the memory it is for; the
    // directive has one value.
    unsafe {
        let passwords = &mut *conf.byte_add((*command).offset).cast::<Passwords>();
        if !passwords.0.is_null() {
            return c"is duplicate".as_ptr().cast_mut();
        }
        let Some(args) = (*cf).args.as_ref() else { return CONF_ERROR };
        let Some(mut file) = args.as_slice::<ngx_str_t>().get(1).copied() else {
            return CONF_ERROR;
        };
        passwords.0 = ngx_ssl_read_password_file(cf, &raw mut file);
        if passwords.0.is_null() { CONF_ERROR } else { ptr::null_mut() }
    }
}

/// The table entry of a directive.
pub const fn directive<D: Directive>(kind: u32) -> ngx_command_t {
    ngx_command_t { set: Some(set::<D>), ..command(D::NAME, kind) }
}

/// The table entry of a directive with one value, at `offset` of a `repr(C)` configuration.
pub const fn slot(name: &'static CStr, kind: u32, slot: Slot, offset: usize) -> ngx_command_t {
    let set = match slot {
        Slot::Msec => ngx_conf_set_msec_slot,
        Slot::Str => ngx_conf_set_str_slot,
        Slot::Num => ngx_conf_set_num_slot,
        Slot::Flag => ngx_conf_set_flag_slot,
        Slot::Protocols => ngx_conf_set_bitmask_slot,
        Slot::KeyVals => ngx_conf_set_keyval_slot,
        Slot::PasswordFile => set_password_file,
    };
    let post: *mut c_void = match slot {
        Slot::Protocols => (&raw const PROTOCOLS).cast_mut().cast(),
        _ => ptr::null_mut(),
    };
    ngx_command_t { set: Some(set), offset, post, ..command(name, kind) }
}

/// nginx compares the name as a C string (ngx_conf_handler()).
const fn command(name: &'static CStr, kind: u32) -> ngx_command_t {
    ngx_command_t {
        name: ngx_str_t { len: name.count_bytes(), data: name.as_ptr().cast_mut().cast() },
        type_: kind as ngx_uint_t,
        ..ngx_command_t::empty()
    }
}

unsafe extern "C" fn set<D: Directive>(
    cf: *mut ngx_conf_t,
    _: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx calls with its configuration and the memory of this directive's module, which
    // create_main_conf() or Conf::block() made as D::Conf.
    let (cf, conf) = unsafe { (&mut *cf.cast::<Conf>(), &mut *conf.cast::<D::Conf>()) };
    match D::set(cf, conf) {
        Ok(()) => ptr::null_mut(),
        Err(Refusal::Said) => CONF_ERROR,
        Err(Refusal::Text(text)) => text.as_ptr().cast_mut(),
    }
}

/// `NGX_CONF_ERROR`
pub(super) const CONF_ERROR: *mut c_char = ptr::without_provenance_mut(usize::MAX);

/// Where in the configuration something stands.
#[derive(Clone, Debug)]
pub struct Place {
    file: String,
    line: usize,
}

impl Place {
    pub(super) fn new(file: &CStr, line: usize) -> Self {
        Place { file: file.to_string_lossy().into_owned(), line }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Where a server is, as a directive has it.
pub struct ServerUrl {
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// The name or IP address, without brackets; the path of a unix socket.
    pub host: String,
    /// The port; 0 of a unix socket.
    pub port: u16,
    /// Whether the host is a name, which was resolved.
    pub is_name: bool,
    /// Whether it is a unix socket.
    pub is_unix: bool,
}

impl Conf {
    /// # Safety
    /// `cf` is nginx's, for the current call, and not otherwise referred to during it.
    pub(super) unsafe fn from_ptr<'a>(cf: *mut ngx_conf_t) -> &'a mut Self {
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
    fn name(&self) -> String {
        self.words().next().unwrap_or_default().to_string()
    }

    pub(super) fn as_ptr(&mut self) -> *mut ngx_conf_t {
        &raw mut self.0
    }

    pub(super) fn log(&self) -> *mut ngx_log_t {
        self.0.log
    }

    /// Writes a message with the place of the directive.
    pub fn say(&mut self, level: Level, text: fmt::Arguments<'_>) {
        self.say_errno(level, 0, text);
    }

    /// As [`Conf::say`]; `errno` is put into words.
    fn say_errno(&mut self, level: Level, errno: i32, text: fmt::Arguments<'_>) {
        let text = text.to_string();
        // SAFETY: the format takes one length and one pointer.
        unsafe {
            ngx_conf_log_error(
                level as ngx_uint_t,
                &raw mut self.0,
                errno as ngx_err_t,
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
        let log = unsafe { super::log::Log::from_raw(self.0.log) };
        log.write(level, 0, format_args!("{text} in {place}"));
    }

    /// A time in nginx's notation, in seconds.
    pub fn seconds(&self, text: &str) -> Option<u64> {
        let mut text = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
        // SAFETY: only reads the text.
        u64::try_from(unsafe { ngx_parse_time(&raw mut text, 1) }).ok()
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

    /// Where a `server` is; a name is resolved.
    pub fn server_url(&mut self, text: &str, default_port: u16) -> Result<ServerUrl, Refusal> {
        // SAFETY: zero is the initial state that ngx_parse_url() expects; the string is copied to
        // the pool because the parsed parts refer to it.
        let (rc, url) = unsafe {
            let mut url: ngx_url_t = mem::zeroed();
            url.url = ngx_str_t::from_bytes(self.0.pool, text.as_bytes()).ok_or(Refusal::Said)?;
            url.default_port = default_port;
            let rc = ngx_parse_url(self.0.pool, &raw mut url);
            (rc, url)
        };
        let text = Redacted(text);
        if rc != NGX_OK as ngx_int_t || url.uri.len != 0 {
            let reason = if url.err.is_null() {
                c"invalid address".to_string_lossy()
            } else {
                // SAFETY: ngx_parse_url() sets err to a literal.
                unsafe { CStr::from_ptr(url.err) }.to_string_lossy()
            };
            let name = self.name();
            return Err(
                self.refuse(format_args!("{reason} in \"{text}\" of the \"{name}\" directive"))
            );
        }
        // SAFETY: on success there are naddrs addresses, each with its name.
        let addresses: Vec<Address> = unsafe {
            core::slice::from_raw_parts(url.addrs, url.naddrs)
                .iter()
                .filter_map(|addr| {
                    let name = String::from_utf8_lossy(addr.name.as_bytes());
                    Address::new(addr.sockaddr, addr.socklen, &name)
                })
                .collect()
        };
        if addresses.is_empty() {
            let name = self.name();
            return Err(
                self.refuse(format_args!("no address in \"{text}\" of the \"{name}\" directive"))
            );
        }
        let is_unix = url.family == libc::AF_UNIX;
        let host = url.host.as_bytes();
        let inner = host.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
        // SAFETY: the host is valid; only read.
        let is_ipv4 = unsafe { ngx_inet_addr(url.host.data, url.host.len) != in_addr_t::MAX };
        Ok(ServerUrl {
            addresses,
            host: String::from_utf8_lossy(inner.unwrap_or(host)).into_owned(),
            port: url.port,
            is_name: !is_unix && inner.is_none() && !is_ipv4,
            is_unix,
        })
    }

    /// Reads a password from a file, which is named relative to the configuration. The line end
    /// behind it does not belong to it.
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

    /// Reads a key from a file of just its length, which is named relative to the configuration. It
    /// is boxed, as what is moved leaves a copy behind that nobody wipes.
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

    /// A file's name in full, if it is relative to the configuration.
    fn full_name(&mut self, path: &str) -> Result<String, Refusal> {
        // SAFETY: the name is copied to the pool, with the null byte that nginx wants behind it.
        unsafe {
            let terminated = [path.as_bytes(), b"\0"].concat();
            let mut name = ngx_str_t::from_bytes(self.0.pool, &terminated).ok_or(Refusal::Said)?;
            name.len = name.len.saturating_sub(1);
            if ngx_conf_full_name(self.0.cycle, &raw mut name, 1) != NGX_OK as ngx_int_t {
                return Err(Refusal::Said);
            }
            Ok(String::from_utf8_lossy(name.as_bytes()).into_owned())
        }
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
        // The buffer never fills, so that no part of the secret is left behind by growing.
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

    /// Declares a zone of shared memory for a module.
    pub fn zone(
        &mut self,
        name: &str,
        size: &str,
        module: *const ngx_module_t,
    ) -> Result<Zone, Refusal> {
        let mut text = ngx_str_t { len: size.len(), data: size.as_ptr().cast_mut() };
        // SAFETY: only reads the text.
        let bytes = unsafe { ngx_parse_size(&raw mut text) };
        if bytes == NGX_ERROR as isize {
            let directive = self.name();
            return Err(self.refuse(format_args!(
                "invalid size \"{size}\" of zone \"{name}\" of the \"{directive}\" directive"
            )));
        }
        let bytes = usize::try_from(bytes).unwrap_or(0);
        // SAFETY: a static that nginx sets at start.
        if bytes < unsafe { ngx_pagesize }.saturating_mul(MIN_ZONE_PAGES) {
            let directive = self.name();
            return Err(self.refuse(format_args!(
                "zone \"{name}\" of the \"{directive}\" directive is too small"
            )));
        }
        let zone = self.shared_memory(name, bytes, module)?;
        // SAFETY: it was declared just now, and the tag says whose it is.
        Ok(unsafe { Zone::new(zone) })
    }

    /// Declares the zone of a module's counters, of so many bytes.
    pub fn counters(
        &mut self,
        name: &str,
        bytes: usize,
        module: *const ngx_module_t,
    ) -> Result<Counters, Refusal> {
        let zone = self.shared_memory(name, bytes, module)?;
        // SAFETY: as in zone().
        Ok(unsafe { Counters::new(zone) })
    }

    fn shared_memory(
        &mut self,
        name: &str,
        bytes: usize,
        module: *const ngx_module_t,
    ) -> Result<*mut ngx_shm_zone_t, Refusal> {
        // SAFETY: the name is copied to the pool, where it stays as long as the zone. The tag
        // says whose the zone is, so its data is ours.
        unsafe {
            let mut name =
                ngx_str_t::from_bytes(self.0.pool, name.as_bytes()).ok_or(Refusal::Said)?;
            let tag = module.cast_mut().cast::<c_void>();
            let zone = ngx_shared_memory_add(&raw mut self.0, &raw mut name, bytes, tag);
            // nginx has said why.
            if zone.is_null() { Err(Refusal::Said) } else { Ok(zone) }
        }
    }

    pub(super) fn cycle(&self) -> *mut ngx_cycle_t {
        self.0.cycle
    }

    /// The configurations of the block that is read.
    pub(super) fn context(&self) -> *mut c_void {
        self.0.ctx
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
            self.0.cmd_type = super::module::BLOCK_CONF as ngx_uint_t;
            let rv = ngx_conf_parse(&raw mut self.0, ptr::null_mut());
            self.0 = outer;
            rv
        };
        if rv.is_null() { Ok(()) } else { Err(Refusal::Said) }
    }
}
