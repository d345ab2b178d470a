"""Recipes in the words of their overrides."""

from dkl.catalog import resolve
from service.wording import fields


def test_pixels_read_as_papers_write_them() -> None:
    found = dict(fields(resolve("las-trades-cifar10-wrn-34-10", {}).model_dump(mode="json")))
    assert found["threat.eps"] == "8/255"
    assert found["objective.strategy.eps"].startswith("5/255, 6/255, ")
    assert found["objective.strategy.step_sizes"] == "2/255, 3/255, 4/255"
    assert found["objective.strategy.steps"].startswith("7, 8, 9, ")
    assert found["epochs"] == "100"


def test_what_is_no_list_of_plain_values_stays_json() -> None:
    recipe = {
        "suite": [{"kind": "square"}],
        "curve": [4 / 255, 0.5],
        "corruptions": ["fog", "snow"],
        "nothing": [],
    }
    assert fields(recipe) == [
        ("suite", '[{"kind": "square"}]'),
        ("curve", "4/255, 0.5"),
        ("corruptions", "fog, snow"),
        ("nothing", "none"),
    ]
