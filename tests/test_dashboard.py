"""The dashboard's panels show what runs log, and saving it again can renew the same view."""

import json
import re
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import SMALL, TINY_T5
from runs import rows, wandb_summary

from t5ts import dashboard
from t5ts.analysis.figures import PICTURES
from t5ts.dashboard import main, workspace
from t5ts.errors import UserError
from t5ts.experiment import run
from t5ts.tracking import GLOBAL_STEP


@pytest.fixture(autouse=True)
def _not_logged_in(monkeypatch, tmp_path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def panels() -> list[Any]:
    return [panel for section in workspace("me", "t5ts").sections for panel in section.panels]


def test_panels_show_what_a_run_logs_where_wandb_looks_for_it(composed, tmp_path):
    changes = ["freeze=staged", "freeze.unfreeze_epoch=1", "tracker=wandb", "tracker.mode=offline"]
    run(composed(*SMALL, *TINY_T5, *changes), run_dir=tmp_path)
    logged = {key for row in rows(tmp_path) for key in row}
    found = wandb_summary(tmp_path)
    lines = [panel for panel in panels() if hasattr(panel, "groupby_rangefunc")]
    # The arm, and its seeds' band.
    assert {(p.groupby, p.groupby_rangefunc) for p in lines} == {("JobType", "stddev")}
    assert {p.x for p in lines} <= logged | {GLOBAL_STEP}
    shown = {str(getattr(y, "name", y)) for p in lines for y in p.y}
    in_model = {key for key in logged if key.startswith(("step/grad_norm/", "lr/"))}
    assert in_model | {"val_loss", "val_corr", "val_skill"} <= shown
    # A run on a CPU has no loss scale, and this one has 2 blocks.
    other = {name for name in shown - logged if not re.search(r"block_[2-5]$", name)}
    assert other == {"amp/scale", "amp/skipped_steps"}
    deeper = next(p.metric_regex for p in lines if p.metric_regex)
    names = [f"step/grad_norm/block_{i}" for i in (5, 6, 11)]
    assert [bool(re.fullmatch(deeper, name)) for name in names] == [False, True, True]
    media = {key for panel in panels() for key in getattr(panel, "media_keys", [])}
    pictures = {key for key in found["summary"] if key.startswith("plots/")}
    assert media == pictures | {f"report/{name}" for name in ("verdict", *PICTURES)}
    for column in workspace("me", "t5ts").runset_settings.pinned_columns:
        section, key = column.split(":", 1)
        if section == "config":  # config:optim.value.lr is the key optim, in its value the key lr
            top, _, inside = key.partition(".value")
            assert not inside or inside.lstrip(".") in found["config"][top]
        elif section == "summary":
            assert key in found["summary"]


class Server:
    """What W&B answers to the library's questions; keeps views as W&B does, by id."""

    default_entity = "me"

    def __init__(self) -> None:
        self.views: dict[str, dict[str, Any]] = {}

    def __call__(self, _api: Any, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
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
def server(monkeypatch) -> Server:
    import wandb
    from wandb_workspaces.workspaces import interface, internal

    made = Server()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "Api", lambda *_a, **_k: made)
    monkeypatch.setattr(internal, "execute_graphql", made)
    # Of its own ids the client misreads those that end in "nw", one in 1,200.
    monkeypatch.setattr(internal.runid, "generate_id", lambda n: f"{len(made.views):0{n - 2}d}nw")
    monkeypatch.setattr(interface, "get_app_url", lambda _api: "https://wandb.ai")
    return made


def saved(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The address that the command prints."""
    assert main([*arguments]) == 0
    return capsys.readouterr().out.splitlines()[0].removeprefix("saved: ")


def test_a_view_is_saved_and_renewed(server, capsys):
    address = saved(capsys, "t5ts")
    assert urlsplit(address).path == "/me/t5ts"
    assert [f"nw-{urlsplit(address).query[3:]}-v"] == [v["name"] for v in server.views.values()]
    assert saved(capsys, "me/t5ts", "--renew", address) == address
    (view,) = server.views.values()
    assert "config:freeze.value.name" in view["spec"]
    num_panels = sum(len(s["panels"]) for s in sections(view))
    assert num_panels == len(panels())
    saved(capsys, "me/t5ts")
    assert len(server.views) == 2


def sections(view: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]


@pytest.mark.parametrize("word", ["cable is cut", "wandb login"])
@pytest.mark.usefixtures("server")
def test_what_goes_wrong_is_one_message(word, monkeypatch, capsys):
    def fail(*_: Any) -> None:
        raise ConnectionError("the cable is cut\nand more")

    if word == "wandb login":
        monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(dashboard, "workspace", fail)
    assert main(["t5ts"]) == 2
    said = capsys.readouterr().err
    assert word in said
    assert said.count("\n") == 1


def test_a_missing_package_is_one_message(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(UserError, match=r"t5ts\[dashboard\]"):
        workspace("me", "t5ts")
