"""The page in a real browser, with a camera and a microphone that are made up: what a person does, and what they see.

It needs Gradio, Playwright and Chromium (Debian's package `chromium`), and is skipped where they are not there.
"""

import contextlib
import importlib.util
import json
import re
import shutil
import socket
import urllib.error
import urllib.request

import pytest

from mecap_jax.app.server import check_port, serving
from mecap_jax.app.site import Site
from mecap_jax.config import ConfigError
from mecap_jax.data.shards import ShardReader
from mecap_jax.experiment.workdir import claim_data
from tests.app.test_rollouts import append, completion, group
from tests.data.clips import audio_file, video_file
from tests.test_captioning import run  # noqa: F401 - a fixture

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FAKE_DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-sandbox")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING} (requirements-test-no-deps.txt)"),
    pytest.mark.filterwarnings("ignore"),  # Gradio's own
]
HOSTILE = "A ${1+1} {{value}} `calm` <img src=x onerror=console.error(1)> voice."
SECONDS = 40_000  # milliseconds until something must have appeared


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def place(run):  # noqa: F811
    """A directory of a finished run and of one that has only begun, with their data."""
    _, workdir, *_ = run
    claim_data(workdir, ShardReader(workdir.parent / "shards"))
    for step in (1, 2):
        fair, good = completion(HOSTILE, 1.0, emotion=0.2), completion("A very calm voice.", 3.0, emotion=0.9)
        append(workdir / "completions.jsonl", group(step, fair, good, clip="film", label="sad"))
        append(workdir / "metrics.jsonl", {"stage": "grpo", "step": step, "reward": step / 2, "kl": 0.1})
    (workdir.parent / "young").mkdir()
    append(workdir.parent / "young" / "metrics.jsonl", {"stage": "grpo", "step": 1, "reward": 0.5})
    return workdir.parent


@pytest.fixture(scope="module")
def address(place):
    checkpoints = {"mine": place / "run" / "checkpoints" / "sft", "twin": place / "run" / "checkpoints" / "sft"}
    with serving(Site(checkpoints, runs=place, data=place), port=free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FAKE_DEVICES))
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, address, width=1280):
    """A page that must not complain in its console, ask elsewhere or be wider than its window."""
    context = browser.new_context(viewport={"width": width, "height": 900}, permissions=["microphone", "camera"])
    context.set_default_timeout(SECONDS)
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#go")
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    context.close()


def choose(page, element, value):
    page.locator(f"#{element} input").first.click()
    page.get_by_role("option", name=value, exact=True).click()


def answer(page):
    """Captions that appear after a click."""
    page.evaluate("document.querySelector('#answer .mecap')?.remove()")
    page.click("#go")
    page.wait_for_selector("#answer .mecap")
    return page.inner_text("#answer")


def test_clips_from_files_devices_and_examples(browser, address, tmp_path):
    film = tmp_path / "一段 film 100% (1).mp4"
    film.write_bytes(video_file())
    (tmp_path / "words.wav").write_bytes(b"these are words")
    with visit(browser, address) as page:
        assert "there is nothing to caption yet" in answer(page)
        page.set_input_files("#file input[type=file]", film)
        page.wait_for_selector("#file >> text=film")
        choose(page, "other", "twin")
        said = answer(page)
        assert all(word in said for word in ("mine", "twin", "sound only", "picture only", "8 frames", "sound, 1.0"))
        assert page.locator("#answer .bars").count() == 2
        page.wait_for_function("document.querySelector('#answer video').readyState > 1")  # it can be played
        path = page.locator("#file a").first.get_attribute("href")
        with pytest.raises(urllib.error.HTTPError, match="404"):  # for anybody else
            urllib.request.urlopen(path)
        assert page.request.get(path).ok

        page.locator("#file [aria-label=Clear]").click()
        page.set_input_files("#file input[type=file]", tmp_path / "words.wav")
        page.wait_for_selector("#file >> text=words")
        assert re.search("error|media file|unsupported", answer(page)) and page.locator("#answer .error").count()

        page.get_by_label("example").check()
        choose(page, "example", "voice (no label)")
        assert "has no video" in answer(page)

        page.get_by_label("microphone").check()
        page.click("#mic button:has-text('Record')")
        page.wait_for_timeout(1200)
        page.click("#mic button:has-text('Stop') >> visible=true")
        page.wait_for_selector("#mic [aria-label=Play]")
        assert "sound, 1." in answer(page)


def test_a_face_from_the_camera(browser, address):
    with visit(browser, address) as page:
        page.get_by_label("camera").check()
        page.click("#camera button:has-text('Record')")
        page.wait_for_timeout(1500)
        page.click("#camera button:has-text('Stop')")
        page.wait_for_selector("#camera >> text=Recorded.")
        said = answer(page)
        assert "frames" in said and "picture only" in said and page.locator("#answer .error").count() == 0


def test_rollouts_of_a_finished_run_and_of_one_that_trains(browser, address, place):
    with visit(browser, address) as page:
        page.get_by_role("tab", name="Rollouts").click()
        page.wait_for_selector("#rows >> text=film >> visible=true")
        page.wait_for_selector("#curves svg")
        assert "run: 2 groups, 4 completions" in page.inner_text("#state")
        page.locator("#rows >> text=film >> visible=true").first.click()
        page.wait_for_selector("#group mark")
        group = page.inner_text("#group")
        assert (
            "A very calm voice." in group
            and HOSTILE in group
            and "advantage" in group
            and page.locator("#group video").count() == 1
        )

        steps = page.locator("#first input")
        steps.press("Control+a")
        steps.press_sequentially("12")  # the answer to its first digit is still under way when the second one is typed
        page.wait_for_selector("#count >> text=0 to 0 of 0")
        steps.fill("2")
        page.wait_for_selector("#count >> text=1 to 1 of 1")
        page.locator("#clip input, #clip textarea").first.press_sequentially("no such clip")
        page.wait_for_selector("#count >> text=0 to 0 of 0")

        steps.fill("0")
        page.locator("#clip input, #clip textarea").first.fill("")
        page.get_by_label("steps").check()
        page.wait_for_selector("#rows >> text=no spread >> visible=true")
        page.locator("#rows >> text=grpo >> visible=true").first.click()  # a step: its groups are listed
        page.wait_for_selector("#count >> text=1 to 1 of 1")
        assert page.get_by_label("groups").is_checked() and page.locator("#last input").input_value() == "2"

        page.locator("#run input").fill("../../etc")
        page.keyboard.press("Enter")
        page.wait_for_selector("#state .error")
        assert "leads out of" in page.inner_text("#state")

        choose(page, "run", "young")
        page.wait_for_selector("#state >> text=no completions (yet)")
        steps.fill("0")
        page.locator("#last input").fill("0")
        page.get_by_label("Follow while it trains").check()
        append(place / "young" / "completions.jsonl", group_of_a_young_run())
        page.wait_for_selector("#state >> text=young: 1 groups")
        page.wait_for_selector("#rows >> text=voice >> visible=true")


def group_of_a_young_run():
    return group(1, completion("low", 0.5), clip="voice")


def test_data_and_many_files_in_a_narrow_window(browser, address, tmp_path):
    (tmp_path / "a.wav").write_bytes(audio_file())
    (tmp_path / "b.wav").write_bytes(b"")
    with visit(browser, address, width=390) as page:
        page.click("text=Many files")
        page.set_input_files("#files input[type=file]", [tmp_path / "a.wav", tmp_path / "b.wav"])
        page.wait_for_selector("#files >> text=.wav >> nth=1")
        page.click("#go-all")
        page.wait_for_selector("#links a")
        with page.expect_download() as download:
            page.click("#links a >> text=captions.jsonl")
        rows = [json.loads(line) for line in download.value.path().read_text().splitlines()]
        assert [row["file"] for row in rows] == ["a.wav", "b.wav"] and "empty" in rows[1]["error"]
        page.get_by_role("tab", name="Data").click()
        page.wait_for_selector("#clips >> text=film >> visible=true")
        page.locator("#clips >> text=film >> visible=true").first.click()
        page.wait_for_selector("#clip-card video")
        assert "a sad voice" in page.inner_text("#clip-card") and "left out: 0" in page.inner_text("#about")


def test_all_that_is_served_is_behind_the_guard(address):
    from mecap_jax.app.page import launch_options

    assert launch_options()["num_workers"] == 0


def test_a_seed_that_was_emptied_is_zero(address):
    from mecap_jax.app.page import _settings

    assert _settings(2, 0, 8, None) == _settings(2, 0, 8, 0) and _settings(2, 0, 8, 7).seed == 7


def test_a_port_in_use_and_a_host_of_another_machine(address):
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"--port: {port} of 127.0.0.1 is in use"):
        check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--host=192.0.2.1"):
        check_port("192.0.2.1", port)
