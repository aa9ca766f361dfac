"""`python -m t5ts.dashboard PROJECT`: the comparison of arms as a saved W&B view."""

import argparse
import secrets
import sys
from typing import Any

from t5ts.command import finish
from t5ts.errors import UserError
from t5ts.tracking import GLOBAL_STEP, choose_mode, one_line

#: Parts of the model with their own panel, from input to output; deeper blocks share one.
COMPONENTS = ["patch", *(f"block_{i}" for i in range(6)), "final_norm", "head", "total"]
DEEPER_BLOCKS = r"block_([6-9]|\d\d)"
#: Settings and results: axes of the parallel coordinates and columns of the run table.
SETTINGS = ["init.name", "freeze.name", "freeze.unfreeze_epoch", "optim.lr"]
SETTINGS.append("optim.encoder_lr_scale")
RESULTS = ["objective", "test_loss", "test_corr"]


def workspace(entity: str, project: str, saved: str | None = None) -> Any:
    """The view of a W&B project as a wandb-workspaces object.

    `saved` is the address of a previously saved view to replace.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise UserError(
            f"the dashboard needs wandb-workspaces ({error.name} is missing): pip install"
            " 't5ts[dashboard]'."
        ) from error
    view = ws.Workspace.from_url(saved) if saved else ws.Workspace(entity=entity, project=project)
    if not saved:
        # Of its own random ids the client misreads those that end in "nw"; hexadecimal ones cannot.
        view._internal_name = f"nw-{secrets.token_hex(6)}-v"
    view.name = "t5ts: arms compared"
    layouts = [ws.SectionLayoutSettings(columns=columns) for columns in (2, 4)]
    view.sections = [
        ws.Section(name=name, panels=panels, is_open=True, layout_settings=layouts[len(panels) > 4])
        for name, panels in _panels().items()
    ]
    view.settings = ws.WorkspaceSettings(smoothing_type="none", max_runs=50)
    view.runset_settings = ws.RunsetSettings(
        groupby=[expr.Metric("JobType")],
        order=[expr.Ordering(expr.Summary("objective"), ascending=True)],
        pinned_columns=[
            *("run:displayName", "run:jobType", "run:group", "config:seed.value"),
            *("config:" + setting.replace(".", ".value.") for setting in SETTINGS),
            *(f"summary:{name}" for name in ("best_epoch", *RESULTS)),
        ],
    )
    return view


def _by_arm(title: str, metric: str, x: str = GLOBAL_STEP, **more: Any) -> Any:
    import wandb_workspaces.reports.v2 as wr

    # The job type is the arm, and the runs of one arm are its seeds.
    return wr.LinePlot(
        title=title,
        x=x,
        title_x=x,
        y=[metric] if metric else [],
        groupby="JobType",
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        smoothing_type="none",
        **more,
    )


def _panels() -> dict[str, list[Any]]:
    """Panels by the name of their section."""
    import wandb_workspaces.reports.v2 as wr

    from t5ts.analysis.figures import PICTURES

    def of_components(title: str, key: str, components: list[str], **more: Any) -> list[Any]:
        panels = [_by_arm(f"{title}: {name}", f"{key}/{name}", **more) for name in components]
        deeper = f"{key}/{DEEPER_BLOCKS}"
        return [*panels, _by_arm(f"{title}: blocks from 6", "", metric_regex=deeper, **more)]

    def media(title: str, key: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=[key])

    metrics: list[Any] = [*map(wr.Config, SETTINGS), *map(wr.SummaryMetric, RESULTS)]
    axes = [
        wr.ParallelCoordinatesPlotColumn(
            metric=metric, display_name=metric.name, log=True if metric.name == "optim.lr" else None
        )
        for metric in metrics
    ]
    pictures = ("forecast", "learning_curve", "gradient_norms")
    by = "mean and standard deviation of each arm's runs"
    return {
        f"Forecasts, {by}": [
            _by_arm("Validation loss (MSE, train-standardised)", "val_loss", "epoch"),
            _by_arm("Validation correlation (Pearson r)", "val_corr", "epoch"),
            _by_arm("Skill vs. the task's naive forecast", "val_skill", "epoch"),
            _by_arm("Training loss", "step/train_loss"),
        ],
        f"Gradient norms (L2, before clipping), {by}": of_components(
            "Gradient norm", "step/grad_norm", COMPONENTS, log_y=True
        ),
        # A line starts when its component unfreezes.
        f"Learning rates and unfreezing, {by}": of_components("Rate", "lr", COMPONENTS[:-1]),
        f"Mixed precision, {by}": [
            _by_arm("Steps with gradients that are not finite", "nonfinite_steps"),
            _by_arm("AMP: loss scale (fp16)", "amp/scale", log_y=True),
            _by_arm("AMP: skipped steps (fp16)", "amp/skipped_steps"),
        ],
        "Sweep": [wr.ParallelCoordinatesPlot(title="Settings and results", columns=axes)],
        "Runs": [
            wr.RunComparer(diff_only="split"),
            *(media(name, f"plots/{name}") for name in pictures),
        ],
        "Report (python -m t5ts.report … --wandb)": [
            media("Verdict", "report/verdict"),
            wr.WeavePanelSummaryTable(table_name="report/final_performance"),
            *(media(f"Figure: {name}", f"report/{name}") for name in PICTURES),
        ],
    }


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m t5ts.dashboard",
        description="Save the comparison of arms as a view of a W&B project: losses, correlation,"
        " gradient norms per block, learning rates and AMP by arm with seeds as bands, parallel"
        " coordinates, a run table.",
    )
    options.add_argument("project", metavar="[ENTITY/]PROJECT", help="tracker.project of the runs")
    options.add_argument("--renew", metavar="URL", help="address of a saved view to overwrite")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Save the view; the exit status is 2 for what the user can fix."""
    options = parser().parse_args(arguments)
    try:
        address = _save(options.project, options.renew)
    except UserError as error:
        print(f"t5ts: {error}", file=sys.stderr)
        return 2
    print(f"saved: {address}\n(to overwrite this one later: --renew '{address}')")
    return 0


def _save(named: str, saved: str | None) -> str:
    """Save the view in a project, [ENTITY/]PROJECT; returns its address."""
    mode, why = choose_mode("auto")
    if mode != "online":
        raise UserError(f"the dashboard is saved in W&B, which is {mode} ({why}): wandb login.")
    import wandb

    entity, _, project = named.rpartition("/")
    try:
        view = workspace(entity or str(wandb.Api().default_entity), project, saved)
        view.save()
    except UserError:
        raise
    except Exception as error:  # the client raises any error of its transport
        raise UserError(
            f"W&B rejected the dashboard of {named}: {one_line(error)}. Check the project's name"
            " (ENTITY/PROJECT), the login (wandb login) and the --renew address."
        ) from error
    return str(view.url)


def command() -> None:
    """The console script."""
    finish(main)


if __name__ == "__main__":
    command()
