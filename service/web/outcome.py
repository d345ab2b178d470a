"""What a draft comes to, for the panel beside its form: what is wrong, or the request and its earlier runs."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, select
from sqlalchemy.orm import lazyload

from dkl.imports import Import
from dkl.recipes import Recipe, Train, fingerprint
from service.db import reading
from service.outlook import misfit
from service.roster import Shown
from service.submission import JobRequest
from service.tables import Job
from service.web.commands import curl, submit_command, upload_command
from service.web.draft import Checked, Draft
from service.web.form_fields import at_fields, in_use

_SAME = 5
"""Earlier jobs with the same recipe that are shown."""


class Told(NamedTuple):
    """A fault, where it belongs."""

    name: str
    """Of the field; empty where it belongs to none."""
    label: str
    message: str


class Outcome(NamedTuple):
    faults: Sequence[Told]
    changes: str
    """What differs from the named recipe, as JSON; empty where nothing does."""
    whole: str
    """The recipe as JSON."""
    fingerprint: str
    same: Sequence[Job]
    """Jobs with the same recipe, the newest first."""
    misfit: str | None
    """Why no living worker could take it."""
    command: str | None
    """None where the command line cannot ask for it."""
    curl: str


def outcome(
    draft: Draft, checked: Checked, db: Engine, crew: Sequence[Shown], *, url: str, with_key: bool
) -> Outcome:
    fields = draft.fields()
    labels = {field.name: field.path for field in in_use(fields)}
    found = at_fields(fields, checked.faults)
    faults = [
        Told(name, labels.get(name, ""), message) for name, messages in found.items() for message in messages
    ]
    if checked.recipe is None or checked.body is None:
        return Outcome(faults, "", "", "", (), None, None, "")
    recipe, body = checked.recipe, checked.body
    overrides = body.get("overrides", {})
    digest = fingerprint(recipe)
    return Outcome(
        faults=faults,
        changes=json.dumps(overrides, indent=2) if overrides else "",
        whole=json.dumps(recipe.model_dump(mode="json"), indent=2),
        fingerprint=digest,
        same=_same(db, digest),
        misfit=misfit(_job(recipe, body, draft.queues), crew),
        command=upload_command(recipe, body, url) if isinstance(recipe, Import) else submit_command(body, url),
        curl=curl(body, url, with_key=with_key),
    )


def _same(db: Engine, digest: str) -> Sequence[Job]:
    jobs = select(Job).where(Job.fingerprint == digest).order_by(Job.created_at.desc(), Job.id).limit(_SAME)
    with reading(db) as session:
        return session.scalars(jobs.options(lazyload("*"))).all()


def _job(recipe: Recipe, body: Mapping[str, Any], queues: Sequence[str]) -> Job:
    """The job that it would become, as far as a worker has to fit it."""
    request = JobRequest.model_validate(body)
    return Job(
        queue=request.queue or queues[0],
        gpus=request.gpus,
        gpu_memory=request.gpu_memory,
        processes=recipe.processes if isinstance(recipe, Train) else 1,
    )
