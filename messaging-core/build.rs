//! Nothing is built here: the `links` key in Cargo.toml needs a build script, and it makes two
//! versions of this crate in one program a cargo error instead of a second, empty registry.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
