"""`python -m t5ts.download`: fetch and verify a checkpoint or a data set, or list them."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from t5ts.checks import check_overrides
from t5ts.command import finish
from t5ts.config import CONF, CheckpointBackbone, Config, from_hydra, register
from t5ts.errors import Interrupted, UserError

if TYPE_CHECKING:
    from t5ts.model.weights import LoadReport

EPILOG = """examples:
  python -m t5ts.download backbone=t5_small          fetch from the hub, verify, print the verdict
  python -m t5ts.download backbone=local backbone.path=DIR    verify a directory
  python -m t5ts.download backbone=t5_small init=chronos      the Chronos-T5 of that shape
  python -m t5ts.download data=etth1                 fetch a data set into the cache
  python -m t5ts.download --list                     every backbone: id, size, licence, cached?
  python -m t5ts.download --verify                   check every cached checkpoint, no network

HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HTTP(S)_PROXY and T5TS_CACHE are honoured."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m t5ts.download",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="backbone=…, data=…, and their keys")
    parser.add_argument("--list", action="store_true", help="list every backbone and exit")
    parser.add_argument("--verify", action="store_true", help="verify the cache, without network")
    parser.add_argument("--token", help="hub token (not stored)")
    parser.add_argument("--endpoint", help="hub address, for example of a mirror")
    parser.add_argument("--proxy", help="proxy for http and https, http://HOST:PORT")
    parser.add_argument("--cache-dir", help="hub cache directory")
    parser.add_argument("--offline", action="store_true", help="use only the cache")
    options = parser.parse_intermixed_args(arguments)
    if not (options.overrides or options.list or options.verify):
        parser.print_help()
        return 2
    _set_environment(options)
    logging.basicConfig(format="t5ts: %(message)s")
    logging.getLogger("t5ts").setLevel(logging.INFO)
    register()
    try:
        check_overrides(options.overrides)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            if options.list:
                _list(options.cache_dir)
            elif options.verify:
                _verify(options.overrides, options.cache_dir)
            else:
                _fetch(options.overrides, options)
    except Interrupted as stop:
        print(f"t5ts: {stop}; run the same command again", file=sys.stderr)
        return 130
    except (UserError, HydraException, OmegaConfBaseException) as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    return 0


def _set_environment(options: argparse.Namespace) -> None:
    """Set the libraries' environment variables, before huggingface_hub is imported."""
    if options.proxy:
        os.environ |= dict.fromkeys(
            ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), options.proxy
        )
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"


def _config(overrides: Sequence[str]) -> Config:
    return from_hydra(compose("config", overrides=list(overrides)))


def _checkpoint_configs() -> list[Config]:
    """A configuration for every backbone on the hub or packaged with t5ts."""
    names = sorted(path.stem for path in (CONF / "backbone").glob("*.yaml"))
    found = [compose("config", overrides=[f"backbone={name}"]) for name in names]
    return [
        from_hydra(config)
        for config in found
        if config.backbone.get("hub_id") or config.backbone.get("sha256")
    ]


def _fetch(overrides: Sequence[str], options: argparse.Namespace) -> None:
    config = _config(overrides)
    asked = {override.split("=")[0].split(".")[0] for override in overrides}
    if not asked & {"backbone", "data"}:
        raise UserError(f"nothing to fetch in {' '.join(overrides)}: set backbone=… or data=….")
    if "backbone" in asked:
        report = _load(
            config,
            token=options.token,
            endpoint=options.endpoint or "",
            cache_dir=options.cache_dir,
            offline=options.offline or None,
            refresh=not options.offline,
        )
        print(f"RMS        token embeddings {report.embedding_rms:.6g} (backbone.embedding_rms)")
    if "data" in asked:
        from t5ts.build import load_series

        series = load_series(config.data)
        for key, value in series.fingerprint().items():
            print(f"{key:<12} {value}")


def _with_checkpoint(config: Config) -> CheckpointBackbone:
    backbone = config.backbone
    if not isinstance(backbone, CheckpointBackbone) or not (backbone.hub_id or backbone.path):
        raise UserError(f"backbone={backbone.name} has no checkpoint.")
    return backbone


def _load(config: Config, **options: Any) -> "LoadReport":
    """Load and verify a checkpoint and print what was found."""
    from t5ts.build import architecture, load_encoder
    from t5ts.model.weights import describe

    _, report = load_encoder(config, architecture(_with_checkpoint(config)), **options)
    print("\n".join(describe(report)))
    return report


def _cached(backbone: CheckpointBackbone, cache_dir: str | None) -> Path | None:
    from t5ts.model.hub import cached_snapshot

    return cached_snapshot(str(backbone.hub_id), revision=backbone.revision, cache_dir=cache_dir)


def _list(cache_dir: str | None) -> None:
    print(f"{'backbone':<21}{'id':<40}{'parameters':>10}  {'licence':<11} cached; card")
    for backbone in map(_with_checkpoint, _checkpoint_configs()):
        where = "comes with t5ts"
        if not backbone.path:
            try:
                folder = _cached(backbone, cache_dir)
                where = "no"
                if folder is not None:
                    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                    where = f"{size / 1e6:.0f} MB in {folder}"
            except UserError as error:
                where = str(error)
        card = getattr(backbone, "card", "")
        parameters = f"{sum(backbone.full_params or [0]) / 2e6:.0f} M"
        print(
            f"{backbone.name:<21}{backbone.path or backbone.hub_id:<40}{parameters:>10}"
            f"  {backbone.licence:<11} {where}{f'; {card}' if card else ''}"
        )


def _verify(overrides: Sequence[str], cache_dir: str | None) -> None:
    """Verify the named backbone, or every one that is cached or comes with t5ts."""
    configs = [_config(overrides)] if overrides else []
    for config in [] if overrides else _checkpoint_configs():
        backbone = _with_checkpoint(config)
        if backbone.path or _cached(backbone, cache_dir):
            configs.append(config)
    if not overrides and not any(_with_checkpoint(config).hub_id for config in configs):
        print("no checkpoint is cached; python -m t5ts.download --list shows what is available")
    for config in configs:
        _load(config, cache_dir=cache_dir, offline=True)


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
