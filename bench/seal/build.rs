//! The module finds OpenSSL in the nginx that loads it; here it has to be linked. What the bindings
//! have of nginx itself is not called.

fn main() {
    println!("cargo::rustc-link-lib=crypto");
    println!("cargo::rustc-link-arg=-Wl,--unresolved-symbols=ignore-in-object-files");
}
