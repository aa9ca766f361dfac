"""The dashboard's panels show what runs log, and saving it again renews the same view."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import SMALL, TINY_T5
from runs import rows

from benchmarks.simulated_runs import Arm, write_run
from t5ts import dashboard
from t5ts.analysis.figures import PICTURES
from t5ts.config import Config
from t5ts.dashboard import Logged, as_json, logged_by, main, save, workspace
from t5ts.errors import UserError
from t5ts.experiment import run


@pytest.fixture(autouse=True)
def _not_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture(scope="module")
def real(composed: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of the small setting, tracked offline."""
    folder = tmp_path_factory.mktemp("study") / "run"
    changes = ["freeze=staged", "freeze.unfreeze_epoch=1", "tracker=wandb", "tracker.mode=offline"]
    run(composed(*SMALL, *TINY_T5, *changes), run_dir=folder)
    return folder


def view_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["spec"]["section"]


def panels(view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in view["panelBankConfig"]["sections"]:
        yield from section["panels"]


def test_panels_show_metrics_that_a_run_logs(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "view.json"
    assert main(["t5ts", str(real), "--dry-run", "--out", str(out)]) == 0
    shown = {}
    for panel in panels(view_of(out)):
        for metric in panel["config"].get("metrics", []):
            shown[metric] = panel["config"]
    logged = {key for row in rows(real) for key in row}
    fp16 = {"amp/scale", "amp/skipped_steps"}
    assert set(shown) - logged == fp16, (
        "a run on a CPU has no loss scale, and that alone is missing"
    )
    train = (Path(dashboard.__file__).parent / "train.py").read_text()
    assert all(f'"{name}"' in train for name in fp16)
    norms = {key for key in logged if key.startswith(("step/grad_norm/", "lr/"))}
    assert norms | {"val_loss", "val_corr"} <= set(shown)
    for config in shown.values():
        assert config["groupBy"] == "jobType"  # the arm
        assert config["groupArea"] == "stddev"  # the seeds' band
        assert config["xAxis"] in logged


def test_pictures_and_settings_are_where_wandb_looks_for_them(
    real: Path, wandb_summary: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    found = wandb_summary(real)
    out = tmp_path / "view.json"
    main(["t5ts", str(real), "--dry-run", "--out", str(out)])
    pictures = {
        key for panel in panels(view_of(out)) for key in panel["config"].get("mediaKeys", [])
    }
    assert {key for key in pictures if key.startswith("plots/")} == {
        key for key in found["summary"] if key.startswith("plots/")
    }
    # A column config:optim.value.lr is the key optim, and in its value the key lr.
    columns = view_of(out)["runSets"][0]["runFeed"]["columnPinned"]
    for column in columns:
        section, key = column.split(":", 1)
        if section == "config":
            top, _, inside = key.partition(".value")
            value = found["config"][top]
            assert not inside or inside.lstrip(".") in value
        elif section == "summary":
            assert key in found["summary"]


def test_the_same_input_gives_the_same_json(tmp_path: Path) -> None:
    for seed in range(2):
        for rate in (1e-3, 1e-4):
            arm = Arm(init="t5", freeze="staged")
            write_run(tmp_path / "runs" / f"{seed}-{rate}", arm, seed, optim__lr=rate)
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        assert main(["me/t5ts", str(tmp_path / "runs"), "--out", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    ids = [panel["__id__"] for panel in panels(view_of(files[0]))]
    assert len(set(ids)) == len(ids)


def test_axes_are_the_settings_that_differ(tmp_path: Path) -> None:
    for seed in range(2):
        for rate in (1e-3, 1e-4):
            for init in ("t5", "random"):
                arm = Arm(init=init, freeze="staged")
                folder = tmp_path / "runs" / f"{init}-{seed}-{rate}"
                write_run(folder, arm, seed, optim__lr=rate)
    out = tmp_path / "view.json"
    main(["t5ts", str(tmp_path / "runs"), "--out", str(out)])
    (plot,) = (p for p in panels(view_of(out)) if p["viewType"] == "Parallel Coordinates Plot")
    assert [column["accessor"] for column in plot["config"]["columns"]] == [
        "config:init.value.name",
        "config:optim.value.lr",
        "summary:objective",
        "summary:test_loss",
        "summary:test_corr",
    ]


def test_what_changes_no_number_is_no_axis() -> None:
    configs = [
        {
            "claims": [f"init={init}"],
            "train.reuse_dir": init,
            "tracker.group": init,
            "init.name": init,
        }
        for init in ("t5", "random")
    ]
    assert logged_by(configs, []).parameters == ("init.name",)


def test_the_reports_verdict_and_every_figure_have_a_panel(tmp_path: Path) -> None:
    out = tmp_path / "view.json"
    main(["t5ts", "--out", str(out)])
    keys = {key for panel in panels(view_of(out)) for key in panel["config"].get("mediaKeys", [])}
    assert {key for key in keys if key.startswith("report/")} == {
        f"report/{name}" for name in ("verdict", *PICTURES)
    }


def test_components_go_from_input_to_output() -> None:
    names = ["total", "head", "block_10", "final_norm", "block_2", "patch", "stem"]
    found = logged_by([{}], [f"grad_norm/{name}" for name in names] + ["val_loss"])
    assert found.components == (
        "patch", "stem", "block_2", "block_10", "final_norm", "head", "total",
    )  # fmt: skip


def test_not_logged_in_the_json_is_written_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "view.json"
    assert main(["t5ts", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["project"] == "t5ts"
    said = capsys.readouterr().out
    assert "not saved (not logged in)" in said
    assert "wandb login" in said


class Server:
    """What W&B answers to the library's questions; keeps views as W&B does, by id."""

    default_entity = "me"

    def __init__(self) -> None:
        self.projects = {"t5ts"}
        self.views: dict[str, dict[str, Any]] = {}

    def __call__(self, _api: Any, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
            if variables["projectName"] not in self.projects:
                return {"project": None}
            nodes = [
                {"node": {"id": key, "displayName": view["displayName"], "spec": view["spec"]}}
                for key, view in self.views.items()
                if view["name"] == variables["viewName"]
            ]
            return {"project": {"allViews": {"edges": nodes}}}
        key = variables.get("id") or f"id{len(self.views)}"
        self.views[key] = variables
        return {"upsertView": {"view": {"id": key, "name": variables["name"]}, "inserted": True}}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    import wandb
    from wandb_workspaces.workspaces import interface, internal

    made = Server()
    monkeypatch.setattr(wandb, "Api", lambda *_a, **_k: made)
    monkeypatch.setattr(internal, "execute_graphql", made)
    monkeypatch.setattr(interface, "get_app_url", lambda _api: "https://wandb.example")
    return made


def test_saving_again_renews_the_same_view(server: Server) -> None:
    first = save("t5ts", Logged(parameters=("optim.lr",)), entity=None)
    again = save("t5ts", Logged(parameters=("optim.lr", "freeze.name")), entity="me")
    assert first == again
    assert urlsplit(first).path == "/me/t5ts"
    (view,) = server.views.values()
    assert "config:freeze.value.name" in view["spec"]


def test_a_project_says_itself_what_its_runs_log(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        def __init__(self, lr: float, job_type: str = "t5-t5-none") -> None:
            self.job_type = job_type
            self.config = {"seed": 0, "optim": {"lr": lr}}
            self.summary = {"grad_norm/block_7": 1.0, "val_loss": 1.0}

    asked = []

    def runs(path: str) -> list[Run]:
        asked.append(path)
        return [Run(0.1), Run(0.2), Run(7.0, "report")]

    monkeypatch.setattr(server, "runs", runs, raising=False)
    save("t5ts", None, entity=None)
    assert asked == ["me/t5ts"]
    (view,) = server.views.values()
    assert "grad_norm/block_7" in view["spec"]
    assert "grad_norm/block_1" not in view["spec"]
    assert "config:optim.value.lr" in view["spec"]


def test_no_such_project_is_one_message(server: Server) -> None:
    with pytest.raises(UserError, match="there is no W&B project me/other"):
        save("other", Logged(), entity="me")
    assert server.views == {}


def test_what_the_client_raises_is_one_message(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("the cable is cut\nand more")

    monkeypatch.setattr(server, "runs", fail, raising=False)
    with pytest.raises(UserError, match=r"of t5ts: the cable is cut\. Check"):
        save("t5ts", None, entity=None)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["a/b/c"], "is no W&B project"),
        (["t5ts", "absent"], "absent is not a directory"),
        (["t5ts", "--dry-run", "--out", "absent/view.json"], "--out FILE"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str],
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert part in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["t5ts", "--dry-run"]) == 2
    assert "pip install 't5ts[dashboard]'" in capsys.readouterr().err


def test_the_entity_is_not_in_what_is_compared() -> None:
    """Whose project it is does not change the view."""
    one, other = (json.loads(as_json(workspace("t5ts", Logged(), entity=e))) for e in ("a", "b"))
    assert one["spec"] == other["spec"]
