//! The epoch in memory that the workers share.

use core::alloc::Layout;

use nginx_sys::{ngx_module_t, ngx_pagesize};
use session_core::epoch::Epoch;

use super::conf::{Conf, MIN_ZONE_PAGES, Refusal};
use super::slab::{Content, Locked, SharedZone};

/// A zone of shared memory that holds one epoch, and outlives workers. All of an epoch is atomic: no
/// lock is held, which a worker could take to its grave, as it can an `ngx::sync::RwLock`.
pub struct EpochZone {
    zone: SharedZone,
}

impl EpochZone {
    /// Declares a zone for a module, in which there are no zones of another kind by that name.
    pub fn declare(
        cf: &mut Conf,
        name: &str,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        // SAFETY: a static that nginx sets at start.
        let bytes = unsafe { ngx_pagesize }.saturating_mul(MIN_ZONE_PAGES);
        let zone = SharedZone::declare::<Epoch>(cf, name, bytes, module)?;
        Ok(EpochZone { zone })
    }

    /// What is known; `None` while the configuration is read.
    pub fn get(&self) -> Option<&Epoch> {
        // SAFETY: what set_up() left, mapped as long as the configuration is in use: an epoch that is
        // never freed, and that nobody changes but by its atomics.
        unsafe { self.zone.content::<Epoch>().as_ref() }
    }
}

impl Content for Epoch {
    fn set_up(memory: &Locked) -> Option<()> {
        let place = memory.allocate::<Epoch>(Layout::new::<Epoch>())?;
        // SAFETY: the memory is new, and of that layout.
        unsafe { place.write(Epoch::new()) };
        memory.set_content(place);
        Some(())
    }
}
