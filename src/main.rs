//! The `vauchi-relay` binary: hands the arguments to [`vauchi_relay::cli`].

fn main() -> std::process::ExitCode {
    vauchi_relay::cli::run()
}
