"""What a process of the sandbox gives up before it runs a program: rights, resources and what it can see.

Imported by `sandbox_child` (as a script's neighbour, without caspo) and by `sandbox`. Linux only, but for the import.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import sys

__all__ = ["hide", "landlock", "lock"]

# Names and numbers of the system calls that a Python program needs to compute, import, read files, use threads and
# print: (x86-64, aarch64), None where the machine has no such call. All others fail with EPERM.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "sigaltstack": (131, 132), "arch_prctl": (158, None), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_TMPFILE & ~os.O_DIRECTORY
_CLONE_THREAD = 0x10000

# Calls that are allowed when (argument number, mask, value): argument & mask == value.
_CONDITIONAL = [
    ("open", (2, None), 1, _WRITING, 0),  # to read
    ("openat", (257, 56), 2, _WRITING, 0),
    ("clone", (56, 220), 0, _CLONE_THREAD, _CLONE_THREAD),  # threads, no processes
    ("prlimit64", (302, 261), 2, 0xFFFFFFFF, 0),  # to ask, not to set
    ("ioctl", (16, 29), 1, 0xFFFFFFFF, 0x5401),  # is it a terminal?
    ("ioctl", (16, 29), 1, 0xFFFFFFFF, 0x5451),  # close on exec
    ("fcntl", (72, 25), 1, 0xFFFFFFFC, 0),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL
    ("fcntl", (72, 25), 1, 0xFFFFFFFF, 1030),  # F_DUPFD_CLOEXEC
]
_CLONE3 = (435, 435)  # its flags lie in memory, where a filter cannot look: "no such call", so that libc uses clone

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction))]


def _rules() -> "list[tuple[int, int, int, int]]":
    """The filter as BPF instructions (code, jump if true, jump if false, value)."""
    column, audit = _MACHINES[platform.machine()]
    rules = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL),  # calls of another architecture
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _EPERM),  # x32
        (_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ENOSYS),
    ]  # fmt: skip
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for _, numbers, argument, mask, value in _CONDITIONAL:
        if (number := numbers[column]) is not None:
            low = 16 + 8 * argument  # the lower half of the argument on these (little-endian) machines
            rules += [
                (_EQUAL, 0, 5, number),
                (_LOAD, 0, 0, low), (_AND, 0, 0, mask), (_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW),
                (_LOAD, 0, 0, 0),
            ]  # fmt: skip
    return [*rules, (_RETURN, 0, 0, _EPERM)]


# What may be read where the kernel has Landlock, beside Python's own folders: the system's programs and libraries, devices,
# and a few files of no secrets. Not /proc (other processes) but the process's own.
_READABLE = (
    "/usr", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/dev", "/sys/devices/system/cpu", "/proc/self",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory", "/etc/hostname", "/etc/hosts",
    "/etc/localtime", "/etc/timezone", "/etc/os-release", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
    "/etc/mime.types", "/etc/ld.so.cache", "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf", "/etc/crypto-policies",
)  # fmt: skip
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ALL_OF_FILES, _READ_FILE, _READ_FOLDER = (1 << 13) - 1, 1 << 2, 1 << 3

_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 1, 3, 4
_CAPABILITIES_3, _READ_ANYTHING = 0x20080522, 1 << 2


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("access", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def landlock() -> bool:
    """Whether this kernel holds a process to a list of files, and away from processes outside (Landlock, Linux 5.13)."""
    return bool(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) > 0)


def hide(hidden: bool) -> bool:
    """Keep other processes of this user from this one's memory, environment and open files, or allow it again.

    Whether that changed anything.
    """
    libc = ctypes.CDLL(None)
    was = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, int(not hidden), 0, 0, 0)
    return (was == 1) is hidden


def lock(limits: "dict[str, int]", folder: str, use_landlock: bool) -> None:
    """Give up, for good, what a program does not need.

    Raises:
        OSError: the kernel does not take it; nothing may be run then.
    """
    _limit(limits)
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_capabilities(libc)
    _checked(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "the kernel does not end it with its parent")
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "the kernel does not fix its rights (no_new_privs)")
    if use_landlock:
        _hide_files(libc, folder)
    _filter_calls(libc)


def _checked(result: int, problem: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), problem)
    return result


def _limit(limits: "dict[str, int]") -> None:
    import resource  # not on Windows

    for name in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        wanted = {resource.RLIMIT_CPU: limits["seconds"], resource.RLIMIT_AS: limits["bytes"]}.get(name, 0)
        hard = resource.getrlimit(name)[1]
        resource.setrlimit(name, (wanted, wanted) if hard == resource.RLIM_INFINITY else (min(wanted, hard),) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def _folders() -> "list[str]":
    """Where Python and its packages lie."""
    return list(dict.fromkeys([sys.prefix, sys.base_prefix, *sys.path]))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root without its powers: a process that has more of them cannot be looked into.

    The power to read other users' files stays where Python itself could not be read without: for root in a container
    that sees somebody's home.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_3, 0)
    had = (ctypes.c_uint32 * 6)()  # twice (effective, permitted, inheritable)
    _checked(libc.capget(header, had), "its capabilities cannot be read")
    kept = had[1] & _READ_ANYTHING
    _checked(libc.capset(header, (ctypes.c_uint32 * 6)(0, kept)), "its capabilities stay")
    if all(_listable(path) for path in _folders()):
        kept = 0
    _checked(libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept)), "its capabilities stay")


def _listable(path: str) -> bool:
    try:
        os.listdir(path)  # noqa: PTH208
    except OSError as error:
        return error.errno != errno.EACCES  # what is missing, or a file, is no folder that cannot be read
    return True


def _hide_files(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: reading `_READABLE`, Python's own and the empty folder only; no process outside can be looked into."""
    handled = ctypes.c_uint64(_ALL_OF_FILES)
    rules = _checked(
        libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0), "the kernel refuses rules (Landlock)"
    )
    for path in (*_READABLE, *_folders(), folder):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            access = _READ_FILE | _READ_FOLDER if os.path.isdir(path) else _READ_FILE  # noqa: PTH112
            rule = _Beneath(access, place)
            _checked(libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(rule), 0), f"the kernel refuses a rule for {path}")
            os.close(place)
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0), "the kernel refuses to apply its rules (Landlock)")
    os.close(rules)


def _filter_calls(libc: ctypes.CDLL) -> None:
    rules = _rules()
    instructions = (_Instruction * len(rules))(*(_Instruction(*rule) for rule in rules))
    program = _Program(len(rules), instructions)
    done = libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    _checked(done, "the kernel refuses the filter of system calls (seccomp)")
