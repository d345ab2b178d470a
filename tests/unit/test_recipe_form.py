"""The form of a recipe: made from the schema, and what is typed in it read back; the requests that come of it."""

import json
import re
import shlex
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter
from typer.main import get_command

from dkl.catalog import RECIPES, parse_overrides, resolve
from dkl.explain import Fault, InvalidRecipeError, read_recipe
from dkl.imports import Import
from dkl.objectives import Objective
from dkl.protocols import Evaluate
from dkl.recipes import RECIPE, Recipe, Train
from service.cli import app
from service.submission import JobRequest
from service.web.commands import curl, submit_command, upload_command
from service.web.form_fields import Field as FormField
from service.web.form_fields import at_fields, in_use
from service.web.overrides import overrides_of, word
from service.web.recipe_form import Form, fraction, recipe_form

MODEL = {"job": "0123456789ab"}
TRAININGS = [name for name, entry in RECIPES.items() if isinstance(entry.recipe, Train)]


def recipe_of(name: str, **overrides: Any) -> Recipe:
    field = RECIPES[name].needs
    return resolve(name, {**({field: MODEL} if field else {}), **overrides})


def posted(fields: Iterable[FormField]) -> dict[str, list[str]]:
    """What a browser sends of a page with these fields that nobody touches: hidden ones, too."""
    sent: dict[str, list[str]] = {}
    for field in fields:
        if field.widget in {"part", "union"}:
            sent |= {f"{field.name}?": ["true"]} if field.nullable and field.on else {}
            sent |= {f"{field.name}.{field.key}": [field.text]} if field.widget == "union" else {}
            for member in field.members:
                sent |= posted(member.fields)
        elif field.widget == "switch":
            sent |= {field.name: ["true"]} if field.text == "true" else {}
        else:
            sent[field.name] = field.ticked if field.widget == "boxes" else [field.text]
    return sent


def form_and_post(recipe: Recipe) -> tuple[Form, dict[str, list[str]]]:
    form, document = recipe_form(recipe.kind), recipe.model_dump(mode="json")
    return form, posted(form.show(document, document))


# --- every field, and what stands in it -------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_comes_back_as_it_is(name: str) -> None:
    recipe = recipe_of(name)
    form, sent = form_and_post(recipe)
    assert read_recipe(form.read(sent)) == recipe
    document = recipe.model_dump(mode="json")
    assert [field.path for field in in_use(form.show(document, document)) if field.changed] == []


@pytest.mark.parametrize("kind", RECIPE.json_schema()["discriminator"]["mapping"])
def test_every_field_of_the_schema_is_in_the_form(kind: str) -> None:
    fields = recipe_form(kind).show({"kind": kind}, {})
    known = RECIPE.json_schema()
    definition = known["$defs"][known["discriminator"]["mapping"][kind].rpartition("/")[2]]
    assert {field.path for field in fields} == definition["properties"].keys() - {"kind"}
    assert {field.path for field in fields if field.required} == set(definition["required"])
    told = {field.path: field.about for field in fields}
    assert all(told[key] for key, one in definition["properties"].items() if "description" in one)


def test_a_new_field_appears_by_itself() -> None:
    class Grown(Train):
        rounds: Annotated[int, Field(ge=2, le=9)] = 3
        """How often."""
        again: Objective | None = None
        shares: tuple[float, ...] = (0.5, 0.25)
        anything: dict[str, int]

    form = Form(TypeAdapter(Grown).json_schema())
    document = Grown(**RECIPES["trades-digits"].recipe.model_dump(), anything={"a": 1}).model_dump(mode="json")
    fields = {field.path: field for field in in_use(form.show(document, document))}
    rounds = fields["rounds"]
    assert (rounds.widget, rounds.text, rounds.about, rounds.whole) == ("number", "3", "How often.", True)
    assert (rounds.minimum, rounds.maximum, rounds.required) == (2, 9, False)
    assert (fields["again"].widget, fields["again"].nullable, fields["again"].on) == ("union", True, False)
    assert (fields["shares"].widget, fields["shares"].text) == ("list", "0.5, 0.25")
    assert (fields["anything"].widget, json.loads(fields["anything"].text)) == ("json", {"a": 1})
    typed = {"again?": ["true"], "again.kind": ["mart"], "again.mart.beta": ["2.5"], "shares": ["1,2"]}
    read = form.read({**posted(fields[path] for path in document if path in fields), **typed})
    assert read == {**document, "again": {"kind": "mart", "beta": 2.5}, "shares": [1, 2]}


def test_limits_and_choices_come_from_the_schema() -> None:
    document = RECIPES["ikl-at-digits"].recipe.model_dump(mode="json")
    fields = {field.path: field for field in in_use(recipe_form("train").show(document, document))}
    assert fields["attack.mode"].choices == ("eval", "batch", "train")
    assert (fields["processes"].minimum, fields["processes"].maximum, fields["processes"].whole) == (1, 64, True)
    assert not fields["optimizer.lr"].whole
    assert fields["threat.eps"].widget == "pixels"
    assert fields["optimizer.decay_batch_norms"].text == "true"


# --- what is typed ----------------------------------------------------------------------------------------


def changed(name: str, **typed: str | list[str] | None) -> dict[str, Any]:
    """The document when somebody types this into the form of a named recipe; None and [] tick nothing."""
    form, sent = form_and_post(recipe_of(name))
    for field, value in typed.items():
        sent.pop(field, None)
        if value not in (None, []):
            sent[field] = value if isinstance(value, list) else [value]
    return form.read(sent)


def test_another_kind_brings_its_own_fields() -> None:
    typed = {"objective.kind": "mart", "objective.mart.beta": "5", "objective.trades.label_smoothing": "0.3"}
    document = changed("trades-digits", **typed)
    assert document["objective"] == {"kind": "mart", "beta": 5}
    assert document["attack"]["loss"] == "kl"
    assert read_recipe({**document, "attack": {**document["attack"], "loss": "ce"}})
    bogus = changed("trades-digits", **{"objective.kind": "luck"})
    with pytest.raises(InvalidRecipeError, match=r"objective: kind must be .*'natural'.*, found 'luck'"):
        read_recipe(bogus)


def test_parts_are_switched_on_and_off() -> None:
    assert changed("ikl-at-digits", **{"awp?": None})["awp"] is None
    on = changed("ikl-at-digits", **{"validation?": "true", "validation.steps": "3", "averaging?": None})
    assert on["validation"] == {"images": 1024, "steps": 3}
    assert on["averaging"] is None
    inside = {"model.kind": "preact-resnet", "model.preact-resnet.normalisation?": "true"}
    typed = {f"model.preact-resnet.normalisation.{of}": "0.5, 0.25,0.1" for of in ("mean", "std")}
    model = changed("ikl-at-digits", **inside, **typed)["model"]
    assert model["normalisation"] == {"mean": [0.5, 0.25, 0.1], "std": [0.5, 0.25, 0.1]}


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.2, 0.2), (0.031, 0.031), (128 / 255, "128/255"), (2 / 765, 2 / 765)]
)
def test_pixels_are_shown_exactly_and_as_briefly_as_can_be(value: float, text: float | str) -> None:
    assert fraction(value) == text


def test_pixels_are_read_as_papers_write_them() -> None:
    assert read_recipe(changed("ikl-at-digits", **{"threat.eps": " 4/255 "})).threat.eps == 4 / 255  # type: ignore[union-attr]
    judged = read_recipe(changed("autoattack-digits-linf", curve="0.1, 8/255"))
    assert isinstance(judged, Evaluate)
    assert judged.curve == (0.1, 8 / 255)
    with pytest.raises(InvalidRecipeError, match=r"threat\.eps: write a number or a fraction such as '8/255'"):
        read_recipe(changed("ikl-at-digits", **{"threat.eps": "much"}))


def test_a_suite_of_ones_own_is_typed_as_json() -> None:
    attacks = [{"kind": "square", "queries": 10}, {"kind": "fab"}]
    form = recipe_form("evaluate")
    document = changed("autoattack-digits-linf", **{"suite.is": "json", "suite.json": json.dumps(attacks)})
    assert document["suite"] == attacks
    [suite] = [field for field in form.show(document, {}) if field.path == "suite"]
    assert suite.choices == ("standard", "plus", "rand", "json")
    assert suite.text == "json"
    assert '"kind": "apgd-t"' in suite.members[3].fields[0].example
    assert changed("autoattack-digits-linf", **{"suite.is": "plus"})["suite"] == "plus"


def test_what_cannot_be_read_stands_there_again() -> None:
    form = recipe_form("evaluate")
    for typed in ('[{"kind": "square"', "[" * 5000, "1" * 5000, '"\\ud800"'):
        document = changed("autoattack-digits-linf", **{"suite.is": "json", "suite.json": typed, "seed": typed})
        fields = {field.name: field for field in in_use(form.show(document, {}))}
        assert fields["suite"].text == "json"
        assert fields["suite.json"].text == typed
        assert fields["seed"].text == typed
        with pytest.raises(InvalidRecipeError, match="seed: must be a whole number"):
            read_recipe(document)


def test_boxes_keep_the_order_of_the_recipe() -> None:
    entry = RECIPES["corruptions-digits"].recipe.model_dump(mode="json")
    backwards = {**entry, "corruptions": entry["corruptions"][::-1], "model": MODEL}
    form = recipe_form("corruptions")
    fields = form.show(backwards, backwards)
    assert form.read(posted(fields)) == read_recipe(backwards).model_dump(mode="json")
    fewer = changed("corruptions-digits", severities=["2", "5"], corruptions=[])
    assert (fewer["severities"], fewer["corruptions"]) == ([2, 5], [])


def test_what_is_left_empty_is_absent_or_missing() -> None:
    document = changed("ikl-at-digits", images="", epochs="", batch_size=" ")
    assert (document["images"], document["epochs"], document["batch_size"]) == (None, "", "")


def test_the_model_to_judge_is_chosen_among_what_a_service_can_get() -> None:
    document = changed("autoattack-digits-linf", **{"model.is": "zoo", "model.zoo.zoo": "x", "model.job.job": "a"})
    assert document["model"] == {"zoo": "x"}
    [model] = [field for field in recipe_form("evaluate").show(document, {}) if field.path == "model"]
    assert model.choices == ("job", "checkpoint", "zoo", "timm", "torchvision")
    assert [member.tag for member in model.members if member.chosen] == ["zoo"]
    again = changed("autoattack-digits-linf", **{"model.is": "checkpoint", "model.checkpoint.checkpoint": ""})
    fields = {field.path: field for field in in_use(recipe_form("evaluate").show(again, {}))}
    assert fields["model"].text == "checkpoint"  # although nothing stands in it


def test_a_form_that_says_nothing_is_read_too() -> None:
    for kind in RECIPE.json_schema()["discriminator"]["mapping"]:
        with pytest.raises(InvalidRecipeError):
            read_recipe(recipe_form(kind).read({}))


def test_faults_find_their_fields() -> None:
    document = changed(
        "trades-digits",
        **{"objective.trades.beta": "-1", "averaging.epoch-ema.decay": "2", "threat?": None, "epochs": "x"},
    )
    fields = recipe_form("train").show(document, {})
    with pytest.raises(InvalidRecipeError) as raised:
        read_recipe(document)
    found = at_fields(
        fields, [*raised.value.faults, Fault("optimizer.schedule.luck", "is no field"), Fault("", "no")]
    )
    assert found.keys() == {
        "objective.trades.beta",
        "averaging.epoch-ema.decay",
        "epochs",
        "optimizer.schedule",
        "",
    }
    assert found["optimizer.schedule"] == ["luck: is no field"]
    assert found[""] == ["no"]


def test_the_style_sheet_knows_as_many_alternatives_as_there_are() -> None:
    sheet = (Path(__file__).parents[2] / "service/web/static/submit.css").read_text()
    styled = max(map(int, re.findall(r"option:nth-child\((\d+)\):checked\) > \.inside", sheet)))
    for kind in RECIPE.json_schema()["discriminator"]["mapping"]:
        every = list(recipe_form(kind).show({}, {}))
        for field in every:
            every += [inner for member in field.members for inner in member.fields]
            assert len(field.members) <= styled, field.path


# --- what comes of it -------------------------------------------------------------------------------------


def same_by_overrides(name: str, recipe: Recipe) -> dict[str, Any]:
    """The overrides, which make this very recipe: as JSON, and as words of the command line."""
    overrides = overrides_of(name, recipe)
    assert resolve(name, json.loads(json.dumps(overrides))) == recipe
    assert resolve(name, parse_overrides([word(path, value) for path, value in overrides.items()])) == recipe
    return overrides


@pytest.mark.parametrize("name", RECIPES)
def test_an_unchanged_recipe_needs_no_overrides(name: str) -> None:
    recipe = recipe_of(name)
    field = RECIPES[name].needs
    assert overrides_of(name, recipe) == ({f"{field}.job": MODEL["job"]} if field else {})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ikl-at-digits", {"epochs": 2, "seed": 3}),
        ("ikl-at-digits", {"awp": None}),
        ("trades-digits", {"awp": {}}),
        ("trades-digits", {"awp.gamma": 0.01}),
        ("trades-digits", {"objective.kind": "ikl", "objective.ce_weight": 2.0, "attack.loss": "ikl"}),
        ("trades-digits", {"optimizer.schedule.kind": "one-cycle", "averaging.kind": "step-ema"}),
        ("trades-digits", {"generated.file": "2024"}),  # a text that looks like a number
        ("trades-digits", {"augmentation.crop": 2, "model.kind": "preact-resnet", "averaging": None}),
        ("autoattack-digits-linf", {"suite": "plus", "model.zoo": "cifar10/Linf/Wang2023Better_WRN-28-10"}),
    ],
)
def test_no_more_is_overridden_than_has_to_be(name: str, changes: dict[str, Any]) -> None:
    assert same_by_overrides(name, resolve(name, changes)) == changes


def test_any_recipe_can_be_made_of_any_other() -> None:
    some = [TRAININGS[0], *TRAININGS[1::7], TRAININGS[-1]]
    for name, other in product(some, some):
        same_by_overrides(name, recipe_of(other))


def typed_command(command: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of what somebody pastes into a shell, as the command line reads them."""
    program, name, *words = shlex.split(command.replace("\\\n", " "))
    assert program == "dklbench"
    commands = get_command(app)
    found = commands.get_command(None, name)  # type: ignore[arg-type, attr-defined]
    return name, found.make_context(name, words).params


BODY: dict[str, Any] = {
    "name": "ikl-at-digits",
    "overrides": {"threat.eps": "4/255", "generated": {"file": "it's $HOME"}, "awp": None, "compile": "off"},
    "queue": "a queue",
    "priority": -3,
    "gpus": 2,
    "gpu_memory": 40.5,
    "webhook": "https://example.org/?a=b&c='d'",
    "then": [{"name": "autoattack-digits-linf", "overrides": {"images": 10, "curve": [0.1, 0.2]}}],
}


def test_the_command_asks_for_the_same() -> None:
    JobRequest.model_validate(BODY)
    name, options = typed_command(submit_command(BODY, "http://bench.example.org"))
    assert (name, options["recipe"], options["url"]) == ("submit", "ikl-at-digits", "http://bench.example.org")
    assert parse_overrides(options["overrides"]) == BODY["overrides"]
    for field in ("queue", "priority", "gpus", "gpu_memory", "webhook"):
        assert options[field] == BODY[field]
    [judge, *changes] = options["then"][0].split()
    assert {"name": judge, "overrides": parse_overrides(changes)} == BODY["then"][0]
    assert submit_command({"name": "ikl-at-digits"}, "http://127.0.0.1:8000") == "dklbench submit ikl-at-digits"


def test_curl_sends_the_same() -> None:
    words = shlex.split(curl(BODY, "http://127.0.0.1:8000", with_key=True).replace("\\\n", " "))
    assert words[:2] == ["curl", "http://127.0.0.1:8000/api/v1/jobs"]
    assert "Authorization: Bearer $DKLBENCH_KEY" in words
    assert json.loads(words[words.index("-d") + 1]) == BODY
    assert "Authorization" not in curl(BODY, "http://127.0.0.1:8000", with_key=False)


def test_an_import_is_a_command_where_the_command_can_say_it() -> None:
    recipe = read_recipe(
        {
            "kind": "import",
            "upload": "a" * 64,
            "dataset": "digits",
            "model": {"kind": "cnn", "width": 8},
            "entry": "a b",
        }
    )
    assert isinstance(recipe, Import)
    body = {"recipe": recipe.model_dump(mode="json"), "then": [{"name": "autoattack-digits-linf"}]}
    command = upload_command(recipe, body, "http://127.0.0.1:8000")
    assert command is not None
    name, options = typed_command(command.replace("FILE", "/etc/hostname"))
    assert (name, options["dataset"], options["entry"]) == ("evaluate", "digits", "a b")
    assert json.loads(options["architecture"]) == {"kind": "cnn", "width": 8}
    assert (options["words"], options["recipe"]) == (["/etc/hostname"], "autoattack-digits-linf")
    alone = upload_command(recipe, {"recipe": body["recipe"]}, "http://127.0.0.1:8000")
    assert alone is not None
    assert typed_command(alone)[0] == "upload"
    assert upload_command(recipe, {**body, "priority": 1}, "http://127.0.0.1:8000") is None
