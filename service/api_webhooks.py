"""The REST interface of webhooks: what their signatures are checked with."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from service.access import Submitter
from service.problems import ANSWERS
from service.state import state_of
from service.webhooks import webhook_secret

router = APIRouter(prefix="/api/v1", responses=ANSWERS)


class WebhookSecret(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    secret: str
    """For a library of standardwebhooks.com, as it is."""


@router.get("/webhooks/secret")
def get_webhook_secret(request: Request, caller: Submitter) -> WebhookSecret:
    """What signs the webhooks of the jobs that you submit with this key. Keep it as secret as the key."""
    return WebhookSecret(secret=webhook_secret(state_of(request).settings, caller.key_id))
