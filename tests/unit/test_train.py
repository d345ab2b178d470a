"""Training: whole runs of every objective, resuming bit by bit, choosing an epoch, and what goes wrong."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from trainings import epochs_of, facts, run, write_tiny

from dkl import recipes
from dkl.architectures import CNN
from dkl.batches import training_data
from dkl.datasets import DatasetError
from dkl.documents import Normalisation, ThreatModel
from dkl.events import Adjusted, Epoch, Finished, Progress
from dkl.models import build
from dkl.objectives import AWP, DAJAT, GKL, IKL, LBGAT, MART, PGD, PGDAT, TRADES, Natural
from dkl.schedules import learning_rate
from dkl.train import train
from dkl.weights import CheckpointError, load_checkpoint, load_state

# --- whole runs -------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return write_tiny(tmp_path, 40)


def adversarial(**changes) -> recipes.Train:
    fields = {
        "dataset": "npz:tiny",
        "model": CNN(width=4),
        "objective": IKL(),
        "threat": ThreatModel(norm="Linf", eps=0.1),
        "attack": PGD(steps=2),
        "awp": AWP(first_epoch=2),
        "epochs": 3,
        "batch_size": 16,
        "optimizer": recipes.SGD(lr=0.05),
    }
    return recipes.Train(**{**fields, **changes})


def natural(**changes) -> recipes.Train:
    return adversarial(**{"objective": Natural(), "threat": None, "attack": None, "awp": None, **changes})


KL, CE = PGD(steps=2, loss="kl"), PGD(steps=2, loss="ce", start="uniform", eps_schedule="constant")
HELD_OUT = recipes.Validation(images=8, steps=2)
EVERY = {
    "natural": natural(),
    "ikl": adversarial(),
    "gkl-two-views": adversarial(objective=GKL(gamma=0.4), second_view=recipes.SecondView(weight=0.3)),
    "trades-L2": adversarial(objective=TRADES(), attack=KL, threat=ThreatModel(norm="L2", eps=0.1)),
    "pgd-at-awp": adversarial(objective=PGDAT(), attack=CE.model_copy(update={"mode": "train"})),
    "mart": adversarial(objective=MART(), attack=CE, awp=None, averaging=None, validation=HELD_OUT),
    "lbgat": adversarial(
        objective=LBGAT(beta=2.0, teacher=CNN(width=3)),
        attack=KL,
        optimizer=recipes.SGD(lr=0.01, schedule=recipes.Steps(epochs=(3,), first_epoch=0.2)),
    ),
    "dajat": adversarial(
        objective=DAJAT(label_smoothing=0.1, beta=5.0),
        attack=KL,
        averaging=recipes.StepEMA(decay=0.9, start=0.3, ramp=False, statistics="averaged"),
        validation=HELD_OUT,
    ),
    "dm-at": adversarial(
        objective=TRADES(beta=5.0, label_smoothing=0.1),
        attack=PGD(loss="kl", steps=2, start="uniform", mode="batch", eps_schedule="constant"),
        awp=None,
        optimizer=recipes.SGD(lr=0.05, schedule=recipes.OneCycle(), nesterov=True, decay_batch_norms=False),
        averaging=recipes.StepEMA(decay=0.9, start=0.3),
        validation=HELD_OUT,
        select="best",
    ),
}
every_objective = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY.keys())


# --- what it says -----------------------------------------------------------------------------------------


@every_objective
def test_a_run_says_what_it_does(recipe, tmp_path, data_dir):
    events = list(run(recipe, tmp_path / "job", data_dir))
    progress = [e for e in events if isinstance(e, Progress)]
    batches = 2 if recipe.validation else 3  # 32 images, or 16, 16 and 8
    assert [e.done for e in progress] == list(range(1, 3 * batches + 1))
    assert all(e.total == 3 * batches and e.rate > 0 for e in progress)
    assert progress[batches].phase == "epoch 2 of 3"
    assert progress[-1].eta_seconds == 0

    epochs = epochs_of(events)
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert [e.lr for e in epochs] == [learning_rate(recipe.optimizer, epoch, 3) for epoch in (1, 2, 3)]
    assert epochs[0].eta_seconds > 0
    assert epochs[-1].eta_seconds == 0
    for e in epochs:
        assert e.loss == pytest.approx(sum(e.terms.values()))
        assert e.images_per_second > 0
        assert (e.clean_accuracy is None) == (recipe.objective.kind == "pgd-at")
        assert (e.adversarial_accuracy is None) == (recipe.threat is None)
        assert (e.teacher_accuracy is None) == (recipe.objective.kind != "lbgat")
        assert (e.validation_accuracy is None) == (recipe.validation is None)
        assert (e.validation_robust_accuracy is None) == (recipe.validation is None)
    if recipe.threat is None:
        assert all(e.eps is None for e in epochs)
    elif recipe.attack.eps_schedule == "linear":
        assert [e.eps for e in epochs] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    else:
        assert [e.eps for e in epochs] == [0.1, 0.1, 0.1]

    assert isinstance(events[-1], Finished)
    result = events[-1].result
    loaded = load_checkpoint(tmp_path / "job" / "model.safetensors")
    assert loaded.sha256 == result.checkpoint_sha256
    assert (loaded.dataset, loaded.classes, loaded.channels) == ("npz:tiny", 3, 1)
    assert result.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert result.seconds == pytest.approx(sum(e.seconds for e in epochs))
    assert result.provenance.fingerprint == recipes.fingerprint(recipe)
    assert recipes.Train.model_validate(result.provenance.recipe) == recipe
    assert torch.__version__.startswith(result.provenance.versions["torch"])
    assert result.provenance.checkpoint_sha256 == result.checkpoint_sha256
    assert result.provenance.dataset_sha256 == training_data(recipe, data_dir, "cpu").sha256
    assert result.notes == ()


def test_natural_training_learns(tmp_path, data_dir):
    recipe = natural(epochs=30, augmentation=None, averaging=recipes.EpochEMA(decay=0.5))
    events = list(run(recipe, tmp_path / "job", data_dir))
    assert events[-1].result.clean_accuracy >= 0.9
    epochs = epochs_of(events)
    assert epochs[-1].loss < 0.5 * epochs[0].loss


def test_timm_s_architectures_are_trained_too(tmp_path, data_dir):
    model = {"kind": "timm", "name": "resnet10t", "normalisation": Normalisation(mean=(0.5,), std=(0.25,))}
    events = list(run(natural(epochs=1, model=model), tmp_path / "job", data_dir))
    assert load_checkpoint(tmp_path / "job" / "model.safetensors").sha256 == events[-1].result.checkpoint_sha256


def test_awp_begins_with_its_first_epoch(tmp_path, data_dir):
    losses = {}
    for first_epoch in (2, 3, 4):
        recipe = adversarial(awp=AWP(first_epoch=first_epoch, gamma=0.1))
        losses[first_epoch] = [e.loss for e in epochs_of(run(recipe, tmp_path / f"from-{first_epoch}", data_dir))]
    without = [e.loss for e in epochs_of(run(adversarial(awp=None), tmp_path / "none", data_dir))]
    assert losses[4] == without
    assert losses[3][:2] == without[:2]
    assert losses[3][2] != without[2]
    assert losses[2][:1] == without[:1]
    assert losses[2][1] != without[1]


# --- which weights it leaves ------------------------------------------------------------------------------


def test_the_result_is_the_average_over_the_epochs(tmp_path, data_dir):
    recipe = natural(averaging=recipes.EpochEMA(decay=0.5))
    states = []
    for event in run(recipe, tmp_path / "job", data_dir):
        if isinstance(event, Epoch):
            states.append(load_state(tmp_path / "job" / "last.pt")["model"])
    averaged = load_checkpoint(tmp_path / "job" / "model.safetensors").model.state_dict()
    for name in ("conv1.weight", "linear.bias", "bn1.running_var"):
        expected = 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name]
        torch.testing.assert_close(averaged[name], expected)

    list(run(recipe.model_copy(update={"averaging": None}), tmp_path / "plain", data_dir))
    plain = load_checkpoint(tmp_path / "plain" / "model.safetensors").model.state_dict()
    assert all(torch.equal(plain[name], states[2][name]) for name in plain)


def test_the_best_epoch_is_the_one_that_did_best_on_held_out_images(tmp_path, data_dir):
    """A learning rate that ruins what was learnt makes an early epoch the best."""
    recipe = natural(
        epochs=8,
        augmentation=None,
        averaging=None,
        optimizer=recipes.SGD(lr=0.3, schedule=recipes.Cosine(from_full=True)),
        validation=HELD_OUT,
        select="best",
    )
    kept, accuracies = {}, []
    for event in run(recipe, tmp_path / "job", data_dir):
        if isinstance(event, Epoch):
            accuracies.append(event.validation_accuracy)
            kept[event.epoch] = load_state(tmp_path / "job" / "last.pt")["model"]
            best = 1 + accuracies.index(max(accuracies))
            assert [path.name for path in (tmp_path / "job").glob("best-*.pt")] == [f"best-{best}.pt"]
        if isinstance(event, Finished):
            result = event.result
    assert result.selected_epoch == best
    assert result.validation_accuracy == max(accuracies)
    assert len(set(accuracies)) > 1
    chosen = load_checkpoint(tmp_path / "job" / "model.safetensors").model.state_dict()
    assert all(torch.equal(chosen[name], kept[best][name]) for name in chosen)

    last = list(run(recipe.model_copy(update={"select": "last"}), tmp_path / "last", data_dir))[-1].result
    assert last.selected_epoch == 8
    chosen = load_checkpoint(tmp_path / "last" / "model.safetensors").model.state_dict()
    assert all(torch.equal(chosen[name], kept[8][name]) for name in chosen)


def test_held_out_images_are_never_trained_on(tmp_path, data_dir):
    data = training_data(natural(validation=HELD_OUT), data_dir, "cpu")
    assert len(data.validation.labels) == 8
    assert len(data.batches) == 2


def test_batch_norms_may_be_spared_the_weight_decay(tmp_path, data_dir):
    """With a huge decay and no gradient to speak of, only what is spared keeps its size."""
    optimizer = recipes.SGD(lr=1e-6, momentum=0.0, weight_decay=1e5, decay_batch_norms=False)
    list(run(natural(epochs=1, averaging=None, optimizer=optimizer), tmp_path / "job", data_dir))
    model = load_checkpoint(tmp_path / "job" / "model.safetensors").model
    assert model.bn1.weight.min() > 0.99
    assert model.conv1.weight.norm() < 0.9 * build_like(natural(), "conv1.weight").norm()
    spared = recipes.SGD(lr=1e-6, momentum=0.0, weight_decay=1e5)
    list(run(natural(epochs=1, averaging=None, optimizer=spared), tmp_path / "all", data_dir))
    assert load_checkpoint(tmp_path / "all" / "model.safetensors").model.bn1.weight.max() < 0.9


def build_like(recipe: recipes.Train, name: str) -> torch.Tensor:
    """A weight as the recipe's model begins with it."""
    torch.manual_seed(recipe.seed)
    return build(recipe.model, channels=1, classes=3).get_parameter(name).detach()


# --- the same again ---------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@every_objective
def test_a_gpu_trains_and_resumes(recipe, precision, tmp_path, data_dir):
    recipe = recipe.model_copy(update={"precision": precision})
    (tmp_path / "job").mkdir()
    attempt = train(recipe, tmp_path / "job", device="cuda", data_dir=data_dir)
    list(itertools.islice(attempt, 5))
    attempt.close()
    events = list(train(recipe, tmp_path / "job", device="cuda", data_dir=data_dir))
    assert [e.epoch for e in epochs_of(events)] == [1, 2, 3]
    assert isinstance(events[-1], Finished)


@every_objective
def test_two_runs_are_identical_and_another_seed_is_not(recipe, tmp_path, data_dir):
    first = facts(list(run(recipe, tmp_path / "a", data_dir)))
    torch.manual_seed(12345)  # the global generator has no say
    assert facts(list(run(recipe, tmp_path / "b", data_dir))) == first
    other = facts(list(run(recipe.model_copy(update={"seed": 1}), tmp_path / "c", data_dir)))
    assert other[-1]["checkpoint_sha256"] != first[-1]["checkpoint_sha256"]


@pytest.mark.parametrize("stops", [[1], [2, 1, 1, 3], [8]], ids=str)
@every_objective
def test_a_resumed_run_is_identical_to_one_that_never_stopped(recipe, stops, tmp_path, data_dir):
    """Close the iterator after so many events of each attempt: in mid-epoch, after an epoch, before the end."""
    expected = facts(list(run(recipe, tmp_path / "straight", data_dir)))
    for events in stops:
        attempt = run(recipe, tmp_path / "job", data_dir)
        list(itertools.islice((e for e in attempt if isinstance(e, Progress | Epoch)), events))
        attempt.close()
    assert facts(list(run(recipe, tmp_path / "job", data_dir))) == expected


def test_no_batch_is_trained_twice_after_a_stop(tmp_path, data_dir):
    attempt = run(adversarial(), tmp_path / "job", data_dir)
    assert [next(attempt).done for _ in range(2)] == [1, 2]
    attempt.close()
    assert next(run(adversarial(), tmp_path / "job", data_dir)).done == 3


@every_objective
def test_a_killed_run_goes_on_from_the_last_epoch(recipe, tmp_path, data_dir):
    expected = facts(list(run(recipe, tmp_path / "straight", data_dir)))
    attempt = run(recipe, tmp_path / "job", data_dir)
    for event in attempt:
        if isinstance(event, Epoch) and event.epoch == 2:
            kept = (tmp_path / "job" / "last.pt").read_bytes()
            break
    next(attempt)
    attempt.close()
    (tmp_path / "job" / "last.pt").write_bytes(kept)  # as if killed without a chance to write
    events = list(run(recipe, tmp_path / "job", data_dir))
    assert [e.epoch for e in events[:2]] == [1, 2]
    assert facts(events) == expected


def test_a_long_epoch_is_kept_now_and_then(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("dkl.train._KEEP_SECONDS", 0.0)
    attempt = run(natural(), tmp_path / "job", data_dir)
    next(attempt)
    next(attempt)
    assert load_state(tmp_path / "job" / "last.pt")["batch"] == 2


def test_a_finished_run_run_again_only_repeats_its_facts(tmp_path, data_dir):
    first = list(run(adversarial(), tmp_path / "job", data_dir))
    (tmp_path / "job" / "model.safetensors").unlink()
    again = list(run(adversarial(), tmp_path / "job", data_dir))
    assert not any(isinstance(e, Progress) for e in again)
    assert again == [e for e in first if not isinstance(e, Progress)]
    assert (tmp_path / "job" / "model.safetensors").exists()


def test_a_consumer_inherits_no_torch_modes(tmp_path, data_dir):
    for _ in run(adversarial(epochs=1, precision="bfloat16"), tmp_path / "job", data_dir):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_learns_much_the_same_and_leaves_float32_weights(tmp_path, data_dir):
    exact, coarse = (
        list(run(adversarial(precision=precision, awp=None), tmp_path / precision, data_dir))
        for precision in ("float32", "bfloat16")
    )
    for one, other in zip(epochs_of(exact), epochs_of(coarse), strict=True):
        assert one.loss != other.loss
        assert one.loss == pytest.approx(other.loss, rel=0.2)
    state = load_checkpoint(tmp_path / "bfloat16" / "model.safetensors").model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


# --- what goes wrong --------------------------------------------------------------------------------------


class Cramped(torch.nn.Module):
    """Memory for six images at a time."""

    room = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)

    def forward(self, x):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore words")
        return self.layer(x.flatten(1))


def test_a_batch_that_does_not_fit_passes_in_parts_and_that_is_said(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("dkl.run.build", lambda *_, **__: Cramped())
    recipe = natural(epochs=2, averaging=None)
    events = list(itertools.islice(run(recipe, tmp_path / "job", data_dir), 9))
    adjusted = [e for e in events if isinstance(e, Adjusted)]
    assert [e.micro_batch for e in adjusted] == [8, 4]
    assert "16 images at once did not fit into memory (CUDA out of memory. Tried to allocate 2.00 GiB.)" in (
        adjusted[0].sentence
    )
    assert "from epoch 1, batch 1 on 8 pass at a time" in adjusted[0].sentence
    assert len([e for e in events if isinstance(e, Progress)]) == 6

    # The same with room enough: without batch norm, parts of a batch are the batch.
    monkeypatch.setattr(Cramped, "room", 100)
    straight = list(itertools.islice(run(recipe, tmp_path / "straight", data_dir), 7))
    losses = [[e.loss for e in epochs_of(es)] for es in (events, straight)]
    assert losses[0] == pytest.approx(losses[1][: len(losses[0])], rel=1e-5)


def test_a_resumed_run_remembers_what_does_not_fit(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("dkl.run.build", lambda *_, **__: Cramped())
    attempt = run(natural(), tmp_path / "job", data_dir)
    list(itertools.islice(attempt, 3))
    attempt.close()
    events = list(itertools.islice(run(natural(), tmp_path / "job", data_dir), 3))
    assert [e.kind for e in events] == ["adjusted", "adjusted", "progress"]
    assert load_state(tmp_path / "job" / "last.pt")["micro_batch"] == 4


def test_a_model_that_never_fits_ends_with_a_sentence(tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr("dkl.run.build", lambda *_, **__: Cramped())
    monkeypatch.setattr(Cramped, "room", 0)
    with pytest.raises(MemoryError, match=r"not even one image at a time fits .*2.00 GiB.*; take a smaller model"):
        list(run(natural(), tmp_path / "job", data_dir))


@pytest.mark.parametrize("recipe", [natural(epochs=60), adversarial(epochs=60)], ids=["natural", "adversarial"])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(recipe, tmp_path, data_dir):
    recipe = recipe.model_copy(update={"optimizer": recipes.SGD(lr=1e20)})
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d+, batch \d; try an optimizer.lr"):
        list(run(recipe, tmp_path / "job", data_dir))


def test_the_work_directory_of_another_recipe_is_refused(tmp_path, data_dir):
    list(run(natural(epochs=1), tmp_path / "job", data_dir))
    with pytest.raises(ValueError, match=r"holds the training of another recipe.* delete last.pt"):
        list(run(natural(epochs=2), tmp_path / "job", data_dir))


def test_a_damaged_state_is_refused(tmp_path, data_dir):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "last.pt").write_bytes(b"half a fi")
    with pytest.raises(CheckpointError, match="is damaged"):
        list(run(natural(), tmp_path / "job", data_dir))


def test_missing_test_data_are_noticed_before_training(tmp_path, data_dir):
    (data_dir / "tiny_test.npz").unlink()
    with pytest.raises(DatasetError, match=r"tiny_test\.npz does not exist"):
        next(run(natural(), tmp_path / "job", data_dir))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_trains_alike(tmp_path, data_dir):
    plain, compiled = (list(run(adversarial(compile=how), tmp_path / how, data_dir)) for how in ("off", "default"))
    for one, other in zip(epochs_of(plain), epochs_of(compiled), strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
