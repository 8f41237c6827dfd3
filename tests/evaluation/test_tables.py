import io

from rich.console import Console

from waver.evaluation.metrics import chance
from waver.evaluation.tables import metrics_table, rows_of, styles_table


def test_table_has_a_line_for_each_direction_and_row():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(metrics_table("title", {"waver": {k: 3 * v for k, v in chance(50).items()}, "chance": chance(50)}))
    lines = console.export_text().splitlines()
    assert lines[0].strip() == "title"
    assert [line.split("│")[1].strip() for line in lines if "video" in line] == [
        "text to video, waver",
        "text to video, chance",
        "video to text, waver",
        "video to text, chance",
    ]
    assert [cell.strip() for cell in lines[-2].split("│")[2:-1]] == ["2.0", "10.0", "20.0", "25.5", "25.5"]


def test_table_of_styles_has_a_line_for_each():
    console = Console(width=80, record=True, file=io.StringIO())
    styles = {"plain": {"t2v/R@1": 50.0}, "chatty": {"t2v/R@1": 12.34}}
    console.print(styles_table("by style", {"a": styles, "b": {style: {"t2v/R@1": 0.0} for style in styles}}))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines()[4:-1]]
    assert rows == [["plain", "50.0", "0.0"], ["chatty", "12.3", "0.0"]]


def test_table_of_styles_says_which_were_seen_and_has_their_means():
    console = Console(width=80, record=True, file=io.StringIO())
    styles = {
        name: {"t2v/R@1": value} for name, value in (("odd", 10.0), ("plain", 50.0), ("chatty", 20.0), ("new", 30.0))
    }
    console.print(styles_table("by style", {"a": styles}, train_styles=("chatty", "plain", "wordy")))
    lines = [line for line in console.export_text().splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert rows == [
        ["plain", "seen", "50.0"],
        ["chatty", "seen", "20.0"],
        ["odd", "unseen", "10.0"],
        ["new", "unseen", "30.0"],
        ["mean", "seen", "35.0"],
        ["mean", "unseen", "20.0"],
    ]


def test_table_of_seen_styles_alone_has_no_means():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(styles_table("by style", {"a": {"plain": {"t2v/R@1": 50.0}}}, train_styles=("plain",)))
    assert "seen" in console.export_text()
    assert "mean" not in console.export_text()


def test_titles_give_chance_and_the_size_of_the_gallery():
    assert metrics_table("title", {"": chance(23)}, num_clips=23).title == "title (R@1: chance 4.3, 23 clips)"
    assert (
        styles_table("title", {"a": {"plain": chance(23)}}, num_clips=23).title == "title (R@1: chance 4.3, 23 clips)"
    )
    assert metrics_table("title", {"": chance(23)}).title == "title"


def test_variants_follow_the_plain_metrics():
    console = Console(width=100, record=True, file=io.StringIO())
    one_way = {name: value for name, value in chance(10).items() if name.startswith("t2v")}
    result = {"metrics": chance(50), "variants": {"dsl": chance(20), "qb_norm": one_way}}
    console.print(metrics_table("title", rows_of(result)))
    rows = [line.split("│")[1].strip() for line in console.export_text().splitlines() if " to " in line]
    assert rows == [
        "text to video, plain",
        "text to video, DSL",
        "text to video, QB-Norm",
        "video to text, plain",
        "video to text, DSL",
    ]
