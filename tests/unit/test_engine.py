"""Running a recipe: the order of events, resuming, stopping, and the device."""

import platform

import pytest
import torch
from trials import cnn, evaluation, write_images

from dkl.architectures import CNN
from dkl.engine import pick_device, run
from dkl.events import BatchDone, Epoch, Finished, Progress, Started
from dkl.protocols import JobResult
from dkl.recipes import RECIPE
from dkl.weights import CheckpointError, save_checkpoint

SUITE = [{"kind": "apgd-ce", "steps": 4}, {"kind": "square", "queries": 20}]


def training(**changes):
    document = {
        "kind": "train",
        "dataset": "digits",
        "model": {"kind": "cnn", "width": 2},
        "objective": {"kind": "natural"},
        "augmentation": None,
        "images": 256,
        "epochs": 2,
    }
    return RECIPE.validate_python({**document, **changes})


def never(_source):
    raise AssertionError("nothing is to be fetched")


def train_events(workdir, **changes):
    return run(training(**changes), workdir, device="cpu", data_dir=workdir, fetch=never)


@pytest.fixture
def checkpoint(tmp_path):
    """A file, and the function that names an evaluation's events."""
    model = cnn()
    write_images(tmp_path, model, 12)
    path = tmp_path / "model.safetensors"
    sha256 = save_checkpoint(path, model, architecture=CNN(width=4), channels=1, classes=10, dataset="npz:tiny")
    return path, sha256


def judge_events(checkpoint, workdir, **changes):
    path, sha256 = checkpoint
    recipe = evaluation(eps=0.01, chunk_size=5, **{"suite": SUITE, "model": {"checkpoint": sha256}, **changes})
    return run(recipe, workdir, device="cpu", data_dir=path.parent, fetch=lambda _: path)


def kinds(events):
    return [event.kind for event in events if not isinstance(event, Progress)]


# --- order -------------------------------------------------------------------------------------------------


def test_a_training_says_started_epochs_finished(tmp_path):
    events = list(train_events(tmp_path / "work"))
    assert kinds(events) == ["started", "epoch", "epoch", "finished"]
    started = events[0]
    assert isinstance(started, Started)
    assert (started.device, started.resumed) == ("cpu", False)
    assert started.versions["python"] == platform.python_version()
    assert started.versions["torch"] == torch.__version__.partition("+")[0]
    assert set(started.versions) == {"python", "torch", "numpy", "dkl-bench"}
    assert (tmp_path / "work" / "model.safetensors").exists()


def test_an_evaluation_says_started_batches_finished(checkpoint, tmp_path):
    events = list(judge_events(checkpoint, tmp_path / "work"))
    assert kinds(events) == ["started", *["batch"] * 8, "finished"]  # 12 images by 5, twice; square has 10 left
    assert events[0].versions["pyautoattack"] == "0.2.0"
    assert events[-1].result.checkpoint_sha256 == checkpoint[1]
    assert events[-1].result.clean_accuracy == 1.0


def test_nothing_happens_before_the_first_event_is_asked_for(checkpoint, tmp_path):
    judge_events(checkpoint, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_trained_model_can_be_judged(tmp_path):
    trained = list(train_events(tmp_path / "train"))[-1]
    recipe = evaluation(suite=SUITE, dataset="digits", images=20, model={"job": "0123456789ab"})
    asked = []

    def fetch(source):
        asked.append(source)
        return tmp_path / "train" / "model.safetensors"

    judged = list(run(recipe, tmp_path / "judge", device="cpu", data_dir=tmp_path, fetch=fetch))[-1]
    assert asked == [JobResult(job="0123456789ab")]
    assert judged.result.checkpoint_sha256 == trained.result.checkpoint_sha256
    assert judged.result.architecture == "CNN-2"


# --- resuming and stopping ---------------------------------------------------------------------------------


def test_a_training_goes_on_where_it_was_closed(tmp_path):
    whole = list(train_events(tmp_path / "whole"))[-1]
    events = train_events(tmp_path / "work")
    for event in events:
        if isinstance(event, Epoch):
            break
    events.close()
    resumed = list(train_events(tmp_path / "work"))
    assert resumed[0].resumed
    assert kinds(resumed) == ["started", "epoch", "epoch", "finished"]
    assert resumed[-1].result.checkpoint_sha256 == whole.result.checkpoint_sha256


def test_an_evaluation_goes_on_where_it_was_closed(checkpoint, tmp_path):
    whole = list(judge_events(checkpoint, tmp_path / "whole"))
    events = judge_events(checkpoint, tmp_path / "work")
    for event in events:
        if isinstance(event, BatchDone) and event.stage == 1:
            break
    events.close()
    resumed = list(judge_events(checkpoint, tmp_path / "work"))
    assert resumed[0].resumed
    assert kinds(resumed) == kinds(whole)
    assert resumed[4] == event
    assert flags(resumed) == flags(whole)
    assert resumed[-1].result.evidence_sha256 == whole[-1].result.evidence_sha256


def flags(events):
    return [(event.key, event.images, event.standing) for event in events if isinstance(event, BatchDone)]


def test_closing_closes_what_runs_inside(checkpoint, tmp_path):
    events = judge_events(checkpoint, tmp_path / "work", suite=[{"kind": "square", "queries": 10**9}])
    for event in events:
        if isinstance(event, Progress) and "square" in event.phase:
            break
    events.close()
    assert list(events) == []


# --- what does not fit -------------------------------------------------------------------------------------


def test_a_file_that_is_not_the_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=f"has sha256 {checkpoint[1]}, the recipe asks for {'1' * 64}"):
        list(judge_events(checkpoint, tmp_path / "work", model={"checkpoint": "1" * 64}))


def test_a_missing_data_set_is_said(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"other_test\.npz does not exist"):
        list(judge_events(checkpoint, tmp_path / "work", dataset="npz:other"))


# --- device ------------------------------------------------------------------------------------------------


def test_the_cpu_is_always_there():
    assert pick_device("cpu") == "cpu"
    assert pick_device() == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""])
def test_an_unknown_device_is_said(name):
    with pytest.raises(ValueError, match=f"unknown device '{name}'; choose from auto, cpu, cuda, cuda:N"):
        pick_device(name)


def test_a_device_that_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"there is no device 'cuda:99': torch sees \d+ GPUs; choose auto or cpu"):
        pick_device("cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_has_a_name(tmp_path):
    events = run(training(), tmp_path, device=pick_device("cuda"), data_dir=tmp_path, fetch=never)
    started = next(events)
    assert isinstance(started, Started)
    assert started.device == torch.cuda.get_device_name()
    *_, last = events
    assert isinstance(last, Finished)
