"""The distillation boards: every published number accounted for, filters, ranks, exports, bad questions."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from service import distillation
from service.app import create_app
from service.db import connect, migrate
from service.distillation import DistillationRow, Question
from service.settings import Settings

FILE = Path(distillation.__file__).parent / "data" / "distillation.json"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), database_url="", broker_url="", anonymous="submit"
    )
    db = connect(settings.database)
    migrate(db)
    db.dispose()
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        yield client


def ask(client: TestClient, **question: Any) -> dict[str, Any]:
    response = client.get("/api/v1/distillation", params={"limit": 1000, **question})
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A ledger in which nothing was distilled yet."""
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('empty') / 'ledger.sqlite'}")
    migrate(engine)
    yield engine
    engine.dispose()


def every_row(db: Engine) -> list[DistillationRow]:
    return [row for rows in distillation.boards(db).values() for row in rows]


def test_all_432_published_numbers_are_rows_or_beside_them_or_left_out_with_a_reason() -> None:
    file = json.loads(FILE.read_text())
    printed = sum(len(row["sources"]) for board in file["boards"] for row in board["rows"])
    assert (printed, file["beside"], len(file["left_out"])) == (403, 26, 3)
    assert printed + file["beside"] + len(file["left_out"]) == 432
    assert all("replaced" in one["reason"] for one in file["left_out"])


def test_rows_are_what_the_papers_print(empty: Engine) -> None:
    def row(**asked: str) -> DistillationRow:
        _, (found,) = distillation.matching(empty, Question(**asked))
        return found

    ikl = row(board="imagenet", teacher="ResNet34", student="ResNet18", method="IKL-KD")
    assert (ikl.accuracy, ikl.teacher_accuracy, ikl.student_accuracy) == (0.7191, 0.7331, 0.6975)
    assert (ikl.seconds_per_iteration, ikl.extra_parameters, ikl.gain) == (0.197, 0, 0.0216)
    long_tail = row(board="imagenet-lt", teacher="ResNeXt-101-32x4d", student="ResNet18", method="KL-KD")
    assert (long_tail.many, long_tail.medium, long_tail.few) == (0.646, 0.3788, 0.0953)
    error = row(board="cifar100-same", teacher="WRN-28-4", student="WRN-28-2", method="OFD")
    assert (error.accuracy, error.student_accuracy) == (0.7802, 0.7512)
    assert error.note == "printed as an error of 21.98 %"
    _, dkd = distillation.matching(empty, Question(board="cifar100-same", student="WRN-16-2", method="DKD"))
    assert [(each.accuracy, [source.short for source in each.printed]) for each in dkd] == [
        (0.7624, ["IKL paper, Table 13"]),
        (0.7623, ["mdistiller"]),
    ]


def test_groups_add_up_to_all_classes(empty: Engine) -> None:
    """385, 479 and 136 of the 1,000 classes of ImageNet-LT have many, a medium number of and few images."""
    rows = [row for row in every_row(empty) if row.many is not None]
    assert len(rows) == 7
    for row in rows:
        assert row.many is not None
        assert row.medium is not None
        assert row.few is not None
        every = (385 * row.many + 479 * row.medium + 136 * row.few) / 1000
        assert abs(every - row.accuracy) < 1.1e-4


def test_numbers_are_believable_and_have_a_source(empty: Engine) -> None:
    for row in every_row(empty):
        assert 0.3 < row.accuracy < 0.9
        assert row.printed
        assert all(source.url.startswith("https://") for source in row.printed)
        assert row.gain is None or -0.07 < row.gain < 0.1
        if row.teacher_accuracy is not None and row.student_accuracy is not None and row.teacher != row.student:
            assert row.teacher_accuracy > row.student_accuracy


def test_networks_have_one_name_each(empty: Engine) -> None:
    names = {name for row in every_row(empty) for name in (row.teacher, row.student) if name}
    plain = Counter(name.casefold().replace("-", "") for name in names)
    assert [name for name, count in plain.items() if count > 1] == []


def test_ranks_compare_what_distils_the_same_teacher_into_the_same_student(empty: Engine) -> None:
    for board in distillation.boards(empty).values():
        rows = [row for row in board if row.rank is not None]
        for row in rows:
            better = [other for other in rows if other.pair == row.pair and other.accuracy > row.accuracy + 5e-5]
            assert row.rank == len(better) + 1
    alone = [row for row in every_row(empty) if row.method == distillation.UNDISTILLED]
    assert len(alone) > 5
    assert {row.rank for row in alone} == {None}


@pytest.mark.parametrize("sort", ["accuracy", "gain", "method", "teacher", "seconds_per_iteration", "few"])
def test_sorting_goes_both_ways_and_leaves_what_is_missing_for_the_end(client: TestClient, sort: str) -> None:
    board = "imagenet-lt" if sort == "few" else "imagenet"
    up = [row[sort] for row in ask(client, board=board, sort=sort)["rows"]]
    down = [row[sort] for row in ask(client, board=board, sort=f"-{sort}")["rows"]]
    key = str.casefold if sort in {"method", "teacher"} else None
    known = [value for value in up if value is not None]
    assert known == sorted(known, key=key)
    assert [value for value in down if value is not None] == sorted(known, key=key, reverse=True)
    assert None not in up[: len(known)]
    assert None not in down[: len(known)]


def test_filters_search_and_pages(client: TestClient) -> None:
    pair = ask(client, teacher="ResNet32x4", student="ResNet8x4")
    assert {(row["teacher"], row["student"]) for row in pair["rows"]} == {("ResNet32x4", "ResNet8x4")}
    assert pair["rows"][0]["method"] == "IKL-KD"
    assert pair["board"]["name"] == "cifar100-same"
    assert ask(client, teacher="ResNet32x4", student="ResNet8x4", method="")["total"] == pair["total"]
    found = ask(client, search="MDISTILLER")
    assert 0 < found["total"] < ask(client)["total"]
    assert all("mdistiller" in [source["short"] for source in row["printed"]] for row in found["rows"])
    pages = [ask(client, limit=50, page=page)["rows"] for page in (1, 2, 3, 4)]
    assert [row for page in pages for row in page] == ask(client)["rows"]
    assert pages[3] == []


def test_the_table_for_programs_is_all_that_matches(client: TestClient) -> None:
    response = client.get("/api/v1/distillation.csv", params={"board": "imagenet", "limit": 3, "sort": "method"})
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert 'filename="distillation-imagenet.csv"' in response.headers["content-disposition"]
    lines = list(csv.DictReader(io.StringIO(response.text)))
    rows = ask(client, board="imagenet", sort="method")["rows"]
    assert [line["method"] for line in lines] == [row["method"] for row in rows]
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in rows]
    assert {line["extra_parameters"] for line in lines} == {"", "0", "some"}


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("board=nothing", 404, "there is no distillation board 'nothing'; there are cifar100-same,"),
        ("sort=luck", 422, "sort"),
        ("page=0", 422, "page"),
        ("page=1000000000", 422, "page"),
        ("limit=100000", 422, "limit"),
        ("search=" + "x" * 101, 422, "search"),
        ("teacher=" + "x" * 10_240, 422, "teacher"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/api/v1/distillation", "/api/v1/distillation.csv", "/distillation", "/distillation.svg"]
)
def test_bad_questions_get_a_sentence(
    client: TestClient, path: str, query: str, status: int, sentence: str
) -> None:
    response = client.get(f"{path}?{query}", headers={} if path.startswith("/api/") else HTML)
    assert response.status_code == status
    assert sentence in response.text.replace("&#39;", "'")


@pytest.mark.parametrize("board", [board["name"] for board in json.loads(FILE.read_text())["boards"]])
def test_every_board_has_its_page(client: TestClient, board: str) -> None:
    page = client.get(f"/distillation?board={board}", headers=HTML)
    assert page.status_code == 200
    rows = ask(client, board=board, limit=50)["rows"]
    assert page.text.count('<tr role="row" class="published">') == len(rows)
    for row in rows:
        assert f"<b>{100 * row['accuracy']:.2f}</b>" in page.text


def test_a_page_that_is_not_there_is_not_found(client: TestClient) -> None:
    page = client.get("/distillation?page=99", headers=HTML)
    assert page.status_code == 404
    assert "There is no page 99 here" in page.text
    nothing = client.get("/distillation?search=nothing-is-called-so", headers=HTML)
    assert nothing.status_code == 200
    assert "No result matches" in nothing.text


def test_the_picture_as_a_file(client: TestClient) -> None:
    gains = client.get("/distillation.svg?board=cifar100-different")
    assert gains.headers["content-type"] == "image/svg+xml"
    rows = [row for row in ask(client, board="cifar100-different")["rows"] if row["gain"] is not None]
    assert gains.text.count("<circle") == len(rows)
    pair = client.get("/distillation.svg?board=imagenet&teacher=ResNet50&student=MobileNet-V1")
    assert "teacher alone 76.16" in pair.text
    assert "student alone 68.87" in pair.text
    assert client.get("/distillation.svg?search=nothing-is-called-so").status_code == 404
