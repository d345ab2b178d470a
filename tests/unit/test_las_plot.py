"""Learnt strategies in the picture of --plot."""

from pathlib import Path
from xml.etree import ElementTree

from samples import EPOCH

from dkl.events import ChoiceShares, Epoch, StrategyEpoch
from dkl.plot import plot_training


def epoch(number: int, rewards: dict[str, float]) -> Epoch:
    choices = (
        ChoiceShares(name="eps", values=(3 / 255, 9 / 255), shares=(0.5, 0.5), mean=6 / 255),
        ChoiceShares(name="steps", values=(4.0,), shares=(1.0,), mean=4.0),
        ChoiceShares(name="beta", values=(5.0, 9.0), shares=(0.25, 0.75), mean=8.0),
    )
    strategy = StrategyEpoch(choices=choices, entropy=1.0 / number, rewards=rewards, updates=len(rewards))
    return EPOCH.model_copy(update={"epoch": number, "epochs": 3, "strategy": strategy})


def texts(path: Path) -> list[str]:
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    return [(comment.text or "").strip() for comment in ElementTree.parse(path, parser).iter(ElementTree.Comment)]


REWARDS = {"loss": 1.5, "robust": 0.25, "clean": 0.75, "total": 4.0}


def test_rewards_choices_and_shares_are_drawn(tmp_path: Path) -> None:
    target = tmp_path / "out.svg"
    plot_training([epoch(1, REWARDS), epoch(2, {}), epoch(3, REWARDS)], target, "las-trades-digits")
    said = set(texts(target))
    assert {"reward: total", "reward: robust", "mean eps", "mean beta", "entropy, nats"} <= said
    assert {"eps, epoch 3", "steps, epoch 3", "beta, epoch 3", "3/255", "9/255"} <= said
    assert {"learning rate", "loss", "clean, training batches"} <= said


def test_an_epoch_without_rewards_is_drawn_alone(tmp_path: Path) -> None:
    plot_training([epoch(1, {})], tmp_path / "out.svg", "las-at-digits")
    assert "mean eps" in texts(tmp_path / "out.svg")
    assert "reward: total" not in texts(tmp_path / "out.svg")


def test_other_trainings_have_none_of_it(tmp_path: Path) -> None:
    plot_training([EPOCH], tmp_path / "out.svg", "natural-digits")
    assert not {"reward", "entropy, nats"} & set(texts(tmp_path / "out.svg"))
