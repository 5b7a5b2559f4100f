"""Whether the installed packages go together, from their metadata and what is loaded."""

import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions, requires

from foremoe.commands.check_finding import Finding, State, finding

_NCCL = re.compile(r"nvidia-nccl-cu(\d+)")
_CUPY = re.compile(r"cupy-cuda(\d+)x")
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*([^;]*)(;.*)?$")
_BOUND = re.compile(r"(>=|<=|==|!=|<|>)\s*([0-9.]+)")
_BOUNDED = ("grpcio", "protobuf")

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is in use in a process, as the libraries say themselves; empty or None without.

    torch_cuda: CUDA that torch was built for, ``12.8`` say. The NCCL versions are (major, minor,
    patch). cupy_broken: why CuPy, which is installed, cannot be imported.
    """

    torch: str
    torch_cuda: str | None
    torch_nccl: Version | None
    cupy: str | None
    cupy_nccl: Version | None
    cupy_broken: str = ""


def loaded() -> Loaded:
    """Ask torch and CuPy of this process."""
    import torch

    from foremoe.transfer.cupy_wire import BROKEN_IMPORT

    torch_nccl: Version | None = None
    if torch.version.cuda is not None and torch.distributed.is_nccl_available():
        torch_nccl = tuple(torch.cuda.nccl.version())[:3]
    cupy_version: str | None = None
    cupy_nccl: Version | None = None
    broken = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where it finds no NCCL; so does the table
        try:
            import cupy
            from cupy.cuda import nccl

            cupy_version = str(cupy.__version__)
            cupy_nccl = _unpacked(nccl.get_version()) if nccl.available else None
        except ModuleNotFoundError:
            pass
        except BROKEN_IMPORT as error:
            broken = f"{type(error).__name__}: {error}".splitlines()[0]
    return Loaded(
        torch.__version__, torch.version.cuda, torch_nccl, cupy_version, cupy_nccl, broken
    )


def installed() -> dict[str, str]:
    """Version of every distribution by its name in lower case, with dashes; the first one found."""
    found: dict[str, str] = {}
    for each in distributions():
        if name := _name(each):
            found.setdefault(name, each.version)
    return found


def version_findings(packages: Mapping[str, str], used: Loaded) -> Iterator[Finding]:
    """The rows about versions."""
    yield finding(
        "Python",
        sys.version_info >= (3, 11),
        platform.python_version(),
        "install Python 3.11 or newer",
        necessary=True,
    )
    built = f"for CUDA {used.torch_cuda}" if used.torch_cuda else "for the CPU"
    yield Finding("torch", State.OK, f"{used.torch}, built {built}")
    yield _cupy(packages, used)
    yield _nccl_wheels(packages, used)
    yield _nccl_versions(packages, used)
    for name in _BOUNDED:
        yield _bounds(name, packages, requires("foremoe") or [])


def _cupy(packages: Mapping[str, str], used: Loaded) -> Finding:
    majors = {match[1]: name for name in packages if (match := _CUPY.fullmatch(name))}
    wanted = used.torch_cuda.split(".")[0] if used.torch_cuda else None
    found = ", ".join(f"{name} {packages[name]}" for name in majors.values()) or "not installed"
    if used.cupy_broken:
        cure = "uninstall it, or install the CuPy that was built for these versions"
        return Finding("CuPy", State.WARNING, f"{found}; import fails: {used.cupy_broken}", cure)
    if wanted is None:
        return Finding("CuPy", State.OK, f"{found}; not needed without CUDA")
    if not majors:
        cure = f"only for NCCL without torch's: pip install 'foremoe[cuda{wanted}]'"
        return Finding("CuPy", State.WARNING, found, cure)
    return finding(
        "CuPy",
        set(majors) == {wanted},
        f"{found}; torch is built for CUDA {used.torch_cuda}",
        f"uninstall it and pip install cupy-cuda{wanted}x: two CUDA majors in one process clash",
        necessary=False,
    )


def _nccl_wheels(packages: Mapping[str, str], used: Loaded) -> Finding:
    wheels = {name: version for name, version in packages.items() if _NCCL.fullmatch(name)}
    found = ", ".join(f"{name} {version}" for name, version in sorted(wheels.items()))
    return finding(
        "NCCL wheels",
        len(wheels) < 2,
        found or "none installed",
        "both own nvidia/nccl/lib/libnccl.so.2 and one overwrote the other: uninstall both, then "
        "install the one that torch requires",
        necessary=used.torch_cuda is not None,
    )


def _nccl_versions(packages: Mapping[str, str], used: Loaded) -> Finding:
    """The library in use against the wheel it should come from; torch and CuPy share a file."""
    wheels = {v for name, v in packages.items() if _NCCL.fullmatch(name)}
    said = {f"torch loads {_dotted(v)}": v for v in [used.torch_nccl] if v}
    said |= {f"CuPy loads {_dotted(v)}": v for v in [used.cupy_nccl] if v}
    if not said:
        return Finding("NCCL in use", State.OK, "none")
    apart = len(set(said.values())) > 1
    other = len(wheels) == 1 and any(
        numbers(wheel)[:3] != v for wheel in wheels for v in said.values()
    )
    found = ", ".join([*said, *(f"the wheel is {wheel}" for wheel in sorted(wheels))])
    return finding(
        "NCCL in use",
        not (apart or other),
        found,
        "another libnccl.so.2 comes first: look at LD_LIBRARY_PATH, or reinstall the wheel that "
        "torch requires",
        necessary=False,
    )


def _bounds(name: str, packages: Mapping[str, str], required: list[str]) -> Finding:
    spec = next(
        (match[2] for each in required if (match := _REQUIREMENT.match(each)) and match[1] == name),
        "",
    )
    version = packages.get(name)
    cure = f"pip install '{name}{spec.strip()}'"
    if version is None:
        return Finding(name, State.FAILED, "not installed", cure)
    return finding(name, within(version, spec), f"{version}, needs {spec}", cure, necessary=True)


def within(version: str, spec: str) -> bool:
    """Whether ``6.33.6`` fulfils ``>=6.31.1,<8``; release numbers only."""
    own = numbers(version)
    for operator, text in _BOUND.findall(spec):
        bound = numbers(text)
        width = max(len(own), len(bound))
        left, right = (v + (0,) * (width - len(v)) for v in (own, bound))
        if not {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
        }[operator]:
            return False
    return True


def numbers(version: str) -> Version:
    """``2.27.5.post1`` -> (2, 27, 5)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _unpacked(code: int) -> Version:
    """23203 -> (2, 32, 3), as NCCL has written versions since 2.9."""
    return code // 10000, code // 100 % 100, code % 100


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _name(distribution: Distribution) -> str:
    return re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
