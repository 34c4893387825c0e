//! The module as nginx sees it.

#[cfg(ngx_feature = "stream_ssl")]
use core::ffi::c_char;
use core::ffi::c_void;
use core::ptr::{self, NonNull};

use nginx_sys::{
    NGX_HTTP_MODULE, NGX_PROCESS_HELPER, ngx_command_t, ngx_conf_t, ngx_cycle, ngx_cycle_t,
    ngx_http_module_t, ngx_int_t, ngx_module_t, ngx_process, ngx_uint_t,
};
use ngx::core::Status;
#[cfg(ngx_feature = "stream_ssl")]
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};

#[cfg(ngx_feature = "stream_ssl")]
use nginx_sys::{NGX_STREAM_MODULE, ngx_stream_module_t};

use super::block::Block;
use super::conf::{Conf, Refusal};
use super::http::Http;
use super::layout;
use super::log::{Level, Log};
use super::pool;
#[cfg(ngx_feature = "stream_ssl")]
use super::stream::Stream;
use super::turn::Turn;
use crate::log_at;

/// Type of the module that owns the directives of a block: "SSES", as nginx's types are made.
const BLOCK_MODULE: ngx_uint_t = 0x5345_5353;

/// A module of `http{}` or `stream{}` with a main configuration.
pub trait Module: Sized {
    /// The block.
    type Block: Block;

    /// The main configuration.
    type MainConf: MainConf;

    /// nginx's entry for it.
    fn module() -> *const ngx_module_t;

    /// The main configuration before the block is read.
    fn main_conf() -> Self::MainConf;
}

/// What a module keeps of a block.
pub trait MainConf: Sized {
    /// Before anything of it is in use.
    fn prepare<M: Module>(cf: &mut Conf) -> Result<(), Refusal>;

    /// After it was read and its modules have merged their configurations.
    fn apply<M: Module>(&mut self, cf: &mut Conf) -> Result<(), Refusal>;

    /// A worker begins.
    fn begin(&self);

    /// A worker is about to exit.
    fn close(&self, turn: &mut Turn);
}

/// What a module of `http{}` does with the configuration.
pub const fn http_context<M: Module<Block = Http>>() -> ngx_http_module_t {
    ngx_http_module_t {
        preconfiguration: Some(preconfiguration::<M>),
        postconfiguration: Some(postconfiguration::<M>),
        create_main_conf: Some(create_main_conf::<M>),
        init_main_conf: None,
        create_srv_conf: None,
        merge_srv_conf: None,
        create_loc_conf: None,
        merge_loc_conf: None,
    }
}

/// What a module of `stream{}` does with the configuration. The module of the block may be loaded after
/// this one, and is then not ready in preconfiguration.
#[cfg(ngx_feature = "stream_ssl")]
pub const fn stream_context<M: Module<Block = Stream>>() -> ngx_stream_module_t {
    ngx_stream_module_t {
        preconfiguration: None,
        postconfiguration: Some(postconfiguration::<M>),
        create_main_conf: Some(create_main_conf::<M>),
        init_main_conf: Some(init_main_conf::<M>),
        create_srv_conf: None,
        merge_srv_conf: None,
    }
}

/// The table entry of a module of `http{}`.
pub const fn http_module<M: Module<Block = Http>>(
    context: &'static ngx_http_module_t,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    module::<M>(ptr::from_ref(context).cast(), NGX_HTTP_MODULE, commands)
}

/// The table entry of a module of `stream{}`.
#[cfg(ngx_feature = "stream_ssl")]
pub const fn stream_module<M: Module<Block = Stream>>(
    context: &'static ngx_stream_module_t,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    module::<M>(ptr::from_ref(context).cast(), NGX_STREAM_MODULE, commands)
}

const fn module<M: Module>(
    context: *const c_void,
    kind: u32,
    commands: &'static Commands<impl Sized>,
) -> ngx_module_t {
    ngx_module_t {
        ctx: context.cast_mut(),
        commands: ptr::from_ref(commands).cast_mut().cast(),
        type_: kind as ngx_uint_t,
        init_process: Some(init_process::<M>),
        exit_process: Some(exit_process::<M>),
        ..ngx_module_t::default()
    }
}

/// The table entry of a module that only has the directives of a block, see
/// [`Conf::block`](super::conf::Conf::block).
pub const fn block_module(commands: &'static Commands<impl Sized>) -> ngx_module_t {
    ngx_module_t {
        ctx_index: 0,
        commands: ptr::from_ref(commands).cast_mut().cast(),
        type_: BLOCK_MODULE,
        ..ngx_module_t::default()
    }
}

/// Directives of a module, the last one empty.
#[repr(transparent)]
pub struct Commands<T>(T);

// SAFETY: nginx only reads them, from its one thread.
unsafe impl<T> Sync for Commands<T> {}

impl<const N: usize> Commands<[ngx_command_t; N]> {
    /// Checks that the last one ends the table.
    pub const fn new(commands: [ngx_command_t; N]) -> Self {
        match commands.as_slice() {
            [.., last] => assert!(last.name.len == 0, "the last command is not empty"),
            [] => assert!(N > 0, "no commands"),
        }
        Commands(commands)
    }
}

/// The first of the module that nginx calls.
unsafe extern "C" fn create_main_conf<M: Module>(cf: *mut ngx_conf_t) -> *mut c_void {
    // SAFETY: nginx's configuration for this call.
    if let Err(other) = unsafe { layout::check_configuration(cf) } {
        // SAFETY: the same; of what may be laid out otherwise, only nginx reads anything then.
        unsafe { Conf::from_ptr(cf) }.say(Level::Emerg, format_args!("{other}"));
        return ptr::null_mut();
    }
    // SAFETY: the same, which has a pool.
    let conf = unsafe { pool::keep((*cf).pool, M::main_conf()) };
    conf.map_or(ptr::null_mut(), |conf| conf.as_ptr().cast())
}

unsafe extern "C" fn preconfiguration<M: Module<Block = Http>>(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx's configuration for this call.
    let cf = unsafe { Conf::from_ptr(cf) };
    // SAFETY: nginx has called create_main_conf().
    if let Err(other) = unsafe { layout::check_requests(cf.raw()) } {
        return status(Err(cf.refuse(format_args!("{other}"))));
    }
    status(M::MainConf::prepare::<M>(cf))
}

#[cfg(ngx_feature = "stream_ssl")]
unsafe extern "C" fn init_main_conf<M: Module>(cf: *mut ngx_conf_t, _: *mut c_void) -> *mut c_char {
    // SAFETY: nginx's configuration for this call.
    match M::MainConf::prepare::<M>(unsafe { Conf::from_ptr(cf) }) {
        Ok(()) => NGX_CONF_OK,
        Err(_) => NGX_CONF_ERROR,
    }
}

unsafe extern "C" fn postconfiguration<M: Module>(cf: *mut ngx_conf_t) -> ngx_int_t {
    // SAFETY: nginx's configuration for this call; ours is memory of its own.
    match unsafe { main_conf::<M>((*cf).cycle) } {
        // SAFETY: the same.
        Some(mut conf) => unsafe { status(conf.as_mut().apply::<M>(Conf::from_ptr(cf))) },
        None => Status::NGX_ERROR.into(),
    }
}

unsafe extern "C" fn init_process<M: Module>(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    // SAFETY: a static of nginx's. Helpers, as the manager of a cache, are no workers: they would
    // pass for the first one.
    let is_worker = unsafe { ngx_process } != NGX_PROCESS_HELPER as ngx_uint_t;
    // SAFETY: nginx's current cycle, whose configurations nobody changes now.
    let conf = unsafe { main_conf::<M>(cycle).filter(|_| is_worker).map(|conf| conf.as_ref()) };
    if let Some(conf) = conf {
        // SAFETY: nginx has made the connections of its worker before (ngx_event_process_init()).
        if let Err(other) = unsafe { layout::check_connections(&*cycle) } {
            log_at!(Log::cycle(), Emerg, "{other}");
            return Status::NGX_ERROR.into();
        }
        conf.begin();
    }
    Status::NGX_OK.into()
}

unsafe extern "C" fn exit_process<M: Module>(cycle: *mut ngx_cycle_t) {
    // SAFETY: as in init_process().
    if let Some(conf) = unsafe { main_conf::<M>(cycle).map(|conf| conf.as_ref()) } {
        // SAFETY: the worker has left its event loop (ngx_worker_process_exit()).
        unsafe { Turn::lend(|turn| conf.close(turn)) };
    }
}

/// Looks into the main configuration of a module that is in use; none without the block.
pub fn with_main_conf<M: Module, R>(look: impl FnOnce(&M::MainConf) -> R) -> Option<R> {
    // SAFETY: nginx's current cycle, whose configurations nobody changes once they are read, and which
    // goes only between two turns of the event loop.
    unsafe { main_conf::<M>(ngx_cycle).map(|conf| look(conf.as_ref())) }
}

/// The main configuration of a cycle; none without the block.
///
/// # Safety
/// `cycle` is one of nginx's, with the block being read or read.
unsafe fn main_conf<M: Module>(cycle: *mut ngx_cycle_t) -> Option<NonNull<M::MainConf>> {
    // SAFETY: the caller's; create_main_conf() has made it.
    unsafe { M::Block::main_conf(&*cycle, &*M::module()) }
}

fn status(result: Result<(), Refusal>) -> ngx_int_t {
    result.map_or(Status::NGX_ERROR, |()| Status::NGX_OK).into()
}
