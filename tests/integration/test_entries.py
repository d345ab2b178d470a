"""The page of an entry: what it says of measured and of published rows, its images, and who sees what."""

import html
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import exhibits
import numpy as np
import pytest
from exhibits import Shown
from PIL import Image
from samples import JUDGED, STARTED, TRAINED
from sqlalchemy import Engine
from starlette.testclient import TestClient

from dkl.catalog import RECIPES, resolve
from dkl.events import CorruptionAccuracies, CorruptionsResult, Finished
from dkl.protocols import CORRUPTIONS, EvaluateCorruptions
from service import claims, jobs, verifications
from service.app import create_app
from service.artifacts import Store, StoreError
from service.callers import ANONYMOUS
from service.db import writing
from service.reported import published_of
from service.rows import Board, Row
from service.settings import Settings
from service.state import State
from service.tables import Job
from service.verifications import VerificationRequest

HTML = {"Accept": "text/html"}
HOSTILE = "<script>alert(1)</script>"
on_both = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """SQLite unless a test is `on_both`."""
    if getattr(request, "param", "sqlite") == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


@pytest.fixture
def client(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    with TestClient(
        create_app(settings.model_copy(update={"database_url": database_url})), headers=HTML
    ) as client:
        yield client


@pytest.fixture
def artifacts(client: TestClient) -> Store:
    state: State = client.app.state.dkl  # type: ignore[attr-defined]
    return state.artifacts


@pytest.fixture
def public(db: Engine, database_url: str, settings: Settings) -> Iterator[TestClient]:
    """Somebody who may see leaderboards, and nothing else."""
    app = create_app(settings.model_copy(update={"database_url": database_url, "anonymous": "leaderboard"}))
    with TestClient(app, headers=HTML, follow_redirects=False) as client:
        yield client


def text_of(client: TestClient, path: str, status: int = 200) -> str:
    """The page as a reader sees it, without markup."""
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", answer.text)))


def links(client: TestClient, path: str) -> list[str]:
    return [html.unescape(href) for href in re.findall(r'href="([^"]*)"', client.get(path).text)]


def trained(db: Engine, name: str = "ikl-at-digits") -> Job:
    job = jobs.create(db, resolve(name, {}), name=name)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    claims.append(db, claim, STARTED)
    claims.finish(db, claim, TRAINED)
    return jobs.get(db, job.id)


# --- a measured row ---------------------------------------------------------------------------------------


@on_both
def test_a_measured_entry_says_what_was_done_and_found(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    model = trained(db)
    job = exhibits.judged(
        db, artifacts, tmp_path, Shown(), overrides={"model.job": model.id, "images": 40},
        warnings=("gradients of 3 images are zero",), notes=("asked for 9 targets",),
    )  # fmt: skip
    said = text_of(client, f"/entries/{job.id}")
    for sentence in (
        "ikl-at-digits", "Rank 1 of 1 on Handwritten digits, Linf, eps 0.2", "potentially unreliable",
        "50.00 % 95 % interval 35.20 to 64.80", "90.00 %", "gradients of 3 images are zero", "asked for 9 targets",
        "every change of each pixel by at most 0.2", "40, the first of the test split", "apgd-ce 100", "5,000",
        "search in float32; every verdict in float32", "Seed of the training 0",
        f"dklbench replay {job.id} --url http://testserver",
        f"model.job={model.id}",
        "--then 'autoattack-digits-linf images=40'", "dklbench run ikl-at-digits",
        "Nobody has reported a check yet", "fingerprint " + job.fingerprint[:16],
    ):  # fmt: skip
        assert sentence in said, sentence
    found = links(client, f"/entries/{job.id}")
    assert {f"/jobs/{job.id}", f"/jobs/{model.id}", f"/api/v1/jobs/{job.id}/evidence"} <= set(found)
    assert f"/api/v1/jobs/{job.id}/checkpoint" not in found  # nobody has stored it


def test_the_confusion_counts_what_the_evidence_says(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    assert "20 of 40 images are taken for a wrong class at Linf 0.2" in text_of(client, f"/entries/{job.id}")
    clean = text_of(client, f"/entries/{job.id}?confusion=clean")
    assert "4 of 40 images are taken for a wrong class." in clean
    table = re.search(r'<table class="confusion">.*?</table>', client.get(f"/entries/{job.id}").text, re.DOTALL)
    assert table is not None
    right = [int(n) for n in re.findall(r'<td class="n right shade-\d">(\d+)</td>', table[0])]
    wrong = [int(n) for n in re.findall(r'<td class="n wrong shade-\d">(\d+)</td>', table[0])]
    assert (sum(right), sum(wrong)) == (20, 20)


def test_a_hundred_classes_are_told_by_their_mistakes(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    shown = Shown(images=400, clean=300, robust=100, classes=100, shape=(3, 8, 8), pictures=6)
    job = exhibits.judged(db, artifacts, tmp_path, shown, "autoattack-cifar100-linf")
    said = text_of(client, f"/entries/{job.id}")
    assert 'class="confusion"' not in client.get(f"/entries/{job.id}").text
    assert "apple aquarium fish 4 100.00" in said
    assert said.count(" 100.00 ") >= 20
    assert "The classes that attract most" in said
    assert "aquarium fish" in said


def test_the_gallery_is_narrowed_and_turned_by_the_address(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown(images=100, clean=90, robust=40, pictures=100))
    page = f"/entries/{job.id}"

    def rows(query: str = "") -> list[int]:
        return [int(row) for row in re.findall(r"/pictures/(\d+)/clean\.png", client.get(page + query).text)]

    assert len(rows()) == 12
    assert rows("?page=2") != rows()
    assert len({row for number in range(1, 10) for row in rows(f"?page={number}")}) == 100
    fates = client.get(page + "?page=9").text
    assert "stands" in fates or "wrong without" in fates
    assert "stands: no attack" not in client.get(page).text  # broken ones come first
    assert rows("?attack=stands&class=1") == [
        r for r in range(90) if r % 10 == 1 and r not in broken_rows(100, 90, 40)
    ]
    assert len(rows("?attack=wrong")) == 10
    assert rows("?attack=apgd-ce&class=0&page=1") == [r for r in broken_rows(100, 90, 40) if not r % 20]
    for nothing, sentence in (
        ("?page=99", "no page 99"),
        ("?class=77", "No image here fits"),
        ("?attack=luck", "No image"),
    ):
        assert sentence in text_of(client, page + nothing)
    assert rows("?class=&attack=") == rows()


def broken_rows(images: int, clean: int, robust: int) -> list[int]:
    order = [*range(0, clean, 2), *range(1, clean, 2)]
    return sorted(order[: clean - robust])


def test_the_addresses_of_the_gallery_keep_what_was_asked(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown(images=100, clean=90, robust=10, pictures=100))
    found = links(client, f"/entries/{job.id}?attack=apgd-ce&confusion=clean")
    assert "?attack=apgd-ce&page=2&confusion=clean#gallery" in found
    assert "?attack=apgd-ce#confusion" in found


# --- pictures ---------------------------------------------------------------------------------------------


def picture(client: TestClient, path: str) -> np.ndarray:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(BytesIO(answer.content)))


@pytest.mark.parametrize(("shape", "name"), [((1, 8, 8), "digits"), ((3, 9, 7), "cifar10")])
def test_pictures_are_the_stored_images(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path, shape: tuple[int, int, int], name: str
) -> None:
    shown = Shown(shape=shape)
    job = exhibits.judged(db, artifacts, tmp_path, shown, f"autoattack-{name}-linf")
    x = exhibits.pictures(shown)
    for row in (0, 6):  # the second is stored in float32
        clean = x[row]
        x_adv = exhibits.attacked(x, job.eps or 0)[row]
        seen = {w: picture(client, f"/entries/{job.id}/pictures/{row}/{w}.png") for w in ("clean", "adversarial")}
        np.testing.assert_array_equal(seen["clean"], hwc(clean))
        np.testing.assert_array_equal(seen["adversarial"], hwc(x_adv))
        difference = picture(client, f"/entries/{job.id}/pictures/{row}/difference.png").astype(float)
        amplified = 127.5 + 127.5 * (x_adv.astype(float) - clean) / (255 * (job.eps or 0))
        np.testing.assert_allclose(difference, hwc(amplified.clip(0, 255)), atol=0.51)


def hwc(x: np.ndarray) -> np.ndarray:
    return x[0] if len(x) == 1 else x.transpose(1, 2, 0)


def test_pictures_are_kept_by_browsers_for_as_long_as_the_evidence_is_the_same(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    page = client.get(f"/entries/{job.id}").text
    address = re.search(r'src="(/entries/[^"]*/clean\.png\?v=[0-9a-f]{12})"', page)
    assert address is not None
    assert client.get(address[1]).headers["cache-control"] == "private, max-age=31536000, immutable"
    assert client.get(address[1].replace("?v=", "?v=0")).headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("39/clean.png", 404),  # of this image no clean picture is kept
        ("35/difference.png", 404),
        ("40/clean.png", 404),
        ("2147483647/clean.png", 404),
        ("-1/clean.png", 422),
        ("99999999999999999999/clean.png", 422),
        ("first/clean.png", 422),
        ("0/secret.png", 422),
        ("0/clean.svg", 404),
    ],
)
def test_pictures_that_are_none_are_no_pictures(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path, path: str, status: int
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    answer = client.get(f"/entries/{job.id}/pictures/{path}")
    assert answer.status_code == status
    assert "text/html" in answer.headers["content-type"]


# --- where there is less ----------------------------------------------------------------------------------


def test_freed_evidence_is_missed_in_a_sentence(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    assert "/clean.png" in client.get(f"/entries/{job.id}").text
    artifacts.delete((job.result or {})["evidence_sha256"])
    page = client.get(f"/entries/{job.id}")
    assert page.status_code == 200
    assert "is not stored here, so its images cannot be shown" in page.text
    assert "/clean.png" not in page.text
    assert "there is nothing to check" in page.text
    assert client.get(f"/entries/{job.id}/pictures/0/clean.png").status_code == 404


def test_evidence_of_format_1_shows_no_images_and_says_why(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown(form=1))
    said = text_of(client, f"/entries/{job.id}")
    assert "of an older form, which keeps neither predictions nor clean images" in said
    assert "What images are taken for" not in said
    assert client.get(f"/entries/{job.id}/pictures/0/difference.png").status_code == 404
    assert client.get(f"/entries/{job.id}/pictures/0/adversarial.png").status_code == 200


def test_damaged_evidence_costs_the_images_only(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    (tmp_path / "junk").write_bytes(b"no evidence at all")
    sha256 = artifacts.put(tmp_path / "junk")
    job = exhibits.judged(db, artifacts, tmp_path, Shown(), evidence_sha256=sha256)
    said = text_of(client, f"/entries/{job.id}")
    assert "The evidence cannot be shown" in said
    assert "50.00 %" in said
    assert "cannot be shown" in text_of(client, f"/entries/{job.id}/pictures/0/clean.png", 404)


def test_a_store_that_does_not_answer_costs_the_images_only(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())

    def away(self: Store, sha256: str) -> None:
        raise StoreError("the bucket is away")

    monkeypatch.setattr(type(artifacts), "stat", away)
    said = text_of(client, f"/entries/{job.id}")
    assert "The store of files does not answer" in said
    assert "50.00 %" in said
    assert client.get(f"/entries/{job.id}/pictures/0/clean.png").status_code == 503


@pytest.mark.parametrize(
    "entry", ["nothing", "000000000000", HOSTILE, "..%2f..", "%00", "é" * 300, "robustbench-cifar10-Linf-"]
)
def test_an_unknown_entry_is_a_404_page(client: TestClient, entry: str) -> None:
    for path in (f"/entries/{entry}", f"/entries/{entry}/radii.svg", f"/entries/{entry}/pictures/0/clean.png"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "<script>" not in answer.text
        assert "text/html" in answer.headers["content-type"]


@pytest.mark.parametrize(
    "query",
    ["page=0", "page=x", "page=10000000000", "class=-1", "class=x", "confusion=both", "attack=" + "x" * 101],
)
def test_a_query_that_makes_no_sense_is_a_422_page(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path, query: str
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    answer = client.get(f"/entries/{job.id}?{query}")
    assert answer.status_code == 422
    assert "text/html" in answer.headers["content-type"]


def test_an_unranked_evaluation_is_no_entry(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown(), overrides={"policy": "screen"})
    assert client.get(f"/entries/{job.id}").status_code == 404
    assert client.get(f"/entries/{job.id}/pictures/0/clean.png").status_code == 404


# --- beside the numbers -----------------------------------------------------------------------------------


def test_the_curve_is_a_picture_of_its_own(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    one = exhibits.judged(db, artifacts, tmp_path, Shown())
    several = exhibits.judged(db, artifacts, tmp_path, Shown(), overrides={"curve": [0.02, 0.1]})
    assert "not judged at several radii" in text_of(client, f"/entries/{one.id}/radii.svg", 404)
    answer = client.get(f"/entries/{several.id}/radii.svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert "Robust accuracy over the Linf radius" in answer.text
    assert f"/entries/{several.id}/radii.svg" in links(client, f"/entries/{several.id}")


@on_both
@pytest.mark.parametrize("faults", [0, 2])
def test_the_last_check_of_the_evidence_is_told(
    client: TestClient, public: TestClient, db: Engine, artifacts: Store, tmp_path: Path, faults: int
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    report = VerificationRequest(
        evidence_sha256=(job.result or {})["evidence_sha256"], images=40, adversarial=16, faults=faults,
        sentences=["image 3 is farther away", HOSTILE][:faults], device="a GPU", versions={},
    )  # fmt: skip
    verifications.record(db, job.id, report, caller=ANONYMOUS)
    said = text_of(client, f"/entries/{job.id}")
    if faults:
        assert "Not proved" in said
        assert "2 claims do not hold" in said
        assert html.escape(HOSTILE) in client.get(f"/entries/{job.id}").text
    else:
        assert "Checked by somebody without a key on" in said
        assert "all 16 adversarial images lie in the ball and fool the checkpoint" in said


def test_the_public_sees_no_link_that_it_may_not_follow(
    public: TestClient, db: Engine, client: TestClient, artifacts: Store, tmp_path: Path
) -> None:
    model = trained(db)
    job = exhibits.judged(db, artifacts, tmp_path, Shown(), overrides={"model.job": model.id})
    page = f"/entries/{job.id}"
    assert "50.00 %" in text_of(public, page)
    assert public.get(f"{page}/pictures/0/clean.png").status_code == 200
    everywhere = {*links(public, "/"), "/signin"}  # the header leads to pages that ask to sign in
    for path in (page, f"/entries/{PUBLISHED}"):
        ours = {link.partition("#")[0] for link in links(public, path) if link.startswith("/")} - everywhere
        assert len(ours) >= 4
        assert {link: public.get(link).status_code for link in ours} == dict.fromkeys(ours, 200)
        theirs = set(links(client, path)) - set(links(public, path))
        hidden = [link for link in theirs if link.startswith(("/jobs/", "/api/v1/jobs/", "/submit"))]
        assert {public.get(link).status_code for link in hidden} <= {303, 401}
        assert hidden


# --- a published row --------------------------------------------------------------------------------------


PUBLISHED = "robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10"


def test_a_published_entry_names_its_paper_and_its_recipe(client: TestClient) -> None:
    said = text_of(client, f"/entries/{PUBLISHED}")
    for sentence in (
        "Decoupled Kullback-Leibler Divergence Loss",
        "92.16",
        "67.73",
        "NeurIPS 2024",
        "RobustBench",
    ):
        assert sentence in said
    recipe = re.search(r"dklbench submit (\S+)", said)
    assert recipe is not None
    assert recipe[1] in RECIPES
    found = links(client, f"/entries/{PUBLISHED}")
    assert f"/submit?recipe={recipe[1]}" in found
    assert f"/api/v1/entries/{PUBLISHED}/citation.bib" in found
    assert any(link.startswith(f"/compare?entry={PUBLISHED}&entry=") for link in found)
    assert "/jobs/" not in " ".join(found)


@on_both
def test_what_was_measured_stands_beside_what_is_published(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    model = trained(db, "ikl-at-cifar10-wrn-28-10-20m")
    shown = Shown(images=400, clean=360, robust=268, shape=(3, 8, 8), pictures=12)
    job = exhibits.judged(
        db, artifacts, tmp_path, shown, "autoattack-cifar10-linf", overrides={"model.job": model.id}
    )
    found = published_of(job, model)
    assert found is not None
    said = text_of(client, f"/entries/{job.id}")
    difference = 67 - 100 * found.robust_accuracy
    assert difference < 0
    assert f"Robust {100 * found.robust_accuracy:.2f} 67.00 \N{MINUS SIGN}{-difference:.2f}" in said
    assert f"Published {100 * found.robust_accuracy:.2f} % here \N{MINUS SIGN}{-difference:.2f}" in said
    address = f"/entries/{found.entry}"
    assert {address, f"/compare?entry={job.id}&entry={found.entry}"} <= set(links(client, f"/entries/{job.id}"))
    assert f"400 90.00 {90 - 100 * found.clean_accuracy:+.2f}".replace("-", "\N{MINUS SIGN}") in text_of(
        client, address
    )
    assert f"/entries/{job.id}" in links(client, address)


def test_names_from_elsewhere_are_text_and_addresses_are_addresses(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(dataset="cifar10", threat_model="Linf", eps=8 / 255)
    row = Row(
        entry="evil", name=HOSTILE, source="published", board=board, eps=8 / 255, architecture=HOSTILE,
        clean_accuracy=0.9, robust_accuracy=0.6, best_known_accuracy=0.5, images=None, suite=HOSTILE,
        title=HOSTILE, authors=HOSTILE, venue=HOSTILE, citation=HOSTILE, note=HOSTILE,
        url="javascript:alert(1)", reported_accuracy=0.7, recipe=HOSTILE,
    )  # fmt: skip
    monkeypatch.setattr("service.standings.reported", lambda db: {board: [row]})
    answer = client.get("/entries/evil")
    assert answer.status_code == 200
    assert answer.text.count(html.escape(HOSTILE)) >= 8
    assert "<script>alert" not in answer.text
    assert "javascript:" not in answer.text
    for number in ("90.00", "60.00", "50.00", "70.00"):
        assert number in answer.text


def test_a_row_under_common_corruptions_has_its_table(client: TestClient, db: Engine) -> None:
    recipe = EvaluateCorruptions(dataset="cifar10", model={"checkpoint": "a" * 64}, images=100)  # type: ignore[arg-type]
    job = jobs.create(db, recipe)
    claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
    assert claim is not None
    judged: Any = JUDGED.result
    result = CorruptionsResult(
        images=100, clean_accuracy=0.9, clean_interval=(0.8, 0.95), corruption_accuracy=0.71,
        corruption_interval=(0.6, 0.8), severities=(1, 2, 3, 4, 5),
        table=tuple(
            CorruptionAccuracies(corruption=name, accuracies=(1.0, 0.8, 0.7, 0.6, 0.45), mean=0.71)
            for name in CORRUPTIONS
        ),
        source="CIFAR-10-C", notes=("read from files",), warnings=(), checkpoint_sha256="a" * 64,
        architecture="CNN-32", preprocessing="none", provenance=judged.provenance, seconds=3.0,
    )  # fmt: skip
    claims.finish(db, claim, Finished(result=result))
    said = text_of(client, f"/entries/{job.id}")
    for sentence in ("Accuracy under corruptions 71.00 %", "gaussian noise 100.00 80.00 70.00 60.00 45.00 71.00",
                     "Corrupted images CIFAR-10-C", "100, the first of the test split"):  # fmt: skip
        assert sentence in said, sentence
    assert "Verification" not in said


def test_an_evaluation_of_an_older_service_has_its_page(
    client: TestClient, db: Engine, artifacts: Store, tmp_path: Path
) -> None:
    job = exhibits.judged(db, artifacts, tmp_path, Shown())
    newer = ("provenance", "evidence_sha256", "notes", "forwards", "backwards", "class_clean_accuracy", "protocol",
             "precision", "clean_interval", "preprocessing", "curve", "rejected")  # fmt: skip
    with writing(db) as session:
        stored = session.get_one(Job, job.id)
        stored.result = {name: value for name, value in (stored.result or {}).items() if name not in newer}
        stored.recipe = {
            name: value
            for name, value in stored.recipe.items()
            if name not in ("engine", "policy", "curve", "sample")
        }
    said = text_of(client, f"/entries/{job.id}")
    assert "50.00 %" in said
    assert "the reference, pyautoattack" in said
