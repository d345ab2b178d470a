"""The mathematics of distilling a teacher's logits into a student: KD, DKD, IKL-KD and GKL-KD.

Shapes: B batch, K classes. Every loss is a scalar in nats, a mean over the batch unless it says otherwise,
computed in float32 (float64 where the logits are), and finite for logits up to +-1e4. The teacher is frozen: its
logits are constants, and gradients flow into the student's only.

Objectives that compare features are in `dkl/features/`, one file each.
"""

import torch
from torch import Tensor

from dkl.losses import gkl, ikl


def hinton(logits_student_BK: Tensor, logits_teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """KL(p || q) of softened predictions, times temperature squared, >= 0.

        KD = T^2 * sum_j p_j * (log p_j - log q_j),      p = softmax(teacher / T), q = softmax(student / T)

    Source: Hinton et al., arXiv:1503.02531; the batch mean as in mdistiller.
    """
    student_BK, teacher_BK = _pair(logits_student_BK, logits_teacher_BK)
    log_p_BK, log_q_BK = (teacher_BK / temperature).log_softmax(1), (student_BK / temperature).log_softmax(1)
    return temperature**2 * _kl(log_p_BK, log_q_BK).mean()


def decoupled(
    logits_student_BK: Tensor,
    logits_teacher_BK: Tensor,
    y_B: Tensor,
    *,
    temperature: float,
    target_weight: float,
    non_target_weight: float,
) -> Tensor:
    """KD split into "is it the label?" and "which of the others?", each with a weight of its own, >= 0.

        DKD  = T^2 * (target_weight * TCKD + non_target_weight * NCKD)
        TCKD = KL of the pairs (p_y, 1 - p_y),      p = softmax(teacher / T)
        NCKD = KL of the predictions among the classes other than y

    1 - p_y is never formed: its logarithm is logsumexp over the other classes minus logsumexp over all, which
    stays finite where a float32 p_y is 1. The paper's alpha is target_weight, its beta non_target_weight.

    Source: Zhao et al., arXiv:2203.08679, Eq. 7.
    """
    student_BK, teacher_BK = _pair(logits_student_BK, logits_teacher_BK)
    target_q_B2, others_q_BK = _split(student_BK / temperature, y_B)
    target_p_B2, others_p_BK = _split(teacher_BK / temperature, y_B)
    target, others = _kl(target_p_B2, target_q_B2).mean(), _kl(others_p_BK, others_q_BK).mean()
    return temperature**2 * (target_weight * target + non_target_weight * others)


def ikl_kd(
    logits_student_BK: Tensor,
    logits_teacher_BK: Tensor,
    weight_BK: Tensor,
    *,
    wmse_weight: float,
    ce_weight: float,
    temperature: float,
) -> Tensor:
    """IKL with the teacher in the place of the clean logits.

        IKL-KD = wmse_weight * wMSE(teacher, student; w) - ce_weight * sum_j p_j * log q_j

    `weight_BK` holds w for each image: the class prior's row of its label, or the teacher's own softened
    prediction (`sample_weight`). `temperature` divides the logits of the second term only; there is no factor
    temperature**2.
    The paper's alpha is wmse_weight and its beta ce_weight; the authors' code has them the other way round.

    Source: arXiv:2305.13948, Eq. 10, and the authors' KD code.
    """
    weights = {"wmse_weight": wmse_weight, "ce_weight": ce_weight, "temperature": temperature}
    return ikl(logits_teacher_BK.detach(), logits_student_BK, weight_BK, **weights)


def gkl_kd(
    logits_student_BK: Tensor,
    logits_teacher_BK: Tensor,
    weight_BK: Tensor,
    *,
    gamma: float,
    wmse_weight: float,
    ce_weight: float,
    temperature: float,
) -> Tensor:
    """GKL with the teacher in the place of the clean logits: IKL-KD with w ** gamma, normalised over the batch.

    gamma 1 with weights that sum to 1 is IKL-KD; gamma 0 is half the variance of the logit gap. The normaliser
    belongs to the batch, so the mean over parts of a batch is not the whole batch's loss.

    Source: arXiv:2503.08038, and the authors' KD code.
    """
    weights = {"wmse_weight": wmse_weight, "ce_weight": ce_weight, "temperature": temperature}
    return gkl(logits_teacher_BK.detach(), logits_student_BK, weight_BK, gamma=gamma, **weights)


def sample_weight(logits_teacher_BK: Tensor, *, temperature: float) -> Tensor:
    """The teacher's prediction for each image, (B, K), softened: weights of the wMSE without a class prior."""
    dtype = torch.promote_types(logits_teacher_BK.dtype, torch.float32)
    return (logits_teacher_BK.detach().to(dtype) / temperature).softmax(1)


def _split(logits_BK: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of (label, any other class), (B, 2), and among the others, (B, K - 1)."""
    batch, classes = logits_BK.shape
    is_other_BK = torch.ones_like(logits_BK, dtype=torch.bool).scatter(1, y_B[:, None], False)
    others_BK = logits_BK[is_other_BK].view(batch, classes - 1)
    label_B = logits_BK.gather(1, y_B[:, None])[:, 0]
    pair_B2 = torch.stack([label_B, others_BK.logsumexp(1)], dim=1)
    return pair_B2.log_softmax(1), others_BK.log_softmax(1)


def _kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """KL(p || q) of each image, (B,)."""
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1)


def _pair(logits_student_BK: Tensor, logits_teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the finer of their types, at least float32, the teacher's as constants."""
    if logits_student_BK.ndim != 2 or logits_student_BK.shape != logits_teacher_BK.shape:
        raise ValueError(
            "student and teacher must give logits of one shape (B, K), found "
            f"{tuple(logits_student_BK.shape)} and {tuple(logits_teacher_BK.shape)}"
        )
    dtype = torch.promote_types(
        torch.promote_types(logits_student_BK.dtype, logits_teacher_BK.dtype), torch.float32
    )
    return logits_student_BK.to(dtype), logits_teacher_BK.detach().to(dtype)
