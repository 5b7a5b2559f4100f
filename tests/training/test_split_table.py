"""Every pair goes to exactly one slot that holds its expert, whatever the quotas say."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foremoe.training.split_table import Slots, SplitTable

RANKS, EXPERTS, SPARE = 3, 6, 2
SLOTS = Slots(RANKS, EXPERTS // RANKS, SPARE)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Homes in any order, a valid placement, arbitrary quotas."""
    home = np.array(draw(st.permutations(np.repeat(np.arange(RANKS), EXPERTS // RANKS).tolist())))
    placement = np.full((RANKS, SPARE), -1, np.int32)
    for rank in range(RANKS):
        foreign = draw(st.permutations(np.flatnonzero(home != rank).tolist()))
        used = draw(st.integers(0, SPARE))
        placement[rank, :used] = foreign[:used]
    quota = draw(st.lists(st.integers(0, 5), min_size=RANKS * SPARE, max_size=RANKS * SPARE))
    return home.astype(np.int32), placement, np.reshape(quota, (RANKS, SPARE))


@settings(max_examples=200, deadline=None)
@given(tables(), st.lists(st.integers(-1, EXPERTS - 1), max_size=40))
def test_each_pair_reaches_a_slot_of_its_expert_once(
    table: tuple[np.ndarray, np.ndarray, np.ndarray],  # type: ignore[type-arg]
    expert_ids: list[int],
) -> None:
    home, placement, quota = table
    pair, code = SplitTable(SLOTS, home, placement, quota).destinations(
        torch.tensor(expert_ids, dtype=torch.int64)
    )
    assert sorted(pair.tolist()) == [i for i, expert in enumerate(expert_ids) if expert >= 0]
    assert code.tolist() == sorted(code.tolist())
    served = np.zeros((RANKS, SPARE), np.int64)
    for index, slot in zip(pair.tolist(), code.tolist(), strict=True):
        expert = expert_ids[index]
        rank, local = divmod(slot, SLOTS.per_rank)
        if local < SLOTS.experts_per_rank:
            assert np.flatnonzero(home == rank)[local] == expert
        else:
            assert placement[rank, local - SLOTS.experts_per_rank] == expert
            served[rank, local - SLOTS.experts_per_rank] += 1
    assert (served <= np.where(placement >= 0, quota, 0)).all()
    for expert in range(EXPERTS):
        promised = int(quota[placement == expert].sum())
        assert served[placement == expert].sum() == min(promised, expert_ids.count(expert))
