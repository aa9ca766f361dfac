"""The report's files, and the page in a real browser."""

import contextlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from analysis.studies import about, arm_of, found, write
from required import missing
from runs import largest_file, wandb_summary

from benchmarks.simulated_runs import Arm, write_run
from t5ts.analysis import collect, draw
from t5ts.analysis.figures import PICTURES, save_figures
from t5ts.analysis.page import write_report
from t5ts.analysis.plots import new_figure, whole_ticks
from t5ts.analysis.sections import Picture, Table, parse, sections
from t5ts.analysis.statistics import mean_interval
from t5ts.analysis.words import arm_label, interval, number, percent, probability
from t5ts.report import main

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """Two arms and a control with two settings each, 5 seeds."""
    root = tmp_path_factory.mktemp("study")
    for seed in range(5):
        for init, effect in (("t5", -0.06), ("random", 0.0), ("matched", 0.0)):
            for epoch in (2, 4):
                arm = Arm(init=init, freeze="staged", effect=effect, unfreeze_epoch=epoch)
                folder = root / f"{init}-{epoch}-{seed}"
                write_run(folder, arm, seed, extra_effect=0.01 * abs(epoch - 2))
    return root


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> tuple[Path, str]:
    """The report's folder, and what its command printed."""
    out = tmp_path_factory.mktemp("report")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main([str(study), "--out", str(out)]) == 0
    return out, said.getvalue()


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """Two arms at two seeds, of which a report draws one picture."""
    monkeypatch.setattr("t5ts.analysis.figures.PICTURES", {"effects": PICTURES["effects"]})
    write(tmp_path / "study", {"t5-none": 0, "random-none": 0}, seeds=range(2))
    return tmp_path / "study"


@pytest.mark.parametrize("pictures", [{}, {"effects": PICTURES["effects"]}])
def test_a_full_disk_is_one_message_and_nothing_half_written(
    pictures, small, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("t5ts.analysis.figures.PICTURES", pictures)
    with largest_file(100):
        assert main([str(small), "--out", str(tmp_path / "report")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not [path for path in (tmp_path / "report").rglob("*") if path.is_file()]


def test_two_reports_into_one_folder_take_turns(small, tmp_path):
    """Else one replaces the other's unfinished file, or mixes its own into it."""
    findings, busy, overlaps = found(small), threading.Lock(), []

    def draw_alone(findings: Any, folder: Path) -> list[str]:
        overlaps.append(not busy.acquire(blocking=False))
        time.sleep(0.1)
        busy.release()
        return save_figures(findings, folder)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr("t5ts.analysis.page.save_figures", draw_alone)
        for written in [pool.submit(write_report, findings, tmp_path / "out") for _ in range(2)]:
            assert written.result().page.is_file()
    assert overlaps == [False, False]


def test_all_files_are_there_and_ask_nothing_of_the_network(written):
    report, said = written
    names = {path.name for path in report.iterdir()}
    assert names == {"report.html", "report.md", "results.csv", "results.parquet", "figures"}
    for name in PICTURES:
        assert (report / "figures" / f"{name}.png").stat().st_size > 5000, name
    assert (report / "report.html").stat().st_size < 400_000
    assert pl.read_parquet(report / "results.parquet").height == 30
    assert pl.read_csv(report / "results.csv").height == 30
    assert str(report / "report.html") in said
    page = (report / "report.html").read_text()
    asked = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', page)
    assert {address.split(":")[0] for address in asked} <= {"data"}


def test_markdown_and_what_is_read_back_from_it(written):
    report, _ = written
    text = (report / "report.md").read_text()
    assert "**Transfers.**" in text[:100]
    content = parse(text)
    assert [section.number for section in content] == list(range(8))
    blocks = [block for section in content for block in section.blocks]
    assert {b.name for b in blocks if isinstance(b, Picture)} == set(PICTURES)
    assert all(b.caption and b.alt for b in blocks if isinstance(b, Picture))
    tables = [b for b in blocks if isinstance(b, Table)]
    assert len(tables) == text.count("| --- |")
    assert all(len(row) == len(t.columns) for t in tables for row in t.rows)
    text = "## 0. A\n\n*Q?*\n\nSizes:\n\n| a | b |\n| --- | ---: |\n| x\\|y | |"
    (table,) = parse(text)[0].blocks
    assert table == Table(caption="Sizes", columns=("a", "b"), rows=[("x|y", "")])


def test_a_section_with_nothing_to_show_is_one_line(tmp_path):
    write_run(tmp_path / "run", Arm(init="t5", freeze="none"), 0, stop_after=2)
    content = sections(found(tmp_path))
    assert [len(content[number].blocks) for number in (0, 2, 6)] == [1, 1, 1]


@pytest.mark.parametrize(("init", "asks"), [("t5", True), ("run", False), ("chronos", False)])
def test_the_question_is_about_text_where_the_weights_are(init, asks, tmp_path, monkeypatch):
    monkeypatch.setattr("t5ts.analysis.figures.PICTURES", {})
    write_run(tmp_path / "run", Arm(init=init, freeze="none"), 0)
    written = write_report(found(tmp_path), tmp_path / "out")
    for text in (written.page.read_text(), (tmp_path / "out" / "report.md").read_text()):
        assert ("text pretraining" in text) == asks


def test_curves_draw_what_the_runs_hold(study):
    findings = found(study)
    axes = draw(findings, "curves").axes[0]
    arm = arm_of(findings, "t5-staged")
    lines = {line.get_label(): line for line in axes.get_lines()}
    mean = sum(run.curve("val_loss")[1] for run in arm.best.finished.values()) / 5
    assert lines[f"{arm_label(arm)}: 5"].get_ydata() == pytest.approx(mean)
    for name in ("scale", "forecasts"):
        texts = {text.get_text() for text in draw(findings, name).legends[0].get_texts()}
        assert {arm_label(arm) for arm in findings.main.condition.arms} <= texts


def test_long_names_leave_the_effects_their_width(small):
    findings = found(small)
    widths = []
    for name in ("short", " ".join(["data.columns=['temperature', 'pressure']"] * 12)):
        findings.main.condition.name = name
        findings.verdicts = [findings.main, findings.main]
        figure = draw(findings, "effects")
        figure.draw_without_rendering()
        widths.append(figure.axes[0].get_position().width)
    assert widths[1] == pytest.approx(widths[0], rel=0.01)


def test_epochs_have_whole_ticks_even_if_there_is_one():
    _, ((ax,),) = new_figure(1, 1, width=4, height=3)
    whole_ticks(ax, "epoch")
    ax.set_xlim(0.5, 1.5)
    shown = [tick for tick in ax.get_xticks() if 0.5 <= tick <= 1.5]
    assert shown == [1]


def test_many_arms_leave_the_curves_their_height_and_differ_in_style(study):
    findings, heights = found(study), []
    for times in (1, 8):
        findings.main.condition.arms *= times
        figure = draw(findings, "curves")
        figure.draw_without_rendering()
        axes = figure.axes[0]
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.1)
    lines = [line for line in axes.get_lines() if ": " in str(line.get_label())]
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(styles) == len(lines) == 24


def test_the_same_runs_give_the_same_pictures(study, written, tmp_path):
    assert save_figures(found(study), tmp_path) == list(PICTURES)
    for name in PICTURES:
        first, again = (d / f"{name}.svg" for d in (written[0] / "figures", tmp_path))
        assert first.read_bytes() == again.read_bytes(), name


def test_forecasts_are_drawn_in_time_where_it_is_known(small):
    labels = []
    for step_s in (3600.0, None):
        about("*", "data", step_s=step_s)(small)
        axes = PICTURES["forecasts"](found(small)).axes[0]
        labels.append(axes.get_xlabel())
        truth = next(line for line in axes.get_lines() if line.get_label() == "truth")
        assert str(truth.get_xdata()[0]) == ("2013-10-05T00:00:00.000" if step_s else "1")
    assert labels == ["", "steps from the forecast's start"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["absent"], "absent"),
        (["empty"], "no run found in"),
        (["unusable"], "no memory"),
        (["study", "--margin=0"], "--margin"),
        (["study", "--out=study/t5-none-0/result.json"], "--out"),
        (["study", "--wandb=t5ts-test"], "WANDB_MODE"),
    ],
)
def test_command_line_names_what_is_wrong(options, named, small, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(small.parent)
    Path("empty").mkdir()
    Path("unusable").mkdir()
    Path("unusable/trial.json").write_text('{"state": "failed", "reason": "no memory"}')
    assert main(options) == 2
    assert named in capsys.readouterr().err
    # A report that W&B refuses is written all the same.
    assert Path("study/report/report.html").is_file() == (named == "WANDB_MODE")


def test_numbers_in_words():
    assert percent(-0.0312) == "−3.1\u00a0%"
    assert percent(48.3, sign=False) == "> 1,000\u00a0%"
    assert percent(0.002) == "+0.20\u00a0%"
    assert probability(0.0004) == "< 0.001"
    assert probability(0.0312) == "= 0.031"
    assert number(float("nan")) == "–"
    assert interval(mean_interval([1.0, 1.2, 0.8])) == "1.00 [0.50, 1.50]"


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


@contextlib.contextmanager
def opened(browser: Any, report: Path, *, width: int, scheme: str = "light") -> Iterator[Any]:
    """The rendered page, without console errors or network requests."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or faults.append(r.url))
    page.goto((report / "report.html").as_uri())
    yield page
    assert faults == []
    page.close()


def shown(page: Any, place: int) -> int:
    """How many parts of the curves' picture are visible for the arm in this place."""
    parts = page.locator(f'#picture-curves [id^="arm-{place}-"]')
    return sum(parts.nth(i).is_visible() for i in range(parts.count()))


def cut_off(page: Any) -> int:
    """By how many pixels a table is wider than its place, with everything unfolded."""
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    tables = page.locator(".scroll")
    return max(tables.evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)"))


def brightness(page: Any) -> tuple[int, list[int]]:
    """Of the page, and of each text in its pictures: from 0, black, to 255."""
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    texts = page.locator("figure svg text")
    inks = texts.evaluate_all("all => all.map(e => getComputedStyle(e).fill)")
    red, *reds = (int(re.findall(r"\d+", colour)[0]) for colour in (paper, *inks))
    return red, reds


@pytest.mark.slow
def test_page_in_a_browser(browser, written):
    with opened(browser, written[0], width=1280) as page:
        assert page.locator("h2").count() == 8
        heights = page.locator("figure svg").evaluate_all("all => all.map(e => e.clientHeight)")
        assert len(heights) == len(PICTURES)
        assert min(heights) > 100
        # The first screen: what was found, and how sure it is.
        seen = page.evaluate("document.elementFromPoint(640, 200).closest('header').innerText")
        for words in ("Transfers", "5 paired seeds", "none broken", "t5: pretrained"):
            assert words in seen
        assert page.locator(".verdict").bounding_box()["y"] < 200
        lines = page.locator("#arms svg.swatch").evaluate_all("s => s.map(e => e.innerHTML)")
        assert len(set(lines)) == 3  # an arm's line as it is drawn, to be told apart in grey
        paper, inks = brightness(page)
        assert paper == 255
        assert max(inks) < 120
        assert cut_off(page) == 0


@pytest.mark.slow
def test_page_by_keyboard(browser, written):
    with opened(browser, written[0], width=1280) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        for _ in range(8):
            page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getAttribute('href')") == "#section-7"
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


@pytest.mark.slow
def test_page_on_a_telephone_in_the_dark(browser, written):
    with opened(browser, written[0], width=360, scheme="dark") as page:
        # A path has no place where a line may break.
        page.evaluate("document.querySelector('.verdict li').append(' ' + '_'.repeat(200))")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert cut_off(page) == 0
        assert page.locator(".headline").bounding_box()["y"] < 400
        # The evidence itself, not its labels alone: wide enough for a phone without scrolling.
        effects = page.locator("#picture-effects .still")
        assert effects.evaluate("e => e.scrollWidth <= e.clientWidth")
        # Any other picture is scrolled, not shrunk until nobody can read it.
        wide = page.locator(".still:not(#picture-effects *) > svg")
        assert wide.count() == len(PICTURES) - 1
        assert all(w > 600 for w in wide.evaluate_all("all => all.map(e => e.clientWidth)"))
        paper, inks = brightness(page)
        assert paper < 40
        assert min(inks) > 120


@pytest.mark.slow
def test_a_broken_invariant_stands_in_red_at_the_top(browser, small):
    about("t5-none-0", "initial_sha256", head="<b>0</b>")(small)
    assert main([str(small)]) == 0
    with opened(browser, small / "report", width=1280) as page:
        alarm = page.locator(".alarm")
        assert alarm.bounding_box()["y"] < 250
        assert "head at seed 0" in alarm.inner_text()
        red = alarm.evaluate("e => getComputedStyle(e).borderTopColor")
        assert red == "rgb(179, 20, 27)"
        assert page.locator(".verdict.broken").count() == 1
        assert page.locator("#section-7 tr.broken").count() == 1


def test_report_is_logged_as_one_run(small, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = small.parent / "out"
    assert main([str(small), "--out", str(out), "--wandb", "t5ts-test"]) == 0
    logged = wandb_summary(out)
    assert logged["project"] == "t5ts-test"
    summary = logged["summary"]
    assert summary["verdict"] == found(small).kind
    assert summary["headline"] in logged["notes"]
    assert summary["effect_low"] < summary["effect"] < summary["effect_high"]
    pictures = {f"report/{path.stem}" for path in (out / "figures").glob("*.png")}
    assert "report/effects" in pictures
    assert pictures <= set(summary)
    folder = next((out / "wandb").glob("offline-run-*")) / "files"
    runs, final = (
        json.loads((folder / summary[f"report/{name}"]["path"]).read_text())
        for name in ("runs", "final_performance")
    )
    place = runs["columns"].index("test_loss")
    table = collect([small]).table()
    assert [row[place] for row in runs["data"]] == pytest.approx(table["test_loss"].to_list())
    assert final["columns"][:3] == ["arm", "val_corr initial", "val_corr final"]
