"""LBGAT: the authors' loss, whole updates against a plain transcription of the formulas, and who is published."""

from pathlib import Path

import pytest
import torch
from golden import entry, tensor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from dkl import losses
from dkl.architectures import CNN, ResNet
from dkl.documents import ThreatModel
from dkl.events import Epoch
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.lbgat import BoundaryGuided, lbgat_terms
from dkl.method import Shown
from dkl.models import build
from dkl.objectives import AWP, LBGAT, PGD
from dkl.recipes import SGD, SecondView, Train
from dkl.train import train
from dkl.updates import Network
from dkl.weights import load_checkpoint, load_state
from dkl.world import ALONE

EPS = 0.1


def recipe(**changes) -> Train:
    fields = {
        "dataset": "digits",
        "model": CNN(width=4),
        "objective": LBGAT(beta=6.0, teacher=CNN(width=3)),
        "threat": ThreatModel(norm="Linf", eps=EPS),
        "attack": PGD(loss="kl", steps=3, relative_step_size=0.5, eps_schedule="constant"),
        "augmentation": None,
        "epochs": 2,
        "optimizer": SGD(lr=0.01),
    }
    return Train(**{**fields, **changes})


# --- the loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pub-LBGAT0-B4-C10", "pub-LBGAT6-B4-C10"])
def test_golden_losses(name: str) -> None:
    e = entry(name)
    given = entry(e["inputs"])
    names = ("logits_nat", "logits_adv", "logits_teacher_clean")
    nat, adv, teacher = (tensor(given[logits]).requires_grad_() for logits in names)
    terms = lbgat_terms(LBGAT(beta=e["hyper"]["beta"]), nat, adv, teacher, torch.tensor(given["target"]))
    loss = sum(terms.values())
    torch.testing.assert_close(loss, tensor(e["loss"]), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(loss, (nat, adv, teacher), materialize_grads=True)
    for gradient, logits in zip(gradients, names, strict=True):
        torch.testing.assert_close(gradient, tensor(e[f"grad_{logits}"]), rtol=1e-10, atol=1e-12)
    assert ("kl" in terms) is (e["hyper"]["beta"] > 0)


def test_logits_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        losses.boundary(torch.zeros(2, 3), torch.zeros(2, 4))


# --- updates ----------------------------------------------------------------------------------------------


def met(asked: Train) -> tuple[BoundaryGuided, nn.Module, torch.optim.SGD]:
    """The method, its network and their optimiser, in float64."""
    torch.manual_seed(0)
    model = build(asked.model, channels=1, classes=4).double()
    method = BoundaryGuided(asked, channels=1, classes=4, device="cpu", world=ALONE)
    beside = list(method.meet(model))
    method.teacher.double()
    return method, model, torch.optim.SGD([*model.parameters(), *beside], lr=0.01, momentum=0.9, weight_decay=1e-3)


def shown(number: int, images: int = 9) -> Shown:
    random = torch.Generator().manual_seed(number)
    x = torch.rand(images, 1, 8, 8, generator=random, dtype=torch.float64)
    return Shown(2, number, x, torch.randint(0, 4, (images,), generator=random))


def kl(adv: Tensor, nat: Tensor) -> Tensor:
    return kl_div(log_softmax(adv, 1), softmax(nat, 1), reduction="batchmean")


def transcribed(
    model: nn.Module, teacher: nn.Module, optimizer: torch.optim.SGD, batch: Shown, start: Tensor, asked: Train
) -> float:
    """One update as the formulas say, step by step; AWP through a second network, as its authors do it."""
    x, y = batch.x_BCHW, batch.y_B
    beta, steps = asked.objective.beta, asked.attack.steps
    model.eval()
    x_adv = x + start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        gradient = torch.autograd.grad(
            kl_div(log_softmax(model(x_adv), 1), softmax(model(x), 1), reduction="sum"), x_adv
        )
        x_adv = (x_adv.detach() + EPS / 2 * gradient[0].sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    model.train()
    teacher.train()

    def loss_of(network: nn.Module, guide: Tensor) -> Tensor:
        adv = network(x_adv)
        return mse_loss(adv, guide) + cross_entropy(guide, y) + beta * kl(adv, network(x))

    shift = {}
    if asked.awp:
        torch.manual_seed(0)
        proxy, copied = (build(m, channels=1, classes=4).double() for m in (asked.model, asked.objective.teacher))
        proxy.load_state_dict(model.state_dict())
        copied.load_state_dict(teacher.state_dict())
        loss_of(proxy, copied(x).detach()).backward()
        with torch.no_grad():
            for name, weight in proxy.named_parameters():
                if weight.ndim > 1:
                    shift[name] = asked.awp.gamma * weight.norm() / weight.grad.norm() * weight.grad
                    model.get_parameter(name).add_(shift[name])
    optimizer.zero_grad()
    loss = loss_of(model, teacher(x))
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, moved in shift.items():
            model.get_parameter(name).sub_(moved)
    return loss.item()


@pytest.mark.parametrize("awp", [None, AWP(gamma=0.05, first_epoch=1)], ids=["plain", "awp"])
@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_updates_are_those_of_the_formulas(beta: float, awp: AWP | None) -> None:
    """Both networks, weights and batch-norm statistics, after three updates. The teacher's weights are not
    perturbed, and its statistics are moved once per update."""
    asked = recipe(objective=LBGAT(beta=beta, teacher=CNN(width=3)), awp=awp)
    method, model, optimizer = met(asked)
    other, plain, plain_optimizer = met(asked)
    for number in range(3):
        batch = shown(number)
        start = other.adversary.start(batch)
        seen = method.update(Network(model, model, model), optimizer, batch, micro_batch=None)
        expected = transcribed(plain, other.teacher, plain_optimizer, batch, start, asked)
        assert seen.loss == pytest.approx(expected, rel=1e-10)
        assert seen.loss == pytest.approx(sum(seen.terms.values()), rel=1e-12)
        assert 0 <= seen.correct_teacher <= len(batch.y_B)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(method.teacher.state_dict(), other.teacher.state_dict(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("beta", "search", "step"), [(0.0, [True], [True, False]), (6.0, [True] * 2, [True] * 2)])
def test_with_beta_0_no_gradient_is_kept_of_clean_images(
    beta: float, search: list[bool], step: list[bool]
) -> None:
    """In the step they still move running statistics; in AWP's search they have nothing to do at all."""
    asked = recipe(objective=LBGAT(beta=beta, teacher=CNN(width=3)), awp=AWP(gamma=0.05, first_epoch=1))
    method, model, optimizer = met(asked)
    passes: list[bool] = []

    def forward(x_BCHW: Tensor) -> Tensor:
        logits_BK = model(x_BCHW)
        if model.training:  # not while attacking
            passes.append(logits_BK.requires_grad)
        return logits_BK

    method.update(Network(model, forward, forward), optimizer, shown(0), micro_batch=None)
    assert passes == search + step


def test_a_batch_in_parts_moves_both_networks_as_the_whole_does() -> None:
    """Without batch norms, which see the parts."""
    found = []
    for micro_batch in (None, 2):
        method, model, _ = met(recipe(awp=AWP(gamma=0.05, first_epoch=1)))
        model, method.teacher = (_without_norms(network) for network in (model, method.teacher))
        method._ask_teacher = method.teacher
        optimizer = torch.optim.SGD([*model.parameters(), *method.teacher.parameters()], lr=0.01)
        network = Network(model, model, model)
        seen = method.update(network, optimizer, shown(0), micro_batch=micro_batch)
        found.append((seen.loss, seen.correct_teacher, model.state_dict(), method.teacher.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def _without_norms(model: nn.Module) -> nn.Module:
    model.bn1, model.bn2 = nn.Identity(), nn.Identity()
    return model


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    method, model, optimizer = met(recipe())
    before = [p.clone() for p in (*model.parameters(), *method.teacher.parameters())]
    batch = shown(0)._replace(x_BCHW=torch.full((9, 1, 8, 8), torch.nan, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        method.update(Network(model, model, model), optimizer, batch, micro_batch=None)
    after = (*model.parameters(), *method.teacher.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


# --- whole runs -------------------------------------------------------------------------------------------


def test_the_teacher_is_kept_by_the_run_and_not_published(tmp_path: Path) -> None:
    events = list(train(recipe(images=200, precision="bfloat16"), tmp_path, device="cpu", data_dir=tmp_path))
    published = load_checkpoint(tmp_path / "model.safetensors").model
    alone = build(CNN(width=4), channels=1, classes=10)
    assert published.state_dict().keys() == alone.state_dict().keys()
    assert events[-1].result.parameters == sum(p.numel() for p in alone.parameters())
    state = load_state(tmp_path / "last.pt")
    teacher = build(CNN(width=3), channels=1, classes=10)
    teacher.load_state_dict(state["prior"]["teacher"])
    learnt = len(list(alone.parameters())) + len(list(teacher.parameters()))
    assert len(state["optimizer"]["state"]) == learnt  # momentum of both
    assert all(e.teacher_accuracy is not None for e in events if isinstance(e, Epoch))


def test_what_does_not_go_together_is_refused() -> None:
    for changes, sentence in (
        ({"second_view": SecondView()}, "takes no second_view"),
        ({"optimizer": SGD(decay_batch_norms=False)}, "leave decay_batch_norms out"),
        ({"attack": None}, "needs attack"),
        ({"attack": PGD(loss="ikl")}, "take 'kl'"),
    ):
        document = {
            **recipe().model_dump(mode="json"),
            **{name: value and value.model_dump(mode="json") for name, value in changes.items()},
        }
        with pytest.raises(InvalidRecipeError, match=sentence):
            read_recipe(document)


def test_the_usual_teacher_is_the_authors_resnet_18() -> None:
    """models/resnetcifar.py of dvlab-research/LBGAT: stages of strides 1, 1, 2 and 2."""
    assert LBGAT().teacher == ResNet(depth=18, width=64, strided_stages=2)
