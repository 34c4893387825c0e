//! The module links no OpenSSL, and .cargo/config.toml has openssl-sys link none: here it has to be.

fn main() {
    println!("cargo::rustc-link-lib=ssl");
    println!("cargo::rustc-link-lib=crypto");
}
