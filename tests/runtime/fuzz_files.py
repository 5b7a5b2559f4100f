"""Files that are not what their name says: whoever reads them says so in one line."""

import base64
import io
import json
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.cli import CONFIGURED, command_parser, section_keys
from foremoe.configuration import SHARED, Configuration
from foremoe.errors import ForemoeError
from foremoe.foresight import megatron, moe_patch, prime_rl, sglang, slime, vllm
from foremoe.foresight.conversion import convert
from foremoe.foresight.model import MoeModel, load_model
from foremoe.foresight.trace import load_trace
from foremoe.planner.archive import load_plans
from foremoe.planner.policies import POLICIES
from foremoe.planner.preset import PRESETS, cluster_preset, model_preset
from foremoe.planner.problem import StageProblem, Topology
from foremoe.planner.validate import validate
from foremoe.report.sources import chapters_of
from foremoe.rpc.credentials import Credentials
from foremoe.transfer.cache_file import CacheShape, open_file
from tests.runtime.fuzz_bytes import spoiled_bytes
from tests.runtime.fuzz_values import spoiled_json, spoiled_npz, spoiled_toml

READ_SECONDS = 30.0
MODEL = MoeModel(num_experts=16, top_k=4, num_layers=4, layers=(1, 2, 3))
CACHE = CacheShape(2, (0, 3), 4, 4096)
Make = Callable[[random.Random], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of file: how it is made and spoiled, and who reads it. weight: how often it comes."""

    suffix: str
    make: Make
    read: Callable[[Path], Any]
    weight: int = 10


class FuzzedFiles:
    """``failures`` are what should not have happened; ``counts`` answers by target and outcome.

    runs: also those of recorded runs, of which charts are drawn if they can be read.
    """

    def __init__(self, folder: Path, runs: bool = True) -> None:
        self.failures: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self._folder = folder
        self._targets = targets()
        wanted = [name for name in self._targets if runs or not name.startswith("run: ")]
        self._names = [name for name in wanted for _ in range(self._targets[name].weight)]

    def run(self, chance: random.Random) -> None:
        """Write one file and have it read."""
        name = chance.choice(self._names)
        target = self._targets[name]
        path = self._folder / f"fuzzed{target.suffix}"
        content = target.make(chance)
        path.write_bytes(content)
        path.chmod(0o600)
        began = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = self._outcome(name, target, path)
        self.counts[name, outcome] += 1
        if time.monotonic() - began > READ_SECONDS:
            self.failures.append(f"{name}: took {time.monotonic() - began:.1f} s")
        if self.failures and self.failures[-1].startswith(f"{name}: "):
            self.failures[-1] += f"; began {content[:300].hex()}" if len(content) < 5000 else ""

    def _outcome(self, name: str, target: Target, path: Path) -> str:
        try:
            target.read(path)
        except ForemoeError as error:
            if "\n" in str(error) or not str(error) or len(str(error)) > 2000:
                self.failures.append(f"{name}: not one line: {str(error)[:300]!r}")
            return type(error).__name__
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.failures.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
            return f"{type(error).__name__} (a fault)"
        return "read"


def targets() -> dict[str, Target]:
    """Every kind of file that a user may give us, or that may lie in our way."""
    return {
        "trace npz": Target(".npz", _npz(_trace()), _read_trace),
        "plans npz": Target(".npz", _npz(_plans()), _read_plans),
        "foremoe.toml": Target(".toml", _toml(_CONFIGURATION), _read_configuration),
        "model preset": Target(".toml", _toml(_preset("models")), _as_text(model_preset), 5),
        "cluster preset": Target(".toml", _toml(_preset("clusters")), _as_text(cluster_preset), 5),
        "host cache": Target(".cache", _cache, _read_cache),
        "config.json": Target(".json", _json(_CONFIG), load_model),
        "vllm recording": Target(".json", _json(_vllm()), _carrier(vllm.read)),
        "sglang recording": Target(".json", _json(_sglang()), _carrier(sglang.read)),
        "prime-rl recording": Target(".json", _json(_prime_rl()), _carrier(prime_rl.read), 5),
        "slime recording": Target(
            ".npz", _npz({"0": _ids(), "1": _ids()}), _carrier(slime.read), 5
        ),
        "megatron recording": Target(".json", _json(_megatron()), _read_megatron, 5),
        "moe-patch recording": Target(".json", _json(_moe_patch()), _read_moe_patch, 5),
        "run: demo": Target(".json", _json(_demo()), chapters_of, 1),
        "run: plans": Target(".json", _json(_PLANNED), chapters_of, 1),
        "run: trace": Target(".json", _json(_spans()), chapters_of, 1),
        "token file": Target(".token", _or_bytes(lambda _: b"0123456789abcdef0123456789"), _token),
        "certificate": Target(".pem", _or_bytes(lambda _: _PEM), _certificate, 2),
    }


def _or_bytes(make: Make) -> Make:
    """Spoil the bytes in the end, always or on top of another change."""
    return lambda chance: spoiled_bytes(make(chance), chance)


def _some(spoil: Make, right: bytes) -> Make:
    """Values spoiled in three of four, bytes in the rest."""
    return lambda chance: spoil(chance) if chance.random() < 0.75 else spoiled_bytes(right, chance)


def _npz(arrays: Mapping[str, NDArray[Any]]) -> Make:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return _some(lambda chance: spoiled_npz(arrays, chance), buffer.getvalue())


def _json(content: Any) -> Make:
    return _some(lambda chance: spoiled_json(content, chance), json.dumps(content).encode())


def _toml(text: str) -> Make:
    return _some(lambda chance: spoiled_toml(text, chance), text.encode())


def _cache(chance: random.Random) -> bytes:
    """Header fields of 4 and 8 bytes, or the file's length."""
    header = bytearray(CACHE.header())
    way = chance.randrange(3)
    if way == 0:
        place, size = chance.choice(((0, 8), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 8)))
        value = chance.choice((0, 1, 2, 2**16, 2**31, 2**32 - 1, 2**40, 2**61, 2**63, 2**64 - 1))
        header[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
    content = bytes(header).ljust(CACHE.file_bytes, b"\0")
    if way == 1:
        return content[: chance.randrange(len(content))]
    return spoiled_bytes(content[:64], chance) + content[64:] if way == 2 else content


def _trace() -> dict[str, NDArray[Any]]:
    experts = np.random.default_rng(0).integers(0, 8, (12, 3, 2), np.uint8)
    offsets = np.array([0, 5, 12], np.int64)
    layers = np.array([0, 2, 5], np.int32)
    return {
        "experts": experts,
        "offsets": offsets,
        "num_experts": np.array(8),
        "layer_ids": layers,
    }


def _plans() -> dict[str, NDArray[Any]]:
    load = np.random.default_rng(0).integers(0, 9, (2, 2, 2, 4))
    home = np.array([[0, 0, 1, 1], [0, 1, 0, 1]], np.int32)
    problem = StageProblem(load, home, np.zeros(2, np.int32), Topology(2, 2), 1, None)
    plans = list(POLICIES["foremoe"](problem))
    return {
        "home": home,
        **{
            name: np.stack([getattr(plan, name) for plan in plans])
            for name in ("load", "replica_expert", "replica_tokens", "bound")
        },
    }


def _ids() -> NDArray[np.int32]:
    """``[5, 4, 4]``, the first layer dense."""
    scores = np.random.default_rng(0).random((5, 4, MODEL.num_experts))
    ids = scores.argsort(axis=-1)[..., : MODEL.top_k].astype(np.int32)
    ids[:, 0] = 0
    return ids


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _vllm() -> Any:
    buffer = io.BytesIO()
    np.save(buffer, _ids().astype(np.uint8))
    text = base64.b64encode(buffer.getvalue()).decode()
    usage = {"total_tokens": 6}
    return [{"sequence": "a", "choices": [{"routed_experts": text}], "usage": usage}] * 2


def _sglang() -> Any:
    meta = {"routed_experts": _base64(_ids()), "prompt_tokens": 2, "completion_tokens": 4}
    return [{"sequence": "a", "meta_info": {**meta, "weight_versions": [{"version": 1}, "2"]}}]


def _prime_rl() -> Any:
    payload = {"data": _base64(_ids()), "shape": [5, 4, 4], "dtype": "int32", "start": 0}
    return [{"sequence": "a", "routed_experts": payload}]


def _megatron() -> Any:
    rows = _ids()[:, 1].tolist()
    common = {"step": 0, "stage": "pre_dispatch", "block": "decoder", "rank": 0}
    return [
        {**common, "layer": layer, "num_tokens": 5, "topk": 4, "top_indices": rows}
        for layer in range(2)
    ]


def _moe_patch() -> Any:
    common = {"iteration": 1, "rank": 0, "num_experts": 4, "top_k": 2, "tokens": 6}
    return [
        {**common, "layer": f"layer_{layer}", "actual_assignments": [6, 3, 2, 1]}
        for layer in range(2)
    ]


def _demo() -> Any:
    stage = {
        "imbalance_before": 1.5,
        "imbalance_after": 1.01,
        "seconds_unbalanced": 3.0,
        "seconds_balanced": 2.0,
        "exposed_seconds": 0.125,
        "host_bytes": 3 << 20,
        "peer_bytes": 2 << 20,
        "gradient_bytes": 1 << 20,
    }
    stages = {"recompute": stage, "update": stage}
    return {
        "options": {"ranks": 4},
        "stages": stages,
        "steps": [{"stages": stages}] * 2,
        "speedup": 1.5,
        "speedup_from_balance_alone": 1.6,
        "largest_loss_difference": 1e-9,
    }


def _spans() -> Any:
    common = {"ph": "X", "pid": 0, "cat": "compute", "args": {"micro_step": 0, "layer": 0}}
    return {
        "traceEvents": [
            {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "update"}},
            {**common, "tid": 0, "name": "layer 0", "ts": 0.0, "dur": 5.0},
            {**common, "tid": 0, "name": "layer 1", "ts": 6.0, "dur": 5.0},
        ]
    }


_PLANNED = [
    {
        "policy": policy,
        "micro_steps": 2,
        "layers": 3,
        "experts": 8,
        "ranks": 4,
        "spare_slots": 1,
        "imbalance_before": {"mean": 1.5},
        "imbalance_after": {"mean": 1.1, "p99": 1.2},
        "copies_per_layer": {"mean": 0.5},
        "planning_microseconds_per_layer": 12.0,
    }
    for policy in ("foremoe", "greedy")
]
_CONFIG = {
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_CONFIGURATION = """\
[daemon]
address = "/tmp/foremoe/runtime.sock"
tls_cert = "cert.pem"
[serve]
memory_limit = "16G"
max_steps = 4
policy = "resident"
target = 1.02
tls_allow = ["a", "b"]
metrics_port = 9464
log_format = "json"
[top]
interval = 2.0
once = true
"""
_PEM = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bytes(range(200))) + (
    b"-----END CERTIFICATE-----\n"
)  # fmt: skip


def _preset(kind: str) -> str:
    return sorted((PRESETS / kind).glob("*.toml"))[0].read_text()


def _as_text(read: Callable[[str], Any]) -> Callable[[Path], Any]:
    return lambda path: read(str(path))


def _read_trace(path: Path) -> None:
    trace = load_trace(path)
    if trace.num_experts <= 1 << 20:  # counting more is only a matter of memory
        trace.histograms()


def _read_plans(path: Path) -> None:
    for plan in load_plans(path):
        ranks, slots = plan.replica_expert.shape[1:]
        validate(plan, plan.load, Topology(ranks, ranks), slots)


def _read_configuration(path: Path) -> None:
    configuration = Configuration.load(path, {})
    configuration.check({*CONFIGURED, *SHARED.values()}, section_keys)
    for command in ("serve", "top"):
        configuration.parse(command, command_parser(command), [])


def _read_cache(path: Path) -> None:
    open_file(path, CACHE.layers, CACHE.capacity, CACHE.slab_bytes).close()


def _carrier(read: Callable[..., Any]) -> Callable[[Path], Any]:
    return lambda path: convert(read(path, MODEL, lambda _: None))


def _read_megatron(path: Path) -> None:
    convert(megatron.read(path, MODEL.num_experts, lambda _: None))


def _read_moe_patch(path: Path) -> None:
    convert(moe_patch.read(path, lambda _: None))


def _token(path: Path) -> None:
    Credentials(token_file=str(path)).read_token()


def _certificate(path: Path) -> None:
    Credentials(str(path), str(path), str(path)).read_tls()
