"""The story of adversarial training in three minutes: two models, one attack, one leaderboard."""

from concurrent.futures import ThreadPoolExecutor

from dkl.catalog import resolve
from dkl.recipes import fingerprint
from service.client import Client
from service.terminal import Bars, console, leaderboard_table

_OVER = {"failed", "canceled"}


class DemoError(Exception):
    """A job of the demonstration did not succeed."""


def tell_the_story(client: Client) -> None:
    """Train a natural and an IKL-AT model on digits, judge both with AutoAttack standard, show the ranking.

    What an earlier run has already done, or begun, is taken up instead of done again.
    """
    trained = {name: _job(client, name) for name in ("ikl-at-digits", "natural-digits")}
    judged = {
        f"AutoAttack on {name}": _job(client, "autoattack-digits-linf", {"model.job": job_id})
        for name, job_id in trained.items()
    }
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        with Bars() as bars:
            following = {
                title: pool.submit(bars.follow, bars.add(title), client.watch(job_id))
                for title, job_id in (trained | judged).items()
            }
            statuses = {title: future.result() for title, future in following.items()}
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C the streams end with the service, not with their jobs
    console.print(leaderboard_table(client.leaderboard(dataset="digits")))
    if lost := [title for title, status in statuses.items() if status != "succeeded"]:
        raise DemoError(f"{', '.join(lost)} did not succeed; see `dklbench jobs`")


def _job(client: Client, name: str, overrides: dict[str, str] | None = None) -> str:
    """The id of the job that answers this question: an earlier one if there is one, else a new one."""
    question = fingerprint(resolve(name, overrides or {}))
    for job in client.jobs(limit=500):
        if job["fingerprint"] == question and job["status"] not in _OVER:
            return str(job["id"])
    return str(client.submit(name, overrides)["id"])
