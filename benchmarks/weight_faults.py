"""Faulty checkpoints vs. the loader: `python -m benchmarks.weight_faults [FOLDER ...]`.

Each folder contains a T5 that really was trained (default: the packaged t5_tiny_en). It must be
accepted as it is and rounded to fewer bits. Partly re-initialised copies, made by transformers
itself (keys that do not load, then `save_pretrained`), and copies whose files are corrupt must be
refused with one message. Takes 5 minutes; prints counts.
"""

import json
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t5ts.errors import WeightsError
from t5ts.model.checkpoint_file import checkpoint_folder, read_architecture
from t5ts.model.tensors import init_law
from t5ts.model.weights import load_checkpoint

NUM_DAMAGED = 300  # byte-damaged copies of each file


def write(source: Path, target: Path, tensors: dict[str, Tensor]) -> Path:
    """A checkpoint with the source's config and these tensors."""
    target.mkdir(parents=True)
    shutil.copy(source / "config.json", target)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def rounded(tensor: Tensor, kind: str) -> Tensor:
    """The tensor after a trip through another format."""
    if kind.startswith("int8"):
        rows = kind == "int8 rows" and tensor.dim() == 2
        largest = tensor.abs().amax(1, keepdim=True) if rows else tensor.abs().max()
        step = largest.clamp_min(1e-12) / 127
        return (tensor / step).round() * step
    return tensor.to(getattr(torch, kind)).float()


def key_faults(folder: Path) -> dict[str, str]:
    """Name of each fault and the pattern of the keys that do not load."""
    arch = read_architecture(folder)
    last = arch.num_layers - 1
    faults = {
        "block 0": r"block\.0\.",
        f"block {last}": rf"block\.{last}\.",
        "all blocks but 0": r"block\.[1-9]",
        "all blocks but the last": rf"block\.(?!{last}\.)",
        "all feed-forwards": "DenseReluDense",
        "all q, k, v, o": r"SelfAttention\.[qkvo]",
        "all of block 1 but the norms": r"block\.1\..*(Attention|Dense)",
        "final norm": "final_layer_norm",
        "all": "",
    }
    faults |= {f"all {part}": rf"\.{part}\.weight" for part in "qkvo"}
    matrices = [name for name in init_law(arch) if "bias" not in name]
    return faults | {f"one matrix: {name}": re.escape(name) for name in matrices}


def reinitialised(folder: Path, target: Path, pattern: str, factor: float) -> Path:
    """What transformers saves after the keys that match did not load."""
    from transformers import T5EncoderModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kept = {
        name: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if not (name.startswith("encoder.") and re.search(pattern, name))
    }
    part = write(folder, target.with_name("part"), kept)
    config = json.loads((part / "config.json").read_text())
    config["initializer_factor"] = factor
    (part / "config.json").write_text(json.dumps(config))
    T5EncoderModel.from_pretrained(part).save_pretrained(target)
    shutil.rmtree(part)
    return target


def other_faults(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Faults that no loader makes, but editing and merging do."""
    for name in ("encoder.final_layer_norm.weight", "encoder.block.0.layer.1.layer_norm.weight"):
        yield "zero norm", state | {name: torch.zeros_like(state[name])}


def is_refused(load: Callable[[], object]) -> bool:
    """Whether loading raises the one error that users see; any other escapes."""
    try:
        load()
    except WeightsError as error:
        return "\n" not in str(error)
    return False


def judge(folder: Path, work: Path) -> Counter[str]:
    """Count right and wrong answers for one trained checkpoint."""
    state = load_file(folder / "model.safetensors")
    state = {name: tensor.float() for name, tensor in state.items()}
    counts: Counter[str] = Counter()

    def ask(name: str, path: Path, *, wanted: bool) -> None:
        right = is_refused(lambda: load_checkpoint(path=path)) == wanted
        counts[("right" if right else "WRONG") + (" refused" if wanted else " accepted")] += 1
        if not right:
            print(f"  wrong: {folder.name}, {name}")
        shutil.rmtree(path)

    for kind in ("float32", "bfloat16", "float16", "int8", "int8 rows"):
        tensors = {name: rounded(tensor, kind) for name, tensor in state.items()}
        ask(kind, write(folder, work / "whole", tensors), wanted=False)
    for name, pattern in key_faults(folder).items():
        for factor in (1.0, 0.05):
            path = reinitialised(folder, work / "fresh", pattern, factor)
            ask(f"{name}, factor {factor}", path, wanted=True)
    for name, tensors in other_faults(state):
        ask(name, write(folder, work / "other", tensors), wanted=True)
    return counts


def damage(work: Path) -> Counter[str]:
    """Flip, cut and overwrite bytes of each kind of file; any error but one message escapes."""
    from tests.hub_server import TINY, full_model, write_checkpoint

    draw = random.Random(0)
    counts: Counter[str] = Counter()
    tensors = full_model(TINY)
    kinds = {
        name: write_checkpoint(work / name, TINY, tensors) for name in ("safetensors", "bin", "zip")
    }
    for name in ("bin", "zip"):
        (kinds[name] / "model.safetensors").unlink()
        torch.save(
            tensors,
            kinds[name] / "pytorch_model.bin",
            _use_new_zipfile_serialization=name == "zip",
        )
    kinds["sharded"] = sharded = write_checkpoint(work / "sharded", TINY, tensors)
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for kind, path in kinds.items():
        for file in sorted(path.iterdir()):
            whole = file.read_bytes()
            for i in range(NUM_DAMAGED):
                at = draw.randrange(min(len(whole), 4000) if i % 2 else len(whole))
                changed = bytearray(whole)
                if i % 5 == 0:
                    changed = changed[:at]
                else:
                    changed[at : at + draw.choice((1, 1, 8))] = draw.randbytes(1)
                file.write_bytes(changed)
                try:
                    refused = is_refused(lambda path=path: load_checkpoint(path=path))
                    counts["refused" if refused else "loaded (values only, or no change)"] += 1
                except Exception as error:
                    counts[f"ESCAPED: {type(error).__name__}"] += 1
                    print(f"  escaped: {kind}/{file.name}: {error!r:.200}")
            file.write_bytes(whole)
    return counts


def main(folders: list[str]) -> None:
    """Judge each folder, then damage files."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for folder in folders:
            print(folder, dict(judge(checkpoint_folder(folder), work)), flush=True)
        print("damaged files", dict(damage(work)))


if __name__ == "__main__":
    main(sys.argv[1:] or ["packaged:t5_tiny_en"])
