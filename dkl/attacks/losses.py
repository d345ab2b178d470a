"""What the attacks maximise: functions of the logits, one number per image, the larger the more adversarial.

The difference-of-logits-ratio losses are invariant under shifts and scalings of the logits. They need three
(untargeted) or four classes (targeted); with fewer their denominators shrink, to 1 with two classes, where no
scale-free ratio exists and the plain difference of the two logits is maximised.

Source: Croce and Hein, arXiv:2003.01690, Eqs. 6 and 7. Shapes: B batch, K classes.
"""

from torch import Tensor
from torch.nn.functional import cross_entropy

from dkl.attacks.looks import margin

TINY = 1e-12


def ce(logits_BK: Tensor, y_B: Tensor, aim_B: Tensor) -> Tensor:
    """Cross-entropy of the label."""
    return cross_entropy(logits_BK, y_B, reduction="none")


def dlr(logits_BK: Tensor, y_B: Tensor, aim_B: Tensor) -> Tensor:
    """-(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), where z_(1) >= z_(2) >= ... are the logits in order."""
    if logits_BK.shape[1] < 3:
        return -margin(logits_BK, y_B)
    top_BK = logits_BK.topk(3, dim=1)[0]
    return -margin(logits_BK, y_B) / (top_BK[:, 0] - top_BK[:, 2] + TINY)


def dlr_targeted(logits_BK: Tensor, y_B: Tensor, aim_B: Tensor) -> Tensor:
    """-(z_y - z_aim) / (z_(1) - (z_(3) + z_(4)) / 2); with three classes the denominator is z_(1) - z_(3)."""
    ahead_B = logits_BK.gather(1, y_B[:, None]).squeeze(1) - logits_BK.gather(1, aim_B[:, None]).squeeze(1)
    classes = logits_BK.shape[1]
    if classes < 3:
        return -ahead_B
    top_BK = logits_BK.topk(min(classes, 4), dim=1)[0]
    return -ahead_B / (top_BK[:, 0] - top_BK[:, 2:].mean(dim=1) + TINY)
