"""Renders the texts as TensorBoard does."""

import re
from html.parser import HTMLParser

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from waver.runs.tracking.texts import (
    best_text,
    command_text,
    config_text,
    data_text,
    environment_text,
    escape_cell,
    markdown_table,
    model_text,
    parameter_counts,
)
from waver.training.build import build_student

NASTY = (
    "a|b <script>alert(1)</script> <b>bold</b> `code` *em* _em_ __x__ [l](http://x) ![i](y) \\| ~~s~~ &amp; #1\n- new"
)


class _Tables(HTMLParser):
    """Rows of cells of all tables, as text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tables, self.cell, self.tags = [], None, []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None


def rendered(text: str) -> _Tables:
    parser = _Tables()
    parser.feed(markdown_to_safe_html(text))
    return parser


def test_cells_are_escaped():
    page = rendered(markdown_table((NASTY, "n"), [(NASTY, 1), ("plain", 2)]))
    as_one_line = " ".join(NASTY.split())
    assert page.tables == [[[as_one_line, "n"], [as_one_line, "1"], ["plain", "2"]]]
    assert set(page.tags) == {"table", "thead", "tbody", "tr", "th", "td"}  # no other markup


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.001, "0.001"), (1234567, "1,234,567"), ({"a": 1}, '{"a": 1}')],
)
def test_cells_format_values(value, text):
    assert rendered(markdown_table(("x", "y"), [("k", value)])).tables[0][1] == ["k", text]
    assert "|" not in escape_cell(value)


def test_config_text_has_a_table_per_section(tiny_config):
    text = config_text(tiny_config.model_dump(mode="json"))
    tables = rendered(text).tables
    titles = re.findall(r"<h4>(.*?)</h4>", markdown_to_safe_html(text))
    assert titles[:4] == ["experiment", "data", "video", "ingest"]
    assert len(tables) == len(titles)
    by_title = {title: dict(rows[1:]) for title, rows in zip(titles, tables, strict=True)}
    assert by_title["experiment"] == {"name": "tiny", "seed": "0"}
    assert by_title["train"]["lr"] == "0.001"
    assert by_title["text"]["prompt"] == "null"


def test_command_text_is_escaped_code():
    text = command_text(["waver", "train", "a b.yaml", "--set", "text.prompt=```</code><script>{}"])
    html = markdown_to_safe_html(text)
    assert html == (
        "<pre><code>waver train 'a b.yaml' --set 'text.prompt=```&lt;/code&gt;&lt;script&gt;{}'\n</code></pre>"
    )


def test_environment_text():
    (rows,) = rendered(
        environment_text(
            {
                "command": ["waver"],
                "torch": "2.14.1",
                "git_changes": "",
                "decord": None,
                "memory_bytes": 2**34,
                "gpus": ["H100", "H100"],
            }
        )
    ).tables
    assert rows[1:] == [
        ["torch", "2.14.1"],
        ["git_changes", "none"],
        ["decord", "unknown"],
        ["memory_bytes", "16.0 GiB"],
        ["gpus", "H100; H100"],
    ]


def test_data_text(captions, store, knowledge):
    text = data_text(captions, store.ledger, validation="own", knowledge=knowledge.summary())
    splits, reasons, known = rendered(text).tables
    # v03 of train and v20 of test could not be decoded; 28 clips have 1 to 4 captions.
    assert splits == [
        ["split", "clips", "captions", "decoded", "not decoded"],
        ["train", "14", "27", "13", "1"],
        ["validation", "5", "10", "5", "0"],
        ["test", "9", "24", "8", "1"],
    ]
    assert reasons == [["not decoded because", "clips"], ["corrupt", "2"]]
    assert dict(known[1:])["num_phrases"] == "12"
    assert "not leaky" in text
    assert "**leaky" in data_text(
        captions, store.ledger, validation="own", knowledge=knowledge.summary() | {"leaky": True}
    )
    assert "no knowledge is used" in data_text(captions, store.ledger, validation="own")


@pytest.mark.parametrize(
    "how", [{}, {"similarity.kind": "xti"}, {"model.temporal": "seqLSTM", "similarity.kind": "dp"}], ids=str
)
def test_model_text_counts_every_parameter_once(load_knowing, how):
    student = build_student(load_knowing(**how))
    student.backbone.requires_grad_(False)
    counts = parameter_counts(student)
    total = sum(parameter.numel() for parameter in student.parameters())
    frozen = sum(parameter.numel() for parameter in student.backbone.parameters())
    assert sum(map(sum, counts.values())) == total
    assert sum(frozen for _, frozen in counts.values()) == frozen
    assert counts["backbone: visual tower"] == (0, sum(p.numel() for p in student.backbone.clip.visual.parameters()))
    assert counts["knowledge fusion"] == (sum(p.numel() for p in student.fusion.parameters()), 0)
    assert counts["temporal aggregator"] == (sum(p.numel() for p in student.temporal.parameters()), 0)
    assert counts["logit scale"] == (0, 1)
    assert ("interaction" in counts) == (how.get("similarity.kind") != "dp")
    (rows,) = rendered(model_text(student)).tables
    assert rows[-1] == ["total", f"{total:,}", f"{total - frozen:,}", f"{frozen:,}"]


def test_best_text():
    metrics = {"t2v/R@1": 50.123, "t2v/MdR": 1.0, "v2t/R@1": 40.0, "v2t/MdR": 2.0}
    text = best_text(3, metrics, num_epochs=5)
    assert text.startswith("after epoch 3, the best of 5 so far")
    assert rendered(text).tables == [[["", "R@1", "MdR"], ["t2v", "50.12", "1.0"], ["v2t", "40.0", "2.0"]]]
    remarked = best_text(3, metrics, num_epochs=5, remarks=["R@1: chance 4.3, 23 clips"])
    assert rendered(remarked).tables == rendered(text).tables
    assert markdown_to_safe_html(remarked).endswith("<p>R@1: chance 4.3, 23 clips</p>")
