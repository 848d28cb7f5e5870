//! The `landmark` command. All of it lives in the library of this crate, where tests reach it.

fn main() -> std::process::ExitCode {
    landmark_cli::main()
}
