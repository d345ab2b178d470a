"""Whether a model and the images it is to be judged on belong together."""

from dkl.datasets import Arrays, known_dataset
from dkl.weights import LoadedModel


def require_fit(dataset: str, loaded: LoadedModel, arrays: Arrays) -> None:
    """ValueError where the images of `dataset` have other channels or classes than the model knows."""
    channels = arrays.images.shape[3]
    model = f"the model, trained on {loaded.dataset}," if loaded.dataset else "the model"
    if channels != loaded.channels:
        raise ValueError(
            f"the images of {dataset} have {channels} channels, {model} takes {loaded.channels}; evaluate it on "
            "images like those"
        )
    fewer_is_fine = known_dataset(dataset) is None  # one's own test set may lack the last classes
    if arrays.classes > loaded.classes or (arrays.classes < loaded.classes and not fewer_is_fine):
        raise ValueError(
            f"{dataset} has {arrays.classes} classes, {model} tells {loaded.classes} apart; evaluate it on a data "
            "set with the classes that it knows"
        )
