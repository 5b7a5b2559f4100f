"""The machine that figures were measured on."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Processor and cores, as every table of figures names them."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
