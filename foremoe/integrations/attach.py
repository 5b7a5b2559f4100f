"""One ``attach`` for every framework: it looks which one built the model."""

import sys
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from foremoe.errors import InvalidInputError
from foremoe.integrations.attached import Attached
from foremoe.training.attachment import AttachOptions


def attach(
    model: nn.Module, options: AttachOptions, optimizers: Sequence[Optimizer] = ()
) -> Attached:
    """Join this rank's model to ForeMoE; collective over the model's EP group.

    ``Attached.detach`` gives the model back. optimizers: of this model's experts; with them experts
    may change homes between stages. Raises InvalidInputError for a model of no framework
    that is supported.
    """
    # A framework that built the model has been imported; importing others would be slow or fail.
    if _is_a(model, "transformers", "PreTrainedModel"):
        from foremoe.integrations import transformers

        return transformers.attach(model, options, optimizers)
    moe_layer = "megatron.core.transformer.moe.moe_layer"
    if any(_is_a(module, moe_layer, "MoELayer") for module in model.modules()):
        from foremoe.integrations import megatron

        return megatron.attach(model, options, optimizers)
    if any(_is_a(module, "torchtitan.models.common.moe", "MoE") for module in model.modules()):
        from foremoe.integrations import torchtitan

        return torchtitan.attach(model, options, optimizers)
    raise InvalidInputError(
        f"foremoe: no adapter knows a {type(model).__name__}; for a model of your own see "
        "foremoe/training/layer.py"
    )


def _is_a(model: nn.Module, package: str, name: str) -> bool:
    kind = getattr(sys.modules.get(package), name, None)
    return kind is not None and isinstance(model, kind)
