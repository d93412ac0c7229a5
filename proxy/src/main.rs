//! The sidecar's executable. Everything is in the library.

fn main() -> std::process::ExitCode {
    weft_proxy::main()
}
