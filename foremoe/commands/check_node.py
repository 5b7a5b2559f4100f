"""Whether a node has what ForeMoE needs: memory to share, limits, a private socket, a daemon."""

import ctypes
import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from foremoe import __version__
from foremoe.client.controller import ControllerClient
from foremoe.commands.check_finding import Finding, State, finding
from foremoe.errors import ForemoeError, InvalidInputError
from foremoe.rpc.address import UnixAddress, parse_address
from foremoe.rpc.credentials import Credentials
from foremoe.runtime.lock import make_private

_GIB = 2**30
_LEAST_FILES = 1024
_RANK_FILES = 64  # of the daemon: connections, files and logs of a rank, generously
_ADJTIMEX_UNSYNCHRONISED = 5  # TIME_ERROR, adjtimex(2)
_TIMEX_BYTES = 512  # more than struct timex has anywhere


def node_findings(
    directory: Path, cache_bytes: int, address: str, credentials: Credentials, wait_seconds: float
) -> Iterator[Finding]:
    """The rows about the node. cache_bytes: what the host cache will take, 0 if not known."""
    yield _memory_file_system(directory)
    yield _free_bytes(directory, cache_bytes)
    yield _files()
    yield _lockable_bytes(cache_bytes)
    yield _socket_directory(address)
    yield _daemon(address, credentials, wait_seconds)
    yield _clock()


def _memory_file_system(directory: Path) -> Finding:
    kind = _file_system(directory)
    return finding(
        "host cache directory",
        kind in ("tmpfs", "ramfs", "hugetlbfs"),
        f"{directory} is on {kind or 'nothing that is mounted'}",
        "name a directory on a tmpfs with --cache-directory; on a disk, copies wait for it",
        necessary=kind == "",
    )


def _file_system(directory: Path) -> str:
    """Type of the mount that ``directory`` is on, empty where it does not exist."""
    if not directory.is_dir():
        return ""
    place, kind, length = str(directory.resolve()), "", -1
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, found = line.split()[:3]
        inside = place == where or place.startswith(where.rstrip("/") + "/")
        if inside and len(where) >= length:
            kind, length = found, len(where)
    return kind


def _free_bytes(directory: Path, cache_bytes: int) -> Finding:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Finding("host cache space", State.FAILED, str(error.strerror), "see above")
    needed = f", the host cache takes {_gib(cache_bytes)}" if cache_bytes else ""
    return finding(
        "host cache space",
        free >= max(cache_bytes, 1),
        f"{_gib(free)} free{needed}",
        "enlarge the tmpfs (mount -o remount,size=..., --shm-size, emptyDir.sizeLimit), or run "
        "without the host path",
        necessary=True,
    )


def _files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ranks = (soft - _LEAST_FILES // 2) // _RANK_FILES
    limit = "no limit" if soft == resource.RLIM_INFINITY else f"{soft}, hard limit {hard}"
    return finding(
        "open files",
        soft == resource.RLIM_INFINITY or soft >= _LEAST_FILES,
        limit if soft == resource.RLIM_INFINITY or ranks < 1 else f"{limit}: {ranks} ranks",
        f"ulimit -n {_LEAST_FILES} or more; gloo and the daemon have a connection a rank",
        necessary=True,
    )


def _lockable_bytes(cache_bytes: int) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY
    return finding(
        "lockable memory",
        unlimited or soft >= max(cache_bytes, _GIB),
        "no limit" if unlimited else f"{soft} bytes",
        "ulimit -l unlimited (LimitMEMLOCK, IPC_LOCK): needed only to pin the host cache for a GPU "
        "where the driver counts it, and for RDMA",
        necessary=False,
    )


def _socket_directory(address: str) -> Finding:
    what = "socket directory"
    where = parse_address(address)
    if not isinstance(where, UnixAddress):
        return Finding(what, State.OK, f"not used: {where.target} is TCP")
    directory = Path(where.path).parent
    if not directory.exists():
        return Finding(what, State.OK, f"{directory} is not there; foremoe serve makes it")
    try:
        make_private(directory)  # only looks at one that exists
    except InvalidInputError as error:
        found, _, cure = str(error).partition("; ")
        return Finding(what, State.FAILED, found, cure)
    return Finding(what, State.OK, f"{directory} is this user's only")


def _daemon(address: str, credentials: Credentials, wait_seconds: float) -> Finding:
    try:
        with ControllerClient(address, wait_seconds, credentials=credentials) as client:
            status = client.status()
    except ForemoeError as error:
        found, _, cure = str(error).partition("; ")
        serve = f"foremoe serve {parse_address(address).serve_option}"
        return Finding("daemon", State.WARNING, found, cure or serve)
    return finding(
        "daemon",
        status.version == __version__,
        f"version {status.version}, pid {status.pid}; this is {__version__}",
        "restart it from this installation",
        necessary=False,
    )


def _clock() -> Finding:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # modes 0: only read
    if state < 0:
        said = os.strerror(ctypes.get_errno())
        return Finding("clock", State.OK, f"{now}; whether it is synchronised is not known: {said}")
    return finding(
        "clock",
        state != _ADJTIMEX_UNSYNCHRONISED,
        f"{now}, {'not ' if state == _ADJTIMEX_UNSYNCHRONISED else ''}synchronised",
        "run NTP: logs of several nodes are compared by time, certificates are checked by it",
        necessary=False,
    )


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
