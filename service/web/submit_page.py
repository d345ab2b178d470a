"""Submitting jobs in the browser: a recipe to choose, a form to change it, and what it comes to as one types."""

from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from dkl.catalog import RECIPES, parse_overrides
from dkl.documents import Sha256
from dkl.explain import Fault, InvalidRecipeError
from service import files, jobs
from service.access import Submitter
from service.callers import Caller
from service.roster import roster
from service.space import show_bytes
from service.state import state_of
from service.submission import JobRequest, submit
from service.web import catalogue
from service.web.choices import choices
from service.web.draft import Checked, Draft, begin, begin_import, check, read, refusal
from service.web.form_sections import arranged
from service.web.outcome import outcome
from service.web.recipe_form import Posted
from service.web.templating import templates

router = APIRouter(prefix="/submit", include_in_schema=False)
_MOST_FIELDS = 2000
"""Of a form that is posted."""


async def _posted(request: Request) -> Posted:
    try:
        pairs = parse_qsl((await request.body()).decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise HTTPException(400, "this form cannot be read; send it from its page") from None
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


Form = Annotated[Posted, Depends(_posted)]
RecipeName = Annotated[str | None, Query(max_length=200)]
"""Of the catalogue; absent: the import of an upload."""


# --- routes -----------------------------------------------------------------------------------------------


@router.get("")
def submit_page(
    request: Request, caller: Submitter, wanted: Annotated[catalogue.Wanted, Query()], recipe: RecipeName = None
) -> Response:
    """The recipes, or the form of one; what else the address says is changed in it: ?recipe=NAME&epochs=2."""
    state = state_of(request)
    if recipe is None:
        groups = catalogue.groups(state.db, wanted)
        context = {"groups": groups, "wanted": wanted, "datasets": catalogue.DATASETS}
        return templates.TemplateResponse(request, "recipes.html", context)
    draft = begin(recipe, _overrides(request), state.settings.queues)
    return _page(request, caller, draft, check(draft, state.db), untouched=True)


@router.get("/upload")
def upload_page(request: Request, caller: Submitter, upload: Sha256 | None = None) -> Response:
    """Weights of one's own: sending them, and the form of the job that takes them in."""
    state = state_of(request)
    draft = begin_import(upload or "", state.settings.queues)
    return _page(request, caller, draft, check(draft, state.db), untouched=True)


@router.post("/check")
def check_draft(request: Request, form: Form, caller: Submitter, recipe: RecipeName = None) -> Response:
    state = state_of(request)
    draft = read(recipe, form, state.settings.queues)
    return _page(request, caller, draft, check(draft, state.db))


@router.post("")
def submit_draft(request: Request, form: Form, caller: Submitter, recipe: RecipeName = None) -> Response:
    state = state_of(request)
    draft = read(recipe, form, state.settings.queues)
    checked = check(draft, state.db)
    if checked.body is None:
        return _page(request, caller, draft, checked, 422)
    try:
        job = submit(state, JobRequest.model_validate(checked.body), caller=caller)[0]
    except jobs.RefusedError as error:
        return _page(request, caller, draft, Checked([refusal(error)]), 422)
    except (jobs.TooManyError, files.QuotaError) as error:
        status = 429 if isinstance(error, jobs.TooManyError) else 413
        return _page(request, caller, draft, Checked([Fault("", str(error))]), status)
    return RedirectResponse(f"/jobs/{job.id}", 303)


def _overrides(request: Request) -> dict[str, Any]:
    words = [f"{path}={value}" for path, value in request.query_params.multi_items() if path != "recipe"]
    try:
        return parse_overrides(words)
    except (ValueError, RecursionError) as error:
        raise InvalidRecipeError([Fault("", str(error))]) from None


# --- the page ---------------------------------------------------------------------------------------------


def _page(
    request: Request, caller: Caller, draft: Draft, checked: Checked, status: int = 200, *, untouched: bool = False
) -> Response:
    """The form with all that was typed, or, where htmx asks, only what it comes to.

    `untouched`: nobody has typed anything yet, so nothing is marked as wrong.
    """
    state = state_of(request)
    crew = roster(state.db, lease_seconds=state.settings.lease_seconds)
    url = str(request.base_url).rstrip("/")
    found = outcome(draft, checked, state.db, crew, url=url, with_key=caller.key_id is not None)
    context: dict[str, Any] = {
        "entry": RECIPES.get(draft.name or ""),
        "draft": draft,
        "outcome": found,
        "untouched": untouched,
    }
    if "hx-request" in request.headers:
        return templates.TemplateResponse(request, "_outcome.html", context, status)
    wrong: dict[str, list[str]] = {}
    for fault in () if untouched else found.faults:
        wrong.setdefault(fault.name, []).append(fault.message)
    context |= {"wrong": wrong, "choices": choices(state, draft, caller), **arranged(draft, wrong)}
    if draft.name is None:
        context |= {"largest": show_bytes(state.settings.max_upload_bytes), "with_key": caller.key_id is not None}
    name = "submit.html" if draft.name else "upload.html"
    return templates.TemplateResponse(request, name, context, status)
