"""Judging a model: clean accuracy, then attack after attack on the images that still stand.

The test images are taken in chunks. A chunk's verdicts depend on the recipe, the checkpoint and the chunk's number
alone: chunks can be done in any order, anywhere, again. Each is kept in the work directory once it is done.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dkl.attacks.autoattack import ENGINE, expected_forwards, require_possible, run_attack
from dkl.attacks.loan import Loan
from dkl.batches import as_pixels, on_device
from dkl.datasets import DATASETS, Arrays, load
from dkl.events import ChunkDone, Finished, Progress, Stage
from dkl.recipes import Attack, Evaluate, fingerprint, show_model
from dkl.summary import say_once, summarise
from dkl.verify import Verdict, classify, verify
from dkl.weights import LoadedModel, replacing


def evaluate(
    recipe: Evaluate, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Iterator[Progress | ChunkDone | Finished]:
    """Judge `loaded` as `recipe` says; the last event is Finished. Stop by closing: a running attack ends.

    Chunks that `workdir` holds already are said again and not computed again. The model is moved to `device`, and
    its parameters lose their gradients. Raises ValueError where recipe, model, data and work directory do not fit.
    """
    arrays = _test_images(recipe, data_dir)
    _require_fit(recipe, loaded, arrays)
    loaded.model.to(device).eval().requires_grad_(False)
    task = _Task(recipe, loaded, *on_device(arrays, device))
    shelf = _Shelf(workdir, recipe=fingerprint(recipe), checkpoint=loaded.sha256)
    finished = {number: chunk for number in range(task.chunks) if (chunk := shelf.read(number))}
    yield from finished.values()
    for number in sorted(set(range(task.chunks)) - set(finished)):
        images_behind = sum(len(chunk.stages[0].standing) for chunk in finished.values())
        finished[number] = yield from _Chunk(task, number, images_behind).judge()
        shelf.write(finished[number])
        yield finished[number]
    result = summarise(
        list(finished.values()),
        arrays.labels,
        classes=loaded.classes,
        checkpoint_sha256=loaded.sha256,
        architecture=show_model(loaded.architecture),
        engine=ENGINE,
    )
    yield Finished(result=result)


def chunk_seed(seed: int, chunk: int) -> int:
    """The seed of all attacks on the chunk number `chunk` (from 0); below 2**32, unrelated between chunks."""
    return int(np.random.SeedSequence(seed, spawn_key=(chunk,)).generate_state(1)[0])


# --- before it starts --------------------------------------------------------------------------------------


def _test_images(recipe: Evaluate, data_dir: Path) -> Arrays:
    arrays = load(recipe.dataset, "test", data_dir)
    there = len(arrays.labels)
    if recipe.images is not None and recipe.images > there:
        raise ValueError(f"{recipe.dataset} has {there} test images, found images={recipe.images}; ask for fewer")
    return Arrays(arrays.images[: recipe.images], arrays.labels[: recipe.images], arrays.classes)


def _require_fit(recipe: Evaluate, loaded: LoadedModel, arrays: Arrays) -> None:
    _, height, width, channels = arrays.images.shape
    if channels != loaded.channels:
        raise ValueError(
            f"the images of {recipe.dataset} have {channels} channels, the checkpoint, trained on "
            f"{loaded.dataset}, takes {loaded.channels}; evaluate it on images like those"
        )
    fewer_is_fine = recipe.dataset not in DATASETS  # one's own test set may lack the last classes
    if arrays.classes > loaded.classes or (arrays.classes < loaded.classes and not fewer_is_fine):
        raise ValueError(
            f"{recipe.dataset} has {arrays.classes} classes, the checkpoint, trained on {loaded.dataset}, tells "
            f"{loaded.classes} apart; evaluate it on a data set with the classes that it knows"
        )
    require_possible(recipe.attacks(), recipe.threat, classes=loaded.classes, height=height, width=width)


# --- one chunk ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What all chunks have in common."""

    recipe: Evaluate
    loaded: LoadedModel
    images: Tensor
    """uint8 (N, C, H, W), on the device."""
    labels: Tensor
    """int64 (N,), on the device."""

    @property
    def chunks(self) -> int:
        return -(-len(self.labels) // self.recipe.chunk_size)

    @property
    def costs(self) -> tuple[int, ...]:
        """Forward passes that an image needs to survive each stage: the clean pass, then the attacks."""
        return (1, *(expected_forwards(attack, self.loaded.classes) for attack in self.recipe.attacks()))


class _Chunk:
    """One chunk on its way through the stages: the clean pass, then the attacks in order."""

    def __init__(self, task: _Task, number: int, images_behind: int) -> None:
        first = number * task.recipe.chunk_size
        self.task = task
        self.number = number
        self.first = first
        self.images_behind = images_behind
        self.x = as_pixels(task.images[first : first + task.recipe.chunk_size])
        self.y = task.labels[first : first + task.recipe.chunk_size]
        self.seed = chunk_seed(task.recipe.seed, number)
        self.loan = Loan(self.seed)
        self.standing = torch.ones_like(self.y, dtype=torch.bool)
        self.stages: list[Stage] = []
        self.rejected = 0
        self.warnings: list[str] = []

    def judge(self) -> Generator[Progress, None, ChunkDone]:
        """Go through all stages; an attack gets what still stands."""
        yield self._clean_pass()
        for attack in self.task.recipe.attacks():
            if self.standing.any():
                yield from self._attack(attack)
            else:
                self._end_stage(attack.kind, seconds=0.0)
        return ChunkDone(
            chunk=self.number,
            chunks=self.task.chunks,
            first_image=self.first,
            stages=tuple(self.stages),
            rejected=self.rejected,
            warnings=say_once(self.warnings),
        )

    def _clean_pass(self) -> Progress:
        started = perf_counter()
        with self.loan.turn():
            correct, finite = classify(self.task.loaded.model, self.x, self.y)
        self.standing = correct & finite
        self.warnings += [f"clean: {note}" for note in self.loan.take_notes()]
        if not finite.all():
            self.warnings.append(
                f"clean: {(~finite).sum()} images have logits that are not finite, and count as wrong"
            )
        seconds = perf_counter() - started
        self._end_stage("clean", seconds)
        return self._progress("clean", rate=len(self.y) / seconds)

    def _attack(self, attack: Attack) -> Iterator[Progress]:
        model, threat, classes = self.task.loaded.model, self.task.recipe.threat, self.task.loaded.classes
        alive = self.standing.nonzero().squeeze(1)
        x, y = self.x[alive], self.y[alive]
        claims = yield from run_attack(
            attack,
            model,
            x,
            y,
            threat,
            classes=classes,
            seed=self.seed,
            loan=self.loan,
            report=lambda forwards, seconds: self._progress(attack.kind, forwards / seconds, forwards),
        )
        started = perf_counter()
        with self.loan.turn():
            verdict = verify(model, x, claims.x_adv, y, threat)
        self.standing[alive[claims.claimed & verdict.broken]] = False
        self.warnings += [*claims.warnings, *self._refusals(attack.kind, claims.claimed, verdict)]
        self._end_stage(attack.kind, claims.seconds + perf_counter() - started)
        yield self._progress(attack.kind, rate=claims.forwards / claims.seconds)

    def _refusals(self, kind: str, claimed: Tensor, verdict: Verdict) -> list[str]:
        refused = claimed & ~verdict.broken
        if not refused.any():
            return []
        self.rejected += int(refused.sum())
        outside, not_finite = refused & ~verdict.allowed, refused & ~verdict.finite
        return [
            f"{kind}: the verifier refused {refused.sum()} images that the attack claims to have broken: "
            f"{outside.sum()} outside the ball or the pixel range, {not_finite.sum()} with logits that are not "
            f"finite, {(refused & ~verdict.fooled).sum()} classified correctly"
        ]

    def _end_stage(self, name: str, seconds: float) -> None:
        standing = "".join("1" if flag else "0" for flag in self.standing.tolist())
        self.stages.append(Stage(name=name, standing=standing, seconds=seconds))

    def _progress(self, name: str, rate: float, forwards: int = 0) -> Progress:
        """Where all chunks are, in forward passes; `forwards` belong to the stage that is still going on.

        What a fallen image would have needed counts as done, so the bar only moves forward, and ends at its end.
        """
        costs, stage = self.task.costs, len(self.stages)
        images, alive = len(self.y), int(self.standing.sum())
        survivors_need = alive * sum(costs[stage : stage + 1])
        done = (
            self.images_behind * sum(costs)
            + images * sum(costs[:stage])
            + (images - alive) * sum(costs[stage:])
            + min(forwards, survivors_need)
        )
        total = len(self.task.labels) * sum(costs)
        phase = f"chunk {self.number + 1} of {self.task.chunks}: {name}"
        eta = (total - done) / rate if rate else 0.0
        return Progress(phase=phase, done=done, total=total, rate=rate, eta_seconds=eta)


# --- chunks that are done ----------------------------------------------------------------------------------


class _StoredChunk(BaseModel):
    """A file in the work directory: the verdicts, and of which question."""

    recipe: str
    checkpoint: str
    chunk: ChunkDone


@dataclass(frozen=True)
class _Shelf:
    """The finished chunks of one question in a work directory."""

    workdir: Path
    recipe: str
    """Its fingerprint."""
    checkpoint: str
    """Its sha256."""

    def read(self, number: int) -> ChunkDone | None:
        """The finished chunk, None if there is none; ValueError if it answers another question."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            stored = _StoredChunk.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is damaged; delete it to judge its images again") from error
        if (stored.recipe, stored.checkpoint) != (self.recipe, self.checkpoint):
            raise ValueError(
                f"{path} holds verdicts of another recipe or checkpoint; "
                "use another work directory or empty this one"
            )
        return stored.chunk

    def write(self, chunk: ChunkDone) -> None:
        """Keep `chunk`; at every moment the file is complete or absent."""
        stored = _StoredChunk(recipe=self.recipe, checkpoint=self.checkpoint, chunk=chunk)
        with replacing(self._path(chunk.chunk)) as file:
            file.write(stored.model_dump_json().encode())

    def _path(self, number: int) -> Path:
        return self.workdir / f"chunk-{number:04d}.json"
