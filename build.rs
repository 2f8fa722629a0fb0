//! The migrations are embedded by a macro, which cargo does not know to follow.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
