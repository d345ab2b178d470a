"""A finished job run again, and compared with what it found the first time.

    identical       every number, every file and every note is the same
    same numbers    all accuracies and, image by image, all verdicts are; something around them is not
    differs         an accuracy, a verdict on an image or the judged model is not the same

Times and machines are not compared; where they come from is told beside the verdict, to explain it.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from dkl.documents import show_pixels
from dkl.evidence import Evidence, EvidenceError, read_evidence
from dkl.paired import compare as compare_images
from service.client import Client, Job, ServiceError
from service.lineage import LEARNERS
from service.wording import fields

Verdict = Literal["identical", "same numbers", "differs"]
_NOT_COMPARED = frozenset({"seconds", "seconds_per_iteration", "provenance"})
_TOLD_ELSEWHERE = frozenset({"recipe", "fingerprint", "checkpoint_sha256"})
"""Of a provenance: they are compared anyhow."""
_LONGEST = 400
"""Letters of a value that differs; flags of 10,000 images are 1,700."""
_AROUND = frozenset({"notes", "warnings", "rejected", "forwards", "backwards", "engine", "evidence_sha256"})
"""What is no accuracy and no verdict."""
_SHOWN = 10


class Difference(NamedTuple):
    field: str
    before: Any
    after: Any


class Images(NamedTuple):
    """How many images two evaluations disagree about."""

    at: str
    """"clean", or the radius: "Linf 8/255"."""
    images: int
    only_before: int
    """Stood the first time, and did not now."""
    only_after: int


@dataclass
class Report:
    job: str
    rerun: str
    kind: str
    result: list[Difference] = field(default_factory=list)
    recipe: list[Difference] = field(default_factory=list)
    """Where a newer version reads the stored recipe with other fields."""
    images: list[Images] = field(default_factory=list)
    """Where the evidence is not the same byte for byte."""
    fell_otherwise: int = 0
    """Images that fell both times, to different attacks."""
    provenance: list[Difference] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """What could not be compared."""

    @property
    def where(self) -> list[str]:
        """What differs and counts."""
        fields = [found.field for found in self.result if self._counts(found.field)]
        return fields + [f"images, {found.at}" for found in self.images if found.only_before or found.only_after]

    @property
    def verdict(self) -> Verdict:
        if self.where:
            return "differs"
        return "same numbers" if self.result or self.recipe else "identical"

    @property
    def same(self) -> bool:
        """Whether the result is the same. Of a training it is the checkpoint, which other weights are not."""
        weights = any(found.field == "checkpoint_sha256" for found in self.result)
        return self.verdict != "differs" and not weights

    def document(self) -> dict[str, Any]:
        """For programs."""
        rows = {part: [row._asdict() for row in getattr(self, part)] for part in ("result", "recipe", "images")}
        return {
            **{"job": self.job, "rerun": self.rerun, "kind": self.kind},
            **{"verdict": self.verdict, "same": self.same, "where": self.where},
            **rows,
            "fell_otherwise": self.fell_otherwise,
            "provenance": [row._asdict() for row in self.provenance],
            "unknown": self.unknown,
        }

    def _counts(self, path: str) -> bool:
        leaf = re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
        return leaf not in _AROUND and not (self.kind in LEARNERS and leaf == "checkpoint_sha256")


# --- running it again -------------------------------------------------------------------------------------


def replay(client: Client, job_id: str, *, run: str | None, follow: Callable[[Job], object]) -> Report:
    """Run the job again, or take its `run` of before; `follow` is given the new job and returns when it has ended.

    ValueError where there is nothing to compare.
    """
    before = client.job(job_id)
    if before.status != "succeeded":
        raise ValueError(f"job {job_id} is {before.status}; only a result can be compared, see dklbench rerun")
    after = before.rerun() if run is None else client.job(run)
    if after.document["rerun_of"] != job_id and after.document["fingerprint"] != before.document["fingerprint"]:
        raise ValueError(f"job {run} is no run of job {job_id}: their recipes are not the same")
    follow(after)
    if after.refresh().status != "succeeded":
        why = f": {after.reason}" if after.reason else ""
        raise ValueError(f"job {after.id}, which runs job {job_id} again, is {after.status}{why}")
    report = compare(before.document, after.document)
    if any(found.field == "evidence_sha256" for found in report.result):
        with TemporaryDirectory() as folder:
            _add_evidence(report, before, after, Path(folder))
    return report


def _add_evidence(report: Report, before: Job, after: Job, folder: Path) -> None:
    try:
        for name, job in (("before", before), ("after", after)):
            job.download("evidence", folder / name)
        add_images(report, read_evidence(folder / "before"), read_evidence(folder / "after"))
    except (ServiceError, EvidenceError) as error:
        report.unknown.append(f"images: {error}")


# --- comparing --------------------------------------------------------------------------------------------


def compare(before: dict[str, Any], after: dict[str, Any]) -> Report:
    """Two ended jobs as the interface answers them; their images are not looked at."""
    report = Report(before["id"], after["id"], before["kind"])
    _compare(before["result"], after["result"], "", _NOT_COMPARED, report.result, report.unknown)
    if before["fingerprint"] != after["fingerprint"]:
        asked, asks = dict(fields(before["recipe"])), dict(fields(after["recipe"]))
        changed = [name for name in asked | asks if asked.get(name) != asks.get(name)]
        report.recipe = [Difference(name, asked.get(name), asks.get(name)) for name in changed]
    came, comes = (job["result"].get("provenance") for job in (before, after))
    if came is None or comes is None:
        report.unknown.append("provenance")
    else:
        _compare(came, comes, "", _TOLD_ELSEWHERE, report.provenance, report.unknown)
    return report


def add_images(report: Report, before: Evidence, after: Evidence) -> None:
    """Compare the verdicts image by image; EvidenceError where they are about different images."""
    found = compare_images(before, after)
    norm = before.about.question.threat.norm
    places = [("clean", found.clean), *((f"{norm} {show_pixels(eps)}", pairs) for eps, pairs in found.robust)]
    report.images = [Images(at, pairs.images, pairs.only_a, pairs.only_b) for at, pairs in places]
    fell = (before.stage >= 0) & (after.stage >= 0)
    report.fell_otherwise = int(np.count_nonzero(fell & (before.stage != after.stage)))


def _compare(
    before: Any, after: Any, path: str, skipped: frozenset[str], differences: list[Difference], unknown: list[str]
) -> None:
    """Collect where two documents differ, and what only one of them has; `path` ends where a name begins."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            if name in skipped:
                continue
            if name not in before or name not in after:
                unknown.append(f"{path}{name}")
            else:
                _compare(before[name], after[name], f"{path}{name}.", skipped, differences, unknown)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            _compare(one, other, f"{path[:-1]}[{place}].", skipped, differences, unknown)
    elif before != after:
        differences.append(Difference(path[:-1], before, after))


# --- telling ----------------------------------------------------------------------------------------------


def shown(report: Report) -> Group:
    """The report, to print."""
    parts: list[Table | str] = []
    for title, found in (
        ("the result", report.result),
        ("the recipe, as it is read now", report.recipe),
        ("where it comes from", report.provenance),
    ):
        if found:
            parts.append(_table(f"differs in {title}", found))
    for row in report.images:
        now, first = row.only_before, row.only_after
        told = f"{now} fell only now, {first} only the first time" if now or first else "every verdict is the same"
        parts.append(f"{row.images} images, {row.at}: {told}")
    if report.fell_otherwise:
        parts.append(f"{report.fell_otherwise} images fell both times, but to different attacks")
    if report.unknown:
        parts.append(f"[dim]could not be compared, because it is not kept: {escape(', '.join(report.unknown))}")
    return Group(*parts, f"[bold]{_VERDICTS[report.verdict]}[/]{_explanation(report)}")


_VERDICTS = {
    "identical": "[green]identical",
    "same numbers": "[yellow]same numbers",
    "differs": "[red]differs",
}


def _explanation(report: Report) -> str:
    runs = f"job {report.rerun} and job {report.job}"
    match report.verdict:
        case "identical":
            return f": {runs} found the same, to the last bit of what they keep"
        case "same numbers" if not report.same:
            return f": {runs} have the same accuracies, but other weights; what is judged on them may differ"
        case "same numbers":
            return f": {runs} have the same accuracies and verdicts; what differs is above"
        case "differs":
            more = len(report.where) - _SHOWN
            return f": {escape(', '.join(report.where[:_SHOWN]))}{f' and {more} more' if more > 0 else ''}"


def _table(title: str, found: Sequence[Difference]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in ("", "first", "now"):
        table.add_column(name, overflow="fold")
    for row in found[:_SHOWN]:
        table.add_row(escape(row.field), escape(_said(row.before)), escape(_said(row.after)))
    if len(found) > _SHOWN:
        table.add_row(f"and {len(found) - _SHOWN} more", "", "")
    return table


def _said(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
