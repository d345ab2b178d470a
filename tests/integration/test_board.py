"""The leaderboard's page on a real database: addresses, filters, ties, corruptions, files, and what it costs."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from samples import JUDGED, STARTED, provenance
from sqlalchemy import Engine, event, insert, select
from starlette.testclient import TestClient

from dkl.catalog import resolve
from dkl.events import CorruptionAccuracies, CorruptionsResult, Finished
from dkl.flags import Flags, pack
from dkl.intervals import wilson_interval
from dkl.protocols import CORRUPTIONS
from service import claims, jobs
from service.app import create_app
from service.db import reading, writing
from service.leaderboard import Sort
from service.measured import why_unranked
from service.settings import Settings
from service.tables import Job

IMAGES = 1000
EM_SPACES = re.compile(r"\s+")


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    """A browser that runs no JavaScript, and a service that does nothing else beside."""
    app = create_app(settings.model_copy(update={"database_url": database_url}))
    yield TestClient(app, headers={"Accept": "text/html"})
    app.state.dkl.db.dispose()


def finish(db: Engine, name: str, overrides: dict[str, object], finished: Finished) -> str:
    job = jobs.create(db, resolve(name, overrides), name=name)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, STARTED)
    claims.finish(db, claim, finished)
    return job.id


def attacked(
    db: Engine,
    robust: float,
    *,
    fallen: range | None = None,
    images: int = IMAGES,
    data: str = "d",
    model: dict[str, str] | None = None,
    recipe: str = "autoattack-digits-linf",
    **result: object,
) -> str:
    """An evaluation that found this robust accuracy; with `fallen` its flags say which images did not stand."""
    flags = None
    if fallen is not None:
        standing = np.ones(images, bool)
        standing[list(fallen)] = False
        robust = float(standing.mean())
        flags = Flags(data_sha256=data * 64, clean=pack(np.ones(images)), robust=pack(standing))
    changes = {
        "robust_accuracy": robust,
        "robust_interval": wilson_interval(robust * images, images),
        "images": images,
        "flags": flags,
    }
    finished = Finished(result=JUDGED.result.model_copy(update=changes | result))
    return finish(db, recipe, {"model": model or {"checkpoint": "a" * 64}}, finished)


def corrupted(db: Engine, accuracy: float, *, made_by: str = "CIFAR-10-C", **recipe: object) -> str:
    overrides = {"model": {"checkpoint": "a" * 64}, **recipe}
    severities = tuple(overrides.get("severities", (1, 2, 3, 4, 5)))
    row = {"accuracies": (accuracy,) * len(severities), "mean": accuracy}
    result = CorruptionsResult(
        images=10_000,
        clean_accuracy=0.95,
        clean_interval=(0.94, 0.96),
        corruption_accuracy=accuracy,
        corruption_interval=(accuracy - 0.01, accuracy + 0.01),
        severities=severities,
        table=tuple(CorruptionAccuracies(corruption=name, **row) for name in CORRUPTIONS),
        source=made_by,
        notes=(),
        warnings=(),
        checkpoint_sha256="a" * 64,
        architecture="CNN-32",
        preprocessing="none",
        provenance=provenance(resolve("corruptions-cifar10", overrides)),
        seconds=1.0,
    )
    return finish(db, "corruptions-cifar10", overrides, Finished(result=result))


def many(db: Engine, count: int) -> None:
    """Copies of one evaluation, straight into the table."""
    template = attacked(db, 0.0, fallen=range(1000))
    with writing(db) as session:
        row = session.execute(select(Job.__table__).where(Job.id == template)).mappings().one()
        copies = [dict(row) | {"id": f"{number:012x}"} for number in range(1, count)]
        session.execute(insert(Job.__table__), copies)


def rows(page: str) -> list[str]:
    """Ids of the rows of a page, in order."""
    return re.findall(r'<tr role="row" class="\w+" id="row-([^"]+)"', page)


def words(page: str) -> str:
    return EM_SPACES.sub(" ", re.sub(r"<[^>]*>", " ", page))


# --- addresses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/?dataset=nothing", 404, "There is no such board"),
        ("/?dataset=cifar10&threat_model=L1", 404, "There is no such board"),
        ("/?dataset=cifar10&eps=7/255", 404, "There is no such board"),
        ("/?dataset=%3Cscript%3Ealert(1)%3C/script%3E", 404, "&lt;script&gt;alert(1)"),
        ("/?page=1000000000", 404, "There is no page 1,000,000,000 here"),
        ("/?page=1000000001", 422, "page"),
        ("/?page=0", 422, "page"),
        ("/?page=one", 422, "page"),
        ("/?limit=0", 422, "limit"),
        ("/?limit=1001", 422, "limit"),
        ("/?eps=nan", 422, "eps"),
        ("/?eps=inf", 422, "eps"),
        ("/?eps=1e400", 422, "eps"),
        ("/?eps=-1", 422, "eps"),
        ("/?eps=8/0", 422, "eps"),
        ("/?eps=8/x", 422, "eps"),
        ("/?sort=luck", 422, "sort"),
        ("/?sort=--name", 422, "sort"),
        ("/?sort=rank;drop table jobs", 422, "sort"),
        ("/?threat_model=Linfty", 422, "threat_model"),
        ("/?source=hearsay", 422, "source"),
        ("/?extra_data=maybe", 422, "extra_data"),
        ("/?min_images=0", 422, "min_images"),
        ("/?min_images=9999999999999999999999", 422, "min_images"),
        ("/?search=" + "x" * 101, 422, "search"),
        ("/leaderboard/scatter.svg?dataset=nothing", 404, "there is no such board"),
        ("/leaderboard/scatter.svg?search=nothing-is-called-so", 404, "nothing to draw"),
        ("/leaderboard/best.svg?search=nothing-is-called-so", 404, "nothing to draw"),
        ("/leaderboard/best.svg?limit=0", 422, "limit"),
        ("/leaderboard/else.svg", 404, "nothing at"),
    ],
)
def test_bad_addresses_are_answered_by_a_page_that_says_so(
    client: TestClient, address: str, status: int, said: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/html")
    assert said.casefold() in answer.text.casefold()
    assert "<script>alert" not in answer.text


def test_an_unknown_board_offers_the_known_ones(client: TestClient) -> None:
    page = client.get("/?dataset=nothing&threat_model=L2")
    links = re.findall(r'<a href="(/\?dataset=[^"]+)" hx-get', page.text)
    assert "/?dataset=cifar10&amp;threat_model=Linf&amp;eps=8/255" in links
    for link in links:
        assert client.get(link.replace("&amp;", "&")).status_code == 200


def test_a_page_beyond_the_last_leads_to_the_last(client: TestClient) -> None:
    page = client.get("/?dataset=cifar10&threat_model=Linf&sort=name&page=999")
    assert page.status_code == 404
    (link,) = re.findall(r'The last one is <a href="([^"]+)"', page.text)
    assert "sort=name" in link
    last = client.get(link.replace("&amp;", "&"))
    assert last.status_code == 200
    assert rows(last.text)


@pytest.mark.parametrize(
    "search", ["<script>alert(1)</script>", '"><img src=x>', "%", "{{ 70 * 11 }}", "\u202e", "☃"]
)
def test_whatever_is_searched_is_shown_as_text(client: TestClient, search: str) -> None:
    page = client.get("/", params={"dataset": "cifar10", "search": search})
    assert page.status_code == 200
    assert "No model matches" in page.text
    for raw in ("<script>alert", '"><img', "770"):
        assert raw not in page.text.split("No model matches")[1].split("</p>")[0]


def test_a_form_that_is_left_empty_asks_for_nothing(client: TestClient) -> None:
    empty = (
        "dataset=cifar10&threat_model=Linf&eps=8/255&sort=&search=&source=&architecture=&extra_data=&min_images="
    )
    page = client.get(f"/?{empty}", headers={"HX-Request": "true"})
    assert rows(page.text) == rows(client.get("/?dataset=cifar10").text)
    assert page.headers["hx-push-url"] == "/?dataset=cifar10&threat_model=Linf&eps=8/255"
    canonical = client.get(page.headers["hx-push-url"], headers={"HX-Request": "true"})
    assert "hx-push-url" not in canonical.headers


def test_every_sort_key_orders_the_whole_board(client: TestClient) -> None:
    headings = re.findall(r"<thead.*?</thead>", client.get("/?dataset=cifar10").text, re.DOTALL)[0]
    keys = {key.removeprefix("-") for key in re.findall(r"sort=(-?\w+)", headings)}
    assert keys == {key.removeprefix("-") for key in get_args(Sort)}
    for key in keys:
        for sort in (key, f"-{key}"):
            page = client.get(f"/?dataset=cifar10&threat_model=Linf&sort={sort}")
            direction = "descending" if sort.startswith("-") else "ascending"
            assert page.text.count("aria-sort") == page.text.count(f'aria-sort="{direction}"') == 1
            assert re.search(r"sorted by .+, from (high to low|low to high)", words(page.text))
    found = client.get("/api/v1/leaderboard?dataset=cifar10&limit=1000&sort=year").json()["rows"]
    known = [row["year"] for row in found if row["year"] is not None]
    assert known == sorted(known)
    assert all(row["year"] is None for row in found[len(known) :])


# --- filters and pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        ("source=published", lambda row: row["source"] == "published"),
        ("source=measured", lambda row: row["source"] == "measured"),
        ("architecture=wideRESNET-28", lambda row: "WideResNet-28" in row["architecture"]),
        ("extra_data=true", lambda row: row["extra_data"] is True),
        ("extra_data=false", lambda row: row["extra_data"] is False),
        ("min_images=10000", lambda row: (row["images"] or 0) >= 10_000),
        ("reliable=true", lambda row: not row["unreliable"]),
        ("standard=true", lambda row: row["suite"].split(",")[0] == "AutoAttack standard"),
        ("search=gowal", lambda row: "gowal" in (row["name"] + (row["authors"] or "")).casefold()),
    ],
)
def test_filters_leave_what_fits_and_all_of_it(client: TestClient, db: Engine, asked: str, holds) -> None:
    attacked(db, 0.5, recipe="autoattack-cifar10-linf")
    attacked(db, 0.4, recipe="autoattack-cifar10-linf", protocol="custom", warnings=("odd",))
    board = "/api/v1/leaderboard?dataset=cifar10&threat_model=Linf&limit=1000"
    every = client.get(board).json()["rows"]
    found = client.get(f"{board}&{asked}").json()["rows"]
    assert [row["entry"] for row in found] == [row["entry"] for row in every if holds(row)]
    assert 0 < len(found) < len(every)
    assert [row["rank"] for row in found] == [row["rank"] for row in every if holds(row)]
    page = client.get(f"/?dataset=cifar10&threat_model=Linf&{asked}&limit=1000").text
    assert f"{len(found):,} of {len(every):,} model" in words(page)


def test_pages_together_are_the_board(client: TestClient, db: Engine) -> None:
    many(db, 130)
    seen, address = [], "/?dataset=digits&sort=images"
    for _ in range(3):
        page = client.get(address).text
        seen += rows(page)
        onwards = re.findall(r'<a href="([^"]+)" hx-get="[^"]+">Next</a>', page)
        address = onwards[0].replace("&amp;", "&") if onwards else ""
    assert not address
    assert len(seen) == len(set(seen)) == 130


# --- ties -------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_told_from_the_leader_are_marked(client: TestClient, db: Engine) -> None:
    leader = attacked(db, 0, fallen=range(300))
    twin = attacked(db, 0, fallen=range(5, 308))
    worse = attacked(db, 0, fallen=range(320))
    old = attacked(db, 0.69)
    far = attacked(db, 0.5)
    found = client.get("/api/v1/leaderboard?dataset=digits").json()["rows"]
    marks = {row["entry"]: row["tied"] for row in found}
    assert marks == {leader: None, twin: "paired", worse: None, old: "intervals", far: None}
    page = client.get("/?dataset=digits").text
    assert page.count('class="tie"') == 2
    assert "exact McNemar test on the same images" in page
    assert "2 of 4 others" in words(page)
    hidden = client.get("/?dataset=digits&sort=clean_accuracy&limit=1&page=2").text
    assert hidden.count('class="tie"') == sum(marks[entry] is not None for entry in rows(hidden))
    better = attacked(db, 0, fallen=range(200))
    found = client.get("/api/v1/leaderboard?dataset=digits").json()["rows"]
    assert {row["entry"]: row["tied"] for row in found} == dict.fromkeys([better, leader, twin, worse, old, far])


def test_other_images_are_not_paired(client: TestClient, db: Engine) -> None:
    attacked(db, 0, fallen=range(300))
    attacked(db, 0, fallen=range(320), data="e")
    marks = [row["tied"] for row in client.get("/api/v1/leaderboard?dataset=digits").json()["rows"]]
    assert marks == [None, "intervals"]


# --- common corruptions, and what is published -----------------------------------------------------------


def test_corruptions_are_ranked_on_a_board_of_their_own(client: TestClient, db: Engine) -> None:
    whole = corrupted(db, 0.9)
    few = corrupted(db, 0.99, severities=[1, 2])
    made_here = corrupted(db, 0.98, made_by="imagecorruptions-imaug 1.1.5", source="generated")
    found = client.get("/api/v1/leaderboard?dataset=cifar10&threat_model=corruptions&source=measured").json()
    assert found["board"]["title"] == "CIFAR-10, common corruptions"
    (row,) = found["rows"]
    assert row["entry"] == whole
    assert (row["robust_accuracy"], row["eps"], row["robust_interval"]) == (0.9, None, [0.89, 0.91])
    page = client.get("/?dataset=cifar10&threat_model=corruptions&limit=1000").text
    assert whole in rows(page)
    assert "Accuracy under corruptions" in words(page)
    assert "AutoAttack robust" not in words(page)
    for entry, why in (
        (few, "all 15 corruptions at all 5 severities"),
        (made_here, "the board is about CIFAR-10-C"),
    ):
        with reading(db) as session:
            assert why in (why_unranked(session.get_one(Job, entry)) or "")


def test_a_measured_row_stands_beside_the_published_one(client: TestClient, db: Engine) -> None:
    name = "Carmon2019Unlabeled"
    measured = attacked(db, 0.59, recipe="autoattack-cifar10-linf", model={"zoo": f"cifar10/Linf/{name}"})
    every = client.get("/api/v1/leaderboard?dataset=cifar10&threat_model=Linf&limit=1000").json()["rows"]
    row = next(row for row in every if row["entry"] == measured)
    paper = next(other for other in every if other["entry"] == row["published_entry"])
    assert paper["name"] == name
    assert row["published_accuracy"] == paper["robust_accuracy"] == 0.5953
    assert row["extra_data"] is paper["extra_data"] is True
    page = client.get(f"/?dataset=cifar10&threat_model=Linf&search={measured}").text
    assert f'href="/entries/{paper["entry"]}"' in page
    assert "published 59.53 , here \N{MINUS SIGN}0.53" in words(page)


# --- pictures and other files -----------------------------------------------------------------------------


def test_pictures_are_files_that_need_nothing_else(client: TestClient, db: Engine) -> None:
    attacked(db, 0.5, recipe="autoattack-cifar10-linf")
    for name in ("scatter", "best"):
        answer = client.get(f"/leaderboard/{name}.svg?dataset=cifar10&threat_model=Linf")
        assert answer.headers["content-type"] == "image/svg+xml"
        root = ElementTree.fromstring(answer.text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "#1d7896" in "".join(style.text or "" for style in root.iter("{http://www.w3.org/2000/svg}style"))
        assert not list(root.iter("{http://www.w3.org/2000/svg}a"))


def test_the_scatter_has_a_link_for_every_row_that_matches(client: TestClient, db: Engine) -> None:
    attacked(db, 0.5, recipe="autoattack-cifar10-linf")
    board = "dataset=cifar10&threat_model=Linf&extra_data=false"
    every = client.get(f"/api/v1/leaderboard?{board}&limit=1000").json()["rows"]
    page = client.get(f"/?{board}&page=2").text
    dots = re.findall(r'<a href="/entries/([^"]+)" class="dot', page)
    assert sorted(dots) == sorted(row["entry"] for row in every)
    edge = {row["entry"] for row in every if not any(_beats(other, row) for other in every)}
    front = re.findall(r'<a href="/entries/([^"]+)" class="dot \w+ first"', page)
    assert set(front) == edge


def _beats(one: dict, other: dict) -> bool:
    pairs = [(one[key], other[key]) for key in ("clean_accuracy", "best_known_accuracy")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def test_a_crowded_scatter_is_thinned_and_says_so(client: TestClient, db: Engine) -> None:
    chance = np.random.default_rng(0)
    many(db, 1500)
    with writing(db) as session:
        for job in session.scalars(select(Job)):
            robust, clean = chance.random(2).round(4).tolist()
            job.result = {**job.result, "robust_accuracy": robust * 0.9, "clean_accuracy": clean, "flags": None}
    page = client.get("/?dataset=digits").text
    dots = re.findall(r'<a href="/entries/([^"]+)" class="dot', page)
    assert 150 < len(dots) <= 400
    assert f"{len(dots)} of 1,500 shown" in words(page)
    every = client.get("/api/v1/leaderboard?dataset=digits&limit=1000").json()["rows"]
    assert {row["entry"] for row in every[:10]} <= set(dots)


def test_the_best_so_far_only_rises(client: TestClient, db: Engine) -> None:
    for robust in (0.2, 0.5, 0.3, 0.6, 0.55):
        attacked(db, robust)
    page = client.get("/?dataset=digits").text
    table = page.split("Best robust accuracy over time")[-1].split("</table>")[0]
    best = [float(value) for value in re.findall(r"(\d+\.\d\d) %", table)]
    assert best == [20, 50, 60]
    published = client.get("/?dataset=cifar10&threat_model=Linf").text
    table = published.split("Best robust accuracy over time")[-1].split("</table>")[0]
    best = [float(value) for value in re.findall(r"(\d+\.\d\d) %", table)]
    assert len(best) > 3
    assert all(earlier < later for earlier, later in pairwise(best))


def test_exports_ask_the_same_question(client: TestClient, db: Engine) -> None:
    attacked(db, 0.5, recipe="autoattack-cifar10-linf")
    page = client.get("/?dataset=cifar10&threat_model=Linf&search=dkl-bench&sort=name").text
    exports = re.findall(r'href="(/api/v1/leaderboard[^"]*)"', page)
    assert len(exports) == 3
    for address in exports:
        answer = client.get(address.replace("&amp;", "&"))
        assert answer.status_code == 200, address
        assert "CNN-32" in answer.text


# --- what it costs ----------------------------------------------------------------------------------------


def test_the_number_of_statements_does_not_grow_with_the_rows(client: TestClient, db: Engine) -> None:
    attacked(db, 0.5)
    few = _statements(client, "/?dataset=digits&limit=1000")
    many(db, 400)
    client.get("/?dataset=digits")  # reads what is new
    assert _statements(client, "/?dataset=digits&limit=1000") == few
    assert len(few) <= 3


def _statements(client: TestClient, address: str) -> Sequence[str]:
    """What a request sends to the database when all rows are known."""
    engine, sent = client.app.state.dkl.db, []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    client.get(address)
    event.listen(engine, "before_cursor_execute", note)
    assert client.get(address).status_code == 200
    event.remove(engine, "before_cursor_execute", note)
    return [statement for statement in sent if statement.startswith("SELECT")]


def test_a_page_that_has_not_changed_is_not_sent_again(client: TestClient, db: Engine) -> None:
    attacked(db, 0.5)
    first = client.get("/?dataset=digits")
    known = {"If-None-Match": first.headers["etag"]}
    again = client.get("/?dataset=digits", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/?dataset=digits&sort=name", headers=known).status_code == 200
    newest = attacked(db, 0.6)
    changed = client.get("/?dataset=digits", headers=known)
    assert changed.status_code == 200
    assert rows(changed.text)[0] == newest


def test_pages_are_compressed_and_downloads_and_streams_are_not(client: TestClient, db: Engine) -> None:
    entry = attacked(db, 0.5)
    with client.stream("GET", "/?dataset=cifar10", headers={"Accept-Encoding": "gzip"}) as page:
        sent = sum(map(len, page.iter_raw()))
    assert page.headers["content-encoding"] == "gzip"
    assert page.headers["vary"] == "Accept-Encoding"
    assert sent < 60_000
    with client:  # and what runs beside it
        stream = client.get(f"/api/v1/jobs/{entry}/events", headers={"Accept-Encoding": "gzip"})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in stream.headers
