"""The mathematics of the objectives: KL, its decoupled forms, and the losses of their rivals.

Shapes: B batch, K classes. `logits_nat` are the logits of the clean image, `logits_adv` those of the adversarial
one. Every loss is a scalar in nats, a mean over the batch unless it says otherwise, computed in float32 (float64
where the logits are), and finite for logits up to +-1e4 (in float16: for any that are finite themselves).

The paper's alpha is `wmse_weight` and its beta is `ce_weight`; the authors' code has the two the other way round.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss


def kl(logits_nat_BK: Tensor, logits_adv_BK: Tensor) -> Tensor:
    """KL(softmax(nat) || softmax(adv)), >= 0; its gradient flows to both.

        KL = sum_j p_j * (log p_j - log q_j),      p = softmax(nat), q = softmax(adv)

    Source: the robust term of TRADES, arXiv:1901.08573.
    """
    return kl_of_each(logits_nat_BK, logits_adv_BK).mean()


def kl_of_each(logits_nat_BK: Tensor, logits_adv_BK: Tensor) -> Tensor:
    """`kl` of every image, shape (B,)."""
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    log_p_BK, log_q_BK = nat_BK.log_softmax(1), adv_BK.log_softmax(1)
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1)


def weighted_mse(logits_a_BK: Tensor, logits_b_BK: Tensor, weight_BK: Tensor) -> Tensor:
    """Half the variance of the logit gap under class weights w >= 0, >= 0.

        wMSE = 1/4 * sum_ij w_i w_j * ((a_i - a_j) - (b_i - b_j))**2
             = 1/2 * S * sum_i w_i * (d_i - mu)**2,      d = a - b, S = sum_i w_i, mu = sum_i w_i d_i / S

    The second form needs B x K numbers instead of B x K x K. It is centred on purpose: expanded into
    S * E[d^2] - E[d]^2 it loses all its digits in float32 once one side is shifted by a constant.

    Source: arXiv:2305.13948, Eq. 5 and Appendix A.5 (which assumes S = 1; this form does not).
    """
    a_BK, b_BK = _pair(logits_a_BK, logits_b_BK)
    w_BK = _rows_like(a_BK, weight_BK, "weight")
    gap_BK = a_BK - b_BK
    total_B1 = w_BK.sum(1, keepdim=True)
    mean_B1 = (w_BK * gap_BK).sum(1, keepdim=True) / total_B1.clamp_min(torch.finfo(w_BK.dtype).tiny)
    return (0.5 * total_B1 * w_BK * (gap_BK - mean_B1).square()).sum(1).mean()


def dkl(
    logits_nat_BK: Tensor, logits_adv_BK: Tensor, *, wmse_weight: float = 1.0, ce_weight: float = 1.0
) -> Tensor:
    """The decoupled KL: with unit weights it has KL's gradient, though not its value.

        DKL = wmse_weight * wMSE(nat, S(adv); S(p)) - ce_weight * sum_j S(p_j) * log q_j,      S = stop-gradient

    The first term moves only the clean logits, the second only the adversarial ones.
    The paper's alpha is wmse_weight, its beta ce_weight; the authors' code swaps them.

    Source: arXiv:2305.13948, Theorem 1.
    """
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    own_weight_BK = nat_BK.detach().softmax(1)
    return wmse_weight * weighted_mse(nat_BK, adv_BK.detach(), own_weight_BK) + ce_weight * _soft_cross_entropy(
        nat_BK, adv_BK, temperature=1.0
    )


def ikl(
    logits_nat_BK: Tensor,
    logits_adv_BK: Tensor,
    prior_BK: Tensor,
    *,
    wmse_weight: float,
    ce_weight: float,
    temperature: float = 1.0,
) -> Tensor:
    """The improved KL: both logits are moved by the wMSE, which is weighted with the class prior.

        IKL = wmse_weight * wMSE(nat, adv; prior) - ce_weight * sum_j S(p_j) * log q_j

    `prior_BK` holds the class-prior row of each image's label, `ClassPrior.rows_for(y)`; it is a constant.
    `temperature` divides the logits of the second term only; there is no factor temperature**2.
    The paper's alpha is wmse_weight, its beta ce_weight; the authors' code swaps them.

    Source: arXiv:2305.13948, Eq. 10.
    """
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    wmse = weighted_mse(nat_BK, adv_BK, _rows_like(nat_BK, prior_BK, "prior").detach())
    return wmse_weight * wmse + ce_weight * _soft_cross_entropy(nat_BK, adv_BK, temperature=temperature)


def gkl(
    logits_nat_BK: Tensor,
    logits_adv_BK: Tensor,
    prior_BK: Tensor,
    *,
    gamma: float,
    wmse_weight: float,
    ce_weight: float,
    temperature: float = 1.0,
) -> Tensor:
    """The generalised KL: IKL with the prior smoothed by a power and the wMSE normalised over the batch.

        GKL = wmse_weight * sum_b wMSE_b(nat, adv; c) / sum_b (sum_j c_bj)**2 - ce_weight * sum_j S(p_j) * log q_j
        c   = prior ** gamma,      gamma in [0, 1]: 1 gives IKL, 0 weighs all classes alike

    The normaliser belongs to the batch: classes with a flat prior count for more. The second term is a mean over
    the batch; `temperature` divides its logits only, and there is no factor temperature**2.
    The paper's alpha is wmse_weight, its beta ce_weight; the authors' code swaps them.

    Source: arXiv:2503.08038.
    """
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    weight_BK = gkl_weight(_rows_like(nat_BK, prior_BK, "prior"), gamma=gamma)
    wmse = weighted_mse(nat_BK, adv_BK, weight_BK) / mean_square_sum(weight_BK)
    return wmse_weight * wmse + ce_weight * _soft_cross_entropy(nat_BK, adv_BK, temperature=temperature)


def gkl_wmse(
    logits_nat_BK: Tensor, logits_adv_BK: Tensor, prior_BK: Tensor, *, gamma: float, normaliser: Tensor
) -> Tensor:
    """The first term of gkl() with unit weight, for a part of a batch: `normaliser` is the whole batch's."""
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    weight_BK = _rows_like(nat_BK, prior_BK, "prior").detach() ** gamma
    return weighted_mse(nat_BK, adv_BK, weight_BK) / normaliser.to(weight_BK.dtype)


def gkl_normaliser(prior_BK: Tensor, *, gamma: float) -> Tensor:
    """What gkl() divides the mean wMSE of a batch by: the mean over its images of (sum_j prior_j ** gamma)**2."""
    return mean_square_sum(gkl_weight(prior_BK, gamma=gamma))


def gkl_weight(prior_BK: Tensor, *, gamma: float) -> Tensor:
    """The class weights of gkl(): prior ** gamma, (B, K), without a gradient."""
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or larger, found {gamma}; 1 leaves the prior as it is, 0 flattens it")
    return prior_BK.detach() ** gamma


def mean_square_sum(weight_BK: Tensor) -> Tensor:
    """mean_b (sum_j w_bj)**2: what gkl() divides the mean wMSE of a batch by."""
    return weight_BK.sum(1).square().mean()


def boosted_cross_entropy(logits_adv_BK: Tensor, y_B: Tensor) -> Tensor:
    """The cross-entropy plus a margin term on the largest wrong probability.

        BCE = -log q_y - log(1.0001 - max_{j != y} q_j),      q = softmax(adv)

    Source: MART, Wang et al., ICLR 2020, Eq. 6, with the constant of the authors' code.
    """
    adv_BK = _at_least_float32(logits_adv_BK)
    wrong_BK = adv_BK.softmax(1).scatter(1, y_B[:, None], -1.0)
    return cross_entropy(adv_BK, y_B) - (1.0001 - wrong_BK.amax(1)).log().mean()


def misclassification_kl(logits_nat_BK: Tensor, logits_adv_BK: Tensor, y_B: Tensor) -> Tensor:
    """KL(nat || adv) of each image weighted by how wrong its clean prediction is, >= 0.

        mean_b KL_b * (1.0000001 - p_y),      p = softmax(nat); the gradient flows through the weight too

    Source: MART, Wang et al., ICLR 2020, Eq. 11, with the constant of the authors' code.
    """
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    log_p_BK, log_q_BK = nat_BK.log_softmax(1), adv_BK.log_softmax(1)
    kl_B = (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1)
    p_y_B = log_p_BK.gather(1, y_B[:, None])[:, 0].exp()
    return (kl_B * (1.0000001 - p_y_B)).mean()


def boundary(logits_adv_BK: Tensor, logits_teacher_BK: Tensor) -> Tensor:
    """The mean squared difference of two networks' logits, over images and classes; its gradient flows to both.

    Source: LBGAT, Cui et al., arXiv:2011.11164, Eq. 2, with the mean of the authors' code.
    """
    adv_BK, teacher_BK = _pair(logits_adv_BK, logits_teacher_BK)
    return mse_loss(adv_BK, teacher_BK)


def jensen_shannon(logits_of_views: Sequence[Tensor]) -> Tensor:
    """The Jensen-Shannon divergence of the predictions for several views of the same images, >= 0.

        JS = mean_v sum_j p_vj * (log p_vj - log m_j),      p_v = softmax(logits_v), m = mean_v p_v, at least 1e-7

    Each view's logits are (B, K); the gradient flows to all of them. ValueError unless they are of one shape.

    Source: DAJAT, Addepalli et al., arXiv:2210.15318, after AugMix, arXiv:1912.02781.
    """
    first, *others = logits_of_views
    logits_VBK = torch.stack([_at_least_float32(first), *(_pair(other, first)[0] for other in others)])
    log_p_VBK = logits_VBK.log_softmax(2)
    p_VBK = log_p_VBK.exp()
    log_mixture_BK = p_VBK.mean(0).clamp(1e-7, 1).log()
    return (p_VBK * (log_p_VBK - log_mixture_BK)).sum(2).mean()


def margin(logits_BK: Tensor, y_B: Tensor) -> Tensor:
    """The largest wrong logit minus the label's, mean over the batch: what PGD maximises to judge a model.

    Source: the loss of Carlini and Wagner, arXiv:1608.04644, without its confidence.
    """
    wrong_BK = logits_BK.scatter(1, y_B[:, None], -torch.inf)
    return (wrong_BK.amax(1) - logits_BK.gather(1, y_B[:, None])[:, 0]).mean()


def soft_cross_entropy(logits_nat_BK: Tensor, logits_adv_BK: Tensor) -> Tensor:
    """-sum_j S(p_j) * log q_j, S = stop-gradient: the second term of dkl, ikl and gkl."""
    return _soft_cross_entropy(*_pair(logits_nat_BK, logits_adv_BK), temperature=1.0)


def _soft_cross_entropy(nat_BK: Tensor, adv_BK: Tensor, *, temperature: float) -> Tensor:
    """-sum_j S(p_j) * log q_j of the logits divided by `temperature`; it moves only the adversarial ones."""
    p_BK = (nat_BK.detach() / temperature).softmax(1)
    return cross_entropy(adv_BK / temperature, p_BK)


def _pair(logits_a_BK: Tensor, logits_b_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits in the finer of their types, at least float32; ValueError unless they are (B, K) alike."""
    if logits_a_BK.ndim != 2 or logits_a_BK.shape != logits_b_BK.shape:
        raise ValueError(
            "both logits must be of one shape (B, K), "
            f"found {tuple(logits_a_BK.shape)} and {tuple(logits_b_BK.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(logits_a_BK.dtype, logits_b_BK.dtype), torch.float32)
    return logits_a_BK.to(dtype), logits_b_BK.to(dtype)


def _at_least_float32(logits_BK: Tensor) -> Tensor:
    return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))


def _rows_like(logits_BK: Tensor, rows_BK: Tensor, name: str) -> Tensor:
    if rows_BK.shape != logits_BK.shape:
        raise ValueError(
            f"{name} must have one row per image, shape {tuple(logits_BK.shape)} like the logits, "
            f"found {tuple(rows_BK.shape)}; ClassPrior.rows_for(y) looks the rows up"
        )
    return rows_BK.to(logits_BK.dtype)
