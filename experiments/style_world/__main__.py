"""Compares ways of fine-tuning on writers whom training never saw.

    python -m experiments.style_world [--output style_world] [--rotations 5] [--seeds 5]

1. Renders the world, decodes it, and embeds frames and captions with the pre-trained backbone, once.
2. Builds the dictionaries of each rotation, and matches their phrases with the clips.
3. Tunes each way on validation with captions of seen writers, with six trials in each of two rotations.
4. Trains each way with its best trial, in each rotation and with each seed, and tests it on captions of all writers.
5. Prints the tables of RESULTS.md and draws its plots.

A seed determines initial weights and the order of batches, and is the same for all ways, so that differences are paired.
Everything is kept in OUTPUT, and a command that was stopped continues. The same machine gives the same figures.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.style_world.dictionaries import random_words, shuffled_words, write_phrases
from experiments.style_world.report import write_report
from experiments.style_world.runs import Job
from experiments.style_world.study import NUM_ROTATIONS, Asked, Place, run_all
from experiments.style_world.ways import DECAY, PHRASES, WAYS, Way
from experiments.style_world.world import render_world
from waver.config import parse_overrides
from waver.knowledge.store import Dictionary
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.embed import embed
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.quickstart.weights import unpack
from waver.runs.embeddings import Needs
from waver.runs.inputs import load_captions, open_store

TUNED_ROTATIONS, TUNING_SEED = (0, 2), 1000
"""Rotations in which ways are tuned, and the first of the seeds, which the comparison does not use."""


def main(
    output: Path = Path("style_world"),
    rotations: int = NUM_ROTATIONS,
    seeds: int = 5,
    ways: Annotated[list[str], typer.Option("--way", help="a way to compare with the first; all by default")] = [],  # noqa: B006
    overrides: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006 (typer's way)
) -> None:
    """Runs the experiment, prints its tables in Markdown, and writes them with its plots into OUTPUT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    here = Path(__file__).parent
    place = Place(output.absolute(), here / "experiment.yaml", parse_overrides(overrides))
    chosen = {name: way for name, way in WAYS.items() if not ways or name in (*ways, next(iter(WAYS)))}
    render_world(output / "world")
    unpack(here / "backbone.safetensors", output / "backbone.safetensors")
    with connect() as where:
        print(where)
        stores = prepare(place, chosen.values(), sorted({*range(rotations), *TUNED_ROTATIONS}))
        tuned = tune(place, chosen, stores)
        asked = [
            ask(place, name, way, rotation, seed, tuned[name], stores)
            for rotation in range(rotations)
            for seed in range(seeds)
            for name, way in chosen.items()
        ]
        results = run_all(asked, output / "runs", stores["made_from"], doing="training")
        found = {(one.way, one.rotation, one.seed): result for one, result in results}
    write_report(output / "report", chosen, found, tuned, load_captions(asked[0].job.config))


def prepare(place: Place, ways: Iterable[Way], rotations: Iterable[int]) -> dict[str, Any]:
    """Makes everything that runs share; returns the embedding stores, and what all is made from."""
    everything = place.config(Way(all_writers=True), 0, 0, {})
    run_ingest(everything)
    captions = load_captions(everything)
    store = open_store(everything, captions)
    train = sorted({row["caption"] for row in captions.to_pylist() if row["split"] == "train"})
    paths = embed(everything, store, Needs(store.ok_clip_ids(), train, makes_captions=True))
    needed = {way.dictionary for way in ways if way.settings.get("knowledge.top_k")}
    digests = [make_dictionary(place, name, rotation).digest for rotation in rotations for name in sorted(needed)]
    return {
        "frames": paths.frames,
        "captions": paths.tokens,
        "made_from": " ".join([store.manifest["digest"], *map(_digest, _inputs(place)), *digests]),
    }


def _inputs(place: Place) -> tuple[Path, ...]:
    """Returns the files from which all is made: results from others do not count."""
    return place.output / "backbone.safetensors", place.output / "world" / "captions.jsonl"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def make_dictionary(place: Place, name: str, rotation: int) -> Dictionary:
    """Makes a dictionary of a rotation, and matches its phrases with all clips."""
    seen = place.config(Way(PHRASES, all_writers=name == "all"), rotation, 0, {})
    phrases = run_vocabulary(seen).phrases["phrase"].to_pylist()
    way = Way({**PHRASES, "knowledge.fusion": "gated"}, dictionary=name)
    config = place.config(way, rotation, 0, {})
    if name != "seen":
        captions = load_captions(seen).to_pylist()
        words = [row["caption"] for row in captions if row["split"] == "train"]
        made = {"all": phrases, "shuffled": shuffled_words(phrases), "random": random_words(phrases, words)}
        write_phrases(config.vocabulary.file, made[name])
    dictionary = run_vocabulary(config)
    run_match(config)
    return dictionary


def ask(
    place: Place, name: str, way: Way, rotation: int, seed: int, tuned: dict[str, Any], stores: dict[str, Any]
) -> Asked:
    """Returns a run of a way."""
    config = place.config(way, rotation, seed, tuned)
    job = Job(
        config,
        stores["frames"],
        stores["captions"],
        tuned.get(DECAY, 0.0),
        only_validation=seed >= TUNING_SEED,
        averages=way.averages,
    )
    return Asked(name, rotation, seed, job)


def tune(place: Place, ways: dict[str, Way], stores: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the trial of each way with the highest validation R@1 of seen writers, on average over two rotations."""
    asked = {
        (name, number, rotation): ask(place, name, way, rotation, TUNING_SEED + rotation, trial, stores)
        for name, way in ways.items()
        for number, trial in enumerate(way.trials())
        for rotation in TUNED_ROTATIONS
    }
    results = run_all(asked.values(), place.output / "runs", stores["made_from"], doing="tuning")
    of_job = {id(one): max(found["validation"] for found in result.values()) for one, result in results}
    best = {}
    for name, way in ways.items():
        means = [
            np.mean([of_job[id(asked[name, number, rotation])] for rotation in TUNED_ROTATIONS])
            for number in range(len(way.trials()))
        ]
        best[name] = way.trials()[int(np.argmax(means))]
    (place.output / "tuned.json").write_text(json.dumps(best, indent=1))
    return best


if __name__ == "__main__":
    typer.run(main)
