"""From an objective and logits to the terms of its loss, weights included.

Shapes: B batch, K classes. `nat` are the logits of clean images, `adv` those of adversarial ones.
"""

from typing import assert_never

from torch import Tensor
from torch.nn.functional import cross_entropy

from dkl import losses
from dkl.objectives import (
    GKL,
    IKL,
    LASAT,
    LASTRADES,
    MART,
    PGD,
    PGDAT,
    TRADES,
    Natural,
    OfOneNetwork,
    PluginObjective,
)
from dkl.plugin_objective import plugin_attacked, plugin_terms

Terms = dict[str, Tensor]
"""Scalars, means over the batch, by the names that people read; the loss is their sum."""


def sees_clean_images(objective: OfOneNetwork) -> bool:
    """Whether the loss asks for the logits of clean images."""
    return not isinstance(objective, PGDAT | LASAT)


def has_prior(objective: OfOneNetwork) -> bool:
    """Whether the loss is weighted with the class prior."""
    return isinstance(objective, IKL | GKL)


def natural_terms(objective: OfOneNetwork, nat_BK: Tensor | None, y_B: Tensor) -> Terms:
    """The part of the loss that clean images alone decide."""
    match objective:
        case Natural() | TRADES():
            assert nat_BK is not None
            return {"natural": cross_entropy(nat_BK, y_B, label_smoothing=objective.label_smoothing)}
        case IKL() | GKL() | LASTRADES():
            assert nat_BK is not None
            return {"natural": cross_entropy(nat_BK, y_B)}
        case PGDAT() | MART() | LASAT() | PluginObjective():
            return {}
        case _:
            assert_never(objective)


def robust_terms(
    objective: OfOneNetwork,
    nat_BK: Tensor | None,
    adv_BK: Tensor,
    y_B: Tensor,
    prior_BK: Tensor | None,
    normaliser: Tensor | None,
    beta_B: Tensor | None = None,
) -> Terms:
    """The part of the loss that adversarial images take part in.

    `prior_BK` are the rows of the class prior, for objectives that have one; `normaliser` is GKL's, of the whole
    batch where these logits are only a part of it; `beta_B` is LAS-TRADES's, of each image.
    """
    match objective:
        case Natural():
            return {}
        case PGDAT():
            return {"adversarial": cross_entropy(adv_BK, y_B)}
        case TRADES():
            assert nat_BK is not None
            return {"kl": objective.beta * losses.kl(nat_BK, adv_BK)}
        case LASAT():
            return {"adversarial": cross_entropy(adv_BK, y_B, label_smoothing=objective.label_smoothing)}
        case LASTRADES():
            assert nat_BK is not None
            assert beta_B is not None
            return {"kl": (beta_B * losses.kl_of_each(nat_BK, adv_BK)).mean()}
        case MART():
            assert nat_BK is not None
            return {
                "boosted_ce": losses.boosted_cross_entropy(adv_BK, y_B),
                "weighted_kl": objective.beta * losses.misclassification_kl(nat_BK, adv_BK, y_B),
            }
        case IKL():
            assert nat_BK is not None
            assert prior_BK is not None
            return {
                "wmse": objective.wmse_weight * losses.weighted_mse(nat_BK, adv_BK, prior_BK),
                "soft_ce": objective.ce_weight * losses.soft_cross_entropy(nat_BK, adv_BK),
            }
        case GKL():
            assert nat_BK is not None
            assert prior_BK is not None
            assert normaliser is not None
            wmse = losses.gkl_wmse(nat_BK, adv_BK, prior_BK, gamma=objective.gamma, normaliser=normaliser)
            return {
                "wmse": objective.wmse_weight * wmse,
                "soft_ce": objective.ce_weight * losses.soft_cross_entropy(nat_BK, adv_BK),
            }
        case PluginObjective():
            assert nat_BK is not None
            return plugin_terms(objective, nat_BK, adv_BK, y_B)
        case _:
            assert_never(objective)


def normaliser_of(objective: OfOneNetwork, prior_BK: Tensor | None) -> Tensor | None:
    """What GKL divides by, of the rows of a whole batch; None for other objectives."""
    if not isinstance(objective, GKL):
        return None
    assert prior_BK is not None
    return losses.gkl_normaliser(prior_BK, gamma=objective.gamma)


def attacked_loss(
    attack: PGD,
    nat_BK: Tensor | None,
    adv_BK: Tensor,
    y_B: Tensor,
    prior_BK: Tensor | None,
    objective: OfOneNetwork | None = None,
) -> Tensor:
    """What the inner maximisation climbs, summed over the images. `objective` is asked where the attack says so.

    A sum, as the gradient of an image must not shrink with the size of its batch: below float32's smallest numbers
    its sign would be lost.
    """
    match attack.loss:
        case "ce":
            loss = cross_entropy(adv_BK, y_B)
        case "kl":  # against the clean prediction: the soft cross-entropy differs by a constant
            assert nat_BK is not None
            loss = losses.soft_cross_entropy(nat_BK, adv_BK)
        case "ikl":
            assert nat_BK is not None
            assert prior_BK is not None
            loss = losses.ikl(nat_BK, adv_BK, prior_BK, wmse_weight=1.0, ce_weight=1.0)
        case "objective":
            assert nat_BK is not None
            assert isinstance(objective, PluginObjective)
            loss = plugin_attacked(objective, nat_BK, adv_BK, y_B)
        case _:
            assert_never(attack.loss)
    return loss * len(y_B)
