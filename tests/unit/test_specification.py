"""An evaluation's specification in words: every attack, every parameter, and on which images."""

from typing import Any

import pytest

from dkl.catalog import resolve
from service.web.specification import attack_tables, protocol_of


def recipe(**changes: Any) -> dict[str, Any]:
    overrides = {path.replace("__", "."): value for path, value in changes.items()}
    return resolve("autoattack-cifar10-linf", {"model.job": "0123456789ab", **overrides}).model_dump(mode="json")


def tables(**changes: Any) -> list[tuple[str, list[str], list[list[str]]]]:
    return [
        (t.title, t.columns, [[row.name, *row.values] for row in t.rows]) for t in attack_tables(recipe(**changes))
    ]


NONE = "\N{EN DASH}"
STANDARD = [
    ["apgd-ce", "100", NONE, "1", NONE],
    ["apgd-t", "100", NONE, "1", "9"],
    ["fab-t", "100", NONE, NONE, "9"],
    ["square", NONE, "5,000", "1", NONE],
]
COLUMNS = ["Steps", "Queries", "Restarts", "Targets"]


def test_autoattack_standard_is_spelt_out() -> None:
    assert tables() == [("", COLUMNS, STANDARD)]


def test_an_audit_has_its_search_before_the_suite() -> None:
    search, suite = tables(policy="audited")
    assert search[2] == [["apgd-ce", "20", "1", NONE], ["apgd-t", "20", "1", "9"]]
    assert suite[1:] == (COLUMNS, STANDARD)
    assert tables(policy="screen")[0][2] == search[2]


def test_what_only_some_suites_have_is_a_column_there() -> None:
    in_l1 = tables(threat={"norm": "L1", "eps": 12.0})[0]
    assert in_l1[1] == [*COLUMNS, "Larger radius first"]
    assert [row[-1] for row in in_l1[2]] == ["yes", "yes", NONE, NONE]
    randomised = tables(suite="rand")[0]
    assert "Gradients averaged" in randomised[1]
    assert [row[-1] for row in randomised[2]] == ["20", "20"]
    assert tables(suite=[{"kind": "square", "queries": 70}]) == [
        ("", ["Queries", "Restarts"], [["square", "70", "1"]])
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "all 10,000 of the test split"),
        ({"images": 500}, "10,000, the first of the test split"),
        ({"images": 500, "sample": "random"}, "a random sample of the test split"),
        ({"curve": [8 / 255, 4 / 255]}, "4/255"),
        ({"threat": {"norm": "L2", "eps": 0.5}}, "every change of Euclidean length at most 0.5"),
        ({"engine": "pyautoattack"}, "the reference, pyautoattack"),
        ({"seed": 7}, "7"),
    ],
)
def test_the_rest_is_in_words(changes: dict[str, Any], sentence: str) -> None:
    result = {"images": 10_000, "engine": "engine 1.0", "precision": "float16", "preprocessing": "none"}
    said = dict(protocol_of(recipe(**changes), result))
    assert sentence in " ".join(said.values())
    assert said["Precision"] == "search in float16; every verdict in float32"
    assert ("Further radii" in said) == ("curve" in changes)
