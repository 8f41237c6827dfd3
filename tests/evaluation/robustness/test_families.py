import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from waver.data.annotations import CAPTIONS_SCHEMA
from waver.evaluation.robustness.families import compute_families
from waver.evaluation.robustness.measures import Answers
from waver.evaluation.robustness.queries import build_queries, reference_rows
from waver.evaluation.robustness.report import compute_run_metrics, make_report
from waver.evaluation.robustness.rewriting import RULES
from waver.evaluation.robustness.tables import families_table

NUM_CLIPS = 12


@pytest.fixture
def queries():
    """Each clip has two writers; typing mistakes apply to all clips, the passive to the first 9, clause order to 4."""
    rows = [
        (f"v{n:02d}", f"v{n:02d}", "v.mp4", None, None, f"{writer} {n}", index, "test", writer)
        for n in range(NUM_CLIPS)
        for index, writer in enumerate(("plain", "chatty"))
    ]
    table = pa.table(dict(zip(CAPTIONS_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=CAPTIONS_SCHEMA)
    applies = {"typos-light": 12, "typos-heavy": 12, "passive": 9, "clause_order": 4}
    rules = {name: [f"{name} {n}" if n < last else None for n in range(NUM_CLIPS)] for name, last in applies.items()}
    return build_queries(
        table, reference_rows(table, "test", None), natural=True, rules=rules, imported=[], controls={}
    )


def answer(queries, wrong):
    """Answers that are right but for those to (style, clip) pairs."""
    ranks = np.array([1.0 + ((row.style, clip) in wrong) for row, clip in zip(queries.rows, queries.clip, strict=True)])
    size = len(queries)
    top = np.tile(np.arange(10), (size, 1))
    return Answers(ranks, top, np.ones(NUM_CLIPS, bool), np.zeros(size, int), np.zeros(size, bool))


def test_every_rule_belongs_to_a_family_and_severities_of_a_rule_to_one():
    families = {
        rule.name: {other.family for other in RULES.values() if other.name == rule.name} for rule in RULES.values()
    }
    assert all(len(found) == 1 for found in families.values())
    assert families["passive"] == families["clause_order"] == {"syntax"}
    assert families["typos"] == {"typing mistakes"}


def test_a_family_has_the_clips_with_its_most_frequent_set_of_versions(queries):
    found = compute_families(answer(queries, set()), queries)
    assert {name: (family.versions, family.sets.num_clips) for name, family in found.items()} == {
        "human versions": (("chatty",), 12),
        "typing mistakes": (("typos-heavy", "typos-light"), 12),
        "syntax": (("passive",), 5),  # clips 4 to 8; clips 0 to 3 have both versions
    }


def test_worst_case_and_mean_by_hand(queries):
    wrong = {
        ("typos-light", 0),
        ("typos-heavy", 0),
        ("typos-heavy", 1),
        ("reference", 2),
        ("passive", 3),
        ("passive", 4),
    }
    found = compute_families(answer(queries, wrong), queries)
    typing, syntax = found["typing mistakes"], found["syntax"]
    assert typing.worst_case.value == pytest.approx(9 / 12)  # not clips 0, 1 and 2, whose reference is wrong
    assert typing.queries.recall[1].value == pytest.approx(21 / 24)
    assert typing.sets.clean[1].value == pytest.approx(11 / 12)
    assert syntax.worst_case.value == pytest.approx(4 / 5), "clip 3 has another set of versions"
    assert found["human versions"].worst_case.value == pytest.approx(11 / 12)


def test_more_rules_lower_the_worst_case_of_all_but_not_that_of_another_family(queries):
    wrong = {("passive", n) for n in range(9)}
    run = compute_run_metrics("run", answer(queries, wrong), queries)
    assert run.tracks["all"].worst_case[1].value == pytest.approx(3 / 12)
    assert run.families["typing mistakes"].worst_case.value == 1


def test_the_number_of_versions_stands_beside(queries):
    about = {"split": "test", "notes": [], "imported": [], "sources": []}
    runs = [compute_run_metrics(name, answer(queries, {("passive", 5)}), queries) for name in ("a", "b")]
    report = make_report(runs, queries, about=about, resamples=100, permutations=99, seed=0)
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(families_table(report))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    rows = {cells[0]: cells[1:] for line in lines for cells in [[cell.strip() for cell in line.split("│")[1:-1]]]}
    assert rows["typing mistakes"] == ["2", "12", "100.0", "100.0"], "equal values of few clips have no interval"
    assert rows["syntax"][:2] == ["1", "5"]
    assert rows["syntax"][2].startswith("80.0 (")
    assert [test["what"] for test in report["comparisons"][0]["tests"]][3:6] == [
        "worst-case R@1, human versions",
        "worst-case R@1, typing mistakes",
        "worst-case R@1, syntax",
    ]
