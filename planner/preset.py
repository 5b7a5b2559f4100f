"""Models and clusters as data: what the cost model is made from.

A preset is a TOML file in ``presets/models`` or ``presets/clusters``; a user's own file has the
same keys, all of them required. A value is a number, or a table of the number and its source::

    hidden = 2048
    hidden = { value = 2048, source = "where the figure is from" }
"""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import PICOSECONDS, CostModel
from foremoe.vocabulary import Stage

PRESETS = Path(__file__).parent / "presets"
MATRICES = 3  # of an expert: gate, up and down projection
ACTIVATION_BYTES = 2  # bf16
GRADIENT_BYTES = 4  # a weight's gradient travels in float32
# bf16 weight, float32 master weight and two Adam moments: Rajbhandari et al., arXiv 1910.02054.
HOME_BYTES = 14
KIND = {int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class ModelPreset:
    """One model's layers with experts.

    other_weights: of a layer outside the routed experts, that a token meets.
    gemm_efficiency: share of the peak that a grouped GEMM reaches with many pairs.
    intercept_share: an expert's time but for its pairs / the time to read its weights.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    expert_intermediate: int
    weight_bytes: int
    other_weights: int
    gemm_efficiency: float
    intercept_share: float

    @property
    def expert_weights(self) -> int:
        return MATRICES * self.hidden * self.expert_intermediate

    @property
    def expert_bytes(self) -> int:
        return self.expert_weights * self.weight_bytes


@dataclass(frozen=True, slots=True)
class ClusterPreset:
    """One rank of a cluster: a GPU and its links; bandwidths as reached, in one direction."""

    ranks_per_node: int
    flops_per_second: float
    hbm_bytes_per_second: float
    peer_bytes_per_second: float
    host_bytes_per_second: float
    network_bytes_per_second: float
    launch_seconds: float
    latency_seconds: float


def model_preset(name_or_file: str) -> ModelPreset:
    """The model of that name, or of that TOML file.

    Raises InvalidInputError if there is none, or the file has unknown, missing or bad values.
    """
    return _preset("models", ModelPreset, name_or_file)


def cluster_preset(name_or_file: str) -> ClusterPreset:
    """The cluster of that name, or of that TOML file; raises as ``model_preset``."""
    return _preset("clusters", ClusterPreset, name_or_file)


def preset_names(kind: str) -> list[str]:
    """Names of the built-in ``models`` or ``clusters``, in alphabetical order."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.toml"))


def cost_model(model: ModelPreset, cluster: ClusterPreset, stage: Stage) -> CostModel:
    """Prices of one layer in a stage.

    An update computes the forward pass and two products of its size backward, dispatches twice,
    and sends the gradients of replicas home.
    """
    update = stage is Stage.UPDATE
    passes, trips = (3, 2) if update else (1, 1)
    flops = cluster.flops_per_second * model.gemm_efficiency
    read = model.expert_bytes / cluster.hbm_bytes_per_second
    pair_bytes = 2 * model.hidden * ACTIVATION_BYTES * trips  # dispatch and combine
    gradient_bytes = model.expert_weights * GRADIENT_BYTES if update else 0
    far = cluster.network_bytes_per_second

    def copy(bytes_per_second: float) -> int:
        return _picoseconds(cluster.latency_seconds + model.expert_bytes / bytes_per_second)

    return CostModel(
        launch=_picoseconds(passes * cluster.launch_seconds),
        read=_picoseconds(passes * read),
        intercept=_picoseconds(passes * read * model.intercept_share),
        pair=_picoseconds(passes * 2 * model.expert_weights / flops),
        other_pair=_picoseconds(passes * 2 * model.other_weights / model.top_k / flops),
        dispatch_latency=_picoseconds(2 * trips * cluster.latency_seconds),
        rank_pair=_picoseconds(2 * pair_bytes / cluster.hbm_bytes_per_second),
        node_pair=_picoseconds(pair_bytes / cluster.peer_bytes_per_second),
        far_pair=_picoseconds(pair_bytes / far),
        host_copy=copy(cluster.host_bytes_per_second),
        peer_copy=copy(cluster.peer_bytes_per_second),
        network_copy=copy(far),
        near_gradient=_picoseconds(gradient_bytes / cluster.peer_bytes_per_second),
        far_gradient=_picoseconds(gradient_bytes / far),
        near_move=_picoseconds(model.expert_weights * HOME_BYTES / cluster.peer_bytes_per_second),
        far_move=_picoseconds(model.expert_weights * HOME_BYTES / far),
    )


def _picoseconds(seconds: float) -> int:
    return round(seconds * PICOSECONDS)


Preset = TypeVar("Preset", ModelPreset, ClusterPreset)


def _preset(kind: str, form: type[Preset], name_or_file: str) -> Preset:
    if name_or_file in preset_names(kind):
        return _read(PRESETS / kind / f"{name_or_file}.toml", form)
    if not name_or_file.endswith(".toml"):
        names = preset_names(kind)
        raise InvalidInputError(
            f"{name_or_file!r} is none of the {kind} {', '.join(names)}"
            f"{_suggestion(name_or_file.lower(), names)}; to use a file, name one that ends in "
            ".toml"
        )
    return _read(Path(name_or_file), form)


def _read(path: Path, form: type[Preset]) -> Preset:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: is no TOML file ({error})") from error
    kinds = {field.name: field.type for field in fields(form)}
    for key in content:
        if key not in kinds:
            raise InvalidInputError(f"{path}: unknown key {key!r}{_suggestion(key, kinds)}")
    missing = [key for key in kinds if key not in content]
    if missing:
        raise InvalidInputError(f"{path}: {missing[0]} is missing")
    return form(**{key: _number(path, key, content[key], kinds[key]) for key in kinds})


def _number(path: Path, key: str, entry: Any, kind: Any) -> Any:
    """The value of an entry, an int where the preset wants one."""
    if isinstance(entry, dict):
        for inner in entry:
            if inner not in ("value", "source"):
                hint = _suggestion(inner, ["value", "source"])
                raise InvalidInputError(f"{path}: unknown key {inner!r} in {key}{hint}")
        entry = entry.get("value")
    whole = kind is int and isinstance(entry, int)
    if isinstance(entry, bool) or not (whole or (kind is float and isinstance(entry, int | float))):
        raise InvalidInputError(f"{path}: {key} must be {KIND[kind]}, got {entry!r}")
    if not 0 < entry < 1e18:
        raise InvalidInputError(f"{path}: {key} must be positive and below 1e18, got {entry}")
    return kind(entry)


def _suggestion(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
