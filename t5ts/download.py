"""`python -m t5ts.download`: fetch and verify a checkpoint or a data set, or list them."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t5ts.command import finish
from t5ts.config import CONF, FULL_PARAMS, SCHEMAS
from t5ts.errors import Interrupted, UserError
from t5ts.overrides import compose_config
from t5ts.schema import CheckpointBackbone

EPILOG = """examples:
  python -m t5ts.download backbone=t5_small                  download from the hub and verify
  python -m t5ts.download backbone=local backbone.path=DIR   verify a directory
  python -m t5ts.download backbone=t5_small init=chronos     the Chronos-T5 of that shape
  python -m t5ts.download data=etth1                         download a data set into the cache
  python -m t5ts.download --list                             id, size, licence, cached or not
  python -m t5ts.download --verify                           every cached checkpoint, no network

HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HTTP(S)_PROXY and T5TS_CACHE are honoured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m t5ts.download",
        description="Download and verify a checkpoint or a data set, or list the checkpoints.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="backbone=NAME, data=NAME, and their keys")
    add("--list", action="store_true", help="list every backbone and exit")
    add("--verify", action="store_true", help="verify what is cached, without network")
    add("--token", help="hub token (not stored)")
    add("--endpoint", metavar="URL", help="address of the hub or of a mirror")
    add("--proxy", metavar="URL", help="proxy for http and https, http://HOST:PORT")
    add("--cache-dir", metavar="DIR", help="the hub's cache")
    add("--offline", action="store_true", help="use the cache only")
    options = parser.parse_intermixed_args(arguments)
    if not (options.overrides or options.list or options.verify):
        parser.print_help()
        return 2
    # For the libraries, before huggingface_hub is imported.
    chosen = {
        "HF_TOKEN": options.token,
        "HF_ENDPOINT": options.endpoint,
        "HF_HUB_CACHE": options.cache_dir,
        "HF_HUB_OFFLINE": "1" if options.offline or options.verify else None,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), options.proxy),
    }
    os.environ |= {name: value for name, value in chosen.items() if value}
    logging.basicConfig(format="t5ts: %(message)s")
    logging.getLogger("t5ts").setLevel(logging.INFO)
    try:
        if options.list:
            _list()
        elif options.overrides:
            _fetch(options.overrides)
        else:
            _verify_all()
    except Interrupted as stop:
        print(f"t5ts: {stop}; run the same command again", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    return 0


def _presets() -> Iterator[CheckpointBackbone]:
    """Every backbone on the hub or packaged with t5ts."""
    for path in sorted((CONF / "backbone").glob("*.yaml")):
        values: Any = OmegaConf.load(path)
        schema = values.pop("defaults")[0].rpartition("/")[2].partition("@")[0]
        if values.get("hub_id") or values.get("sha256"):
            preset: Any = OmegaConf.to_object(OmegaConf.merge(SCHEMAS["backbone"][schema], values))
            yield preset


def _cached(backbone: CheckpointBackbone) -> Path | None:
    from t5ts.model.hub import cached_snapshot

    return cached_snapshot(str(backbone.hub_id), backbone.revision)


def _fetch(overrides: Sequence[str]) -> None:
    """Fetch what is not cached, verify it, and print what was found."""
    config, _ = compose_config(overrides)
    asked = {override.split("=")[0].split(".")[0] for override in overrides}
    if not asked & {"backbone", "data"}:
        raise UserError(f"nothing to fetch in {' '.join(overrides)}: set backbone=… or data=….")
    from t5ts.arm import architecture, load_encoder
    from t5ts.datasets import load_series
    from t5ts.model.weights import describe

    if "backbone" in asked:
        backbone = config.backbone
        if not isinstance(backbone, CheckpointBackbone) or not (backbone.hub_id or backbone.path):
            raise UserError(f"backbone={backbone.name} has no checkpoint.")
        _, report = load_encoder(config, architecture(backbone))
        print("\n".join(describe(report)))
        print(f"RMS        token embeddings {report.embedding_rms:.6g} (backbone.embedding_rms)")
    if "data" in asked:
        for key, value in load_series(config.data).fingerprint().items():
            print(f"{key:<12} {value}")


def _list() -> None:
    print(f"{'backbone':<21}{'id':<40}{'parameters':>10}  {'licence':<11} cached; card")
    for backbone in _presets():
        where = "comes with t5ts" if backbone.path else "no"
        try:
            if not backbone.path and (folder := _cached(backbone)) is not None:
                size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                where = f"{size / 1e6:.0f} MB in {folder}"
        except UserError as error:
            where = str(error)
        parameters = f"{sum(FULL_PARAMS.get(backbone.name, [0])) / 2e6:.0f} M"
        print(
            f"{backbone.name:<21}{backbone.path or backbone.hub_id:<40}{parameters:>10}"
            f"  {backbone.licence:<11} {where}; {backbone.card}"
        )


def _verify_all() -> None:
    """Verify every checkpoint that is cached or comes with t5ts."""
    present = [backbone for backbone in _presets() if backbone.path or _cached(backbone)]
    if all(backbone.path for backbone in present):
        print("no checkpoint is cached; python -m t5ts.download --list shows what is available")
    for backbone in present:
        _fetch([f"backbone={backbone.name}"])


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
