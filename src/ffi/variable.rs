//! Variables of nginx that tell about a TLS connection.

use core::fmt::{self, Write};

use nginx_sys::{ngx_connection_t, ngx_int_t, ngx_pool_t, ngx_str_t, ngx_variable_value_t};
use ngx::core::Status;

use super::tls::Connection;
use super::{shim, text};

/// A variable.
pub trait Variable {
    /// Its name, without the dollar sign.
    const NAME: &'static str;
    /// Writes its value. Without one the variable is empty.
    fn write(connection: &Connection, value: &mut Value) -> fmt::Result;
}

/// The longest value, in bytes; the rest is cut off.
const MAX_VALUE: usize = 256;

/// A value while it is written.
pub struct Value {
    bytes: [u8; MAX_VALUE],
    len: usize,
}

impl Value {
    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for Value {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text.bytes()) {
            *to = from;
            self.len = self.len.saturating_add(1);
        }
        Ok(())
    }
}

/// Its name for nginx.
pub(super) fn name<V: Variable>() -> ngx_str_t {
    text(V::NAME.as_bytes())
}

/// What nginx calls for the value.
///
/// # Safety
/// The connection and the pool are valid, and there is a place for the value.
pub(super) unsafe fn get<V: Variable>(
    connection: *mut ngx_connection_t,
    pool: *mut ngx_pool_t,
    to: *mut ngx_variable_value_t,
) -> ngx_int_t {
    let mut value = Value { bytes: [0; MAX_VALUE], len: 0 };
    // SAFETY: the caller's.
    unsafe {
        if let Some(connection) = Connection::of_nginx(connection) {
            if V::write(&connection, &mut value).is_err() {
                return Status::NGX_ERROR.into();
            }
        }
        let bytes = value.as_bytes();
        let text = match bytes {
            [] => ngx_str_t::empty(),
            bytes => match ngx_str_t::from_bytes(pool, bytes) {
                Some(copy) => copy,
                None => return Status::NGX_ERROR.into(),
            },
        };
        shim::set_variable(to, text.data, text.len);
    }
    Status::NGX_OK.into()
}
