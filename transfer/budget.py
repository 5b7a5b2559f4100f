"""How a byte budget is spent: slots for every layer, or fewer slots that the layers share."""

from dataclasses import dataclass

from foremoe.errors import ExhaustedError
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import slot_bytes

LEAST_FRAMES = 2  # one in use, one coming in


@dataclass(frozen=True, slots=True)
class SlotBudget:
    """What a rank's memory is spent on.

    frames: as many layers as have slots at a time. gradient_buffers: how many gradients may be on
    their way to this rank at once, None for any number. reason: why, for the log.
    """

    frames: int
    gradient_buffers: int | None
    reason: str


def spend(
    limit_bytes: int | None, layers: int, spare_slots: int, layout: SlabLayout, training: bool
) -> SlotBudget:
    """Slots for every layer if ``limit_bytes`` allows it, else for as many as it does.

    In training, buffers for the returning gradients of one layer are set aside first.

    Raises ExhaustedError when not even two layers' slots fit.
    """
    frame = spare_slots * slot_bytes(layout, training)
    gradient = layout.gradient_layout().nbytes if training else 0
    aside = spare_slots * gradient
    if limit_bytes is None or not frame:
        return SlotBudget(
            layers, None, f"resident: {layers} layers' slots take {layers * frame} bytes, no limit"
        )
    frames = min(layers, (limit_bytes - aside) // frame)
    least = min(LEAST_FRAMES, layers)
    if frames < least:
        raise ExhaustedError(
            f"slot pool: the slots of {least} of {layers} layers and {aside} bytes for returning "
            f"gradients need {least * frame + aside} bytes but the limit is {limit_bytes}; raise "
            "it or use fewer slots"
        )
    buffers = (limit_bytes - frames * frame) // gradient if training else None
    took = f"{frames * frame + aside} of {limit_bytes} bytes"
    if frames == layers:
        return SlotBudget(frames, buffers, f"resident: {layers} layers' slots take {took}")
    return SlotBudget(
        frames,
        buffers,
        f"streaming: {layers} layers share the slots of {frames}, which take {took}; all would "
        f"need {layers * frame + aside}",
    )
