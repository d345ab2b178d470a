"""Every setting, with its environment variable: DKLBENCH_<NAME>. The only reader of the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

from platformdirs import user_data_path
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="DKLBENCH_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = user_data_path("dkl-bench")
    """Everything that is kept: data sets, checkpoints, work in progress and, embedded, the database."""
    database_url: str = ""
    """A SQLAlchemy URL such as postgresql://user:password@host/name; empty: a SQLite file in data_dir."""
    broker_url: str = ""
    """redis://host:6379/0 for Celery workers; empty: embedded workers poll the ledger."""
    url: str = "http://127.0.0.1:8000"
    """The service that the command line talks to."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
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
    """A job that cost so many workers their life fails."""
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
        own = self.model_dump(exclude={"cuda_visible_devices"})
        return {f"DKLBENCH_{name.upper()}": str(value) for name, value in own.items()}

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir / 'ledger.sqlite'}"

    @property
    def datasets_dir(self) -> Path:
        return self.data_dir / "datasets"

    @property
    def artifacts_dir(self) -> Path:
        return self.data_dir / "artifacts"

    def workdir(self, job_id: str) -> Path:
        """Where a job keeps what it needs to resume; `job_id` must be one that the ledger gave out."""
        return self.data_dir / "work" / job_id


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process."""
    return Settings()
