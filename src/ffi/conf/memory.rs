//! Zones of shared memory.

use nginx_sys::{ngx_module_t, ngx_pagesize, ngx_parse_size};
use ngx::core::Status;

use super::reading::{Conf, Refusal};
use crate::ffi::text;
use crate::ffi::zone::Zone;

/// The smallest shared zone, in pages, as nginx's own modules have it.
pub(in crate::ffi) const MIN_ZONE_PAGES: usize = 8;

impl Conf {
    /// Declares a zone of shared memory for a module.
    pub fn zone(
        &mut self,
        name: &str,
        size: &str,
        module: *const ngx_module_t,
    ) -> Result<Zone, Refusal> {
        // SAFETY: only reads the text.
        let bytes = unsafe { ngx_parse_size(&mut text(size.as_bytes())) };
        if Status(bytes) == Status::NGX_ERROR {
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
        Zone::declare(self, name, bytes, module)
    }
}
