"""What happened when: the spans of one simulated stage, and their totals."""

from dataclasses import dataclass, field

from foremoe.timeline.span import SECOND, Span

__all__ = ["SECOND", "Span", "Timeline"]


@dataclass(slots=True)
class Timeline:
    """One EP group's stage.

    mini_batch_ns: how long each mini-batch took. move_ns: of that, moves of homes before the first.
    copies, link_bytes: weights by link. Spans are kept only when asked for.
    """

    mini_batch_ns: list[int] = field(default_factory=list)
    move_ns: int = 0
    exposed_copy_ns: int = 0
    exposed_gradient_ns: int = 0
    copies: int = 0
    link_bytes: dict[str, int] = field(default_factory=dict)
    gradient_bytes: int = 0
    spans: list[Span] | None = None

    @property
    def seconds(self) -> float:
        return sum(self.mini_batch_ns) / SECOND

    def add(self, span: Span) -> None:
        if self.spans is not None and span.end_ns > span.start_ns:
            self.spans.append(span)
