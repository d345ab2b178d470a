"""A small network for images of any size: every patch goes through the same layers, the mean is classified."""

from pydantic import BaseModel, PositiveInt
from torch import Tensor, nn


class PatchMLP(BaseModel):
    """The arguments that a recipe may give, with their defaults and limits."""

    patch: PositiveInt = 2
    width: PositiveInt = 64

    def build(self, *, channels: int, classes: int) -> nn.Module:
        return _Network(channels, classes, self.patch, self.width)


class _Network(nn.Module):
    def __init__(self, channels: int, classes: int, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.hidden = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.last(self.hidden(x))
        return self.head(x.mean(dim=(2, 3)))
