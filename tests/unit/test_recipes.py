"""Recipes: what they read, what they refuse, and that their public form does not change unnoticed."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dkl.catalog import RECIPES, UnknownRecipeError, parse_overrides, resolve
from dkl.documents import ThreatModel, show_pixels
from dkl.explain import InvalidRecipeError
from dkl.protocols import AnyProtocol, Evaluate, EvaluateCorruptions
from dkl.recipes import RECIPE, Train, WideResNet, fingerprint, show_model
from dkl.suites import AUTOATTACK, TargetedAPGD, TargetedFAB, require_targets

SCHEMA = Path(__file__).parent.parent / "golden" / "recipe_schema.json"


def test_the_public_schema_is_the_committed_one() -> None:
    """Whoever changes what may be asked says so in review: write the new schema into the file."""
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(RECIPE.json_schema()))


@pytest.mark.parametrize(("written", "eps"), [("8/255", 8 / 255), (" 0.5/1 ", 0.5), (0.25, 0.25)])
def test_pixels_read_fractions(written: object, eps: float) -> None:
    assert ThreatModel.model_validate({"norm": "Linf", "eps": written}).eps == eps


@pytest.mark.parametrize(
    "eps", ["0.5", "8/0", "-8/255", "", 0, -1, 1, 8, True, float("nan"), float("inf"), None, [1]]
)
def test_what_is_no_linf_eps(eps: object) -> None:
    with pytest.raises(ValidationError):
        ThreatModel.model_validate({"norm": "Linf", "eps": eps})


def test_an_l2_eps_may_be_large() -> None:
    assert ThreatModel(norm="L2", eps=3.0).eps == 3.0


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [(8 / 255, "8/255"), (0.5, "0.5"), (0.15, "0.15"), (0.031, "0.031"), (1 / 255, "1/255"), (0.2, "0.2")],
)
def test_show_pixels(pixels: float, shown: str) -> None:
    assert show_pixels(pixels) == shown


def test_recipes_are_values() -> None:
    recipe = resolve("ikl-at-digits", {})
    assert recipe == RECIPE.validate_json(recipe.model_dump_json())
    with pytest.raises(ValidationError):
        recipe.epochs = 3  # type: ignore[union-attr, misc]


def test_the_fingerprint_is_the_question() -> None:
    one = resolve("ikl-at-digits", {"threat.eps": "51/255"})
    same = resolve("ikl-at-digits", {"threat.eps": 51 / 255})
    other = resolve("ikl-at-digits", {"threat.eps": "51/255", "seed": 1})
    assert fingerprint(one) == fingerprint(same)
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_is_valid_and_named_after_what_it_is(name: str) -> None:
    entry = RECIPES[name]
    recipe = resolve(name, {"model.job": "0" * 12} if isinstance(entry.recipe, AnyProtocol) else {})
    assert entry.about.endswith(".")
    match recipe:
        case Train():
            method = {"natural": "natural", "ikl": "ikl-at"}[recipe.objective.kind]
            assert name.startswith(f"{method}-{recipe.dataset}")
            if isinstance(recipe.model, WideResNet):
                assert show_model(recipe.model).lower() in name
        case Evaluate():
            assert name == f"autoattack-{recipe.dataset}-{recipe.threat.norm.lower()}"
        case EvaluateCorruptions():
            assert name == f"corruptions-{recipe.dataset}"


def test_autoattack_is_the_published_suite() -> None:
    """arXiv:2003.01690, and 2103.01208 for L1; forward passes as counted on the reference."""
    standard = AUTOATTACK["standard"]["Linf"]
    assert [attack.kind for attack in standard] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert [attack.kind for attack in AUTOATTACK["rand"]["L2"]] == ["apgd-ce", "apgd-dlr"]
    plus = [attack.kind for attack in AUTOATTACK["plus"]["Linf"]]
    assert sorted(plus) == ["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
    assert plus[-1] == "square"  # the dearest last, on what is left
    ce, targeted, *_ = AUTOATTACK["standard"]["L1"]
    assert (ce.restarts, ce.large_eps) == (5, True)  # type: ignore[union-attr]
    assert (targeted.targets, targeted.large_eps) == (5, True)  # type: ignore[union-attr]


def test_an_unknown_name_offers_the_closest() -> None:
    with pytest.raises(UnknownRecipeError, match="did you mean ikl-at-digits"):
        resolve("ikl_at_digits", {})
    with pytest.raises(UnknownRecipeError, match="choose from"):
        resolve("????", {})


def test_overrides_may_build_what_was_absent() -> None:
    recipe = resolve(
        "natural-digits",
        {"objective.kind": "ikl", "threat.norm": "Linf", "threat.eps": "4/255", "attack.steps": 2, "awp": {}},
    )
    assert isinstance(recipe, Train)
    assert recipe.threat == ThreatModel(norm="Linf", eps=4 / 255)
    assert recipe.attack is not None
    assert recipe.awp is not None


def test_overrides_as_words() -> None:
    words = ["epochs=2", "threat.eps=4/255", "awp=null", 'model={"kind": "cnn"}', "threat.norm=L2"]
    assert parse_overrides(words) == {
        "epochs": 2,
        "threat.eps": "4/255",
        "awp": None,
        "model": {"kind": "cnn"},
        "threat.norm": "L2",
    }
    with pytest.raises(ValueError, match="epochs"):
        parse_overrides(["epochs"])


def test_large_eps_is_for_l1() -> None:
    suite = [{"kind": "apgd-ce", "large_eps": True}]
    with pytest.raises(InvalidRecipeError, match="large_eps is made for L1, found Linf; leave it out of apgd-ce"):
        resolve("autoattack-digits-linf", {"model.job": "0" * 12, "suite": suite})
    resolve("autoattack-digits-linf", {"model.job": "0" * 12, "suite": suite, "threat.norm": "L1"})


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        resolve("ikl-at-digits", {"epochs": 0, "threat.eps": -1, "optimizer.lr": "fast"})
    assert {fault.field for fault in caught.value.faults} == {"epochs", "threat.eps", "optimizer.lr"}


# --- evaluations that make no sense -----------------------------------------------------------------------

RANDOMISED = [{"kind": "apgd-ce", "eot": 2}]


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"threat.eps": 0}, "threat.eps", "greater than 0, found 0"),
        ({"threat.eps": "-8/255"}, "threat.eps", "write a number or a fraction such as '8/255'"),
        ({"threat.eps": 8}, "threat", "reaches from black to white; pixels are in [0, 1], did you mean '8/255'?"),
        ({"suite": [{"kind": "pgd"}]}, "suite.0", "kind must be 'apgd-ce', 'apgd-dlr', 'apgd-t', 'fab', 'fab-t'"),
        ({"suite": "strong"}, "suite", "must be 'standard', 'plus' or 'rand', found 'strong'"),
        ({"suite": []}, "suite", "a suite has 1 to 100 attacks, found 0; name some, or take 'standard'"),
        ({"suite": [{"kind": "fab"}] * 101}, "suite", "a suite has 1 to 100 attacks, found 101"),
        ({"curve": [0.01 + i / 1000 for i in range(101)]}, "curve", "at most 100 items"),
        ({"suite": [{"kind": "apgd-t", "targets": 10}]}, "", "apgd-t asks for 10 target classes, with 10 classes "
            "there are 9 wrong ones; ask for at most 9"),
        ({"suite": [{"kind": "fab-t", "targets": 10}]}, "", "fab-t asks for 10 target classes"),
        ({"suite": [{"kind": "apgd-t", "targets": 0}]}, "suite.0.targets", "greater than or equal to 1"),
        ({"images": 361}, "", "digits has 360 test images, found images=361; ask for fewer"),
        ({"images": 0}, "images", "greater than or equal to 1"),
        ({"stop_below": 1.1}, "stop_below", "less than or equal to 1"),
        ({"stop_below": -0.1}, "stop_below", "greater than or equal to 0"),
        ({"curve": ["4/255", "4/255"]}, "", "curve names a radius twice; give each once"),
        ({"curve": [0.1, 1.5]}, "", "reaches from black to white"),
        ({"curve": [0]}, "curve.0", "greater than 0"),
        ({"policy": "fast", "engine": "pyautoattack"}, "", "knows the policy exact only, found 'fast'"),
        ({"policy": "screen", "engine": "pyautoattack"}, "", "knows the policy exact only, found 'screen'"),
        ({"policy": "audited", "suite": "rand"}, "", "policy 'audited' is made for deterministic models"),
        ({"policy": "fast", "suite": RANDOMISED}, "", "policy 'fast' is made for deterministic models"),
        ({"policy": "quick"}, "policy", "must be 'exact', 'fast', 'audited' or 'screen', found 'quick'"),
        ({"engine": "foolbox"}, "engine", "must be 'dkl' or 'pyautoattack', found 'foolbox'"),
        ({"sample": "last"}, "sample", "must be 'first' or 'random', found 'last'"),
    ],
)  # fmt: skip
def test_an_evaluation_that_makes_no_sense_is_refused_in_one_sentence(
    changes: dict[str, object], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        resolve("autoattack-digits-linf", {"model.job": "0" * 12, **changes})
    [fault] = caught.value.faults
    assert sentence in fault.message
    assert fault.field == field


def test_what_can_only_be_known_on_the_job_is_taken() -> None:
    own = {"model.job": "0" * 12, "dataset": "npz:mine", "images": 10**6}
    resolve("autoattack-digits-linf", {**own, "suite": [{"kind": "apgd-t", "targets": 40}]})


def test_one_s_own_attacks_aim_at_classes_that_exist_and_nine_means_autoattack_s() -> None:
    for classes in (2, 3, 10, 200):
        require_targets((TargetedAPGD(), TargetedFAB(), TargetedAPGD(targets=classes - 1)), classes)
    for attack in (TargetedAPGD(targets=5), TargetedFAB(targets=10), TargetedFAB(targets=256)):
        with pytest.raises(ValueError, match=f"{attack.kind} asks for {attack.targets} target classes"):
            require_targets((attack,), 5)


def test_the_radii_are_the_curve_s_and_the_threat_s() -> None:
    recipe = resolve(
        "autoattack-digits-linf", {"model.job": "0" * 12, "threat.eps": 0.2, "curve": [0.3, 0.1, 0.2]}
    )
    assert isinstance(recipe, Evaluate)
    assert recipe.radii() == (0.1, 0.2, 0.3)
