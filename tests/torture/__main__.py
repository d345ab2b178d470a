"""Run all jobs twice, calmly and under random faults, and compare.

    make torture               # at least 100 faults, 30 jobs
    make torture QUICK=1       # at least 20 faults, within ten minutes on two cores

Starts its own PostgreSQL cluster and Redis, an API process and two Celery workers, with proxies between them, and
restarts what dies, as `restart: unless-stopped` does. The data directory is a small file system in memory; who may
not mount one gets a namespace of mounts, and where that is forbidden too, the disk is never full.

The first run has no faults and says what to expect. In the second, a seed chooses faults, targets and pauses; how
they meet the jobs is up to the machine. Readers follow the events of every job through all of it, and must be
told every event of the ledger exactly once and in order. In the end all jobs have succeeded, with the same
weights, the same verdict on every image and every adversarial pixel the same; no row of the leaderboard is there
twice; no process, no work directory, no seat and no chunk is left. (A GPU is held by a process.)

The last line is one JSON object: `jobs`, `finished` (succeeded), `faults` (while jobs were open), `different`
(jobs whose result is not the calm run's), `duplicates` (rows and jobs that are there twice), `lost_events`,
`problems` (whatever else is wrong).
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from torture.deployment import Deployment
from torture.machinery import in_a_namespace_of_its_own
from torture.questions import families
from torture.report import Report
from torture.run import Left, Run
from torture.witnesses import differences, unlike_evidence


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer faults and jobs, within ten minutes")
    parser.add_argument("--faults", type=int, help="default: 110, with --quick 22")
    parser.add_argument("--jobs", type=int, help="a multiple of 3; default: 30, with --quick 12")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="a folder; the report gets a name of its own there")
    arguments = parser.parse_args()
    in_a_namespace_of_its_own()
    faults = arguments.faults or (22 if arguments.quick else 110)
    jobs = arguments.jobs or (12 if arguments.quick else 30)
    report = Report()
    report.say(f"{jobs} jobs, {faults} faults, seed {arguments.seed}")
    root = Path(tempfile.mkdtemp(prefix="torture-"))
    root.chmod(0o755)  # PostgreSQL may run as another user
    began = time.monotonic()
    calm = _run(root / "calm", jobs, report, None, arguments.seed)
    calm_seconds = time.monotonic() - began
    report.say(f"the calm run took {calm_seconds:.0f} s")
    tortured = _run(root / "tortured", jobs, report, faults, arguments.seed)
    numbers = _compare(calm, tortured, report)
    numbers |= {"seconds": round(time.monotonic() - began), "seed": arguments.seed}
    sound = numbers["finished"] == jobs and not any(
        numbers[key] for key in ("different", "duplicates", "lost_events", "problems")
    )
    if sound:
        shutil.rmtree(root, ignore_errors=True)
    else:
        report.say(f"logs, files and databases are kept in {root}")
    report.say(json.dumps(numbers))
    if arguments.report:
        report.write(arguments.report, "torture-quick" if arguments.quick else "torture")
    return 0 if sound else 1


def _run(root: Path, jobs: int, report: Report, faults: int | None, seed: int) -> Left:
    on = Deployment(root)
    if not on.disk.limited:
        report.say("no small file system may be mounted here: the disk is never full")
    on.start()
    run = Run(on, families(jobs), report.say)
    patience = 60.0 * jobs  # on a busy machine; it only ends a run that hangs
    return run.calm(patience) if faults is None else run.tortured(faults, random.Random(seed), patience)


def _compare(calm: Left, tortured: Left, report: Report) -> dict[str, int]:
    """The numbers of the last line; whatever is behind them is said."""
    for kind, count in sorted(tortured.faults.items()):
        report.say(f"{count:5}  {kind}")
    different = 0
    lost: list[str] = []
    for title, outcome in tortured.outcomes.items():
        expected = calm.outcomes[title]
        unlike = differences(expected.essence, outcome.essence)
        if expected.evidence and outcome.evidence:
            unlike += unlike_evidence(expected.evidence, outcome.evidence)
        different += bool(unlike)
        lost += [f"{title}: {sentence}" for sentence in outcome.lost_events]
        reason = f" ({outcome.reason})" if outcome.reason else ""
        report.say(f"{title}: {outcome.status}{reason} at attempt {outcome.attempts}")
        for sentence in unlike:
            report.say(f"  different: {sentence}")
    of_calm = [sentence for outcome in calm.outcomes.values() for sentence in outcome.lost_events]
    problems = [f"in the calm run: {sentence}" for sentence in (*calm.problems, *calm.duplicates, *of_calm)]
    problems += tortured.problems
    for what, sentences in (("duplicate", tortured.duplicates), ("lost", lost), ("problem", problems)):
        for sentence in sentences:
            report.say(f"{what}: {sentence}")
    for note in tortured.notes:
        report.say(note)
    return {
        "jobs": len(tortured.outcomes),
        "finished": sum(outcome.status == "succeeded" for outcome in tortured.outcomes.values()),
        "faults": tortured.faults.total(),
        "different": different,
        "duplicates": len(tortured.duplicates),
        "lost_events": len(lost),
        "problems": len(problems),
    }


if __name__ == "__main__":
    sys.exit(main())
