"""How every numerical kernel is compiled: cached on disk, without the GIL, integers only."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile ``function`` on its first call for the types it is called with.

    A kernel calls only parts of its own file: the cache on disk notices a change of that file, not
    of others.
    """
    compiled: Callable[Parameters, Result] = numba.njit(cache=True, nogil=True)(function)
    return compiled


def part(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile ``function`` as a part of the kernels that call it; Python itself cannot call it."""
    compiled: Callable[Parameters, Result] = numba.njit(
        nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
    return compiled
