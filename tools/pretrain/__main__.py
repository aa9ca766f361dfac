"""`python -m tools.pretrain COMMAND`: text in, a small pretrained T5 out.

    prepare   read, clean, split the text; train the vocabulary; encode      (minutes)
    train     span corruption, resumable                                     (an hour and more)
    evaluate  held-out losses beside two baselines
    export    the encoder as a folder that T5EncoderModel.from_pretrained loads

Each keeps its files in --work.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from t5ts.command import finish
from t5ts.errors import Interrupted, UserError


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    top = argparse.ArgumentParser(
        prog="python -m tools.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, formatter_class=formatter)
        sub.add_argument("--work", type=Path, required=True, help="folder of all files")
        return sub

    prepare = command("prepare", "read, clean and split text, train the vocabulary, encode")
    prepare.add_argument("--text", type=Path, nargs="+", required=True, help="files or folders")
    prepare.add_argument("--vocab-size", type=int, default=8192, help="ids, 100 sentinels included")
    prepare.add_argument("--held-out-share", type=float, default=0.01, help="share of sections")
    prepare.add_argument(
        "--exclude", type=Path, nargs="*", default=[], help="texts that must not be trained on"
    )

    train = command("train", "pretrain by span corruption; resumes where it stopped")
    _shape(train)
    train.add_argument("--steps", type=int, default=5000, help="length of the cosine schedule")
    train.add_argument("--stop-step", type=int, help="leave off here, to be resumed")
    train.add_argument("--batch-size", type=int, default=32, help="rows in a step")
    train.add_argument("--lr", type=float, default=2e-2, help="step of a matrix over its RMS")
    train.add_argument("--warmup", type=int, default=200, help="steps")
    train.add_argument("--min-lr-ratio", type=float, default=0.01)
    train.add_argument("--weight-decay", type=float, default=0.0)
    train.add_argument("--clip-norm", type=float, default=1.0)
    train.add_argument("--beta2", type=float, default=0.98)
    train.add_argument("--dropout", type=float, default=0.0)
    train.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    train.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    train.add_argument("--threads", type=int, help="CPU threads")
    train.add_argument("--log-every", type=int, default=20, help="steps")
    train.add_argument("--eval-every", type=int, default=250, help="steps")
    train.add_argument("--eval-rows", type=int, default=256, help="held-out rows in training")
    train.add_argument("--checkpoint-every-s", type=float, default=120.0)

    evaluate = command("evaluate", "held-out losses vs. unigram entropy and random weights")
    _shape(evaluate)
    evaluate.add_argument(
        "--held-out", type=Path, nargs="*", default=[], help="foreign texts to evaluate on as well"
    )
    evaluate.add_argument("--max-rows", type=int, help="rows of a text at most")
    evaluate.add_argument("--threads", type=int, help="CPU threads")

    export = command("export", "write the encoder with its token embedding and the tokenizer")
    _shape(export)
    export.add_argument("--out", type=Path, required=True, help="folder to write")
    export.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    return top


def _shape(sub: argparse.ArgumentParser) -> None:
    """Options that define the training, and so the matching checkpoint."""
    sub.add_argument("--run", default="run", help="folder of the run inside --work")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--input-length", type=int, default=128, help="tokens of a corrupted row")
    sub.add_argument("--d-model", type=int, default=256)
    sub.add_argument("--d-ff", type=int, default=1024)
    sub.add_argument("--d-kv", type=int, default=64)
    sub.add_argument("--num-layers", type=int, default=4, help="of encoder and decoder each")
    sub.add_argument("--num-heads", type=int, default=4)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run one command; a user's error is one line and status 2."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    from tools.pretrain import commands  # transformers takes seconds, so only now

    try:
        result = {
            "prepare": commands.prepare,
            "train": commands.train,
            "evaluate": commands.evaluate,
            "export": commands.export,
        }[options.command](options)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stop:
        print(f"t5ts: {stop}; the same command resumes from there", file=sys.stderr)
        sys.exit(130)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    finish(main)
