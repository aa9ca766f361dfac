"""Checkpoint folders of every format, and each way in which one can be other than it seems."""

import contextlib
import json
import pickle
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from hub_server import TINY, config_json, full_model, write_checkpoint

from t5ts.errors import WeightsError
from t5ts.model.tensors import count, encoder_shapes
from t5ts.model.weights import LoadReport, load_checkpoint, read_architecture

TRAINED = count(encoder_shapes(TINY))
# decoder: the encoder's tensors, and per block a cross-attention of 4 64×64 matrices and a norm
FULL = 2 * TRAINED + 100 * 64 + 2 * (4 * 64 * 64 + 64)
WEIGHTS_FILE = "model.safetensors"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


def edit(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def with_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "t5", TINY, full_model(TINY))


def load(folder: Path, **kwargs: Any) -> tuple[dict[str, Tensor], LoadReport]:
    return load_checkpoint(path=folder, **kwargs)


def refused(folder: Path, *parts: str, **kwargs: Any) -> None:
    """Loading raises one WeightsError that says all of `parts`, in one paragraph."""
    with pytest.raises(WeightsError) as caught:
        load(folder, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_full_checkpoint_loads_with_counts_from_its_header(folder: Path) -> None:
    state, report = load(folder, arch=TINY, expected_full_params=(FULL, FULL))
    stored = full_model(TINY)
    assert all(torch.equal(state[name], stored[f"encoder.{name}"]) for name in state)
    assert report.num_params_full == FULL
    assert (report.num_params_trained, report.num_params_encoder) == (TRAINED, TRAINED + 6400)
    assert report.format == "safetensors"
    assert set(report.files) == {"config.json", "model.safetensors"}
    rms = stored["shared.weight"].double().square().mean().sqrt().item()
    assert report.embedding_rms == pytest.approx(rms)
    assert not [check for check in report.checks if check.startswith("note:")]


def test_architecture_comes_from_config_json(folder: Path) -> None:
    assert read_architecture(folder) == TINY
    assert read_architecture(str(folder)) == TINY


def test_old_configs_take_t5s_defaults(folder: Path) -> None:
    old = config_json(TINY, feed_forward_proj=None, relative_attention_max_distance=None)
    (folder / "config.json").write_text(json.dumps(old))
    assert read_architecture(folder) == TINY


def test_encoder_only_checkpoint_is_allowed_and_said(tmp_path: Path) -> None:
    tensors = full_model(TINY, decoder=False)
    folder = write_checkpoint(tmp_path / "t5", TINY, tensors)
    _, report = load(folder)
    assert report.num_params_full == TRAINED + 6400
    assert any("encoder only" in check for check in report.checks)
    refused(folder, "encoder only", expected_full_params=(FULL, FULL))


def test_tied_tensors_count_once_and_the_stale_key_never(folder: Path) -> None:
    def tie(tensors: dict[str, Tensor]) -> None:
        shared = tensors["shared.weight"]
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"):
            tensors[f"{name}.weight"] = shared.clone()

    with_tensors(folder, tie)
    assert load(folder)[1].num_params_full == FULL
    edit(folder, tie_word_embeddings=False)  # v1.1: the head is its own
    assert load(folder)[1].num_params_full == FULL + 6400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_become_float32(folder: Path, dtype: torch.dtype) -> None:
    with_tensors(folder, lambda t: t.update({n: x.to(dtype) for n, x in t.items()}))
    state, _ = load(folder)
    assert {x.dtype for x in state.values()} == {torch.float32}


def test_gated_v1_1_checkpoint(tmp_path: Path) -> None:
    arch = replace(TINY, feed_forward_proj="gated-gelu")
    folder = write_checkpoint(tmp_path / "t5", arch, full_model(arch))
    assert set(load(folder, arch=arch)[0]) == set(encoder_shapes(arch))
    refused(folder, "feed_forward_proj is 'gated-gelu' there, 'relu'", arch=TINY)


def shard(folder: Path, ending: str, save: Callable[[dict[str, Tensor], Path], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{i}-of-00002.{ending}"
        save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(("ending", "save"), [("safetensors", save_file), ("bin", torch.save)])
def test_shards_equal_the_single_file(
    folder: Path, ending: str, save: Callable[[dict[str, Tensor], Path], object]
) -> None:
    whole = load(folder)[1]
    shard(folder, ending, save)
    _, report = load(folder)
    assert report.tensors_sha256 == whole.tensors_sha256
    assert len(report.files) == 4
    next(folder.glob("*-00002-of-00002*")).unlink()
    refused(folder, "00002-of-00002", "missing")


@pytest.mark.parametrize("zipped", [True, False])
def test_legacy_pickle_through_the_weights_only_loader(folder: Path, zipped: bool) -> None:
    whole = load(folder)[1]
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    _, report = load(folder)
    assert report.format == "pytorch"
    assert report.tensors_sha256 == whole.tensors_sha256
    assert report.num_params_full == FULL


def test_safetensors_is_preferred(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    assert load(folder)[1].format == "safetensors"


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(__file__).with_name("pwned"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_not_run(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"shared.weight": Malicious()}, folder / "pytorch_model.bin")
    refused(folder, "could run code", "model.safetensors")
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Malicious(), file)
    refused(folder, "pytorch_model.bin")
    assert not Path(__file__).with_name("pwned").exists()


def test_pickle_of_something_else_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {"a": torch.zeros(1)}}, folder / "pytorch_model.bin")
    refused(folder, "not a plain state dict", "save_pretrained")


@pytest.mark.parametrize("keep", [0, 5, 500, -1000])
def test_truncated_pickle(folder: Path, keep: int) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "truncated or corrupted")


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none", "No such directory", "backbone.path=DIR")


def test_file_where_a_directory_is_expected(folder: Path) -> None:
    refused(folder / "model.safetensors", "is a file", "backbone.path=DIR")


def test_directory_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, "no config.json", "model.safetensors")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "truncated or corrupted"),
        ("[]", "not a JSON object"),
        ("", "truncated or corrupted"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ],
)
def test_broken_config(folder: Path, text: str, part: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json", part)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"model_type": "bert"}, ["model_type='bert'", "only 't5'"]),
        ({"model_type": "umt5"}, ["model_type='umt5'"]),
        ({"model_type": None}, ["model_type=None"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised", "gptq"]),
        ({"d_model": "512"}, ["d_model is '512'", "whole number"]),
        ({"num_layers": 0}, ["num_layers is 0"]),
        ({"num_heads": True}, ["num_heads is True"]),
        ({"feed_forward_proj": "swish"}, ["'swish'", "gated-gelu"]),
        ({"layer_norm_epsilon": "x"}, ["layer_norm_epsilon"]),
        ({"num_decoder_layers": "6"}, ["num_decoder_layers is '6'"]),
        ({"num_decoder_layers": 6.0}, ["num_decoder_layers is 6.0"]),
        ({"num_layers": 10**9}, ["num_layers"]),
        ({"dense_act_fn": "gelu_new"}, ["feed_forward_proj is 'relu', dense_act_fn is 'gelu_new'"]),
        ({"is_gated_act": True}, ["is_gated_act is True"]),
        (
            {"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"},
            ["feed_forward_proj", "dense_act_fn is 'relu'"],
        ),
        ({"feed_forward_proj": "gated-gelu", "is_gated_act": False}, ["is_gated_act is False"]),
        ({"feed_forward_proj": ["relu"]}, ["feed_forward_proj is ['relu']"]),
        ({"hidden_size": 512}, ["d_model is 64, hidden_size is 512"]),
        ({"num_hidden_layers": 6}, ["num_layers is 2, num_hidden_layers is 6"]),
    ],
)
def test_config_that_is_no_usable_t5(
    folder: Path, change: dict[str, Any], parts: list[str]
) -> None:
    edit(folder, **change)
    refused(folder, *parts)


def test_each_differing_key_is_named(folder: Path) -> None:
    wanted = replace(TINY, d_ff=256, vocab_size=32128)
    refused(folder, "d_ff is 128 there, 256", "vocab_size is 100 there, 32128", arch=wanted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("model.onnx", "ONNX"), ("t5.gguf", "GGUF"), ("tf_model.h5", "TensorFlow"), ("x.txt", "no w")],
)
def test_stand_ins_are_refused(folder: Path, name: str, kind: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, kind, "model.safetensors", "t5-small")


def test_git_lfs_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    refused(folder, "git lfs pull")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_safetensors(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "truncated or corrupted", "Fetch the checkpoint again")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_damage_to_the_header_escapes_as_another_error(
    folder: Path, data: st.DataObject
) -> None:
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    (length,) = struct.unpack("<Q", raw[:8])
    at = data.draw(st.integers(0, length + 7))
    damaged = bytes(raw[:at]) + bytes([data.draw(st.integers(0, 255))]) + bytes(raw[at + 1 :])
    other = folder.with_name("damaged")
    other.mkdir(exist_ok=True)
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    (other / "model.safetensors").write_bytes(damaged)
    with contextlib.suppress(WeightsError):
        load(other)


def test_missing_tensor(folder: Path) -> None:
    with_tensors(folder, lambda t: t.pop(QUERY))
    refused(folder, "1 of 18 encoder tensors are missing", QUERY)


def test_unexpected_tensor_in_the_encoder(folder: Path) -> None:
    name = QUERY.replace("q.weight", "q.lora_A.weight")
    with_tensors(folder, lambda t: t.update({name: torch.zeros(2, 64)}))
    refused(folder, "not a T5 encoder's", name)


def test_wrong_shape(folder: Path) -> None:
    with_tensors(folder, lambda t: t.update({QUERY: t[QUERY][:32]}))
    refused(folder, QUERY, "(32, 64)", "(64, 64)")


def test_config_of_another_size(folder: Path) -> None:
    edit(folder, vocab_size=200)
    refused(folder, "shared.weight", "(100, 64)", "(200, 64)")
    edit(folder, vocab_size=100, num_layers=3)
    refused(folder, "2 encoder blocks", "num_layers is 3")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_tensor(folder: Path, dtype: torch.dtype) -> None:
    with_tensors(folder, lambda t: t.update({QUERY: t[QUERY].to(dtype)}))
    refused(folder, QUERY, "quantised", "F32")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [QUERY, "shared.weight"])
def test_not_finite(folder: Path, name: str, value: float) -> None:
    with_tensors(folder, lambda t: t[name].view(-1).__setitem__(3, value))
    refused(folder, name, "1 values that are NaN or infinite")


def test_missing_embedding(folder: Path) -> None:
    with_tensors(folder, lambda t: t.pop("shared.weight"))
    refused(folder, "token embedding is missing")


def test_decoder_in_part(folder: Path) -> None:
    gone = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
    with_tensors(folder, lambda t: t.pop(gone))
    refused(folder, gone, "partial")


def test_wrong_count(folder: Path) -> None:
    refused(folder, f"{FULL:,}", "59,000,000", expected_full_params=(59_000_000, 62_000_000))


def test_strange_tensors_outside_the_encoder_are_noted(folder: Path) -> None:
    with_tensors(folder, lambda t: t.update({"qa_outputs.weight": torch.zeros(2, 64)}))
    notes = [check for check in load(folder)[1].checks if check.startswith("note:")]
    assert "qa_outputs.weight" in notes[0]


def test_index_that_leaves_its_folder(folder: Path) -> None:
    shard(folder, "safetensors", save_file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {QUERY: "../secret.safetensors"}}))
    refused(folder, "outside its folder")
    index.write_text("{}")
    refused(folder, "no index of shards")


@pytest.mark.parametrize("prefix", ["transformer.", "model.", "t5.encoder.", ""])
def test_foreign_prefixes_are_named(folder: Path, prefix: str) -> None:
    tensors = {f"{prefix}{n.removeprefix('encoder.')}": t for n, t in full_model(TINY).items()}
    save_file(tensors, folder / "model.safetensors")
    refused(folder, f" {prefix}final_layer_norm.weight", "save_pretrained")


def test_config_with_too_few_layers(folder: Path) -> None:
    edit(folder, num_layers=1)
    refused(folder, "2 encoder blocks", "num_layers is 1")


def test_variant_alone_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    refused(folder, "model.fp16.safetensors", "renamed to model.safetensors")


@pytest.mark.parametrize("name", [QUERY, "encoder.final_layer_norm.weight"])
def test_overflow_in_the_cast_is_found(folder: Path, name: str) -> None:
    with_tensors(folder, lambda t: t.update({name: t[name].double().fill_(1e300)}))
    refused(folder, name, "NaN or infinite")


def test_pin_of_a_single_file_and_of_shards(folder: Path) -> None:
    one = load(folder)[1]
    assert one.weights_sha256 == one.files["model.safetensors"]
    shard(folder, "safetensors", save_file)
    several = load(folder)[1]
    load(folder, expected_sha256=several.weights_sha256)
    for pin in (*several.files.values(), one.weights_sha256):
        refused(folder, "backbone.sha256", expected_sha256=pin)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards", "config.json", "directory"])
@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(36, "name too long")])
def test_unreadable_is_one_message(
    folder: Path, kind: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "shards":
        shard(folder, "safetensors", save_file)
    if kind == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    word = {"config.json": "config.json", "shards": "-00001-of", "bin": ".bin"}.get(kind, "model.s")

    def denied(true: Callable[..., Any]) -> Callable[..., Any]:
        def method(path: Path, *args: Any, **kwargs: Any) -> Any:
            if path == folder if kind == "directory" else word in path.name:
                raise error
            return true(path, *args, **kwargs)

        return method

    names = ("iterdir",) if kind == "directory" else ("open", "read_bytes")
    for name in names:
        monkeypatch.setattr(Path, name, denied(getattr(Path, name)))
    refused(folder, "cannot be read", "backbone.path")


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "config.json", "index"])
def test_a_directory_in_a_files_place_is_one_message(folder: Path, kind: str) -> None:
    name = "model.safetensors.index.json" if kind == "index" else kind
    for path in (folder / name, folder / ("config" if kind == "config.json" else WEIGHTS_FILE)):
        if path.is_file():
            path.unlink()
    (folder / name).mkdir()
    refused(folder, name)


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b"])
def test_impossible_paths_are_one_message(path: str) -> None:
    refused(Path(path))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_no_damage_of_any_file_escapes_as_another_error(
    folder: Path, ending: str, sharded: bool
) -> None:
    """Flipped, cut and overwritten bytes; `benchmarks.weight_faults` does thousands."""
    draw = random.Random(0)
    save = {"safetensors": save_file, "bin": torch.save}[ending]
    if sharded:
        shard(folder, ending, save)
    elif ending == "bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for i in range(15):
            at = draw.randrange(min(len(whole), 3000))
            changed = whole[:at] if i % 5 == 0 else whole[:at] + b"\x95" + whole[at + 1 :]
            file.write_bytes(changed)
            with contextlib.suppress(WeightsError):
                load(folder)
        file.write_bytes(whole)
