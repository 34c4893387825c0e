//! Answers of nginx that are made here.

use core::ffi::c_void;
use core::mem;
use core::ptr;
use std::borrow::Cow;

use nginx_sys::{
    NGX_DECLINED, NGX_ERROR, NGX_HTTP_BAD_REQUEST, NGX_HTTP_GET, NGX_HTTP_HEAD,
    NGX_HTTP_INTERNAL_SERVER_ERROR, NGX_HTTP_NOT_ALLOWED, NGX_HTTP_OK, NGX_OK, ngx_buf_t,
    ngx_chain_t, ngx_create_temp_buf, ngx_http_arg, ngx_http_conf_ctx_t, ngx_http_core_loc_conf_t,
    ngx_http_core_module, ngx_http_discard_request_body, ngx_http_output_filter,
    ngx_http_request_t, ngx_http_send_header, ngx_int_t, ngx_list_part_t, ngx_list_push,
    ngx_pcalloc, ngx_str_t, ngx_table_elt_t,
};

use super::conf::Conf;
use super::http::Http;
use super::module::Module;

/// What a location answers.
pub trait Page<M: Module<Block = Http>> {
    /// The answer to a request.
    fn answer(conf: &M::MainConf, request: &Request) -> Answer;
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
pub struct Request(*mut ngx_http_request_t);

impl Request {
    /// The value of an argument, as it was sent.
    pub fn argument(&self, name: &str) -> Option<&[u8]> {
        let mut value = ngx_str_t { len: 0, data: ptr::null_mut() };
        // SAFETY: the request is valid, and the name is only read. The value lies in its line.
        unsafe {
            let name_at = name.as_ptr().cast_mut();
            let found = ngx_http_arg(self.0, name_at, name.len(), &raw mut value);
            (found == NGX_OK as ngx_int_t)
                .then(|| core::slice::from_raw_parts(value.data, value.len))
        }
    }

    /// Whether a header of the request contains a text, or one of several of that name does. Upper
    /// and lower case are the same.
    pub fn header_has(&self, name: &str, text: &str) -> bool {
        let has = |value: &[u8]| {
            value.windows(text.len().max(1)).any(|one| one.eq_ignore_ascii_case(text.as_bytes()))
        };
        // SAFETY: the request is valid, and its list of headers complete.
        unsafe {
            let mut part: *const ngx_list_part_t = &raw const (*self.0).headers_in.headers.part;
            while let Some(this) = part.as_ref() {
                let first = this.elts.cast::<ngx_table_elt_t>();
                for n in 0..this.nelts {
                    let header = &*first.add(n);
                    if header.key.as_bytes().eq_ignore_ascii_case(name.as_bytes())
                        && has(header.value.as_bytes())
                    {
                        return true;
                    }
                }
                part = this.next;
            }
        }
        false
    }

    /// Adds a header to the answer. Whether there was memory.
    fn add_header(&self, name: &'static str, value: &'static str) -> bool {
        let text =
            |text: &'static str| ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
        // SAFETY: the request is valid; an element of its list is plain data, of which nginx reads
        // the name and value and copies them, and whose other parts are null.
        unsafe {
            let list = &raw mut (*self.0).headers_out.headers;
            let Some(header) = ngx_list_push(list).cast::<ngx_table_elt_t>().as_mut() else {
                return false;
            };
            ptr::write_bytes(ptr::from_mut(header), 0, 1);
            header.hash = 1;
            header.key = text(name);
            header.value = text(value);
        }
        true
    }
}

/// Lets the location that is being read answer with a page.
pub fn serve<M: Module<Block = Http>, P: Page<M>>(cf: &mut Conf) {
    // SAFETY: within http{} ctx is that of the block that is read; the core module has a
    // configuration for each location.
    unsafe {
        let ctx = cf.context().cast::<ngx_http_conf_ctx_t>();
        let core = *(*ctx).loc_conf.add(ngx_http_core_module.ctx_index);
        if let Some(core) = core.cast::<ngx_http_core_loc_conf_t>().as_mut() {
            core.handler = Some(answer::<M, P>);
        }
    }
}

unsafe extern "C" fn answer<M: Module<Block = Http>, P: Page<M>>(
    r: *mut ngx_http_request_t,
) -> ngx_int_t {
    // SAFETY: nginx calls with a request, whose configuration and pool are valid.
    unsafe {
        if (*r).method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as usize == 0 {
            return NGX_HTTP_NOT_ALLOWED as ngx_int_t;
        }
        let rc = ngx_http_discard_request_body(r);
        if rc != NGX_OK as ngx_int_t {
            return rc;
        }
        let conf: *mut c_void = *(*r).main_conf.add((*M::module()).ctx_index);
        let Some(conf) = conf.cast::<M::MainConf>().as_ref() else {
            return NGX_DECLINED as ngx_int_t;
        };
        let request = Request(r);
        let (content_type, body) = match P::answer(conf, &request) {
            Answer::Body(content_type, body) => (content_type, body),
            Answer::BadRequest => return NGX_HTTP_BAD_REQUEST as ngx_int_t,
            Answer::OutOfMemory => return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t,
        };
        if !request.add_header("Cache-Control", "no-store") || !request.add_header("Vary", "Accept")
        {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        }
        let out = &mut (*r).headers_out;
        out.content_type =
            ngx_str_t { len: content_type.len(), data: content_type.as_ptr().cast_mut() };
        // As nginx has it: lists of types, as that of gzip, are of types without parameters.
        out.content_type_len = content_type.find(';').unwrap_or(content_type.len());
        out.content_type_lowcase = ptr::null_mut();
        out.status = NGX_HTTP_OK as usize;
        out.content_length_n = body.len() as _;
        let buf: *mut ngx_buf_t = match body.len() {
            // As nginx itself ends an answer that is empty (ngx_http_send_response()).
            0 => ngx_pcalloc((*r).pool, mem::size_of::<ngx_buf_t>()).cast(),
            len => ngx_create_temp_buf((*r).pool, len),
        };
        if buf.is_null() {
            return NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;
        }
        if !body.is_empty() {
            ptr::copy_nonoverlapping(body.as_ptr(), (*buf).pos, body.len());
            (*buf).last = (*buf).pos.add(body.len());
        }
        (*buf).set_last_buf(u32::from(r == (*r).main));
        (*buf).set_sync(u32::from(body.is_empty() && r != (*r).main));
        (*buf).set_last_in_chain(1);
        let rc = ngx_http_send_header(r);
        // What r->header_only says, of which bindgen does not know where it is since nginx 1.29.3: it
        // takes bit-fields for adjacent that are kept out of the next word. A filter may have made it
        // a 304.
        let is_head = (*r).method & NGX_HTTP_HEAD as usize != 0;
        let only_header = is_head || (*r).headers_out.status != NGX_HTTP_OK as usize;
        if rc == NGX_ERROR as ngx_int_t || rc > NGX_OK as ngx_int_t || only_header {
            return rc;
        }
        let mut chain = ngx_chain_t { buf, next: ptr::null_mut() };
        ngx_http_output_filter(r, &raw mut chain)
    }
}
