"""ForeMoE: expert load balance per micro-step, from routing foresight."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.optim import Optimizer

    from foremoe.integrations.attached import Attached
    from foremoe.training.attachment import AttachOptions

__version__ = "0.1.0"


def attach(
    model: "nn.Module", options: "AttachOptions", optimizers: "Sequence[Optimizer]" = ()
) -> "Attached":
    """Join this rank's model to ForeMoE; see ``foremoe.integrations.attach``."""
    # Here, as the controller's side and the daemon load no torch.
    from foremoe.integrations.attach import attach as join

    return join(model, options, optimizers)
