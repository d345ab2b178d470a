"""The weighted MSE of IKL-KD and GKL-KD as its authors write it: what the closed form is measured against.

Shapes: B batch, K classes.

Source: arXiv:2305.13948, Eq. 10; arXiv:2503.08038.
"""

from torch import Tensor
from torch.nn.functional import log_softmax, softmax


def pairwise_gkl_kd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    prior_BK: Tensor,
    *,
    gamma: float,
    wmse_weight: float,
    ce_weight: float,
    temperature: float,
) -> Tensor:
    """GKL-KD over pairs of classes, B x K x K numbers several times; with gamma 1 it is IKL-KD.

    wMSE = sum_b 1/4 * sum_jk w_j w_k * ((t_j - t_k) - (s_j - s_k))**2 / sum_bjk w_j w_k,      w = prior ** gamma
    """
    weight_BK = prior_BK**gamma
    gap_teacher_BKK = teacher_BK[:, :, None] - teacher_BK[:, None, :]
    gap_student_BKK = student_BK[:, :, None] - student_BK[:, None, :]
    weight_BKK = weight_BK[:, :, None] * weight_BK[:, None, :]
    wmse = 0.25 * (weight_BKK * (gap_teacher_BKK - gap_student_BKK) ** 2).sum() / weight_BKK.sum()
    p_BK = softmax(teacher_BK / temperature, dim=1).detach()
    soft_ce = -(p_BK * log_softmax(student_BK / temperature, dim=1)).sum(1).mean()
    return wmse_weight * wmse + ce_weight * soft_ce
