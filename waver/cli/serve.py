"""The command that shows an index in a browser: `waver serve`."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    index_folders: Annotated[
        list[Path],
        typer.Argument(metavar="INDEX [INDEX2]", help="Folder of an index, or of two to compare.", show_default=False),
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. With 0.0.0.0, other machines can use the page with the token that is printed."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 takes any free one.", show_default="8080, or the next free one"),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSONL file for the results that you judge good; all verdicts are in NAME.verdicts.jsonl beside it.",
            show_default="judgements.jsonl in INDEX",
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Search indexed videos in a web page: watch, explain, compare and judge the results. Ctrl-C ends it."""
    from waver.search import SearchError

    try:
        from waver.search.serving.server import serve as serve_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise SearchError(
            f"the web page needs {error.name}, which is not installed: pip install -e '.[serve]'"
        ) from None
    serve_page(index_folders, host=host, port=port, judgements=judgements, open_browser=open_browser)
