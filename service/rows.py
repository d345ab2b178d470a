"""What a leaderboard is made of: boards, and one row type for measured and for published results."""

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from dkl.datasets import show_name
from dkl.documents import show_pixels
from dkl.protocols import Policy

BoardThreat = Literal["Linf", "L2", "L1", "corruptions"]
"""RobustBench's threat models: a norm, or common corruptions."""


class Board(BaseModel):
    """What one ranking is about; results of different boards are never ranked together."""

    model_config = ConfigDict(frozen=True)

    dataset: str
    threat_model: BoardThreat
    eps: float | None
    """Radius in pixels; absent for common corruptions."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def title(self) -> str:
        return f"{show_name(self.dataset)}, {self.threat}"

    @property
    def threat(self) -> str:
        """ "Linf, eps 8/255" or "common corruptions"."""
        return "common corruptions" if self.eps is None else f"{self.threat_model}, eps {show_pixels(self.eps)}"


class Row(BaseModel):
    """One model on one board. Accuracies are fractions in [0, 1].

    On a board of common corruptions `robust_accuracy` is the mean accuracy over corruptions and severities.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    entry: str
    """Names the row in addresses, /entries/ENTRY: the evaluation's job id, or a published row's own name."""
    rank: int = 0
    """By best known robust accuracy; equal accuracies share a rank."""
    name: str
    """Short: the recipe, the zoo's or the checkpoint's name."""
    source: Literal["measured", "published"]
    """measured: by this service, from stored per-image flags; published: as others report it."""
    board: Board = Field(exclude=True)
    eps: float | None
    """Radius at which it was judged; old RobustBench rows of the board at 8/255 have 0.031."""
    architecture: str
    clean_accuracy: float
    robust_accuracy: float
    """Under AutoAttack, or whatever `suite` says."""
    best_known_accuracy: float
    """The lowest robust accuracy that anybody has shown; the rank follows it."""
    clean_interval: tuple[float, float] | None = None
    robust_interval: tuple[float, float] | None = None
    """95 % Wilson score interval, where the number of images is known."""
    images: int | None
    """Test images behind the numbers; absent where the source does not say."""
    suite: str
    """What was done: "AutoAttack standard", "AutoAttack standard, audited", ..., "custom". Only the first one is
    RobustBench's protocol."""
    unreliable: bool | None = None
    """Whether AutoAttack's own checks found the evaluation potentially unreliable; absent where not known."""
    extra_data: bool | None = None
    """Whether more than the data set's training images was learnt from, generated images not counted (as on
    RobustBench); absent where not known."""
    title: str | None = None
    """Of the paper."""
    authors: str | None = None
    venue: str | None = None
    year: int | None = None
    url: str | None = None
    """Of the paper or of the source."""
    citation: str | None = None
    """Where a published number was read."""
    note: str | None = None
    """RobustBench's footnote, or ours, as plain text."""
    reported_accuracy: float | None = None
    """What the authors claim, which need not be AutoAttack."""
    forward_passes: int | None = None
    """Per prediction."""
    recipe: str | None = None
    """Of a published row: the named recipe that trains it."""
    published_accuracy: float | None = None
    """Of a measured row: what is published for the same recipe, unchanged but for seed and speed, or for the same
    checkpoint of RobustBench's zoo, judged within the same threat model."""
    published_entry: str | None = None
    """The published row that says so."""
    policy: Policy | None = None
    """How the suite was run; for measured rows."""
    engine: str | None = None
    """Who ran the attacks, with version; for measured rows."""
    job_id: str | None = None
    """The evaluation; for measured rows."""
    model_job_id: str | None = None
    """The training or import whose model was judged, if one was."""
    finished_at: float | None = None
    tied: Literal["paired", "intervals"] | None = None
    """Set where the row cannot be told from the board's leader: by the exact McNemar test on the same images
    (Holm-corrected over the board, 5 %), or, without shared flags, because the 95 % intervals overlap."""


Boards = Mapping[Board, Sequence[Row]]
"""Rows without what depends on all others: rank, tied."""
