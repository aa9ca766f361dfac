"""The commands behind `python -m tools.pretrain`: from parsed options to objects and files."""

import argparse
import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t5ts.checkpoint import load_checkpoint
from t5ts.errors import ConfigError
from t5ts.provenance import write_json
from tools.pretrain.corpus import build_corpus, clean
from tools.pretrain.evaluate import as_dict, score, table
from tools.pretrain.export import export_encoder
from tools.pretrain.loop import LAST, LoopSettings, fit, precision
from tools.pretrain.model import Shape, build_t5, t5_config
from tools.pretrain.rows import Rows, cut_rows, load_rows
from tools.pretrain.spans import raw_length
from tools.pretrain.vocabulary import (
    EOS,
    NUM_SENTINELS,
    SPECIALS,
    Vocabulary,
    load_vocabulary,
    train_vocabulary,
)

log = logging.getLogger("t5ts")

TOKENIZER, MANIFEST = "tokenizer.json", "manifest.json"


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Text → `manifest.json`, `tokenizer.json`, `train.npy`, `held_out.npy` and `held_out.txt`."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    corpus = build_corpus(
        options.text, held_out_share=options.held_out_share, exclude=options.exclude
    )
    manifest = corpus.manifest()
    log.info("%.1f MB of text to train on", manifest["train_bytes"] / 1e6)
    vocabulary = train_vocabulary((s.text for s in corpus.train), size=options.vocab_size)
    vocabulary.tokenizer.save(str(work / TOKENIZER))
    for name, part in (("train", corpus.train), ("held_out", corpus.held_out)):
        stream = vocabulary.stream(section.text for section in part)
        np.save(work / f"{name}.npy", stream)
        manifest[f"{name}_tokens"] = len(stream)
        manifest[f"{name}_tokens_sha256"] = hashlib.sha256(stream.tobytes()).hexdigest()
    held_out = "\n\n".join(section.text for section in corpus.held_out)
    (work / "held_out.txt").write_text(held_out, encoding="utf-8")
    manifest["vocabulary_sha256"] = _sha256(work / TOKENIZER)
    write_json(work / MANIFEST, manifest)
    return {key: value for key, value in manifest.items() if key != "sources"}


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain, or resume pretraining, in `--work/--run`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    vocabulary = load_vocabulary(options.work / TOKENIZER)
    rows = _rows(options, vocabulary, "train")
    held_out = _rows(options, vocabulary, "held_out").fixed_batches(
        batch_size=options.batch_size, limit=options.eval_rows
    )
    model = build_t5(
        _shape(options), vocab_size=vocabulary.size, dropout=options.dropout, seed=options.seed
    )
    return fit(
        model,
        rows,
        held_out,
        settings=LoopSettings(
            seed=options.seed,
            total_steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            warmup_steps=options.warmup,
            min_lr_ratio=options.min_lr_ratio,
            weight_decay=options.weight_decay,
            clip_norm=options.clip_norm,
            beta2=options.beta2,
            autocast=precision(device, options.precision),
            log_every=options.log_every,
            eval_every=options.eval_every,
            checkpoint_every_s=options.checkpoint_every_s,
            identity=_identity(options),
        ),
        folder=options.work / options.run,
        device=device,
        stop_step=options.stop_step,
    )


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Held-out losses of the last checkpoint, to the terminal and to `evaluation.json`."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device("auto")
    vocabulary = load_vocabulary(options.work / TOKENIZER)
    fresh, trained = (
        build_t5(_shape(options), vocab_size=vocabulary.size, dropout=0.0, seed=options.seed)
        for _ in range(2)
    )
    tensors, state = _read_run(options)
    trained.load_state_dict(tensors, strict=False)
    rows = {"corpus, held-out part": _rows(options, vocabulary, "held_out")}
    for path in options.held_out:
        text = "\n".join(map(clean, path.read_text(encoding="utf-8").splitlines()))
        rows[path.name] = cut_rows(
            vocabulary.stream([text]),
            length=raw_length(options.input_length),
            first_sentinel=vocabulary.first_sentinel,
            eos=EOS,
            seed=options.seed,
        )
    is_text = torch.ones(vocabulary.size, dtype=torch.bool)
    is_text[: len(SPECIALS)] = is_text[-NUM_SENTINELS:] = False
    scores = {
        name: score(
            {"model": trained, "random_init": fresh},
            part.fixed_batches(batch_size=64, limit=options.max_rows),
            is_text=is_text,
            device=device,
        )
        for name, part in rows.items()
    }
    log.info("%s", table(scores))
    result = {
        "step": state["step"],
        "input_tokens": state["input_tokens"],
        "seconds": state["seconds"],
        "legs": state["legs"],
        "scores": {
            name: {part: as_dict(s) for part, s in parts.items()} for name, parts in scores.items()
        },
    }
    write_json(options.work / options.run / "evaluation.json", result)
    return result


def export(options: argparse.Namespace) -> dict[str, Any]:
    """The last checkpoint's encoder as a folder for `T5EncoderModel.from_pretrained`."""
    vocabulary = load_vocabulary(options.work / TOKENIZER)
    tensors, state = _read_run(options)
    files = export_encoder(
        options.out,
        tensors,
        t5_config(_shape(options), vocab_size=vocabulary.size, dropout=0.1),
        vocabulary,
        dtype=torch.bfloat16 if options.dtype == "bf16" else torch.float32,
    )
    return {
        "step": state["step"],
        "bytes": {path.name: path.stat().st_size for path in files},
        "sha256": {path.name: _sha256(path) for path in files},
    }


def _read_run(options: argparse.Namespace) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The last checkpoint's parameters by transformers' names, and its state."""
    path = options.work / options.run / LAST
    tensors, state = load_checkpoint(path)
    if state["identity"] != _identity(options):
        raise ConfigError(
            f"{path} was trained with another shape, seed, vocabulary or row length than these "
            "options say; give those that `train` was given."
        )
    prefix = "model/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }, state


def _shape(options: argparse.Namespace) -> Shape:
    return Shape(
        d_model=options.d_model,
        d_ff=options.d_ff,
        d_kv=options.d_kv,
        num_layers=options.num_layers,
        num_heads=options.num_heads,
    )


def _rows(options: argparse.Namespace, vocabulary: Vocabulary, part: str) -> Rows:
    return load_rows(
        options.work / f"{part}.npy",
        length=raw_length(options.input_length),
        first_sentinel=vocabulary.first_sentinel,
        eos=EOS,
        seed=options.seed,
    )


def _identity(options: argparse.Namespace) -> str:
    """What a checkpoint belongs to: the vocabulary, the tokens, the rows, the shape, the seed."""
    parts = [
        _sha256(options.work / TOKENIZER),
        _sha256(options.work / "train.npy"),
        str(options.input_length),
        str(_shape(options)),
        str(options.seed),
    ]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:10]


def _device(chosen: str) -> torch.device:
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no GPU: use --device cpu.")
    has_gpu = torch.cuda.is_available()
    return torch.device("cuda" if has_gpu and chosen != "cpu" else "cpu")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
