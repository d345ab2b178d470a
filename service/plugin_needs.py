"""Which plugins a job needs on its worker, and whether anybody has them. None of their code is imported here."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from dkl import plugins
from dkl.architectures import PluginModel
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.imports import Import
from dkl.objectives import PluginObjective
from dkl.protocols import Checkpoint, JobResult
from dkl.recipes import Distill, Recipe, Train
from service.db import reading
from service.lineage import MAKERS, needed
from service.tables import ArtifactUse, Job, Worker


def own_plugins(recipe: Recipe) -> dict[str, str]:
    """Those that the recipe itself names, by the field that does so: {"model.name": "model:patch-mlp"}."""
    found = {}
    if isinstance(recipe, Train | Distill | Import) and isinstance(recipe.model, PluginModel):
        found["model.name"] = plugins.key("model", recipe.model.name)
    if isinstance(recipe, Train) and isinstance(recipe.objective, PluginObjective):
        found["objective.name"] = plugins.key("objective", recipe.objective.name)
    return found


def plugins_for(session: Session, recipe: Recipe) -> list[str]:
    """All that its worker must have, that of the model which it judges or learns from included."""
    found = set(own_plugins(recipe).values())
    need = needed(recipe)
    maker = None
    match need and need.source:
        case JobResult(job=job_id):
            maker = session.get(Job, job_id)
        case Checkpoint(checkpoint=sha256):
            left = ArtifactUse.sha256 == sha256, ArtifactUse.role == "checkpoint", Job.kind.in_(MAKERS)
            makers = select(Job).join(ArtifactUse, ArtifactUse.job_id == Job.id).where(*left)
            maker = session.scalars(makers.order_by(Job.created_at).limit(1)).first()
    if maker is not None and (key := _of_model(maker)):
        found.add(key)
    return sorted(found)


def _of_model(maker: Job) -> str | None:
    """The plugin that the network of an earlier job is of."""
    try:
        return own_plugins(read_recipe(maker.recipe)).get("model.name")
    except InvalidRecipeError:  # of a version without plugins
        return None


def unheard_of(db: Engine, recipe: Recipe) -> str | None:
    """Why a plugin that the recipe names is not to be had: it is neither installed beside the service nor offered
    by any worker of the last days. None where all are; one that no worker has just now is waited for."""
    if not (asked := own_plugins(recipe)):
        return None
    with reading(db) as session:
        known = {
            *plugins.installed(),
            *(key for offers in session.scalars(select(Worker.plugins)) for key in offers),
        }
    for field, key in asked.items():
        if key not in known:
            kind, _, name = key.partition(":")
            others = ", ".join(sorted(other.partition(":")[2] for other in known if other.startswith(f"{kind}:")))
            return (
                f"{field}: no worker has the {kind} {name!r}; {f'choose from {others}, or ' if others else ''}"
                "install its package where the workers run, and start them again"
            )
    return None
