"""Taking in a checkpoint that a user uploaded: the document. No torch here."""

from typing import Annotated, Literal

from pydantic import Field

from dkl.architectures import Model
from dkl.documents import DatasetName, Document, Sha256


class Import(Document):
    """Make a checkpoint of ours from an uploaded file of weights, without running anything that is in it.

    An evaluation names the job: {"job": ID}.
    """

    kind: Literal["import"] = "import"
    upload: Sha256
    """The uploaded file, named by its content: safetensors, or what torch.save wrote."""
    dataset: DatasetName
    """What it was trained on; says how many classes it tells apart."""
    model: Model
    """The network that the weights are of, normalisation included; every name, shape and type has to fit."""
    entry: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """The state dict to take, where the file holds several."""
