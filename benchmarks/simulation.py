"""All policies on 64 H100s, model by model: the headline table, and what the gain depends on.

    python -m benchmarks.simulation [--json FILE] [--markdown FILE] [--figures DIRECTORY]

Routing is recorded where there is any (``../shared/traces``): gpt-oss-20b's sequences as they are;
for Qwen3 sequences drawn around the recorded heat of Qwen3-30B-A3B's layers, whose count
Qwen3-235B-A22B goes through twice; for gpt-oss-120b drawn around a drawn heat. docs/simulation.md
says what the simulator reckons with. Processes: as many as there are cores.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.record import Record
from benchmarks.simulation_cases import (
    CASES,
    CLUSTER,
    CURVE_POINTS,
    SCHEDULE,
    SLOTS,
    TARGET,
    TOKENS,
    Case,
    Point,
    curves,
    outcomes,
)
from benchmarks.table import rows
from foremoe.simulation.contest import CONTESTANTS, UNBALANCED
from foremoe.simulation.step import Outcome


def main() -> None:
    """Simulate all cases, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="in place of the terminal")
    parser.add_argument("--figures", type=Path, metavar="DIRECTORY", help="write plots as SVG")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="only cases of these models")
    arguments = parser.parse_args()
    settings = {"cluster": CLUSTER, "spare_slots": SLOTS, "target": TARGET, "tokens": TOKENS}
    record = Record("simulation", {**settings, **asdict(SCHEDULE)})
    cases = [case for case in CASES if not arguments.models or case.model in arguments.models]
    found: list[tuple[Case, list[Outcome]]] = []
    points: list[Point] = []
    console = Console(stderr=True)
    steps = len(cases) + (CURVE_POINTS if arguments.figures else 0)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("simulating", total=steps)
        for case in cases:
            found.append((case, outcomes(case)))
            bar.advance(task)
        for more in curves() if arguments.figures else ():
            points += more
            bar.advance(task)
    lines = headline(found)
    lines += [line for case, policies in found for line in table(case, policies)]
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))
    else:
        print("\n".join(lines))
    if arguments.figures:
        from benchmarks import simulation_plots  # matplotlib is an extra

        simulation_plots.plot(points, arguments.figures / "simulation.svg")
    if arguments.json:
        figures = {
            "cases": [
                {**asdict(case), "policies": [asdict(outcome) for outcome in policies]}
                for case, policies in found
            ],
            "curves": [asdict(point) for point in points],
        }
        record.write(arguments.json, figures)


def headline(found: Sequence[tuple[Case, Sequence[Outcome]]]) -> list[str]:
    """Speedups over unbalanced, and how much of the ideal's speed foremoe reaches."""
    names = [name for name in CONTESTANTS if name != UNBALANCED]
    cells = []
    for case, policies in found:
        by_name = {outcome.name: outcome for outcome in policies}
        speedups = [f"{by_name[name].speedup:.3f}" for name in names]
        share = f"{100 * by_name['foremoe'].of_ideal:.1f}%"
        cells.append([case.name, f"{by_name[UNBALANCED].imbalance_mean:.2f}", *speedups, share])
    return rows(["speedup", "imbalance", *names, "foremoe of ideal"], cells)


def table(case: Case, outcomes: Sequence[Outcome]) -> list[str]:
    """One case in Markdown, under its name."""
    header = ["policy", "recompute", "update", "speedup", "of ideal", "imbalance", "exposed"]
    header += ["copies", "slots of a rank"]
    return [
        f"**{case.name}**",
        "",
        *rows(
            header,
            [
                [
                    o.name,
                    *(f"{seconds:.3f} s" for seconds in o.seconds.values()),
                    f"{o.speedup:.3f}",
                    f"{100 * o.of_ideal:.1f}%",
                    f"{o.imbalance_mean:.3f}",
                    f"{1e3 * o.exposed_seconds:.1f} ms",
                    f"{o.copies}",
                    f"{o.extra_bytes / 2**30:.1f} GiB",
                ]
                for o in outcomes
            ],
        ),
    ]


if __name__ == "__main__":
    main()
