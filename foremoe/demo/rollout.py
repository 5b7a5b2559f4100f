"""Rollout: sample answers, record their routing, send it on the moment each is finished."""

from collections.abc import Sequence as Sequences
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from foremoe.demo.foresight_sender import ForesightSender
from foremoe.demo.sequence import Sequence
from foremoe.demo.task import END, LONGEST, PADDING, Problem, reward
from foremoe.routing.replay import RoutingReplay

MOST_TOKENS = LONGEST + 2


@dataclass(slots=True)
class _Row:
    """One sequence while it is sampled."""

    sequence_id: str
    problem: Problem
    generated: list[int] = field(default_factory=list)
    expert_ids: list[NDArray[np.int16]] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def roll_out(
    model: nn.Module,
    replay: RoutingReplay,
    problems: Sequences[tuple[str, Problem]],
    temperature: float,
    generator: torch.Generator,
    sender: ForesightSender,
) -> list[Sequence]:
    """Sample one answer for each ``(sequence_id, problem)``; all ranks call it together.

    Every token's experts are recorded, prompt and answer, and handed to ``sender`` the moment its
    sequence ends.
    """
    rows = [_Row(sequence_id, problem) for sequence_id, problem in problems]
    tokens, mask = _left_padded([row.problem.prompt for row in rows])
    cache = DynamicCache()
    finished: list[Sequence] = []
    for _ in range(MOST_TOKENS):
        sampled = _step(model, replay, tokens, mask, cache, rows, temperature, generator)
        for row, token in zip(rows, sampled.tolist(), strict=True):
            if row.finished:
                continue
            row.generated.append(token)
            row.finished = token == END or len(row.generated) == MOST_TOKENS
            if row.finished:
                finished.append(_finish(row, sender))
        if _all_ranks_done(all(row.finished for row in rows)):
            break
        alive = torch.tensor([[not row.finished] for row in rows])
        tokens = torch.where(alive, sampled[:, None], PADDING)
        mask = torch.cat([mask, alive], dim=1)
    by_id = {sequence.sequence_id: sequence for sequence in finished}
    return [by_id[row.sequence_id] for row in rows]


def _step(
    model: nn.Module,
    replay: RoutingReplay,
    tokens: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    rows: list[_Row],
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Feed ``tokens [B, T]``, record their routing, sample the next token of each row."""
    fed = mask[:, -tokens.shape[1] :]
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    with replay.record(fed.reshape(-1)) as recorded:
        output = model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
    expert_ids = recorded().view(*tokens.shape, len(replay.layers), replay.top_k).numpy()
    for row, ids, present in zip(rows, expert_ids, fed.numpy(), strict=True):
        if present.any():
            row.expert_ids.append(ids[present])
    probabilities = torch.softmax(output.logits[:, -1].double() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def _finish(row: _Row, sender: ForesightSender) -> Sequence:
    generated = np.array(row.generated)
    sequence = Sequence(
        row.sequence_id,
        np.concatenate([row.problem.prompt, generated]),
        len(row.problem.prompt),
        np.concatenate(row.expert_ids),
        reward(row.problem, generated),
    )
    sender.send(sequence)
    return sequence


def _left_padded(prompts: Sequences[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    tokens = np.full((len(prompts), length), PADDING)
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return torch.from_numpy(tokens), torch.from_numpy(mask)


def _all_ranks_done(done: bool) -> bool:
    unfinished = torch.tensor([0 if done else 1])
    dist.all_reduce(unfinished)
    return not unfinished.item()
