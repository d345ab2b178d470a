"""The mathematics of DKL: KL and its decoupled forms, and the class prior they are weighted with.

Shapes: B batch, K classes. `logits_nat` are the logits of the clean image, `logits_adv` those of the adversarial
one. Every loss is a scalar in nats, a mean over the batch unless it says otherwise, computed in float32 (float64
where the logits are), and finite for logits up to +-1e4 (in float16: for any that are finite themselves).

The paper's alpha is `wmse_weight` and its beta is `ce_weight`; the authors' code has the two the other way round.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def kl(logits_nat_BK: Tensor, logits_adv_BK: Tensor) -> Tensor:
    """KL(softmax(nat) || softmax(adv)), >= 0; its gradient flows to both.

        KL = sum_j p_j * (log p_j - log q_j),      p = softmax(nat), q = softmax(adv)

    Source: the robust term of TRADES, arXiv:1901.08573.
    """
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    log_p_BK, log_q_BK = nat_BK.log_softmax(1), adv_BK.log_softmax(1)
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(1).mean()


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
    if gamma < 0:
        raise ValueError(f"gamma must be 0 or larger, found {gamma}; 1 leaves the prior as it is, 0 flattens it")
    nat_BK, adv_BK = _pair(logits_nat_BK, logits_adv_BK)
    weight_BK = _rows_like(nat_BK, prior_BK, "prior").detach() ** gamma
    mean_squared_total = weight_BK.sum(1).square().mean()  # of B images, as weighted_mse is a mean over them
    wmse = weighted_mse(nat_BK, adv_BK, weight_BK) / mean_squared_total
    return wmse_weight * wmse + ce_weight * _soft_cross_entropy(nat_BK, adv_BK, temperature=temperature)


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


def _rows_like(logits_BK: Tensor, rows_BK: Tensor, name: str) -> Tensor:
    if rows_BK.shape != logits_BK.shape:
        raise ValueError(
            f"{name} must have one row per image, shape {tuple(logits_BK.shape)} like the logits, "
            f"found {tuple(rows_BK.shape)}; ClassPrior.rows_for(y) looks the rows up"
        )
    return rows_BK.to(logits_BK.dtype)


class ClassPrior:
    """The class prior (K, K): row y is the mean softened prediction for images of class y in the last epoch.

        row_y = mean over the epoch's images of class y of softmax(logits_nat / temperature)

    Uniform before the first epoch ends. `momentum` m mixes the old rows in: m * new + (1 - m) * old.
    A class that an epoch does not show keeps its row. Sums are in float64: an epoch of a class is many images.

    Source: arXiv:2305.13948, "global information"; the paper's tau is `temperature`.
    """

    def __init__(
        self, classes: int, *, temperature: float, momentum: float = 1.0, device: str | torch.device = "cpu"
    ) -> None:
        self.temperature = temperature
        self.momentum = momentum
        self.rows = torch.full((classes, classes), 1 / classes, dtype=torch.float64, device=device)
        self._sums = torch.zeros_like(self.rows)
        self._counts = torch.zeros(classes, dtype=torch.float64, device=device)

    def rows_for(self, y_B: Tensor) -> Tensor:
        """The rows (B, K), float64, of the labels `y_B`."""
        return self.rows[y_B]

    @torch.no_grad()
    def update(self, logits_nat_BK: Tensor, y_B: Tensor) -> None:
        """Count a training batch towards the next rows; `rows` stay as they are until the epoch ends."""
        probs_BK = (logits_nat_BK.double() / self.temperature).softmax(1)
        # A product, as index_add_ adds in no fixed order on CUDA.
        member_BK = one_hot(y_B, len(self.rows)).double()
        self._sums += member_BK.T @ probs_BK
        self._counts += member_BK.sum(0)

    def end_epoch(self) -> None:
        """Make the epoch's means the rows, and count from zero again."""
        fresh_KK = self._sums / self._counts.clamp_min(1)[:, None]
        mixed_KK = self.momentum * fresh_KK + (1 - self.momentum) * self.rows
        self.rows = torch.where(self._counts[:, None] > 0, mixed_KK, self.rows)
        self._sums = torch.zeros_like(self._sums)
        self._counts = torch.zeros_like(self._counts)

    def state_dict(self) -> dict[str, Tensor]:
        """Rows and the epoch's sums so far: a prior restored in mid-epoch goes on as if never stopped."""
        return {"rows": self.rows, "sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; ValueError where it is of another number of classes."""
        if state["rows"].shape != self.rows.shape:
            raise ValueError(
                f"the stored class prior is {tuple(state['rows'].shape)}, this one {tuple(self.rows.shape)}; "
                "the state belongs to a data set with another number of classes"
            )
        self.rows = state["rows"].to(self.rows)
        self._sums = state["sums"].to(self._sums)
        self._counts = state["counts"].to(self._counts)
