//! Values of directives that nginx itself parses and stores.

use core::ptr;
use std::vec::Vec;

use nginx_sys::{
    NGX_CONF_UNSET, ngx_array_t, ngx_flag_t, ngx_int_t, ngx_msec_t, ngx_str_t, ngx_uint_t,
};
use zeroize::Zeroizing;

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

    /// nginx's string, if it is set and not empty. A null byte follows it.
    pub(in crate::ffi) fn raw(&self) -> Option<ngx_str_t> {
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
    pub(in crate::ffi) fn or(&self, default: ngx_uint_t) -> ngx_uint_t {
        if self.0 == 0 { default } else { self.0 }
    }
}

/// Pairs of words, in the order of the configuration.
#[repr(transparent)]
pub struct KeyVals(*mut ngx_array_t);

impl KeyVals {
    /// None.
    pub const UNSET: Self = KeyVals(ptr::null_mut());

    /// Null if there are none.
    pub(in crate::ffi) fn as_ptr(&self) -> *mut ngx_array_t {
        self.0
    }
}

/// Passwords of keys, from a file that is read with the configuration. nginx keeps and clears them.
#[repr(transparent)]
pub struct Passwords(pub(super) *mut ngx_array_t);

impl Passwords {
    /// None.
    pub const UNSET: Self = Passwords(ptr::null_mut());

    /// Null if there are none. Valid while the configuration is read.
    pub(in crate::ffi) fn as_ptr(&self) -> *mut ngx_array_t {
        self.0
    }

    /// Copies that outlive the configuration's reading.
    pub(in crate::ffi) fn copied(&self) -> Vec<Zeroizing<Vec<u8>>> {
        // SAFETY: ngx_ssl_read_password_file() has made an array of strings, whose pool goes when the
        // configuration has been read.
        let words = unsafe { self.0.as_ref().map_or(&[][..], |it| it.as_slice::<ngx_str_t>()) };
        words.iter().map(|word| Zeroizing::new(word.as_bytes().to_vec())).collect()
    }
}
