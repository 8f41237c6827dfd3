import pytest

from waver.search import SearchError
from waver.search.serving.security import Access, choose_token, is_loopback, refusal

HERE = Access("127.0.0.1", 8080, None)
TOKEN = "a-token-of-32-letters-and-digits"
BEYOND = Access("0.0.0.0", 8080, TOKEN)
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "127.0.0.1:9000"])
def test_loopback_answers_to_its_own_names_also_through_a_tunnel(host):
    assert refusal(HERE, "GET", {"host": host}, ()) is None


@pytest.mark.parametrize(
    "host",
    ["evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "192.168.0.2:8080", "[", "0.0.0.0"],
)
def test_a_name_that_was_rebound_to_loopback_is_refused(host):
    assert refusal(HERE, "GET", {"host": host}, ())[0] == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (JSON, None),
        (JSON | {"origin": "http://localhost:8080"}, None),
        (JSON | {"origin": "https://localhost:8080"}, None),  # behind a proxy
        ({"content-type": "application/json; charset=utf-8"}, None),
        (JSON | {"origin": "http://evil.example"}, 403),
        (JSON | {"origin": "http://localhost:9999"}, 403),
        (JSON | {"origin": "null"}, 403),
        (JSON | {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ({"content-type": "text/plain"}, 415),  # what a form can send without a question
        ({}, 415),
    ],
)
def test_another_site_cannot_judge(headers, expected):
    refused = refusal(HERE, "POST", {"host": "localhost:8080", **headers}, ())
    assert (refused and refused[0]) == expected


def test_another_site_cannot_embed_videos_but_can_have_a_link():
    host = {"host": "localhost:8080", "sec-fetch-site": "cross-site"}
    assert refusal(HERE, "GET", host | {"sec-fetch-mode": "no-cors"}, ())[0] == 403
    assert refusal(HERE, "GET", host | {"sec-fetch-mode": "navigate"}, ()) is None


@pytest.mark.parametrize("tokens", [(), ("",), (TOKEN[:-1],), (f"{TOKEN}x",), ("käse",), (TOKEN.upper(),)])
def test_beyond_loopback_a_wrong_token_is_refused(tokens):
    assert refusal(BEYOND, "GET", {"host": "films.example"}, tokens)[0] == 401


def test_beyond_loopback_the_token_is_enough():
    assert refusal(BEYOND, "GET", {"host": "films.example"}, (TOKEN,)) is None
    assert refusal(BEYOND, "GET", {"host": "films.example"}, ("old", TOKEN)) is None


def test_tokens_are_random_or_chosen(monkeypatch):
    monkeypatch.delenv("WAVER_TOKEN", raising=False)
    assert choose_token("127.0.0.1") is None
    one, other = choose_token("0.0.0.0"), choose_token("0.0.0.0")
    assert one != other
    assert len(one) >= 32
    monkeypatch.setenv("WAVER_TOKEN", TOKEN)
    assert choose_token("0.0.0.0") == choose_token("127.0.0.1") == TOKEN
    for wrong in ("short", "with a space in it", "a&b=cdefghijklmnop"):
        monkeypatch.setenv("WAVER_TOKEN", wrong)
        with pytest.raises(SearchError, match=r"WAVER_TOKEN is too short, or has other .*: set it to 16"):
            choose_token("0.0.0.0")


def test_which_hosts_are_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "example.org", "127.0.0.1.nip.io")))


def test_addresses():
    assert HERE.url == "http://127.0.0.1:8080/"
    assert BEYOND.url == f"http://0.0.0.0:8080/?token={TOKEN}"
    assert Access("::1", 80, None).url == "http://[::1]:80/"
