"""`python -m t5ts.dashboard PROJECT`: the comparison of arms as a W&B workspace."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5ts.command import finish
from t5ts.config import NOT_IDENTITY
from t5ts.errors import UserError
from t5ts.tracking import choose_mode

#: The view's name in the project; its id follows from it, so that saving again renews that view.
VIEW = "t5ts: arms compared"
#: What the panels show when neither runs nor the project can be asked: a run of backbone=t5_small.
USUAL_COMPONENTS = ("patch", *(f"block_{i}" for i in range(6)), "final_norm", "head", "total")
USUAL_PARAMETERS = (
    "freeze.name",
    "freeze.unfreeze_epoch",
    "init.name",
    "optim.encoder_lr_scale",
    "optim.lr",
)
#: Final metrics: the last axes of the parallel coordinates and columns of the run table.
RESULTS = ("objective", "test_loss", "test_corr")
#: Groups of which a parameter's name says everything; the rest follows from it.
_BY_NAME = ("backbone.", "init.")
#: What says nothing of a result, besides what cannot change a number.
_LEFT_OUT = (*NOT_IDENTITY, "debug.")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What the compared runs log and are swept over.

    Attributes:
        components: Parts of the model with a gradient norm, `total` among them.
        parameters: Dotted config keys that differ between the runs, less the seed.
    """

    components: tuple[str, ...] = USUAL_COMPONENTS
    parameters: tuple[str, ...] = USUAL_PARAMETERS


def logged_by(configs: Sequence[Mapping[str, Any]], metrics: Iterable[str]) -> Logged:
    """What runs have in common and differ in.

    Args:
        configs: A flat config with dotted keys per run.
        metrics: Names of everything that any of them logged.
    """
    components = {m.removeprefix("grad_norm/") for m in metrics if m.startswith("grad_norm/")}
    keys = {key for config in configs for key in config}
    varying = [
        key
        for key in keys
        if key != "seed"
        and not key.startswith(_LEFT_OUT)
        and not (key.startswith(_BY_NAME) and not key.endswith(".name"))
        and len({json.dumps(config.get(key), sort_keys=True) for config in configs}) > 1
    ]
    return Logged(
        components=tuple(sorted(components, key=_from_input_to_output)) or USUAL_COMPONENTS,
        parameters=tuple(sorted(varying)) or USUAL_PARAMETERS,
    )


def _from_input_to_output(component: str) -> tuple[int, int, str]:
    order = ["patch", "stem", "block", "final_norm", "head", "total"]
    stem, _, number = component.partition("_") if component != "final_norm" else (component, "", "")
    place = order.index(stem) if stem in order else order.index("final_norm")
    return place, int(number) if number.isdigit() else 0, component


def workspace(project: str, logged: Logged, *, entity: str = "") -> Any:
    """The view as a wandb-workspaces object; the same arguments give the same JSON.

    Args:
        project: Name of the W&B project.
        logged: What its runs log.
        entity: Its owner; empty until it is known.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    ws, wr = _library()
    from wandb_workspaces import expr

    from t5ts.analysis.figures import PICTURES

    def by_arm(title: str, metric: str, x: str, *, log: bool = False) -> Any:
        # The job type is the arm, and the runs of one arm are its seeds.
        return wr.LinePlot(
            title=title,
            x=x,
            y=[metric],
            title_x=x,
            log_y=log or None,
            groupby="JobType",
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            smoothing_type="none",
        )

    def axis(metric: Any, *, log: bool = False) -> Any:
        return wr.ParallelCoordinatesPlotColumn(
            metric=metric, display_name=metric.name, log=log or None
        )

    def rates(parameter: str) -> bool:
        return parameter in ("optim.lr", "optim.weight_decay")

    components = logged.components
    parts = [c for c in components if c != "total"]
    by = "mean and standard deviation of each arm's runs"
    content: dict[str, list[Any]] = {
        f"Forecasts, {by}": [
            by_arm("Validation loss (MSE, train-standardised)", "val_loss", "epoch"),
            by_arm("Validation correlation (Pearson r)", "val_corr", "epoch"),
            by_arm("Skill against the task's naive forecast", "val_skill", "epoch"),
            by_arm("Training loss", "step/train_loss", "step"),
        ],
        f"Gradient norms (L2, before clipping), {by}": [
            by_arm(f"Gradient norm: {c}", f"step/grad_norm/{c}", "step", log=True)
            for c in components
        ],
        f"Learning rates, {by}": [by_arm(f"Rate: {c}", f"lr/{c}", "step") for c in parts],
        f"Mixed precision, {by}": [
            by_arm("Steps with gradients that are not finite", "nonfinite_steps", "step"),
            by_arm("AMP: loss scale (fp16)", "amp/scale", "step", log=True),
            by_arm("AMP: skipped steps (fp16)", "amp/skipped_steps", "step"),
        ],
        "Sweep": [
            wr.ParallelCoordinatesPlot(
                title="Settings and results",
                columns=[
                    *(axis(wr.Config(p), log=rates(p)) for p in logged.parameters),
                    *(axis(wr.SummaryMetric(name)) for name in RESULTS),
                ],
            )
        ],
        "Runs": [
            wr.RunComparer(diff_only="split"),
            wr.MediaBrowser(title="Forecast against truth", media_keys=["plots/forecast"]),
            wr.MediaBrowser(title="Learning curve", media_keys=["plots/learning_curve"]),
            wr.MediaBrowser(title="Gradient norms", media_keys=["plots/gradient_norms"]),
        ],
        "Report (python -m t5ts.report … --wandb)": [
            wr.MediaBrowser(title="Verdict", media_keys=["report/verdict"]),
            wr.WeavePanelSummaryTable(table_name="report/final_performance"),
            *(
                wr.MediaBrowser(title=f"Figure: {name}", media_keys=[f"report/{name}"])
                for name in PICTURES
            ),
        ],
    }
    sections = []
    for name, panels in content.items():
        for number, panel in enumerate(panels):
            panel._id = _stable(name, str(number))  # the library draws it at random
        sections.append(
            ws.Section(
                name=name,
                panels=panels,
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=2 if len(panels) < 5 else 4),
            )
        )
    view = ws.Workspace(
        entity=entity,
        project=project,
        name=VIEW,
        sections=sections,
        settings=ws.WorkspaceSettings(smoothing_type="none", max_runs=50),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("JobType")],
            order=[expr.Ordering(expr.Summary("objective"), ascending=True)],
            pinned_columns=[
                "run:displayName",
                "run:jobType",
                "run:group",
                "config:seed.value",
                *(_column(parameter) for parameter in logged.parameters),
                "summary:best_epoch",
                *(f"summary:{name}" for name in RESULTS),
            ],
        ),
    )
    view._internal_name = f"nw-{_stable(VIEW)}-v"
    view._internal_runset_id = _stable(VIEW, "runs")
    return view


def _column(parameter: str) -> str:
    group, dot, rest = parameter.partition(".")
    return f"config:{group}.value{dot}{rest}"


def _stable(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:11]


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ModuleNotFoundError as error:
        raise UserError(
            f"the dashboard needs wandb-workspaces ({error.name} is missing): pip install"
            " 't5ts[dashboard]'."
        ) from error
    return ws, wr


def as_json(view: Any) -> str:
    """The view as W&B stores it."""
    model = view._to_model()
    content = {
        "entity": model.entity,
        "project": model.project,
        "name": model.name,
        "displayName": model.display_name,
        "spec": model.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    return json.dumps(content, indent=1) + "\n"


def logged_in_directories(dirs: Sequence[Path]) -> Logged:
    """What the runs at or below some directories log.

    Raises:
        DataError: if there is no run.
    """
    from t5ts.analysis.study import collect

    runs = collect(dirs).runs
    return logged_by([r.config for r in runs], {name for r in runs for name in r.evals})


def logged_in_project(entity: str, project: str) -> Logged:
    """What the runs of a W&B project log."""
    import wandb

    configs, metrics = [], set()
    for run in wandb.Api().runs(f"{entity}/{project}"):
        if run.job_type == "report":
            continue
        configs.append(_flat(run.config))
        metrics |= {str(name) for name in run.summary.keys()}  # noqa: SIM118 - W&B's own mapping
    return logged_by(configs, metrics)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def save(project: str, logged: Logged | None, *, entity: str | None) -> str:
    """Save the view in its project, over the one that was saved before; returns its address.

    Args:
        project: Name of the W&B project.
        logged: What its runs log; None asks the project.
        entity: Its owner; None is the account's own.

    Raises:
        UserError: if there is no such project, or W&B refuses.
    """
    import wandb
    from wandb_workspaces.workspaces import internal

    try:
        owner = entity or str(wandb.Api().default_entity)
        found = logged or logged_in_project(owner, project)
        view = workspace(project, found, entity=owner)
        view._internal_id = _saved_before(internal, owner, project, view._internal_name)
        view.save()
        return str(view.url)
    except UserError:
        raise
    except Exception as error:  # the client raises whatever its transport does
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"W&B did not take the dashboard of {entity + '/' if entity else ''}{project}:"
            f" {reason}. Check the project's name (ENTITY/PROJECT) and the login (wandb login), or"
            " write the view with --dry-run."
        ) from error


def _saved_before(internal: Any, entity: str, project: str, name: str) -> str:
    """The id of the view of that name; empty if the project has none yet."""
    try:
        bare = internal._internal_name_to_url_query_str(name)  # as an address has it
        return str(internal.get_view_dict(entity, project, bare)["id"])
    except ValueError as error:  # the library's only sign for both
        if "Workspace" in str(error):
            return ""
        raise UserError(
            f"there is no W&B project {entity}/{project}, or this account may not see it. Give"
            " ENTITY/PROJECT; runs make it: tracker.project=NAME, online or with wandb sync."
        ) from error


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    made = argparse.ArgumentParser(
        prog="python -m t5ts.dashboard",
        description="Save the comparison of arms as a view of a W&B project: losses, correlation,"
        " gradient norms per block, learning rates and AMP by arm with seeds as bands, parallel"
        " coordinates, a run table. Saving again renews that view. Not logged in, it writes the"
        " view's JSON instead.",
    )
    made.add_argument("project", metavar="[ENTITY/]PROJECT", help="tracker.project of the runs")
    made.add_argument(
        "dirs",
        metavar="DIR",
        nargs="*",
        type=Path,
        help="runs that say which blocks and swept settings there are (default: the project's own"
        " runs; not logged in, those of t5_small)",
    )
    made.add_argument("--dry-run", action="store_true", help="write the JSON, ask nothing of W&B")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("dashboard.json"),
        metavar="FILE",
        help="where the JSON goes (default: %(default)s)",
    )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Save the view or write its JSON; the exit status is 2 for what the user can mend."""
    options = parser().parse_args(arguments)
    try:
        named = re.fullmatch(r"(?:([^/]+)/)?([^/\\#?%:]{1,128})", options.project)
        if named is None:
            raise UserError(
                f"{options.project!r} is no W&B project: give PROJECT or ENTITY/PROJECT, where"
                " PROJECT has none of / \\ # ? % : and at most 128 characters."
            )
        entity, project = named.groups()
        _library()
        logged = logged_in_directories(options.dirs) if options.dirs else None
        mode, why = ("offline", "--dry-run") if options.dry_run else choose_mode("auto")
        if mode == "online":
            print(f"saved: {save(project, logged, entity=entity)}")
            return 0
        view = workspace(project, logged or Logged(), entity=entity or "")
        _write(options.out, as_json(view))
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    print(f"not saved ({why}); the view's JSON: {options.out}")
    if not options.dry_run:
        print("After `wandb login` the same command saves it in the project.")
    return 0


def _write(path: Path, content: str) -> None:
    try:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"the view cannot be written to {path} ({error.strerror}): give another file with"
            " --out FILE."
        ) from error


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
