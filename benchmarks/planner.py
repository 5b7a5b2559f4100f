"""Balance, copies and time of the planner beside its peers', in one run.

    python -m benchmarks.planner [--json FILE] [--markdown FILE] [--figures DIRECTORY]

The peers are our own implementations from their descriptions (``foremoe.planner.baselines``), given
the same loads, homes and spare slots. Their time says nothing about them: they are not made for it.
Loads: recorded routing of gpt-oss-20b with 8 sequences a micro-step, and micro-steps drawn around
the recorded heat of Qwen3-30B-A3B and Qwen3-Next-80B. A copy is a replica, or a home, that was not
on its rank for that layer in the micro-step before. Times are processor time of the one thread that
plans, the fastest of several runs in turns over the cases, as the machine may be shared.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks import planner_cases, planner_time
from benchmarks.planner_aims import balance_aims, copy_aims, node_aims, time_aims
from benchmarks.planner_tables import (
    balance_tables,
    copy_tables,
    node_tables,
    order_tables,
    time_tables,
)
from benchmarks.record import Record
from foremoe.demo.machine import describe_machine
from foremoe.planner.policies import warm_up


def main() -> None:
    """Run everything, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="in place of the terminal")
    parser.add_argument("--figures", type=Path, metavar="DIRECTORY", help="write plots as SVG")
    arguments = parser.parse_args()
    record = Record("planner", {"targets": planner_cases.TARGETS})
    warm_up()
    console = Console(stderr=True)
    with console.status("time"):
        timings, stages = list(planner_time.timings()), list(planner_time.stage_timings())
        parts, points = list(planner_time.parts()), list(planner_time.scaling())
    with console.status("balance"):
        balance = list(planner_cases.balance())
    with console.status("copies"):
        over_time = list(planner_cases.over_time())
    with console.status("order"):
        orders = list(planner_cases.orders())
    with console.status("frontier"):
        frontier = list(planner_cases.frontier())
    with console.status("nodes"):
        nodes = list(planner_cases.nodes())
    lines = [f"Machine: {describe_machine()}.", ""]
    lines += balance_tables(balance) + copy_tables(over_time, frontier)
    lines += order_tables(orders)
    lines += node_tables(nodes) + time_tables(timings, stages, parts, points)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))
    else:
        print("\n".join(lines))
    if arguments.figures:
        from benchmarks import planner_plots  # matplotlib is an extra

        planner_plots.plot_frontier(frontier, arguments.figures / "planner_frontier.svg")
        planner_plots.plot_scaling(points, arguments.figures / "planner_scaling.svg")
    if arguments.json:
        aims = [*balance_aims(balance), *copy_aims(over_time)]
        aims += [*node_aims(nodes), *time_aims(timings, stages)]
        figures = {
            "aims": [{**asdict(aim), "reached": aim.reached} for aim in aims],
            "balance": [asdict(figure) for figure in balance],
            "over_time": [asdict(figure) for figure in over_time],
            "orders": [{"order": order, **asdict(figure)} for order, figure in orders],
            "frontier": [asdict(figure) for figure in frontier],
            "nodes": [asdict(figure) for pair in nodes for figure in pair],
            "microseconds": [asdict(timing) for timing in timings],
            "parts": [asdict(part) for part in parts],
            "scaling": [asdict(point) for point in points],
            "stages": [asdict(stage) for stage in stages],
        }
        record.write(arguments.json, figures)


if __name__ == "__main__":
    main()
