"""Where the recorded routing traces lie, if they are here at all."""

import os
from pathlib import Path

import pytest

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2].parent / "shared" / "traces"


def recorded(name: str) -> Path:
    """The trace ``name`` in FOREMOE_TRACES, or in ../shared/traces; skips the test without it."""
    folder = Path(os.environ.get("FOREMOE_TRACES", BESIDE_THE_REPOSITORY))
    if not (folder / name).exists():
        pytest.skip(f"{name} is not in {folder}; set FOREMOE_TRACES to the traces' folder")
    return folder / name
