"""An evaluation that any number of workers share: which units come next, what follows from those that are known.

It goes through its stages (dkl/policies.py): the clean pass, then attacks, each on images that are left. Which
stages there are, and on which images, follows from the verdicts before; so every worker that knows the same units
comes to the same next ones, and to the same result. Units are taken in strictly in order. Where the recipe's
`stop_below` ends the evaluation within a stage, it ends after the same unit whoever judged which; those that
somebody judged beyond it never count.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dkl.attacks.reference import ENGINE as REFERENCE
from dkl.attacks.search import Precision, native_16_bit
from dkl.bench import Bench
from dkl.datasets import Arrays
from dkl.events import Adjusted, BatchDone, EvaluateResult, Progress
from dkl.evidence import About, EvidenceStage, data_sha256, pictured, write_evidence
from dkl.feasible import adaptations, choose, require_feasible
from dkl.policies import Stage, planned, stages
from dkl.protocols import Evaluate
from dkl.provenance import provenance
from dkl.recipes import fingerprint
from dkl.summary import Ran, summarise
from dkl.tally import Rows, Tally
from dkl.units import Judged, Unit
from dkl.way import Way
from dkl.weights import LoadedModel

Known = Callable[[Unit], Judged | None]


def own_precision(recipe: Evaluate, device: str) -> Precision:
    """What this machine proposes for the searches of `recipe` that may be in 16 bits."""
    return "float32" if recipe.policy == "exact" else native_16_bit(torch.device(device))


class Evaluation:
    """What one worker knows of an evaluation, and its means to judge units of it."""

    def __init__(self, recipe: Evaluate, loaded: LoadedModel, arrays: Arrays, *, device: str) -> None:
        """`arrays` is the whole test split. The model is moved to `device` and looked at on a few images.

        ValueError where recipe, model and images do not fit; MemoryError where the memory does not.
        """
        chosen = choose(recipe, len(arrays.labels))
        require_feasible(recipe, loaded, arrays)
        self.recipe, self.loaded, self.device = recipe, loaded, device
        self.fingerprint, self.checkpoint = fingerprint(recipe), loaded.sha256
        self.events: list[Adjusted | BatchDone] = []
        """The facts of all units that have been taken in, in order."""
        self.bench = Bench(recipe, loaded, arrays, chosen, device)
        self.precision = own_precision(recipe, device)
        """Of searches that may be in 16 bits: this machine's proposal until unit (0, 0), whose judge's counts."""
        self.way = Way(recipe, loaded.classes, len(chosen), in_16_bits=self.precision != "float32")
        self._data_sha256 = data_sha256(arrays, chosen)
        self._warnings = self.bench.inspect()
        self._tally = Tally(chosen, arrays.labels[chosen], recipe.seed)
        self._ran: list[Ran] = []
        self._units: deque[Unit] = deque()  # of the current stage, not taken in
        self._stages: Iterator[Stage] | None = None
        self._devices: dict[str, None] = {}
        self._over = self._stopped_early = False
        self._begin(None, np.arange(len(chosen)))

    def advance(self, known: Known) -> list[Unit]:
        """Take in, in order, what is known; what the current stage has left then, nothing where all is over.

        `known` is asked for the next unit only: the first of those returned is not known, the others may be.
        """
        while not self._over:
            if not self._units:
                self._next_stage()
            elif (judged := known(self._units[0])) is not None:
                self._take_in(self._units.popleft(), judged)
            else:
                break
        return list(self._units)

    def judge(self, unit: Unit, *, ahead: int = 0, workers: int = 1) -> Generator[Progress, None, Judged]:
        """Judge one of the units that `advance` returned last; close the generator to stop.

        For telling how far the whole is: `ahead` images of the others are judged already, and `workers` are at it.
        MemoryError where not even one image fits.
        """
        report = partial(self.way.progress, unit, ahead=ahead, workers=workers)
        return self.bench.judge(unit, self.precision, report)

    def result(self, workdir: Path) -> EvaluateResult:
        """What came out, when all is over; `workdir` then holds the evidence."""
        assert self._over
        notes = adaptations(planned(self.recipe), self.loaded.classes)
        adjusted = {event.key: event.sentence for event in self.events if isinstance(event, Adjusted)}
        about = self._about()
        evidence = self._tally.evidence(about, *self._pictures())
        return summarise(
            self.recipe,
            self._tally,
            self._ran,
            classes=self.loaded.classes,
            checkpoint_sha256=self.checkpoint,
            architecture=self.loaded.architecture,
            preprocessing=self.loaded.preprocessing,
            engine=about.engine,
            precision=self.precision,
            notes=(*self.loaded.notes, *notes, *self._tally.notes, *adjusted.values()),
            warnings=(*self._warnings, *self._tally.warnings),
            stopped_early=self._stopped_early,
            evidence_sha256=write_evidence(workdir / "evidence.safetensors", evidence),
            data_sha256=self._data_sha256,
            provenance=provenance(
                self.recipe,
                self.device,
                dataset_sha256=self._data_sha256,
                checkpoint_sha256=self.checkpoint,
                devices=self._devices,
                packages=self.loaded.packages,
            ),
        )

    # --- stages ---

    def _begin(self, stage: Stage | None, rows: Rows) -> None:
        """None: the clean pass."""
        number, size = len(self._ran), self.recipe.chunk_size
        batches = [rows[first : first + size] for first in range(0, len(rows), size)]
        self._units = deque(
            Unit(number, batch, len(batches), members, stage) for batch, members in enumerate(batches)
        )
        if stage is None:
            self._ran.append(Ran("clean", "clean", 0.0, len(rows)))
            self.way.begin(cost=1, share=1.0, members=len(rows))
        else:
            self._ran.append(Ran(stage.attack.kind, stage.phase, stage.eps, len(rows)))
            self.way.begin(cost=self.way.passes(stage.attack), share=stage.share, members=len(rows))

    def _next_stage(self) -> None:
        """Begin it, unless none is left or what was asked for is certain to be missed: then all is over."""
        self.way.end()
        if self._stages is None:
            self._stages = stages(self.recipe, self._tally, self.precision)
        stage = next(self._stages, None)
        if stage is None or self._hopeless():
            self._over = True
        else:
            self._begin(stage, stage.rows)

    def _take_in(self, unit: Unit, judged: Judged) -> None:
        if (unit.stage, unit.batch) == (0, 0) and judged.precision is not None:
            self.precision = judged.precision
            self.way.plan(in_16_bits=self.precision != "float32")
        if judged.device is not None:
            self._devices[judged.device] = None
        self._tally.add(unit.stage, judged.found)
        self._ran[-1].events.append(judged.event)
        self.events += [*judged.adjusted, judged.event]
        self.way.end_batch(len(unit.rows))
        if unit.stage and self._units and self._hopeless():
            self._units.clear()
            self._over = True

    def _hopeless(self) -> bool:
        """Whether the robust accuracy at threat.eps is certain to be below what was asked for."""
        if self.recipe.stop_below is not None:
            radius = self.recipe.radii().index(self.recipe.threat.eps)
            self._stopped_early = bool(self._tally.robust(radius).mean() < self.recipe.stop_below)
        return self._stopped_early

    # --- the end ---

    def _pictures(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """The clean images that the evidence holds: which, and (G, C, H, W)."""
        images = self.bench.images
        rows = pictured(self._data_sha256, len(images), tuple(images.shape[1:]))
        return rows, images[torch.from_numpy(rows).to(images.device)].cpu().numpy()

    def _about(self) -> About:
        own = f"dkl-bench {version('dkl-bench')}"
        return About(
            recipe=self.recipe.model_dump(mode="json"),
            fingerprint=self.fingerprint,
            checkpoint_sha256=self.checkpoint,
            data_sha256=self._data_sha256,
            stages=tuple(EvidenceStage(name=ran.name, phase=ran.phase, eps=ran.eps) for ran in self._ran),
            engine=REFERENCE if self.recipe.engine == "pyautoattack" else own,
            versions={"torch": torch.__version__, "numpy": np.__version__, "dkl-bench": version("dkl-bench")},
        )
