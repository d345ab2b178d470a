"""Judging a model: clean accuracy, then attack after attack on the images that still stand.

An evaluation is a sequence of stages (dkl/policies.py): the clean pass, then attacks, each on images that are
left, in full batches. A batch is the unit of work and of resuming: it is kept in the work directory once it is
done. Our own attacks give an image the same verdict in whatever batch it comes.
"""

import json
from collections.abc import Callable, Generator, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from dkl.attacks.hunt import hunt
from dkl.attacks.loan import Loan, by_turns
from dkl.attacks.outcome import Outcome
from dkl.attacks.reference import ENGINE as REFERENCE
from dkl.attacks.reference import attack_by_reference
from dkl.attacks.search import Precision, Search, native_16_bit
from dkl.batches import as_pixels, on_device
from dkl.datasets import Arrays, load
from dkl.documents import ThreatModel
from dkl.events import BatchDone, EvaluateResult, Finished, Progress
from dkl.evidence import About, EvidenceStage, data_sha256, write_evidence
from dkl.files import replacing
from dkl.fit import require_fit
from dkl.packing import of_attack, of_clean_pass
from dkl.policies import Stage, planned, stages
from dkl.preflight import inspect
from dkl.protocols import Evaluate
from dkl.recipes import fingerprint
from dkl.shelf import Shelf
from dkl.suites import APGD, Square, Suite, TargetedAPGD, TargetedFAB, require_targets
from dkl.summary import Ran, say_once, summarise
from dkl.tally import Finding, Rows, Tally
from dkl.verify import classify
from dkl.way import Clock, Way
from dkl.weights import LoadedModel

INSPECTED = 32
"""Images that the model is looked at with before any attack."""

Judged = tuple[BatchDone, Finding]


def evaluate(
    recipe: Evaluate, loaded: LoadedModel, workdir: Path, *, device: str, data_dir: Path
) -> Iterator[Progress | BatchDone | Finished]:
    """Judge `loaded` as `recipe` says; the last event is Finished. Stop by closing: a running attack ends.

    Batches that `workdir` holds already are said again and not computed again. At the end `workdir` holds the
    evidence. The model is moved to `device`, and its parameters lose their gradients. Raises ValueError where
    recipe, model, data and work directory do not fit.
    """
    arrays = load(recipe.dataset, "test", data_dir)
    chosen = _choose(recipe, len(arrays.labels))
    _require_fit(recipe, loaded, arrays)
    loaded.model.to(device).eval().requires_grad_(False)
    yield from _Evaluation(recipe, loaded, workdir, arrays, chosen, torch.device(device)).run()


def batch_seed(seed: int, batch: int) -> int:
    """The seed of what is random in the model or in pyautoattack, in batch number `batch`; below 2**32."""
    return int(np.random.SeedSequence(seed, spawn_key=(batch,)).generate_state(1)[0])


# --- before it starts --------------------------------------------------------------------------------------


def _choose(recipe: Evaluate, there: int) -> NDArray[np.int64]:
    """The positions of the images to judge, ascending."""
    wanted = there if recipe.images is None else recipe.images
    if wanted > there:
        raise ValueError(f"{recipe.dataset} has {there} test images, found images={wanted}; ask for fewer")
    if recipe.sample == "first":
        return np.arange(wanted)
    return np.sort(np.random.default_rng(recipe.seed).choice(there, wanted, replace=False))


def _require_fit(recipe: Evaluate, loaded: LoadedModel, arrays: Arrays) -> None:
    require_fit(recipe.dataset, loaded, arrays)
    if loaded.classes < 2:
        raise ValueError("a model with one class cannot be fooled; robust accuracy needs at least 2 classes")
    if not isinstance(recipe.suite, str):  # the published versions adapt
        require_targets(recipe.suite, loaded.classes)
    _, height, width, _ = arrays.images.shape
    has_square = any(isinstance(attack, Square) for attack in planned(recipe))
    if has_square and recipe.threat.norm != "Linf" and min(height, width) < 5:
        raise ValueError(
            f"square under {recipe.threat.norm} needs images of at least 5 x 5 pixels, found {height} x {width}; "
            "leave it out of the suite"
        )
    if recipe.engine == "pyautoattack" and loaded.classes < 4:
        for attack in recipe.attacks():
            if attack.kind in ("apgd-dlr", "apgd-t"):
                raise ValueError(
                    f"pyautoattack's {attack.kind} is not possible with {loaded.classes} classes; "
                    "use the engine dkl, which adapts it, or a suite of apgd-ce, fab and square"
                )


def adaptations(attacks: Suite, classes: int) -> list[str]:
    """How these attacks differ from AutoAttack's on a model that tells `classes` classes apart, in sentences."""
    notes = []
    targeted = [a for a in attacks if isinstance(a, TargetedAPGD | TargetedFAB) and a.targets > classes - 1]
    if fewer := dict.fromkeys(attack.kind for attack in targeted):
        wrong = f"all {classes - 1} wrong ones" if classes > 2 else "the wrong one"
        notes.append(f"with {classes} classes {' and '.join(fewer)} aim at {wrong}")
    dlr = dict.fromkeys(a.kind for a in attacks if isinstance(a, TargetedAPGD) or a.kind == "apgd-dlr")
    if dlr and classes < 4:
        notes.append(
            f"the DLR loss of {' and '.join(dlr)} is adapted to {classes} classes: it needs the logits of "
            "more to be invariant under scaling"
        )
    return notes


# --- the whole of it ---------------------------------------------------------------------------------------


class _Evaluation:
    """One evaluation on its way through its stages."""

    def __init__(
        self,
        recipe: Evaluate,
        loaded: LoadedModel,
        workdir: Path,
        arrays: Arrays,
        chosen: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self.recipe, self.loaded, self.workdir, self.device = recipe, loaded, workdir, device
        self.model = loaded.model
        self.data_sha256 = data_sha256(arrays, chosen)
        self.images, self.labels = on_device(
            Arrays(arrays.images[chosen], arrays.labels[chosen], arrays.classes), device
        )
        self.tally = Tally(chosen, arrays.labels[chosen], recipe.seed)
        self.shelf = Shelf(workdir, recipe=fingerprint(recipe), checkpoint=loaded.sha256)
        self.fast = self._fast_precision()
        self.searches: dict[Precision, Search] = {}
        self.ran: list[Ran] = []
        self.way = Way(recipe, loaded.classes, len(chosen), in_16_bits=self.fast != "float32")
        self.stopped_early = False

    def _fast_precision(self) -> Precision:
        """Of the searches that may be in 16 bits; a run that goes on elsewhere keeps what it began with."""
        if self.recipe.policy == "exact":
            return "float32"
        noted = self.workdir / "precision.json"
        if not noted.exists():
            with replacing(noted) as file:
                file.write(json.dumps(native_16_bit(self.device)).encode())
        return TypeAdapter(Precision).validate_json(noted.read_bytes())

    def run(self) -> Iterator[Progress | BatchDone | Finished]:
        warnings = self._inspect()
        everything = np.arange(len(self.tally.images))
        yield from self._stage(
            Ran("clean", "clean", 0.0, len(everything)), everything, self._clean, cost=1, share=1.0
        )
        for stage in stages(self.recipe, self.tally, self.fast):
            if self._hopeless():
                break
            ran = Ran(stage.attack.kind, stage.phase, stage.eps, len(stage.rows))
            cost = self.way.passes(stage.attack)
            yield from self._stage(ran, stage.rows, partial(self._attack, stage), cost, stage.share)
        yield self.way.arrived()
        yield Finished(result=self._result(warnings))

    def _inspect(self) -> tuple[str, ...]:
        attacks = planned(self.recipe)
        with Loan(self.recipe.seed).turn():  # what the model warns about comes again, in the clean pass
            return inspect(
                self.model,
                as_pixels(self.images[:INSPECTED]),
                self.labels[:INSPECTED],
                classes=self.loaded.classes,
                random_expected=any(isinstance(attack, APGD) and attack.eot > 1 for attack in attacks),
                needs_gradient=not all(isinstance(attack, Square) for attack in attacks),
            )

    def _hopeless(self) -> bool:
        """Whether the robust accuracy at threat.eps is certain to be below what was asked for."""
        if self.recipe.stop_below is None or self.stopped_early:
            return self.stopped_early
        radius = self.recipe.radii().index(self.recipe.threat.eps)
        self.stopped_early = bool(self.tally.robust(radius).mean() < self.recipe.stop_below)
        return self.stopped_early

    def _stage(
        self,
        ran: Ran,
        rows: Rows,
        judge: Callable[[int, int, int, Rows], Generator[Progress, None, Judged]],
        cost: int,
        share: float,
    ) -> Iterator[Progress | BatchDone]:
        """Go through one stage batch by batch; what the shelf holds is taken from there."""
        number = len(self.ran)
        self.ran.append(ran)
        self.way.begin(ran.name, cost, share, len(rows))
        batches = [rows[i : i + self.recipe.chunk_size] for i in range(0, len(rows), self.recipe.chunk_size)]
        for batch, members in enumerate(batches):
            kept = self.shelf.read(number, batch, members)
            if kept is None:
                event, found = yield from judge(number, batch, len(batches), members)
                self.shelf.write(event, found)
            else:
                event, found = kept
            self.tally.add(number, found)
            ran.events.append(event)
            self.way.end_batch(len(members))
            yield event
            if number and batch + 1 < len(batches) and self._hopeless():
                return
        self.way.end()

    # --- one batch ---

    def _clean(self, number: int, batch: int, batches: int, rows: Rows) -> Generator[Progress, None, Judged]:
        started = perf_counter()
        x, y = self._pixels(rows)
        loan = Loan(batch_seed(self.recipe.seed, batch))
        with loan.turn():
            correct, finite = classify(self.model, x, y)
        notes = loan.take_notes()
        if not finite.all():
            notes.append(f"{(~finite).sum()} images have logits that are not finite, and count as wrong")
        found = of_clean_pass(rows, ~(correct & finite), tuple(x.shape[1:]))
        seconds = perf_counter() - started
        event = self._event(number, batch, batches, found, len(rows), 0, seconds, 0, notes)
        yield self.way.progress(batch, batches, len(rows), len(rows), len(rows) / seconds)
        return event, found

    def _attack(
        self, stage: Stage, number: int, batch: int, batches: int, rows: Rows
    ) -> Generator[Progress, None, Judged]:
        x, y = self._pixels(rows)
        threat = ThreatModel(norm=self.recipe.threat.norm, eps=stage.eps)
        loan = Loan(batch_seed(self.recipe.seed, batch))
        clock = Clock()
        outcome = yield from clock.follow(
            self._work(stage, x, y, rows, threat, loan),
            lambda forwards, rate: self.way.progress(batch, batches, len(rows), forwards, rate),
        )
        started = perf_counter()
        with loan.turn():
            found = of_attack(rows, outcome, self.model, x, y, threat)
        seconds = clock.seconds + perf_counter() - started
        forwards, backwards = int(outcome.forwards.sum()), int(outcome.backwards.sum())
        notes = [*loan.take_notes(), *_suspicions(outcome)]
        event = self._event(number, batch, batches, found, forwards, backwards, seconds, outcome.rejected, notes)
        return event, found

    def _work(
        self, stage: Stage, x: Tensor, y: Tensor, rows: Rows, threat: ThreatModel, loan: Loan
    ) -> Generator[int, None, Outcome]:
        classes, seed = self.loaded.classes, self.recipe.seed
        if self.recipe.engine == "pyautoattack":
            return attack_by_reference(
                stage.attack, self.model, x, y, threat, classes=classes, seed=loan.seed, loan=loan
            )
        images = torch.from_numpy(self.tally.images[rows]).to(self.device)
        search = self._search(stage.precision)
        chase = hunt(
            stage.attack,
            self.model,
            search,
            x,
            y,
            threat,
            images=images,
            classes=classes,
            seed=seed,
            use=stage.use,
            lanes=self.recipe.chunk_size,
        )
        return by_turns(chase, loan)

    def _search(self, precision: Precision) -> Search:
        if precision not in self.searches:
            with Loan(self.recipe.seed).turn():  # its own, so that no attack's random numbers depend on it
                self.searches[precision] = Search(self.model, as_pixels(self.images[:INSPECTED]), precision)
        return self.searches[precision]

    def _pixels(self, rows: Rows) -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(rows).to(self.device)
        return as_pixels(self.images[at]), self.labels[at]

    def _event(
        self,
        number: int,
        batch: int,
        batches: int,
        found: Finding,
        forwards: int,
        backwards: int,
        seconds: float,
        rejected: int,
        notes: list[str],
    ) -> BatchDone:
        ran = self.ran[number]
        return BatchDone(
            stage=number,
            name=ran.name,
            phase=ran.phase,
            eps=ran.eps,
            batch=batch,
            batches=batches,
            images=tuple(self.tally.images[found.rows].tolist()),
            standing="".join("0" if flag else "1" for flag in found.broken),
            forwards=forwards,
            backwards=backwards,
            seconds=seconds,
            rejected=rejected,
            warnings=say_once(f"{ran.name}: {note}" for note in notes),
        )

    # --- the end ---

    def _result(self, warnings: tuple[str, ...]) -> EvaluateResult:
        own = f"dkl-bench {version('dkl-bench')}"
        engine = REFERENCE if self.recipe.engine == "pyautoattack" else own
        about = About(
            recipe=self.recipe.model_dump(mode="json"),
            fingerprint=fingerprint(self.recipe),
            checkpoint_sha256=self.loaded.sha256,
            data_sha256=self.data_sha256,
            stages=tuple(EvidenceStage(name=ran.name, phase=ran.phase, eps=ran.eps) for ran in self.ran),
            engine=engine,
            versions={"torch": torch.__version__, "numpy": np.__version__, "dkl-bench": version("dkl-bench")},
        )
        notes = adaptations(planned(self.recipe), self.loaded.classes)
        return summarise(
            self.recipe,
            self.tally,
            self.ran,
            classes=self.loaded.classes,
            checkpoint_sha256=self.loaded.sha256,
            architecture=self.loaded.architecture,
            preprocessing=self.loaded.preprocessing,
            engine=engine,
            precision=self.fast,
            notes=(*self.loaded.notes, *notes, *self.tally.notes),
            warnings=warnings,
            stopped_early=self.stopped_early,
            evidence_sha256=write_evidence(
                self.workdir / "evidence.safetensors", self.tally.evidence(about, tuple(self.images.shape[1:]))
            ),
        )


def _suspicions(outcome: Outcome) -> list[str]:
    notes = []
    if not outcome.finite:
        notes.append("some logits were not finite numbers, so the attack may have missed adversarial images")
    if flat := int(outcome.flat.sum()):
        notes.append(f"{flat} images have gradients of exactly zero, so gradients may mislead here")
    if outcome.rejected:
        notes.append(
            f"the verifier refused {outcome.rejected} images that the search took for broken: outside the ball or "
            "the pixel range, with logits that are not finite, or classified correctly in float32"
        )
    return notes
