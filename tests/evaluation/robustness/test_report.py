"""A report of two runs, from answers that are drawn: its figures are those of its parts, and its page shows them."""

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from waver.data.annotations import CAPTIONS_SCHEMA
from waver.evaluation.robustness.measures import Answers
from waver.evaluation.robustness.page import DEFINITIONS, write_page
from waver.evaluation.robustness.queries import build_queries, reference_rows
from waver.evaluation.robustness.report import ALL, compute_run_metrics, make_report, reference_queries
from waver.evaluation.robustness.tables import headline_table, styles_table

NUM_CLIPS = 40
MAX_LENGTH = 10
RULES = ("typos/light", "keywords <b>")


def captions(num_styles=3):
    rows = [
        (
            f"v{clip // 2:02d}",
            f"v{clip // 2:02d}.{clip % 2}",
            "v.mp4",
            None,
            None,
            f"{style} of {clip}",
            n,
            "test",
            style,
        )
        for clip in range(NUM_CLIPS)
        for n, style in enumerate(("plain", "chatty", "terse")[:num_styles])
    ]
    return pa.table(dict(zip(CAPTIONS_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=CAPTIONS_SCHEMA)


@pytest.fixture(scope="module")
def queries():
    table = captions()
    references = reference_rows(table, "test", None)
    texts = references["caption"].to_pylist()
    rules = {
        RULES[0]: [f"{text}!" for text in texts],
        RULES[1]: [text if i % 2 else None for i, text in enumerate(texts)],
    }
    controls = {"negation": [f"not {text}" for text in texts]}
    return build_queries(table, references, natural=True, rules=rules, imported=[], controls=controls)


def draw(queries, skill, seed):
    """Scores that favour the right clip by `skill`, and what a model with them answers; clip 3 was not decoded."""
    scores = np.random.default_rng(seed).normal(size=(len(queries), NUM_CLIPS))
    scores[np.arange(len(queries)), queries.clip] += skill
    available = np.arange(NUM_CLIPS) != 3
    scores[:, ~available] = -np.inf
    own = scores[np.arange(len(queries)), queries.clip]
    ranks = np.where(available[queries.clip], 1 + (scores > own[:, None]).sum(1), np.inf)
    cut = np.array([len(row.text) > MAX_LENGTH for row in queries.rows])
    top = np.argsort(-scores, axis=1)[:, :10]
    return Answers(ranks.astype(float), top, available, np.zeros(len(queries), int), cut)


@pytest.fixture(scope="module")
def runs(queries):
    return [
        compute_run_metrics(name, draw(queries, skill, seed), queries)
        for name, skill, seed in (("a", 2, 0), ("b & c", 5, 1))
    ]


@pytest.fixture(scope="module")
def report(queries, runs):
    about = {
        "split": "test",
        "notes": ["a note"],
        "imported": [],
        "sources": [{"name": "a", "checkpoint": "somewhere"}],
    }
    return make_report(runs, queries, about=about, resamples=200, permutations=499, seed=0)


def test_it_is_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_counts(report):
    assert (report["num_clips"], report["num_videos"]) == (NUM_CLIPS, NUM_CLIPS // 2)
    assert report["num_queries"] == {"reference": 40, "natural": 80, "rules": 60, "imported": 0, "control": 40}
    assert [run["num_missing_clips"] for run in report["runs"]] == [1, 1]
    assert {name: track["num_versions"] for name, track in report["runs"][0]["tracks"].items()} == {
        "natural": 80,
        "rules": 60,
        ALL: 140,
    }


def test_queries_that_are_cut_are_counted_by_style(report, queries):
    """Texts of more than 10 characters, such as `chatty of 9`."""
    expected = {
        (track, style): sum(len(queries.rows[i].text) > MAX_LENGTH for i in queries.of_style(track, style))
        for track, style in queries.styles("natural", "rules")
    }
    assert 0 <= min(expected.values()) < max(expected.values())
    for run in report["runs"]:
        assert {(entry["track"], entry["style"]): entry["num_cut_queries"] for entry in run["styles"]} == expected


def test_headline_is_recall_of_references_and_of_the_worst_version(report, runs, queries):
    for run, metrics in zip(report["runs"], runs, strict=True):
        ranks = metrics.answers.ranks
        assert run["headline"]["clean R@1"]["value"] == pytest.approx((ranks[reference_queries(queries)] <= 1).mean())
        meant = np.isin(queries.clip, np.arange(NUM_CLIPS)) & np.array([row.track != "control" for row in queries.rows])
        worst = [(ranks[meant & (queries.clip == clip)] <= 1).all() for clip in range(NUM_CLIPS)]
        assert run["headline"]["worst-case R@1"]["value"] == pytest.approx(np.mean(worst))
        low, high = run["headline"]["clean R@1"]["interval"]
        assert low < run["headline"]["clean R@1"]["value"] < high


def test_controls_are_part_of_no_mean(report, runs, queries):
    """Answers to controls that are all right change nothing but the figures of controls."""
    answers = runs[0].answers
    ranks = answers.ranks.copy()
    ranks[queries.of_track("control")] = 1
    other = compute_run_metrics("a", Answers(ranks, answers.top, answers.available, answers.ties, answers.cut), queries)
    again = make_report([other], queries, about={"split": "test"}, resamples=200, permutations=499, seed=0)["runs"][0]
    before = report["runs"][0]
    assert again["controls"] != before["controls"]
    assert again["controls"][0]["R@1"]["value"] == 1
    for part in ("headline", "tracks", "styles", "families", "overall", "lost"):
        assert again[part] == before[part]


def test_styles_are_compared_with_the_references_of_their_own_clips(report, runs, queries):
    entry = next(entry for entry in report["runs"][0]["styles"] if entry["style"] == RULES[1])
    assert (entry["num_queries"], entry["coverage"]) == (20, 0.5)
    rows = queries.of_style("rules", RULES[1])
    ranks = runs[0].answers.ranks
    change = (ranks[rows] <= 1).mean() - (ranks[queries.reference[rows]] <= 1).mean()
    assert entry["change_R@1"]["value"] == pytest.approx(change)


def test_the_better_run_is_found_to_be_better(report):
    (comparison,) = report["comparisons"]
    assert (comparison["first"], comparison["second"]) == ("a", "b & c")
    assert len(comparison["tests"]) == 3 + 3 + 4  # headline, families, styles
    for test in comparison["tests"]:
        assert test["p"] <= test["p_holm"] <= 1
        if test["what"] != "AO@10":
            assert test["difference"] > 0.2
            assert test["interval"][0] > 0
            assert test["p_holm"] < 0.05


def test_lost_queries_are_those_that_fell_deepest_in_their_style(report, runs, queries):
    for run, metrics in zip(report["runs"], runs, strict=True):
        ranks = metrics.answers.ranks
        for track, style in metrics.styles:
            rows = [row for row in queries.of_style(track, style) if ranks[queries.reference[row]] == 1 < ranks[row]]
            deepest = sorted((ranks[row] for row in rows), reverse=True)[:2]
            assert [one["rank"] for one in run["lost"] if one["style"] == f"{track}/{style}"] == deepest
        assert run["lost"]


@pytest.mark.slow
def test_one_track_of_one_run_needs_no_comparison(tmp_path):
    table = captions(num_styles=2)
    references = reference_rows(table, "test", None)
    alone = build_queries(table, references, natural=True, rules={}, imported=[], controls={})
    about = {"split": "test", "notes": [], "imported": [], "sources": []}
    run = compute_run_metrics("only", draw(alone, 3, 0), alone)
    report = make_report([run], alone, about=about, resamples=200, permutations=99, seed=0)
    assert list(report["runs"][0]["tracks"]) == ["natural"]
    assert report["comparisons"] == []
    assert write_page(tmp_path / "report.html", report) == []


class Text(HTMLParser):
    """The text of a page, and whether its tags close in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "path", "use", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data):
        self.text += data


def test_the_page_says_what_a_reader_needs(report, tmp_path):
    assert write_page(tmp_path / "report.html", report) == ["a note"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Text(page)
    for word in (
        *DEFINITIONS,
        "worst-case R@1",
        "AO@10",
        "b & c compared with a",
        "keywords <b>",
        "a note",
        "negation",
    ):
        assert word in parsed.text, word
    num_clips = report["num_clips"]
    assert parsed.text.count(f"R@1 (chance {100 / num_clips:.1f}, {num_clips} clips)") == 1 + 2 * len(report["runs"])
    assert "worst-case R@1, all (3.5 versions a clip)" in parsed.text
    assert f"(R@1: chance {100 / num_clips:.1f}, {num_clips} clips)" in headline_table(report).title
    assert f"R@1 (chance {100 / num_clips:.1f}, {num_clips} clips)" in styles_table(report).title
    assert "<b>" not in page, "what users write is text, not HTML"
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", ""), "it loads nothing"
    for name in ("styles", "dispersion"):
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_a_browser_opens_the_page_without_errors(report, tmp_path):
    write_page(tmp_path / "report.html", report)
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/profile",
    )
    page = (tmp_path / "report.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", page], capture_output=True, text=True, timeout=60, check=True
    )
    assert "CONSOLE" not in done.stderr, "what a page complains of, missing files among it, goes to its console"
    assert done.stdout.count("<svg") == 2
    assert done.stdout.count("<table") >= 10
    assert "Definitions" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
def test_a_browser_would_tell(tmp_path):
    """That the test above can fail."""
    (tmp_path / "page.html").write_text("<script>nothing()</script>")
    flags = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path}/profile",
    )
    command = [CHROMIUM, *flags, "--dump-dom", (tmp_path / "page.html").as_uri()]
    assert "CONSOLE" in subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr
