"""Evidence in a terminal: proved with its model, or compared with another. Torch is needed to prove it only."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from dkl.datasets import load, show_name
from dkl.documents import Normalisation, show_pixels
from dkl.evidence import Evidence, read_evidence
from dkl.paired import Pairs, compare
from dkl.protocols import show_protocol
from service.handle import Event
from service.terminal_bars import Bars

if TYPE_CHECKING:
    from dkl.reverify import VerificationReport
    from dkl.weights import LoadedModel

BATCH_SIZE = 256


@dataclass(frozen=True)
class Proof:
    """What came out when evidence was checked."""

    ok: bool
    """Whether every claim holds."""
    clean_accuracy: float
    robust_accuracy: dict[str, float]
    """As it was found again, by the radius in pixels: {"0.2": 0.85}."""
    outcome: dict[str, Any]
    """As service/verifications.py records it."""
    shown: Group
    """To print."""


def prove(path: Path, *, checkpoint: Path, data_dir: Path, device: str) -> Proof:
    """Prove the evidence in `path`, with a progress bar."""
    evidence = read_evidence(path)
    arrays = load(evidence.about.question.dataset, "test", data_dir)
    from dkl.engine import pick_device  # torch: seconds that a damaged file should not cost
    from dkl.events import Progress
    from dkl.reverify import verify_evidence

    device = pick_device(device)
    with Bars() as bars:
        bar = bars.add(path.name)
        bars.follow(bar, [Event("started", {"device": device})])
        for event in verify_evidence(
            evidence, _model(evidence, checkpoint), arrays, device=device, batch_size=BATCH_SIZE
        ):
            if isinstance(event, Progress):
                bars.follow(bar, [Event(event.kind, event.model_dump())])
            else:
                report = event
    return Proof(
        ok=report.ok,
        clean_accuracy=report.clean_accuracy,
        robust_accuracy=dict(zip(map(show_pixels, report.radii), map(float, report.robust_accuracy), strict=True)),
        outcome=_outcome(path, report, device),
        shown=_proof(evidence, report),
    )


def _outcome(path: Path, report: "VerificationReport", device: str) -> dict[str, Any]:
    from dkl.provenance import device_name

    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "evidence_sha256": sha256,
        "images": report.images,
        "adversarial": report.adversarial,
        "faults": report.faults,
        "sentences": list(report.sentences),
        "device": device_name(device),
        "versions": {package: version(package) for package in ("dkl-bench", "torch", "numpy")},
    }


def _model(evidence: Evidence, checkpoint: Path) -> "LoadedModel":
    """The network in `checkpoint`, with the preprocessing that it was judged with."""
    from dkl.sources import normalised
    from dkl.weights import load_checkpoint

    loaded, source = load_checkpoint(checkpoint), evidence.about.recipe.get("model")
    expected = source.get("preprocessing") if isinstance(source, dict) else None
    return normalised(loaded, Normalisation.model_validate(expected)) if expected else loaded


def _proof(evidence: Evidence, report: "VerificationReport") -> Group:
    about, norm = evidence.about, evidence.about.question.threat.norm
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("checkpoint", about.checkpoint_sha256[:16])
    table.add_row("judged by", escape(_judge(evidence)))
    table.add_row("images", f"{report.images} of {escape(show_name(about.question.dataset))}")
    table.add_row("adversarial images", f"{report.adversarial}, {report.in_8_bits} of them in 8 bits")
    table.add_row("clean accuracy", f"{report.clean_accuracy:.2%}")
    for eps, accuracy in zip(report.radii, report.robust_accuracy, strict=True):
        table.add_row(f"robust accuracy, {norm} {show_pixels(eps)}", f"[bold]{accuracy:.2%}")
    if report.ok:
        return Group(table, "[green]proved:[/] every claim holds")
    more = report.faults - len(report.sentences)
    listed = [f"  {sentence}" for sentence in report.sentences] + ([f"  and {more} more"] if more else [])
    return Group(table, f"[red]not proved:[/] {report.faults} claims do not hold", *listed)


@dataclass(frozen=True)
class ImageByImage:
    """Two models on the same images."""

    document: dict[str, Any]
    """For programs."""
    shown: Group
    """To print."""


def comparison(a: Path, b: Path) -> ImageByImage:
    """The models of two evidence files on the same images."""
    first, second = read_evidence(a), read_evidence(b)
    compared, norm = compare(first, second), first.about.question.threat.norm
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))  # fits into 80 columns
    table.add_column("", no_wrap=True)
    for name in ("A", "B", "both/A/B/none", "A - B (95 %)", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("clean", *_row(compared.clean))
    for eps, pairs in compared.robust:
        table.add_row(f"{norm} {show_pixels(eps)}", *_row(pairs))
    lines = [
        f"{name}: {escape(str(path))}, {escape(_judge(e))}"
        for name, path, e in (("A", a, first), ("B", b, second))
    ]
    if _judge(first) != _judge(second):
        lines.append("[yellow]note:[/] judged in different ways; the weaker judge breaks fewer images")
    dataset = escape(show_name(first.about.question.dataset))
    shown = Group(
        *lines,
        f"{compared.images} images of {dataset}",
        table,
        "both/A/B/none: images on which both models stand, only A, only B, neither",
        "95 %: Newcombe's interval for paired fractions; p: McNemar's exact test",
    )
    document = {
        **{"a": str(a), "b": str(b), "judged_a": _judge(first), "judged_b": _judge(second)},
        **{"dataset": first.about.question.dataset, "images": compared.images, "norm": norm},
        "clean": _numbers(compared.clean),
        "robust": [{"eps": eps, **_numbers(pairs)} for eps, pairs in compared.robust],
    }
    return ImageByImage(document, shown)


def _numbers(pairs: Pairs) -> dict[str, Any]:
    counts = {"both": pairs.both, "only_a": pairs.only_a, "only_b": pairs.only_b, "neither": pairs.neither}
    return {
        **counts,
        "difference": pairs.difference,
        "interval": list(pairs.interval()),
        "p_value": pairs.p_value(),
    }


def _row(pairs: Pairs) -> list[str]:
    low, high = pairs.interval()
    return [
        f"{(pairs.both + pairs.only_a) / pairs.images:.2%}",
        f"{(pairs.both + pairs.only_b) / pairs.images:.2%}",
        f"{pairs.both}/{pairs.only_a}/{pairs.only_b}/{pairs.neither}",
        f"{100 * pairs.difference:+.2f} ({100 * low:+.2f}..{100 * high:+.2f})",
        f"{pairs.p_value():.1g}",
    ]


def _judge(evidence: Evidence) -> str:
    recipe = evidence.about.recipe
    protocol = show_protocol(recipe.get("suite", "standard"), str(recipe.get("policy", "exact")))
    return f"{protocol}, {evidence.about.engine}"
