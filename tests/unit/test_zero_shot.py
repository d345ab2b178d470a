"""Zero-shot teachers: the formula, what is refused, and a student that learns from one."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dkl.datasets import load
from dkl.engine import run
from dkl.events import DistillResult, Finished
from dkl.recipes import Distill
from dkl.sources import FunctionError
from dkl.zero_shot import CLIP_MEAN, CLIP_STD, ZeroShot, zero_shot

close = torch.testing.assert_close
NAMES = ["cat", "dog", "airplane"]


class Tower(nn.Module):
    """Three numbers an image, in float64."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(3, width, dtype=torch.float64)
        self.seen: Tensor | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.seen = x_BCHW
        return self.head(x_BCHW.double().mean((2, 3)))


def words(texts: list[str]) -> Tensor:
    """An embedding that follows from the letters of a text."""
    rows = [torch.tensor([len(text), text.count("a"), text.count("o"), ord(text[0])]) for text in texts]
    return torch.stack(rows).double()


def test_logits_are_scaled_cosines() -> None:
    templates = ("a photo of a {}.", "{} in the wild")
    tower = Tower()
    model = zero_shot(tower, words, NAMES, templates=templates, logit_scale=20.0)
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    images = tower(((x - mean.float()) / std.float()).double())
    for k, name in enumerate(NAMES):
        texts = words([f"a photo of a {name}.", f"{name} in the wild"])
        text = (texts / texts.norm(dim=1, keepdim=True)).mean(0)
        expected = 20 * (images @ text) / (images.norm(dim=1) * text.norm())
        close(model(x)[:, k], expected, rtol=1e-12, atol=1e-12)
    assert model(x).shape == (5, 3)


def test_pixels_are_scaled_cut_and_normalised_inside() -> None:
    tower = Tower()
    model = zero_shot(tower, words, NAMES, image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)
    model(torch.ones(2, 3, 8, 12))
    assert tower.seen is not None
    close(tower.seen, torch.full((2, 3, 16, 16), 2.0))


def test_grey_images_fill_all_channels() -> None:
    tower = Tower()
    model = zero_shot(tower, words, NAMES, mean=(0.5, 0.4, 0.3), std=(1.0, 1.0, 1.0))
    model(torch.full((1, 1, 2, 2), 0.5))
    assert tower.seen is not None
    close(tower.seen[0, :, 0, 0], torch.tensor([0.0, 0.1, 0.2]))


def test_it_is_frozen_and_its_texts_are_a_part_of_it() -> None:
    model = zero_shot(Tower(), words, NAMES)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {"text_KD", "logit_scale"} <= set(model.state_dict())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"templates": ("a photo",)}, r"'a photo' needs one \{\}"),
        ({"templates": ()}, "no class names or no templates"),
        ({"class_names": ["cat", "dog", "cat"]}, "'cat' is there twice"),
        ({"encode_text": lambda texts: torch.zeros(7, 4)}, r"answers 1 texts with \(7, 4\); expected \(1, D\)"),
    ],
)
def test_what_makes_no_classifier_is_refused(changes: dict[str, Any], sentence: str) -> None:
    given = {"encode_text": words, "class_names": NAMES, **changes}
    with pytest.raises(ValueError, match=sentence):
        zero_shot(Tower(), given.pop("encode_text"), given.pop("class_names"), **given)


def test_an_image_encoder_of_another_width_is_refused() -> None:
    model = zero_shot(Tower(width=6), words, NAMES)
    with pytest.raises(ValueError, match=r"answers 2 images with \(2, 6\); expected a tensor \(2, 4\)"):
        model(torch.rand(2, 3, 4, 4))


# --- a student of one -------------------------------------------------------------------------------------


class Pixels(nn.Module):
    """Images as they are: the "embedding" of a digit is its 64 pixels."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.flatten(1)


def teacher() -> ZeroShot:
    """Knows what a digit looks like on average, which is what its text says to it."""
    arrays = load("digits", "train", Path())
    images_ND = torch.from_numpy(arrays.images).flatten(1).double() / 255 - 0.3
    means = [images_ND[torch.from_numpy(arrays.labels) == k].mean(0).float() for k in range(10)]

    def encode_text(texts: list[str]) -> Tensor:
        return torch.stack([means[int(text[-1])] for text in texts])

    names = [str(k) for k in range(10)]
    return zero_shot(
        Pixels(), encode_text, names, templates=("the digit {}",), logit_scale=50.0, mean=(0.3,), std=(1.0,)
    )


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the function on one's own machine."""
    found = ModuleType("zero_shot_teachers")
    found.digits = teacher  # type: ignore[attr-defined]
    found.__file__ = __file__
    monkeypatch.setitem(sys.modules, "zero_shot_teachers", found)
    return "zero_shot_teachers:digits"


def recipe(function: str) -> Distill:
    return Distill(
        dataset="digits",
        model={"kind": "cnn", "width": 8},
        teacher={"function": function},
        objective={"kind": "kd", "label_weight": 0.0, "weight": 1.0, "temperature": 1.0},
        augmentation=None,
        epochs=5,
        optimizer={"lr": 0.1},
    )


def test_a_student_learns_digits_without_a_label(module: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "data_dir": tmp_path, "fetch": None, "allow_functions": True}
    *_, last = run(recipe(module), tmp_path, **settings)
    assert isinstance(last, Finished)
    assert isinstance(last.result, DistillResult)
    assert last.result.teacher == "ZeroShot"
    assert last.result.teacher_accuracy > 0.85
    assert last.result.clean_accuracy > 0.8
    assert any("on the operator's machine" in note for note in last.result.notes)


def test_a_service_runs_no_function(module: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "data_dir": tmp_path, "fetch": None}
    with pytest.raises(FunctionError, match="a service runs no code of its users"):
        list(run(recipe(module), tmp_path, **settings))


def test_texts_are_normalised_before_the_mean_and_after() -> None:
    model = zero_shot(Tower(), words, ["cat"], templates=("{}", "a very long photo of a {}"))
    rows = normalize(words(["cat", "a very long photo of a cat"]), dim=1)
    close(model.text_KD[0], normalize(rows.mean(0), dim=0), rtol=1e-12, atol=0)
