"""Networks that installed packages bring. Shapes: B batch, C channels, H, W pixels, K classes."""

from typing import Protocol

from torch import nn

from dkl import plugins
from dkl.architectures import PluginModel


class Builder(Protocol):
    """What a class behind an entry point `dklbench.models` makes of the recipe's arguments."""

    def build(self, *, channels: int, classes: int) -> nn.Module:
        """x_BCHW in [0, 1] -> logits_BK, with weights from torch's global generator.

        Called on the meta device, too, where there are shapes and no numbers. ValueError, with a sentence for the
        user, for what it cannot build.
        """


def plugin_network(asked: PluginModel, *, channels: int, classes: int) -> nn.Module:
    """The network of the plugin that `asked` names. PluginError where it is missing or does not keep its word."""
    builder = plugins.configured("model", asked.name, asked.arguments)
    if not callable(getattr(builder, "build", None)):
        raise plugins.PluginError(
            f"the model {asked.name!r} of {plugins.find('model', asked.name)} has no method build; see "
            "docs/plugins.md"
        )
    with plugins.telling("model", asked.name, "cannot be built"):
        network = builder.build(channels=channels, classes=classes)
    if not isinstance(network, nn.Module):
        raise plugins.PluginError(
            f"the model {asked.name!r} of {plugins.find('model', asked.name)} builds a {type(network).__name__}; "
            "let build return an nn.Module"
        )
    return network.train()
