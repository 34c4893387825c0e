//! Makes what nginx-sys learnt about the nginx being built against visible to `cfg`, looks whether
//! openssl-sys knows the OpenSSL of that nginx, and makes Rust of what both leave out.
//!
//! No OpenSSL is linked: its symbols resolve from the nginx binary that loads the module.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs, slice};

/// The oldest nginx that is tested: before 1.21.2 it does not know OpenSSL 3.
const OLDEST_NGINX: u32 = 1_022_000;

/// What only some nginx have: a fork has the version of the one that it was made from, and not all that
/// came with it. It is there if this is compiled after [`HEADERS`]. src/ffi/shim.h sees the same names, in
/// capitals.
const FEATURES: [(&str, &str); 7] = [
    // Sockets of QUIC.
    ("nginx_http_quic", "int is(ngx_http_listen_opt_t *opt) { return opt->quic; }"),
    // stream{} has virtual servers, and keeps its sockets as http{} does.
    (
        "nginx_stream_servers",
        "void *of(ngx_stream_conf_addr_t *addr) { return addr->default_server; }",
    ),
    // Its part about TLS is named as that of http{}.
    ("nginx_stream_ssl_srv_conf", "ngx_stream_ssl_srv_conf_t *named;"),
    // It has ssl_ocsp.
    ("nginx_stream_ocsp", "ngx_uint_t of(ngx_stream_ssl_srv_conf_t *ssl) { return ssl->ocsp; }"),
    // The name is dispatched to a server before OpenSSL asks for a session.
    (
        "nginx_early_servername",
        "int (*callback)(SSL *, int *, void *) = ngx_ssl_client_hello_callback;
        int *index_of(void) { return &ngx_ssl_client_hello_arg_index; }",
    ),
    // A callback may return SSL_CLIENT_HELLO_RETRY, as the patches of patches/ have it.
    ("nginx_client_hello_retry", "int allowed = NGX_SSL_CLIENT_HELLO_RETRY;"),
    // They show this function where a callback cannot wait without it.
    ("nginx_quic_handshake", "ngx_int_t (*function)(ngx_connection_t *) = ngx_quic_handshake;"),
];

/// nginx's headers, as src/ffi/shim.h includes them.
const HEADERS: &str = "
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_event.h>
#include <ngx_http.h>
#if (NGX_STREAM_SSL)
#include <ngx_stream.h>
#endif
#if (NGX_QUIC)
#include <ngx_event_quic_connection.h>
#endif
";

/// Macros of OpenSSL's that openssl-sys leaves out.
const MACROS: [&str; 7] = [
    "BIO_CTRL_(DUP|PENDING|POP|PUSH)",
    "BIO_TYPE_FILTER",
    "SSL3_AL_FATAL",
    "SSL_CB_(ACCEPT_LOOP|ALERT|HANDSHAKE_DONE|HANDSHAKE_START)",
    "SSL_CERT_SET_(FIRST|NEXT)",
    "SSL_TICKET_(RETURN_(IGNORE|IGNORE_RENEW|USE|USE_RENEW)|EMPTY|SUCCESS|SUCCESS_RENEW)",
    "TLSEXT_TYPE_(max_fragment_length|server_name)",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");

    declare("ngx_feature", "DEP_NGINX_FEATURES_CHECK");
    for feature in metadata("DEP_NGINX_FEATURES").split(',').map(str::trim) {
        if !feature.is_empty() {
            println!("cargo::rustc-cfg=ngx_feature=\"{feature}\"");
        }
    }

    declare("ngx_os", "DEP_NGINX_OS_CHECK");
    let os = metadata("DEP_NGINX_OS");
    if !os.is_empty() {
        println!("cargo::rustc-cfg=ngx_os=\"{os}\"");
    }

    match metadata("DEP_NGINX_VERSION_NUMBER").parse::<u32>() {
        Ok(version) if version < OLDEST_NGINX => println!("cargo::error=nginx is older than 1.22"),
        Ok(_) => {}
        Err(err) => println!("cargo::error=nginx's version is unknown: {err}"),
    }

    for (cfg, _) in FEATURES {
        println!("cargo::rustc-check-cfg=cfg({cfg})");
    }
    match build() {
        Ok(features) => features.iter().for_each(|cfg| println!("cargo::rustc-cfg={cfg}")),
        Err(why) => println!("cargo::error={why}"),
    }

    // A Mach-O library must be told that its symbols may come from the program that loads it.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo::rustc-link-arg=-undefined");
        println!("cargo::rustc-link-arg=dynamic_lookup");
    }
}

/// Looks at nginx and its OpenSSL, and makes the shim, which is of no use without them. What this nginx has
/// of [`FEATURES`].
fn build() -> Result<Vec<&'static str>, String> {
    check_openssl()?;
    let features = Compiler::new().features()?;
    make_shim(&features)?;
    Ok(features)
}

/// The C compiler, which finds nginx's headers.
struct Compiler(cc::Build);

impl Compiler {
    fn new() -> Self {
        let include = metadata("DEP_NGINX_INCLUDE");
        let mut build = cc::Build::new();
        build.includes(env::split_paths(&include)).warnings(false);
        for flag in metadata("DEP_NGINX_CFLAGS").split_whitespace() {
            build.flag(flag);
        }
        Compiler(build)
    }

    fn features(&self) -> Result<Vec<&'static str>, String> {
        // Else what is there would seem not to be.
        self.compiles("")?.map_err(|said| format!("nginx's headers: {said}"))?;
        let mut here = Vec::new();
        for (cfg, code) in FEATURES {
            if self.compiles(code)?.is_ok() {
                here.push(cfg);
            }
        }
        Ok(here)
    }

    /// Whether that is C after nginx's headers; if not, what the compiler says.
    fn compiles(&self, code: &str) -> Result<Result<(), String>, String> {
        let file = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("probe.c");
        let text = format!("{HEADERS}\n{code}\n");
        fs::write(&file, text).map_err(|err| format!("{}: {err}", file.display()))?;
        let compiler = self.0.try_get_compiler().map_err(|err| format!("no C compiler: {err}"))?;
        // A function that is not declared has no type.
        let flags = ["-fsyntax-only", "-Werror=implicit-function-declaration"];
        let output = compiler.to_command().args(flags).arg(&file).output();
        let output = output.map_err(|err| format!("no C compiler: {err}"))?;
        let said = || String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        Ok(if output.status.success() { Ok(()) } else { Err(said()) })
    }
}

/// Refuses nginx's OpenSSL if it is too old or none, and headers of another one for openssl-sys.
fn check_openssl() -> Result<(), String> {
    for (name, is_right) in [
        ("OPENSSL_INCLUDE_DIR", (|value| !value.is_empty()) as fn(&str) -> bool),
        ("OPENSSL_LIB_DIR", |value| !value.is_empty()),
        ("OPENSSL_LIBS", str::is_empty),
    ] {
        // openssl-sys asks in this order.
        let target = env::var("TARGET").unwrap_or_default().to_uppercase().replace('-', "_");
        let value = env::var(format!("{target}_{name}")).or_else(|_| env::var(name));
        if !value.is_ok_and(|value| is_right(&value)) {
            return Err(format!(
                "{name} is not as .cargo/config.toml sets it, with which openssl-sys links no OpenSSL \
                 beside nginx's: build in the directory of the sources"
            ));
        }
    }

    let path: Vec<_> = env::split_paths(&metadata("DEP_NGINX_INCLUDE")).collect();
    let theirs = OpenSsl::found_in(&path)?;
    if let Some(other) = theirs.unfit() {
        return Err(format!(
            "nginx is built with {other}, and the module needs OpenSSL 3.0 or later"
        ));
    }
    let include = PathBuf::from(metadata("DEP_OPENSSL_INCLUDE"));
    let ours = OpenSsl::found_in(slice::from_ref(&include))?;
    let Some(differs) = ours.macros.symmetric_difference(&theirs.macros).next() else {
        return Ok(());
    };
    let usual = || PathBuf::from("the compiler's own directory of headers");
    let there = path.into_iter().find(|dir| dir.join(VERSION_HEADER).is_file());
    let [ours, theirs] = [ours.name(), theirs.name()];
    Err(format!(
        "nginx is built with {theirs}, whose headers are in {}, and openssl-sys has those of {ours} in \
         {}: OPENSSL_INCLUDE_DIR names the directory, see tools/build-module (they differ in {differs})",
        there.unwrap_or_else(usual).display(),
        include.display(),
    ))
}

const VERSION_HEADER: &str = "openssl/opensslv.h";

/// What headers say of their OpenSSL.
struct OpenSsl {
    /// The macros about its version and its options, as the compiler writes them.
    macros: BTreeSet<String>,
}

impl OpenSsl {
    /// That of the headers which a compiler finds.
    fn found_in(path: &[PathBuf]) -> Result<Self, String> {
        let file = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("openssl.c");
        let text = format!("#include <{VERSION_HEADER}>\n#include <openssl/opensslconf.h>\n");
        fs::write(&file, text).map_err(|err| format!("{}: {err}", file.display()))?;
        let expanded = cc::Build::new().includes(path).flag("-dM").file(file).try_expand();
        let expanded = expanded.map_err(|err| format!("no headers of OpenSSL: {err}"))?;
        let macros = String::from_utf8_lossy(&expanded)
            .lines()
            .filter_map(|line| line.strip_prefix("#define "))
            .filter(|line| line.starts_with("OPENSSL_") || line.starts_with("LIBRESSL_"))
            .map(|line| line.trim_end().into())
            .collect();
        Ok(OpenSsl { macros })
    }

    fn value(&self, name: &str) -> Option<&str> {
        let words = |line| str::split_once(line, ' ').unwrap_or((line, ""));
        self.macros
            .iter()
            .map(|line| words(line))
            .find_map(|(is, value)| (is == name).then_some(value))
    }

    fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// What it is in place of OpenSSL 3 or later.
    fn unfit(&self) -> Option<&'static str> {
        if self.has("LIBRESSL_VERSION_NUMBER") {
            Some("LibreSSL")
        } else if self.has("OPENSSL_IS_AWSLC") {
            Some("AWS-LC")
        } else if self.has("OPENSSL_IS_BORINGSSL") {
            Some("BoringSSL")
        } else {
            // It was one number before.
            (!self.has("OPENSSL_VERSION_MAJOR")).then_some("an older OpenSSL")
        }
    }

    fn name(&self) -> String {
        let number = |part| self.value(&format!("OPENSSL_VERSION_{part}")).unwrap_or("?");
        format!("OpenSSL {}.{}.{}", number("MAJOR"), number("MINOR"), number("PATCH"))
    }
}

/// Makes Rust of src/ffi/shim.h, and compiles what of it is code.
fn make_shim(features: &[&str]) -> Result<(), String> {
    const HEADER: &str = "src/ffi/shim.h";
    /// What is ours in it; Rust calls it without this.
    const PREFIX: &str = "ngx_http_ssl_session_";
    let directory = |name: &str| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let out = directory("OUT_DIR");
    let wrappers = out.join("shim.c");
    let include = metadata("DEP_NGINX_INCLUDE");
    let path: Vec<_> = env::split_paths(&include).collect();
    let flags = metadata("DEP_NGINX_CFLAGS");
    let defines = features.iter().map(|cfg| format!("-D{}", cfg.to_uppercase()));
    let flags: Vec<_> = flags.split_whitespace().map(Into::into).chain(defines).collect();

    let rust = env::var("CARGO_PKG_RUST_VERSION").unwrap_or_default().parse();
    let bindings = bindgen::builder()
        .rust_target(rust.map_err(|err| format!("rust-version: {err}"))?)
        .header(HEADER)
        .clang_args(path.iter().map(|dir| format!("-I{}", dir.display())))
        .clang_args(&flags)
        .allowlist_file(HEADER)
        .allowlist_item(MACROS.join("|"))
        // The types are those of openssl-sys and nginx-sys (src/ffi/shim.rs).
        .allowlist_recursively(false)
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .use_core()
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|err| format!("{HEADER}: {err}"))?
        .to_string();
    let bindings = ["fn ", "const ", "type "]
        .iter()
        .fold(bindings, |text, kind| text.replace(&format!("{kind}{PREFIX}"), kind));
    fs::write(out.join("shim.rs"), bindings).map_err(|err| err.to_string())?;

    let mut compiler = cc::Build::new();
    for flag in &flags {
        compiler.flag(flag);
    }
    compiler
        .file(wrappers)
        .include(directory("CARGO_MANIFEST_DIR"))
        .includes(path)
        // Of nginx's headers there is nothing to be said here, and without it glibc warns of
        // _FORTIFY_SOURCE.
        .warnings(false)
        .opt_level(2)
        .debug(false)
        .try_compile("ngx_http_ssl_session_shim")
        .map_err(|err| format!("{HEADER}: {err}"))
}

/// Tells rustc which values of a cfg are no typing error.
fn declare(cfg: &str, known: &str) {
    let known = metadata(known);
    let values = if known.is_empty() { "any()" } else { &known };
    println!("cargo::rustc-check-cfg=cfg({cfg}, values({values}))");
}

/// A value that nginx-sys's build script left for its direct dependents; empty when it left none.
fn metadata(name: &str) -> String {
    println!("cargo::rerun-if-env-changed={name}");
    env::var(name).unwrap_or_default()
}
