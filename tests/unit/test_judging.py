"""Sharing an evaluation: any number of workers, in any order and with duplicates, come to the same bytes."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from torch import nn
from trials import batches, cnn, evaluation, judge, loaded, quick_suite, result, write_images

from dkl.architectures import CNN
from dkl.attacks.search import Precision
from dkl.datasets import load
from dkl.engine import open_evaluation, run, started
from dkl.events import BatchDone, EvaluateResult, Finished, Progress
from dkl.evidence import read_evidence, write_evidence
from dkl.judging import Evaluation
from dkl.protocols import Evaluate
from dkl.shelf import read_judged, write_judged
from dkl.tally import Finding
from dkl.units import Judged, Unit
from dkl.weights import save_checkpoint

SUITE = quick_suite(steps=4, targets=2, queries=30)
RANDOM_SUITE = [{"kind": "apgd-ce", "steps": 4, "eot": 3}]


@pytest.fixture(autouse=True)
def no_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "float32")


class Noisy(nn.Module):
    """Draws from the process's random numbers in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = cnn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 0.05 * torch.randn(len(x), 10)


class Store:
    """Where workers put what they have judged: one file per unit, the first that comes counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.of: dict[tuple[int, int], Path] = {}

    def put(self, evaluation: Evaluation, judged: Judged) -> None:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.safetensors"
        write_judged(path, judged, recipe=evaluation.fingerprint, checkpoint=evaluation.checkpoint)
        self.of.setdefault((judged.event.stage, judged.event.batch), path)

    def get(self, evaluation: Evaluation, unit: Unit) -> Judged | None:
        path = self.of.get((unit.stage, unit.batch))
        subject = {"recipe": evaluation.fingerprint, "checkpoint": evaluation.checkpoint}
        return path and read_judged(path, unit, **subject)


def worked(evaluation: Evaluation, unit: Unit, **about: int) -> tuple[list[Progress], Judged]:
    """What is said while the unit is judged, and what comes out."""
    said, work = [], evaluation.judge(unit, **about)
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            return said, end.value


def opened(recipe: Evaluate, model: nn.Module, data_dir: Path) -> Evaluation:
    arrays = load(recipe.dataset, "test", data_dir)
    return Evaluation(recipe, loaded(model), arrays, device="cpu")


def shared(workers: list[Evaluation], folder: Path, seed: int) -> None:
    """All work at their own pace on any unit that they may, whoever has judged it already, and publish late."""
    store, chance = Store(folder), random.Random(seed)
    unpublished: list[tuple[Evaluation, Judged]] = []
    at_it = list(workers)
    while at_it:
        worker = chance.choice(at_it)
        units = worker.advance(lambda unit, worker=worker: store.get(worker, unit))
        if not units:
            at_it.remove(worker)
        elif unpublished and chance.random() < 0.5:
            store.put(*unpublished.pop(chance.randrange(len(unpublished))))
        else:
            unpublished.append((worker, worked(worker, chance.choice(units))[1]))


def facts(events: list[Any]) -> list[BatchDone]:
    return [event.model_copy(update={"seconds": 0.0}) for event in events if isinstance(event, BatchDone)]


def without_seconds(result: EvaluateResult) -> dict[str, Any]:
    return result.model_dump(exclude={"seconds": True, "stages": {"__all__": {"seconds"}}})


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"stop_below": 0.75},
    {"curve": [0.005, 0.02], "policy": "audited"},
    {"policy": "fast"},
    {"policy": "screen", "curve": [0.02], "stop_below": 0.5},
    {"policy": "audited", "stop_below": 0.7},
    {"engine": "pyautoattack"},
    {"engine": "pyautoattack", "stop_below": 0.75},
]


LONG = {2, 6}
"""Of these questions: the audit at several radii, and the reference engine without a bound."""


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in range(len(QUESTIONS))],
)
def test_three_workers_come_to_what_one_comes_to(seed: int, tmp_path: Path) -> None:
    question, model = QUESTIONS[seed], cnn()
    write_images(tmp_path, model, 14)
    recipe = evaluation(**{"eps": 0.01, "suite": SUITE, "chunk_size": 3, **question})
    alone = judge(recipe, model, tmp_path)
    workers = [opened(recipe, model, tmp_path) for _ in range(3)]
    (folder := tmp_path / "store").mkdir()
    shared(workers, folder, seed)
    expected = without_seconds(result(alone))
    for number, worker in enumerate(workers):
        (left := tmp_path / str(number)).mkdir()
        ended = worker.result(left)
        assert without_seconds(ended) == expected
        assert ended.seconds == workers[0].result(left).seconds  # all have read the same files
        assert facts(worker.events) == facts(alone)
        evidence = [path / "evidence.safetensors" for path in (left, tmp_path / "work")]
        assert evidence[0].read_bytes() == evidence[1].read_bytes()


def test_a_random_model_answers_all_workers_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, cnn(), 12)
    recipe = evaluation(eps=0.01, suite=RANDOM_SUITE, chunk_size=4)
    model = Noisy()
    expected = without_seconds(result(judge(recipe, model, tmp_path)))
    workers = [opened(recipe, model, tmp_path) for _ in range(2)]
    (folder := tmp_path / "store").mkdir()
    shared(workers, folder, 0)
    assert [without_seconds(worker.result(tmp_path)) for worker in workers] == [expected, expected]


def test_models_judged_on_the_same_images_keep_the_same_pictures(tmp_path: Path) -> None:
    write_images(tmp_path, cnn(), 300)
    kept = []
    for seed in (0, 1):
        recipe = evaluation(seed=seed, chunk_size=100 + seed, suite=[{"kind": "apgd-ce", "steps": 1}])
        judge(recipe, cnn(seed=seed), tmp_path, tmp_path / str(seed))
        kept.append(read_evidence(tmp_path / str(seed) / "evidence.safetensors"))
    one, other = kept
    assert not np.array_equal(one.predicted, other.predicted)
    assert len(one.x_clean) == 256
    np.testing.assert_array_equal(one.rows_clean, other.rows_clean)
    np.testing.assert_array_equal(one.x_clean, other.x_clean)
    images = load("npz:tiny", "test", tmp_path).images
    np.testing.assert_array_equal(one.x_clean, images[one.rows_clean].transpose(0, 3, 1, 2))


# --- begun by the version before ---------------------------------------------------------------------------


def as_before_predictions(path: Path) -> None:
    """A file of judged units as the version wrote it that knew no predictions."""
    with safetensors.safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["dkl"])
        arrays = {name: file.get_tensor(name) for name in Finding._fields if name != "predicted"}
    del about["predicted_sha256"]
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"dkl": json.dumps(about)}))


def test_an_evaluation_that_the_version_before_began_is_finished(tmp_path: Path) -> None:
    """Nothing is judged again; the evidence is of the format of then."""
    model = cnn()
    write_images(tmp_path, model, 14)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=5)
    whole = result(judge(recipe, model, tmp_path))
    evidence = read_evidence(tmp_path / "work" / "evidence.safetensors")
    verdicts = sorted((tmp_path / "work").glob("stage-*"))
    for path in verdicts[:4]:
        as_before_predictions(path)
    for path in verdicts[8:]:
        path.unlink()
    before = {path.name: path.read_bytes() for path in verdicts[:8]}
    went_on = result(judge(recipe, model, tmp_path))
    assert {name: (tmp_path / "work" / name).read_bytes() for name in before} == before
    sha256 = write_evidence(tmp_path / "expected", evidence.in_format_1())
    assert without_seconds(went_on) == without_seconds(whole) | {"evidence_sha256": sha256}


# --- stopping within a stage -------------------------------------------------------------------------------


def test_what_was_judged_beyond_an_early_stop_does_not_count(tmp_path: Path) -> None:
    model = cnn()
    write_images(tmp_path, model, 30)
    recipe = evaluation(eps=0.01, suite=SUITE, chunk_size=4, stop_below=0.85)
    alone = judge(recipe, model, tmp_path)
    counted = [batch for batch in batches(alone) if batch.stage == 1]
    assert 1 < len(counted) < counted[0].batches
    worker, known = opened(recipe, model, tmp_path), {}

    def take(unit: Unit) -> Judged | None:
        return known.get((unit.stage, unit.batch))

    while (units := worker.advance(take))[0].stage == 0:
        known[0, units[0].batch] = worked(worker, units[0])[1]
    for unit in reversed(units[1:]):
        known[1, unit.batch] = worked(worker, unit)[1]
        assert worker.advance(take) == units  # whatever is known behind a gap: nothing is taken in
    known[1, 0] = worked(worker, units[0])[1]
    assert worker.advance(take) == []
    assert facts(worker.events) == facts(alone)
    assert without_seconds(worker.result(tmp_path)) == without_seconds(result(alone))


def test_the_next_unit_alone_is_asked_for(tmp_path: Path) -> None:
    model = cnn()
    write_images(tmp_path, model, 12)
    worker = opened(evaluation(suite=RANDOM_SUITE, chunk_size=3), model, tmp_path)
    asked: list[Unit] = []

    def nothing(unit: Unit) -> None:
        asked.append(unit)

    units = worker.advance(nothing)
    assert asked == units[:1]
    assert [(unit.stage, unit.batch, unit.batches) for unit in units] == [(0, batch, 4) for batch in range(4)]
    assert [unit.title for unit in units[:2]] == ["clean, batch 1 of 4", "clean, batch 2 of 4"]


# --- the precision of the search ---------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("policy", ["fast", "audited", "screen"])
def test_whoever_judges_the_first_unit_decides_the_precision(
    policy: str, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cnn()
    write_images(tmp_path, model, 12)
    recipe = evaluation(eps=0.01, suite=SUITE[:1], chunk_size=6, policy=policy)
    own: list[Precision] = ["float32", "bfloat16"]
    ended, workers = [], []
    for number, precision in enumerate(own):
        monkeypatch.setattr("dkl.judging.native_16_bit", lambda device, precision=precision: precision)
        ended.append(result(judge(recipe, model, tmp_path, tmp_path / str(number))))
        workers.append(opened(recipe, model, tmp_path))
    assert [each.precision for each in ended] == own
    (folder := tmp_path / "store").mkdir()
    store = Store(folder)
    for worker in (workers[first], workers[1 - first]):  # both judge it; the first one's counts
        store.put(worker, worked(worker, worker.advance(lambda unit: None)[0])[1])
    turn = 0
    while any(units := [worker.advance(lambda unit, w=worker: store.get(w, unit)) for worker in workers]):
        store.put(workers[turn % 2], worked(workers[turn % 2], units[turn % 2][0])[1])
        turn += 1
    assert [worker.precision for worker in workers] == [own[first]] * 2
    for worker in workers:
        assert without_seconds(worker.result(tmp_path)) == without_seconds(ended[first])


def test_a_run_that_goes_on_elsewhere_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cnn()
    write_images(tmp_path, model, 8)
    recipe = evaluation(eps=0.01, suite=SUITE[:1], policy="fast")
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "bfloat16")
    whole = result(judge(recipe, model, tmp_path))
    for path in (tmp_path / "work").glob("stage-00[1-9]-*"):
        path.unlink()
    monkeypatch.setattr("dkl.judging.native_16_bit", lambda device: "float32")
    assert without_seconds(result(judge(recipe, model, tmp_path))) == without_seconds(whole)
    assert whole.precision == "bfloat16"


# --- how far it is -----------------------------------------------------------------------------------------


def test_progress_counts_what_others_have_done_and_how_many_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dkl.attacks.loan.SECONDS_PER_TURN", 0.0)
    model = cnn()
    write_images(tmp_path, model, 12)
    recipe = evaluation(eps=0.001, suite=[{"kind": "square", "queries": 40}], chunk_size=3)
    worker, known = opened(recipe, model, tmp_path), {}
    while (units := worker.advance(lambda unit: known.get((unit.stage, unit.batch))))[0].stage == 0:
        known[0, units[0].batch] = worked(worker, units[0])[1]
    total = 12 * (1 + 41)
    alone = worked(worker, units[0])[0]
    assert alone[0].total == total
    assert 12 < alone[0].done < alone[-1].done <= 12 + 3 * 41
    helped = worked(worker, units[1], ahead=6, workers=4)[0]
    assert 12 + 6 * 41 < helped[0].done < helped[-1].done <= 12 + 9 * 41 + 1e-6
    again = worked(worker, units[0])[0]  # it has shown more before
    assert {said.done for said in again} == {helped[-1].done}
    assert helped[-1].eta_seconds == pytest.approx((total - helped[-1].done) / helped[-1].rate)


# --- through the engine ------------------------------------------------------------------------------------


@pytest.fixture
def question(tmp_path: Path) -> Iterator[tuple[Evaluate, dict[str, Any]]]:
    """A recipe for a stored checkpoint, and what opens it."""
    model = cnn()
    write_images(tmp_path, model, 12)
    path = tmp_path / "model.safetensors"
    about = {"architecture": CNN(width=4), "channels": 1, "classes": 10, "dataset": "npz:tiny"}
    sha256 = save_checkpoint(path, model, **about)
    recipe = evaluation(eps=0.01, suite=SUITE[:2], chunk_size=5, model={"checkpoint": sha256})
    return recipe, {"device": "cpu", "data_dir": tmp_path, "fetch": lambda _: path}


def test_a_worker_opens_an_evaluation_by_its_recipe(question: Any, tmp_path: Path) -> None:
    recipe, means = question
    [first, *_, last] = run(recipe, tmp_path / "work", **means)
    assert first == started(recipe, "cpu", resumed=False)
    assert isinstance(last, Finished)
    (folder := tmp_path / "store").mkdir()
    store = Store(folder)
    worker = open_evaluation(recipe, **means)
    while units := worker.advance(lambda unit: store.get(worker, unit)):
        store.put(worker, worked(worker, units[0])[1])
    assert isinstance(last.result, EvaluateResult)
    assert without_seconds(worker.result(tmp_path)) == without_seconds(last.result)


def test_what_does_not_fit_is_said_at_once(question: Any) -> None:
    recipe, means = question
    with pytest.raises(ValueError, match="npz:tiny has 12 test images, found images=13; ask for fewer"):
        open_evaluation(recipe.model_copy(update={"images": 13}), **means)


def test_closing_ends_a_unit_and_nothing_of_it_is_left(question: Any) -> None:
    recipe, means = question
    worker = open_evaluation(recipe.model_copy(update={"chunk_size": 3}), **means)
    units = worker.advance(lambda unit: None)
    with closing(worker.judge(units[0])) as work:
        next(work)
    assert worker.advance(lambda unit: None) == units
    assert worker.events == []


# --- where a result comes from -----------------------------------------------------------------------------


def test_the_result_names_everybody_s_device(question: Any, tmp_path: Path) -> None:
    recipe, means = question
    worker, known = open_evaluation(recipe, **means), {}
    while units := worker.advance(lambda unit: known.get((unit.stage, unit.batch))):
        judged = worked(worker, units[0])[1]
        elsewhere = judged.event.batch == 1
        known[units[0].stage, units[0].batch] = judged._replace(device="a GPU" if elsewhere else judged.device)
    found = worker.result(tmp_path).provenance
    assert found.device == "cpu, a GPU"
    assert found.checkpoint_sha256 == worker.checkpoint
    assert found.recipe == recipe.model_dump(mode="json")
    assert len(found.dataset_sha256) == 64
    assert found.driver is None
    assert found.flags["deterministic_algorithms"] is False
    assert found.flags["float32_matmul_precision"] == torch.get_float32_matmul_precision()
    assert found.platform
    assert found.processor
