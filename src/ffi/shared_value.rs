//! One value in memory that the workers share.

use core::alloc::Layout;
use core::marker::PhantomData;
use core::mem;

use nginx_sys::{ngx_module_t, ngx_pagesize};

use super::conf::{Conf, MIN_ZONE_PAGES, Refusal};
use super::slab::{Content, Locked, SharedZone};

/// A zone of shared memory that holds one value. nginx hands it on when it reads its configuration
/// again, if that has a zone of the same name; and it outlives workers. The value changes by its
/// atomics only, so that who reads it waits for nobody, and finds no lock that a worker has taken to its
/// grave, as it can an `ngx::sync::RwLock`.
pub struct SharedValue<T> {
    zone: SharedZone,
    value: PhantomData<T>,
}

impl<T> Clone for SharedValue<T> {
    fn clone(&self) -> Self {
        SharedValue { zone: self.zone, value: PhantomData }
    }
}

impl<T> core::fmt::Debug for SharedValue<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SharedValue")
    }
}

/// What makes the value of a new zone.
struct One<T>(PhantomData<T>);

impl<T: Default + Sync> SharedValue<T> {
    /// Declares a zone for a module, in which there are no zones of another kind by that name.
    pub fn declare(
        cf: &mut Conf,
        name: &str,
        module: *const ngx_module_t,
    ) -> Result<Self, Refusal> {
        // SAFETY: a static that nginx sets at start.
        let page = unsafe { ngx_pagesize };
        let pages = mem::size_of::<T>().div_ceil(page.max(1)).saturating_add(MIN_ZONE_PAGES);
        let bytes = page.saturating_mul(pages);
        let zone = SharedZone::declare::<One<T>>(cf, name, bytes, module)?;
        Ok(SharedValue { zone, value: PhantomData })
    }

    /// What is known; `None` while the configuration is read.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: what set_up() left, mapped as long as the configuration is in use: a value that is
        // never freed, and that nobody changes but by its atomics (Sync).
        unsafe { self.zone.content::<T>().as_ref() }
    }
}

impl<T: Default + Sync> SharedValue<T> {
    /// What is known, for one that changes more of it than an atomic: nobody else does so meanwhile. The
    /// mutex is released for a worker that dies.
    pub fn alone<R>(&self, change: impl FnOnce(&T) -> R) -> Option<R> {
        let _locked = self.zone.lock()?;
        self.get().map(change)
    }
}

impl<T: Default> Content for One<T> {
    fn set_up(memory: &Locked) -> Option<()> {
        let place = memory.allocate::<T>(Layout::new::<T>())?;
        // SAFETY: the memory is new, and of that layout.
        unsafe { place.write(T::default()) };
        memory.set_content(place);
        Some(())
    }
}
