"""A kernel's cache is told apart by the source of the parts it calls from other files."""

import importlib.util
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
