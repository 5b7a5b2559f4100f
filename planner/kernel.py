"""How every numerical kernel is compiled: cached on disk, without the GIL, integers only."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def kernel(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile ``function`` on its first call for the types it is called with.

    A kernel calls only parts of its own file: the cache on disk notices a change of that file, not
    of others. For parts of other files see ``kernel_with``.
    """
    compiled: Callable[Parameters, Result] = numba.njit(cache=True, nogil=True)(function)
    return compiled


def kernel_with(
    *modules: ModuleType,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Compile like ``kernel`` a function that calls parts of other modules too.

    The cache is told apart by the function's name, so the name carries a digest of their source.
    """
    source = b"".join(Path(str(module.__file__)).read_bytes() for module in modules)
    digest = hashlib.blake2b(source, digest_size=8).hexdigest()

    def compile_named(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        function.__qualname__ = f"{function.__qualname__}_{digest}"
        return kernel(function)

    return compile_named


def part(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile ``function`` as a part of the kernels that call it; Python itself cannot call it."""
    compiled: Callable[Parameters, Result] = numba.njit(
        nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)
    return compiled
