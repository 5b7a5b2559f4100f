"""Auxiliary losses of a router, as pure functions of one layer's routing.

Balance loss: ``E * sum_e f_e * P_e`` with ``f_e`` the share of (token, expert) pairs that expert e
got and ``P_e`` its mean probability (Switch Transformer, arXiv 2101.03961; for top-k, as in arXiv
2501.11873, up to the factor K that ``f_e`` is divided by here). Perfect balance gives 1.0. ``f`` is
a count and has no gradient; which tokens it is counted over decides how local the balance is.
"""

import torch
from torch import Tensor


def count_experts(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Tokens per expert: integer ``[T, K]`` -> int64 ``[E]``; negative ids count nowhere."""
    return torch.bincount(expert_ids[expert_ids >= 0].long(), minlength=num_experts)


def routed_tokens(expert_ids: Tensor) -> Tensor:
    """Tokens that go to any expert (the others are padding): ``[T, K]`` -> bool ``[T]``."""
    return (expert_ids >= 0).any(dim=-1)


def balance_loss(
    probabilities: Tensor, expert_ids: Tensor, counts: Tensor, tokens: Tensor | float
) -> Tensor:
    """Balance loss of these tokens against given counts.

    probabilities: ``[T, E]``, each row sums to 1. expert_ids: ``[T, K]``, -1 for padding, which is
    left out. counts: ``[E]`` pairs per expert, over whatever batch f is meant for. tokens: divisor
    of the summed probabilities; the number of routed tokens for a mean.
    """
    total = probabilities[routed_tokens(expert_ids)].sum(dim=0)
    share = counts.to(total.dtype) / counts.sum().clamp(min=1)
    return len(counts) * (share * total).sum() / tokens


def micro_batch_loss(probabilities: Tensor, expert_ids: Tensor) -> Tensor:
    """Balance loss with f counted over this micro-batch alone; zero without routed tokens."""
    counts = count_experts(expert_ids, probabilities.shape[-1])
    tokens = routed_tokens(expert_ids).sum().clamp(min=1)
    return balance_loss(probabilities, expert_ids, counts, tokens)


def z_loss(logits: Tensor, expert_ids: Tensor, tokens: Tensor | float) -> Tensor:
    """Squared log-sum-exp of the logits ``[T, E]``, summed and divided by ``tokens``.

    Keeps logits small (ST-MoE, arXiv 2202.08906, equation 5). Padding is left out.
    """
    return torch.logsumexp(logits[routed_tokens(expert_ids)], dim=-1).square().sum() / tokens
