"""The catalogue: every row of the tables is there under its name, with the settings and numbers in print.

What is about distillation is in test_distillation_catalog.py.
"""

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from dkl.architectures import CNN, show_model
from dkl.catalog import RECIPES, resolve
from dkl.catalog.dajat import DAJAT_RECIPES
from dkl.catalog.digits import DIGITS
from dkl.catalog.distillation import DISTILLATION
from dkl.catalog.dkl_papers import DKL_PAPERS
from dkl.catalog.entries import Named, Published
from dkl.catalog.generated import GENERATED
from dkl.catalog.judges import JUDGES
from dkl.catalog.las import LAS
from dkl.catalog.lbgat import LBGAT_RECIPES
from dkl.catalog.long_tailed import LONG_TAILED
from dkl.catalog.perturbed import PERTURBED
from dkl.catalog.rivals import RIVALS
from dkl.catalog.robust_distillation import ROBUST_DISTILLATION
from dkl.objectives import DAJAT, GKL, IKL, LASAT, LASTRADES, LBGAT, MART, PGDAT, TRADES, Natural, Objective
from dkl.protocols import AnyProtocol, Evaluate, EvaluateCorruptions
from dkl.recipes import StepEMA, Train, fingerprint
from dkl.schedules import learning_rate

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "published_at.json").read_text())
DEFENCES = {**DIGITS, **DKL_PAPERS, **GENERATED, **RIVALS, **PERTURBED, **LAS, **LBGAT_RECIPES, **DAJAT_RECIPES}
TRAINED = {name: entry.recipe for name, entry in DEFENCES.items() if isinstance(entry.recipe, Train)}


def test_no_family_hides_an_entry_of_another() -> None:
    defences = (DIGITS, DKL_PAPERS, GENERATED, RIVALS, PERTURBED, LAS, LBGAT_RECIPES, DAJAT_RECIPES)
    families = (*defences, DISTILLATION, LONG_TAILED, ROBUST_DISTILLATION, JUDGES)
    assert sum(map(len, families)) == len(RECIPES)


# --- names ------------------------------------------------------------------------------------------------


def method(recipe: Train) -> str:
    match recipe.objective:
        case Natural():
            return "natural"
        case IKL():
            return "ikl-at"
        case GKL():
            return "gkl-at"
        case MART():
            return "mart-awp" if recipe.awp else "mart"
        case LASAT():
            return "las-awp" if recipe.awp else "las-at"
        case LASTRADES():
            return "las-trades"
        case LBGAT():
            return "lbgat"
        case DAJAT():
            return "dajat"
        case PGDAT():
            return "at-awp" if recipe.awp else "pgd-at"
        case TRADES() if recipe.generated:
            return "dm-at"
        case TRADES() if recipe.awp:
            return "acat" if recipe.attack and recipe.attack.steps == 2 else "trades-awp"
        case _:
            return "trades"


@pytest.mark.parametrize("name", [*TRAINED, *JUDGES])
def test_every_named_recipe_is_valid_and_named_after_what_it_is(name: str) -> None:
    entry = RECIPES[name]
    recipe = resolve(name, {"model.job": "0" * 12} if isinstance(entry.recipe, AnyProtocol) else {})
    assert entry.about.endswith(".")
    match recipe:
        case Train(dataset="digits"):
            assert name == f"{method(recipe)}-digits{'' if recipe.model == CNN() else '-cnn-8'}"
        case Train():
            norm = "-l2" if recipe.threat and recipe.threat.norm == "L2" else ""
            model = show_model(recipe.model).lower().removesuffix("-silu").replace("preactresnet", "preact-resnet")
            stem = f"{method(recipe)}-{recipe.dataset}-{model}{norm}"
            assert f"{name}-".startswith(f"{stem}-")
            variant = name.removeprefix(stem).strip("-").split("-")
            assert "l2" not in variant
            assert ("autoaug" in variant) is (recipe.second_view is not None)
            assert recipe.generated is None or recipe.generated.file == f"{recipe.dataset}_{variant[0]}"
        case Evaluate():
            assert name == f"autoattack-{recipe.dataset}-{recipe.threat.norm.lower()}"
        case EvaluateCorruptions():
            assert name == f"corruptions-{recipe.dataset}"


def test_names_that_people_have_typed_before_are_still_there() -> None:
    before = """natural-digits ikl-at-digits natural-cifar10-preact-resnet-18 ikl-at-cifar10-preact-resnet-18
    ikl-at-cifar10-wrn-34-10 ikl-at-cifar100-wrn-34-10 autoattack-digits-linf autoattack-cifar10-linf
    autoattack-cifar10-l2 autoattack-cifar100-linf corruptions-cifar10 corruptions-cifar100 corruptions-digits"""
    assert set(before.split()) <= set(RECIPES)


def test_no_two_names_ask_the_same_question() -> None:
    counts = Counter(map(fingerprint, TRAINED.values()))
    assert max(counts.values()) == 1


# --- numbers ----------------------------------------------------------------------------------------------


def key(recipe: Train, published: Published) -> tuple[object, ...]:
    assert recipe.threat is not None
    return (
        method(recipe),
        recipe.dataset,
        recipe.threat.norm,
        round(published.eps or recipe.threat.eps, 6),
        show_model(recipe.model).removesuffix("-SiLU"),
        round(100 * published.clean_accuracy, 4),
        round(100 * published.robust_accuracy, 4),
    )


def golden_key(row: dict[str, object]) -> tuple[object, ...]:
    above, _, below = str(row["eps"]).partition("/")
    eps = round(float(above) / float(below or 1), 6)
    return (row["method"], row["dataset"], row["norm"], eps, row["model"], row["clean"], row["autoattack"])


def numbers(entry: Named) -> list[Published]:
    return [published for published in (entry.published, *entry.also) if isinstance(published, Published)]


IN_PRINT = {key(recipe, published) for name, recipe in TRAINED.items() for published in numbers(RECIPES[name])}


@pytest.mark.parametrize("name", [name for name in TRAINED if RECIPES[name].published])
def test_every_number_is_in_print(name: str) -> None:
    rows = {golden_key(row) for row in GOLDEN}
    for published in numbers(RECIPES[name]):
        assert 0 < published.robust_accuracy < published.clean_accuracy < 1
        assert published.url.startswith("https://")
        assert published.source
        assert key(TRAINED[name], published) in rows


def test_every_row_in_print_has_a_recipe() -> None:
    """The golden rows: all of the papers, READMEs, logs and RobustBench that is of these methods on CIFAR."""
    assert {golden_key(row) for row in GOLDEN} - IN_PRINT == set()


def test_a_radius_of_judging_is_told_where_it_is_not_that_of_training() -> None:
    for name, recipe in TRAINED.items():
        for published in numbers(RECIPES[name]):
            assert recipe.threat is not None
            assert published.eps is None or published.eps != recipe.threat.eps


@pytest.mark.parametrize(
    ("name", "clean", "robust"),
    [
        # IKL-AT paper, Table 2 (CIFAR-100); its LAS-AT is LAS-AWP, its ACAT with AutoAugment DAJAT
        ("at-awp-cifar100-wrn-34-10", 60.38, 28.86),
        ("lbgat-cifar100-wrn-34-10-beta6", 60.64, 29.33),
        ("las-awp-cifar100-wrn-34-10", 64.89, 30.77),
        ("dajat-cifar100-wrn-34-10-2aa", 68.74, 31.30),
        ("acat-cifar100-wrn-34-10", 65.75, 30.23),
        ("ikl-at-cifar100-wrn-34-10", 65.76, 31.91),
        ("ikl-at-cifar100-wrn-34-10-autoaug", 66.08, 32.53),
        ("dm-at-cifar100-wrn-28-10-50m", 72.58, 38.83),
        ("ikl-at-cifar100-wrn-28-10-50m", 73.85, 39.18),
        # Table 3 (CIFAR-10); for ACAT it prints 82.41, and for IKL-AT with generated images 67.75
        ("pgd-at-cifar10-wrn-34-20", 85.34, 53.42),
        ("trades-awp-cifar10-wrn-34-10", 85.36, 56.17),
        ("lbgat-cifar10-wrn-34-20-beta0", 88.70, 53.57),
        ("las-awp-cifar10-wrn-34-10", 87.74, 55.52),
        ("dajat-cifar10-wrn-34-10-3aa", 88.64, 57.05),
        ("acat-cifar10-wrn-34-10", 86.71, 55.36),
        ("ikl-at-cifar10-wrn-34-10", 84.80, 57.09),
        ("ikl-at-cifar10-wrn-34-10-autoaug", 85.20, 57.62),
        ("dm-at-cifar10-wrn-28-10-20m", 92.44, 67.31),
        ("ikl-at-cifar10-wrn-28-10-20m", 92.16, 67.73),
        # Table 1
        ("trades-awp-cifar100-wrn-34-10-dkl", 62.87, 30.29),
        # README of the second code
        ("gkl-at-cifar100-wrn-34-10", 65.76, 31.91),
        ("gkl-at-cifar100-wrn-34-10-autoaug", 65.93, 32.52),
        ("gkl-at-cifar100-wrn-28-10-1m", 68.99, 35.89),
        ("gkl-at-cifar100-wrn-28-10-50m", 73.65, 39.37),
        ("gkl-at-cifar10-wrn-34-10", 85.31, 57.13),
        ("gkl-at-cifar10-wrn-28-10-1m", 90.75, 63.54),
        ("gkl-at-cifar10-wrn-28-10-20m", 92.16, 67.75),
    ],
)
def test_the_main_tables(name: str, clean: float, robust: float) -> None:
    published = RECIPES[name].published
    assert isinstance(published, Published)
    assert published.clean_accuracy == pytest.approx(clean / 100)
    assert published.robust_accuracy == pytest.approx(robust / 100)


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("ikl-at-cifar100-wrn-34-10", 4 / 255),
        ("pgd-at-cifar10-wrn-34-20", 2 / 255),
        ("pgd-at-cifar10-preact-resnet-18-l2", 15 / 255),
        ("at-awp-cifar10-wrn-34-10-l2", 15 / 255),
        ("trades-cifar10-wrn-34-10", 0.007),
        ("mart-cifar10-resnet-18", 0.007),
        ("trades-awp-cifar10-wrn-34-10", 2 / 255),
        ("trades-awp-cifar10-wrn-34-10-l2", 128 / 255 / 5),
        ("acat-cifar10-resnet-18", 8 / 255),
        ("lbgat-cifar10-wrn-34-20-beta0", 0.007),
        ("lbgat-cifar100-wrn-34-10-awp-beta9", 0.007),
        ("dajat-cifar100-wrn-34-10-2aa", 8 / 255),
        ("dajat-cifar100-wrn-34-10-2aa-200", 4 / 255),
        ("dm-at-cifar10-wrn-28-10-20m", 2 / 255),
        ("dm-at-cifar10-wrn-28-10-l2-50m", 128 / 255 / 5),
    ],
)
def test_attack_steps_are_as_long_as_in_the_originals(name: str, pixels: float) -> None:
    """At the full radius."""
    recipe = TRAINED[name]
    assert recipe.threat is not None
    assert recipe.attack is not None
    assert recipe.attack.relative_step_size * recipe.threat.eps == pytest.approx(pixels, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("ikl-at-cifar100-wrn-34-10", {1: 0.2 * 0.99993892, 200: 1.2215e-5}),
        ("trades-awp-cifar100-wrn-34-10-dkl", {1: 0.2, 101: 0.1}),
        ("pgd-at-cifar10-wrn-34-10", {1: 0.1, 100: 0.1, 101: 0.01, 150: 0.01, 151: 0.001, 200: 0.001}),
        ("trades-cifar10-wrn-34-10", {74: 0.1, 75: 0.01, 76: 0.01}),
        ("mart-cifar10-wrn-34-10", {74: 0.1, 75: 0.01, 90: 0.001}),
        ("mart-cifar10-resnet-18", {74: 0.01, 75: 0.001, 90: 1e-4, 100: 1e-5, 120: 1e-5}),
        ("trades-awp-cifar10-wrn-34-10", {99: 0.1, 100: 0.01, 150: 0.001}),
        ("acat-cifar10-wrn-34-10", {1: 0.2, 56: 0.1}),
        ("lbgat-cifar100-wrn-34-10-beta0", {1: 0.02, 2: 0.1, 75: 0.1, 76: 0.01, 90: 0.01, 91: 0.001, 92: 0.001}),
        ("dajat-cifar10-wrn-34-10-2aa-200", {1: 0.2, 101: 0.1}),
        ("dm-at-cifar10-wrn-28-10-1m", {1: 0.008, 10: 0.2, 400: 8e-7}),
    ],
)
def test_learning_rates_are_those_of_the_originals(name: str, rates: dict[int, float]) -> None:
    recipe = TRAINED[name]
    found = {epoch: learning_rate(recipe.optimizer, epoch, recipe.epochs) for epoch in rates}
    assert found == pytest.approx(rates, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "radii", "steps", "step_sizes"),
    [
        ("las-at-cifar10-wrn-34-10", (3, 15), (3, 14), (1, 5)),
        ("las-at-cifar100-wrn-34-10", (3, 15), (3, 12), (1, 5)),
        ("las-trades-cifar10-wrn-34-10", (5, 9), (7, 14), (2, 4)),
        ("las-trades-cifar100-wrn-34-10", (5, 10), (7, 14), (2, 4)),
        ("las-awp-cifar10-wrn-34-10", (7, 15), (8, 16), (2, 5)),
        ("las-awp-cifar10-wrn-70-16", (7, 15), (8, 16), (2, 5)),
        ("las-awp-cifar100-wrn-34-10", (7, 15), (8, 15), (2, 5)),
        ("las-awp-cifar100-wrn-34-20", (7, 15), (8, 15), (2, 5)),
    ],
)
def test_strategies_choose_from_the_lists_of_the_authors_commands(
    name: str, radii: tuple[int, int], steps: tuple[int, int], step_sizes: tuple[int, int]
) -> None:
    """First and last, pixels in 1/255: README of jiaxiaojunQAQ/LAS-AT, commit ee756b7; it has all in between."""
    objective = TRAINED[name].objective
    assert isinstance(objective, LASAT | LASTRADES)

    def listed(ends: tuple[int, int]) -> list[int]:
        return list(range(ends[0], ends[1] + 1))

    assert [255 * eps for eps in objective.strategy.eps] == pytest.approx(listed(radii))
    assert list(objective.strategy.steps) == listed(steps)
    assert [255 * size for size in objective.strategy.step_sizes] == pytest.approx(listed(step_sizes))
    if isinstance(objective, LASTRADES):
        assert list(objective.betas) == listed((5, 9))


def test_label_smoothing_of_acat_gives_a_tenth_to_the_other_classes() -> None:
    """The original: 0.9 to the label, 0.1 / 99 to each other class. Ours: everybody gets smoothing / 100."""
    objective = TRAINED["acat-cifar100-wrn-34-10"].objective
    assert isinstance(objective, TRADES)
    smoothing = objective.label_smoothing
    assert smoothing / 100 == pytest.approx(0.1 / 99)
    assert 1 - smoothing + smoothing / 100 == pytest.approx(0.9)


def test_ikl_at_s_weights_are_the_paper_s_best() -> None:
    """arXiv:2305.13948, Tables 7 to 9: alpha/4 = 5, beta = 5, tau = 4."""
    objective = TRAINED["ikl-at-cifar100-wrn-34-10"].objective
    assert objective == IKL(wmse_weight=20.0, ce_weight=5.0, prior_temperature=4.0)


def test_an_ablation_changes_one_weight() -> None:
    best = TRAINED["ikl-at-cifar100-wrn-34-10"].model_dump()
    for name, changed in {"wmse12": "wmse_weight", "ce2": "ce_weight", "tau1": "prior_temperature"}.items():
        other = TRAINED[f"ikl-at-cifar100-wrn-34-10-{name}"].model_dump()
        assert {k for k in best if best[k] != other[k]} == {"objective"}
        assert {k for k in best["objective"] if best["objective"][k] != other["objective"][k]} == {changed}


def test_ikl_at_with_generated_images_is_dm_at_with_another_loss() -> None:
    for name in ("cifar10-wrn-28-10-20m", "cifar100-wrn-28-10-1m", "cifar100-wrn-28-10-50m"):
        host, ours = TRAINED[f"dm-at-{name}"], TRAINED[f"ikl-at-{name}"]
        assert ours == host.model_copy(update={"objective": ours.objective})


@pytest.mark.parametrize("name", [name for name, recipe in TRAINED.items() if recipe.generated])
def test_generated_data_as_dm_at_uses_them(name: str) -> None:
    recipe = TRAINED[name]
    assert recipe.generated is not None
    assert recipe.generated.fraction == (0.7 if recipe.generated.file.endswith("_1m") else 0.8)
    assert recipe.averaging == StepEMA(decay=0.995, start=0.025, ramp=True)
    assert recipe.augmentation is not None
    assert recipe.augmentation.rotation == (15 if recipe.dataset == "cifar100" else 0)
    assert recipe.validation is not None
    assert (recipe.validation.images, recipe.validation.steps, recipe.select) == (1024, 40, "best")


def test_every_objective_can_be_tried_in_a_minute() -> None:
    tried = {recipe.objective.kind for recipe in TRAINED.values() if recipe.dataset == "digits"}
    offered = get_args(get_args(Objective)[0])
    ours = {objective.model_fields["kind"].default for objective in offered} - {"plugin"}
    assert tried == ours


# --- what is not known ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TRAINED if name.startswith(("ikl-at", "gkl-at"))])
def test_what_is_unknown_about_generated_data_is_said(name: str) -> None:
    about = RECIPES[name].about
    if TRAINED[name].generated is None:
        return
    for word in ("unpublished", "attacked", "label smoothing", "class prior", "epochs"):
        assert word in about
    if name.startswith("gkl"):
        assert "GKL's settings are unknown" in about
    elif name.endswith("1m"):
        assert "weights are unknown" in about


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ikl-at-cifar10-wrn-34-10", "log file 3"),
        ("ikl-at-cifar100-wrn-34-10", "file name 4"),
        ("ikl-at-cifar100-wrn-34-10-autoaug", "65.93 / 32.52"),
        ("ikl-at-cifar10-wrn-28-10-20m", "67.75"),
        ("gkl-at-cifar10-wrn-34-10-gamma02", "missing line continuation"),
        ("acat-cifar10-wrn-34-10", "82.41"),
        ("acat-cifar100-wrn-34-10", "DAJAT, another method"),
        ("acat-cifar10-resnet-18", "beta is not stated reliably"),
        ("lbgat-cifar100-wrn-34-10-beta6", "62.31"),
        ("lbgat-cifar100-wrn-34-10-beta0", "100 epochs and publishes about the 92nd"),
        ("lbgat-cifar10-wrn-34-10-beta0", "Only the CIFAR-100 script"),
        ("lbgat-cifar100-wrn-34-10-awp-beta6", "beta is not published"),
        ("lbgat-cifar100-wrn-34-10-awp-beta9", "star"),
        ("dajat-cifar10-wrn-34-10-3aa", "two views at most"),
        ("dajat-cifar100-wrn-34-10-2aa", "ACAT with AutoAugment"),
        ("dajat-cifar100-resnet-18-2aa-200", "always takes 5"),
        ("at-awp-cifar10-wrn-34-10", "85.36"),
        ("at-awp-cifar100-wrn-34-10", "calls AWP"),
        ("trades-awp-cifar10-wrn-34-10", "calls AWP"),
        ("trades-cifar10-wrn-34-10", "eps 0.031, not 8/255"),
        ("trades-cifar100-wrn-34-10", "schedule is unknown"),
        ("dm-at-cifar10-wrn-28-10-20m", "second hand"),
        ("dm-at-cifar10-wrn-28-10-l2-50m", "0.5"),
        ("las-at-cifar10-wrn-34-10", "what batch norms do while attacking"),
        ("las-awp-cifar10-wrn-34-10", "84.98 / 56.26"),
        ("las-awp-cifar10-wrn-70-16", "does not say which of the three"),
        ("las-awp-cifar100-wrn-34-10", "calls LAS-AT"),
        ("las-awp-cifar100-wrn-34-10", "62.99"),
        ("las-trades-cifar100-wrn-34-10", "No number for it"),
        ("mart-awp-cifar10-wrn-34-10", "Only the number is published"),
        ("pgd-at-cifar10-wrn-34-20", "on the test set"),
    ],
)
def test_contradictions_are_said(name: str, said: str) -> None:
    assert said in RECIPES[name].about


def test_the_best_epoch_is_never_chosen_on_the_test_set() -> None:
    for recipe in TRAINED.values():
        assert (recipe.select == "best") is (recipe.validation is not None)
