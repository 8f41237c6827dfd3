"""Entry point of the command line."""

import logging
import sys
import traceback

import typer

from waver.cli import app
from waver.cli.options import configure_logging
from waver.cli.usage import usage_hints
from waver.config import ConfigError
from waver.tools.errors import bug_report, user_message

logger = logging.getLogger("waver")


def main() -> None:
    """Runs the command line; prints a message for an error that the user can resolve, and a traceback for a bug."""
    configure_logging()
    try:
        app()
    except SystemExit as ended:
        # Typer turns a KeyboardInterrupt into an exit with status 130; its message is in the chain of causes.
        if ended.code == 130:
            logger.warning(_interrupt_message(ended) or "stopped; run the same command again to continue")
        elif message := getattr(ended, "message", ""):
            logger.warning(message)
        elif ended.code == 2:  # Typer has printed which argument it does not know
            for hint in usage_hints(sys.argv[1:], typer.main.get_command(app).commands):
                logger.error(hint)
        raise
    except ConfigError as error:
        logger.error(str(error))
        sys.exit(2)
    except Exception as error:
        message = user_message(error)
        if message is None:
            traceback.print_exc()
            message = bug_report()
        else:
            message = f"error: {message}"
        logger.error(message)
        sys.exit(1)


def _interrupt_message(error: BaseException | None) -> str:
    """Returns the message of the KeyboardInterrupt that led to an exception; empty if it has none."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return str(error or "")


if __name__ == "__main__":
    main()
