"""What docker-compose.yml starts, as processes of this machine, with proxies where its network would be."""

import signal
from pathlib import Path
from typing import Any

from processes import BIN, answers, free_port, wait_until
from proxy import Proxy
from sqlalchemy import Engine, make_url

from service.client import Client
from service.db import connect, migrate
from service.settings import Settings
from torture.containers import Container
from torture.machinery import Disk, Postgres, Redis

LEASE_SECONDS = 6.0
_DISK_MEGABYTES = 64


class Deployment:
    """An API process and two Celery workers on one data directory. `db` reads the ledger past the proxies."""

    def __init__(self, root: Path) -> None:
        self.logs = root / "logs"
        self.logs.mkdir(parents=True)
        self.postgres = Postgres(root, self.logs)
        self.redis = Redis(root, self.logs)
        self.postgres.start()
        self.redis.start()
        self.disk = Disk(root / "data", _DISK_MEGABYTES)
        self.to_postgres, self.to_redis = Proxy(self.postgres.port), Proxy(self.redis.port)
        self.db: Engine = connect(self.postgres.url)
        migrate(self.db)
        self.settings = self._settings()
        environment = self.settings.as_environment()
        self.api = Container("api", [str(BIN / "dklbench"), "serve"], self.logs, environment=environment)
        self.workers = [self._worker(number, environment) for number in (0, 1)]
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.client = Client(self.url)

    def _settings(self) -> Settings:
        through: dict[str, Any] = {
            "database_url": make_url(self.postgres.url)
            .set(port=self.to_postgres.port)
            .render_as_string(hide_password=False),
            "broker_url": f"redis://127.0.0.1:{self.to_redis.port}/0",
        }
        return Settings(
            **through,
            data_dir=self.disk.path,
            port=free_port(),
            device="cpu",
            anonymous="submit",
            lease_seconds=LEASE_SECONDS,
            heartbeat_seconds=2,
            sweep_seconds=1,
            resend_seconds=5,
            # A worker is killed every few seconds here, which is no job's fault.
            max_losses=10_000,
            requests_per_minute=100_000,
            min_free_bytes=0,
        )

    def _worker(self, number: int, environment: dict[str, str]) -> Container:
        name = f"worker{number}"
        command = [str(BIN / "celery"), "-A", "workers.app", "worker", "--loglevel", "INFO", "-n", f"{name}@%h"]
        return Container(name, command, self.logs, environment={**environment, "REMAP_SIGTERM": "SIGQUIT"})

    @property
    def containers(self) -> list[Container]:
        return [self.api, *self.workers, self.redis.container, self.postgres.container]

    def start(self) -> None:
        self.api.start()
        for worker in self.workers:
            worker.start()
        wait_until(lambda: answers(self.client), 120, "the API")

    def stop(self) -> None:
        """In good order: workers, API, Redis, PostgreSQL."""
        for worker in self.workers:
            worker.down()
        self.api.down()
        self.redis.container.down()
        self.db.dispose()
        self.postgres.container.down(signal.SIGINT)
        self.client.__exit__()
        self.disk.unmount()
