//! What cargo does not follow by itself: the migrations, which a macro embeds; the commit, which comes
//! from whoever builds, because not every build has git; and the schema of protocol v2, from which
//! the types of `src/protocol/v2/schema.rs` are made. No `protoc` is needed.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=migrations");
    name_the_version();
    compile_the_schema()
}

fn name_the_version() {
    println!("cargo:rerun-if-env-changed=VAUCHI_COMMIT");
    let commit = env::var("VAUCHI_COMMIT").unwrap_or_default();
    let release = env!("CARGO_PKG_VERSION");
    let (version, commit) = match commit.trim() {
        "" => (release.to_owned(), "unknown"),
        commit => (format!("{release} ({commit})"), commit),
    };
    println!("cargo:rustc-env=VAUCHI_VERSION={version}");
    println!("cargo:rustc-env=VAUCHI_RELAY_COMMIT={commit}");
}

fn compile_the_schema() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/relay.proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.open_file("relay.proto")?;
    // For the tests that print the golden frames with the names of their fields.
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("relay.descriptors");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    prost_build::Config::new()
        // A slice of the frame instead of a copy of the blob.
        .bytes(["."])
        // The comments are for those who read the schema; as Rust documentation they would be examples.
        .disable_comments(["."])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
