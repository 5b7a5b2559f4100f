"""``foremoe convert``: every carrier's files become the trace that ``foremoe plan`` reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from foremoe.cli import main
from foremoe.foresight.trace import load_trace
from tests.foresight.routes import MODEL, all_layers, routes
from tests.foresight.test_engines import sglang_text, vllm_array, vllm_text
from tests.foresight.test_logs import README_EXAMPLE, megatron_lines
from tests.foresight.test_trainers import nemo_text, skyrl_batch, slime_padded, verl_batch, wire

SHAPE = ["--num-experts", "16", "--top-k", "4", "--num-layers", "4", "--moe-layers", "1-3"]
ONE, TWO = routes(6, seed=1), routes(3, seed=2)


def jsonl(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def vllm_http(folder: Path) -> Path:
    one = {"choices": [{"routed_experts": vllm_text(vllm_array(ONE))}]}
    two = {"choices": [{"routed_experts": vllm_text(vllm_array(TWO))}, {"routed_experts": None}]}
    one |= {"usage": {"total_tokens": 7}}
    return jsonl(folder / "vllm.jsonl", [one, two])


def vllm_turns(folder: Path) -> Path:
    first = {"choices": [{"routed_experts": vllm_text(vllm_array(ONE[:4]))}], "sequence": "chat"}
    later = {"choices": [{"routed_experts": vllm_text(vllm_array(ONE[4:]))}], "sequence": "chat"}
    later |= {"routed_experts_prompt_start": 4}
    other = {"choices": [{"routed_experts": vllm_text(vllm_array(TWO))}], "sequence": "other"}
    path = folder / "vllm.json"
    path.write_text(json.dumps([first, other, later]))
    return path


def vllm_arrays(folder: Path) -> Path:
    return npz(folder / "vllm.npz", a=vllm_array(ONE), b=vllm_array(TWO))


def sglang_http(folder: Path) -> Path:
    metas = [
        {"routed_experts": sglang_text(ONE), "prompt_tokens": 2, "completion_tokens": 5},
        {"routed_experts": sglang_text(TWO), "weight_versions": [{"version": "1"}, "2"]},
    ]
    return jsonl(folder / "sglang.jsonl", [{"meta_info": meta} for meta in metas])


def sglang_openai(folder: Path) -> Path:
    """Of /v1/chat/completions: the extension beside the choices."""
    one = {"choices": [{}], "sglext": {"routed_experts": sglang_text(ONE)}}
    one |= {"usage": {"prompt_tokens": 2, "completion_tokens": 5}, "metadata": None}
    two = {"choices": [{}], "sglext": {"routed_experts": sglang_text(TWO)}}
    return jsonl(folder / "chat.jsonl", [one, {"choices": [{}]}, two])


def verl_npz(folder: Path) -> Path:
    (one, mask), (two, other) = verl_batch(3, 4), verl_batch(2, 2)
    one[3:9], two[4:7] = all_layers(ONE), all_layers(TWO)
    ids, masks = np.stack([one, two]), np.stack([mask, other])
    return npz(folder / "verl.npz", routed_experts=ids, attention_mask=masks)


def slime_npz(folder: Path) -> Path:
    return npz(folder / "slime.npz", s0=all_layers(ONE), s1=all_layers(TWO))


def nemo_jsonl(folder: Path) -> Path:
    signed = np.concatenate([TWO, np.full((1, *TWO.shape[1:]), -1)]).astype(np.int8)
    log = [{"routed_experts": nemo_text(part.astype(np.int8))} for part in (ONE[:2], ONE[2:])]
    return jsonl(
        folder / "nemo.jsonl", [{"message_log": log}, {"routed_experts": nemo_text(signed)}]
    )


def skyrl_npz(folder: Path) -> Path:
    indices, padding = skyrl_batch([7, 4])
    indices[0, :6], indices[1, 3:6] = ONE, TWO
    path = folder / "skyrl.npz"
    return npz(path, rollout_expert_indices=indices, router_padding_mask=padding)


def skyrl_http(folder: Path) -> Path:
    records = [{"routed_experts": wire(ids.astype(np.uint8))} for ids in (ONE, TWO)]
    return jsonl(folder / "skyrl.jsonl", records)


def prime_jsonl(folder: Path) -> Path:
    ids = np.concatenate([all_layers(ONE), np.zeros((1, 4, 4), np.int32)]).astype(np.uint8)
    turns = [wire(all_layers(TWO[:1]).astype(np.uint8), start=0)]
    turns += [wire(all_layers(TWO[1:]).astype(np.uint8), start=1)]
    records = [{"routed_experts": wire(ids)}]
    return jsonl(
        folder / "p.jsonl", records + [{"sequence": "b", "routed_experts": t} for t in turns]
    )


RECORDINGS = {
    "vllm over http": ("vllm", vllm_http),
    "vllm turns": ("vllm", vllm_turns),
    "vllm arrays": ("vllm", vllm_arrays),
    "sglang": ("sglang", sglang_http),
    "sglang, openai": ("sglang", sglang_openai),
    "verl": ("verl", verl_npz),
    "slime": ("slime", slime_npz),
    "nemo-rl": ("nemo-rl", nemo_jsonl),
    "skyrl batch": ("skyrl", skyrl_npz),
    "skyrl over http": ("skyrl", skyrl_http),
    "prime-rl": ("prime-rl", prime_jsonl),
}


@pytest.mark.parametrize("recording", RECORDINGS)
def test_every_carrier_gives_the_same_trace_that_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recording: str
) -> None:
    carrier, make = RECORDINGS[recording]
    output = tmp_path / "trace.npz"
    arguments = ["convert", "--from", carrier, str(make(tmp_path)), "-o", str(output), *SHAPE]
    assert main([*arguments, "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["sequences"], account["tokens"], account["faults"]) == (2, 9, [])
    assert (account["layers"], account["experts"], account["top_k"]) == ([1, 2, 3], 16, 4)
    trace = load_trace(output)
    assert trace.layer_ids == (1, 2, 3)
    assert trace.offsets.tolist() == [0, 6, 9]
    np.testing.assert_array_equal(trace.experts, np.concatenate([ONE, TWO]))
    assert main(["plan", str(output), "--ranks", "4", "--policy", "none"]) == 0


def test_counts_and_router_traces_plan_too(tmp_path: Path) -> None:
    lines = megatron_lines(ONE, 0, rank=0) + megatron_lines(TWO, 0, rank=0)
    trace, counts = tmp_path / "m.npz", tmp_path / "c.npz"
    megatron = [str(jsonl(tmp_path / "m.jsonl", lines)), "-o", str(trace), "--num-experts", "16"]
    assert main(["convert", "--from", "megatron", *megatron]) == 0
    np.testing.assert_array_equal(load_trace(trace).experts, np.concatenate([ONE, TWO]))
    patch = [str(jsonl(tmp_path / "c.jsonl", [README_EXAMPLE])), "-o", str(counts)]
    assert main(["convert", "--from", "moe-patch", *patch]) == 0
    assert load_trace(counts).histograms().tolist() == [[[800, 965, 1150, 1181]]]
    assert load_trace(counts).layer_ids == (6,)
    for path in (trace, counts):
        assert main(["plan", str(path), "--ranks", "2", "--policy", "none"]) == 0


def test_faults_are_told_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One layer that nobody has, one that one sequence lacks, a blank sequence, two blank rows."""
    good, lame, rows = (all_layers(routes(8, seed=seed)) for seed in (1, 2, 3))
    for ids in (good, lame, rows):
        ids[:, 3] = 0
    lame[:, 2] = 0
    rows[2:4] = 0
    blank = np.zeros((5, 4, 4), np.int32)
    path = npz(tmp_path / "v.npz", good=good, lame=lame, rows=rows, blank=blank)
    output = tmp_path / "t.npz"
    assert main(["convert", "--from", "slime", str(path), "-o", str(output), *SHAPE, "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["sequences"], account["tokens"], account["layers"]) == (2, 8 + 6, [1, 2])
    assert (account["left_out"], account["lost_layers"]) == ([f"{path}:lame", f"{path}:blank"], [3])
    assert account["missing_rows"] == 2 + 5
    found = {(f["kind"], f["layer"]): (f["sequences"], f["rows"]) for f in account["faults"]}
    assert found == {
        ("layer not captured", 3): (3, 8 + 8 + 8),
        ("layer not captured", 2): (1, 8),
        ("rows not captured", None): (1, 2),
        ("nothing captured", None): (1, 5),
    }
    assert main(["convert", "--from", "slime", str(path), "-o", str(output), *SHAPE]) == 0
    shown = capsys.readouterr().out
    for text in ("2, 2 left out", "2: 1-2", "3 (dense, or a fault", "1 sequences, layers 2, such"):
        assert text in shown
    assert len(shown.splitlines()) < 24


def test_files_with_the_same_names_are_not_joined(tmp_path: Path) -> None:
    """Two steps' recordings name their sequences alike; turns are joined within a file only."""
    arguments = ["-o", str(tmp_path / "t.npz"), *SHAPE]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        arguments.append(str(vllm_turns(tmp_path / folder)))
        arguments.append(str(vllm_arrays(tmp_path / folder)))
    assert main(["convert", "--from", "vllm", *arguments]) == 0
    trace = load_trace(tmp_path / "t.npz")
    assert trace.offsets.tolist() == [0, 6, 9, 15, 18, 24, 27, 33, 36]


def vllm_versions(folder: Path) -> Path:
    """A choice that two policies made, and a response of one."""
    choice = {"routed_experts": vllm_text(vllm_array(ONE)), "weight_versions": ["3", "3", "4"]}
    other = {"choices": [{"routed_experts": vllm_text(vllm_array(TWO))}], "weight_version": 4}
    return jsonl(folder / "vllm.jsonl", [{"choices": [choice]}, other])


def versions_of(carrier: str) -> Callable[[Path], Path]:
    """The same for carriers whose records are made by the framework, not the engine."""

    def make(folder: Path) -> Path:
        ids = [part.astype(np.int8 if carrier == "nemo-rl" else np.uint8) for part in (ONE, TWO)]
        encode = nemo_text if carrier == "nemo-rl" else wire
        records = [{"routed_experts": encode(part), "weight_version": 3} for part in ids]
        return jsonl(folder / "v.jsonl", [records[0] | {"weight_versions": [3, 4]}, records[1]])

    return make


@pytest.mark.parametrize(
    ("carrier", "make"),
    [("sglang", sglang_http), ("vllm", vllm_versions)]
    + [(carrier, versions_of(carrier)) for carrier in ("nemo-rl", "skyrl", "prime-rl")],
)
def test_two_policies_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], carrier: str, make: Callable[[Path], Path]
) -> None:
    arguments = [str(make(tmp_path)), "-o", str(tmp_path / "t.npz"), *SHAPE]
    assert main(["convert", "--from", carrier, *arguments]) == 0
    assert "several weight versions │ 1 sequences" in capsys.readouterr().out


def test_a_configuration_serves_as_shape(tmp_path: Path) -> None:
    config = {"n_routed_experts": 16, "num_experts_per_tok": 4, "num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "first_k_dense_replace": 1}))
    files = [str(sglang_http(tmp_path)), "-o", str(tmp_path / "t.npz")]
    options = ["--model", str(tmp_path / "config.json")]
    assert main(["convert", "--from", "sglang", *files, *options]) == 0
    assert load_trace(tmp_path / "t.npz").layer_ids == MODEL.layers
    lines = jsonl(tmp_path / "m.jsonl", megatron_lines(ONE, 0, rank=0))
    assert main(["convert", "--from", "megatron", str(lines), *files[1:], *options]) == 0
    assert load_trace(tmp_path / "t.npz").num_experts == 16


EXPERTS = ["--num-experts", "16"]
MEGATRON = '{{"step": 0, "rank": 0, "layer": {}, "num_tokens": 1, "topk": 2, "top_indices": [{}]}}'
PATCH = (
    '{{"iteration": 0, "rank": 0, "layer": "layer_{}", "num_experts": 4, "top_k": 2, '
    '"tokens": {}, "actual_assignments": [{}]}}'
)


@pytest.mark.parametrize(
    ("carrier", "content", "options", "message"),
    [
        ("vllm", "{", SHAPE, "f:1: is no JSON"),
        ("vllm", "[1]", SHAPE, "f:1: expected a JSON object"),
        ("vllm", "{}", SHAPE, "f:1: choices: expected a list of objects"),
        ("vllm", '{"choices": []}', SHAPE, "holds no routed experts; was their return enabled?"),
        ("vllm", '{"choices": [{"routed_experts": 5}]}', SHAPE, "expected a base64 string"),
        ("vllm", '{"choices": []}', [], "--from vllm needs --model, or --num-experts"),
        ("vllm", "{}", [*SHAPE[:-1], "x-3"], "--moe-layers: expected ids like 3-60"),
        ("vllm", "{}", [*SHAPE[:-1], "3-9"], "layers must lie in"),
        ("vllm", "{}", ["--model", "/nowhere.json"], "/nowhere.json: cannot be read"),
        ("sglang", '{"meta_info": {"routed_experts": "AAAA"}}', SHAPE, "no whole rows"),
        ("megatron", "{}", [], "--num-experts or --model: a Megatron router trace does not say it"),
        ("vllm", "{}", [*SHAPE[:4], "--num-layers", "99999999999"], "--num-layers: must lie in"),
        ("vllm", "{}", [*SHAPE[:-1], "0-999999999"], "--moe-layers: must lie in [0, 4095]"),
        ("vllm", "{}", ["--num-experts", "99999", *SHAPE[2:]], "num_experts: must lie in"),
        ("megatron", MEGATRON.format(10**12, "[1, 2]"), EXPERTS, "num_layers: must lie in"),
        ("megatron", MEGATRON.format(3, "[1.5, 2]"), EXPERTS, "top_indices: expected integers"),
        ("megatron", MEGATRON.format(3, '["1", "2"]'), EXPERTS, "top_indices: expected integers"),
        ("moe-patch", PATCH.format(6, 2 * 10**10, 10**10), [], "tokens: must lie in"),
        ("moe-patch", PATCH.format(10**10, 4, 2), [], "num_layers: must lie in"),
        ("nemo-rl", '{"routed_experts": [[[0.5, 1.5]]]}', SHAPE, "expected integers of 32 bits"),
        ("nemo-rl", '{"routed_experts": [[[4294967296]]]}', SHAPE, "expected integers of 32 bits"),
        ("moe-patch", '{"rank": 0}', [], "iteration: expected an integer, got None"),
        ("verl", "hello", SHAPE, "no npz archive"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    carrier: str,
    content: str,
    options: list[str],
    message: str,
) -> None:
    (tmp_path / "f").write_text(content)
    output = tmp_path / "t.npz"
    arguments = ["--from", carrier, str(tmp_path / "f"), "-o", str(output), *options]
    assert main(["convert", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("foremoe convert: ")
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_missing_arrays_and_files_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path / "v.npz", routed_experts=np.zeros(3), mask=np.zeros(3))
    for file, message in (
        (path, "array attention_mask is missing; it has routed_experts, mask"),
        (tmp_path / "none.npz", "cannot be read"),
    ):
        arguments = ["--from", "verl", str(file), "-o", str(tmp_path / "t.npz"), *SHAPE]
        assert main(["convert", *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("rows", [1, 5])
def test_slime_padding_is_known_without_the_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: int
) -> None:
    path = npz(tmp_path / "s.npz", a=slime_padded(all_layers(ONE), rows, 16))
    output = tmp_path / "t.npz"
    arguments = ["--from", "slime", str(path), "-o", str(output), *SHAPE, "--json"]
    assert main(["convert", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["padding_rows"] == rows
    np.testing.assert_array_equal(load_trace(output).experts, ONE)


def test_an_array_without_axes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path / "s.npz", a=np.array(4, np.int32))
    for carrier in ("slime", "vllm"):
        arguments = ["--from", carrier, str(path), "-o", str(tmp_path / "t.npz"), *SHAPE]
        assert main(["convert", *arguments]) == 2
        assert "[tokens, layers, top_k], got int32 []" in capsys.readouterr().err


def test_a_mask_of_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch = {"routed_experts": routes(2)[None], "attention_mask": np.array([["yes", "no"]])}
    arguments = [str(npz(tmp_path / "b.npz", **batch)), "-o", str(tmp_path / "t.npz"), *SHAPE]
    assert main(["convert", "--from", "verl", *arguments]) == 2
    assert "expected a mask of numbers, got <U3" in capsys.readouterr().err
