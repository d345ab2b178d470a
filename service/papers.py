"""What papers, READMEs and logs print: data/papers.json, one line per number and source."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dkl.documents import Pixels

_FILE = Path(__file__).parent / "data" / "papers.json"


class Source(BaseModel):
    """Where numbers were read, and the paper that it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    citation: str
    short: str
    """For lists of sources."""
    title: str
    authors: str
    venue: str
    year: int
    url: str


class Printed(BaseModel):
    """A line of data/papers.json; accuracies in percent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    dataset: str
    norm: Literal["Linf", "L2"]
    eps: Pixels
    method: str
    architecture: str
    variant: str | None = None
    data: str | None = None
    """What was learnt from beside the training images as they are: "AutoAugment", "50M generated images"."""
    clean: float
    robust: float
    images: int | None = None
    extra_data: bool = False
    note: str | None = None
    misprint: str | None = None
    """Why no model has these numbers."""


class Papers(BaseModel):
    sources: dict[str, Source]
    rows: list[Printed]


@cache
def papers() -> Papers:
    """What comes with the package."""
    return Papers.model_validate_json(_FILE.read_bytes())
