"""Every setting, with its environment variable: DKLBENCH_<NAME>. The only reader of the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]
Names = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(
        lambda value: (
            [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value
        )
    ),
]
"""In the environment separated by commas."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="DKLBENCH_", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True
    )

    data_dir: Path = user_data_path("dkl-bench")
    """Everything that is kept: data sets, checkpoints, work in progress and, embedded, the database."""
    database_url: Annotated[str, Field(repr=False)] = ""
    """A SQLAlchemy URL such as postgresql://user:password@host/name; empty: a SQLite file in data_dir."""
    broker_url: Annotated[str, Field(repr=False)] = ""
    """redis://host:6379/0 for Celery workers; empty: embedded workers poll the ledger."""
    url: str = "http://127.0.0.1:8000"
    """The service that the command line talks to. Links in webhooks lead there: set it to the public address."""
    key: SecretStr = SecretStr("")
    """The API key that the command line asks with; made by `dklbench keys create`."""
    host: str = "127.0.0.1"
    """Where `dklbench up` and `serve` listen; another address than this machine's own needs a key."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Of the service; 0: any free one."""
    device: str = "auto"
    """Where jobs run: auto, cpu, cuda, cuda:1, ..."""
    lease_seconds: Seconds = 60
    """A worker that was silent for so long is taken for dead and its job is given to another."""
    heartbeat_seconds: Seconds = 20
    """How often a worker renews its lease; a third of the lease or less."""
    sweep_seconds: Seconds = 5
    """How often lost jobs are looked for."""
    resend_seconds: Seconds = 60
    """A ready job that nobody has claimed for so long is announced to the workers again."""
    max_losses: Annotated[int, Field(ge=1)] = 3
    """A job that costs so many workers their life, without getting any further, fails."""
    stall_seconds: Seconds = 1800
    """A job that says nothing for so long is taken from its worker, although that one's heart still beats."""
    grace_seconds: Seconds = 60
    """A worker that does not leave a job within this time after it should is killed, to free its GPU."""
    queues: Names = ("gpu",)
    """Of the service: the queues a job may wait in, the first by default. Of a worker: those it serves."""

    secret_key: SecretStr = SecretStr("")
    """Keys and webhook signatures derive from it; empty: made once and kept in data_dir/secret."""
    anonymous: Literal["", "nothing", "leaderboard", "read", "submit"] = ""
    """What one may do without an API key. Empty: submit on one machine that only listens to itself, the
    leaderboard anywhere else."""
    allowed_hosts: Names = ()
    """Names that the service is asked under, beside this machine's own: bench.example.org, *.example.org."""
    requests_per_minute: Annotated[int, Field(ge=1)] = 600
    """Per key, and per address where there is no key."""
    max_queued: Annotated[int, Field(ge=1)] = 1000
    """Jobs that one key may have waiting."""

    store: str = ""
    """Where checkpoints and evidence are kept: s3://bucket/prefix; empty: a folder in data_dir."""
    max_upload_bytes: Annotated[int, Field(ge=1)] = 10 * 2**30
    """Of one file."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 2**30
    """Of the disk under data_dir; with less, nothing is taken in and no job is begun."""
    keep_garbage_seconds: Seconds = 86400
    """Files that nothing uses are kept for so long, and what failed or canceled jobs could be resumed from;
    unfinished uploads, too."""
    log_format: Literal["json", "text"] = "text"
    """json: one object per line, for a log collector; text: for people."""
    cuda_visible_devices: str | None = Field(None, validation_alias="CUDA_VISIBLE_DEVICES")
    """CUDA's own variable: the GPUs that get an embedded worker; absent: all."""

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()  # workers inherit it, wherever they are started

    @model_validator(mode="after")
    def _beats_fit_into_the_lease(self) -> Self:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError(
                f"heartbeat_seconds ({self.heartbeat_seconds:g}) must be at most half of lease_seconds "
                f"({self.lease_seconds:g}), or one late beat loses the job"
            )
        return self

    def as_environment(self) -> dict[str, str]:
        """The variables from which a child process reads these same settings."""
        own = self.model_dump(exclude={"cuda_visible_devices", "secret_key", "key"})
        texts = {name: ",".join(value) if isinstance(value, tuple) else str(value) for name, value in own.items()}
        texts["key"] = ""  # takes an inherited one away: no child asks the service for anything
        texts["secret_key"] = self.secret_key.get_secret_value()
        return {f"DKLBENCH_{name.upper()}": text for name, text in texts.items()}

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'ledger.sqlite'}"

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def artifacts_dir(self) -> Path:
        """The store, where it is no bucket."""
        return self.data_dir / "artifacts"

    @property
    def uploads_dir(self) -> Path:
        return self.data_dir / "uploads"

    def workdir(self, job_id: str) -> Path:
        """Where a job keeps what it needs to resume; `job_id` must be one that the ledger gave out."""
        return self.data_dir / "work" / job_id


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process."""
    return Settings()
