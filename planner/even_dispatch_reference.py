"""``foremoe.planner.even_dispatch`` in plain Python, one layer at a time: the kernel's oracle."""

from dataclasses import dataclass

CAP, STEPS, WORTH = 115, 6, 64
HOME = -1  # in place of a slot
Host = tuple[int, int]  # rank and slot


@dataclass
class State:
    """Hosts of every expert while pieces are moved."""

    home: list[int]
    width: int  # ranks per node
    slots: list[list[int]]  # by rank: experts, -1 for none
    quota: dict[tuple[int, Host], int]  # by expert and host
    far: dict[tuple[int, Host], int]  # of it, what comes from other nodes
    unserved: list[list[int]]  # by node and expert

    def tokens(self, rank: int) -> int:
        return sum(pairs for (_, host), pairs in self.quota.items() if host[0] == rank)

    def from_afar(self, rank: int) -> int:
        return sum(pairs for (_, host), pairs in self.far.items() if host[0] == rank)

    def host(self, expert: int, rank: int) -> Host | None:
        """Where a rank hosts an expert."""
        if self.home[expert] == rank:
            return rank, HOME
        slots = self.slots[rank]
        return (rank, slots.index(expert)) if expert in slots else None


def even_dispatch_layer(
    origin: list[list[int]], home: list[int], slots: list[list[int]], quota: list[list[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """The replicas and quotas of one layer, by rank and slot."""
    start = _start(origin, home, slots, quota)
    ranks = range(len(slots))
    mean = sum(map(sum, origin)) // len(slots)
    at_home = [sum(row[e] for row in origin for e in range(len(home)) if home[e] == r)
               for r in ranks]  # fmt: skip
    most_tokens = max(max(map(start.tokens, ranks)), min(mean * CAP // 100, max(at_home)))
    far = [start.from_afar(rank) for rank in ranks]
    low, high = sum(far) // len(slots) * 3 // 4, max(far)
    better = start
    for _ in range(STEPS):
        if low >= high:
            break
        middle = (low + high) // 2
        state = _start(origin, home, slots, quota)
        if _reach(state, middle, most_tokens, max(mean // WORTH, 1)):
            better, high = state, middle
        else:
            low = middle + 1
    return better.slots, [
        [better.quota.get((expert, (rank, slot)), 0) for slot, expert in enumerate(held)]
        for rank, held in enumerate(better.slots)
    ]


def _start(
    origin: list[list[int]], home: list[int], slots: list[list[int]], quota: list[list[int]]
) -> State:
    width = len(slots) // len(origin)
    hosts = {
        (expert, (rank, slot)): quota[rank][slot]
        for rank, held in enumerate(slots)
        for slot, expert in enumerate(held)
        if expert >= 0
    }
    for expert, rank in enumerate(home):
        away = sum(pairs for (other, _), pairs in hosts.items() if other == expert)
        hosts[expert, (rank, HOME)] = sum(row[expert] for row in origin) - away
    hosted = [[0] * len(home) for _ in origin]
    for (expert, (rank, _)), pairs in hosts.items():
        hosted[rank // width][expert] += pairs
    far = {}
    for (expert, (rank, slot)), pairs in hosts.items():
        near, here = origin[rank // width][expert], hosted[rank // width][expert]
        unit = (here >> 31) + 1
        kept = pairs if near >= here else (pairs // unit) * (near // unit) // (here // unit)
        far[expert, (rank, slot)] = pairs - kept
    unserved = [
        [max(have - served, 0) for have, served in zip(*rows, strict=True)]
        for rows in zip(origin, hosted, strict=True)
    ]
    return State(home, width, [list(held) for held in slots], hosts, far, unserved)


def _reach(state: State, most_far: int, most_tokens: int, worth: int) -> bool:
    ranks = range(len(state.slots))
    for _ in range(8 * len(ranks)):
        giver = max(ranks, key=lambda rank: (state.from_afar(rank), -rank))
        if state.from_afar(giver) <= most_far:
            return True
        if not _move(state, giver, most_far, most_tokens, worth):
            return False
    return False


def _move(state: State, giver: int, most_far: int, most_tokens: int, worth: int) -> bool:
    """Give the largest piece away, near to a host (2) before a new one (1) before far (0)."""
    ranks = range(len(state.slots))
    own = [(expert, (giver, HOME)) for expert, rank in enumerate(state.home) if rank == giver]
    own += [(e, (giver, slot)) for slot, e in enumerate(state.slots[giver]) if e >= 0]
    best: tuple[int, int] = (0, 0)
    for expert, host in own:
        wanted = min(state.from_afar(giver) - most_far, state.far[expert, host])
        for rank in ranks:
            unserved = state.unserved[rank // state.width][expert]
            piece, kind = min(wanted, most_tokens - state.tokens(rank)), 2
            if state.host(expert, rank) is None:
                piece, kind = min(piece, unserved), 1
                if piece < worth or -1 not in state.slots[rank]:
                    continue
            elif unserved > 0:
                piece = min(piece, unserved)
            else:
                piece, kind = min(piece, most_far - state.from_afar(rank)), 0
            if rank != giver and piece > 0 and (piece, kind) > best:
                best, source, moved, receiver = (piece, kind), host, expert, rank
    if best[0] == 0:
        return False
    piece, kind = best
    state.quota[moved, source] -= piece
    state.far[moved, source] -= piece
    if source[1] != HOME and state.quota[moved, source] == 0:
        state.slots[giver][source[1]] = -1
        del state.quota[moved, source], state.far[moved, source]
    target = state.host(moved, receiver)
    if target is None:
        target = receiver, state.slots[receiver].index(-1)
        state.slots[receiver][target[1]] = moved
        state.quota[moved, target] = state.far[moved, target] = 0
    state.quota[moved, target] += piece
    if kind == 0:
        state.far[moved, target] += piece
    else:
        state.unserved[receiver // state.width][moved] -= piece
    return True
