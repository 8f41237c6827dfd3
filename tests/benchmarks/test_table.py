import json

from waver.benchmarks.table import not_measured, rows_of, to_json, to_markdown
from waver.benchmarks.timing import Timing

FOUND = {
    "old": Timing([2.0, 4.0, 3.0], [1.0, 1.0, 1.0]),
    "new": Timing([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]),
}


def test_rows_have_values_and_ratios_to_the_reference():
    old, new = rows_of("work", FOUND, reference="old", num_items=6, unit="clips/s", targets={"new": "4"})
    assert (old.values, new.values) == ((3.0, 1.5, 2.0), (6.0, 6.0, 6.0))
    assert (old.ratios, old.reference) == ((), "")
    assert (new.ratios, new.reference, new.target) == ((2.0, 4.0, 3.0), "old", "4")


def test_markdown_names_a_work_once():
    rows = [*rows_of("work", FOUND, reference="old"), not_measured("work", "other", "no GPU")]
    lines = to_markdown(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| work | old | 3 (2 to 4) s | 1 | - | - |  |"
    assert lines[3] == "|  | new | 1 (1 to 1) s | 0.5 | 3 (2 to 4) of old | - |  |"
    assert lines[4].endswith("| not run: no GPU |")


def test_json_has_every_turn():
    stored = json.loads(json.dumps(to_json({"cpu": "x"}, rows_of("work", FOUND, reference="old"))))
    assert stored["machine"] == {"cpu": "x"}
    assert [row["values"] for row in stored["rows"]] == [[2.0, 4.0, 3.0], [1.0, 1.0, 1.0]]
