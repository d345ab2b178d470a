"""What every document that may be asked is made of: numbers with limits, pixels, the threat model. No torch here.

Pixels live in [0, 1]; every pixel quantity also reads a fraction such as "8/255".
"""

import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from dkl.datasets import check_name

_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def _read_fraction(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _FRACTION.fullmatch(value)
    if match is None or float(match[2]) == 0:
        raise ValueError(f"write a number or a fraction such as '8/255', not {value!r}")
    return float(match[1]) / float(match[2])


Count = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]
Pixels = Annotated[
    float,
    BeforeValidator(_read_fraction),
    Field(gt=0, strict=True),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*/\s*\d+(\.\d+)?\s*$"},
            ]
        }
    ),
]
DatasetName = Annotated[str, AfterValidator(check_name)]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Norm = Literal["Linf", "L2", "L1"]
PluginName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Of an entry point that a package on the workers offers."""
PluginArguments = dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")], JsonValue]
"""Passed to it by name; it says itself what it takes."""


class Document(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


class Normalisation(Document):
    """What a model expects to be done to pixels in [0, 1] before it sees them: (x - mean) / std, per channel."""

    mean: tuple[Fraction, ...]
    std: tuple[Positive, ...]

    @model_validator(mode="before")
    @classmethod
    def _in_units_of_pixels(cls, value: object) -> object:
        mean = value.get("mean") if isinstance(value, dict) else None
        if isinstance(mean, list | tuple) and any(isinstance(m, int | float) and m > 1 for m in mean):
            raise ValueError(f"mean {list(mean)} is not of pixels in [0, 1]; divide mean and std by 255")
        return value

    @model_validator(mode="after")
    def _one_of_each_per_channel(self) -> Self:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"found {len(self.mean)} means and {len(self.std)} stds; give one of each per channel"
            )
        return self


class ThreatModel(Document):
    """What a robust accuracy is about: every perturbation with ||delta||_norm <= eps that stays in [0, 1]."""

    norm: Norm
    eps: Pixels
    """Radius of the ball, in pixels of [0, 1]: 8/255, 0.5, ..."""

    @model_validator(mode="after")
    def _linf_stays_inside_the_pixel_range(self) -> Self:
        if self.norm == "Linf" and self.eps >= 1:
            raise ValueError(
                f"an Linf eps of {self.eps:g} reaches from black to white; pixels are in [0, 1], "
                f"did you mean '{self.eps:g}/255'?"
            )
        return self

    def __str__(self) -> str:
        return f"{self.norm} {show_pixels(self.eps)}"


def show_pixels(value: float) -> str:
    """`value` the way papers write it: small whole numbers of 255ths as "8/255", else a decimal."""
    levels = value * 255
    return f"{round(levels)}/255" if levels < 32.5 and abs(levels - round(levels)) < 1e-6 else f"{value:.4g}"
