//! Answers of nginx that are made here.

use core::iter;
use core::mem;
use core::ptr;
use core::slice;
use std::borrow::Cow;

use nginx_sys::{
    ngx_buf_t, ngx_chain_t, ngx_http_arg, ngx_http_request_t, ngx_int_t, ngx_list_push, ngx_str_t,
    ngx_table_elt_t,
};
use ngx::core::{Buffer, Status};
use ngx::http::{
    self, HTTPStatus, HttpModuleConfExt, HttpModuleLocationConf, Method, NgxHttpCoreModule,
};
use ngx::ngx_string;

use super::conf::Conf;
use super::http::Http;
use super::module::Module;
use super::shim;
use super::text;

/// What a location answers.
pub trait Page<M: Module<Block = Http>> {
    /// The answer to a request.
    fn answer(conf: &M::MainConf, request: &Request<'_>) -> Answer;
}

/// What a request is answered with.
pub enum Answer {
    /// A body, of which the type is said. It is not to be kept, and depends on `Accept`.
    Body(&'static str, Cow<'static, str>),
    /// The request asks for what there is not.
    BadRequest,
    /// There is no memory.
    OutOfMemory,
}

/// A request, borrowed.
pub struct Request<'a>(&'a mut http::Request);

impl Request<'_> {
    fn raw(&self) -> *mut ngx_http_request_t {
        ptr::from_ref(self.0.as_ref()).cast_mut()
    }

    /// The value of an argument, as it was sent.
    pub fn argument(&self, name: &str) -> Option<&[u8]> {
        let mut value = ngx_str_t::empty();
        // SAFETY: the request and the name are only read. The value lies in its line.
        unsafe {
            let name_at = name.as_ptr().cast_mut();
            let found = ngx_http_arg(self.raw(), name_at, name.len(), &raw mut value);
            Status(found).is_ok().then(|| slice::from_raw_parts(value.data, value.len))
        }
    }

    /// Whether a header of the request contains a text, or one of several of that name does. Upper
    /// and lower case are the same.
    ///
    /// By hand: the iterator of `ngx` panics where a part of the list that is not the first is empty.
    pub fn header_has(&self, name: &str, text: &str) -> bool {
        let has = |value: &[u8]| {
            value.windows(text.len().max(1)).any(|one| one.eq_ignore_ascii_case(text.as_bytes()))
        };
        let list = &self.0.as_ref().headers_in.headers;
        // SAFETY: the list is complete, and each of its parts has memory for so many headers.
        unsafe {
            iter::successors(Some(&list.part), |part| part.next.as_ref())
                .flat_map(|part| slice::from_raw_parts(part.elts.cast(), part.nelts))
                .any(|header: &ngx_table_elt_t| {
                    header.key.as_bytes().eq_ignore_ascii_case(name.as_bytes())
                        && has(header.value.as_bytes())
                })
        }
    }

    /// Adds a header to the answer. Whether there was memory.
    ///
    /// By hand: `ngx` leaves a part of an element in the list where there is no memory for the rest, and
    /// never sets its `next`.
    fn add_header(&mut self, name: ngx_str_t, value: ngx_str_t) -> bool {
        // SAFETY: an element of the list is plain data, of which nginx reads the name and value and
        // copies them, and whose other parts are null.
        unsafe {
            let header = ngx_list_push(&raw mut self.0.as_mut().headers_out.headers);
            let Some(header) = header.cast::<ngx_table_elt_t>().as_mut() else { return false };
            *header = ngx_table_elt_t { hash: 1, key: name, value, ..mem::zeroed() };
        }
        true
    }
}

/// Lets the location that is being read answer with a page.
pub fn serve<M: Module<Block = Http>, P: Page<M>>(cf: &mut Conf) {
    if let Some(core) = NgxHttpCoreModule::location_conf_mut(cf.raw()) {
        core.handler = Some(answer::<M, P>);
    }
}

unsafe extern "C" fn answer<M: Module<Block = Http>, P: Page<M>>(
    r: *mut ngx_http_request_t,
) -> ngx_int_t {
    // SAFETY: nginx calls with a request, whose configuration and pool are valid.
    respond::<M, P>(unsafe { http::Request::from_ngx_http_request(r) }).into()
}

fn respond<M: Module<Block = Http>, P: Page<M>>(r: &mut http::Request) -> Status {
    let method = r.method();
    if method != Method::GET && method != Method::HEAD {
        return HTTPStatus::NOT_ALLOWED.into();
    }
    let rc = r.discard_request_body();
    if !rc.is_ok() {
        return rc;
    }
    // SAFETY: the module has made its configuration, which nobody changes any more.
    let conf = unsafe {
        r.http_main_conf_unchecked::<M::MainConf>(&*M::module()).map(|conf| conf.as_ref())
    };
    let Some(conf) = conf else { return Status::NGX_DECLINED };
    let mut request = Request(r);
    let (content_type, body) = match P::answer(conf, &request) {
        Answer::Body(content_type, body) => (content_type, body),
        Answer::BadRequest => return HTTPStatus::BAD_REQUEST.into(),
        Answer::OutOfMemory => return HTTPStatus::INTERNAL_SERVER_ERROR.into(),
    };
    if !request.add_header(ngx_string!("Cache-Control"), ngx_string!("no-store"))
        || !request.add_header(ngx_string!("Vary"), ngx_string!("Accept"))
    {
        return HTTPStatus::INTERNAL_SERVER_ERROR.into();
    }
    r.set_status(HTTPStatus::OK);
    r.set_content_length_n(body.len());
    let out = &mut r.as_mut().headers_out;
    out.content_type = text(content_type.as_bytes());
    // As nginx has it: lists of types, as that of gzip, are of types without parameters.
    out.content_type_len = content_type.find(';').unwrap_or(content_type.len());
    out.content_type_lowcase = ptr::null_mut();
    let buf: *mut ngx_buf_t = match body.len() {
        // As nginx itself ends an answer that is empty (ngx_http_send_response()).
        0 => r.pool().calloc_type(),
        _ => r
            .pool()
            .create_buffer_from_str(&body)
            .map_or(ptr::null_mut(), |mut buffer| buffer.as_ngx_buf_mut()),
    };
    if buf.is_null() {
        return HTTPStatus::INTERNAL_SERVER_ERROR.into();
    }
    // SAFETY: the buffer is the request's.
    unsafe { shim::set_last(buf, r.is_main()) };
    let rc = r.send_header();
    // SAFETY: the request is valid.
    let only_header = unsafe { shim::is_header_only(r.as_ref()) };
    if rc == Status::NGX_ERROR || rc > Status::NGX_OK || only_header {
        return rc;
    }
    r.output_filter(&mut ngx_chain_t { buf, next: ptr::null_mut() })
}
