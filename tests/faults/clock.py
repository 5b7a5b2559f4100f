"""A wall clock that can jump, for a process and all it forks: a library in front of libc's.

Only the wall clock: what waits by the monotonic clock does not notice, and all of ours must.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_TRIED = "FOREMOE_FAULTS_CLOCK"
_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

long *foremoe_jump;
static int (*get)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    if (get)
        return;
    foremoe_jump = mmap(0, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    get = dlsym(RTLD_NEXT, "clock_gettime");
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!get)
        begin();
    int failed = get(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *foremoe_jump;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (into)
        *into = precise.tv_sec;
    return precise.tv_sec;
}
"""


def restart_with_clock() -> None:
    """Run this command again with such a clock; returns then, and where it cannot be had."""
    compiler = shutil.which("cc")
    if os.environ.pop(_TRIED, "") or compiler is None:
        os.environ.pop("LD_PRELOAD", None)  # it is loaded; what we start needs it not
        return
    library = os.memfd_create("clock.so", 0)  # inherited, and gone with the last process
    with tempfile.NamedTemporaryFile(suffix=".so") as built:
        build = [compiler, "-shared", "-fPIC", "-O1", "-o", built.name, "-x", "c", "-"]
        subprocess.run(build, input=_SOURCE.encode(), check=True)
        os.write(library, Path(built.name).read_bytes())
    os.environ["LD_PRELOAD"], os.environ[_TRIED] = f"/proc/self/fd/{library}", "1"
    os.execv(sys.executable, sys.orig_argv)


def has_clock() -> bool:
    """Whether ``jump`` works in this process."""
    try:
        _offset()
    except ValueError:
        return False
    return True


def jump(seconds: int) -> None:
    """Put the wall clock of this process, and of all that it has forked, ``seconds`` off."""
    _offset()[0] = seconds


def _offset() -> Any:
    """The library's number of seconds; raises ValueError where it is not loaded."""
    return ctypes.POINTER(ctypes.c_long).in_dll(ctypes.CDLL(None), "foremoe_jump")
