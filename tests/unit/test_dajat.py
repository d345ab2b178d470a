"""DAJAT: the authors' objective, whole updates against a plain transcription of the formulas, and its views."""

from pathlib import Path

import pytest
import torch
from golden import entry, tensor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from dkl import losses
from dkl.architectures import CNN
from dkl.augment import augment
from dkl.batches import training_data
from dkl.dajat import DiverseViews, dajat_terms, twin_of
from dkl.documents import ThreatModel
from dkl.draws import Draw, generator
from dkl.explain import InvalidRecipeError, read_recipe
from dkl.method import Shown
from dkl.models import build
from dkl.objectives import AWP, DAJAT, PGD
from dkl.recipes import SGD, Augmentation, SecondView, Train
from dkl.train import train
from dkl.updates import Network
from dkl.weights import load_checkpoint, load_state
from dkl.world import ALONE

EPS = 0.1


def recipe(**changes) -> Train:
    fields = {
        "dataset": "digits",
        "model": CNN(width=4),
        "objective": DAJAT(views=2, beta=5.0, consistency=2.0),
        "threat": ThreatModel(norm="Linf", eps=EPS),
        "attack": PGD(loss="kl", steps=2, relative_step_size=1.0, eps_schedule="constant"),
        "augmentation": None,
        "epochs": 2,
        "optimizer": SGD(lr=0.05),
    }
    return Train(**{**fields, **changes})


# --- the loss ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [1, 2])
def test_golden_objectives(views: int) -> None:
    e = entry(f"pub-DAJAT-num_auto{views}-B3-C5")
    logits = [tensor(rows).requires_grad_() for rows in e["logits"]]
    used = logits[: 2 * (1 + views)]
    objective = DAJAT(views=views, beta=e["hyper"]["beta"], consistency=e["hyper"]["JS_weight"])
    terms = dajat_terms(objective, used[::2], used[1::2], torch.tensor(e["target"]))
    assert list(terms) == [*["base", "view_1", "view_2"][: 1 + views], "consistency"]
    loss = sum(terms.values())
    torch.testing.assert_close(loss, tensor(e["loss"]), rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(loss, logits, materialize_grads=True)
    for gradient, wanted in zip(gradients, e["grads"], strict=True):
        torch.testing.assert_close(gradient, tensor(wanted), rtol=1e-10, atol=1e-12)


def test_views_that_agree_diverge_by_nothing_and_one_that_is_sure_of_another_class_by_a_finite_amount() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert losses.jensen_shannon([logits, logits, logits]).abs() < 1e-7
    certain = [torch.tensor([[1e4, 0.0, 0.0]]).requires_grad_(), torch.tensor([[0.0, 1e4, 0.0]]).requires_grad_()]
    found = losses.jensen_shannon(certain)
    assert found.item() == pytest.approx(torch.tensor(2.0).log().item())
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, certain))
    with pytest.raises(ValueError, match="one shape"):
        losses.jensen_shannon([logits, torch.zeros(2, 3)])


# --- updates ----------------------------------------------------------------------------------------------


def met(asked: Train) -> tuple[DiverseViews, nn.Module, torch.optim.SGD]:
    """The method, its network and their optimiser, in float64."""
    torch.manual_seed(0)
    model = build(asked.model, channels=1, classes=4).double()
    method = DiverseViews(asked, device="cpu", world=ALONE)
    beside = list(method.meet(model))
    return method, model, torch.optim.SGD([*model.parameters(), *beside], lr=0.05, momentum=0.9, weight_decay=1e-3)


def shown(number: int, views: int = 3, images: int = 9) -> Shown:
    random = torch.Generator().manual_seed(number)
    x = torch.rand(views * images, 1, 8, 8, generator=random, dtype=torch.float64)
    return Shown(2, number, x, torch.randint(0, 4, (images,), generator=random).repeat(views))


class TwoNorms(nn.Module):
    """The CNN with every batch norm twice, chosen in the forward pass, as the authors write their networks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        fresh = [build(CNN(width=4), channels=1, classes=4).double() for _ in range(2)]
        for network in fresh:
            network.load_state_dict(model.state_dict())
        self.base, other = fresh
        self.auto = nn.ModuleList([other.bn1, other.bn2])

    def forward(self, x: Tensor, which: str) -> Tensor:
        bn1, bn2 = (self.base.bn1, self.base.bn2) if which == "base" else self.auto
        x = bn1(self.base.conv1(x)).relu()
        x = bn2(self.base.conv2(x)).relu()
        return self.base.linear(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def kl(adv: Tensor, nat: Tensor, reduction: str = "batchmean") -> Tensor:
    return kl_div(log_softmax(adv, 1), softmax(nat, 1), reduction=reduction)


def transcribed(net: TwoNorms, optimizer: torch.optim.SGD, batch: Shown, start: Tensor, asked: Train) -> float:
    """One update as the formulas say, view by view; AWP through a second network, as its authors do it."""
    objective, smoothing = asked.objective, asked.objective.label_smoothing
    views = 1 + objective.views
    y = batch.y_B.chunk(views)[0]
    kinds = ["base"] + ["auto"] * objective.views
    net.eval()
    pairs = []
    for kind, x, first in zip(kinds, batch.x_BCHW.chunk(views), start.chunk(views), strict=True):
        x_adv = x + first
        for _ in range(2):
            x_adv = x_adv.detach().requires_grad_()
            gradient = torch.autograd.grad(kl(net(x_adv, kind), net(x, kind), "sum"), x_adv)[0]
            x_adv = (x_adv.detach() + EPS * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
        pairs.append((kind, x, x_adv))
    net.train()
    shift = {}
    if asked.awp:
        proxy = TwoNorms(net.base)
        proxy.load_state_dict(net.state_dict())
        _, x, x_adv = pairs[0]
        clean = proxy(x, "base")
        (cross_entropy(clean, y) + objective.beta * kl(proxy(x_adv, "base"), clean)).backward()
        with torch.no_grad():
            for name, weight in proxy.base.named_parameters():
                if weight.ndim > 1:
                    shift[name] = asked.awp.gamma * weight.norm() / weight.grad.norm() * weight.grad
                    net.base.get_parameter(name).add_(shift[name])
    optimizer.zero_grad()
    loss, predictions = torch.zeros((), dtype=torch.float64), []
    for kind, x, x_adv in pairs:
        clean = net(x, kind)
        natural = cross_entropy(clean, y, label_smoothing=smoothing)
        loss = loss + (natural + objective.beta * kl(net(x_adv, kind), clean)) / views
        predictions.append(softmax(clean, 1))
    mixture = (sum(predictions) / views).clamp(1e-7, 1).log()
    js = sum(kl_div(mixture, p, reduction="batchmean") for p in predictions) / views
    loss = loss + objective.consistency * js
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for name, moved in shift.items():
            net.base.get_parameter(name).sub_(moved)
    return loss.item()


@pytest.mark.parametrize("awp", [None, AWP(gamma=0.05, first_epoch=1)], ids=["plain", "awp"])
@pytest.mark.parametrize("views", [1, 3])
def test_updates_are_those_of_a_network_with_every_norm_twice(views: int, awp: AWP | None) -> None:
    """Weights, and both kinds of batch norms with their statistics, after three updates."""
    asked = recipe(objective=DAJAT(views=views, beta=5.0, consistency=2.0, label_smoothing=0.1), awp=awp)
    method, model, optimizer = met(asked)
    net = TwoNorms(model)
    plain = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for number in range(3):
        batch = shown(number, views=1 + views)
        start = method.adversary.start(batch)
        seen = method.update(Network(model, model, model), optimizer, batch, micro_batch=None)
        assert seen.loss == pytest.approx(transcribed(net, plain, batch, start, asked), rel=1e-9)
        assert seen.loss == pytest.approx(sum(seen.terms.values()), rel=1e-12)
    torch.testing.assert_close(model.state_dict(), net.base.state_dict(), rtol=1e-9, atol=1e-9)
    for own, expected in zip((method.twin.bn1, method.twin.bn2), net.auto, strict=True):
        torch.testing.assert_close(own.state_dict(), expected.state_dict(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(model.bn1.running_mean, method.twin.bn1.running_mean)
    assert not torch.equal(model.bn1.weight, method.twin.bn1.weight)


def test_a_batch_in_parts_moves_the_weights_as_the_whole_does() -> None:
    """Without batch norms, which see the parts: the twin is then the network itself."""
    found = []
    for micro_batch in (None, 2):
        torch.manual_seed(0)
        model = build(CNN(width=4), channels=1, classes=4).double()
        model.bn1, model.bn2 = nn.Identity(), nn.Identity()
        method = DiverseViews(recipe(awp=AWP(gamma=0.05, first_epoch=1)), device="cpu", world=ALONE)
        assert list(method.meet(model)) == []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        seen = method.update(Network(model, model, model), optimizer, shown(0), micro_batch=micro_batch)
        found.append((seen.loss, seen.terms, seen.correct_adv, model.state_dict()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    method, model, optimizer = met(recipe())
    before = [p.clone() for p in (*model.parameters(), *method.twin.parameters())]
    batch = shown(0)._replace(x_BCHW=torch.full((27, 1, 8, 8), torch.nan, dtype=torch.float64))
    with pytest.raises(FloatingPointError, match="loss is nan"):
        method.update(Network(model, model, model), optimizer, batch, micro_batch=None)
    after = (*model.parameters(), *method.twin.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


# --- the twin ---------------------------------------------------------------------------------------------


def test_a_twin_shares_all_but_the_batch_norms() -> None:
    model = build(CNN(width=4), channels=1, classes=4)
    twin = twin_of(model)
    for name, parameter in model.named_parameters():
        assert (twin.get_parameter(name) is parameter) is not name.startswith("bn"), name
        torch.testing.assert_close(twin.get_parameter(name), parameter)
    for name, buffer in model.named_buffers():
        assert twin.get_buffer(name) is not buffer
    model.to(memory_format=torch.channels_last)
    assert twin.conv2.weight is model.conv2.weight


# --- the views --------------------------------------------------------------------------------------------


def test_views_are_the_image_through_autoaugment_first_each_with_its_own_draws(tmp_path: Path) -> None:
    base = Augmentation(crop=1)
    asked = recipe(objective=DAJAT(views=3), augmentation=base, batch_size=40)
    alone = training_data(recipe(augmentation=base, objective=DAJAT(views=1), batch_size=40), tmp_path, "cpu")
    data = training_data(asked, tmp_path, "cpu")
    x, y = data.batches.batch(2, 1)
    assert data.batches.views == 4
    first, *views = x.chunk(4)
    assert all(torch.equal(labels, y[:40]) for labels in y.chunk(4))
    x_alone, _ = alone.batches.batch(2, 1)
    assert torch.equal(torch.cat([first, views[0]]), x_alone)  # further views change nothing
    rows = data.batches.source.rows(2, 1)[0][0]
    keys = [(Draw.SECOND_VIEW, 0, 2, 1), (Draw.SECOND_VIEW, 0, 2, 1, 2), (Draw.SECOND_VIEW, 0, 2, 1, 3)]
    policy = base.model_copy(update={"policy": "autoaugment-first"})
    for view, key in zip(views, keys, strict=True):
        assert torch.equal((255 * view).round().byte(), augment(rows, policy, generator("cpu", *key)))


def test_without_augmentation_the_views_still_have_their_policy(tmp_path: Path) -> None:
    x, _ = training_data(recipe(), tmp_path, "cpu").batches.batch(1, 0)
    base, *views = x.chunk(3)
    assert all(not torch.equal(base, view) for view in views)


# --- whole runs -------------------------------------------------------------------------------------------


def test_the_network_of_the_base_view_is_published_alone(tmp_path: Path) -> None:
    asked = recipe(images=200, averaging=None, precision="bfloat16")
    events = list(train(asked, tmp_path, device="cpu", data_dir=tmp_path))
    published = load_checkpoint(tmp_path / "model.safetensors").model.state_dict()
    alone = build(CNN(width=4), channels=1, classes=10)
    assert published.keys() == alone.state_dict().keys()
    assert events[-1].result.parameters == sum(p.numel() for p in alone.parameters())
    state = load_state(tmp_path / "last.pt")
    assert all(torch.equal(published[name], value) for name, value in state["model"].items())
    norms = {name for name in published if name.startswith("bn")}
    assert state["prior"].keys() == norms
    assert not torch.equal(state["prior"]["bn1.running_mean"], published["bn1.running_mean"])
    assert len(state["optimizer"]["state"]) == len(list(alone.parameters())) + 4  # momentum of two more norms


def test_what_does_not_go_together_is_refused() -> None:
    for changes, sentence in (
        ({"second_view": SecondView()}, "objective.views says how many"),
        ({"optimizer": SGD(decay_batch_norms=False)}, "leave decay_batch_norms out"),
        ({"threat": None}, "needs threat"),
        ({"objective": DAJAT().model_copy(update={"views": 0})}, "views"),
    ):
        changed = {name: value and value.model_dump(mode="json") for name, value in changes.items()}
        with pytest.raises(InvalidRecipeError, match=sentence):
            read_recipe({**recipe().model_dump(mode="json"), **changed})
