"""The list of pages: addresses that stand for all of them, with the ids of a site's story in braces."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import story

from dkl.imports import Import
from service import claims, jobs, keys, registry
from service.callers import COMMAND_LINE
from service.registry import Description, Use
from service.settings import Settings
from service.tables import Job


class Place(NamedTuple):
    address: str
    status: int = 200
    """Of the answer."""
    admin: bool = False
    """Whether an admin has to sign in first."""
    again: bool = False
    """Whether one above is the same page with other contents; its promises are tried by slow tests alone."""


PAGES = {
    "leaderboard": Place("/"),
    "leaderboard, own board": Place("/?dataset=digits"),
    "leaderboard, sorted": Place("/?dataset=cifar100&sort=name", again=True),
    "leaderboard, nothing found": Place("/?dataset=digits&search=nothing-is-called-so", again=True),
    "entry, measured": Place("/entries/{measured}"),
    "entry, published": Place("/entries/{published}"),
    "compare, measured": Place("/compare?entry={measured}&entry={other}"),
    "compare, mixed": Place("/compare?entry={measured}&entry={published}", again=True),
    "jobs": Place("/jobs"),
    "job, training": Place("/jobs/{training}"),
    "job, running": Place("/jobs/{running}"),
    "job, failed": Place("/jobs/{failed}"),
    "job, evaluation": Place("/jobs/{measured}"),
    "job, screen": Place("/jobs/{screened}", again=True),
    "job, audited": Place("/jobs/{audited}"),
    "job, stopped early": Place("/jobs/{stopped}", again=True),
    "job, corruptions": Place("/jobs/{corruptions}"),
    "job, import": Place("/jobs/{imported}", again=True),
    "submit": Place("/submit"),
    "submit, recipe": Place("/submit?recipe=ikl-at-digits"),
    "submit, evaluation": Place("/submit?recipe=autoattack-digits-linf", again=True),
    "upload": Place("/submit/upload"),
    "distillation": Place("/distillation"),
    "distillation, pair": Place("/distillation?teacher=ResNet32x4&student=ResNet8x4", again=True),
    "distillation, long tail": Place("/distillation?board=imagenet-lt"),
    "studies": Place("/studies"),
    "study, other data": Place("/studies/2-tiny"),
    "study, same data": Place("/studies/3-full", again=True),
    "workers": Place("/workers"),
    "workers, admin": Place("/workers", admin=True),
    "documents": Place("/docs"),
    "document": Place("/docs/evaluation"),
    "document, operations": Place("/docs/operations", again=True),
    "document, recipes": Place("/docs/recipes", again=True),
    "document, extending": Place("/docs/extending/attack", again=True),
    "documents, searched": Place("/docs?search=checkpoint"),
    "interface": Place("/api/docs"),
    "sign in": Place("/signin?next=/keys"),
    "keys": Place("/keys", admin=True),
    "audit": Place("/audit", admin=True),
    "no such page": Place("/nowhere", 404),
    "no such entry": Place("/entries/nothing", 404, again=True),
    "no such study": Place("/studies/9-tiny", 404, again=True),
    "bad query": Place("/?eps=nan&sort=luck", 422),
}


_WORKER = Description(
    *("gpu-box/gpu0", "gpu-box", 4711, "NVIDIA H200", 1, 139.8, 1),
    {"python": "3.11.9", "torch": "2.11.0"},
    queues=("gpu", "urgent"),
)


@contextmanager
def told(site: story.Site) -> Iterator[dict[str, str]]:
    """The ids that addresses name; what the site's story lacks is added, and ended afterwards."""
    newest = jobs.recent(site.db, limit=1000)
    judged = {job.robust_accuracy: job for job in newest if job.kind == "evaluate"}
    # The first one: other tests of this process may have trained more on the same site.
    training = next(job for job in reversed(newest) if job.kind == "train" and job.clean_accuracy == 0.95)
    added = {
        "running": jobs.create(site.db, story.resolve("ikl-at-digits", {"epochs": 10, "seed": 11})),
        "corruptions": jobs.create(site.db, story.resolve("corruptions-digits", {"model.job": training.id})),
        "imported": jobs.create(site.db, _import(training)),
    }
    registry.arrive(site.db, _WORKER)
    registry.beat(site.db, _WORKER, Use(0.97, 61.2))
    claim = story.start(site.db, added["running"])
    for number in (1, 2):
        claims.append(site.db, claim, story.epoch(number, 10))
    claims.append(site.db, claim, story.progress(2, 10, "epoch 3 of 10"))
    yield {
        "measured": judged[0.71].id,
        "other": judged[0.07].id,
        "screened": judged[0.73].id,
        "audited": judged[0.65].id,
        "stopped": judged[0.55].id,
        "training": training.id,
        "failed": next(job.id for job in newest if job.status == "failed"),
        "published": "robustbench-cifar10-Linf-Cui2023Decoupled_WRN-28-10",
        **{name: job.id for name, job in added.items()},
    }
    registry.leave(site.db, _WORKER.name)
    claims.fail(site.db, claim, "the tests are over")
    for name in ("corruptions", "imported"):
        jobs.cancel(site.db, added[name].id, caller=COMMAND_LINE)


def _import(training: Job) -> Import:
    return Import(upload=story.SHA256, dataset="digits", model=training.recipe["model"])


def admin_key(site: story.Site) -> str:
    """A key of scope admin of the site, whose settings are those of its data folder."""
    assert site.db.url.database is not None
    settings = Settings(data_dir=Path(site.db.url.database).parent)
    wanted = keys.KeyRequest(name="quality", scope="admin")
    return keys.create(site.db, settings, wanted, caller=COMMAND_LINE)[1]
