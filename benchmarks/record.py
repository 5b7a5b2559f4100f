"""What every benchmark writes beside its figures."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foremoe.demo.machine import describe_machine

PACKAGES = ("foremoe", "grpcio", "numba", "numpy", "torch", "transformers")


class Record:
    """Versions, machine and load; made before the run, written after it."""

    def __init__(self, benchmark: str, settings: dict[str, Any]) -> None:
        self._content: dict[str, Any] = {
            "benchmark": benchmark,
            "settings": settings,
            "machine": describe_machine(),
            "python": platform.python_version(),
            "versions": {name: version(name) for name in PACKAGES},
            "load_average_before": os.getloadavg(),
        }

    def write(self, path: Path, figures: Any) -> None:
        """As indented JSON."""
        content = {**self._content, "load_average_after": os.getloadavg(), "figures": figures}
        path.write_text(json.dumps(content, indent=2) + "\n")
