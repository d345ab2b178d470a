"""Evaluation: pyautoattack's verdicts, a closed form, a verifier that believes nothing, and resuming."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import nn
from trials import (
    KINDS,
    SHA256,
    Linear,
    cnn,
    evaluation,
    loaded,
    quick_adversary,
    quick_suite,
    standing,
    write_images,
)

from dkl.datasets import DatasetError
from dkl.evaluate import chunk_seed, evaluate
from dkl.events import ChunkDone, Finished, Progress
from dkl.weights import LoadedModel

EFFORT = {"steps": 6, "targets": 3, "queries": 60, "restarts": 2}


def judge(recipe, model, tmp_path, **about):
    """All events."""
    checkpoint = model if isinstance(model, LoadedModel) else loaded(model, **about)
    workdir = tmp_path / "work"
    workdir.mkdir(exist_ok=True)
    return list(evaluate(recipe, checkpoint, workdir, device="cpu", data_dir=tmp_path))


def result(events):
    assert isinstance(events[-1], Finished)
    return events[-1].result


def chunks(events):
    return [event for event in events if isinstance(event, ChunkDone)]


# --- the verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.01), ("L2", 0.12), ("L1", 0.6)])
def test_every_stage_agrees_with_pyautoattack(norm, eps, tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 24)
    recipe = evaluation(norm, eps, suite=quick_suite(**EFFORT), chunk_size=16, seed=3)
    done = chunks(judge(recipe, model, tmp_path))
    assert [chunk.first_image for chunk in done] == [0, 16]
    for chunk, part in zip(done, (slice(0, 16), slice(16, 24)), strict=True):
        assert chunk.rejected == 0
        assert [stage.name for stage in chunk.stages] == ["clean", *KINDS]
        for stage, count in zip(chunk.stages[1:], range(1, 7), strict=True):
            adversary = quick_adversary(model, norm, eps, chunk_seed(3, chunk.chunk), **EFFORT)
            adversary.attacks_to_run = KINDS[:count]
            assert stage.standing == standing(adversary, x[part], y[part]), stage.name
    final = "".join(chunk.stages[-1].standing for chunk in done)
    assert 4 <= final.count("1") <= 20  # there was something to find, and something to miss


def nearest_border(model: Linear, x: torch.Tensor, y: torch.Tensor, dual: float) -> torch.Tensor:
    """Distance of each image to the nearest other class: min_k (z_y - z_k) / ||w_y - w_k||_dual."""
    logits = model(x).double()
    gaps = logits.gather(1, y[:, None]) - logits
    widths = torch.linalg.vector_norm(model.weight[y][:, None] - model.weight, dual, dim=2).double()
    return (gaps / widths).masked_fill(nn.functional.one_hot(y, 5).bool(), float("inf")).min(dim=1).values


@pytest.mark.parametrize(("norm", "dual"), [("Linf", 1), ("L2", 2), ("L1", float("inf"))])
def test_a_linear_model_has_the_robust_accuracy_of_the_closed_form(norm, dual, tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = Linear(torch.randn(5, 64, generator=generator))
    images = torch.randint(
        110, 146, (120, 8, 8, 1), generator=generator, dtype=torch.uint8
    )  # grey: far from 0 and 1
    x = images.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        y = model(x).argmax(dim=1)
        distance = nearest_border(model, x, y, dual)
    eps = distance.median().item()
    decided = (distance / eps - 1).abs() > 0.03  # L1 APGD comes near the border, not to it
    np.savez(tmp_path / "tiny_test.npz", image=images[decided].numpy(), label=y[decided].numpy())
    suite = [{"kind": "apgd-ce"}, {"kind": "apgd-t"}, {"kind": "fab-t", "steps": 20}]
    outcome = result(judge(evaluation(norm, eps, suite=suite), model, tmp_path, classes=5))
    assert outcome.clean_accuracy == 1.0
    assert outcome.robust_accuracy == (distance[decided] > eps).double().mean().item()
    assert 0.3 < outcome.robust_accuracy < 0.7


def test_five_classes_are_enough_for_the_standard_version(tmp_path):
    model = cnn(classes=5)
    x, y = write_images(tmp_path, model, 6)
    suite = quick_suite(steps=3, targets=9, queries=10)
    [chunk] = chunks(judge(evaluation(eps=0.005, suite=suite), model, tmp_path, classes=5))
    adversary = quick_adversary(model, "Linf", 0.005, chunk_seed(0, 0), steps=3, targets=4, queries=10)
    assert chunk.stages[-1].standing == standing(adversary, x, y)


def test_wrong_images_are_not_attacked(tmp_path):
    model = cnn()
    x, y = write_images(tmp_path, model, 6)
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    np.savez(tmp_path / "tiny_test.npz", image=images, label=(y.numpy() + 1) % 10)
    events = judge(evaluation(), model, tmp_path)
    assert [stage.standing for stage in chunks(events)[0].stages] == ["000000"] * 5
    assert [stage.seconds for stage in chunks(events)[0].stages[1:]] == [0.0] * 4
    assert result(events).robust_accuracy == 0.0
    [progress] = [event for event in events if isinstance(event, Progress)]
    assert progress.done == progress.total


def test_chunks_have_seeds_of_their_own():
    seeds = [chunk_seed(seed, chunk) for seed in (0, 1, 2**63 - 1) for chunk in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert chunk_seed(0, 0) == 3757552657  # kept for ever: stored verdicts depend on it


# --- the verifier ------------------------------------------------------------------------------------------


def far(x):
    return (x + 0.5).clamp(0, 1)


def nan(x):
    return torch.full_like(x, torch.nan)


def nothing(x):
    return x


def beyond(x):
    return x - 2.0


@pytest.mark.parametrize("cheat", [far, nan, nothing, beyond])
def test_an_attack_that_cheats_breaks_nothing(cheat, tmp_path, monkeypatch):
    def lie(_self, x, y, *, batch_size):
        return cheat(x), (y + 1) % 10

    monkeypatch.setattr(AutoAttack, "run_standard_evaluation", lie)
    model = cnn()
    write_images(tmp_path, model, 6)
    events = judge(evaluation(suite=[{"kind": "apgd-ce"}]), model, tmp_path)
    assert [stage.standing for stage in chunks(events)[0].stages] == ["111111", "111111"]
    assert result(events).robust_accuracy == 1.0
    assert result(events).rejected == 6
    [warning] = result(events).warnings
    assert warning.startswith("apgd-ce: the verifier refused 6 images that the attack claims to have broken")


class NanOffTheGrid(nn.Module):
    """Whatever is no image of 8-bit pixels gives NaN; the first `clean` images of a clean batch too."""

    def __init__(self, clean=0):
        super().__init__()
        self.inner, self.clean = cnn(), clean

    def forward(self, x):
        off_grid = ((x * 255).round() / 255 - x).abs().flatten(1).amax(dim=1) > 1e-6
        off_grid[: self.clean] = True
        return torch.where(off_grid[:, None], torch.nan, self.inner(x))


def test_nan_logits_are_no_misclassification(tmp_path):
    write_images(tmp_path, cnn(), 8)
    suite = [{"kind": "apgd-ce", "steps": 3}]
    outcome = result(judge(evaluation(suite=suite), NanOffTheGrid(), tmp_path))
    assert outcome.robust_accuracy == outcome.clean_accuracy == 1.0
    assert outcome.rejected == 8
    assert "8 with logits that are not finite" in outcome.warnings[1]


def test_nan_logits_are_no_correct_answer(tmp_path):
    write_images(tmp_path, cnn(), 8)
    suite = [{"kind": "apgd-ce", "steps": 1}]
    outcome = result(judge(evaluation(suite=suite), NanOffTheGrid(clean=2), tmp_path))
    assert outcome.clean_accuracy == 6 / 8
    assert outcome.warnings[0] == "clean: 2 images have logits that are not finite, and count as wrong"


# --- the events --------------------------------------------------------------------------------------------


def test_progress_only_moves_forward_and_arrives(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    suite = quick_suite(steps=20, targets=3, queries=1500)
    events = judge(evaluation(eps=0.01, suite=suite, chunk_size=8), model, tmp_path)
    steps = [event for event in events if isinstance(event, Progress)]
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert len({step.total for step in steps}) == 1
    assert steps[-1].eta_seconds == 0
    assert all(step.rate > 0 for step in steps)
    assert steps[0].phase == "chunk 1 of 3: clean"
    assert steps[-1].phase == "chunk 3 of 3: square"
    assert len(steps) > 3 * 7  # reports from inside the attacks, too


def test_closing_ends_a_long_attack(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 8)
    threads = threading.active_count()
    recipe = evaluation(eps=0.0001, suite=[{"kind": "square", "queries": 10**9}])
    events = evaluate(recipe, loaded(model), tmp_path, device="cpu", data_dir=tmp_path)
    for _ in range(3):
        next(events)
    assert threading.active_count() == threads + 1
    started = time.monotonic()
    events.close()
    assert time.monotonic() - started < 2
    assert threading.active_count() == threads
    assert list(tmp_path.glob("chunk-*")) == []


def test_the_caller_keeps_its_random_numbers_and_gradients(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 8)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    suite = quick_suite(steps=3, targets=2, queries=20)
    events = evaluate(evaluation(suite=suite), loaded(model), tmp_path, device="cpu", data_dir=tmp_path)
    for _ in events:
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.is_grad_enabled()
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_training_model_is_judged_in_eval_mode(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 8)
    checkpoint = loaded(model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = result(judge(evaluation(suite=[{"kind": "apgd-ce", "steps": 2}]), checkpoint, tmp_path))
    assert outcome.clean_accuracy == 1.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_result_says_what_was_judged(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    outcome = result(judge(evaluation(images=10, suite=[{"kind": "apgd-ce", "steps": 2}]), model, tmp_path))
    assert outcome.images == 10
    assert outcome.checkpoint_sha256 == SHA256
    assert outcome.architecture == "CNN-4"
    assert outcome.engine == "pyautoattack 0.2.0"
    assert len(outcome.class_robust_accuracy) == 10


# --- resuming ----------------------------------------------------------------------------------------------

SUITE = quick_suite(steps=4, targets=2, queries=30)


def verdicts(events):
    return [(chunk.chunk, [stage.standing for stage in chunk.stages]) for chunk in chunks(events)]


def test_a_resumed_run_gives_the_same_verdicts(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=6)
    whole = judge(recipe, model, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with closing(evaluate(recipe, loaded(model), other, device="cpu", data_dir=tmp_path)) as events:
        stopped = []
        for event in events:
            stopped.append(event)
            if len(chunks(stopped)) == 2:
                break
    resumed = list(evaluate(recipe, loaded(model), other, device="cpu", data_dir=tmp_path))
    assert resumed[:2] == chunks(stopped)
    assert verdicts(resumed) == verdicts(whole)
    first = next(event for event in resumed if isinstance(event, Progress))
    assert first.done >= first.total * 12 / 20
    again = list(evaluate(recipe, loaded(model), other, device="cpu", data_dir=tmp_path))
    assert again == [*chunks(resumed), resumed[-1]]


def test_chunks_may_be_missing_anywhere(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 20)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=6)
    whole = judge(recipe, model, tmp_path)
    (tmp_path / "work" / "chunk-0001.json").unlink()
    resumed = judge(recipe, model, tmp_path)
    assert [chunk.chunk for chunk in chunks(resumed)] == [0, 2, 3, 1]
    assert sorted(verdicts(resumed)) == sorted(verdicts(whole))
    assert result(resumed).class_robust_accuracy == result(whole).class_robust_accuracy


@pytest.mark.parametrize("change", [{"seed": 1}, {"eps": 0.02}, {"images": 5}])
def test_chunks_of_another_recipe_are_an_error(change, tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=SUITE), model, tmp_path)
    with pytest.raises(ValueError, match=r"chunk-0000\.json holds verdicts of another recipe or checkpoint"):
        judge(evaluation(suite=SUITE, **change), model, tmp_path)


def test_chunks_of_another_checkpoint_are_an_error(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=SUITE), model, tmp_path)
    other = LoadedModel(**{**vars(loaded(model)), "sha256": "1" * 64})
    with pytest.raises(ValueError, match="use another work directory or empty this one"):
        judge(evaluation(suite=SUITE), other, tmp_path)


def test_a_damaged_chunk_is_an_error(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 6)
    judge(evaluation(suite=SUITE), model, tmp_path)
    path = tmp_path / "work" / "chunk-0000.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged; delete it to judge its images again"):
        judge(evaluation(suite=SUITE), model, tmp_path)


# --- what does not fit -------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    model = cnn()
    write_images(tmp_path, model, 30)
    return model


@pytest.mark.parametrize(
    ("recipe", "about", "sentence"),
    [
        ({"images": 31}, {}, "npz:tiny has 30 test images, found images=31; ask for fewer"),
        ({}, {"channels": 3}, "images of npz:tiny have 1 channels, the checkpoint, trained on npz:tiny, takes 3"),
        ({}, {"classes": 2}, r"npz:tiny has \d+ classes, the checkpoint, trained on npz:tiny, tells 2 apart"),
        ({"dataset": "digits"}, {"classes": 100}, "digits has 10 classes, the checkpoint, .*, tells 100 apart"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(recipe, about, sentence, tiny, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        judge(evaluation(**recipe), tiny, tmp_path, **about)


def test_three_classes_need_another_suite(tmp_path):
    model = cnn(classes=3)
    write_images(tmp_path, model, 6)
    with pytest.raises(
        ValueError, match="apgd-t is not possible with 3 classes: the targeted DLR loss needs at least 4"
    ):
        judge(evaluation(), model, tmp_path, classes=3)
    suite = [{"kind": "apgd-ce", "steps": 3}, {"kind": "fab", "steps": 3}, {"kind": "square", "queries": 9}]
    assert result(judge(evaluation(suite=suite), model, tmp_path, classes=3)).clean_accuracy == 1.0


def test_missing_data_is_said(tmp_path):
    with pytest.raises(DatasetError, match=r"tiny_test\.npz does not exist"):
        judge(evaluation(), cnn(), tmp_path)
