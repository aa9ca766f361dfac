"""`python -m t5ts.analysis.compare DIR …`: the arms of finished runs side by side, a table each.

Runs are compared within a condition: everything but the encoder, its weights' origin, its freezing
and the seed is equal. An arm's figures are means over its seeds; arms that differ in `init` alone
are compared seed by seed.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from t5ts.analysis.results import Result, read_result
from t5ts.config import NOT_IDENTITY
from t5ts.errors import DataError, UserError

CONFIDENCE = 0.95
#: The init that the others of its backbone and freezing are compared with.
REFERENCE = "random"
#: Groups that make an arm.
ARM = ("backbone", "init", "freeze")
Leaves = dict[str, str]  # dotted key → value as JSON


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its settings, as dotted keys without the seed, and its result."""

    settings: Leaves
    result: Result

    def part(self, *, arm: bool) -> Leaves:
        """The settings that make the arm, or all others."""
        return {k: v for k, v in self.settings.items() if (k.split(".")[0] in ARM) == arm}

    def value(self, metric: str) -> float:
        """A metric of the selected checkpoint.

        Raises:
            DataError: if the run has no such metric.
        """
        if metric not in self.result.metrics:
            known = ", ".join(sorted(self.result.metrics))
            raise DataError(f"--metric {metric} is unknown; allowed: {known}.")
        return self.result.metrics[metric]


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], int]:
    """The finished runs in and below some folders, and the number of unfinished ones.

    Raises:
        DataError: if a folder does not exist, or no run in them is finished.
    """
    runs, unfinished = [], 0
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder} is not a folder: give run directories or what holds them.")
        for path in sorted(folder.rglob("provenance.json")):
            run_dir = path.parent
            if run_dir.name.startswith("previous-"):
                continue  # put aside by train.resume=never
            if not (run_dir / "result.json").is_file():
                unfinished += 1
                continue
            config = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
            assert isinstance(config, dict)
            settings = {k: v for k, v in _leaves(config).items() if _is_setting(k)}
            runs.append(Run(settings=settings, result=read_result(run_dir / "result.json")))
    if not runs:
        named = ", ".join(map(str, folders))
        raise DataError(f"no finished run in {named} ({unfinished} unfinished).")
    return runs, unfinished


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval (NaN for fewer than two values).

    Source: Student 1908: t(0.975, n − 1) · sd / √n, sd with n − 1 in its denominator.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, math.nan
    from scipy.stats import t  # half a second, and not needed for a single seed

    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / n)


def tables(runs: Sequence[Run], *, metric: str) -> str:
    """Markdown: a table for each condition, a row for each arm and for seasonal naive.

    Raises:
        DataError: if a run has no such metric, or two runs of an arm have the same seed.
    """
    conditions = _grouped(runs, arm=False)
    titles = _labels(list(conditions), [runs[0].result.data for runs in conditions.values()])
    return "\n\n".join(
        _table(title, group, metric=metric)
        for title, group in zip(titles, conditions.values(), strict=True)
    )


def _table(title: str, runs: Sequence[Run], *, metric: str) -> str:
    arms = _grouped(runs, arm=True)
    names = _labels(list(arms), [group[0].result.arm for group in arms.values()])
    by_seed = [_by_seed(group, name) for group, name in zip(arms.values(), names, strict=True)]
    lines = [
        f"**{title}**",
        "",
        f"| arm | seeds | {metric} | before training | best epoch | against init={REFERENCE} |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, seeds, key in zip(names, by_seed, arms, strict=True):
        reference = _reference(key, dict(zip(arms, by_seed, strict=True)))
        results = [run.result for run in seeds.values()]
        untrained = [result.initial.get(metric, math.nan) for result in results]
        lines.append(
            f"| {name} | {len(seeds)} | {_text([run.value(metric) for run in seeds.values()])} | "
            f"{_number(_mean(untrained))} | {_mean([r.best_epoch for r in results]):.3g} | "
            f"{_difference(seeds, reference, metric)} |"
        )
    split, _, kind = metric.partition("_")
    naive = runs[0].result.baselines.get(split, {}).get("seasonal_naive", {})
    if kind in naive:
        lines.append(f"| seasonal naive | – | {naive[kind]:.4f} | – | – | – |")
    return "\n".join(lines)


def _reference(arm: str, by_arm: Mapping[str, dict[int, Run]]) -> dict[int, Run] | None:
    """The arm that differs from this one in its init alone, which is the reference."""

    def without_init(key: str) -> Leaves:
        return {k: v for k, v in json.loads(key).items() if not k.startswith("init.")}

    if json.loads(arm)["init.name"] == json.dumps(REFERENCE):
        return None
    for key, seeds in by_arm.items():
        is_reference = json.loads(key)["init.name"] == json.dumps(REFERENCE)
        if is_reference and without_init(key) == without_init(arm):
            return seeds
    return None


def _difference(seeds: Mapping[int, Run], reference: Mapping[int, Run] | None, metric: str) -> str:
    shared = sorted(set(seeds) & set(reference or {}))
    if reference is None or not shared:
        return "–"
    differences = [seeds[s].value(metric) - reference[s].value(metric) for s in shared]
    few = "" if len(shared) == len(seeds) else f" ({len(shared)} pairs)"
    return _text(differences, sign="+") + few


def _by_seed(runs: Sequence[Run], arm: str) -> dict[int, Run]:
    seeds = {run.result.seed: run for run in runs}
    if len(seeds) < len(runs):
        raise DataError(
            f"{arm}: {len(runs)} runs but {len(seeds)} seeds; the same run lies in two of these"
            " folders. Name them one by one."
        )
    return dict(sorted(seeds.items()))


def _grouped(runs: Iterable[Run], *, arm: bool) -> dict[str, list[Run]]:
    """Runs by their equal settings, as JSON, in the order of their first run."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(run.part(arm=arm), sort_keys=True)].append(run)
    return dict(groups)


def _labels(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each group's name, and the settings that tell it from another group of the same kind."""
    settings: list[Leaves] = [json.loads(key) for key in keys]
    shared = set.intersection(*(set(leaves) for leaves in settings))
    # What the name says already: it differs wherever the names do, and never apart from them.
    varying = [
        key
        for key in sorted(shared)
        if len({leaves[key] for leaves in settings}) > 1
        and any(
            len({leaves[key] for leaves, n in zip(settings, names, strict=True) if n == name}) > 1
            for name in names
        )
    ]
    return [
        " ".join([name, *(f"{key}={json.loads(leaves[key])}" for key in varying)])
        for name, leaves in zip(names, settings, strict=True)
    ]


def _leaves(node: Any, prefix: str = "") -> Leaves:
    if not isinstance(node, dict):
        return {prefix: json.dumps(node)}
    return {
        leaf: value
        for key, child in node.items()
        for leaf, value in _leaves(child, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _is_setting(key: str) -> bool:
    return key != "seed" and not any(key == n or key.startswith(f"{n}.") for n in NOT_IDENTITY)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _text(values: Sequence[float], *, sign: str = "") -> str:
    mean, half = mean_and_half_width(values)
    return f"{mean:{sign}.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m t5ts.analysis.compare",
        description="Compare the arms of finished runs: a Markdown table for each condition.",
    )
    parser.add_argument("folders", nargs="+", type=Path, help="run directories, or what holds them")
    parser.add_argument("--metric", default="val_loss", help="of the selected checkpoint")
    options = parser.parse_args(arguments)
    try:
        runs, unfinished = read_runs(options.folders)
        print(tables(runs, metric=options.metric))
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    seeds = {run.result.seed for run in runs}
    if len(seeds) == 1:
        print("\nOne seed: there is no interval, and no conclusion to draw.")
    else:
        print("\n±: 95 % intervals over seeds (Student's t); the last column is paired by seed.")
    if unfinished:
        print(f"{unfinished} unfinished runs are left out.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
