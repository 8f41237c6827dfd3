"""Answers the requests of the page. A URL names a file by the numbers of an index and a window, never by its path."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from waver.search.answers import Answer
from waver.search.serving.explanation import pictures_of
from waver.search.serving.judgements import Judged, JudgementError, Judgements, Verdict
from waver.search.serving.ranges import file_response
from waver.search.serving.searcher import MAX_CHARACTERS, Filters, QueryError, Searcher
from waver.search.serving.videos import (
    MEDIA_TYPES,
    ChangedVideoError,
    Previews,
    Span,
    SpanReader,
    VideoError,
    open_indexed,
)
from waver.tools.errors import WaverError

MAX_ANSWERS = 200
_STATIC = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "api.js": "text/javascript",
    "cards.js": "text/javascript",
    "film.js": "text/javascript",
    "keyboard.js": "text/javascript",
    "player.js": "text/javascript",
    "why.js": "text/javascript",
}
"""Files of the page -> media type."""
_STATUS: dict[type[WaverError], int] = {
    QueryError: 422,
    JudgementError: 422,
    ChangedVideoError: 410,
    VideoError: 501,
}
"""Error -> status of the response, whose text is the message of the error; other errors have 500."""

Text = Annotated[str, Query(max_length=MAX_CHARACTERS)]
Seconds = Annotated[float | None, Query(ge=0)]


class VerdictRequest(BaseModel):
    """What the buttons Good and Bad send."""

    query: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    index: int
    window: int
    verdict: Verdict | None
    """None withdraws an earlier verdict."""


@dataclass(frozen=True)
class Site:
    """What the page shows."""

    searchers: Sequence[Searcher]
    """One or two indexes."""
    judgements: Judgements
    reader: SpanReader
    previews: Previews

    def searcher(self, index: int) -> Searcher:
        """Returns an index by its number.

        Raises:
            HTTPException: if there is none.
        """
        if not 0 <= index < len(self.searchers):
            raise HTTPException(404, "There is no such index.")
        return self.searchers[index]

    def span(self, index: int, window: int) -> Span:
        """Returns the span of a window; see `searcher` and `Searcher.span`."""
        return self.searcher(index).span(window)

    def verdicts(self, query: str) -> list[dict[int, Verdict]]:
        """Returns the verdicts on a query: one mapping per index, from the number of a window to its verdict."""
        judged = self.judgements.of_query(query.strip())
        return [
            {number: verdict for pair, verdict in judged.items() if (number := searcher.number_of(pair)) is not None}
            for searcher in self.searchers
        ]


def build_app(site: Site) -> FastAPI:
    """Builds the application, without the checks of `waver.search.serving.security`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(WaverError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    _add_page(app)
    _add_search(app, site)
    _add_judgements(app, site)
    _add_files(app, site)
    return app


def _add_page(app: FastAPI) -> None:
    folder = files("waver.search.serving") / "page"
    contents = {name: (folder / name).read_bytes() for name in ("index.html", *_STATIC)}

    @app.get("/")
    def page() -> Response:
        return Response(contents["index.html"], media_type="text/html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            raise HTTPException(404, "There is no such file.")
        return Response(contents[name], media_type=_STATIC[name])


def _add_search(app: FastAPI, site: Site) -> None:
    @app.get("/api/indexes")
    def indexes() -> dict[str, Any]:
        shown = [
            {
                "run": searcher.run,
                "name": searcher.index.path.resolve().name,
                "num_windows": len(searcher.index),
                "folders": searcher.folders,
            }
            for searcher in site.searchers
        ]
        return {"indexes": shown, "judgements": str(site.judgements.path)}

    @app.get("/api/search")
    def search(
        query: Text,
        top: Annotated[int, Query(ge=1, le=MAX_ANSWERS)] = 12,
        folder: str = "",
        min_s: Seconds = None,
        max_s: Seconds = None,
        overlapping: bool = False,
    ) -> dict[str, Any]:
        filters = Filters(folder, min_s, max_s)
        columns = []
        for searcher in site.searchers:
            answers = searcher.answers(query, top, filters, distinct=not overlapping)
            columns.append(
                {
                    "answers": [_answer_json(answer) for answer in answers],
                    "doubts": searcher.doubts(answers[0].score if answers else None),
                    "cut": searcher.describe_cut(query),
                }
            )
        return {"query": query, "columns": columns, "verdicts": site.verdicts(query)}

    @app.get("/api/moments/{index}/{window}")
    def moments(index: int, window: int, query: Text) -> dict[str, Any]:
        return site.searcher(index).moments(query, window)

    @app.get("/api/explanation/{index}/{window}")
    def explanation(index: int, window: int, query: Text) -> dict[str, Any]:
        searcher = site.searcher(index)
        explained, num_frames = searcher.explain(query, window)
        model, span = searcher.index.model, searcher.span(window)
        return asdict(explained) | pictures_of(site.reader, model, span, num_frames)


def _answer_json(answer: Answer) -> dict[str, Any]:
    names = ("rank", "score", "window", "window_id", "video_id", "start_s", "end_s")
    return {name: getattr(answer, name) for name in names}


def _add_judgements(app: FastAPI, site: Site) -> None:
    @app.get("/api/verdicts")
    def verdicts(query: Text) -> list[dict[int, Verdict]]:
        return site.verdicts(query)

    @app.post("/api/verdicts")
    def judge(asked: VerdictRequest) -> list[dict[int, Verdict]]:
        searcher = site.searcher(asked.index)
        span = searcher.span(asked.window)
        judged = Judged(asked.query.strip(), str(span.path), span.start_s, span.end_s)
        site.judgements.record((judged, searcher.index.rows[asked.window]["video_id"], asked.verdict))
        return site.verdicts(asked.query)


def _add_files(app: FastAPI, site: Site) -> None:
    methods = ["GET", "HEAD"]

    @app.api_route("/videos/{index}/{window}", methods=methods)
    def video(request: Request, index: int, window: int) -> Response:
        span = site.span(index, window)
        media_type = MEDIA_TYPES.get(span.path.suffix.lower(), "application/octet-stream")
        return file_response(request, open_indexed(span), media_type=media_type, etag=span.source)

    @app.api_route("/previews/{index}/{window}.mp4", methods=methods)
    def preview(request: Request, index: int, window: int) -> Response:
        span = site.span(index, window)
        file = site.previews.open(span, f"{index}-{window}.mp4")
        return file_response(request, file, media_type="video/mp4", etag=f"{span.source}-{index}-{window}")

    @app.get("/thumbnails/{index}/{window}.jpg")
    def thumbnail(index: int, window: int) -> Response:
        searcher = site.searcher(index)
        try:
            content = searcher.thumbnail(window).read_bytes()
        except OSError:
            raise HTTPException(404, "The thumbnail is missing: only a new index would have it.") from None
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _answer_error(request: Request, error: Exception) -> Response:
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    return JSONResponse({"detail": str(error)}, status)


def _answer_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse({"detail": f"The request is not valid: {place}: {first['msg']}."}, 422)
