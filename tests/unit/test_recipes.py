"""Recipes: what they read, what they refuse, and that their public form does not change unnoticed."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from dkl.catalog import UnknownRecipeError, parse_overrides, resolve
from dkl.documents import ThreatModel, show_pixels
from dkl.explain import InvalidRecipeError
from dkl.objectives import TRADES
from dkl.protocols import Evaluate
from dkl.recipes import RECIPE, Train, fingerprint
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


def test_another_kind_starts_from_its_own_defaults_in_whatever_order_it_is_asked_for() -> None:
    one = resolve("ikl-at-digits", {"objective.beta": 3.0, "attack.loss": "kl", "objective.kind": "trades"})
    same = resolve("ikl-at-digits", {"objective.kind": "trades", "objective.beta": 3.0, "attack.loss": "kl"})
    assert isinstance(one, Train)
    assert one == same
    assert one.objective == TRADES(beta=3.0)
    kept = resolve("ikl-at-cifar100-wrn-34-10", {"objective.kind": "ikl"})
    assert kept == resolve("ikl-at-cifar100-wrn-34-10", {})


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


# --- trainings that make no sense -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "field", "sentence"),
    [
        ("natural-digits", {"attack": {}}, "", "natural training takes no attack; leave out or pick 'ikl'"),
        ("natural-digits", {"threat": {"norm": "Linf", "eps": 0.1}, "awp": {}}, "", "takes no awp, threat"),
        ("natural-digits", {"second_view": {}}, "", "natural training takes no second_view"),
        ("trades-digits", {"threat": None}, "", "the objective 'trades' needs threat"),
        ("mart-digits", {"threat": None, "attack": None}, "", "the objective 'mart' needs attack and threat"),
        ("ikl-at-digits", {"threat.norm": "L1"}, "", "training against L1 is not available; use Linf or L2"),
        ("trades-digits", {"attack.loss": "ikl"}, "", "attack.loss 'ikl' needs the class prior of the objectives "
            "'ikl' and 'gkl'; with 'trades' take 'kl'"),
        ("pgd-at-digits", {"attack.loss": "ikl"}, "", "with 'pgd-at' take 'ce'"),
        ("mart-digits", {"attack.loss": "ikl"}, "", "with 'mart' take 'ce'"),
        ("ikl-at-digits", {"select": "best"}, "", "select 'best' needs validation, such as"),
        ("ikl-at-digits", {"select": "first"}, "select", "must be 'last' or 'best', found 'first'"),
        ("ikl-at-digits", {"threat.eps": 8}, "threat", "did you mean '8/255'?"),
        ("ikl-at-digits", {"dataset": "mnist"}, "dataset", "unknown dataset 'mnist'; choose from digits, cifar10"),
        ("ikl-at-digits", {"objective.kind": "dkl"}, "objective", "kind must be 'natural', 'pgd-at', 'trades'"),
        ("ikl-at-digits", {"attack.loss": "cw"}, "attack.loss", "must be 'ce', 'kl', 'ikl' or 'objective'"),
        ("ikl-at-digits", {"attack.start": "zero"}, "attack.start", "must be 'gaussian' or 'uniform'"),
        ("ikl-at-digits", {"attack.mode": "test"}, "attack.mode", "must be 'eval', 'batch' or 'train'"),
        ("ikl-at-digits", {"attack.eps_schedule": "cosine"}, "attack.eps_schedule", "must be 'constant'"),
        ("ikl-at-digits", {"attack.steps": 0}, "attack.steps", "greater than or equal to 1"),
        ("gkl-at-digits", {"objective.gamma": 1.5}, "objective.gamma", "less than or equal to 1"),
        ("trades-digits", {"objective.beta": -1}, "objective.beta", "greater than or equal to 0"),
        ("trades-digits", {"objective.label_smoothing": 1}, "objective.label_smoothing", "less than 1"),
        ("ikl-at-digits", {"awp.gamma": 0}, "awp.gamma", "greater than 0"),
        ("ikl-at-digits", {"generated.file": "../secret"}, "generated.file", "match pattern"),
        ("ikl-at-digits", {"generated": {"file": "mine", "fraction": 1}}, "generated.fraction", "less than 1"),
        ("ikl-at-digits", {"validation.images": 0}, "validation.images", "greater than or equal to 1"),
        ("ikl-at-digits", {"augmentation": "none"}, "augmentation", "must be a JSON object"),
        ("ikl-at-digits", {"augmentation.rotation": 270}, "augmentation.rotation", "less than or equal to 180"),
        ("ikl-at-digits", {"ema_decay": 0.9}, "ema_decay", "is no field here; the fields are attack,"),
        ("ikl-at-digits", {"optimizer.schedule": {"kind": "steps", "epochs": []}}, "optimizer.schedule.epochs",
            "at least 1 item"),
        ("ikl-at-digits", {"optimizer.schedule.kind": "linear"}, "optimizer.schedule",
            "kind must be 'cosine', 'warmup-cosine', 'steps', 'one-cycle', found 'linear'"),
        ("ikl-at-digits", {"averaging": {"kind": "step-ema", "decay": 1}}, "averaging.decay", "less than 1"),
        ("ikl-at-digits", {"precision": "float16"}, "precision", "must be 'float32' or 'bfloat16'"),
        ("ikl-at-digits", {"processes": 0}, "processes", "greater than or equal to 1"),
        ("ikl-at-cifar10-wrn-34-10", {"model.depth": 30}, "model", "depth must be 6n + 4"),
        ("ikl-at-cifar10-wrn-34-10", {"model.activation": "silu"}, "model.activation",
            "is no field here; the fields are depth, kind, normalisation, width"),
        ("ikl-at-cifar10-wrn-34-10", {"model": {"kind": "swish-wide-resnet"}}, "model.normalisation",
            "is missing"),
        ("dm-at-cifar10-wrn-28-10-1m", {"model.normalisation.std": [63, 62]}, "model.normalisation",
            "found 3 means and 2 stds"),
        ("dm-at-cifar10-wrn-28-10-1m", {"model.normalisation.mean": [125, 123, 114]}, "model.normalisation",
            "divide mean and std by 255"),
        ("ikl-at-digits", {"model": {"kind": "timm", "name": "ResNet 50"}}, "model.name", "match pattern"),
    ],
)  # fmt: skip
def test_a_training_that_makes_no_sense_is_refused_in_one_sentence(
    name: str, changes: dict[str, object], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRecipeError) as caught:
        resolve(name, changes)
    [fault] = caught.value.faults
    assert sentence in fault.message
    assert fault.field == field


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
