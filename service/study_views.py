"""What is told of a study: the table, its rows, their jobs. The same for pages, programs and the command line."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

State = Literal["missing", "queued", "training", "trained", "judging", "succeeded", "failed", "canceled"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class PublishedNumbers(_View):
    """Fractions; the robust accuracy is under AutoAttack standard."""

    clean_accuracy: float
    robust_accuracy: float
    source: str
    url: str


class StudyJob(_View):
    id: str
    status: str
    progress: dict[str, JsonValue] | None
    seconds: float | None
    """That it took, where it has succeeded."""


class StudyRow(_View):
    """A method: what is published, and what was measured at the study's budget. Accuracies are fractions."""

    method: str
    recipe: str
    """Its name in the catalogue."""
    about: str
    """What is known of that recipe, and what is not."""
    note: str
    in_table: bool
    """Whether the paper's table prints it."""
    overrides: dict[str, JsonValue]
    """What the budget changes of the recipe."""
    judge: str
    judge_overrides: dict[str, JsonValue]
    """The evaluation of its model, and what the budget changes of that."""
    published: PublishedNumbers | None
    state: State
    """missing: nobody has submitted it. trained: its model waits for an evaluation that nobody has submitted."""
    training: StudyJob | None
    evaluation: StudyJob | None
    architecture: str
    images: int | None = None
    """Test images behind the robust accuracy."""
    clean_accuracy: float | None = None
    clean_interval: tuple[float, float] | None = None
    robust_accuracy: float | None = None
    robust_interval: tuple[float, float] | None = None
    """95 % Wilson score intervals."""
    protocol: str | None = None
    """By which attacks, and how."""
    clean_difference: float | None = None
    robust_difference: float | None = None
    """Measured less published; absent where the two are of different data sets."""
    published_lead: float | None = None
    measured_lead: float | None = None
    """Robust accuracy less that of the study's reference row, as published and as measured."""
    measured_lead_interval: tuple[float, float] | None = None
    """95 %, Newcombe's score interval for two models on the same images; absent for the reference row itself, and
    where it is not kept which images stood."""


class MissingRow(_View):
    method: str
    recipe: str
    published: PublishedNumbers | None
    reason: str


class StudyView(_View):
    """A table of the IKL-AT paper at one budget."""

    name: str
    """TABLE-BUDGET, as in addresses."""
    title: str
    table: int
    table_title: str
    budget: str
    about: str
    """What is trained and judged at this budget, in sentences."""
    can_say: str
    cannot_say: str
    dataset: str
    """What is trained and judged on."""
    published_dataset: str
    """What the published numbers are of."""
    reference: str
    """The method that leads are over."""
    rows: list[StudyRow]
    left_out: list[MissingRow]
    """Rows of the table that this budget has no way to train."""
    finished: int
    """Rows that are trained and judged."""
    seconds: float
    """That their jobs took, all together."""


class StudySummary(_View):
    name: str
    title: str
    table_title: str
    budget: str
    about: str
    rows: int
    finished: int
