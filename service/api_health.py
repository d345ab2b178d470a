"""GET /livez: this process answers. GET /readyz: and it could do what it is asked. Neither needs a key."""

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.health import Checks, Readiness

router = APIRouter()


class Liveness(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/livez")
async def livez() -> Liveness:
    """Whether this process answers. It asks nobody else."""
    return Liveness()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "A check has failed; it says which"}})
async def readyz(request: Request, response: Response) -> Readiness:
    """Whether the database, its schema, the broker and the store would let this process do its work."""
    checks: Checks = request.app.state.checks
    readiness = await checks.look()
    response.status_code = 200 if readiness.status == "ok" else 503
    return readiness
