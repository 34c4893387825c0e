//! Directives, as entries in a module's table.

use core::ffi::{CStr, c_char, c_void};
use core::ptr;

use nginx_sys::{
    NGX_SSL_SSLv2, NGX_SSL_SSLv3, NGX_SSL_TLSv1, NGX_SSL_TLSv1_1, NGX_SSL_TLSv1_2, NGX_SSL_TLSv1_3,
    ngx_command_t, ngx_conf_bitmask_t, ngx_conf_set_bitmask_slot, ngx_conf_set_flag_slot,
    ngx_conf_set_keyval_slot, ngx_conf_set_msec_slot, ngx_conf_set_num_slot, ngx_conf_set_str_slot,
    ngx_conf_t, ngx_ssl_read_password_file, ngx_str_t, ngx_uint_t,
};

use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::ngx_string;

use super::reading::{Conf, Refusal};
use super::values::Passwords;
use crate::ffi::text;

/// A directive of configuration type `Conf`.
pub trait Directive {
    /// What the directive changes.
    type Conf;
    /// Its name.
    const NAME: &'static CStr;
    /// Carries it out.
    fn set(cf: &mut Conf, conf: &mut Self::Conf) -> Result<(), Refusal>;
}

/// The table entry of a directive.
pub const fn directive<D: Directive>(kind: u32) -> ngx_command_t {
    ngx_command_t { set: Some(set::<D>), ..command(D::NAME, kind) }
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
        Ok(()) => NGX_CONF_OK,
        Err(Refusal::Said) => NGX_CONF_ERROR,
        Err(Refusal::Text(text)) => text.as_ptr().cast_mut(),
    }
}

/// A value that nginx itself parses and stores.
#[derive(Clone, Copy, Debug)]
pub enum Slot {
    /// [`Msec`](super::values::Msec)
    Msec,
    /// [`Str`](super::values::Str)
    Str,
    /// [`Num`](super::values::Num)
    Num,
    /// [`Flag`](super::values::Flag)
    Flag,
    /// [`Protocols`](super::values::Protocols)
    Protocols,
    /// [`KeyVals`](super::values::KeyVals); with two values, any number of times.
    KeyVals,
    /// [`Passwords`]
    PasswordFile,
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
        name: text(name.to_bytes()),
        type_: kind as ngx_uint_t,
        ..ngx_command_t::empty()
    }
}

/// What a [`Slot::Protocols`] may say, as nginx has it.
static PROTOCOLS: Masks<7> = Masks([
    mask(ngx_string!("SSLv2"), NGX_SSL_SSLv2),
    mask(ngx_string!("SSLv3"), NGX_SSL_SSLv3),
    mask(ngx_string!("TLSv1"), NGX_SSL_TLSv1),
    mask(ngx_string!("TLSv1.1"), NGX_SSL_TLSv1_1),
    mask(ngx_string!("TLSv1.2"), NGX_SSL_TLSv1_2),
    mask(ngx_string!("TLSv1.3"), NGX_SSL_TLSv1_3),
    mask(ngx_str_t::empty(), 0),
]);

#[repr(transparent)]
struct Masks<const N: usize>([ngx_conf_bitmask_t; N]);

// SAFETY: nginx only reads them, from its one thread.
unsafe impl<const N: usize> Sync for Masks<N> {}

const fn mask(name: ngx_str_t, mask: u32) -> ngx_conf_bitmask_t {
    ngx_conf_bitmask_t { name, mask: mask as ngx_uint_t }
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
        let words = (*cf).args.as_ref().map_or(&[][..], |args| args.as_slice::<ngx_str_t>());
        let Some(mut file) = words.get(1).copied() else { return NGX_CONF_ERROR };
        passwords.0 = ngx_ssl_read_password_file(cf, &raw mut file);
        if passwords.0.is_null() { NGX_CONF_ERROR } else { NGX_CONF_OK }
    }
}
