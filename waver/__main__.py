"""Entry point of the command line."""

import sys

from waver.cli import cluster, results, stages  # noqa: F401  they add their commands to the app
from waver.cli.options import _say, app
from waver.config import ConfigError
from waver.tools.errors import raised_by_waver


def main() -> None:
    """Entry point: mistakes of the user end in a sentence, not in a traceback."""
    try:
        app()
    except SystemExit as ended:
        # typer makes an exit of Ctrl-C; what was said with it is further down.
        if ended.code == 130:
            _say(_interrupt(ended) or "stopped; run the same command again to go on from what is kept")
        elif message := getattr(ended, "message", ""):
            _say(message)
        raise
    except ConfigError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:  # the machine refused: a full disk, no permission
        _say(f"error: {error}")
        sys.exit(1)
    except ValueError as error:
        if not raised_by_waver(error):
            raise
        _say(f"error: {error}")
        sys.exit(1)


def _interrupt(error: BaseException | None) -> str:
    """The message of the KeyboardInterrupt that led to an exception."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return str(error or "")


if __name__ == "__main__":
    main()
