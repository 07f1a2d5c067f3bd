//! Says before the start whether io_uring can be used here, and what to do where it cannot.

use std::fmt;

/// The oldest kernel whose io_uring has all that glommio uses.
const KERNEL_MIN: (u32, u32) = (5, 15);
/// Locked memory that a ring needs on kernels that count it there.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;

/// What is missing, and how to mend it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProbeError {
    /// One sentence for the operator.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  hint: {}", self.message, self.hint)
    }
}

impl std::error::Error for ProbeError {}

/// Checks kernel, memlock and io_uring itself (by making one small ring).
pub fn probe() -> Result<(), ProbeError> {
    check_kernel(rustix::system::uname().release().to_str().unwrap_or(""))?;
    raise_memlock()?;
    raise_descriptors();
    make_a_ring().map_err(|error| explain(&error, &io_uring_disabled()))
}

/// glommio answers with a panic where io_uring is refused as a whole: caught here, unheard, at a time when nothing else
/// of the program runs yet.
fn make_a_ring() -> Result<(), String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let made = std::panic::catch_unwind(|| super::run_to_end("probe", || async {}));
    std::panic::set_hook(hook);
    match made {
        Ok(made) => made.map_err(|error| error.to_string()),
        Err(_) => Err("the kernel refuses to make a ring".to_owned()),
    }
}

fn io_uring_disabled() -> String {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default().trim().to_owned()
}

/// Descriptors that this process may have open.
pub fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

/// Raises the soft limit of open descriptors to the hard one: every connection needs one, and the usual soft limit of
/// 1,024 is for programs that use select(2).
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    // Where it cannot be raised, accepting pauses when descriptors run out; nothing else depends on it.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// `release` as in `uname -r`; one that cannot be read is given the benefit of the doubt.
fn check_kernel(release: &str) -> Result<(), ProbeError> {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < KERNEL_MIN => Err(ProbeError {
            message: format!("Linux {release} is too old: io_uring needs {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
            hint: "upgrade the kernel (Debian 12 and later have a new enough one)".into(),
        }),
        _ => Ok(()),
    }
}

/// Raises the soft limit of locked memory to the hard one; too small a hard limit is an error.
fn raise_memlock() -> Result<(), ProbeError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    if limit.current != limit.maximum {
        // Failing to raise it only matters when it is too small, which the next check says.
        let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    match getrlimit(Resource::Memlock).current {
        Some(bytes) if bytes < MEMLOCK_BYTES_MIN => Err(ProbeError {
            message: format!("only {bytes} bytes of locked memory are allowed; io_uring needs {MEMLOCK_BYTES_MIN}"),
            hint: "raise it: LimitMEMLOCK=64M in the systemd unit, or `ulimit -l` in the shell".into(),
        }),
        _ => Ok(()),
    }
}

/// `disabled` is the text of the sysctl: `1` bars unprivileged processes, `2` everybody.
fn explain(error: &str, disabled: &str) -> ProbeError {
    let hint = match disabled {
        "1" | "2" => {
            format!("kernel.io_uring_disabled is {disabled}: `sysctl -w kernel.io_uring_disabled=0` allows it")
        }
        _ => "inside a container the seccomp profile may forbid io_uring_setup, io_uring_enter and \
              io_uring_register: allow them (docker: --security-opt seccomp=PROFILE)"
            .into(),
    };
    ProbeError { message: format!("io_uring cannot be used: {error}"), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_named_and_odd_releases_pass() {
        for (release, ok) in
            [("5.10.0-8-amd64", false), ("5.15.1", true), ("6.1.0", true), ("4.19", false), ("?", true)]
        {
            assert_eq!(check_kernel(release).is_ok(), ok, "{release}");
        }
    }

    #[test]
    fn the_sysctl_is_named_when_it_is_the_reason() {
        assert!(explain("Operation not permitted", "2").hint.contains("kernel.io_uring_disabled=0"));
        assert!(explain("Operation not permitted", "0").hint.contains("seccomp"));
    }

    #[test]
    fn this_machine_passes() {
        probe().unwrap();
    }
}
