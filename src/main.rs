//! The door: hands the command line to `ringmail::cli`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // The allocator asks for huge pages; with them each executor's few small blocks take 2 MiB each: 66 MB at rest instead
    // of 22, and no message is faster. A kernel without them says no, which is as good.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    ringmail::cli::main()
}
