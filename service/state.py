"""What the application holds for its routes."""

from fastapi import Request
from sqlalchemy import Engine

from service.artifacts import Store, store_for
from service.limits import Limits
from service.settings import Settings
from service.streams import Streams


class State:
    def __init__(self, settings: Settings, db: Engine) -> None:
        self.settings = settings
        self.db = db
        self.artifacts: Store = store_for(settings)
        self.streams = Streams(db)
        self.limits = Limits(settings)


def state_of(request: Request) -> State:
    state: State = request.app.state.dkl
    return state
