"""Training: the reference's epochs number by number, resuming bit by bit, and what goes wrong."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import TinyNet, assert_state, entry, tensor

from dkl import recipes
from dkl.datasets import DatasetError
from dkl.documents import ThreatModel
from dkl.events import Epoch, Finished, Progress
from dkl.losses import ClassPrior
from dkl.models import build
from dkl.train import learning_rate, train
from dkl.updates import ikl_update, natural_update
from dkl.weights import CheckpointError, load_checkpoint, load_state

# --- the reference's numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["v1c100", "v1c10"])
@pytest.mark.parametrize("epoch", [3, 60])
def test_golden_epoch_of_two_batches(data, epoch):
    e = entry(f"pub-epoch-{data}-basic-ep{epoch}")
    hyper = e["hyper"]
    model = TinyNet(e["initial_state"])
    optimizer = torch.optim.SGD(model.parameters(), **hyper["sgd"])
    prior = ClassPrior(hyper["C"], temperature=hyper["T"], momentum=hyper["m"])
    prior.load_state_dict({**prior.state_dict(), "rows": tensor(e["previous_class_weights"])})
    losses = []
    for batch, noise in zip(e["batches"], e["noise"], strict=True):
        update = ikl_update(
            model,
            optimizer,
            prior,
            tensor(batch["x"]),
            torch.tensor(batch["target"]),
            objective=recipes.IKL(wmse_weight=hyper["beta"], ce_weight=hyper["alpha"]),
            attack=recipes.PGD(loss="ikl" if data == "v1c100" else "kl"),
            threat=ThreatModel(norm="Linf", eps=8 / 255 * epoch / hyper["epochs"]),
            awp=recipes.AWP(gamma=hyper["gamma_awp"]) if epoch >= hyper["awp_warmup"] else None,
            noise_BCHW=tensor(noise),
        )
        losses.append(update.loss)
    prior.end_epoch()
    assert losses == pytest.approx([loss for loss in e["backward_losses"] if loss > 0], rel=1e-8)
    torch.testing.assert_close(prior.rows, tensor(e["next_class_weights"]), rtol=1e-8, atol=1e-8)
    assert_state(model, e["final_state"], tolerance=1e-8)


def test_golden_learning_rates():
    row = next(row for row in entry("pub-schedules")["rows"] if row["script"] == "v1c100")
    for epoch, expected in row["lr_at_epoch"].items():
        assert learning_rate(0.2, int(epoch), 200) == pytest.approx(expected, rel=1e-12)


# --- whole runs -------------------------------------------------------------------------------------------


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """npz:tiny: 40 training and 10 test images of 8 x 8 in 3 classes, told apart by brightness."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        label = np.arange(count) % 3
        image = (random.integers(0, 120, (count, 8, 8, 1)) + 60 * label[:, None, None, None]).astype(np.uint8)
        np.savez(tmp_path / f"tiny_{split}.npz", image=image, label=label)
    return tmp_path


def adversarial(**changes) -> recipes.Train:
    fields = {
        "dataset": "npz:tiny",
        "model": recipes.CNN(width=4),
        "objective": recipes.IKL(),
        "threat": ThreatModel(norm="Linf", eps=0.1),
        "attack": recipes.PGD(steps=2),
        "awp": recipes.AWP(first_epoch=2),
        "epochs": 3,
        "batch_size": 16,
        "optimizer": recipes.SGD(lr=0.05),
    }
    return recipes.Train(**{**fields, **changes})


def natural(**changes) -> recipes.Train:
    return adversarial(**{"objective": recipes.Natural(), "threat": None, "attack": None, "awp": None, **changes})


def run(recipe: recipes.Train, workdir: Path, data_dir: Path):
    workdir.mkdir(exist_ok=True)
    return train(recipe, workdir, device="cpu", data_dir=data_dir)


def without_seconds(events: list) -> list[dict]:
    """Epoch events and the result, less the time they took."""
    documents = [e.model_dump() if isinstance(e, Epoch) else e.result.model_dump() for e in events]
    return [{name: value for name, value in d.items() if name != "seconds"} for d in documents]


def facts(events: list) -> list[dict]:
    return without_seconds([e for e in events if not isinstance(e, Progress)])


L2 = {"threat": ThreatModel(norm="L2", eps=0.1), "attack": recipes.PGD(steps=2, loss="kl")}


@pytest.mark.parametrize(
    "recipe", [natural(), adversarial(), adversarial(**L2)], ids=["natural", "adversarial", "L2"]
)
def test_a_run_says_what_it_does(recipe, tmp_path, data_dir):
    events = list(run(recipe, tmp_path / "job", data_dir))
    progress = [e for e in events if isinstance(e, Progress)]
    assert [e.done for e in progress] == list(range(1, 10))  # 3 epochs of 16, 16 and 8 images
    assert all(e.total == 9 and e.rate > 0 for e in progress)
    assert progress[3].phase == "epoch 2 of 3"
    assert progress[-1].eta_seconds == 0

    epochs = [e for e in events if isinstance(e, Epoch)]
    assert [e.epoch for e in epochs] == [1, 2, 3]
    assert [e.lr for e in epochs] == [learning_rate(0.05, epoch, 3) for epoch in (1, 2, 3)]
    if recipe.threat is None:
        assert all(e.eps is None and e.adversarial_accuracy is None for e in epochs)
    else:
        assert [e.eps for e in epochs] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
        assert all(0 <= e.adversarial_accuracy <= 1 for e in epochs)

    assert isinstance(events[-1], Finished)
    result = events[-1].result
    loaded = load_checkpoint(tmp_path / "job" / "model.safetensors")
    assert loaded.sha256 == result.checkpoint_sha256
    assert (loaded.dataset, loaded.classes, loaded.channels) == ("npz:tiny", 3, 1)
    assert result.parameters == sum(p.numel() for p in loaded.model.parameters())
    assert result.seconds == pytest.approx(sum(e.seconds for e in epochs))


def test_natural_training_learns(tmp_path, data_dir):
    events = list(run(natural(epochs=30, augmentation="none", ema_decay=0.5), tmp_path / "job", data_dir))
    assert events[-1].result.clean_accuracy >= 0.9
    epochs = [e for e in events if isinstance(e, Epoch)]
    assert epochs[-1].loss < 0.5 * epochs[0].loss


def test_the_result_is_the_average_over_the_epochs(tmp_path, data_dir):
    recipe = natural(ema_decay=0.5)
    states = []
    for event in run(recipe, tmp_path / "job", data_dir):
        if isinstance(event, Epoch):
            states.append(load_state(tmp_path / "job" / "last.pt")["model"])
    averaged = load_checkpoint(tmp_path / "job" / "model.safetensors").model.state_dict()
    for name in ("conv1.weight", "linear.bias", "bn1.running_var"):
        expected = 0.25 * states[0][name] + 0.25 * states[1][name] + 0.5 * states[2][name]
        torch.testing.assert_close(averaged[name], expected)

    list(run(recipe.model_copy(update={"ema_decay": None}), tmp_path / "plain", data_dir))
    plain = load_checkpoint(tmp_path / "plain" / "model.safetensors").model.state_dict()
    assert all(torch.equal(plain[name], states[2][name]) for name in plain)


def test_awp_begins_with_its_first_epoch(tmp_path, data_dir):
    losses = {}
    for first_epoch in (2, 3, 4):
        recipe = adversarial(awp=recipes.AWP(first_epoch=first_epoch, gamma=0.1))
        events = list(run(recipe, tmp_path / f"from-{first_epoch}", data_dir))
        losses[first_epoch] = [e.loss for e in events if isinstance(e, Epoch)]
    without = [e.loss for e in run(adversarial(awp=None), tmp_path / "none", data_dir) if isinstance(e, Epoch)]
    assert losses[4] == without
    assert losses[3][:2] == without[:2]
    assert losses[3][2] != without[2]
    assert losses[2][:1] == without[:1]
    assert losses[2][1] != without[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("recipe", [natural(), adversarial(), adversarial(**L2)], ids=["natural", "Linf", "L2"])
def test_a_gpu_trains_and_resumes(recipe, tmp_path, data_dir):
    (tmp_path / "job").mkdir()
    attempt = train(recipe, tmp_path / "job", device="cuda", data_dir=data_dir)
    list(itertools.islice(attempt, 5))
    attempt.close()
    events = list(train(recipe, tmp_path / "job", device="cuda", data_dir=data_dir))
    assert [e.epoch for e in events if isinstance(e, Epoch)] == [1, 2, 3]
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("recipe", [natural(), adversarial()], ids=["natural", "adversarial"])
def test_two_runs_are_identical_and_another_seed_is_not(recipe, tmp_path, data_dir):
    first = facts(list(run(recipe, tmp_path / "a", data_dir)))
    torch.manual_seed(12345)  # the global generator has no say
    assert facts(list(run(recipe, tmp_path / "b", data_dir))) == first
    other = facts(list(run(recipe.model_copy(update={"seed": 1}), tmp_path / "c", data_dir)))
    assert other[-1]["checkpoint_sha256"] != first[-1]["checkpoint_sha256"]


@pytest.mark.parametrize("recipe", [natural(), adversarial()], ids=["natural", "adversarial"])
@pytest.mark.parametrize("stops", [[1], [3], [4], [5, 6], [2, 1, 1, 7], [12]], ids=str)
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


def test_a_killed_run_goes_on_from_the_last_epoch(tmp_path, data_dir):
    expected = facts(list(run(adversarial(), tmp_path / "straight", data_dir)))
    attempt = run(adversarial(), tmp_path / "job", data_dir)
    for event in attempt:
        if isinstance(event, Epoch) and event.epoch == 2:
            kept = (tmp_path / "job" / "last.pt").read_bytes()
            break
    next(attempt)
    attempt.close()
    (tmp_path / "job" / "last.pt").write_bytes(kept)  # as if killed without a chance to write
    events = list(run(adversarial(), tmp_path / "job", data_dir))
    assert [e.epoch for e in events[:2]] == [1, 2]
    assert facts(events) == expected


def test_a_finished_run_run_again_only_repeats_its_facts(tmp_path, data_dir):
    first = list(run(adversarial(), tmp_path / "job", data_dir))
    (tmp_path / "job" / "model.safetensors").unlink()
    again = list(run(adversarial(), tmp_path / "job", data_dir))
    assert not any(isinstance(e, Progress) for e in again)
    assert again == [e for e in first if not isinstance(e, Progress)]
    assert (tmp_path / "job" / "model.safetensors").exists()


def test_a_consumer_inherits_no_torch_modes(tmp_path, data_dir):
    for _ in run(adversarial(epochs=1), tmp_path / "job", data_dir):
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")


def test_images_limits_the_training_set(tmp_path, data_dir):
    events = list(run(natural(images=20, epochs=1), tmp_path / "job", data_dir))
    assert max(e.total for e in events if isinstance(e, Progress)) == 2
    with pytest.raises(ValueError, match="images is 41, but npz:tiny has 40 training images"):
        list(run(natural(images=41), tmp_path / "other", data_dir))


# --- what goes wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [natural(epochs=60), adversarial(epochs=60)], ids=["natural", "adversarial"])
def test_a_loss_that_is_not_finite_stops_the_run_with_advice(recipe, tmp_path, data_dir):
    recipe = recipe.model_copy(update={"optimizer": recipes.SGD(lr=1e20)})
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at epoch \d+, batch \d; try an optimizer.lr"):
        list(run(recipe, tmp_path / "job", data_dir))


def test_a_loss_that_is_not_finite_updates_nothing():
    model = build(recipes.CNN(width=2), channels=1, classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    x, y = torch.full((4, 1, 8, 8), torch.nan), torch.tensor([0, 1, 2, 0])
    settings = {
        "objective": recipes.IKL(),
        "attack": recipes.PGD(steps=1),
        "threat": ThreatModel(norm="Linf", eps=0.1),
        "awp": None,
        "noise_BCHW": torch.zeros_like(x),
    }
    with pytest.raises(FloatingPointError, match="loss is nan"):
        natural_update(model, optimizer, x, y)
    with pytest.raises(FloatingPointError, match="loss is nan"):
        ikl_update(model, optimizer, ClassPrior(3, temperature=1.0), x, y, **settings)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


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
