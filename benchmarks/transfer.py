"""What the transfer engine makes of links, memory and processes: paired, in one run.

    python -m benchmarks.transfer [--pairs 12] [--only speed links memory] [--json FILE]

speed: the engine beside the plain operation (``transfer_speed.py``). links: path choice and order
on emulated links of known speed (``transfer_links.py``). memory: what is taken, leaked and left
behind (``transfer_memory.py``).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import transfer_links, transfer_memory, transfer_speed
from benchmarks.pairing import Ratio
from benchmarks.record import Record

PARTS = ("speed", "links", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--pairs", type=int, default=12, help="pairs per figure")
    parser.add_argument("--expert-mib", type=float, default=8.0, help="one expert, for the speeds")
    parser.add_argument(
        "--slab-milliseconds", type=float, default=20.0, help="of an emulated host link"
    )
    parser.add_argument("--micro-steps", type=int, default=1000, help="for the memory")
    parser.add_argument("--cache-directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path, help="where to write the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory, pairs = arguments.cache_directory, arguments.pairs
    record = Record("transfer", {key: str(value) for key, value in vars(arguments).items()})
    figures: dict[str, Any] = {}
    if "speed" in arguments.only:
        figures["speed"] = transfer_speed.measure(directory, arguments.expert_mib, pairs)
    if "links" in arguments.only:
        figures["links"] = transfer_links.measure(
            directory, arguments.slab_milliseconds / 1000, pairs
        )
    if "memory" in arguments.only:
        figures["memory"] = transfer_memory.measure(directory, arguments.micro_steps)
    Console().print(table(figures))
    if arguments.json:
        record.write(arguments.json, figures)


def table(figures: dict[str, Any]) -> Table:
    result = Table("figure", "value [95% interval]", "beside")
    for figure in figures.get("speed", ()):
        speeds = [figure[f"{way}_gigabytes_per_second"] for way in ("engine", "plain")]
        beside = f"{speeds[0]:.2f} of {speeds[1]:.2f} GB/s"
        result.add_row(figure["name"], str(Ratio(**figure["plain_over_engine"])), beside)
    if links := figures.get("links"):
        need, exposed = links["need_of_capacity"], links["exposed_over_compute"]
        result.add_row("exposed / compute", f"{exposed:.2%}", f"need {need:.0%} of capacity")
        result.add_row("time / flow bound", str(Ratio(**links["time_over_flow_bound"])), "1")
        both, capacity = Ratio(**links["single_over_both"]), links["capacity_ratio"]
        result.add_row("better single path / both paths", str(both), f"capacities {capacity:.2f}")
    for name, value in figures.get("memory", {}).items():
        result.add_row(name.replace("_", " "), f"{value:,}", "")
    return result


if __name__ == "__main__":
    main()
