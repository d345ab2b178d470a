"""The terms of a lesson: what `dkl.lessons` names, as tensors.

Shapes: B batch, K classes.
"""

from typing import assert_never

from torch import Tensor

from dkl.distillation import decoupled, hinton, sample_weight
from dkl.lessons import DKD, GKLKD, IKLKD, KD, LogitLesson
from dkl.losses import gkl_weight, mean_square_sum, soft_cross_entropy, weighted_mse
from dkl.terms import Terms


def lesson_terms(
    lesson: LogitLesson,
    student_BK: Tensor,
    teacher_BK: Tensor,
    y_B: Tensor,
    weight_BK: Tensor | None,
    normaliser: Tensor | None,
) -> Terms:
    """What the teacher teaches about these images, by name: means over them, with their weights. Their sum is
    minimal where the student says what the teacher says.

    `weight_BK` and `normaliser` are what `wmse_weight` says of the images and `normaliser_of` of the whole batch.
    """
    match lesson:
        case KD():
            return {"kd": lesson.weight * hinton(student_BK, teacher_BK, temperature=lesson.temperature)}
        case DKD():
            common = {"temperature": lesson.temperature}
            target = {"target_weight": lesson.target_weight, "non_target_weight": 0.0}
            others = {"target_weight": 0.0, "non_target_weight": lesson.non_target_weight}
            return {
                "tckd": decoupled(student_BK, teacher_BK, y_B, **common, **target),
                "nckd": decoupled(student_BK, teacher_BK, y_B, **common, **others),
            }
        case IKLKD():
            assert weight_BK is not None
            wmse = weighted_mse(teacher_BK, student_BK, weight_BK)
        case GKLKD():
            assert weight_BK is not None
            assert normaliser is not None
            wmse = weighted_mse(teacher_BK, student_BK, weight_BK) / normaliser
        case _:
            assert_never(lesson)
    soft = soft_cross_entropy(teacher_BK / lesson.temperature, student_BK / lesson.temperature)
    return {"wmse": lesson.wmse_weight * wmse, "soft_ce": lesson.ce_weight * soft}


def wmse_weight(lesson: LogitLesson, teacher_BK: Tensor, prior_BK: Tensor | None) -> Tensor | None:
    """The class weights of the wMSE, (B, K), of the teacher's type: the prior's rows, or what the teacher says to
    each image itself; of GKL-KD to the power gamma."""
    if not isinstance(lesson, IKLKD | GKLKD):
        return None
    if prior_BK is None:
        weight_BK = sample_weight(teacher_BK, temperature=lesson.prior_temperature)
    else:
        weight_BK = prior_BK.to(teacher_BK.dtype)
    return gkl_weight(weight_BK, gamma=lesson.gamma) if isinstance(lesson, GKLKD) else weight_BK


def normaliser_of(lesson: LogitLesson, weight_BK: Tensor | None) -> Tensor | None:
    """What GKL-KD divides by, of the weights of a whole batch; None for other lessons."""
    if not isinstance(lesson, GKLKD):
        return None
    assert weight_BK is not None
    return mean_square_sum(weight_BK)
