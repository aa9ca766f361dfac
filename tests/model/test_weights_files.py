"""Checkpoint folders of every format, and each way in which one can be other than it seems."""

import json
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import TINY, config_json, full_model, shard, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.checkpoint_file import read_architecture
from t5ts.model.tensors import count, encoder_shapes
from t5ts.model.weights import LoadReport, load_checkpoint

TRAINED = count(encoder_shapes(TINY))
# decoder: the encoder's tensors, and per block a cross-attention of 4 64×64 matrices and a norm
FULL = 2 * TRAINED + 100 * 64 + 2 * (4 * 64 * 64 + 64)
WEIGHTS, PICKLE, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
LORA = QUERY.replace("q.weight", "q.lora_A.weight")
NORM = "encoder.final_layer_norm.weight"
LAST_WO = "decoder.block.1.layer.2.DenseReluDense.wo.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_checkpoint(tmp_path / "t5", TINY, full_model(TINY))


def load(folder: Path, **kwargs: Any) -> tuple[dict[str, Tensor], LoadReport]:
    return load_checkpoint(path=folder, **kwargs)


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def tensors(edit: Callable[[dict[str, Tensor]], object]) -> Change:
    def change(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        edit(held)
        save_file({n: t.contiguous() for n, t in held.items()}, folder / WEIGHTS)

    return change


def stored(name: str, make: Callable[[Tensor], Tensor]) -> Change:
    return tensors(lambda held: held.update({name: make(held[name])}))


def without(name: str) -> Change:
    return tensors(lambda held: held.pop(name))


def write(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, keep: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def moved(name: str) -> Change:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def instead(name: str, make: Change) -> Change:
    """Something else at a file's path."""

    def change(folder: Path) -> None:
        for old in {name, WEIGHTS} if name != "config.json" else {name}:
            (folder / old).unlink(missing_ok=True)
        make(folder / name)

    return change


def prefixed(prefix: str) -> Change:
    def edit(held: dict[str, Tensor]) -> None:
        for name in list(held):
            held[prefix + name.removeprefix("encoder.")] = held.pop(name)

    return tensors(edit)


def pickled(folder: Path, zipped: bool = True) -> None:
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    held["encoder.embed_tokens.weight"] = held["shared.weight"]
    torch.save(held, folder / PICKLE, _use_new_zipfile_serialization=zipped)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def indexed(weight_map: Any) -> Change:
    return both(shard, write(INDEX, json.dumps({"weight_map": weight_map}).encode()))


class Malicious:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(__file__).with_name("pwned"),)


#: What is done to a good folder, and what the one message must name.
FAULTS: dict[str, tuple[Change, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "config cut": (write("config.json", b"{"), "config.json"),
    "config a list": (write("config.json", b"[]"), "config.json"),
    "bert": (config(model_type="bert"), "'bert'"),
    "no model_type": (config(model_type=None), "model_type"),
    "gptq": (config(quantization_config={"quant_method": "gptq"}), "gptq"),
    "d_model text": (config(d_model="512"), "d_model is '512'"),
    "no layers": (config(num_layers=0), "num_layers is 0"),
    "unknown feed-forward": (config(feed_forward_proj="swish"), "'swish'"),
    "a billion layers": (config(num_layers=10**9), "num_layers"),
    "act contradicts": (config(dense_act_fn="gelu_new"), "dense_act_fn"),
    "gate contradicts": (config(is_gated_act=True), "is_gated_act"),
    "another vocabulary": (config(vocab_size=200), "(200, 64)"),
    "layers too many": (config(num_layers=3), "num_layers is 3"),
    "layers too few": (config(num_layers=1), "num_layers is 1"),
    "onnx": (moved("model.onnx"), "model.onnx"),
    "variant": (moved("model.fp16.safetensors"), "model.fp16.safetensors"),
    "no weights": (moved("x.txt"), WEIGHTS),
    "LFS": (write(WEIGHTS, LFS), "git lfs pull"),
    "weights a FIFO": (instead(WEIGHTS, os.mkfifo), WEIGHTS),
    "weights a folder": (instead(WEIGHTS, Path.mkdir), WEIGHTS),
    "weights a loop": (instead(WEIGHTS, lambda path: path.symlink_to(path)), WEIGHTS),
    "weights a dead link": (instead(WEIGHTS, lambda path: path.symlink_to("gone")), WEIGHTS),
    "index a folder": (instead(INDEX, Path.mkdir), INDEX),
    **{f"cut to {n}": (cut(WEIGHTS, n), WEIGHTS) for n in (0, 4, 8, 100, 5000, -1)},
    **{f"pickle to {n}": (both(pickled, cut(PICKLE, n)), PICKLE) for n in (0, 5, 500, -1000)},
    "pickle of a dict": (
        instead(PICKLE, lambda path: torch.save({"state_dict": {"a": torch.zeros(1)}}, path)),
        "save_pretrained",
    ),
    "pickle of a sparse tensor": (
        instead(PICKLE, lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path)),
        "save_pretrained",
    ),
    "pickled code": (
        instead(PICKLE, lambda path: torch.save({"shared.weight": Malicious()}, path)),
        "could run code",
    ),
    "plain pickled code": (
        instead(PICKLE, lambda path: path.write_bytes(pickle.dumps(Malicious()))),
        PICKLE,
    ),
    "shard gone": (both(shard, lambda folder: (folder / SHARD_2).unlink()), SHARD_2),
    "shard cut": (both(shard, cut(SHARD_1, 100)), SHARD_1),
    "shard empty": (both(shard, cut(SHARD_1, 0)), SHARD_1),
    "one shard listed": (indexed({QUERY: SHARD_1}), "missing"),
    "duplicate tensors": (
        both(shard, lambda folder: save_file(full_model(TINY), folder / SHARD_2)),
        "two files",
    ),
    "index outside": (indexed({QUERY: "../secret.safetensors"}), INDEX),
    "index with NUL": (indexed({QUERY: "a\0b"}), INDEX),
    "index empty": (both(shard, write(INDEX, b"{}")), INDEX),
    "index no JSON": (both(shard, write(INDEX, b"{")), INDEX),
    "tensor missing": (without(QUERY), QUERY),
    "adapter": (tensors(lambda held: held.update({LORA: torch.zeros(2, 64)})), LORA),
    "wrong shape": (stored(QUERY, lambda t: t[:32]), "(32, 64)"),
    "as many values": (stored(QUERY, lambda t: t.reshape(32, 128)), "(32, 128)"),
    "no embedding": (without("shared.weight"), "shared.weight"),
    "decoder in part": (without(LAST_WO), "decoder"),
    "decoder short of a block": (
        tensors(lambda held: [held.pop(n) for n in list(held) if n.startswith("decoder.block.1.")]),
        "decoder",
    ),
    "decoder's depth text": (config(num_decoder_layers="2"), "num_decoder_layers"),
    "nan": (stored(QUERY, lambda t: t.index_fill(0, torch.tensor(3), torch.nan)), QUERY),
    "inf": (stored("shared.weight", lambda t: t.fill_(torch.inf)), "shared.weight"),
    "overflows float32": (stored(QUERY, lambda t: t.double().fill_(1e300)), QUERY),
    "norm overflows": (stored(NORM, lambda t: t.double().fill_(1e300)), NORM),
    "embedding of zeros": (stored("shared.weight", torch.zeros_like), "shared.weight"),
    "int8": (stored(QUERY, lambda t: t.to(torch.int8)), QUERY),
    "float8": (stored(QUERY, lambda t: t.to(torch.float8_e4m3fn)), QUERY),
    **{
        f"prefix {prefix!r}": (prefixed(prefix), f"there is {prefix}{name}")
        for prefix, name in (("t5.encoder.", "shared.weight"), ("", "final_layer_norm.weight"))
    },
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_message(folder, fault):
    change, named = FAULTS[fault]
    change(folder)
    refused(folder, named)
    assert not Path(__file__).with_name("pwned").exists()


def refused(folder: Path, *named: str, **kwargs: Any) -> None:
    with pytest.raises(WeightsError) as caught:
        load(folder, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    for part in named:
        assert part in message


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 3000, "a\0b", "nowhere", __file__])
def test_impossible_paths_are_one_message(path):
    refused(Path(path), "backbone.path")


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, PICKLE, SHARD_1, "t5"])
def test_unreadable_is_one_message(folder, name, monkeypatch):
    {SHARD_1: shard, PICKLE: pickled}.get(name, lambda _: None)(folder)

    def denied(true: Callable[..., Any], path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "denied")
        return true(path, *args, **kwargs)

    for method in ("iterdir", "open"):
        true = getattr(Path, method)
        monkeypatch.setattr(Path, method, lambda *a, true=true, **k: denied(true, *a, **k))
    refused(folder, name, "backbone.path")


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"arch": replace(TINY, d_ff=256, vocab_size=32128)}, ["d_ff is 128", "vocab_size is 100"]),
        ({"arch": replace(TINY, feed_forward_proj="gated-gelu")}, ["feed_forward_proj is 'relu'"]),
        ({"expected_sha256": "0" * 64}, ["backbone.sha256"]),
    ],
)
def test_another_checkpoint_than_the_backbone_names(folder, wanted, named):
    refused(folder, *named, **wanted)


def test_full_checkpoint_loads_with_counts_from_its_header(folder):
    state, report = load(folder, arch=TINY)
    held = full_model(TINY)
    assert all(torch.equal(state[name], held[f"encoder.{name}"]) for name in state)
    assert report.num_params_full == FULL
    assert (report.num_params_trained, report.num_params_encoder) == (TRAINED, TRAINED + 6400)
    assert set(report.files) == {"config.json", WEIGHTS}
    assert report.weights_sha256 == report.files[WEIGHTS]
    rms = held["shared.weight"].double().square().mean().sqrt().item()
    assert report.embedding_rms == pytest.approx(rms)
    assert not [check for check in report.checks if check.startswith("note:")]


def test_old_configs_take_t5s_defaults(folder):
    old = config_json(TINY, feed_forward_proj=None, relative_attention_max_distance=None)
    (folder / "config.json").write_text(json.dumps(old))
    assert read_architecture(folder) == read_architecture(str(folder)) == TINY


def test_encoder_only_checkpoint_is_allowed_if_its_config_says_so(tmp_path):
    folder = write_checkpoint(tmp_path / "t5", TINY, full_model(TINY, decoder=False))
    with pytest.raises(WeightsError, match="decoder has 0"):
        load(folder)
    config(architectures=["T5EncoderModel"])(folder)
    assert load(folder)[1].num_params_full == TRAINED + 6400


def test_tied_tensors_count_once_and_the_stale_key_never(folder):
    names = ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")
    tie = {f"{name}.weight": full_model(TINY)["shared.weight"].clone() for name in names}
    tensors(lambda held: held.update(tie))(folder)
    assert load(folder)[1].num_params_full == FULL
    config(tie_word_embeddings=False)(folder)  # v1.1: the head is its own
    assert load(folder)[1].num_params_full == FULL + 6400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_become_float32(folder, dtype):
    tensors(lambda held: held.update({n: t.to(dtype) for n, t in held.items()}))(folder)
    assert {tensor.dtype for tensor in load(folder)[0].values()} == {torch.float32}


@pytest.mark.parametrize(
    ("rewrite", "files"),
    [
        (shard, 4),
        (lambda folder: shard(folder, "bin"), 4),
        (pickled, 2),
        (lambda folder: pickled(folder, zipped=False), 2),
        (write(PICKLE, b"never opened"), 2),
    ],
)
def test_every_format_holds_the_same_tensors(folder, rewrite, files):
    plain = load(folder)[1]
    rewrite(folder)
    report = load(folder)[1]
    assert report.tensors_sha256 == plain.tensors_sha256
    assert report.num_params_full == plain.num_params_full
    assert len(report.files) == files
    load(folder, expected_sha256=report.weights_sha256)
    if files == 4:  # the pin of shards is none of their own
        for pin in (*report.files.values(), plain.weights_sha256):
            refused(folder, "backbone.sha256", expected_sha256=pin)


def test_strange_tensors_outside_the_encoder_are_noted(folder):
    tensors(lambda held: held.update({"qa_outputs.weight": torch.zeros(2, 64)}))(folder)
    (note,) = [check for check in load(folder)[1].checks if check.startswith("note:")]
    assert "qa_outputs.weight" in note


@pytest.mark.parametrize("rewrite", [lambda _: None, shard, pickled])
def test_no_damage_of_any_file_escapes_as_another_error(folder, rewrite):
    """Flipped, cut and overwritten bytes; `benchmarks.weight_faults` does thousands."""
    draw, num_refused = random.Random(0), 0
    rewrite(folder)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for i in range(30):
            at = draw.randrange(min(len(whole), 3000))
            changed = whole[:at] if i % 5 == 0 else whole[:at] + b"\x95" + whole[at + 1 :]
            file.write_bytes(changed)
            try:
                load(folder)
            except WeightsError:
                num_refused += 1
        file.write_bytes(whole)
    assert num_refused > 30  # at least every cut
