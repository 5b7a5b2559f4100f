"""Presets: every figure has a source, the calibration holds, a user's file works the same."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from foremoe.errors import InvalidInputError
from foremoe.planner.cost import home_seconds
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.preset import PRESETS, cluster_preset, cost_model, model_preset, preset_names
from foremoe.vocabulary import Stage

H100 = (PRESETS / "clusters" / "h100.toml").read_text()


def test_the_models_and_clusters_are_there() -> None:
    assert preset_names("clusters") == ["h100", "h200"]
    assert preset_names("models") == [
        "deepseek-v3", "glm-4.5", "gpt-oss-120b", "gpt-oss-20b", "mixtral-8x7b", "olmoe-1b-7b",
        "qwen3-235b-a22b", "qwen3-30b-a3b",
    ]  # fmt: skip
    for name in preset_names("models"):
        model = model_preset(name)
        for cluster in preset_names("clusters"):
            for stage in Stage:
                assert cost_model(model, cluster_preset(cluster), stage).pair > 0


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*/*.toml")), ids=lambda path: path.stem)
def test_every_figure_names_its_source(path: Path) -> None:
    for entry in tomllib.loads(path.read_text()).values():
        assert entry.keys() == {"value", "source"}
        assert len(entry["source"]) > 10


@pytest.mark.parametrize(("model", "megabytes"), [("qwen3-30b-a3b", 9.44), ("deepseek-v3", 88.08)])
def test_an_expert_has_its_known_size(model: str, megabytes: float) -> None:
    assert model_preset(model).expert_bytes / 1e6 == pytest.approx(megabytes, abs=0.01)


@pytest.mark.parametrize(
    ("model", "measured"),
    [
        ("qwen3-30b-a3b", {2: 75, 64: 97, 128: 114, 256: 153, 512: 227, 1024: 400}),
        ("qwen3-235b-a22b", {2: 230, 16: 239, 256: 372, 512: 597, 1024: 1043}),
    ],
)
def test_expert_time_is_within_a_tenth_of_what_was_measured(
    model: str, measured: dict[int, float]
) -> None:
    """Microseconds of 16 experts on an H100 by pairs of each: ai-dynamo/aiconfigurator."""
    cost = cost_model(model_preset(model), cluster_preset("h100"), Stage.RECOMPUTE)
    for pairs, microseconds in measured.items():
        load = np.full((1, 1, 16), pairs)
        (compute,) = home_seconds(cost, load, contiguous_homes(1, 16, 1), 1).compute
        assert 1e6 * compute == pytest.approx(microseconds, rel=0.1)


def test_a_file_of_the_users_own_works_like_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(H100)
    assert cluster_preset(str(file)) == cluster_preset("h100")
    plain = "\n".join(f"{key} = {entry['value']!r}" for key, entry in tomllib.loads(H100).items())
    file.write_text(plain)
    assert cluster_preset(str(file)) == cluster_preset("h100")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flops_per_second", "flops_per_secnd", "did you mean 'flops_per_second'?"),
        ("source = ", "origin = ", "unknown key 'origin' in ranks_per_node"),
        ("value = 8,", "value = 8.5,", "ranks_per_node must be a whole number, got 8.5"),
        ("value = 989e12", "value = -1.0", "flops_per_second must be positive"),
        ("value = 989e12", "value = nan", "flops_per_second must be positive"),
        ("value = 989e12", "value = true", "flops_per_second must be a number"),
        ("ranks_per_node = {", "", "is no TOML file"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(H100.replace(old, new, 1))
    with pytest.raises(InvalidInputError, match=r"bad\.toml") as caught:
        cluster_preset(str(file))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text("\n".join(H100.splitlines()[:-1]))
    with pytest.raises(InvalidInputError, match="latency_seconds is missing"):
        cluster_preset(str(file))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        cluster_preset(str(tmp_path / "none.toml"))
    with pytest.raises(InvalidInputError, match=r"did you mean 'qwen3-30b-a3b'\?"):
        model_preset("Qwen3-30B-A3B")
