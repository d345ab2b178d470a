"""Objectives that installed packages bring: what is minimised, and what the inner maximisation climbs.

Shapes: B batch, K classes. `nat` are the logits of clean images, `adv` those of adversarial ones.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from dkl import plugins
from dkl.objectives import PluginObjective


class Loss(Protocol):
    """What a class behind an entry point `dklbench.objectives` makes of the recipe's arguments.

    It may have a method `attacked` of the same form beside it: what the inner maximisation climbs where the recipe
    says attack.loss="objective"; without one, that climbs the loss. Nothing may be kept between two calls: a run
    that is resumed would not be the same.
    """

    def loss(self, logits_nat: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor | Mapping[str, Tensor]:
        """From logits_nat and logits_adv, float32 (B, K), and labels y, int64 (B,), to a scalar, the mean over the
        images; or to several, whose sum is minimised, by the names that events and charts give them."""


def plugin_terms(asked: PluginObjective, nat_BK: Tensor, adv_BK: Tensor, y_B: Tensor) -> dict[str, Tensor]:
    """The terms of the plugin's loss, each a scalar. PluginError where it is missing or does not keep its word."""
    loss = _method(asked, "loss")
    with plugins.telling("objective", asked.name, "fails"):
        found = loss(nat_BK, adv_BK, y_B)
    terms = dict(found) if isinstance(found, Mapping) else {asked.name: found}
    if not terms:
        raise plugins.PluginError(f"the objective {asked.name!r} returns no term; let it return at least one")
    for name, term in terms.items():
        _require_scalar(asked, term, "" if term is found else f" as {name!r}")
    return terms


def plugin_attacked(asked: PluginObjective, nat_BK: Tensor, adv_BK: Tensor, y_B: Tensor) -> Tensor:
    """What the inner maximisation climbs: a mean over the images. Errors as `plugin_terms`."""
    if not hasattr(_configured(asked), "attacked"):
        first, *others = plugin_terms(asked, nat_BK, adv_BK, y_B).values()
        return sum(others, start=first)
    attacked = _method(asked, "attacked")
    with plugins.telling("objective", asked.name, "fails"):
        found = attacked(nat_BK, adv_BK, y_B)
    _require_scalar(asked, found, " from attacked")
    mean: Tensor = found
    return mean


def _configured(asked: PluginObjective) -> Any:
    return plugins.configured("objective", asked.name, asked.arguments)


def _method(asked: PluginObjective, name: str) -> Any:
    method = getattr(_configured(asked), name, None)
    if not callable(method):
        raise plugins.PluginError(
            f"the objective {asked.name!r} of {plugins.find('objective', asked.name)} has no method {name}; see "
            "docs/plugins.md"
        )
    return method


def _require_scalar(asked: PluginObjective, term: object, which: str) -> None:
    if isinstance(term, Tensor) and term.ndim == 0 and term.is_floating_point():
        return
    found = f"a {type(term).__name__}"
    if isinstance(term, Tensor):
        found = f"a tensor {tuple(term.shape)} of {term.dtype}"
    raise plugins.PluginError(
        f"the objective {asked.name!r} returns {found}{which}; let it return a scalar, the mean over the images"
    )
