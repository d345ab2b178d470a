"""The catalogue's distillations: names, settings and numbers as in print."""

import json
import re
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dkl.architectures import CNN, TimmModel, WideResNet, show_model
from dkl.catalog import RECIPES, PublishedAccuracy, resolve
from dkl.catalog.digits import DIGITS
from dkl.catalog.distillation import DISTILLATION
from dkl.catalog.distillation_numbers import CIFAR_PAIRS
from dkl.catalog.entries import Named
from dkl.catalog.long_tailed import LONG_TAILED
from dkl.catalog.robust_distillation import ROBUST_DISTILLATION
from dkl.explain import InvalidRecipeError
from dkl.lessons import AT, CRD, DKD, GKLKD, IKLKD, KD, OFD, ReviewKD
from dkl.objectives import PGD, Natural
from dkl.recipes import SGD, Augmentation, Distill, Distillation, Steps, Train, WarmCosine, fingerprint
from dkl.schedules import learning_rate

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "published_kd.json").read_text())
FAMILIES = {**DISTILLATION, **LONG_TAILED, **ROBUST_DISTILLATION}
TAUGHT = {name: entry.recipe for name, entry in RECIPES.items() if isinstance(entry.recipe, Distillation)}
ALONE = {name: entry.recipe for name, entry in FAMILIES.items() if isinstance(entry.recipe, Train)}
OBJECTIVES = ("kd", "dkd", "at-kd", "ofd", "crd", "reviewkd", "ikl-kd", "gkl-kd")
TEACHER = {"teacher.checkpoint": "0" * 64}


def complete(name: str) -> Distill:
    recipe = resolve(name, TEACHER)
    assert isinstance(recipe, Distill)
    return recipe


# --- names ------------------------------------------------------------------------------------------------


def student_of(recipe: Distillation | Train) -> str:
    """As names have it: show_model's word, or timm's without the tail."""
    if isinstance(recipe.model, TimmModel):
        return recipe.model.name.removesuffix("_100").removesuffix("_32x4d")
    return show_model(recipe.model).lower()


@pytest.mark.parametrize("name", TAUGHT)
def test_a_distillation_is_named_after_what_it_is(name: str) -> None:
    recipe = complete(name)
    method = recipe.objective.kind.removesuffix("-kd") + "-rd" if recipe.threat else recipe.objective.kind
    dataset = recipe.dataset.removeprefix("folder:").replace("@", "-")
    if dataset == "digits":
        assert name == f"{method}-digits"
    else:
        assert name.startswith(f"{method}-{dataset}-")
        assert name.removesuffix("-no-prior").endswith(f"-{student_of(recipe)}")


@pytest.mark.parametrize("name", ALONE)
def test_a_network_alone_is_named_after_what_it_is(name: str) -> None:
    recipe = ALONE[name]
    assert name == f"natural-{recipe.dataset.replace('@', '-')}-{student_of(recipe)}"
    assert isinstance(recipe.objective, Natural)


def test_every_objective_is_there_for_every_pair() -> None:
    pairs = [f"cifar100-{teacher}-{student}" for teacher, student in CIFAR_PAIRS]
    pairs += ["imagenet-resnet34-resnet18", "imagenet-resnet50-mobilenetv1", "digits"]
    assert len(pairs) == 11 + 2 + 1
    assert {f"{method}-{pair}" for method in OBJECTIVES for pair in pairs} <= set(TAUGHT)


def test_teachers_and_students_of_the_pairs_can_be_trained_alone() -> None:
    assert {f"natural-cifar100-{network}" for pair in CIFAR_PAIRS for network in pair} <= set(ALONE)


def test_no_two_names_ask_the_same_question() -> None:
    """Some differ in their teachers alone, which names tell."""
    recipes: list[Train | Distill] = list(ALONE.values())
    for name, recipe in TAUGHT.items():
        teacher = sha256(name.removesuffix(f"-{student_of(recipe)}").encode()).hexdigest()
        distill = resolve(name, {"teacher.checkpoint": teacher})
        assert isinstance(distill, Distill)
        recipes.append(distill)
    assert max(Counter(map(fingerprint, recipes)).values()) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_every_entry_tells_what_it_is(name: str) -> None:
    assert FAMILIES[name].about.endswith(".")
    assert FAMILIES[name].needs == (None if name in ALONE else "teacher")


def test_a_teacher_has_to_be_given() -> None:
    with pytest.raises(InvalidRecipeError, match="teacher: is missing: The model to learn from"):
        resolve("kd-digits", {})
    recipe = resolve("kd-digits", {"teacher.timm": "resnet18", "epochs": 2})
    assert recipe.model_dump()["teacher"] == {"timm": "resnet18"}


# --- numbers ----------------------------------------------------------------------------------------------

IKL_PAPER = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, Table"
SOURCES = {
    "IKL-T1": f"{IKL_PAPER} 1",
    "IKL-T4": f"{IKL_PAPER} 4",
    "IKL-T5": f"{IKL_PAPER} 5",
    "IKL-T13": f"{IKL_PAPER} 13",
    "IKL-T14": f"{IKL_PAPER} 14",
    "IKL-T15": f"{IKL_PAPER} 15",
    "IKL-T18": f"{IKL_PAPER} 18",
    "README v1": "README of jiequancui/DKL, DKLv1",
    "README v2": "README of jiequancui/DKL, DKLv2 (the code of arXiv:2503.08038)",
    "README history": "an earlier README of jiequancui/DKL",
    "GenDD README": "README of jiequancui/Generative-Distribution-Distillation",
    "mdistiller": "README of megvii-research/mdistiller",
    "RepDistiller": "README of HobbitLong/RepDistiller",
    "ReviewKD": "README of dvlab-research/ReviewKD",
    "torchdistill": "Benchmarks of torchdistill",
    "OFD": "README of clovaai/overhaul-distillation",
    "AT": "README of szagoruyko/attention-transfer",
}
METHODS = {
    "KD": "kd", "KL-KD": "kd", "KL": "kd", "(a) KL (baseline)": "kd",
    "DKD": "dkd", "AT": "at-kd", "OFD": "ofd", "CRD": "crd",
    "ReviewKD": "reviewkd", "KR (ReviewKD)": "reviewkd",
    "IKL-KD": "ikl-kd", "IKL": "ikl-kd",
    "(d) DKL + BA + GI = IKL": "ikl-kd", "(c) DKL + BA (break asymmetry)": "ikl-kd",
    "GKL-KD": "gkl-kd",
    "teacher (no KD)": "natural", "student baseline (no KD)": "natural", "Baseline": "natural",
}  # fmt: skip
OTHER_METHODS = {
    "AB", "CC", "DIST", "DIST+", "FSP", "FT", "FitNet", "GenDD", "ICKD", "JSD", "KD w/ LS", "KD+DOT", "L2", "NST",
    "PAD-L2", "PKT", "Pretrained", "RKD", "SP", "SRD", "SSKD", "Tf-KD", "VID", "(b) DKL, no BA, no GI",
}  # fmt: skip
OTHER_PAIRS = {
    "cifar100-resnet110-resnet20",
    "cifar100-resnet-50-vgg8",
    "cifar100-wrn-28-4-wrn-16-4",
    "cifar100-wrn-28-4-wrn-28-2",
    "cifar100-wrn-28-4-wrn-16-2",
    "cifar100-wrn-28-4-resnet56",
    "cifar100-pyramid200-wrn-28-4",
    "cifar100-pyramid200-pyramid110",
    "imagenet-beitl-resnet50",
    "imagenet-beitlarge-resnet50",
    "imagenet-resnet152-resnet50",
}


def network(dataset: str, printed: str) -> str:
    """The many spellings of one network, as names of recipes have it."""
    if printed.startswith("ResNet-101 (sic"):
        return "resnext101"
    word = re.sub(r"[^a-z0-9]", "", printed.partition(" (")[0].lower())
    if match := re.fullmatch(r"wrn(\d\d)(\d)", word):
        return f"wrn-{match[1]}-{match[2]}"
    special = {"shufflenetv1": "shufflev1", "shufflenetv2": "shufflev2", "resnext10132x4d": "resnext101"}
    special["resnet50"] = "resnet-50" if dataset == "CIFAR-100" else "resnet50"
    special["mobilenet"] = "mobilenetv1"
    return special.get(word, word)


class Printed(NamedTuple):
    """A row of a table under the name of the recipe that it would belong to."""

    name: str
    percent: float
    source: str
    seconds: float | None
    groups: tuple[float | None, ...]


def what(row: dict[str, Any]) -> str:
    dataset = {"CIFAR-100": "cifar100", "ImageNet": "imagenet", "ImageNet-LT": "imagenet-lt"}[row["dataset"]]
    networks = [network(row["dataset"], printed) for printed in (row["teacher"], row["student"]) if printed]
    return "-".join([dataset, *networks])


def printed(row: dict[str, Any]) -> Printed:
    variant = "-no-prior" if row["method"].startswith("(c)") else ""
    words = row["table"].split()
    source = SOURCES.get(" ".join(words[:2])) or SOURCES[words[0]]
    percent = row["value"] if row["metric"] == "accuracy" else round(100 - row["value"], 4)
    groups = tuple(row.get(group) for group in ("many", "medium", "few"))
    name = f"{METHODS[row['method']]}-{what(row)}{variant}"
    return Printed(name, percent, source, row.get("seconds_per_iteration"), groups)


def per_cent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 4)


def numbers(entry: Named) -> list[PublishedAccuracy]:
    return [found for found in (entry.published, *entry.also) if isinstance(found, PublishedAccuracy)]


def in_catalogue(name: str, found: PublishedAccuracy) -> Printed:
    groups = (per_cent(found.many_accuracy), per_cent(found.medium_accuracy), per_cent(found.few_accuracy))
    return Printed(name, per_cent(found.accuracy) or 0, found.source, found.seconds_per_iteration, groups)


def test_every_number_in_print_is_there_once_and_no_other() -> None:
    rows = [printed(row) for row in GOLDEN if row["method"] in METHODS]
    ours = Counter(in_catalogue(name, found) for name, entry in RECIPES.items() for found in numbers(entry))
    assert max(ours.values()) == 1
    assert set(ours) == {row for row in rows if row.name in RECIPES}
    assert len(ours) == 216


def test_what_has_no_recipe_is_of_another_method_or_pair() -> None:
    left = [row for row in GOLDEN if row["method"] not in METHODS]
    assert {row["method"] for row in left} == OTHER_METHODS
    pairs = [row for row in GOLDEN if row["method"] in METHODS and printed(row).name not in RECIPES]
    alone = {
        row["method"] for row in pairs if row["dataset"] == "ImageNet" and not (row["teacher"] and row["student"])
    }
    assert alone == {"teacher (no KD)", "student baseline (no KD)"}  # inside the rows of the pairs
    assert {what(row) for row in pairs if row["teacher"] and row["student"]} == OTHER_PAIRS


def test_imagenet_s_networks_alone_are_told_beside_their_pairs() -> None:
    alone = {
        what(row): row["value"]
        for row in GOLDEN
        if row["table"] == "IKL-T4 ImageNet" and "(no KD)" in row["method"]
    }
    assert len(alone) == 4
    for name, entry in RECIPES.items():
        for found in numbers(entry):
            if found.source == f"{IKL_PAPER} 4":
                _, teacher, student = name[name.index("imagenet") :].split("-")
                assert per_cent(found.teacher_accuracy) == alone[f"imagenet-{teacher}"]
                assert per_cent(found.student_accuracy) == alone[f"imagenet-{student}"]


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].published])
def test_numbers_are_fractions_with_a_source(name: str) -> None:
    for found in numbers(FAMILIES[name]):
        assert found.url.startswith("https://")
        shares = (found.accuracy, found.teacher_accuracy, found.student_accuracy, found.few_accuracy)
        assert all(0 < share < 1 for share in shares if share is not None)


def test_accuracies_of_imagenet_lt_s_groups_make_the_whole() -> None:
    """385 classes have many images, 479 a medium number, 136 few."""
    rows = [found for entry in LONG_TAILED.values() for found in numbers(entry) if found.few_accuracy is not None]
    assert len(rows) == 7
    for found in rows:
        assert found.many_accuracy is not None
        assert found.medium_accuracy is not None
        assert found.few_accuracy is not None
        whole = (385 * found.many_accuracy + 479 * found.medium_accuracy + 136 * found.few_accuracy) / 1000
        assert whole == pytest.approx(found.accuracy, abs=1.1e-4)


# --- settings ---------------------------------------------------------------------------------------------

CONFIGURED = """
    resnet56    resnet20     .05  1  4  1  4  .2   T
    resnet110   resnet32     .05  1  12 1  4  .1   F
    resnet32x4  resnet8x4    .05  1  8  1  16 .05  T
    wrn-40-2    wrn-16-2     .05  3  12 3  20 .3   F
    wrn-40-2    wrn-40-1     .05  1  8  1  12 .3   F
    vgg13       vgg8         .05  1  12 1  8  .2   T
    resnet32x4  shufflev1    .01  1  8  1  8  0    T
    wrn-40-2    shufflev1    .01  1  4  1  8  0    F
    vgg13       mobilenetv2  .01  4  12 4  12 .1   T
    resnet-50   mobilenetv2  .01  1  12 1  8  .05  T
    resnet32x4  shufflev2    .01  3  12 3  12 .1   T
"""
"""Of the authors' two codes: teacher, student, lr, alpha and beta of the first, alpha, beta, gamma and GI of the
second. In code alpha is the weight of the soft cross-entropy."""


@pytest.mark.parametrize("line", [line.split() for line in CONFIGURED.strip().splitlines()], ids=" ".join)
def test_cifar100_is_configured_as_in_the_authors_code(line: list[str]) -> None:
    teacher, student, lr, alpha_1, beta_1, alpha_2, beta_2, gamma, has_prior = line
    first, second = TAUGHT[f"ikl-kd-cifar100-{teacher}-{student}"], TAUGHT[f"gkl-kd-cifar100-{teacher}-{student}"]
    assert first.objective == IKLKD(
        label_weight=1.0, wmse_weight=float(beta_1), ce_weight=float(alpha_1), temperature=4.0, prior="none",
        prior_temperature=100.0, warmup=20,
    )  # fmt: skip
    assert second.objective == GKLKD(
        label_weight=1.0, wmse_weight=float(beta_2), ce_weight=float(alpha_2), temperature=4.0,
        prior="previous-epoch" if has_prior == "T" else "none", prior_temperature=4.0, gamma=float(gamma),
        warmup=20,
    )  # fmt: skip
    for method in OBJECTIVES:
        assert TAUGHT[f"{method}-cifar100-{teacher}-{student}"].optimizer.lr == float(lr)
    assert ALONE[f"natural-cifar100-{student}"].optimizer.lr == float(lr)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "-cifar100-" in name and "-rd-" not in name])
def test_cifar100_is_trained_as_everybody_does(name: str) -> None:
    recipe = FAMILIES[name].recipe
    assert isinstance(recipe, Train | Distillation)
    assert (recipe.epochs, recipe.batch_size, recipe.averaging, recipe.select) == (240, 64, None, "last")
    assert recipe.augmentation == Augmentation(crop=4, padding="zeros", flip=True)
    sgd = recipe.optimizer
    assert sgd == SGD(lr=sgd.lr, momentum=0.9, weight_decay=5e-4, schedule=Steps(epochs=(151, 181, 211)))
    rates = {150: 1, 151: 0.1, 180: 0.1, 181: 0.01, 210: 0.01, 211: 0.001, 240: 0.001}
    for epoch, factor in rates.items():
        assert learning_rate(sgd, epoch, 240) == pytest.approx(sgd.lr * factor)
    normalisation = getattr(recipe.model, "normalisation", None)
    assert normalisation is not None
    assert normalisation.mean == (0.5071, 0.4867, 0.4408)
    assert normalisation.std == (0.2675, 0.2565, 0.2761)


def test_rivals_have_mdistiller_s_weights() -> None:
    x4 = "cifar100-resnet32x4-resnet8x4"
    assert TAUGHT[f"kd-{x4}"].objective == KD(label_weight=0.1, weight=0.9, temperature=4.0, warmup=1)
    assert TAUGHT[f"at-kd-{x4}"].objective == AT(label_weight=1.0, weight=1000.0, warmup=1)
    assert TAUGHT[f"ofd-{x4}"].objective == OFD(label_weight=1.0, weight=1e-3, warmup=1)
    assert TAUGHT[f"crd-{x4}"].objective == CRD(
        label_weight=1.0, weight=0.8, negatives=16384, width=128, temperature=0.07, momentum=0.5
    )
    assert TAUGHT[f"reviewkd-{x4}"].objective == ReviewKD(label_weight=1.0, weight=5.0, warmup=20)


@pytest.mark.parametrize(
    ("pair", "weight"),
    list(zip(map("-".join, CIFAR_PAIRS), (2, 2, 8, 6, 6, 6, 8, 8, 6, 8, 8), strict=True)),
)
def test_dkd_s_weight_of_each_pair(pair: str, weight: float) -> None:
    expected = DKD(label_weight=1.0, target_weight=1.0, non_target_weight=weight, temperature=4.0, warmup=20)
    assert TAUGHT[f"dkd-cifar100-{pair}"].objective == expected


@pytest.mark.parametrize(
    ("pair", "weight"),
    [
        ("resnet56-resnet20", 0.6),
        ("resnet110-resnet32", 1.0),
        ("wrn-40-2-wrn-16-2", 5.0),
        ("resnet32x4-shufflev1", 5.0),
        ("resnet32x4-shufflev2", 8.0),
    ],
)
def test_reviewkd_s_weight_is_its_authors(pair: str, weight: float) -> None:
    objective = TAUGHT[f"reviewkd-cifar100-{pair}"].objective
    assert isinstance(objective, ReviewKD)
    assert objective.weight == weight


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("kd-imagenet-resnet34-resnet18", KD(label_weight=0.5, weight=0.5, temperature=1.0, warmup=1)),
        ("dkd-imagenet-resnet34-resnet18", DKD(non_target_weight=0.5, temperature=1.0, warmup=1)),
        ("dkd-imagenet-resnet50-mobilenetv1", DKD(non_target_weight=2.0, temperature=1.0, warmup=1)),
        ("ofd-imagenet-resnet50-mobilenetv1", OFD(weight=1e-4)),
        ("reviewkd-imagenet-resnet34-resnet18", ReviewKD(weight=1.0, before_activation=True, warmup=1)),
        ("reviewkd-imagenet-resnet50-mobilenetv1", ReviewKD(weight=8.0, before_activation=True, warmup=1)),
        (
            "ikl-kd-imagenet-resnet34-resnet18",
            IKLKD(wmse_weight=0.5, ce_weight=1.0, temperature=1.0, prior_temperature=1.0, warmup=1),
        ),
        (
            "ikl-kd-imagenet-resnet50-mobilenetv1",
            IKLKD(wmse_weight=1.0, ce_weight=4.0, temperature=1.0, prior_temperature=1.0, warmup=1),
        ),
        (
            "gkl-kd-imagenet-resnet34-resnet18",
            GKLKD(wmse_weight=0.5, ce_weight=1.0, temperature=1.0, prior_temperature=1.0, gamma=0.6, warmup=5),
        ),
        (
            "gkl-kd-imagenet-resnet50-mobilenetv1",
            GKLKD(wmse_weight=1.0, ce_weight=4.0, temperature=1.0, prior_temperature=1.0, gamma=0.5, warmup=5),
        ),
        ("kd-imagenet-lt-resnext101-resnet18", KD(label_weight=1.0, weight=4.0, temperature=1.0)),
        ("kd-imagenet-lt-resnext101-resnet50", KD(label_weight=1.0, weight=3.0, temperature=1.0)),
        ("kd-imagenet-lt-resnet50-resnet50", KD(label_weight=1.0, weight=1.0, temperature=1.0)),
        (
            "ikl-kd-imagenet-lt-resnext101-resnet50",
            IKLKD(
                wmse_weight=4.0, ce_weight=3.0, temperature=1.0, prior="none", prior_temperature=100.0, warmup=1
            ),
        ),
        (
            "ikl-kd-imagenet-lt-resnet18-resnet18",
            IKLKD(
                wmse_weight=0.5, ce_weight=1.0, temperature=1.0, prior="none", prior_temperature=100.0, warmup=1
            ),
        ),
        (
            "gkl-kd-imagenet-lt-resnext101-resnet18",
            GKLKD(wmse_weight=4.0, ce_weight=4.0, temperature=1.0, prior_temperature=1.0, gamma=0.3, warmup=1),
        ),
    ],
)
def test_imagenet_is_configured_as_in_the_originals(name: str, objective: object) -> None:
    assert TAUGHT[name].objective == objective


def test_imagenet_s_batches_and_rates() -> None:
    found = {
        (recipe.objective.kind, recipe.batch_size, recipe.optimizer.lr)
        for name, recipe in TAUGHT.items()
        if "-imagenet-resnet" in name
    }
    usual = {(kind, 512, 0.2) for kind in ("kd", "dkd", "at-kd", "ikl-kd", "gkl-kd")}
    assert found == usual | {("ofd", 128, 0.05), ("crd", 256, 0.1), ("reviewkd", 256, 0.1)}
    sgd = TAUGHT["kd-imagenet-resnet34-resnet18"].optimizer
    assert (sgd.weight_decay, sgd.schedule) == (1e-4, Steps(epochs=(31, 61, 91)))


def test_imagenet_lt_is_trained_as_in_the_authors_scripts() -> None:
    rows = [name for name in LONG_TAILED if "imagenet" in name]
    assert len(rows) == 3 + 12
    for name in rows:
        recipe = LONG_TAILED[name].recipe
        assert isinstance(recipe, Train | Distillation)
        assert (recipe.dataset, recipe.epochs, recipe.batch_size) == ("imagenet-lt", 90, 128)
        assert recipe.optimizer == SGD(lr=0.05, weight_decay=5e-4, schedule=WarmCosine(warmup=10))
        assert recipe.averaging is None


def test_robust_students_meet_pgd_with_ten_steps() -> None:
    for entry in ROBUST_DISTILLATION.values():
        recipe = entry.recipe
        assert isinstance(recipe, Distillation)
        assert str(recipe.threat) == "Linf 8/255"
        assert recipe.attack == PGD(loss="kl", steps=10, relative_step_size=0.25, eps_schedule="constant")
        assert recipe.objective.label_weight == 0
        assert "No paper reports" in entry.about


def test_robust_soft_labels_weigh_as_in_rslad() -> None:
    recipe = TAUGHT["kd-rd-cifar10-wrn-34-10-resnet-18"]
    assert isinstance(recipe.objective, KD)
    assert recipe.objective.weight == pytest.approx(5 / 6)
    assert recipe.clean_weight * recipe.objective.weight == pytest.approx(1 / 6)


def test_digits_students_are_smaller_than_their_teacher() -> None:
    for name, entry in DIGITS.items():
        if name in TAUGHT:
            assert TAUGHT[name].model == CNN(width=8)
            assert entry.published is None
    alone = DIGITS["natural-digits-cnn-8"].recipe
    assert isinstance(alone, Train)
    assert (alone.model, alone.epochs) == (TAUGHT["kd-digits"].model, TAUGHT["kd-digits"].epochs)


# --- what is not known ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ikl-kd-cifar100-resnet56-resnet20", "leaves the class prior off"),
        ("gkl-kd-cifar100-resnet56-resnet20", "No README has a number for CIFAR-100"),
        ("at-kd-cifar100-vgg13-mobilenetv2", "the IKL-KD paper has none"),
        ("dkd-cifar100-wrn-40-2-wrn-16-2", "76.24, mdistiller 76.23"),
        ("dkd-cifar100-resnet32x4-shufflev2", "MobileNet-V2 by mistake"),
        ("reviewkd-cifar100-vgg13-vgg8", "does not have this pair"),
        ("reviewkd-cifar100-resnet56-resnet20", "batches of 128"),
        ("ofd-cifar100-vgg13-vgg8", "teacher in train mode"),
        ("kd-cifar100-vgg13-vgg8", "best epoch on the test set"),
        ("ofd-imagenet-resnet34-resnet18", "Nobody publishes a configuration"),
        ("at-kd-imagenet-resnet50-mobilenetv1", "paired from the last one back"),
        ("kd-imagenet-resnet34-resnet18", "71.24"),
        ("ikl-kd-imagenet-resnet50-mobilenetv1", "73.19"),
        ("gkl-kd-imagenet-resnet34-resnet18", "digit by digit"),
        ("natural-imagenet-lt-resnext101", "48.024"),
        ("ikl-kd-imagenet-lt-resnext101-resnet50", "49.29, Table 18 49.22, the README 49.224"),
        ("kd-imagenet-lt-resnet18-resnet18", "leftover with weight 1"),
        ("gkl-kd-imagenet-lt-resnet18-resnet18", "Not a row of a paper"),
        ("ikl-kd-cifar100-lt-100-resnet32x4-resnet8x4", "Not a row of a paper"),
        ("ikl-rd-cifar10-wrn-34-10-resnet-18", "not tuned"),
    ],
)
def test_doubts_are_said(name: str, said: str) -> None:
    assert said in RECIPES[name].about


def test_wide_resnets_are_those_of_the_pairs() -> None:
    recipe = TAUGHT["kd-cifar100-wrn-40-2-wrn-40-1"]
    assert isinstance(recipe.model, WideResNet)
    assert (recipe.model.depth, recipe.model.width) == (40, 1)


# --- the document -----------------------------------------------------------------------------------------


def test_the_document_names_recipes_and_objectives_that_exist() -> None:
    text = (Path(__file__).parents[2] / "docs" / "distillation.md").read_text()
    commands = re.findall(r"(?:dklbench (?:run|submit)|--then) ([a-z][a-z0-9-]+)", text)
    assert len(commands) > 8
    assert set(commands) <= set(RECIPES)
    assert set(re.findall(r"^\| `([a-z-]+)` \| \[", text, re.MULTILINE)) == set(OBJECTIVES)
