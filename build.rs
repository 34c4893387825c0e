//! Makes what nginx-sys learnt about the nginx being built against visible to `cfg`, looks whether
//! openssl-sys knows the OpenSSL of that nginx, and makes Rust of what both leave out.
//!
//! No OpenSSL is linked: its symbols resolve from the nginx binary that loads the module.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs, slice};

/// The oldest nginx that is tested: before 1.21.2 it does not know OpenSSL 3.
const OLDEST_NGINX: u32 = 1_022_000;

/// What is different from which nginx on.
const VERSIONS: [(&str, u32); 4] = [
    // It has QUIC.
    ("nginx_1_25_0", 1_025_000),
    // stream{} has virtual servers.
    ("nginx_1_25_5", 1_025_005),
    // stream{} has ssl_ocsp.
    ("nginx_1_27_2", 1_027_002),
    // SNI is dispatched before the session lookup.
    ("nginx_1_29_2", 1_029_002),
];

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
        Ok(version) => {
            if version < OLDEST_NGINX {
                println!("cargo::error=nginx is older than 1.22");
            }
            for (cfg, since) in VERSIONS {
                println!("cargo::rustc-check-cfg=cfg({cfg})");
                if version >= since {
                    println!("cargo::rustc-cfg={cfg}");
                }
            }
        }
        // A guess would compile, and behave wrongly on the other side.
        Err(err) => println!("cargo::error=nginx's version is unknown: {err}"),
    }

    // Without them the shim is of no use.
    match check_openssl().and_then(|()| make_shim()) {
        Ok(()) => {}
        Err(why) => println!("cargo::error={why}"),
    }

    println!("cargo::rustc-check-cfg=cfg(nginx_client_hello_retry)");
    if is_patched() {
        println!("cargo::rustc-cfg=nginx_client_hello_retry");
    }

    // A Mach-O library must be told that its symbols may come from the program that loads it.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("macos") {
        println!("cargo::rustc-link-arg=-undefined");
        println!("cargo::rustc-link-arg=dynamic_lookup");
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
        } else if self.has("OPENSSL_IS_BORINGSSL") || self.has("OPENSSL_IS_AWSLC") {
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
fn make_shim() -> Result<(), String> {
    const HEADER: &str = "src/ffi/shim.h";
    /// What is ours in it; Rust calls it without this.
    const PREFIX: &str = "ngx_http_ssl_session_";
    let directory = |name: &str| env::var_os(name).map(PathBuf::from).unwrap_or_default();
    let out = directory("OUT_DIR");
    let wrappers = out.join("shim.c");
    let include = metadata("DEP_NGINX_INCLUDE");
    let path: Vec<_> = env::split_paths(&include).collect();
    let flags = metadata("DEP_NGINX_CFLAGS");

    let rust = env::var("CARGO_PKG_RUST_VERSION").unwrap_or_default().parse();
    let bindings = bindgen::builder()
        .rust_target(rust.map_err(|err| format!("rust-version: {err}"))?)
        .header(HEADER)
        .clang_args(path.iter().map(|dir| format!("-I{}", dir.display())))
        .clang_args(flags.split_whitespace())
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
    for flag in flags.split_whitespace() {
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

/// Whether nginx lets a callback return `SSL_CLIENT_HELLO_RETRY`, as the patches of patches/ have it.
fn is_patched() -> bool {
    let include = metadata("DEP_NGINX_INCLUDE");
    let header = env::split_paths(&include)
        .map(|dir| dir.join("ngx_event_openssl.h"))
        .find(|header| header.is_file());
    let Some(header) = header else { return false };
    println!("cargo::rerun-if-changed={}", header.display());
    fs::read_to_string(header).is_ok_and(|text| text.contains("NGX_SSL_CLIENT_HELLO_RETRY"))
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
