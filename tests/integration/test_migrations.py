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
from service import claims, healing, jobs
from service.db import connect, migrate, migrating
from service.tables import Base

MIGRATIONS = Path(__file__).parent.parent.parent / "service" / "migrations"


def move(engine: Engine, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with migrating(engine) as connection:
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


# --- 0003: claims become seats, files get their uses -----------------------------------------------------


@pytest.fixture
def first_release(database_url: str) -> Engine:
    """What the first release may have left: trainings that ended and that run, evaluations of both kinds."""
    engine = connect(database_url)
    move(engine, "0002")
    by_checkpoint = {**EVALUATION, "model": {"checkpoint": "c" * 64}}
    rows: list[dict[str, Any]] = [
        {"id": "a" * 12, "status": "succeeded", "result": {"kind": "train", "checkpoint_sha256": "a" * 64}},
        {"id": "b" * 12, "status": "running", "worker": "box:7", "lease_until": 60.0, "started_at": 1.0,
         "attempt": 2},
        {"id": "c" * 12, "status": "cancelling", "worker": "box:8", "lease_until": 9.0, "started_at": 1.0},
        {"id": "d" * 12, "status": "succeeded", "recipe": EVALUATION, "parent_id": "a" * 12,
         "result": {"kind": "evaluate", "checkpoint_sha256": "a" * 64, "evidence_sha256": "e" * 64}},
        {"id": "e" * 12, "status": "queued", "recipe": by_checkpoint},
    ]  # fmt: skip
    with engine.begin() as connection:
        for row in rows:
            values = {
                "kind": row.get("recipe", NATURAL)["kind"], "dataset": "digits", "fingerprint": "f" * 64,
                "revision": 0, "attempt": 1, "losses": 0, "created_at": 0.0, "recipe": NATURAL, **row,
            }  # fmt: skip
            values |= {name: json.dumps(values[name]) for name in ("recipe", "result") if name in values}
            places = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({places})"), values)
    return engine


def select_all(engine: Engine, query: str) -> set[tuple[Any, ...]]:
    with engine.connect() as connection:
        return {tuple(row) for row in connection.execute(text(query))}


def test_a_database_of_the_first_release_goes_on(first_release: Engine) -> None:
    move(first_release, "head")
    assert select_all(first_release, "SELECT job_id, attempt, worker, lease_until FROM seats") == {
        ("b" * 12, 2, "box:7", 60.0),
        ("c" * 12, 1, "box:8", 9.0),
    }
    assert select_all(first_release, "SELECT sha256, job_id, role FROM artifact_uses") == {
        ("a" * 64, "a" * 12, "checkpoint"),
        ("a" * 64, "d" * 12, "checkpoint"),
        ("e" * 64, "d" * 12, "evidence"),
        ("c" * 64, "e" * 12, "source"),
    }
    assert sorted(healing.requeue_lost(first_release, max_losses=3)) == ["b" * 12, "c" * 12]
    assert [jobs.get(first_release, letter * 12).status for letter in "bc"] == ["queued", "canceled"]
    taken = claims.claim(first_release, "e" * 12, worker="w", lease_seconds=60)
    assert taken is None  # its recipe is one that nobody can read any more; it fails with a sentence
    assert "cannot be read any more" in str(jobs.get(first_release, "e" * 12).reason)
    first_release.dispose()


def test_and_back_again(first_release: Engine) -> None:
    before = select_all(first_release, "SELECT id, status, worker, lease_until, attempt FROM jobs")
    move(first_release, "head")
    with migrating(first_release) as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    assert select_all(first_release, "SELECT id, status, worker, lease_until, attempt FROM jobs") == before
    first_release.dispose()
