"""RobustBench's model_info: what one of its files says about one model, read and written.

The texts in it are HTML, and numbers are percent, written as strings. Read here, texts are plain, and what was not
filled in is absent.
"""

import html
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dkl.documents import show_pixels
from service.plain_text import plain_text
from service.rows import BoardThreat, Row

ROBUSTBENCH_RADII = {
    ("cifar10", "Linf"): (8 / 255, 0.031),
    ("cifar10", "L2"): (0.5, 128 / 255),
    ("cifar100", "Linf"): (8 / 255, 0.031),
    ("imagenet", "Linf"): (4 / 255,),
}
"""Its boards under attack, each with the radii that it takes for the same."""
ROBUSTBENCH_IMAGES = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""Test images that every model on its boards is judged on."""
_UNFILLED = {"", "null", "none", "n/a", "unknown"}


# --- one file -----------------------------------------------------------------------------------------------


def _html(text: str | None) -> str | None:
    return None if text is None else html.escape(text, quote=False)


def _filled(value: object) -> object:
    """None where a file was not filled in: RobustBench has null, "" and "null"."""
    return None if isinstance(value, str) and value.strip().casefold() in _UNFILLED else value


def _read_text(value: object) -> object:
    return _filled(plain_text(value)) if isinstance(value, str) else value


def _read_eps(value: object) -> object:
    """A number from "8/255", "0.031" or 0.5."""
    value = _filled(value)
    if not isinstance(value, str):
        return value
    above, slash, below = value.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"write a number or a fraction such as '8/255', not {value[:40]!r}") from None


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[!-~]+", value):
        raise ValueError(f"write an address that begins with https://, not {value[:40]!r}")
    return value


_PERCENT = BeforeValidator(_filled, json_schema_input_type=float | str | None)
_TEXT = BeforeValidator(_read_text, json_schema_input_type=str | None)
_Accuracy = Annotated[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None, _PERCENT]
_Error = Annotated[Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None, _PERCENT]
_Line = Annotated[Annotated[str, Field(max_length=300)] | None, _TEXT]
_Paragraph = Annotated[Annotated[str, Field(max_length=2000)] | None, _TEXT]


class ModelInfo(BaseModel):
    """One row of a RobustBench board. Accuracies are in percent; they and eps may be written as strings ("8/255"),
    and what is null, "" or "null" counts as absent. Texts may be HTML and become plain. Other fields are left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())

    dataset: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    """As RobustBench names its folder: cifar10, cifar100, imagenet."""
    threat_model: BoardThreat
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    """The file's name without .json, such as Wang2023Better_WRN-28-10."""
    name: _Line = None
    """Title of the paper."""
    authors: _Paragraph = None
    venue: _Line = None
    link: Annotated[
        Annotated[str, Field(max_length=500), AfterValidator(_web_address)] | None,
        BeforeValidator(_filled, json_schema_input_type=str | None),
    ] = None
    architecture: _Line = None
    eps: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        BeforeValidator(_read_eps, json_schema_input_type=float | str | None),
    ] = None
    """Radius in pixels of [0, 1]. On a board of corruptions that of training, if any."""
    additional_data: bool | None = None
    number_forward_passes: Annotated[int | None, Field(ge=1, le=10_000)] = None
    clean_acc: _Accuracy = None
    autoattack_acc: _Accuracy = None
    external: _Accuracy = None
    """The lowest accuracy that another evaluation than AutoAttack found."""
    unreliable: bool | None = None
    reported: _Accuracy = None
    """What the authors claim."""
    corruptions_acc: _Accuracy = None
    corruptions_mce: _Error = None
    """Error relative to AlexNet's, in percent."""
    corruptions_acc_3d: _Accuracy = None
    corruptions_mce_3d: _Error = None
    footnote: _Paragraph = None

    @model_validator(mode="after")
    def _has_what_its_board_shows(self) -> Self:
        needed = ["clean_acc", "corruptions_acc" if self.threat_model == "corruptions" else "autoattack_acc"]
        needed += [] if self.threat_model == "corruptions" else ["eps"]
        if missing := [field for field in needed if getattr(self, field) is None]:
            raise ValueError(f"{' and '.join(missing)} must be filled in for a board of {self.threat_model}")
        return self

    @property
    def entry(self) -> str:
        """Names the row in addresses. A data set's name has no hyphen, so no two rows have the same."""
        return f"robustbench-{self.dataset}-{self.threat_model}-{self.key}"

    @property
    def path(self) -> str:
        """Of its file: "cifar10/Linf/KEY.json"."""
        return f"{self.dataset}/{self.threat_model}/{self.key}.json"

    def document(self) -> dict[str, Any]:
        """The file's content as RobustBench has it: percent as strings, texts as HTML, without what is absent."""
        eps = None if self.eps is None else show_pixels(self.eps)
        shown = self.model_dump(exclude={"threat_model", "key"}, exclude_none=True)
        texts = {field: _html(shown[field]) for field in _TEXTS if field in shown}
        numbers = {field: f"{shown[field]:.2f}" for field in _NUMBERS if field in shown}
        return shown | texts | numbers | {"eps": eps, "reported": numbers.get("reported")}

    def stored(self) -> dict[str, Any]:
        """The file's content, and where the file is; ModelInfo.model_validate reads it again."""
        return self.document() | {"threat_model": self.threat_model, "key": self.key}


_TEXTS = ("name", "authors", "venue", "architecture", "footnote")
_NUMBERS = (
    *("clean_acc", "autoattack_acc", "external", "reported"),
    *("corruptions_acc", "corruptions_mce", "corruptions_acc_3d", "corruptions_mce_3d"),
)


# --- of a row -----------------------------------------------------------------------------------------------


def of_row(row: Row, address: str) -> ModelInfo:
    """What RobustBench's file about this row would say; `address` is that of the service, "https://..."."""
    board, percent = row.board, _percent
    corrupted = board.threat_model == "corruptions"
    lower = row.best_known_accuracy < row.robust_accuracy
    return ModelInfo(
        dataset=re.sub("[^a-z0-9_]+", "_", board.dataset.lower())[:40],
        threat_model=board.threat_model,
        key=_key(row),
        name=_html(row.title or row.name),
        authors=_html(row.authors),
        venue=_html(row.venue or ("published" if row.source == "published" else "dkl-bench")),
        link=row.url or f"{address}/entries/{row.entry}",
        architecture=_html(row.architecture[:300]),
        eps=row.eps,
        additional_data=row.extra_data,
        number_forward_passes=row.forward_passes or 1,
        clean_acc=percent(row.clean_accuracy),
        autoattack_acc=None if corrupted else percent(row.robust_accuracy),
        external=percent(row.best_known_accuracy) if lower and not corrupted else None,
        unreliable=None if corrupted else row.unreliable,
        reported=percent(row.reported_accuracy),
        corruptions_acc=percent(row.robust_accuracy) if corrupted else None,
        footnote=_html(_footnote(row)[:2000]),
    )


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 4)


def _key(row: Row) -> str:
    """The file's name: RobustBench's own, or one that no other row has."""
    own = f"robustbench-{row.board.dataset}-{row.board.threat_model}-"
    if row.entry.startswith(own):
        return row.entry.removeprefix(own)
    name = re.sub("[^A-Za-z0-9._-]+", "-", row.name).strip("-.")[:50]
    return f"{name}_{row.entry}"[:100] if row.source == "measured" else row.entry[:100]


def _footnote(row: Row) -> str:
    if row.source == "published":
        return " ".join(filter(None, (row.note, f"Read in: {row.citation}." if row.citation else None)))
    measured = f"Measured by dkl-bench on {row.images or 0:,} images; {row.suite}, {row.engine}{_interval(row)}."
    return " ".join(filter(None, (measured, row.note)))


def _interval(row: Row) -> str:
    if row.robust_interval is None:
        return ""
    low, high = row.robust_interval
    return f"; 95 % interval of the robust accuracy {100 * low:.2f} to {100 * high:.2f} %"


def why_left_out(row: Row) -> str | None:
    """Why RobustBench's boards have no place for the row, in a sentence; None where they have."""
    board = row.board
    if board.threat_model == "corruptions":
        return None if board.dataset in ROBUSTBENCH_IMAGES else f"RobustBench has no board for {board.title}"
    radii = ROBUSTBENCH_RADII.get((board.dataset, board.threat_model), ())
    if not any(abs((row.eps or 0) - radius) < 1e-9 for radius in radii):
        return f"RobustBench has no board for {board.title}"
    if not row.suite.startswith("AutoAttack standard"):
        return f"RobustBench's boards are about AutoAttack standard, and this is: {row.suite}"
    return None
