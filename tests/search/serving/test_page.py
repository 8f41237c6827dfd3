"""The page in a real browser: search, play, explain, compare, judge, with keys, on a narrow screen, in the dark."""

import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)"),
]
WAIT_MS = 20_000
QUERY = "a red ball moves"
PLAYED = "() => { const film = document.querySelector('video'); return film && film.currentTime }"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens an address; fails if the page reports an error, or asks another server for something."""
    mistakes: list[str] = []
    pages = []

    def open_(url: str, **options):
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("console", lambda message: message.type == "error" and mistakes.append(message.text))
        page.on("request", lambda asked: asked.url.startswith((url[:20], "data:")) or mistakes.append(asked.url))
        page.goto(url)
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert mistakes == []


def search(page, query: str = QUERY):
    page.locator("#query").fill(query)
    page.keyboard.press("Enter")
    page.locator(".card").first.wait_for()
    page.wait_for_function("() => document.querySelector('#status').textContent.endsWith('results')")
    return page.locator(".card")


def film_card(page, name: str):
    return page.locator(".card", has=page.locator(".video", has_text=name)).first


def wait_until_it_plays(page, start_s: float, end_s: float) -> None:
    """Waits until the time of the film is within a span and moves on."""
    page.wait_for_function(f"() => {{ const t = ({PLAYED})(); return t !== null && t > {start_s} && t < {end_s} }}")
    before = page.evaluate(PLAYED)
    page.wait_for_function(f"before => {{ const t = ({PLAYED})(); return t !== null && t !== before }}", arg=before)


def test_results_are_those_of_the_index(start, index, open_page):
    server = start(index)
    page = open_page(server.url)
    page.get_by_text("first: 8 moments").wait_for()
    cards = search(page)
    found = server.json("/api/search", {"query": QUERY})["columns"][0]["answers"]
    assert cards.count() == len(found)
    assert cards.locator(".video").all_inner_texts() == [answer["video_id"] for answer in found]
    assert cards.locator(".score").all_inner_texts() == [f"{answer['score']:.3f}" for answer in found]
    assert "0:0" in cards.first.locator(".times").inner_text()
    page.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth === 16)")
    assert page.locator(".doubts").inner_text().startswith("Whether anything fits a query is unknown: ")


def test_a_result_plays_its_span_in_a_loop(start, index, open_page):
    page = open_page(start(index).url)
    search(page)
    page.locator("#filters summary").click()
    page.locator("#overlapping").check()
    card = page.locator(".card", has_text=re.compile("0:08 . 0:12")).first
    card.locator(".screen").click()
    wait_until_it_plays(page, 8, 12.1)
    page.evaluate("() => { document.querySelector('video').currentTime = 11.9 }")
    wait_until_it_plays(page, 8, 10)
    assert page.evaluate("() => document.querySelector('video').muted")
    card.locator(".screen").click()
    page.locator("video").wait_for(state="detached")


def test_a_result_plays_while_the_pointer_is_over_it(start, index, open_page):
    page = open_page(start(index).url)
    search(page)
    screen = film_card(page, "garden/short.mp4").locator(".screen")
    screen.hover()
    wait_until_it_plays(page, 0, 4.1)
    page.mouse.move(600, 20)
    page.locator("video").wait_for(state="detached")


def test_a_file_that_the_browser_cannot_play_has_a_preview(start, index, open_page):
    page = open_page(start(index).url)
    search(page)
    film_card(page, "kitchen/old.avi").locator(".screen").click()
    page.wait_for_function("() => document.querySelector('video')?.src.includes('/previews/')")
    wait_until_it_plays(page, 0, 4.1)
    assert page.locator(".trouble").count() == 0


def test_a_file_that_has_changed_keeps_its_picture_and_says_so(
    start, make_index, make_checkpoint, films, tmp_path, browser
):
    name = "garden/short.mp4"
    (tmp_path / "garden").mkdir()
    shutil.copy(films / name, tmp_path / name)
    server = start(make_index(make_checkpoint("wti", "changed", 3), tmp_path, {name: 4}))
    (tmp_path / name).write_bytes(b"another film")
    page = browser.new_page()  # which logs that the file is gone
    page.goto(server.url)
    search(page)
    page.locator(".screen").click()
    page.locator(".trouble", has_text="has changed since it was indexed").wait_for(timeout=WAIT_MS)
    assert page.locator("video").count() == 0
    page.close()


def test_the_time_line_of_a_film_plays_its_moments(start, index, open_page):
    server = start(index)
    page = open_page(server.url)
    search(page)
    film_card(page, "kitchen/long film.mp4").get_by_text("Film", exact=True).click()
    page.locator("#film[open]").wait_for()
    bars = page.locator("#film-line button")
    assert bars.count() == 5
    number = next(row for row, window in enumerate(server.site.searchers[0].index.rows) if "long" in window["video_id"])
    moments = server.json(f"/api/moments/0/{number}", {"query": QUERY})
    scores = [window["score"] for window in moments["windows"]]
    heights = bars.evaluate_all("bars => bars.map(bar => bar.offsetHeight)")
    assert heights.index(max(heights)) == scores.index(max(scores))
    assert heights.index(min(heights)) == scores.index(min(scores))
    assert page.locator("#film-best li").count() == len(moments["best"])
    bars.nth(4).click()
    wait_until_it_plays(page, 8, 12.1)
    page.keyboard.press("Escape")
    page.locator("video").wait_for(state="detached")


def test_why_shows_words_frames_and_weights(start, index, open_page):
    page = open_page(start(index).url)
    search(page)
    page.locator(".card").first.get_by_text("Why?").click()
    table = page.locator("#why .heat")
    table.wait_for()
    assert table.locator("tbody th").all_inner_texts() == ["<start>", "a", "red", "ball", "moves", "<end>", "weight"]
    assert table.locator("td.weight").count() == 6 + table.locator("thead img").count()
    page.wait_for_function("() => [...document.querySelectorAll('#why img')].every(image => image.naturalWidth === 16)")
    assert "by weights that the model has learned" in page.locator("#why-sentence").inner_text()


def test_two_models_answer_one_query_beside_each_other(start, index, other_index, open_page):
    page = open_page(start(index, other_index).url)
    search(page)
    columns = page.locator(".column")
    assert columns.locator("h2").all_inner_texts() == ["first films.index", "second films.index"]
    left, right = (columns.nth(number).bounding_box() for number in (0, 1))
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    columns.nth(1).locator(".card").first.get_by_text("Why?").click()
    page.locator("#why[open]").wait_for()
    assert "(interaction dp)" in page.locator("#why-sentence").inner_text()
    assert page.locator("#why td").count() == 0


def test_verdicts_hold_after_a_reload_and_can_be_withdrawn(start, index, open_page):
    server = start(index)
    page = open_page(server.url)
    first = search(page).first
    good, bad = (first.locator(f".actions .{name}") for name in ("good", "bad"))

    def wait_for(good_pressed: bool, bad_pressed: bool) -> None:
        for button, pressed in ((good, good_pressed), (bad, bad_pressed)):
            page.wait_for_function(
                "([button, pressed]) => button.getAttribute('aria-pressed') === String(pressed)",
                arg=[button.element_handle(), pressed],
            )

    wait_for(False, False)
    good.click()
    wait_for(True, False)
    assert f'"caption": "{QUERY}"' in server.site.judgements.path.read_text()
    bad.click()
    wait_for(False, True)
    assert server.site.judgements.path.read_text() == ""
    page.reload()
    page.locator(".card").first.wait_for()
    wait_for(False, True)
    bad.click()
    wait_for(False, False)


def test_keys_do_everything(start, index, open_page):
    server = start(index)
    page = open_page(server.url)
    search(page)
    page.locator("#filters summary").focus()
    page.keyboard.press("/")
    assert page.evaluate("() => document.activeElement.id") == "query"
    page.keyboard.press("ArrowDown")
    focused = "() => [...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    assert page.evaluate(focused) == 0
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == 1
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    wait_until_it_plays(page, -1, 13)
    page.keyboard.press("Enter")
    page.locator("video").wait_for(state="detached")
    page.keyboard.press("g")
    page.locator(".card.good").wait_for()
    page.keyboard.press("b")
    page.locator(".card.bad").wait_for()
    for key, dialog in (("w", "#why"), ("t", "#film"), ("?", "#help")):
        page.keyboard.press(key)
        page.locator(f"{dialog}[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator(dialog).wait_for(state="hidden")
        assert page.evaluate(focused) == 0, "the focus returns to the card"
    page.keyboard.press("/")
    page.keyboard.type("gb?w/")
    assert page.locator("#query").input_value() == "gb?w/", "keys are letters in the query"


def test_filters_long_empty_and_foreign_queries(start, index, open_page):
    page = open_page(start(index).url)
    page.keyboard.press("Enter")
    page.get_by_text("Write a sentence that describes what to find.").wait_for()
    search(page, "dog " * 13)
    assert "The query is too long: the model reads its first 10 words" in page.locator(".notice").inner_text()
    search(page, "رجل يطوي طائرة")
    assert page.evaluate("() => getComputedStyle(document.querySelector('#query')).direction") == "rtl"
    page.locator("#filters summary").click()
    page.locator("#folder").select_option("garden")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 1")
    page.locator("#min").fill("60")
    page.keyboard.press("Tab")
    page.get_by_text("No video passes the filters.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_the_dark(start, index, other_index, open_page, scheme):
    server = start(index, other_index)
    page = open_page(server.url, viewport={"width": 400, "height": 800}, color_scheme=scheme)
    cards = search(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 400
    lefts = cards.evaluate_all("cards => cards.map(card => card.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1, "one column"
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)"
    assert (sum(page.evaluate(brightness)) > 380) == (scheme == "light")
    cards.first.get_by_text("Why?").click()
    page.locator("#why .heat").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 400


def test_every_control_has_a_name(start, index, open_page):
    page = open_page(start(index).url)
    search(page)
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('button, input, select, [role]')].filter(control => "
        "!(control.textContent.trim() || control.getAttribute('aria-label') || control.labels?.length || "
        "control.getAttribute('aria-labelledby') || control.id === 'status')).map(control => control.outerHTML)"
    )
    assert nameless == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#query").get_attribute("dir") == "auto"


def test_the_token_leaves_the_address_and_stays_in_the_cookie(start, index, open_page):
    server = start(index, token="a-token-of-32-letters-and-digits")
    page = open_page(server.url)
    search(page)
    assert "token" not in page.url
    page.reload()
    page.locator(".card").first.wait_for()
    assert page.evaluate("() => document.cookie") == "", "scripts cannot read it"


def test_when_nothing_fits_the_page_says_so_with_the_error_rate(start, index, open_page):
    from waver.search.calibration import Calibration

    server = start(index)
    server.site.searchers[0].index.calibration = Calibration(2.0, 0.05, 0.7, 200, 100)
    page = open_page(server.url)
    search(page)
    assert page.locator(".nothing").inner_text() == "Probably nothing fits this query."
    assert "5%" in page.locator(".doubts").inner_text()


def test_a_server_that_has_ended_is_told(make_server, index, tmp_path, browser):
    with make_server(tmp_path, index) as server:
        page = browser.new_page()
        page.goto(server.url)
        search(page)
    page.locator("#query").fill("another")
    page.keyboard.press("Enter")
    page.get_by_text("The server does not answer: is waver serve still running?").wait_for(timeout=WAIT_MS)
    page.close()
