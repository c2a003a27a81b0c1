"""Restrictions of the process that reads a model file of unknown origin, the converter's child. Linux only.

Landlock allows reading what Python and the conversion need, and writing into one folder. A filter of system calls
(seccomp) forbids sockets, leaving the process group, tracing other processes, and parts of the kernel that a conversion
never uses. Where that filter is missing, a network namespace removes the network. Limits bound memory, processor time
and the size of a file.

Guarantee: each restriction that the kernel offers is in force before any framework is imported, and `enter` returns
those that it does not offer. Weak points: the filter lists refused calls, so a kernel fault in another call stays open;
the filter exists for x86-64, arm64 and 64-bit RISC-V only; the child may copy what it can read (its inputs, the
system's libraries) into the files that it writes; the numbers of processes and of files are not bounded.
"""

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Numbers of system calls from 424 on are the same on every architecture (linux: Documentation/process/adding-syscalls).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

# landlock.h: LANDLOCK_ACCESS_FS_*, by the bit.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_BITS_OF_VERSION = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # the number of rights in each version of Landlock
_NEWEST = max(_BITS_OF_VERSION)
_NET_VERSION, _SCOPE_VERSION = 4, 6
_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3
_MOST_FILE_BYTES = 8 << 30

# Refused calls that have one number on every architecture: io_uring_setup, pidfd_getfd, open_tree, move_mount, fsopen,
# fsconfig, fsmount, fspick.
_REFUSED_EVERYWHERE = (425, 438, 428, 429, 430, 431, 432, 433)
# socket, connect, setsid, setpgid, ptrace, process_vm_readv, process_vm_writev, mount, umount2, unshare, setns, bpf,
# keyctl, add_key, request_key, perf_event_open, userfaultfd, open_by_handle_at.
_REFUSED_GENERIC = (198, 203, 157, 154, 117, 270, 271, 40, 39, 97, 268, 280, 219, 217, 218, 241, 282, 265)
_REFUSED_X86_64 = (41, 42, 112, 109, 101, 310, 311, 165, 166, 272, 308, 321, 250, 248, 249, 298, 323, 304)
# By machine: the architecture's number in the kernel's audit.h, and the refused calls.
_FILTERS = {
    "x86_64": (0xC000003E, _REFUSED_X86_64),
    "aarch64": (0xC00000B7, _REFUSED_GENERIC),
    "riscv64": (0xC00000F3, _REFUSED_GENERIC),
}
_X32 = 0x40000000  # a second set of numbers on x86-64
# Classic BPF: load a word of seccomp_data, jump where equal or not below, return.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


@dataclass(frozen=True, slots=True)
class Restrictions:
    """The remaining rights of the child.

    Attributes:
        readable: files and folders that it may read.
        folder: the only one that it may write into.
        memory_bytes: the limit of its memory.
        cpu_s: the limit of its processor time.
    """

    readable: tuple[str, ...]
    folder: str
    memory_bytes: int
    cpu_s: int


def enter(restrictions: Restrictions) -> list[str]:
    """Restrict this process and its future children, permanently.

    Returns:
        what this system cannot prevent, in words.
    """
    missing: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, restrictions.memory_bytes),
        (resource.RLIMIT_CPU, restrictions.cpu_s),
        (resource.RLIMIT_FSIZE, _MOST_FILE_BYTES),
    ):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))
    alone = _leave_network(libc)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    version = _restrict_files(libc, restrictions)
    is_filtered = _filter_calls(libc)
    if not version:
        missing.append("reading and writing any file that its user may")
    if not is_filtered and not alone:
        missing.append("using the network" if version < _NET_VERSION else "using the network by UDP")
    if not is_filtered and alone:
        missing.append("connecting to the sockets of other programs")
    return missing


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Refuse, permanently, system calls that no conversion needs; False where this machine has no such filter."""
    if platform.machine() not in _FILTERS or struct.calcsize("P") != 8:  # 32 bits under a kernel of 64: other numbers
        return False
    architecture, refused = _FILTERS[platform.machine()]
    numbers = (*refused, *_REFUSED_EVERYWHERE)
    count = len(numbers)
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 0, count + 3, architecture),  # another architecture, such as 32 bits: refused
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_AT_LEAST, count + 1, 0, _X32),
        *((_JUMP_EQUAL, count - at, 0, number) for at, number in enumerate(numbers)),
    ]
    steps += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(steps), ctypes.addressof(program))
    return int(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(head), 0, 0)) == 0


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Enter an empty network namespace; through a user namespace with the same user id where that needs root."""
    user, group = os.geteuid(), os.getegid()
    if user == 0 and libc.unshare(_CLONE_NEWNET) == 0:
        return True
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


def _restrict_files(libc: ctypes.CDLL, restrictions: Restrictions) -> int:
    """Apply Landlock's rules; return its version, 0 where there is none."""
    version = int(libc.syscall(_CREATE_RULESET, None, 0, _ASK_VERSION))
    if version < 1:
        return 0
    every = (1 << _BITS_OF_VERSION[min(version, _NEWEST)]) - 1
    attributes = struct.pack(
        "QQQ",
        every,
        _TCP if version >= _NET_VERSION else 0,
        _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPE_VERSION else 0,
    )
    size = 24 if version >= _SCOPE_VERSION else 16 if version >= _NET_VERSION else 8
    ruleset = int(libc.syscall(_CREATE_RULESET, attributes, size, 0))
    if ruleset < 0:
        return 0
    try:
        for path in restrictions.readable:
            _allow(libc, ruleset, path, _READ & every)
        _allow(libc, ruleset, "/dev/null", (_READ_FILE | _WRITE_FILE) & every)
        _allow(libc, ruleset, restrictions.folder, every)
        if libc.syscall(_RESTRICT_SELF, ruleset, 0) != 0:
            return 0
    finally:
        os.close(ruleset)
    return version


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a missing path needs no rule
    try:
        folder = os.path.isdir(path)  # noqa: PTH112 - of the path that was opened
        rule = struct.pack("=Qi", access if folder else access & _OF_FILES, handle)
        libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
    finally:
        os.close(handle)


def system_folders(beside: Sequence[str]) -> tuple[str, ...]:
    """Paths that any Python program reads: the interpreter, its packages, libraries, and files of the kernel.

    Of /etc only files that libraries look up; no home directory, and no keys.
    """
    fixed = (
        "/usr", "/lib", "/lib64", "/bin", "/opt", "/proc", "/sys/devices", "/sys/bus", "/sys/class", "/sys/fs/cgroup",
        "/dev/urandom", "/dev/random", "/dev/zero", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
        "/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/os-release",
        "/etc/alternatives", "/etc/mime.types", "/etc/host.conf", "/etc/hosts",
    )  # fmt: skip
    found = [os.path.realpath(path) for path in beside if path]
    return tuple(dict.fromkeys([*fixed, *found, *(place for path in found for place in _linked_from(path))]))


def _linked_from(folder: str) -> list[str]:
    """The targets of packages that are links, as some installers create them."""
    places: set[str] = set()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            for path in (entry.path, f"{entry.path}/__init__.py"):
                if os.path.islink(path):  # noqa: PTH114 - hundreds of entries
                    places.add(os.path.dirname(os.path.realpath(path)))  # noqa: PTH120
    return sorted(places)
