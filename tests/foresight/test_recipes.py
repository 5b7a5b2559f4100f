"""The code of docs/recipes, run as it stands on batches of each framework's shape and padding.

Every recipe must leave the daemon with the foresight of the tokens that have routes, and no other,
and with plans for the schedule the framework would run.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.client import AsyncControllerClient, ControllerClient, RankClient, RankRegistration
from foremoe.errors import ForemoeError, InvalidInputError
from foremoe.vocabulary import Stage
from tests.foresight.routes import MODEL, all_layers, routes
from tests.foresight.test_trainers import nemo_text, skyrl_batch, verl_batch
from tests.processes import run_ranks
from tests.runtime.daemon_process import DaemonProcess

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
RANKS = 2
TOKENS = [5, 3, 8, 4]  # with routes, of the four sequences of every test


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with an EP group of two ranks."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as process, ExitStack() as ranks:
        for rank in range(RANKS):
            shape = (1, MODEL.num_experts, MODEL.layers)
            registration = RankRegistration("ep0", rank, RANKS, RANKS, *shape)
            ranks.enter_context(RankClient(process.address, registration))
        yield process


@pytest.fixture
def controller(daemon: DaemonProcess) -> Iterator[ControllerClient]:
    with ControllerClient(daemon.address) as client:
        yield client


def recipe(name: str) -> dict[str, Any]:
    """What the code blocks of a recipe define."""
    namespace: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (RECIPES / f"{name}.md").read_text(), re.S):
        exec(compile(code, f"{name}.md", "exec"), namespace)
    return namespace


def has_foresight(
    controller: ControllerClient, step: int, sequences: Sequence[tuple[str, NDArray[np.int32]]]
) -> None:
    """The daemon holds exactly these ids: sent again, each is known, and there is no other."""
    with controller.foresight_stream(step, MODEL.layers, MODEL.num_experts, MODEL.top_k) as stream:
        for name, ids in sequences:
            stream.add(name, expert_ids=ids)
    assert (stream.sequences_added, stream.sequences_known) == (0, len(sequences))
    held = {status.step: status.sequences for status in controller.status().steps}
    assert held[step] == len(sequences)


def is_planned(controller: ControllerClient, step: int, stage: Stage, micro_steps: int) -> None:
    told: list[tuple[int, int]] = []
    controller.wait_planned("ep0", step, stage, 30, lambda *counts: told.append(counts))
    assert told[-1] == (micro_steps, micro_steps)


def submit_on_rank(rank: int, name: str, address: str, arguments: tuple[Any, ...]) -> None:
    """Run a recipe's ``submit`` on one rank of a gloo group."""
    import torch.distributed as dist

    step, stage, by_rank = arguments
    with ControllerClient(address) as controller:
        recipe(name)["submit"](controller, dist.group.WORLD, step, stage, by_rank[rank])


def test_verl(daemon: DaemonProcess, controller: ControllerClient) -> None:
    """Two prompts, two samples each, prompts of 2 tokens."""
    rows = [verl_batch(2, tokens - 1) for tokens in TOKENS]
    batch = {"routed_experts": np.stack([ids for ids, _ in rows])}
    batch |= {"attention_mask": np.stack([mask for _, mask in rows])}
    batch |= {"uid": np.array(["p", "p", "q", "q"], object)}
    names = recipe("verl")["put_foresight"](controller, 1, batch, MODEL)
    has_foresight(controller, 1, list(zip(names, map(routes, TOKENS), strict=True)))
    # Two mini-batches; micro-batches as prepare_micro_batches indexes them: one row, then one row.
    by_rank = [[([name], [[0]]) for name in names[rank::2]] for rank in range(RANKS)]
    run_ranks(submit_on_rank, RANKS, "verl", daemon.address, (1, Stage.UPDATE, by_rank))
    is_planned(controller, 1, Stage.UPDATE, 2)
    whole = [[(names[rank::2], [[1], [0]])] for rank in range(RANKS)]
    run_ranks(submit_on_rank, RANKS, "verl", daemon.address, (1, Stage.RECOMPUTE, whole))
    is_planned(controller, 1, Stage.RECOMPUTE, 2)


def test_slime(controller: ControllerClient) -> None:
    data = {
        "tokens": [[0] * (tokens + 1) for tokens in TOKENS],
        "rollout_routed_experts": [all_layers(routes(tokens)) for tokens in TOKENS],
    }
    schedule = ([[2, 0], [3, 1]], [[[0], [1]], [[1], [0]]], [1, 1], [2, 2])
    recipe("slime")["put_step"](controller, 2, data, schedule, MODEL, [0, 1], RANKS)
    has_foresight(controller, 2, [(str(i), routes(tokens)) for i, tokens in enumerate(TOKENS)])
    for stage in Stage:
        is_planned(controller, 2, stage, 2)


def test_nemo_rl(controller: ControllerClient) -> None:
    """A prompt, an answer, a tool's tokens and the last token without routes."""
    logs = []
    for tokens in TOKENS:
        ids = routes(tokens).astype(np.int8)
        log = [ids[:2], np.full((3, *ids.shape[1:]), -1, np.int8)]
        log.append(np.concatenate([ids[2:], np.full((1, *ids.shape[1:]), -1, np.int8)]))
        messages = [{"token_ids": [0] * len(part), "routed_experts": part} for part in log]
        messages[0]["routed_experts"] = nemo_text(log[0])
        logs.append(messages)
    defined = recipe("nemo-rl")
    names = defined["put_foresight"](controller, 3, logs, MODEL)
    has_foresight(controller, 3, list(zip(names, map(routes, TOKENS), strict=True)))
    one, two, three, four = names
    defined["submit"](controller, 3, Stage.RECOMPUTE, [[[[one, two]]], [[[three, four]]]])
    defined["submit"](controller, 3, Stage.UPDATE, [[[[one]], [[two]]], [[[three]], [[four]]]])
    is_planned(controller, 3, Stage.RECOMPUTE, 1)
    is_planned(controller, 3, Stage.UPDATE, 2)


def test_skyrl(daemon: DaemonProcess, controller: ControllerClient) -> None:
    indices, padding = skyrl_batch([tokens + 1 for tokens in TOKENS])
    batch = {"rollout_expert_indices": indices, "router_padding_mask": padding}
    names = recipe("skyrl")["put_foresight"](controller, 4, batch, MODEL)
    expected = [routes(tokens, seed=index) for index, tokens in enumerate(TOKENS)]
    has_foresight(controller, 4, list(zip(names, expected, strict=True)))
    by_rank = [[[names[:2], names[2:3]]], [[names[3:], []]]]  # the last one is padding
    arguments = (4, Stage.RECOMPUTE, by_rank)
    run_ranks(submit_on_rank, RANKS, "skyrl", daemon.address, arguments)
    is_planned(controller, 4, Stage.RECOMPUTE, 2)


def test_areal(
    daemon: DaemonProcess, controller: ControllerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes at once; one was resumed and carries its first rows twice."""
    captured = [all_layers(routes(tokens)).reshape(tokens, -1) for tokens in TOKENS]
    resumed = np.concatenate([captured[0], captured[0]])
    responses = [
        SimpleNamespace(
            input_tokens=[0, 0],
            output_tokens=[0] * (tokens - 1),
            output_versions=[3, 4],
            routed_experts=rows,
        )
        for tokens, rows in zip([*TOKENS, TOKENS[0]], [*captured, resumed], strict=True)
    ]
    defined = recipe("areal")

    async def episodes() -> list[bool]:
        async with AsyncControllerClient(daemon.address) as client:
            put = defined["put_episode"]
            named = enumerate(responses)
            return await asyncio.gather(*(put(client, 5, f"e{i}", r, MODEL) for i, r in named))

    assert asyncio.run(episodes()) == [True] * 4 + [False]
    assert "expected 5 rows for 6 tokens from token 0 on, got 10" in capsys.readouterr().out
    has_foresight(controller, 5, [(f"e{i}", routes(tokens)) for i, tokens in enumerate(TOKENS)])
    by_rank = [[(["e0", "e1"], [1, 0], [1, 1])], [(["e2", "e3"], [0, 1], [1, 1])]]
    run_ranks(submit_on_rank, RANKS, "areal", daemon.address, (5, Stage.UPDATE, by_rank))
    is_planned(controller, 5, Stage.UPDATE, 2)


def test_prime_rl(controller: ControllerClient) -> None:
    samples = {}
    for index, tokens in enumerate(TOKENS):
        ids = all_layers(routes(tokens)).astype(np.uint8)
        data = bytearray(ids.tobytes() + bytes(ids[0].nbytes))
        shape = [tokens + 1, *ids.shape[1:]]
        routed = SimpleNamespace(data=data, shape=shape, dtype="uint8")
        samples[f"s{index}"] = SimpleNamespace(routed_experts=routed)
    bins = [[["s0", "s1"], ["s2"]], [["s3"], []]]
    recipe("prime-rl")["put_step"](controller, 6, samples, bins, MODEL)
    has_foresight(controller, 6, [(f"s{i}", routes(tokens)) for i, tokens in enumerate(TOKENS)])
    is_planned(controller, 6, Stage.UPDATE, 2)


def submit_unlike(rank: int, address: str) -> str:
    """Ranks that disagree: all are told so, none waits for another."""
    import torch.distributed as dist

    from foremoe.training.rank_schedule import submit_from_ranks

    assert dist.group.WORLD is not None
    with ControllerClient(address) as controller:
        try:
            own = [(0, ["a"])] * (1 + rank)
            submit_from_ranks(controller, dist.group.WORLD, "ep0", 7, Stage.UPDATE, own)
        except ForemoeError as error:
            return f"{type(error).__name__}: {error}"
    return "accepted"


def test_ranks_that_disagree_are_all_told(daemon: DaemonProcess) -> None:
    told = run_ranks(submit_unlike, RANKS, daemon.address)
    assert told[0] == told[1]
    assert told[0].startswith(InvalidInputError.__name__)
    assert "rank 1 has micro-steps of mini-batches [0, 0], rank 0 [0]" in told[0]


def test_every_recipe_is_tested_and_listed() -> None:
    names = {path.stem for path in RECIPES.glob("*.md")} - {"README"}
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals()}
    assert names <= tested
    index = (RECIPES / "README.md").read_text()
    assert {name for name in names if f"({name}.md)" in index} == names
