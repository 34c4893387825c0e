//! Zones of shared memory.

use core::ffi::c_void;

use nginx_sys::{
    NGX_ERROR, ngx_module_t, ngx_pagesize, ngx_parse_size, ngx_shared_memory_add, ngx_shm_zone_t,
    ngx_str_t,
};

use super::reading::{Conf, Refusal};
use crate::ffi::counters::Counters;
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

    /// Declares shared memory, of so many bytes, for a module.
    pub(in crate::ffi) fn shared_memory(
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
}
