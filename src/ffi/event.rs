//! Calls at a later time, by nginx's timers and posted events.
//!
//! By hand: timers of `ngx` wake tasks, and its waker runs a task at once, wherever it is called.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem;
use std::boxed::Box;
use std::rc::Weak;

use nginx_sys::{
    ngx_current_msec, ngx_cycle, ngx_event_t, ngx_int_t, ngx_msec_int_t, ngx_msec_t,
    ngx_posted_events, ngx_posted_next_events, ngx_queue_t,
};

use super::clock;
use super::shim;
use super::turn::Turn;

/// Handles the [`Event`]s of kind `K`.
pub trait Handle<K> {
    /// The event has fired.
    fn fired(&self, turn: &mut Turn);
}

/// An event that calls its owner, at a time or at the end of this turn of the event loop.
/// Dropping it takes it back.
pub struct Event<T, K> {
    inner: Box<UnsafeCell<Inner<T>>>,
    kind: PhantomData<K>,
}

#[repr(C)]
struct Inner<T> {
    event: ngx_event_t,
    anchor: Anchor<T>,
}

/// What `ngx_event_t.data` points to. nginx's debug log takes it for a connection and prints its
/// descriptor, which comes after three pointers (ngx_event_ident() in ngx_event.h).
#[repr(C)]
struct Anchor<T> {
    owner: Weak<T>,
    unused: [*mut c_void; 2],
    ident: ngx_int_t,
}

const _: () =
    assert!(mem::offset_of!(Anchor<()>, ident) == mem::offset_of!(nginx_sys::ngx_connection_t, fd));

impl<T: Handle<K>, K> Event<T, K> {
    /// An event of `owner`.
    pub fn new(owner: Weak<T>) -> Self {
        // SAFETY: all-zero is nginx's own initial state of an event.
        let mut event: ngx_event_t = unsafe { mem::zeroed() };
        event.handler = Some(fire::<T, K>);
        let anchor = Anchor { owner, unused: [core::ptr::null_mut(); 2], ident: -1 };
        let inner = Box::new(UnsafeCell::new(Inner { event, anchor }));
        let ptr = inner.get();
        // SAFETY: both are in the box, whose content does not move.
        unsafe { (*ptr).event.data = (&raw mut (*ptr).anchor).cast() };
        Event { inner, kind: PhantomData }
    }

    /// Fires once at about `deadline` (of [`clock::now_ms`]), or earlier if it is set for earlier.
    /// nginx's timers count from a clock that is as old as the turn, so that it may fire too early:
    /// the owner looks at the clock. `holds_exit`: an exiting worker waits for it.
    pub fn at(&self, deadline: u64, holds_exit: bool) {
        let event = self.event();
        // SAFETY: the event is ours, and in nginx's timer tree exactly when timer_is_set() says so.
        unsafe {
            shim::set_cancelable(event, !holds_exit);
            let rest = deadline.saturating_sub(clock::now_ms()) as ngx_msec_t;
            if shim::timer_is_set(event) {
                // A difference of two such times may have wrapped (ngx_event_expire_timers()).
                let set = (*event).timer.key.wrapping_sub(ngx_current_msec) as ngx_msec_int_t;
                if set <= rest as ngx_msec_int_t {
                    return;
                }
                // ngx_add_timer() alone would keep a timer that is up to 300 ms late.
                shim::del_timer(event);
            }
            shim::add_timer(event, rest);
        }
    }

    /// Takes back [`Event::at`].
    pub fn cancel(&self) {
        // SAFETY: as in at().
        unsafe { shim::del_timer(self.event()) };
    }

    /// Fires at the end of this turn of the event loop, unless it was posted for the next one.
    pub fn post(&self) {
        self.post_to(&raw mut ngx_posted_events);
    }

    /// Fires in the next turn of the event loop, which does not wait for events. What has happened
    /// by then comes before it.
    pub fn post_next(&self) {
        self.post_to(&raw mut ngx_posted_next_events);
    }

    /// Whether it was posted, for this turn or for the next one.
    pub fn is_posted(&self) -> bool {
        // SAFETY: the event is ours.
        unsafe { shim::is_posted(self.event()) }
    }

    fn post_to(&self, queue: *mut ngx_queue_t) {
        // SAFETY: the event is ours and stays until it fires or is dropped; posting it twice does
        // nothing. The queue is one of nginx's.
        unsafe {
            shim::post_event(self.event(), queue);
        }
    }
}

impl<T, K> Event<T, K> {
    /// nginx's event, with the log of the current cycle: that may have changed.
    fn event(&self) -> *mut ngx_event_t {
        // SAFETY: the event is ours; nginx has a cycle with a log.
        unsafe {
            let event = &raw mut (*self.inner.get()).event;
            (*event).log = (*ngx_cycle).log;
            event
        }
    }
}

impl<T, K> Drop for Event<T, K> {
    fn drop(&mut self) {
        let event = self.event();
        // SAFETY: nginx holds a pointer exactly while a timer is set, or the event is posted.
        unsafe {
            shim::del_timer(event);
            shim::delete_posted_event(event);
        }
    }
}

unsafe extern "C" fn fire<T: Handle<K>, K>(event: *mut ngx_event_t) {
    // SAFETY: data is the anchor that new() set, alive as long as nginx knows the event.
    let owner = unsafe { (*(*event).data.cast::<Anchor<T>>()).owner.upgrade() };
    if let Some(owner) = owner {
        // SAFETY: nginx calls the handlers of timers and posted events from its event loop
        // (ngx_event_expire_timers(), ngx_event_process_posted()).
        unsafe { Turn::lend(|turn| owner.fired(turn)) };
    }
}
