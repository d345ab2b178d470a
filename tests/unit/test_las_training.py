"""LAS-AT, LAS-TRADES and LAS-AWP as whole runs: what they say, that they resume, learn, and refuse."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from trainings import epochs_of, facts, run, write_tiny

from dkl import recipes
from dkl.architectures import CNN
from dkl.catalog import resolve
from dkl.documents import ThreatModel
from dkl.events import Adjusted, Epoch, Progress
from dkl.explain import InvalidRecipeError
from dkl.models import build
from dkl.objectives import AWP, LASAT, LASTRADES, PGD
from dkl.strategy import Reward, Strategy
from dkl.weights import load_checkpoint, load_state

STRATEGY = Strategy(
    network=CNN(width=2),
    eps=(0.02, 0.1, 0.2),
    steps=(1, 3),
    step_sizes=(0.05, 0.1),
    every=2,
    lr=0.01,
    reward=Reward(restarts=1, normalisation="batch"),
)
CLIPPED = STRATEGY.model_copy(update={"clip_to_threat": True, "every": 1})
UNIFORM = PGD(loss="ce", steps=2, start="uniform", eps_schedule="constant")
NEARBY = PGD(loss="kl", steps=2, eps_schedule="constant")


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return write_tiny(tmp_path, 40)


def las(**changes) -> recipes.Train:
    fields = {
        "dataset": "npz:tiny",
        "model": CNN(width=4),
        "objective": LASAT(label_smoothing=0.2, strategy=STRATEGY),
        "threat": ThreatModel(norm="Linf", eps=0.1),
        "attack": UNIFORM,
        "epochs": 3,
        "batch_size": 16,
        "optimizer": recipes.SGD(lr=0.05),
        "augmentation": None,
    }
    return recipes.Train(**{**fields, **changes})


EVERY = {
    "las-at": las(),
    "las-at-bfloat16": las(precision="bfloat16"),
    "las-trades": las(objective=LASTRADES(strategy=STRATEGY), attack=NEARBY, averaging=recipes.StepEMA(start=0.3)),
    "las-awp": las(
        objective=LASAT(strategy=CLIPPED),
        awp=AWP(first_epoch=2),
        averaging=None,
        validation=recipes.Validation(images=8, steps=2),
        select="best",
    ),
}
every_method = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY.keys())


# --- what it says -----------------------------------------------------------------------------------------


@every_method
def test_a_run_says_what_was_drawn_and_earned(recipe, tmp_path, data_dir):
    events = list(run(recipe, tmp_path / "job", data_dir))
    strategy = recipe.objective.strategy
    names = ["eps", "steps", "step_size", *(["beta"] if recipe.objective.kind == "las-trades" else [])]
    for epoch in epochs_of(events):
        said = epoch.strategy
        assert [choice.name for choice in said.choices] == names
        assert [choice.values for choice in said.choices[:3]] == [
            strategy.eps,
            strategy.steps,
            strategy.step_sizes,
        ]
        for choice in said.choices:
            assert sum(choice.shares) == pytest.approx(1)
            mean = sum(value * share for value, share in zip(choice.values, choice.shares, strict=True))
            assert choice.mean == pytest.approx(mean)
        assert 0 < said.entropy < sum(np.log(len(choice.values)) for choice in said.choices)
        assert 0 <= said.rewards["robust"] <= 1
        assert 0 <= said.rewards["clean"] <= 1
        assert said.rewards["total"] == pytest.approx(
            said.rewards["loss"] + 4 * said.rewards["robust"] + 2 * said.rewards["clean"]
        )
        assert epoch.eps == (0.1 if strategy.clip_to_threat else None)
        assert epoch.loss == pytest.approx(sum(epoch.terms.values()))
        assert (epoch.clean_accuracy is None) == (recipe.objective.kind == "las-at")
    learnt = [epoch.strategy.updates for epoch in epochs_of(events)]
    batches = 2 if recipe.validation else 3
    assert sum(learnt) == -(-3 * batches // strategy.every)


def test_an_epoch_in_which_nothing_is_learnt_has_no_rewards(tmp_path, data_dir):
    strategy = STRATEGY.model_copy(update={"every": 9})
    epochs = epochs_of(list(run(las(objective=LASAT(strategy=strategy)), tmp_path / "job", data_dir)))
    assert [epoch.strategy.updates for epoch in epochs] == [1, 0, 0]
    assert [bool(epoch.strategy.rewards) for epoch in epochs] == [True, False, False]


def test_the_strategy_is_in_the_state_and_not_in_the_published_model(tmp_path, data_dir):
    recipe = las()
    result = list(run(recipe, tmp_path / "job", data_dir))[-1].result
    loaded = load_checkpoint(tmp_path / "job" / "model.safetensors")
    assert result.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.classes == 3
    kept = load_state(tmp_path / "job" / "last.pt")
    learnt = kept["prior"]["network"]
    assert not set(learnt) & set(loaded.model.state_dict())
    assert kept["prior"]["optimizer"]["state"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build(recipe.model, channels=1, classes=3)
    assert sum(p.numel() for p in model.parameters()) == result.parameters


# --- the same again ---------------------------------------------------------------------------------------


@every_method
def test_two_runs_are_identical_and_another_seed_is_not(recipe, tmp_path, data_dir):
    first = facts(list(run(recipe, tmp_path / "a", data_dir)))
    torch.manual_seed(12345)  # the global generator has no say
    assert facts(list(run(recipe, tmp_path / "b", data_dir))) == first
    other = facts(list(run(recipe.model_copy(update={"seed": 1}), tmp_path / "c", data_dir)))
    assert other[-1]["checkpoint_sha256"] != first[-1]["checkpoint_sha256"]
    assert other[0]["strategy"]["choices"] != first[0]["strategy"]["choices"]


@pytest.mark.parametrize("stops", [[1], [2, 1, 1, 3]], ids=str)
@every_method
def test_a_resumed_run_is_identical_to_one_that_never_stopped(recipe, stops, tmp_path, data_dir):
    expected = facts(list(run(recipe, tmp_path / "straight", data_dir)))
    for events in stops:
        attempt = run(recipe, tmp_path / "job", data_dir)
        list(itertools.islice((e for e in attempt if isinstance(e, Progress | Epoch)), events))
        attempt.close()
    assert facts(list(run(recipe, tmp_path / "job", data_dir))) == expected
    straight, resumed = (load_state(tmp_path / place / "last.pt")["prior"] for place in ("straight", "job"))
    torch.testing.assert_close(resumed["network"], straight["network"], rtol=0, atol=0)


# --- memory -----------------------------------------------------------------------------------------------


class Cramped(torch.nn.Module):
    """Memory for six images at a time; no batch norms, so that parts of a batch are the batch."""

    room = 6

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, classes)

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.layer(x.flatten(1))


def test_a_batch_that_does_not_fit_passes_in_parts_with_the_same_strategies(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("dkl.run.build", lambda *_, classes, **__: Cramped(classes))
    monkeypatch.setattr("dkl.las_network.build", lambda *_, classes, **__: Cramped(classes))
    recipe = las(objective=LASTRADES(strategy=CLIPPED), attack=NEARBY, epochs=2, averaging=None)

    def attempt(place):
        # Only updates: what is judged in the end does not fit either.
        return list(itertools.islice(run(recipe, tmp_path / place, data_dir), 10 if place == "parts" else 8))

    parts = attempt("parts")
    assert [e.micro_batch for e in parts if isinstance(e, Adjusted)] == [8, 4]
    monkeypatch.setattr(Cramped, "room", 100)
    whole = attempt("whole")
    for one, other in zip(epochs_of(parts), epochs_of(whole), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.strategy.choices == other.strategy.choices
        assert one.strategy.rewards == pytest.approx(other.strategy.rewards, rel=1e-3)
        assert one.strategy.updates == other.strategy.updates == 3
    assert len(epochs_of(parts)) == 2


# --- learning ---------------------------------------------------------------------------------------------


def test_the_strategy_learns_what_earns_most(tmp_path, data_dir):
    """Only the loss is rewarded and the model hardly changes, so the strongest attacks earn most."""
    strategy = Strategy(
        network=CNN(width=4),
        eps=(0.01, 0.05, 0.2),
        steps=(1, 4),
        step_sizes=(0.01, 0.1),
        every=1,
        lr=0.02,
        reward=Reward(robust=0.0, clean=0.0, restarts=1, normalisation="batch"),
    )
    recipe = las(
        objective=LASAT(strategy=strategy),
        epochs=20,
        optimizer=recipes.SGD(lr=1e-9, weight_decay=0.0),
        averaging=None,
    )
    epochs = epochs_of(list(run(recipe, tmp_path / "job", data_dir)))
    first, last = epochs[0].strategy, epochs[-1].strategy
    assert last.rewards["total"] > first.rewards["total"]
    assert last.entropy < first.entropy
    assert last.choices[0].mean > 0.17 > first.choices[0].mean


@pytest.mark.slow
def test_a_model_that_learns_so_withstands_pgd(tmp_path):
    changes = {"epochs": 6, "model.width": 16, "validation.images": 300, "averaging": None}
    natural = resolve("natural-digits", changes)
    natural = natural.model_copy(update={"threat": ThreatModel(norm="Linf", eps=0.2)})
    learnt = resolve("las-at-digits", changes)
    found = {}
    for recipe in (natural, learnt):
        events = list(run(recipe, tmp_path / recipe.objective.kind, tmp_path))
        found[recipe.objective.kind] = epochs_of(events)[-1]
    assert found["las-at"].validation_accuracy > 0.7
    assert found["las-at"].validation_robust_accuracy > found["natural"].validation_robust_accuracy + 0.25


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"threat.norm": "L2"}, "chooses strategies for Linf; set threat.norm='Linf'"),
        ({"attack.mode": "train"}, "set attack.mode='eval'"),
        ({"attack.eps_schedule": "linear"}, "set attack.eps_schedule='constant'"),
        ({"second_view": {"weight": 0.5}}, "takes no second_view; leave it out, or pick 'trades'"),
        ({"compile": "cuda-graphs"}, "set compile='default' or 'off'"),
        ({"attack.loss": "ikl"}, "with 'las-at' take 'ce'"),
        ({"threat": None}, "needs threat"),
    ],
)
def test_what_leaves_a_strategy_no_way_is_refused_with_one_sentence(changes, sentence):
    with pytest.raises((InvalidRecipeError, ValidationError), match=sentence.replace(".", r"\.")):
        resolve("las-at-digits", changes)
