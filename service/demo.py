"""The story of adversarial training in three minutes: two models, one attack, one leaderboard."""

from concurrent.futures import ThreadPoolExecutor

from dkl.catalog import resolve
from dkl.recipes import fingerprint
from service.client import Client, Job, JobFailed
from service.terminal import console
from service.terminal_bars import Bars
from service.terminal_tables import leaderboard_table


def tell_the_story(client: Client) -> None:
    """Train a natural and an IKL-AT model on digits, judge both with AutoAttack standard, show the ranking.

    What an earlier run has already done, or begun, is taken up instead of done again. JobFailed where a job did
    not succeed.
    """
    trained = {name: _job(client, name) for name in ("ikl-at-digits", "natural-digits")}
    judged = {
        f"AutoAttack on {name}": _job(client, "autoattack-digits-linf", {"model.job": job.id})
        for name, job in trained.items()
    }
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        with Bars() as bars:
            following = [
                pool.submit(bars.follow, bars.add(title), job.watch()) for title, job in (trained | judged).items()
            ]
            for future in following:
                future.result()
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C the streams end with the service, not with their jobs
    console.print(leaderboard_table(client.leaderboard(dataset="digits").document))
    for job in (*trained.values(), *judged.values()):
        if job.status != "succeeded":
            raise JobFailed(job)


def _job(client: Client, name: str, overrides: dict[str, str] | None = None) -> Job:
    """The job that answers this question: an earlier one if there is one, else a new one."""
    question = fingerprint(resolve(name, overrides or {}))
    for job in client.jobs(limit=500):
        if job.document["fingerprint"] == question and job.status not in {"failed", "canceled"}:
            return job
    return client.submit(name, overrides)
