"""The command `waver serve` as a process: ports, the token, and how it ends."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from waver.search import SearchError
from waver.search.serving.judgements import JudgementError
from waver.search.serving.server import serve


@contextlib.contextmanager
def command(*arguments, **environment):
    """Runs `waver serve`; yields the process and the address that it prints."""
    child = subprocess.Popen(
        [sys.executable, "-m", "waver", "serve", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    printed, url = "", None
    try:
        assert child.stderr
        for line in child.stderr:
            printed += line
            if url := re.search(r"ready at (\S+)", line):
                break
        assert url, printed
        yield child, url[1], printed
    finally:
        child.kill()
        child.wait()


def get(url: str, path: str) -> int:
    connection = http.client.HTTPConnection(re.search(r"//([^/]+)", url)[1].replace("0.0.0.0", "127.0.0.1"), timeout=30)
    connection.request("GET", path)
    return connection.getresponse().status


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_it_serves_until_a_signal_and_ends_cleanly(index, tmp_path, ending, code):
    with command(index, "--port", 0, "--judgements", tmp_path / "judged.jsonl") as (child, url, printed):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert f"results that you judge good are written to {tmp_path / 'judged.jsonl'}" in printed
        assert get(url, "/") == get(url, "/api/search?query=a") == 200
        child.send_signal(ending)
        rest = child.stderr.read()
        assert child.wait(20) == code
        assert "Traceback" not in rest
        assert rest.strip().splitlines()[-1] == "ended"


@pytest.mark.slow
def test_beyond_loopback_it_prints_a_token(index, tmp_path):
    arguments = (index, "--host", "0.0.0.0", "--port", 0, "--judgements", tmp_path / "judged.jsonl")
    with command(*arguments) as (_, url, printed):
        token = re.search(r"\?token=([\w-]{32,})$", url)[1]
        assert "the connection is not encrypted" in printed.replace("\n", " ")
        assert get(url, "/") == get(url, "/videos/0/0") == 401
        assert get(url, f"/?token={token}") == 200


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(index):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SearchError, match=rf"cannot listen on 127\.0\.0\.1 port {port} .*--port \(0: any free one\)"
        ):
            serve([index], host="127.0.0.1", port=port, judgements=None)


@pytest.mark.slow
def test_without_a_port_the_next_free_one_is_taken_and_said(index, tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another program may have it, which serves as well
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with command(index, "--judgements", tmp_path / "judged.jsonl") as (_, url, printed):
            port = int(re.search(r":(\d+)/", url)[1])
            assert 8080 < port < 8100
            assert f"port 8080 is taken, so the page is on port {port}" in printed


def test_what_cannot_be_served_is_told(index, tmp_path):
    with pytest.raises(SearchError, match="3 indexes: the page shows one, or two"):
        serve([index] * 3, host="127.0.0.1", port=0, judgements=None)
    with pytest.raises(SearchError, match=r"there is no index in .*run `waver index RUN VIDEOS` first"):
        serve([tmp_path], host="127.0.0.1", port=0, judgements=None)
    with pytest.raises(JudgementError, match="name a file in another folder"):
        serve([index], host="127.0.0.1", port=0, judgements=tmp_path / "nothing" / "judged.jsonl")


@pytest.mark.slow
def test_without_the_extra_the_command_says_what_to_install(index):
    hidden = "import sys; sys.modules['fastapi'] = None; sys.argv = ['waver', 'serve', sys.argv[1]]; "
    code = f"{hidden}from waver.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, str(index)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "pip install -e '.[serve]'" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
