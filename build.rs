//! The migrations are embedded by a macro, which cargo does not know to follow. The commit comes from
//! whoever builds, because not every build has git.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-env-changed=VAUCHI_COMMIT");
    let commit = std::env::var("VAUCHI_COMMIT").unwrap_or_default();
    let version = match commit.trim() {
        "" => env!("CARGO_PKG_VERSION").to_owned(),
        commit => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
    };
    println!("cargo:rustc-env=VAUCHI_VERSION={version}");
}
