"""The report's files, and the page in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from required import missing

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, draw, verdict
from t5ts.analysis.figures import PICTURES
from t5ts.analysis.words import interval, number, percent, probability
from t5ts.report import main

TITLES = [
    "Answer",
    "Initial performance",
    "Convergence speed",
    "Final performance",
    "Stability",
    "When to unfreeze",
    "Gap over time",
    "Validity",
]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms and a control with three settings each, 5 seeds."""
    root = tmp_path_factory.mktemp("study")
    for seed in range(5):
        for init, effect in (("t5", -0.06), ("random", 0.0), ("matched", 0.0)):
            for epoch in (0, 2, 4):
                arm = Arm(init=init, freeze="staged", effect=effect, unfreeze_epoch=epoch)
                folder = root / f"{init}-{epoch}-{seed}"
                write_run(folder, arm, seed, extra_effect=0.01 * abs(epoch - 2))
    return root


@pytest.fixture(scope="module")
def report(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's folder."""
    out = tmp_path_factory.mktemp("report")
    assert main([str(study), "--out", str(out)]) == 0
    return out


def test_all_files_are_there_and_the_page_is_small(report: Path) -> None:
    names = {path.name for path in report.iterdir()}
    assert names == {"report.html", "report.md", "results.csv", "results.parquet", "figures"}
    for name in PICTURES:
        assert (report / "figures" / f"{name}.png").stat().st_size > 5000, name
        assert (report / "figures" / f"{name}.svg").read_text().count("<text") > 3, name
    assert (report / "report.html").stat().st_size < 2**20
    assert pl.read_parquet(report / "results.parquet").height == 45
    assert pl.read_csv(report / "results.csv").height == 45


def test_page_asks_nothing_of_the_network(report: Path) -> None:
    page = (report / "report.html").read_text()
    asked = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', page)
    assert {address.split(":")[0] for address in asked} <= {"data"}


def test_markdown_has_the_answer_and_all_sections(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert text.index("**Transfers.** Provisional: Pretraining helps") < 100
    assert re.findall(r"^## (\d)\. (.*)$", text, flags=re.M) == [
        (str(i), title) for i, title in enumerate(TITLES)
    ]
    for link in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (report / link).is_file()


def test_curves_draw_what_the_runs_hold(study: Path) -> None:
    findings = verdict(collect([study]))
    figure = draw(findings, "curves")
    axes = figure.axes[0]
    arm = findings.main.condition.arm("t5-staged")
    lines = {line.get_label(): line for line in axes.get_lines()}
    mean = sum(run.curve("val_loss")[1] for run in arm.best.finished.values()) / 5  # type: ignore[union-attr]
    assert lines["t5-staged (5)"].get_ydata() == pytest.approx(mean)


def test_command_line_says_what_is_wrong(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert "is not a directory" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    assert main([str(study), "--margin", "0"]) == 2
    assert "--margin" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(study), "--out", str(tmp_path / "file")]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_again_the_same_pictures_and_the_answer_on_the_terminal(
    study: Path, report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(study), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.strip().startswith("TRANSFERS: Provisional: Pretraining helps")
    assert "val_corr" in said
    assert str(tmp_path / "report.html") in said
    for name in PICTURES:
        first, again = (d / "figures" / f"{name}.svg" for d in (report, tmp_path))
        assert first.read_bytes() == again.read_bytes(), name


def test_numbers_in_words() -> None:
    assert percent(-0.0312) == "−3.1\u00a0%"
    assert percent(0.002) == "+0.20\u00a0%"
    assert probability(0.0004) == "< 0.001"
    assert probability(0.0312) == "= 0.031"
    assert number(float("nan")) == "–"
    findings = [1.0, 1.2, 0.8]
    from t5ts.analysis.statistics import mean_interval

    assert interval(mean_interval(findings)) == "1.00 [0.50, 1.50]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    if not CHROMIUM:
        missing("chromium", "the page was not opened: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        # CI runs as root, where Chromium's sandbox cannot; the page is our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def opened(browser: Any, report: Path, *, width: int) -> tuple[Any, list[str]]:
    """The page, drawn, and whatever it complained of or asked for."""
    page = browser.new_page(viewport={"width": width, "height": 800})
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on(
        "request",
        lambda r: r.url.startswith(("file:", "data:", "blob:")) or faults.append(r.url),
    )
    page.goto((report / "report.html").as_uri())
    return page, faults


def shown(page: Any, place: int) -> int:
    """How many parts of the curves' picture are visible for the arm in this place."""
    parts = page.locator(f'#picture-curves [id^="arm-{place}-"]')
    return sum(parts.nth(i).is_visible() for i in range(parts.count()))


@pytest.mark.slow
def test_page_in_a_browser(browser: Any, report: Path) -> None:
    page, faults = opened(browser, report, width=1280)
    headings = page.locator("h2").all_inner_texts()
    assert headings == [f"{i}. {title}" for i, title in enumerate(TITLES)]
    pictures = page.locator("figure svg").evaluate_all("all => all.map(e => e.clientHeight)")
    assert len(pictures) == len(PICTURES)
    assert min(pictures) > 100
    # The first screen: what was found, and how sure it is.
    seen = page.evaluate("document.elementFromPoint(640, 200).closest('header').innerText")
    assert "Pretraining helps" in seen
    assert "5 paired seeds" in seen
    assert "none broken" in seen
    assert "t5: pretrained on text" in seen
    assert page.locator(".verdict").bounding_box()["y"] < 200
    dashes = page.locator("#arms svg.swatch").evaluate_all("s => s.map(e => e.innerHTML)")
    assert len(set(dashes)) == 3  # an arm's line as it is drawn, to be told apart in grey
    assert faults == []


@pytest.mark.slow
def test_page_by_keyboard(browser: Any, report: Path) -> None:
    page, faults = opened(browser, report, width=1280)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "#section-0"
    for _ in range(7):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "Math.abs(document.querySelector('#section-7').getBoundingClientRect().top) < 200"
    )
    # A switch hides its arm in the curves, and brings it back.
    before = [shown(page, place) for place in range(3)]
    assert min(before) >= 6  # line, interval and unfreezing in two panels
    page.locator("#arms input").first.focus()
    page.keyboard.press("Space")
    assert [shown(page, place) for place in range(3)] == [0, *before[1:]]
    page.keyboard.press("Space")
    assert [shown(page, place) for place in range(3)] == before
    assert faults == []


@pytest.mark.slow
def test_page_on_a_telephone(browser: Any, report: Path) -> None:
    page, faults = opened(browser, report, width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".headline").bounding_box()["y"] < 400
    # The evidence itself, not its labels alone: wide enough for a phone without scrolling.
    effects = page.locator("#picture-effects .still")
    assert effects.evaluate("e => e.scrollWidth <= e.clientWidth")
    # Any other picture is scrolled, not shrunk until nobody can read it.
    wide = page.locator(".still:not(#picture-effects *) > svg")
    assert wide.count() == len(PICTURES) - 1
    assert all(w > 600 for w in wide.evaluate_all("all => all.map(e => e.clientWidth)"))
    assert faults == []


@pytest.mark.slow
def test_a_broken_invariant_stands_in_red_at_the_top(browser: Any, tmp_path: Path) -> None:
    for seed in range(2):
        for init in ("t5", "random"):
            write_run(tmp_path / f"{init}-{seed}", Arm(init=init, freeze="none"), seed)
    path = tmp_path / "t5-0" / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["initial_sha256"]["head"] = "<b>0</b>"
    path.write_text(json.dumps(provenance))
    assert main([str(tmp_path)]) == 0
    page, faults = opened(browser, tmp_path / "report", width=1280)
    alarm = page.locator(".alarm")
    assert alarm.bounding_box()["y"] < 250
    assert "head at seed 0" in alarm.inner_text()
    red = alarm.evaluate("e => getComputedStyle(e).borderTopColor")
    assert red == "rgb(179, 20, 27)"
    assert page.locator(".badge").inner_text() == "Verdict withheld"
    assert page.locator("#section-7 tr.broken").count() == 1
    assert faults == []


def test_report_is_logged_as_one_run(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wandb_summary: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main([str(study), "--out", str(tmp_path), "--wandb", "t5ts-test"]) == 0
    assert "to upload later: wandb sync" in capsys.readouterr().out
    found = wandb_summary(tmp_path)
    assert found["project"] == "t5ts-test"
    summary = found["summary"]
    assert summary["verdict"] == "transfers"
    assert summary["headline"] in found["notes"]
    assert summary["effect_low"] < summary["effect"] < summary["effect_high"] < 0
    assert {f"report/{name}" for name in PICTURES} <= set(summary)
    folder = next((tmp_path / "wandb").glob("offline-run-*")) / "files"
    runs, final = (
        json.loads((folder / summary[f"report/{name}"]["path"]).read_text())
        for name in ("runs", "final_performance")
    )
    assert len(runs["data"]) == 45
    place = runs["columns"].index("test_loss")
    table = collect([study]).table()
    assert [row[place] for row in runs["data"]] == pytest.approx(table["test_loss"].to_list())
    assert final["columns"][:3] == ["arm", "val_corr initial", "val_corr final"]


def test_report_that_wandb_refuses_stands_all_the_same(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main([str(study), "--out", str(tmp_path), "--wandb", "t5ts-test"]) == 2
    assert (tmp_path / "report.html").is_file()
    assert "t5ts: W&B is switched off" in capsys.readouterr().err
