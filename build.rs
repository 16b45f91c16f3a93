//! How the released binary is linked: relocations in their packed form are 2 MB less to ship, and identical functions
//! (generated code has many) are kept once.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        for argument in ["-z,pack-relative-relocs", "--icf=all"] {
            println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
        }
    }
}
