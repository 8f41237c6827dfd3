"""The command line of waver: a module for each group of commands."""

from waver.cli import benchmarks, cluster, export, results, search, serve, stages
from waver.cli.options import app, with_verbosity

__all__ = ["COMMANDS", "app"]

COMMANDS = (
    stages.quickstart,
    cluster.doctor,
    stages.ingest,
    stages.embed,
    stages.vocabulary,
    stages.match,
    stages.train,
    results.import_,
    results.evaluate,
    results.robustness,
    results.board,
    results.compare,
    search.index,
    search.search,
    export.export,
    serve.serve,
    stages.tune,
    cluster.submit,
    benchmarks.bench,
)
"""All commands in the order in which `waver --help` and the README list them: the order of work."""

for command in COMMANDS:
    # `import` is a word of Python, so the name of its function ends in an underscore.
    app.command(command.__name__.rstrip("_"))(with_verbosity(command))
