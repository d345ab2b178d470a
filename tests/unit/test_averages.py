"""Averages of weights against the reference's numbers, and what becomes of batch-norm statistics."""

import pytest
import torch
from golden import entry, tensor
from torch import nn

from dkl.architectures import CNN
from dkl.averages import EpochAverage, StepAverage, make_average
from dkl.models import build
from dkl.recipes import EpochEMA, StepEMA


class Holder(nn.Module):
    """One weight and the statistics of a batch norm, to be set to anything."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(state["w"])
        self.bn = nn.Module()
        self.bn.register_buffer("running_mean", state["bn.running_mean"])
        self.bn.register_buffer("num_batches_tracked", state["bn.num_batches_tracked"].long())


def test_golden_average_over_epochs():
    e = entry("pub-epoch-ema")
    average = EpochAverage(e["hyper"]["tau"])
    for checkpoint in e["checkpoints"]:
        average.after_epoch(Holder({name: tensor(value) for name, value in checkpoint.items()}))
    for name, value in e["result"].items():
        torch.testing.assert_close(average.average[name], tensor(value), rtol=1e-12, atol=0)


def test_golden_average_over_updates():
    """The reference's model is as large as the number of the step, from 1 to 40, the first ten of them warm-up."""
    e = entry("pub-dmat-ema")
    average = make_average(StepEMA(decay=e["hyper"]["tau"], start=e["hyper"]["warmup_steps"] / 40))
    model = nn.Linear(1, 1, bias=False).double()
    for step, expected in enumerate(e["wa_value_after_step"]):
        nn.init.constant_(model.weight, step + 1)
        average.after_update(model, step, 40)
        assert average.state(model)["weight"].item() == pytest.approx(expected, rel=1e-12)


def network(value: float) -> nn.Module:
    model = build(CNN(width=2), channels=1, classes=3)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.bn1.running_mean):
            tensor.fill_(value)
    model.bn1.num_batches_tracked.fill_(int(7 * value))
    return model


def test_an_average_over_epochs_takes_statistics_along_and_rounds_counts():
    average = EpochAverage(0.9)
    for value in (1.0, 2.0):
        average.after_epoch(network(value))
    state = average.state(network(5.0))
    torch.testing.assert_close(state["conv1.weight"], torch.full_like(state["conv1.weight"], 1.1))
    torch.testing.assert_close(state["bn1.running_mean"], torch.full((2,), 1.1))
    assert state["bn1.num_batches_tracked"] == 8  # 7.7, rounded
    assert state["bn1.num_batches_tracked"].dtype == torch.int64
    build(CNN(width=2), channels=1, classes=3).load_state_dict(state, strict=True)


def test_an_average_over_updates_leaves_statistics_to_the_model():
    average = StepAverage(StepEMA(decay=0.5, start=0.0, ramp=False))
    for update, value in enumerate((1.0, 2.0)):
        average.after_update(network(value), update, 2)
    state = average.state(network(5.0))
    torch.testing.assert_close(state["conv1.weight"], torch.full_like(state["conv1.weight"], 1.5))
    torch.testing.assert_close(state["bn1.running_mean"], torch.full((2,), 5.0))
    assert state["bn1.num_batches_tracked"] == 35


def test_an_average_over_updates_may_take_statistics_along():
    average = StepAverage(StepEMA(decay=0.5, start=0.0, ramp=False, statistics="averaged"))
    for update, value in enumerate((1.0, 2.0)):
        average.after_update(network(value), update, 2)
    state = average.state(network(5.0))
    torch.testing.assert_close(state["bn1.running_mean"], torch.full((2,), 1.5))
    assert state["bn1.num_batches_tracked"] == 35


def test_the_decay_rises_from_a_copy():
    average = StepAverage(StepEMA(decay=0.9, start=0.25))
    assert [average.decay_of(update, 8) for update in range(4)] == [0.0, 0.1, pytest.approx(2 / 11), 0.25]
    assert average.decay_of(799, 800) == 0.9
    assert StepAverage(StepEMA(decay=0.9, start=0.25, ramp=False)).decay_of(1, 8) == 0.9


@pytest.mark.parametrize("averaging", [EpochEMA(decay=0.5), StepEMA(decay=0.5, start=0.0)], ids=["epoch", "step"])
def test_an_average_is_kept_and_taken_up_again(averaging):
    straight, stopped = make_average(averaging), make_average(averaging)
    for update, value in enumerate((1.0, 2.0, 4.0)):
        for average in (straight, stopped):
            average.after_update(network(value), update, 3)
            average.after_epoch(network(value))
        resumed = make_average(averaging)
        resumed.load_state_dict(stopped.state_dict(), "cpu")
        stopped = resumed
    for name, value in straight.state(network(1.0)).items():
        assert torch.equal(value, stopped.state(network(1.0))[name])


@pytest.mark.parametrize("averaging", [EpochEMA(), StepEMA(start=1.0)], ids=["epoch", "step"])
def test_an_average_is_not_changed_by_further_training(averaging):
    average, model = make_average(averaging), network(1.0)
    average.after_update(model, 0, 10)
    average.after_epoch(model)
    nn.init.constant_(model.conv1.weight, 9.0)
    assert (average.state(model)["conv1.weight"] == 1.0).all()


def test_no_average_is_none():
    assert make_average(None) is None
