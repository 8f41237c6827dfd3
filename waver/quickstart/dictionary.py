"""The dictionary of the quickstart's training captions, packaged for use without a spaCy model.

With a spaCy model, this command writes it again:

    python -m waver.quickstart.dictionary waver/quickstart/phrases
"""

import argparse
import logging
import tempfile
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from waver.config import ExperimentConfig
from waver.config.model import VocabularyConfig
from waver.knowledge.phrases import installed_parser
from waver.knowledge.store import Dictionary, read_dictionary, write_dictionary
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.world import WORLD, render_world

logger = logging.getLogger(__name__)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the dictionary")
    output = parser.parse_args().output
    if not has_parser():
        parser.error("spaCy or its model is not installed: pip install 'waver[test]'")
    with tempfile.TemporaryDirectory() as folder:
        render_world(Path(folder) / "world", **WORLD)
        write_dictionary(output, extract_or_copy_dictionary(quickstart_config(Path(folder), 1, {})))


def extract_or_copy_dictionary(config: ExperimentConfig) -> Dictionary:
    """Extracts the dictionary of the training captions; without a spaCy model, copies the packaged one.

    Writes it where the experiment reads its dictionary, and returns it.
    """
    if has_parser():
        return run_vocabulary(config)
    logger.info("no spaCy model is installed: using the packaged dictionary of the same captions")
    dictionary = packaged_dictionary()
    write_dictionary(config.dictionary, dictionary)
    return dictionary


def packaged_dictionary() -> Dictionary:
    """Returns the dictionary in the package."""
    with as_file(files("waver.quickstart") / "phrases") as folder:
        return read_dictionary(folder)


def has_parser() -> bool:
    """Returns whether spaCy and its small English model are installed."""
    return bool(find_spec("spacy") and installed_parser(VocabularyConfig().parser))


if __name__ == "__main__":
    main()
