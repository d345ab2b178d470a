"""The class prior that weighs the wMSE of IKL and GKL: what the model says, on average, to images of each class.

Shapes: B batch, K classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from dkl.world import ALONE, World


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
    def update(self, logits_nat_BK: Tensor, y_B: Tensor, world: World = ALONE) -> None:
        """Count a training batch towards the next rows; `rows` stay as they are until the epoch ends.

        Every process of `world` calls it with its own images, and counts those of all.
        """
        probs_BK = (logits_nat_BK.double() / self.temperature).softmax(1)
        # A product, as index_add_ adds in no fixed order on CUDA.
        member_BK = one_hot(y_B, len(self.rows)).double()
        sums_KK, counts_K = member_BK.T @ probs_BK, member_BK.sum(0)
        world.sum_(sums_KK, counts_K)
        self._sums += sums_KK
        self._counts += counts_K

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
