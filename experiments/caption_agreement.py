"""Measures on text alone how much the writers of one clip agree: in words, and in phrases of the dictionary.

    python experiments/caption_agreement.py MSVD=captions_msvd.json VATEX=videocap5data.json [--output agreement.json]
    python experiments/caption_agreement.py IT=videodatainfo.json.gz --translated IT=MSRVTT_JSFUSION_test.csv

Each data set is NAME=FILE: a mapping from clips to captions (MSVD), an object with `sentences` (MSR-VTT), or a list of
`enCap` (VATEX). Needs `pip install -e '.[vocabulary,robustness]'` and spaCy's small English model, and takes a minute for
each data set on one core.

The premise of WAVER is that phrases of an open dictionary say what is common to captions of different writers. For each
measure, the script compares pairs of captions of one clip with pairs of captions of two clips (chance). Intervals are 95 %,
of Student's t over clips.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import open_clip
import typer

from waver.data.annotations.reading import Problems, read_json
from waver.evaluation.intervals import MeanInterval, t_interval
from waver.knowledge.phrases import load_parser, phrases_of, repair_possessives
from waver.tools.errors import WaverError
from waver.tools.files import write_json

if TYPE_CHECKING:
    from spacy.tokens import Doc

Units = frozenset[str]
"""What a caption is compared by, such as its words."""


def words_of(doc: "Doc") -> Units:
    """Returns the words of a caption in lower case, without punctuation."""
    return frozenset(token.lower_ for token in doc if not token.is_punct and not token.is_space)


def content_words_of(doc: "Doc") -> Units:
    """Returns the words of a caption in lower case, without punctuation and spaCy's stop words."""
    return frozenset(token.lower_ for token in doc if not (token.is_punct or token.is_space or token.is_stop))


def content_lemmas_of(doc: "Doc") -> Units:
    """Returns the lemmas of the content words, since the objects of phrases are lemmas too."""
    return frozenset(token.lemma_.lower() for token in doc if not (token.is_punct or token.is_space or token.is_stop))


def phrases_in(doc: "Doc") -> Units:
    """Returns the phrases of a caption, as the dictionary has them."""
    return frozenset(phrases_of(doc))


def phrase_lemmas_of(doc: "Doc") -> Units:
    """Returns the lemmas of the words in phrases, without stop words: phrases that need not agree to the letter."""
    lemma_of = {token.lower_: token.lemma_.lower() for token in doc}
    words = {word for phrase in phrases_of(doc) for word in phrase.split()}
    return frozenset(lemma_of.get(word, word) for word in words if not doc.vocab[word].is_stop)


MEASURES: Mapping[str, Callable[["Doc"], Units]] = {
    "words": words_of,
    "words without stop words": content_words_of,
    "lemmas without stop words": content_lemmas_of,
    "phrases": phrases_in,
    "lemmas in phrases": phrase_lemmas_of,
}
"""Row of the table -> what captions are compared by."""


@dataclass(frozen=True)
class Agreement:
    """How much the captions of a clip agree by one measure; means over clips."""

    within: MeanInterval
    """Jaccard overlap of two captions of a clip."""
    chance: MeanInterval
    """Jaccard overlap of two captions of two clips."""
    shared: MeanInterval
    """Share of the pairs of a clip that have something in common."""
    told_apart: MeanInterval
    """Probability that two captions of a clip overlap more than two of different clips; ties count half, chance is 0.5."""
    by_clip: np.ndarray
    """(clips,) `told_apart` of each clip."""


def jaccard(first: Units, second: Units) -> float:
    """Returns the size of the intersection over that of the union; 0 if both are empty, since nothing is shared."""
    return len(first & second) / max(1, len(first | second))


def measure_agreement(clips: Sequence[Sequence[Units]]) -> Agreement:
    """Compares the captions of each clip with one another, and with those of the next clip.

    Args:
        clips: for each clip what its captions are compared by; at least two clips with two captions each, in random order.
    """
    rows = []
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        within = np.array([jaccard(*pair) for pair in combinations(clip, 2)])
        between = np.array([jaccard(*pair) for pair in product(clip, other)])
        higher = (within[:, None] > between[None]) + 0.5 * (within[:, None] == between[None])
        rows.append((within.mean(), between.mean(), (within > 0).mean(), higher.mean()))
    columns = np.array(rows).T
    return Agreement(*(t_interval(column) for column in columns), by_clip=columns[3])


def read_captions(path: Path) -> dict[str, list[str]]:
    """Reads clip -> captions from a file in one of the three forms.

    Raises:
        WaverError: if the file cannot be read, or has another form.
    """
    problems = Problems()
    is_read, content = read_json(path, problems)
    problems.raise_if_any(path)
    assert is_read, "else there is a problem"
    captions: dict[str, list[str]] = {}
    if isinstance(content, dict) and isinstance(content.get("sentences"), list):
        for row in content["sentences"]:
            captions.setdefault(row["video_id"], []).append(row["caption"])
    elif isinstance(content, dict) and all(isinstance(value, list) for value in content.values()):
        captions = {str(clip): list(texts) for clip, texts in content.items()}
    elif isinstance(content, list) and all(isinstance(row, dict) and "enCap" in row for row in content):
        captions = {row["videoID"]: row["enCap"] for row in content}
    else:
        raise WaverError(
            f"{path}: is neither a mapping from clips to captions, nor an object with `sentences`, nor a list with `enCap`"
        )
    return captions


def sample(captions: Mapping[str, Sequence[str]], *, clips: int, per_clip: int, seed: int) -> dict[str, list[str]]:
    """Draws clips, in random order, and captions of each; clips with one caption are left out."""
    rng = np.random.default_rng(seed)
    ids = sorted(clip for clip, texts in captions.items() if len(texts) > 1)
    drawn: dict[str, list[str]] = {}
    for place in rng.permutation(len(ids))[:clips].tolist():
        texts = captions[ids[place]]
        drawn[ids[place]] = [texts[number] for number in rng.permutation(len(texts))[:per_clip].tolist()]
    return drawn


def parse(captions: Mapping[str, Sequence[str]], parser: Any) -> dict[str, list["Doc"]]:
    """Parses all captions as the dictionary is built; returns clip -> parses."""
    texts = [repair_possessives(" ".join(text.split())) for part in captions.values() for text in part]
    docs = iter(parser.pipe(texts))
    return {clip: [next(docs) for _ in part] for clip, part in captions.items()}


def agreement_table(name: str, docs: Mapping[str, Sequence["Doc"]]) -> tuple[str, dict[str, Any]]:
    """Makes the table of a data set in Markdown, and its content as JSON."""
    units = {row: [[of(doc) for doc in part] for part in docs.values()] for row, of in MEASURES.items()}
    found = {row: measure_agreement(clips) for row, clips in units.items()}
    share = float(np.mean([bool(caption) for clip in units["phrases"] for caption in clip]))
    for row in ("phrases", "lemmas in phrases"):
        rich = [part for clip in units[row] if len(part := [caption for caption in clip if caption]) > 1]
        if len(rich) > 1:
            found[f"{row}, of captions that have one"] = measure_agreement(rich)
    lines = [
        f"| {name}: {len(docs)} clips | same clip | two clips | pairs that share one | told apart |",
        "|---|---|---|---|---|",
    ]
    for row, one in found.items():
        cells = (_percent(value) for value in (one.within, one.chance, one.shared, one.told_apart))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines.append(f"\n{100 * share:.0f} % of the captions have a phrase.")
    content: dict[str, Any] = {"clips": len(docs), "share_with_phrase": share}
    for row in ("phrases", "lemmas in phrases"):
        gap = t_interval(100 * (found[row].by_clip - found["lemmas without stop words"].by_clip))
        ends = f"{gap.mean:+.1f} points ({gap.low:+.1f} to {gap.high:+.1f})"
        lines.append(f"Told apart by {row} less told apart by lemmas without stop words: {ends}.")
        content[f"{row} less lemmas"] = _ends(gap)
    content |= {row: {key: _ends(getattr(one, key)) for key in _COLUMNS} for row, one in found.items()}
    return "\n".join(lines) + "\n", content


_COLUMNS = ("within", "chance", "shared", "told_apart")


def translation_table(
    name: str, docs: Mapping[str, Sequence["Doc"]], english: Mapping[str, str], parser: Any
) -> tuple[str, dict[str, Any]]:
    """Says what of the machinery applies to captions in another language, beside English queries of the same clips."""
    queries = {clip: parser(text) for clip, text in english.items() if clip in docs}
    sides = {name: [doc for clip in queries for doc in docs[clip]], "English": list(queries.values())}
    lines = [f"| {len(queries)} clips | {' | '.join(sides)} |", "|---|---|---|"]
    rows = {
        "BPE tokens of CLIP for each word": [_tokens_per_word(part) for part in sides.values()],
        "captions in which the English parser finds a phrase, %": [
            100 * float(np.mean([bool(phrases_of(doc)) for doc in part])) for part in sides.values()
        ],
    }
    lines += [f"| {row} | {' | '.join(f'{value:.2f}' for value in values)} |" for row, values in rows.items()]
    clips = list(queries)
    for row, of in (("words without stop words", content_words_of), ("words", words_of)):
        same, other = (
            t_interval([np.mean([jaccard(of(doc), of(queries[query])) for doc in docs[clip]]) for clip, query in pairs])
            for pairs in (zip(clips, clips, strict=True), zip(clips, [*clips[1:], clips[0]], strict=True))
        )
        lines.append(f"| overlap with English, {row}: same clip; two clips | {_percent(same)} | {_percent(other)} |")
        rows[f"overlap, {row}"] = [*_ends(same), *_ends(other)]
    return "\n".join(lines) + "\n", {"clips": len(clips), **rows}


def _tokens_per_word(docs: Sequence["Doc"]) -> float:
    """Returns the mean number of tokens of CLIP's tokenizer for each word."""
    encode = open_clip.get_tokenizer("ViT-B-32").encode
    return sum(len(encode(doc.text)) for doc in docs) / sum(len(doc.text.split()) for doc in docs)


def _ends(found: MeanInterval) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def _percent(found: MeanInterval) -> str:
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _named(pairs: Sequence[str]) -> dict[str, Path]:
    named = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(named) < len(pairs):
        raise typer.BadParameter("write NAME=FILE for each data set, with different names")
    return {name: Path(path) for name, path in named.items()}


def main(
    data: Annotated[list[str], typer.Argument(help="NAME=FILE of each data set.", show_default=False)],
    translated: Annotated[
        list[str],
        typer.Option(help="NAME=CSV: English queries (columns video_id, sentence) of a data set in another language."),
    ] = [],  # noqa: B006 (typer's way)
    clips: Annotated[int, typer.Option(min=2, help="Clips to draw of each data set.")] = 600,
    captions: Annotated[int, typer.Option(min=2, help="Captions to draw of each clip.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file of all figures.")] = None,
) -> None:
    """Prints the tables in Markdown."""
    parser, content, english_of = load_parser("en_core_web_sm"), {}, _named(translated)
    draw = {"clips": clips, "per_clip": captions, "seed": seed}
    for name, path in _named(data).items():
        everything = read_captions(path)
        table, content[name] = agreement_table(name, parse(sample(everything, **draw), parser))
        print(table)
        if name in english_of:
            with english_of[name].open(encoding="utf-8", newline="") as file:
                english = {row["video_id"]: row["sentence"] for row in csv.DictReader(file)}
            both = {clip: texts for clip, texts in everything.items() if clip in english}
            docs = parse(sample(both, **draw), parser)
            table, content[f"{name}, English"] = translation_table(name, docs, english, parser)
            print(table)
    if output:
        write_json(output, {"seed": seed, "captions_per_clip": captions, "data": content})


if __name__ == "__main__":
    typer.run(main)
