"""The routes, asked over real HTTP, also as an attacker asks."""

import json
import threading
import time
from pathlib import Path

import pytest

from waver.search import open_index

QUERY = "a red ball moves"
TOKEN = "a-token-of-32-letters-and-digits"
FILMS = {"garden/short.mp4": 0, "kitchen/long film.mp4": 1, "kitchen/old.avi": 6}
"""Name -> its first window."""


@pytest.fixture(scope="module")
def server(make_server, index, tmp_path_factory):
    """A server on which no test records a verdict."""
    with make_server(tmp_path_factory.mktemp("judged"), index) as server:
        yield server


def test_search_over_two_indexes(start, index, other_index):
    server = start(index, other_index)
    found = server.json("/api/search", {"query": QUERY, "top": 3})
    for folder, column in zip((index, other_index), found["columns"], strict=True):
        expected = [(answer.rank, answer.window_id) for answer in open_index(folder).search(QUERY, top=3)]
        assert [(answer["rank"], answer["window_id"]) for answer in column["answers"]] == expected
    names = [(shown["run"], shown["num_windows"]) for shown in server.json("/api/indexes")["indexes"]]
    assert names == [("first", 8), ("second", 8)]


def test_no_answer_is_no_error(server):
    found = server.json("/api/search", {"query": QUERY, "folder": "nowhere"})
    assert found["columns"][0]["answers"] == []
    assert found["columns"][0]["doubts"]["nothing_fits"] is None


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"query": " "}, "The query is empty"),
        ({}, "query: Field required"),
        ({"query": "a" * 2001}, "at most 2000 characters"),
        ({"query": "a", "top": 0}, "top: "),
        ({"query": "a", "top": "9" * 5000}, "top: "),
        ({"query": "a", "min_s": "nan"}, "min_s: "),
        ({"query": "a", "max_s": "soon"}, "max_s: "),
    ],
)
def test_wrong_requests_get_a_sentence(server, parameters, expected):
    status, _, content = server.ask("/api/search", parameters)
    assert status == 422
    assert expected in json.loads(content)["detail"]


def test_films_are_served_whole_and_in_ranges(server, films):
    for name, window in FILMS.items():
        content = (films / name).read_bytes()
        status, headers, body = server.ask(f"/videos/0/{window}")
        assert (status, body, headers["Accept-Ranges"]) == (200, content, "bytes")
        assert headers["Content-Type"].startswith("video/")
        size = len(content)
        for asked, part in (
            ("0-99", range(100)),
            ("-50", range(size - 50, size)),
            (f"{size - 5}-", range(size - 5, size)),
        ):
            status, headers, body = server.ask(f"/videos/0/{window}", Range=f"bytes={asked}")
            assert (status, body) == (206, content[part.start : part.stop])
            assert headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
            assert headers["Content-Length"] == str(len(body))
        status, headers, body = server.ask(f"/videos/0/{window}", Range=f"bytes={size}-")
        assert (status, headers["Content-Range"], body) == (416, f"bytes */{size}", b"")
        status, headers, body = server.ask(f"/videos/0/{window}", method="HEAD")
        assert (status, headers["Content-Length"], body) == (200, str(size), b"")
    tag = headers["ETag"]
    assert server.ask("/videos/0/6", Range="bytes=0-9", If_Range=tag)[0] == 206
    assert server.ask("/videos/0/6", Range="bytes=0-9", If_Range='"another"')[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/videos/0/../../../../etc/passwd",
        "/videos/../../../../etc/passwd",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/videos/0//etc/passwd",
        "/videos/0/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/videos/0/%252e%252e%252fetc%252fpasswd",
        "/videos/0/..%2f..%2fetc%2fpasswd",
        "/videos/0/%00",
        "/videos/0/1%00.mp4",
        "/videos/0/1/../../../etc/passwd",
        "/videos/0/-1",
        "/videos/-1/0",
        "/videos/0/8",
        "/videos/1/0",
        "/videos/0/1e0",
        "/videos/0/%EF%BC%91",
        f"/videos/0/{10**30}",
        f"/videos/0/{'9' * 5000}",
        f"/videos/{'9' * 5000}/0",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%252e%252e%252fapp.py",
        "/static//etc/passwd",
        "/static/index.html%00.js",
        "/thumbnails/0/../../windows.parquet",
        "/thumbnails/0/..%2f..%2fmanifest.json.jpg",
        "/thumbnails/0/-1.jpg",
        "/previews/0/..%2f..%2f0.mp4",
        "/previews/0/99.mp4",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_of_the_disk_is_served(server, path):
    status, headers, content = server.ask(path)
    assert status in (404, 422), content
    assert len(content) < 12_000
    assert b"root:" not in content
    assert b"import " not in content
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_file_that_was_swapped_is_not_served(start, make_index, make_checkpoint, films, tmp_path):
    name = "garden/short.mp4"
    video = tmp_path / name
    video.parent.mkdir()
    video.write_bytes((films / name).read_bytes())
    server = start(make_index(make_checkpoint("wti", "swapped", 3), tmp_path, {name: 4}))
    assert server.ask("/videos/0/0")[0] == 200
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for target in (secret, Path("/etc/passwd"), tmp_path, films / "kitchen" / "old.avi"):
        video.unlink()
        video.symlink_to(target)
        for route in ("/videos/0/0", "/previews/0/0.mp4"):
            status, _, content = server.ask(route)
            assert status == 410
            assert "since it was indexed: run `waver index` again" in json.loads(content)["detail"]
    explained = server.json("/api/explanation/0/0", {"query": QUERY})
    assert explained["frames"] is None
    assert "has changed" in explained["note"]
    video.unlink()
    assert server.ask("/videos/0/0")[0] == 410


def test_thumbnails(server, index):
    status, headers, content = server.ask("/thumbnails/0/3.jpg")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    answers = open_index(index).search(QUERY, top=100, distinct=False)
    assert content == next(answer.thumbnail for answer in answers if answer.window == 3).read_bytes()


@pytest.mark.slow
def test_explanations_have_the_frames_that_the_model_saw(server):
    explained = server.json("/api/explanation/0/3", {"query": QUERY})
    assert explained["note"] is None
    assert len(explained["frames"]) == len(explained["cosines"][0]) == 3
    assert [frame["time_s"] for frame in explained["frames"]] == pytest.approx([4.0, 6.0, 8.0], abs=0.6)
    assert all(frame["picture"].startswith("data:image/jpeg;base64,") for frame in explained["frames"])


def test_verdicts_of_both_indexes_are_one(start, index, other_index):
    server = start(index, other_index)
    assert server.judge(QUERY, 1, 3, "good") == [{"3": "good"}, {"3": "good"}]
    assert server.judge(f" {QUERY} ", 0, 3, "bad") == [{"3": "bad"}, {"3": "bad"}]
    assert server.json("/api/search", {"query": QUERY})["verdicts"] == [{"3": "bad"}, {"3": "bad"}]
    assert server.judge(QUERY, 0, 3, None) == [{}, {}]
    assert server.site.judgements.path.read_text() == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"verdict": "excellent"}, 422),
        ({"window": 99}, 422),
        ({"index": 5}, 404),
        ({"query": "null"}, 422),
        ({"query": " "}, 422),
        ({"window": None}, 422),
    ],
)
def test_wrong_verdicts_are_refused_and_not_recorded(server, change, expected):
    body = {"query": QUERY, "index": 0, "window": 1, "verdict": "good"} | change
    status, _, content = server.ask("/api/verdicts", method="POST", body=body)
    assert status == expected, content
    assert json.loads(content)["detail"]
    assert not server.site.judgements.path.exists()


def test_another_site_can_neither_read_nor_judge(server):
    body = {"query": QUERY, "index": 0, "window": 1, "verdict": "good"}
    ask = {"method": "POST", "body": body}
    assert server.ask("/api/verdicts", **ask, Origin="http://evil.example")[0] == 403
    assert server.ask("/api/verdicts", **ask, Content_Type="text/plain")[0] == 415
    assert server.ask("/api/indexes", Host="evil.example")[0] == 403
    assert server.ask("/videos/0/1", Host=f"evil.example:{server.access.port}")[0] == 403
    assert not server.site.judgements.path.exists()


def test_beyond_loopback_every_route_needs_the_token(start, index):
    server = start(index, token=TOKEN, host="0.0.0.0")
    routes = ["/", "/static/page.js", "/api/indexes", "/api/search?query=a", "/videos/0/1", "/thumbnails/0/1.jpg",
              "/previews/0/1.mp4", "/api/moments/0/1?query=a", "/api/explanation/0/1?query=a", "/nothing"]  # fmt: skip
    for route in routes:
        for headers in ({}, {"Cookie": f"{server.access.cookie}=wrong"}, {"Cookie": f"other={TOKEN}"}):
            status, answered, content = server.ask(route, **headers)
            assert (status, answered["Set-Cookie"]) == (401, None)
            assert b"token is missing or wrong" in content
    assert server.ask(f"/?token={TOKEN}x")[0] == 401
    status, headers, _ = server.ask(f"/?token={TOKEN}")
    assert status == 200
    cookie, *attributes = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    for route in routes[:6]:
        status, headers, _ = server.ask(route, Cookie=cookie)
        assert (status, headers["Set-Cookie"]) == (200, None)


def test_the_page_may_load_nothing_from_elsewhere(server):
    status, headers, page = server.ask("/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["Referrer-Policy"] == "no-referrer"
    assert b"http" not in page
    for name in ("page.css", "page.js", "api.js", "cards.js", "film.js", "keyboard.js", "player.js", "why.js"):
        status, headers, content = server.ask(f"/static/{name}")
        assert status == 200
        assert b"http" not in content


@pytest.mark.slow
def test_many_queries_at_once_get_their_own_answers(start, index, other_index):
    server = start(index, other_index)
    queries = [
        f"a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("ball", "box", "bird", "boat")
    ]
    expected = {query: server.json("/api/search", {"query": query})["columns"] for query in queries}
    found = {}

    def ask(query: str) -> None:
        found[query] = server.json("/api/search", {"query": query})["columns"]

    threads = [threading.Thread(target=ask, args=(query,)) for query in queries]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert time.monotonic() - started < 20
