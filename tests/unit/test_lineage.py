"""Which recipes need a model, and whether one can teach what is asked."""

import pytest
from samples import TRAIN, distillation

from dkl.catalog import resolve
from dkl.protocols import JobResult, Timm, Zoo
from service.lineage import awaited, needed, why_unfit, why_unfit_of_the_zoo

JOB = "0123456789ab"
OF_THE_ZOO = Zoo(zoo="cifar10/Linf/Carmon2019Unlabeled")


def test_a_training_needs_no_model() -> None:
    assert needed(TRAIN) is None
    assert awaited(TRAIN) is None


def test_an_evaluation_needs_its_model_and_a_distillation_its_teacher() -> None:
    judging = resolve("autoattack-digits-linf", {"model.job": JOB})
    assert needed(judging) == ("model", JobResult(job=JOB))
    assert needed(distillation(JOB)) == ("teacher", JobResult(job=JOB))
    assert awaited(judging) == awaited(distillation(JOB)) == JOB


def test_a_public_model_is_waited_for_by_nobody() -> None:
    recipe = distillation(Timm(timm="resnet18.a1_in1k"))
    assert needed(recipe) == ("teacher", Timm(timm="resnet18.a1_in1k"))
    assert awaited(recipe) is None


def test_a_teacher_of_other_classes_does_not_fit() -> None:
    recipe = distillation(JOB, dataset="cifar100-lt@100")
    why = "was trained on CIFAR-10, which has 10 classes; CIFAR-100-LT, imbalance 100 has 100 classes"
    assert str(why_unfit(recipe, "cifar10")).startswith(why)


@pytest.mark.parametrize("taught", ["cifar100", "npz:mine", "folder:mine"])
def test_a_teacher_fits_where_nothing_else_is_known(taught: str) -> None:
    assert why_unfit(distillation(JOB, dataset="cifar100-lt@10"), taught) is None


def test_only_distilling_asks_for_it() -> None:
    assert why_unfit(resolve("autoattack-digits-linf", {"model.job": JOB}), "cifar100") is None
    assert why_unfit_of_the_zoo(resolve("autoattack-cifar10-linf", {"model": {"zoo": OF_THE_ZOO.zoo}})) is None


def test_of_the_zoo_the_classes_are_known_and_features_are_not_offered() -> None:
    assert why_unfit_of_the_zoo(distillation(OF_THE_ZOO, dataset="cifar10")) is None
    assert "tells 10 classes apart; CIFAR-100 has 100" in str(
        why_unfit_of_the_zoo(distillation(OF_THE_ZOO, dataset="cifar100"))
    )
    features = distillation(OF_THE_ZOO, dataset="cifar10", objective={"kind": "at-kd"})
    assert "offer no features to compare, which the objective 'at-kd' needs" in str(why_unfit_of_the_zoo(features))
