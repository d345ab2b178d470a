"""Migrations on both databases: forward, back, forward, and nothing that the tables have and they have not."""

import json
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from dkl.architectures import WideResNet
from dkl.recipes import RECIPE, Augmentation, EpochEMA, Train, fingerprint
from service.db import connect, migrate
from service.tables import Base

MIGRATIONS = Path(__file__).parent.parent.parent / "migrations"


def move(engine: Engine, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if to == "base" else command.upgrade)(config, to)


def test_up_down_up_and_equal_to_the_tables(database_url: str) -> None:
    engine = connect(database_url)
    for to in ("head", "base", "head"):
        move(engine, to)
        expected = set() if to == "base" else set(Base.metadata.tables)
        assert set(inspect(engine).get_table_names()) - {"alembic_version"} == expected
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    migrate(engine)  # a migrated database stays as it is
    engine.dispose()


# --- 0002: what trainings were stored as before ----------------------------------------------------------

OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0005}
NATURAL = {
    "kind": "train", "dataset": "digits", "model": {"kind": "cnn", "width": 32}, "objective": {"kind": "natural"},
    "threat": None, "attack": None, "awp": None, "augmentation": "none", "images": None, "epochs": 15,
    "batch_size": 128, "optimizer": OPTIMIZER, "ema_decay": None, "seed": 0,
}  # fmt: skip
ROBUST = {
    **NATURAL, "dataset": "cifar10", "augmentation": "crop-flip", "ema_decay": 0.7, "images": 4000, "seed": 3,
    "model": {"kind": "wide-resnet", "depth": 34, "width": 10, "activation": "relu"},
    "objective": {"kind": "ikl", "wmse_weight": 20.0, "ce_weight": 4.0, "prior_temperature": 4.0},
    "threat": {"norm": "Linf", "eps": 8 / 255}, "attack": {"steps": 5, "relative_step_size": 0.5, "loss": "kl"},
    "awp": {"gamma": 0.005, "first_epoch": 10},
}  # fmt: skip
WITH_SILU = {**NATURAL, "model": {"kind": "wide-resnet", "depth": 28, "width": 10, "activation": "silu"}}
EVALUATION = {"kind": "evaluate", "dataset": "digits", "ema_decay": "none of ours", "model": {"job": "a" * 12}}


@pytest.fixture
def old(database_url: str) -> Engine:
    """A database of before, with one job of each sort."""
    engine = connect(database_url)
    move(engine, "0001")
    with engine.begin() as connection:
        for place, recipe in enumerate((NATURAL, ROBUST, WITH_SILU, EVALUATION)):
            values = {
                "id": str(place) * 12, "kind": recipe["kind"], "recipe": json.dumps(recipe), "dataset": "digits",
                "fingerprint": "f" * 64, "status": "succeeded", "revision": 0, "attempt": 1, "losses": 0,
                "created_at": 0.0,
            }  # fmt: skip
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({places})"), values)
    return engine


def stored(engine: Engine) -> dict[str, tuple[dict[str, Any], str]]:
    """Recipe and fingerprint by the first character of the id."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, recipe, fingerprint FROM jobs")).all()
    return {
        row.id[0]: (row.recipe if isinstance(row.recipe, dict) else json.loads(row.recipe), row.fingerprint)
        for row in rows
    }


def test_a_stored_training_becomes_the_same_training_in_todays_words(old: Engine) -> None:
    move(old, "head")
    after = stored(old)
    natural, robust = (RECIPE.validate_python(after[place][0]) for place in "01")
    assert isinstance(natural, Train)
    assert isinstance(robust, Train)
    assert (natural.averaging, natural.augmentation) == (None, None)
    assert (natural.epochs, natural.optimizer.lr, natural.seed) == (15, 0.1, 0)
    assert robust.averaging == EpochEMA(decay=0.7)
    assert robust.augmentation == Augmentation(crop=4, padding="zeros", flip=True)
    assert robust.model == WideResNet(depth=34, width=10)
    assert robust.attack is not None
    assert (robust.attack.loss, robust.attack.start, robust.attack.mode) == ("kl", "gaussian", "eval")
    assert robust.attack.eps_schedule == "linear"
    assert (robust.images, robust.seed, robust.select, robust.precision) == (4000, 3, "last", "float32")
    for recipe, place in ((natural, "0"), (robust, "1")):  # complete: asking again finds it
        assert after[place] == (recipe.model_dump(mode="json"), fingerprint(recipe))
    old.dispose()


def test_what_cannot_be_said_today_and_what_is_no_training_stays(old: Engine) -> None:
    move(old, "head")
    after = stored(old)
    assert after["2"] == (WITH_SILU, "f" * 64)
    assert after["3"] == (EVALUATION, "f" * 64)
    old.dispose()


def test_migrating_twice_changes_nothing_more(old: Engine) -> None:
    move(old, "0002")
    once = stored(old)
    with old.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    move(old, "0002")
    assert stored(old) == once
    old.dispose()
