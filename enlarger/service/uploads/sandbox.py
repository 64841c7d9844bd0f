"""What the process of one picture may do: compute, read its upload, write into its job's folder; and nothing else.

Each part is in force where the system has it: Landlock (Linux 5.13) for files, seccomp for everything that a system
call can do, the network first of all. Nothing here raises where a part is missing: it is left out of `available`.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLONE_THREAD = 0x10000  # of clone: a thread, and no process
_ALLOWED_CALLS = """
read readv pread64 write writev pwrite64 lseek close fstat newfstatat stat lstat statx access faccessat faccessat2
open openat fcntl ioctl dup dup2 dup3 ftruncate fsync fdatasync fallocate fadvise64 getdents64 getcwd readlink
readlinkat rename renameat renameat2 unlink unlinkat umask
mmap mprotect munmap mremap madvise brk mlock munlock membarrier
futex set_robust_list get_robust_list rseq sched_yield sched_getaffinity set_tid_address
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack alarm setitimer restart_syscall
getpid gettid getppid getuid geteuid getgid getegid getrandom uname sysinfo getrusage getrlimit times
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time poll ppoll select pselect6
exit exit_group
"""
"""All that decoding needs. Not among them: sockets, starting programs or processes, tracing, mounting, other users'
memory. Whatever is not here fails with "Operation not permitted"."""


@dataclass(frozen=True)
class Job:
    """The files of one picture."""

    source: Path  # is read
    folder: Path  # new files are made in it


@cache
def available() -> Sequence[str]:
    """The parts that this system has: "landlock", "seccomp"."""
    return tuple(name for name, has_it in (("landlock", _has_landlock), ("seccomp", _has_seccomp)) if has_it())


def confine(job: Job) -> None:
    """Give up, for ever, whatever a picture does not need. Only for a process that has one thread."""
    if "landlock" in available():
        _confine_files(job)
    if "seccomp" in available():
        _confine_calls()


def _has_landlock() -> bool:
    try:
        import landlock  # pyright: ignore[reportMissingTypeStubs] - it has none

        return landlock.landlock_abi_version() >= 1
    except (ImportError, OSError, AttributeError, RuntimeError):  # another system, an older kernel, or switched off
        return False


def _has_seccomp() -> bool:
    try:
        import pyseccomp  # pyright: ignore[reportMissingTypeStubs] - it has none

        return bool(pyseccomp.SyscallFilter)
    except (ImportError, OSError, RuntimeError):  # another system, or no libseccomp
        return False


def _confine_files(job: Job) -> None:
    import landlock  # pyright: ignore[reportMissingTypeStubs] - it has none

    access, everything = landlock.FSAccess, landlock.FSAccess.all()
    ruleset = landlock.Ruleset(everything)
    if job.source.is_file():
        ruleset.allow(job.source, rules=access.READ_FILE)
    if job.folder.is_dir():
        written = access.READ_FILE | access.WRITE_FILE | access.MAKE_REG | access.REMOVE_FILE | access.TRUNCATE
        ruleset.allow(job.folder, rules=written & everything)
    ruleset.apply()


def _confine_calls() -> None:
    import pyseccomp  # pyright: ignore[reportMissingTypeStubs] - it has none

    filter = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for name in _ALLOWED_CALLS.split():
        filter.add_rule(pyseccomp.ALLOW, name)
    is_thread = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, CLONE_THREAD, CLONE_THREAD)
    filter.add_rule(pyseccomp.ALLOW, "clone", is_thread)
    filter.add_rule(pyseccomp.ALLOW, "tgkill", pyseccomp.Arg(0, pyseccomp.EQ, os.getpid()))  # abort, and nobody else
    filter.add_rule(pyseccomp.ALLOW, "prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0))
    filter.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # libc then takes clone, whose flags can be seen
    filter.load()
