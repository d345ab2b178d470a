"""Images of stored evidence as PNG: clean, adversarial, and what was changed, made visible."""

from dataclasses import dataclass
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Request, Response
from numpy.typing import NDArray

from dkl.documents import Norm, ThreatModel, show_pixels
from dkl.evidence import EvidenceError
from service import jobs, leaderboard
from service.access import needs
from service.artifacts import Store, StoreError
from service.exhibits import Exhibits, open_exhibits
from service.state import state_of
from service.stored import NoFileError
from service.tables import Job

router = APIRouter(include_in_schema=False)

Which = Literal["clean", "adversarial", "difference"]
_FOREVER = "private, max-age=31536000, immutable"


def picture_url(entry: str, sha256: str, row: int, which: Which) -> str:
    """Where a browser finds one image of the evidence with this sha256; the address changes with the content."""
    return f"/entries/{entry}/pictures/{row}/{which}.png?v={sha256[:12]}"


@router.get("/entries/{entry}/pictures/{row}/{which}.png", dependencies=[needs("leaderboard")])
def picture(
    entry: str, row: Annotated[int, Path(ge=0, lt=2**31)], which: Which, request: Request, v: str = ""
) -> Response:
    state = state_of(request)
    job_id = leaderboard.entry(state.db, entry).job_id
    if job_id is None:
        raise NoFileError(f"entry {entry} was not measured here, so there are no images of it")
    try:
        exhibits = exhibits_of(state.artifacts, jobs.get(state.db, job_id))
        drawn = _drawn(exhibits, row, which) if exhibits else None
    except EvidenceError as error:
        raise NoFileError(f"the images of entry {entry} cannot be shown: {error}") from None
    except StoreError:
        raise HTTPException(503, "the store of files does not answer; try again in a moment") from None
    if exhibits is None or drawn is None:
        raise NoFileError(f"entry {entry} has no stored {which} image in row {row}")
    headers = {"Cache-Control": _FOREVER} if v == exhibits.sha256[:12] else {}
    return Response(png(drawn), media_type="image/png", headers=headers)


def exhibits_of(store: Store, job: Job) -> Exhibits | None:
    """The evidence of an evaluation; None where it left none, or where it is not stored any more.

    EvidenceError where it is damaged, StoreError where the store does not answer.
    """
    sha256 = (job.result or {}).get("evidence_sha256")
    return open_exhibits(store, sha256) if sha256 else None


# --- what was changed -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """From a clean image to the adversarial one, both (C, H, W) in [0, 1]."""

    x: NDArray[np.float64]
    x_adv: NDArray[np.float64]
    threat: ThreatModel

    @property
    def delta(self) -> NDArray[np.float64]:
        return self.x_adv - self.x

    @property
    def distance(self) -> float:
        """||x_adv - x|| in the norm of the threat model, in pixels."""
        size = np.abs(self.delta)
        lengths: dict[Norm, float] = {
            "Linf": float(size.max()),
            "L2": float(np.sqrt((size**2).sum())),
            "L1": float(size.sum()),
        }
        return lengths[self.threat.norm]

    @property
    def factor(self) -> float:
        """By how much the difference is amplified: eps becomes full contrast, or, in norms that do not bound each
        pixel, the largest change of this image."""
        largest = self.threat.eps if self.threat.norm == "Linf" else float(np.abs(self.delta).max())
        return 0.5 / largest if largest else 1.0

    @property
    def shown_distance(self) -> str:
        """The distance as papers write it, with the unit that the radius has: "7.9/255", "0.4987"."""
        in_255ths = show_pixels(self.threat.eps).endswith("/255")
        return f"{255 * self.distance:.3g}/255" if in_255ths else f"{self.distance:.4g}"


def change_of(exhibits: Exhibits, row: int) -> Change | None:
    """None where the clean or the adversarial image is not stored."""
    clean, adversarial = exhibits.clean(row), exhibits.adversarial(row)
    if clean is None or adversarial is None:
        return None
    return Change(_pixels(clean), _pixels(adversarial), exhibits.about.question.threat)


def _drawn(exhibits: Exhibits, row: int, which: Which) -> NDArray[np.float64] | None:
    """The image to show, (C, H, W); what lies outside of [0, 1] is cut off."""
    if which == "difference":
        change = change_of(exhibits, row)
        return None if change is None else 0.5 + change.factor * change.delta
    image: NDArray[Any] | None = exhibits.clean(row) if which == "clean" else exhibits.adversarial(row)
    return None if image is None else _pixels(image)


def _pixels(image: NDArray[Any]) -> NDArray[np.float64]:
    return image.astype(np.float64) / 255 if image.dtype == np.uint8 else image.astype(np.float64)


def png(x: NDArray[np.float64]) -> bytes:
    """(C, H, W) in [0, 1], one channel or three, as a PNG file, pixel by pixel."""
    from PIL import Image

    levels = np.rint(255 * np.nan_to_num(x).clip(0, 1)).astype(np.uint8)
    image = Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))
    file = BytesIO()
    image.save(file, "PNG", compress_level=6)
    return file.getvalue()
