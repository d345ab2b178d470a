"""The page of one entry of a leaderboard, measured here or published elsewhere."""

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import Engine

from dkl.evidence import EvidenceError
from service import jobs, leaderboard, verifications
from service.access import Visitor, needs
from service.artifacts import StoreError
from service.exhibits import Exhibits
from service.rows import Row
from service.state import State, state_of
from service.stored import NoFileError
from service.tables import Job
from service.web.charts import svg_file
from service.web.confusion import confusion_of
from service.web.entry import compare_url, downloads_of, files_of, in_print, lineage_of, place_of, same_recipe
from service.web.gallery import Gallery, gallery_of
from service.web.pictures import exhibits_of
from service.web.reproduction import commands_of
from service.web.specification import attack_tables, corruptions_of, protocol_of
from service.web.templating import templates
from service.web.verdict import class_names, verdict_of

router = APIRouter(include_in_schema=False)

_Class = Annotated[int, Field(ge=0, lt=2**31)]
_Attack = Annotated[str, Field(max_length=100)]
_LINK = re.compile(r"https?://", re.ASCII)


def _none_if_empty(value: object) -> object:
    return None if value == "" else value


class EntryQuestion(BaseModel):
    """What of the images a reader wants to see, as query parameters; an empty one is as good as none."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    label: Annotated[_Class | None, BeforeValidator(_none_if_empty), Field(alias="class")] = None
    """Only images of this class in the gallery."""
    attack: Annotated[_Attack | None, BeforeValidator(_none_if_empty)] = None
    """Only images that it broke; or "stands", or "wrong" for those that needed no attack."""
    page: Annotated[int, Field(ge=1, le=10**9)] = 1
    """Of the gallery."""
    confusion: Literal["attacked", "clean"] = "attacked"

    def asked(self, **changes: object) -> str:
        """The query of an address at which this is shown with `changes`."""
        said = self.model_copy(update=changes).model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
        return urlencode(said)


@router.get("/entries/{entry}")
def entry_page(
    entry: str, request: Request, caller: Visitor, question: Annotated[EntryQuestion, Query()]
) -> Response:
    state = state_of(request)
    row = leaderboard.entry(state.db, entry)
    reads = caller.may("read")
    job = jobs.get(state.db, row.job_id) if row.job_id else None
    context = {
        "row": row,
        "link": row.url if row.url and _LINK.match(row.url) else None,
        "reads": reads,
        "question": question,
        **_beside(state.db, row),
        **(_measured(state, row, job, question, request) if job else {}),
    }
    files = context.get("files") or {}
    context["downloads"] = downloads_of(row, job, files, reads=reads)
    return templates.TemplateResponse(request, "entry.html", context)


@router.get("/entries/{entry}/radii.svg", dependencies=[needs("leaderboard")])
def radii_file(entry: str, request: Request) -> Response:
    db = state_of(request).db
    row = leaderboard.entry(db, entry)
    job = jobs.get(db, row.job_id) if row.job_id else None
    chart = verdict_of(job, ()).chart if job and job.kind == "evaluate" else None
    if chart is None:
        raise NoFileError(f"entry {entry} was not judged at several radii, so there is no curve over them")
    return svg_file(chart, f"{entry}-radii.svg")


# --- what it shows ----------------------------------------------------------------------------------------


def _beside(db: Engine, row: Row) -> dict[str, Any]:
    """Other rows that say something about this one."""
    place = place_of(db, row)
    published = leaderboard.entry(db, row.published_entry) if row.published_entry else None
    here = same_recipe(db, row) if row.source == "published" else []
    others = {"the leader": place.leader, "the published row": published} | {other.name: other for other in here}
    compared = {name: other.entry for name, other in others.items() if other and other.entry != row.entry}
    return {
        "place": place,
        "published": published,
        "here": here,
        "in_print": in_print(db, row),
        "comparisons": [(name, compare_url(row.entry, other)) for name, other in compared.items()],
    }


def _measured(state: State, row: Row, job: Job, question: EntryQuestion, request: Request) -> dict[str, Any]:
    training = jobs.get(state.db, job.parent_id) if job.parent_id else None
    result = job.result or {}
    context = {
        "job": job,
        "training": training,
        "result": result,
        "lineage": lineage_of(job, training),
        "commands": commands_of(job, training, str(request.base_url).rstrip("/")),
        "files": files_of(state.artifacts, job),
    }
    if job.kind == "corruptions":
        return context | {"specification": corruptions_of(job.recipe, result)}
    return context | {
        "specification": protocol_of(job.recipe, result),
        "attacks": attack_tables(job.recipe),
        "verdict": verdict_of(job, ()),
        "verification": verifications.latest(state.db, job.id),
        **_exhibited(state, row, job, question),
    }


def _exhibited(state: State, row: Row, job: Job, question: EntryQuestion) -> dict[str, Any]:
    """Confusion and gallery; where there are none, `unseen` says why, in a sentence."""
    names = class_names(job.dataset, len((job.result or {})["class_robust_accuracy"]))
    try:
        exhibits = exhibits_of(state.artifacts, job)
        if exhibits is None:
            return {"unseen": "The evidence of this evaluation is not stored here, so its images cannot be shown."}
        if exhibits.predicted is None:
            return {
                "unseen": "The evidence is of an older form, which keeps neither predictions nor clean images."
            }
        attacked = question.confusion == "attacked"
        return {
            "confusion": confusion_of(exhibits, names, attacked=attacked),
            "gallery": _gallery(exhibits, row, names, question),
        }
    except EvidenceError as error:
        return {"unseen": f"The evidence cannot be shown: {error}."}
    except StoreError:
        return {"unseen": "The store of files does not answer, so the images cannot be shown now."}


def _gallery(exhibits: Exhibits, row: Row, names: list[str], question: EntryQuestion) -> Gallery | None:
    return gallery_of(exhibits, row.entry, names, label=question.label, attack=question.attack, page=question.page)
