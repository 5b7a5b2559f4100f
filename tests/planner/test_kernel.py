"""A kernel's cache is told apart by the source it calls; a warm daemon has compiled them all."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

from foremoe.planner.kernel import kernel_with
from foremoe.planner.replicas import choose_replicas


def module(path: Path, text: str) -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def name(*modules: ModuleType) -> str:
    def function(count: int) -> int:
        return count

    return str(kernel_with(*modules)(function).py_func.__qualname__)  # type: ignore[attr-defined]


def test_another_source_gives_another_name(tmp_path: Path) -> None:
    one = module(tmp_path / "one.py", "A = 1\n")
    before = name(one)
    assert name(one) == before
    (tmp_path / "one.py").write_text("A = 2\n")
    assert name(one) != before


def test_the_planners_kernels_are_named_so() -> None:
    qualname = choose_replicas.py_func.__qualname__  # type: ignore[attr-defined]
    assert qualname.startswith("choose_replicas_")


WARM = """
import gc

from numba.core.registry import CPUDispatcher

from foremoe.planner.policies import POLICIES
from foremoe.runtime.daemon import warm_up
from tests.planner.problems import skewed_problem


def compiled() -> dict[str, int]:
    kernels = [one for one in gc.get_objects() if isinstance(one, CPUDispatcher)]
    return {one.py_func.__qualname__: len(one.signatures) for one in kernels}


for policy in ("foremoe", "resident"):
    warm_up(policy)
    before = compiled()
    for nodes in (1, 2):
        for target in (None, 1.02):
            list(POLICIES[policy](skewed_problem(2, 8, 8 // nodes, 32, 2, target)))
    assert compiled() == before, policy
"""


def test_a_warm_daemon_compiles_nothing_more() -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", WARM], cwd=root, check=True, timeout=100)
