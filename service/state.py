"""What the application holds for its routes."""

from fastapi import Request
from sqlalchemy import Engine

from service.artifacts import Artifacts
from service.settings import Settings
from service.streams import Streams


class State:
    def __init__(self, settings: Settings, db: Engine) -> None:
        self.settings = settings
        self.db = db
        self.artifacts = Artifacts(settings.artifacts_dir)
        self.streams = Streams(db)


def state_of(request: Request) -> State:
    state: State = request.app.state.dkl
    return state
