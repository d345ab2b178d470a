"""The class prior: the reference's numbers, and what the reference gets wrong."""

import pytest
import torch
from golden import entry, of_kind, tensor

from dkl.prior import ClassPrior


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [n for n in of_kind("class_weights") if "missing" not in n])
def test_every_golden_prior(name):
    e = entry(name)
    inputs = entry(e["inputs"])
    prior = ClassPrior(10, temperature=e["hyper"]["T"], momentum=e["hyper"]["m"])
    for batch in ("batch0", "batch1"):
        prior.update(tensor(inputs[f"logits_nat_{batch}"]), torch.tensor(inputs[f"target_{batch}"]))
    close(prior.state_dict()["sums"], tensor(e["raw"]))
    prior.end_epoch()
    close(prior.rows, tensor(e["next"]))


def test_a_class_that_was_not_seen_keeps_its_row():
    e = entry("pub-classweights-missing-class")
    prior = ClassPrior(4, temperature=e["hyper"]["T"])
    prior.update(tensor(e["logits_nat"]), torch.tensor(e["target"]))
    prior.end_epoch()
    reference = tensor(e["next"])
    assert reference[2:].isnan().all()  # what the reference does
    close(prior.rows[:2], reference[:2])
    close(prior.rows[2:], torch.full((2, 4), 0.25, dtype=torch.float64))

    learned = prior.rows.clone()
    prior.update(torch.zeros(1, 4), torch.tensor([2]))
    prior.end_epoch()
    close(prior.rows[[0, 1, 3]], learned[[0, 1, 3]])


def test_rows_are_uniform_at_first_and_change_only_at_the_end_of_an_epoch():
    prior = ClassPrior(5, temperature=4.0)
    prior.update(torch.randn(20, 5), torch.arange(20) % 5)
    close(prior.rows, torch.full((5, 5), 0.2, dtype=torch.float64))
    prior.end_epoch()
    assert (prior.rows - 0.2).abs().max() > 0.01
    close(prior.rows.sum(1), torch.ones(5, dtype=torch.float64))


def test_every_epoch_counts_from_zero():
    logits, y = torch.randn(20, 5), torch.arange(20) % 5
    once, twice = ClassPrior(5, temperature=1.0), ClassPrior(5, temperature=1.0)
    twice.update(torch.randn(20, 5), y)
    twice.end_epoch()
    for prior in (once, twice):
        prior.update(logits, y)
        prior.end_epoch()
    assert torch.equal(once.rows, twice.rows)


def test_rows_for_gives_each_image_the_row_of_its_label():
    prior = ClassPrior(3, temperature=1.0)
    prior.update(torch.randn(9, 3), torch.arange(9) % 3)
    prior.end_epoch()
    assert torch.equal(prior.rows_for(torch.tensor([2, 0, 2])), prior.rows[[2, 0, 2]])


def test_the_prior_carries_no_gradient():
    prior = ClassPrior(3, temperature=1.0)
    prior.update(torch.randn(9, 3, requires_grad=True), torch.arange(9) % 3)
    prior.end_epoch()
    assert not prior.rows.requires_grad


def test_half_precision_logits_are_averaged_in_full():
    logits, y = torch.randn(4000, 3).half(), torch.zeros(4000, dtype=torch.int64)
    low, full = ClassPrior(3, temperature=1.0), ClassPrior(3, temperature=1.0)
    low.update(logits, y)
    full.update(logits.double(), y)
    close(low.state_dict()["sums"], full.state_dict()["sums"])


def test_a_restored_prior_goes_on_in_mid_epoch_as_if_never_stopped():
    batches = [(torch.randn(8, 5), torch.randint(0, 5, (8,))) for _ in range(4)]
    straight, first = ClassPrior(5, temperature=4.0), ClassPrior(5, temperature=4.0)
    for index, (logits, y) in enumerate(batches):
        straight.update(logits, y)
        if index < 2:
            first.update(logits, y)
        if index == 0:
            straight.end_epoch()
            first.end_epoch()
    second = ClassPrior(5, temperature=4.0)
    second.load_state_dict(first.state_dict())
    for logits, y in batches[2:]:
        second.update(logits, y)
    straight.end_epoch()
    second.end_epoch()
    assert torch.equal(second.rows, straight.rows)


def test_a_prior_of_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"the stored class prior is \(3, 3\), this one \(4, 4\)"):
        ClassPrior(4, temperature=1.0).load_state_dict(ClassPrior(3, temperature=1.0).state_dict())
