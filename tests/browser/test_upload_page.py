"""Sending a file of weights from a browser: progress, trouble on the way, pauses, and the job that takes it in."""

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import story
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select

from service import jobs
from service.db import reading
from service.tables import Upload

NewPage = Callable[..., Page]
CONTENT = random.Random(1).randbytes(5 * 2**20 + 12_345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PARTS = "**/api/v1/uploads/*"
ANNOUNCE = "**/api/v1/uploads"
# Every text that the page says about the upload, in order.
RECORD = """() => {
  window.said = []
  const note = () => window.said.push(document.querySelector(".sending").innerText.replaceAll("\\n", " "))
  new MutationObserver(note).observe(document.getElementById("uploader"), { subtree: true, childList: true })
}"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(CONTENT)
    return path


def uploads(site: story.Site) -> list[tuple[str, bool]]:
    with reading(site.db) as session:
        return [(upload.sha256, upload.finished_at is not None) for upload in session.scalars(select(Upload))]


def methods(route: Route, of: dict[str, Callable[[Route], None]]) -> None:
    of.get(route.request.method, Route.continue_)(route)


def test_a_file_is_sent_over_a_bad_line_and_taken_in(
    empty_site: story.Site, new_page: NewPage, weights: Path
) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit")
    with page.expect_navigation():
        page.get_by_role("link", name="upload", exact=True).click()
    expect(page.get_by_text("dklbench upload model.safetensors")).to_be_hidden()
    page.evaluate(RECORD)
    offsets: list[str] = []

    def send(route: Route) -> None:
        offsets.append(route.request.headers["upload-offset"])
        if len(offsets) == 2:
            route.abort()  # the connection drops
        else:
            route.continue_()

    page.route(PARTS, lambda route: methods(route, {"PATCH": send}))
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#phase")).to_have_text("It is here")
    expect(page.locator("#detail")).to_have_text(f"sha256 {SHA256}")
    mib = 2**20
    assert list(map(int, offsets)) == [0, mib, mib, 2 * mib, 4 * mib]
    said: list[str] = page.evaluate("window.said")
    assert any("Reading it" in text for text in said)
    assert any(re.search(r"The connection broke; trying again in \d s", text) for text in said)
    assert {"19 %", "39 %", "79 %"} <= {found[0] for text in said if (found := re.search(r"\d+ %", text))}
    assert any("1.0 MiB of 5.0 MiB" in text for text in said)
    assert uploads(empty_site) == [(SHA256, True)]

    expect(page.locator('[name="upload"]')).to_have_value(SHA256)
    expect(page.locator("#outcome h2")).to_have_text("One thing to change")
    page.locator('[name="dataset"]').fill("digits")
    page.locator('[name="model.kind"]').select_option("cnn")
    page.locator('[name="model.cnn.width"]').fill("8")
    page.locator('[name="then:autoattack-digits-linf?"]').check()
    expect(page.locator("#command")).to_contain_text("--recipe autoattack-digits-linf")
    page.get_by_role("button", name="Submit").click()
    expect(page).to_have_url(re.compile(r"/jobs/[0-9a-f]{12}$"))
    expect(page.locator(".about").first).to_contain_text("Takes in uploaded weights of CNN-8")
    assert {(job.kind, job.name) for job in jobs.recent(empty_site.db)} == {
        ("import", None), ("evaluate", "autoattack-digits-linf"),
    }  # fmt: skip


def test_an_upload_pauses_goes_on_and_is_canceled(empty_site: story.Site, page: Page, weights: Path) -> None:
    page.goto(f"{empty_site.url}/submit/upload")
    page.route(PARTS, lambda route: methods(route, {"PATCH": lambda _: None}))  # a line on which nothing moves
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#phase")).to_have_text("Sending it")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#phase")).to_have_text("Paused")
    assert uploads(empty_site) == [(SHA256, False)]
    page.get_by_role("button", name="Go on").click()
    expect(page.locator("#phase")).to_have_text("Sending it")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#drop")).to_be_visible()
    page.wait_for_function("fetch('/api/v1/storage').then((a) => a.json()).then((s) => s.uploads.length === 0)")

    page.unroute(PARTS)
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#phase")).to_have_text("It is here")
    page.reload()
    page.locator("#file").set_input_files(weights)  # is there already
    expect(page.locator("#phase")).to_have_text("It is here")
    assert uploads(empty_site) == [(SHA256, True)]


def test_another_visit_goes_on_where_the_first_one_ended(
    empty_site: story.Site, page: Page, weights: Path
) -> None:
    page.goto(f"{empty_site.url}/submit/upload")
    offsets: list[int] = []

    def send(route: Route) -> None:
        offsets.append(int(route.request.headers["upload-offset"]))
        if len(offsets) != 2:  # the second part hangs until the page is left
            route.continue_()

    page.route(PARTS, lambda route: methods(route, {"PATCH": send}))
    page.locator("#file").set_input_files(weights)
    while len(offsets) < 2:  # what is sent is shown before it has arrived; the second part says that the first has
        page.wait_for_timeout(20)
    expect(page.locator("#detail")).to_contain_text("1.0 MiB of 5.0 MiB")
    page.reload()
    expect(page.locator(".unfinished")).to_contain_text("1.0 MiB of 5.0 MiB have arrived")
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#phase")).to_have_text("It is here")
    assert offsets[1:3] == [2**20, 2**20]


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(413, "this key stores 3 GiB of the 4 GiB that it may"), (507, "the disk is full"), (422, "of 9 bytes")],
)
def test_what_the_service_says_against_it_is_shown(
    empty_site: story.Site, new_page: NewPage, weights: Path, status: int, sentence: str
) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit/upload")
    page.route(ANNOUNCE, lambda route: route.fulfill(status=status, json={"detail": sentence}))
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#upload-fault")).to_have_text(sentence)
    page.unroute(ANNOUNCE)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#upload-fault")).to_be_empty()
    expect(page.locator("#phase")).to_have_text("It is here")


@pytest.mark.long
def test_too_many_requests_are_waited_for(empty_site: story.Site, new_page: NewPage, weights: Path) -> None:
    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit/upload")
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        refused.append(route.request.method)
        if len(refused) > 1:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"detail": "too many requests"})

    page.route(ANNOUNCE, refuse_once)
    page.locator("#file").set_input_files(weights)
    expect(page.locator("#phase")).to_have_text("The service is busy; trying again in 1 s")
    expect(page.locator("#phase")).to_have_text("It is here")
    assert len(refused) == 2


def test_an_empty_file_is_refused(empty_site: story.Site, page: Page, tmp_path: Path) -> None:
    page.goto(f"{empty_site.url}/submit/upload")
    (tmp_path / "nothing").touch()
    page.locator("#file").set_input_files(tmp_path / "nothing")
    expect(page.locator("#upload-fault")).to_have_text("nothing is empty")
    expect(page.locator("#drop")).to_be_visible()


def test_a_file_may_be_dropped(empty_site: story.Site, page: Page) -> None:
    page.goto(f"{empty_site.url}/submit/upload")
    page.evaluate("""() => {
      const data = new DataTransfer()
      data.items.add(new File(["weights"], "dropped.pt"))
      const dropped = new DragEvent("drop", { dataTransfer: data, cancelable: true })
      document.getElementById("drop").dispatchEvent(dropped)
    }""")
    expect(page.locator("#sending-name")).to_have_text("dropped.pt, 7 bytes")
    expect(page.locator("#phase")).to_have_text("It is here")


def test_without_javascript_the_commands_are_there(empty_site: story.Site, new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto(f"{empty_site.url}/submit/upload")
    expect(page.get_by_text("dklbench upload model.safetensors")).to_be_visible()
    expect(page.get_by_text(f"curl -X PATCH -T FILE {empty_site.url}/api/v1/uploads/ID")).to_be_visible()
    expect(page.locator("#file")).to_be_hidden()
    expect(page.locator('[name="dataset"]')).to_be_visible()


# --- sha256.js --------------------------------------------------------------------------------------------

# The digest of a blob of so many bytes, the n-th of which is n modulo 251.
DIGEST = """(length) => new Promise((done) => {
  const hasher = new Worker(document.getElementById("uploader").dataset.hasher)
  const bytes = Uint8Array.from({ length }, (_, at) => at % 251)
  hasher.onmessage = ({ data }) => { if (data.sha256 || data.error) done(data.sha256 ?? data.error) }
  hasher.postMessage(new Blob([bytes]))
})"""
PIECE = 4 * 2**20


@pytest.fixture(scope="module")
def pattern() -> bytes:
    return bytes(at % 251 for at in range(PIECE + 64))


def test_the_hasher_knows_the_standard(empty_site: story.Site, page: Page, pattern: bytes) -> None:
    """Lengths around the ends of blocks and of the pieces in which a file is read."""
    page.goto(f"{empty_site.url}/submit/upload")
    for length in (0, 1, 3, 55, 56, 63, 64, 65, 119, 120, PIECE - 1, PIECE, PIECE + 1, PIECE + 64):
        assert page.evaluate(DIGEST, length) == hashlib.sha256(pattern[:length]).hexdigest(), length


@pytest.mark.slow
def test_the_hasher_counts_beyond_four_gibibits(empty_site: story.Site, new_page: NewPage, tmp_path: Path) -> None:
    size = 513 * 2**20 + 1
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    announced: list[str] = []

    def refuse(route: Route) -> None:
        announced.append(route.request.post_data_json["sha256"])
        route.fulfill(status=507, json={"detail": "the disk is full"})

    page = new_page(expected="Failed to load resource")
    page.goto(f"{empty_site.url}/submit/upload")
    page.route(ANNOUNCE, refuse)
    page.locator("#file").set_input_files(tmp_path / "large")
    expect(page.locator("#upload-fault")).to_have_text("the disk is full", timeout=200_000)
    assert announced == [hashlib.sha256(bytes(size)).hexdigest()]
