"""training recipes say averaging and augmentation in full

A stored training's `ema_decay` becomes `averaging`, the name of its augmentation becomes what that does, and every
field that was added since gets the value that means what was done before. A document that cannot be said so stays
as it is: today's wide network with SiLU is another one.

The words are written out here: a migration must mean the same tomorrow.
"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COLUMNS = (sa.column("id"), sa.column("kind"), sa.column("recipe", sa.JSON), sa.column("fingerprint"))
_JOBS = sa.table("jobs", *_COLUMNS)
_CROP_FLIP = {"crop": 4, "padding": "zeros", "flip": True, "rotation": 0.0, "policy": None}
_ATTACK = {"start": "gaussian", "mode": "eval", "eps_schedule": "linear"}
_OPTIMIZER = {
    "schedule": {"kind": "cosine", "from_full": False},
    "nesterov": False,
    "decay_batch_norms": True,
}
_ADDED: dict[str, Any] = {
    "generated": None,
    "second_view": None,
    "validation": None,
    "select": "last",
    "precision": "float32",
    "compile": "off",
    "processes": 1,
}


def upgrade() -> None:
    connection = op.get_bind()
    trainings = connection.execute(sa.select(_JOBS).where(_JOBS.c.kind == "train")).all()
    for job in trainings:
        if (recipe := in_todays_words(job.recipe)) is not None:
            change = sa.update(_JOBS).where(_JOBS.c.id == job.id)
            connection.execute(change.values(recipe=recipe, fingerprint=_fingerprint(recipe)))


def downgrade() -> None:
    """Nothing: today's words cannot all be said in the old ones, and `upgrade` takes both."""


def in_todays_words(recipe: dict[str, Any]) -> dict[str, Any] | None:
    """The same training; None where it is said so already, or cannot be."""
    if "ema_decay" not in recipe or recipe["model"].get("activation", "relu") != "relu":
        return None
    decay = recipe["ema_decay"]
    document = {
        **_ADDED,
        **{field: value for field, value in recipe.items() if field != "ema_decay"},
        "averaging": None if decay is None else {"kind": "epoch-ema", "decay": decay},
        "augmentation": _CROP_FLIP if recipe.get("augmentation", "crop-flip") == "crop-flip" else None,
        "model": _model(recipe["model"]),
        "optimizer": {**_OPTIMIZER, **recipe.get("optimizer", {})},
    }
    if recipe.get("attack") is not None:
        document["attack"] = {**_ATTACK, **recipe["attack"]}
    if recipe["objective"]["kind"] == "natural":
        document["objective"] = {"label_smoothing": 0.0, **recipe["objective"]}
    return document


def _model(model: dict[str, Any]) -> dict[str, Any]:
    document = {field: value for field, value in model.items() if field != "activation"}
    return {"normalisation": None, **document} if model["kind"] in {"wide-resnet", "preact-resnet"} else document


def _fingerprint(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
