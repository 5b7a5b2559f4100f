"""The plans of a whole stage as one npz file, for checking and analysis elsewhere.

Fields, with M micro-steps, L layers, P ranks, E experts, R spare slots:

* ``home`` int32 ``[L, E]``
* ``load`` int64 ``[M, L, P, E]``
* ``replica_expert`` int32 ``[M, L, P, R]``, -1 for an empty slot
* ``replica_tokens`` int64 ``[M, L, P_source, P, R]``, pairs from each source that the replica
  serves; the rest goes to the home
* ``bound`` int64 ``[M, L]``, the lower bound on the busiest rank's pairs
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError
from foremoe.planner.npz import read_npz
from foremoe.planner.plan import Plan

FIELDS = {
    "home": (np.int32, 2),
    "load": (np.int64, 4),
    "replica_expert": (np.int32, 4),
    "replica_tokens": (np.int64, 5),
    "bound": (np.int64, 2),
}


def save_plans(path: Path, plans: Sequence[Plan]) -> None:
    """Write the plans of one stage, in order.

    Raises InvalidInputError if there are none, their homes differ, or ``path`` cannot be written.
    """
    if not plans:
        raise InvalidInputError("plans: there is no plan to save")
    if any(not np.array_equal(plan.home, plans[0].home) for plan in plans):
        raise InvalidInputError("plans: the homes differ between micro-steps; save them apart")
    try:
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                home=plans[0].home,
                load=np.stack([plan.load for plan in plans]),
                replica_expert=np.stack([plan.replica_expert for plan in plans]),
                replica_tokens=np.stack([plan.replica_tokens for plan in plans]),
                bound=np.stack([plan.bound for plan in plans]),
            )
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be written ({error.strerror})") from error


def load_plans(path: Path) -> list[Plan]:
    """Read what ``save_plans`` wrote.

    Raises InvalidInputError if the file cannot be read, is no such archive, or its shapes disagree.
    Whether the plans are sound is for ``foremoe.planner.validate`` to say.
    """
    fields = read_npz(path)
    _check(path, fields)
    return [
        Plan(
            home=fields["home"],
            load=fields["load"][m],
            replica_expert=fields["replica_expert"][m],
            replica_tokens=fields["replica_tokens"][m],
            bound=fields["bound"][m],
        )
        for m in range(len(fields["load"]))
    ]


def _check(path: Path, fields: dict[str, NDArray[Any]]) -> None:
    if fields.keys() != FIELDS.keys():
        raise InvalidInputError(
            f"{path}: expected the fields {', '.join(FIELDS)}, got {', '.join(fields) or 'none'}"
        )
    for name, (dtype, dimensions) in FIELDS.items():
        if fields[name].dtype != dtype or fields[name].ndim != dimensions:
            raise InvalidInputError(
                f"{path}: {name} is {fields[name].dtype} with {fields[name].ndim} dimensions, "
                f"expected {np.dtype(dtype)} with {dimensions}"
            )
    micro_steps, layers, ranks, experts = fields["load"].shape
    slots = fields["replica_expert"].shape[-1]
    for name, shape in {
        "home": (layers, experts),
        "replica_expert": (micro_steps, layers, ranks, slots),
        "replica_tokens": (micro_steps, layers, ranks, ranks, slots),
        "bound": (micro_steps, layers),
    }.items():
        if fields[name].shape != shape:
            raise InvalidInputError(
                f"{path}: {name} has shape {list(fields[name].shape)}, expected {list(shape)}"
            )
