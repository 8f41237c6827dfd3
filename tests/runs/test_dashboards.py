"""Opens every dashboard of a real TensorBoard in a real browser.

The runs are two tiny ones; WAVER_RUNS names a folder of others, as `.ci/run` does after the quickstart.
"""

import os
import re
import shutil
from pathlib import Path

import pytest

from waver.runs.board import start_board

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]
WAIT_MS = 40_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory, record_run, tiny_config) -> Path:
    if given := os.environ.get("WAVER_RUNS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("runs")
    for lr in (1e-3, 1e-2):
        settings = tiny_config.model_dump(mode="json")
        settings["train"]["lr"] = lr
        record_run(folder / f"lr{lr}", type(tiny_config).model_validate(settings))
    return folder


@pytest.fixture(scope="module")
def board(runs):
    return start_board(runs, port=0)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(board, browser):
    """Opens a dashboard in a new page, and fails if the page raises an error."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(str(error)))

    def open_(tab: str):
        page.goto(f"{board.url}#{tab}", timeout=WAIT_MS)
        return page

    yield open_
    page.close()
    assert mistakes == []


def see(page, text: str) -> None:
    page.get_by_text(text).first.wait_for(state="visible", timeout=WAIT_MS)


def count(page, selector: str, at_least: int) -> None:
    """Waits until so many elements match; selectors pierce the shadow roots of TensorBoard."""
    page.locator(selector).nth(at_least - 1).wait_for(state="attached", timeout=WAIT_MS)


def test_time_series_begin_with_retrieval(open_tab):
    page = open_tab("timeseries")
    see(page, "0 best")
    see(page, "1 retrieval")


def test_scalars_are_drawn(open_tab):
    page = open_tab("scalars")
    see(page, "1 retrieval")
    count(page, "tf-scalar-card", 5)
    count(page, "vz-line-chart2 svg", 3)


def test_custom_scalars_are_drawn(open_tab):
    page = open_tab("custom_scalars")
    see(page, "recall, text to video")
    count(page, "tf-custom-scalar-multi-line-chart-card", 4)


def test_images_are_loaded(open_tab):
    page = open_tab("images")
    count(page, "tf-image-loader img", 4)
    first = page.locator("tf-image-loader img").first
    first.scroll_into_view_if_needed(timeout=WAIT_MS)
    page.wait_for_function("image => image.naturalWidth > 100", arg=first.element_handle(), timeout=WAIT_MS)


def test_texts_are_rendered_as_tables(open_tab):
    page = open_tab("text")
    see(page, "best so far")
    count(page, "tf-text-loader table td", 4)


def test_hparams_has_a_line_per_run(open_tab, board):
    page = open_tab("hparams")
    see(page, "PARALLEL COORDINATES VIEW")
    own = [name for name in board.runs if not name.endswith(("by_pairs", "projector"))]
    assert len(own) > 1
    for name in own:
        see(page, name)
    page.get_by_text("PARALLEL COORDINATES VIEW").click()
    count(page, "tf-hparams-parallel-coords-plot svg path", len(own))


def test_histograms_and_pr_curves_are_shown(open_tab):
    page = open_tab("histograms")
    count(page, "vz-histogram-timeseries svg", 1)
    page = open_tab("pr_curves")
    page.reload()
    see(page, "similarity/pairs")


def test_projector_shows_points(open_tab):
    page = open_tab("projector")
    points = page.frame_locator("iframe").frame_locator("iframe").get_by_text(re.compile(r"Points: [1-9]"))
    points.first.wait_for(state="visible", timeout=WAIT_MS)
