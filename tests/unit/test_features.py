"""Feature distillation against the references' numbers, and what each objective promises."""

import pytest
import torch
from golden_kd import assert_golden, entry, inputs, names, stages, tensor

from dkl.features.attention import attention_transfer
from dkl.features.contrastive import Contrast, Negatives, contrast
from dkl.features.overhaul import Connectors, margin_distance, margin_from_batch_norm
from dkl.features.review import Fusion, Review, hierarchical_context

close = torch.testing.assert_close


def named(values: list[torch.Tensor], stem: str, e: dict) -> dict[str, torch.Tensor]:
    if f"grad_{stem}" in e["outputs"]:
        return {stem: values[0]}
    return {f"{stem}_{place}": value for place, value in enumerate(values)}


# --- attention transfer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("at/"))
def test_attention_transfer_is_the_references(name: str) -> None:
    e = entry(name)
    student, teacher = stages(e, "feat_student"), stages(e, "feat_teacher")
    assert_golden(e, attention_transfer(student, teacher), named(student, "feat_student", e))


def test_attention_does_not_see_the_scale_or_the_number_of_channels() -> None:
    maps = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    close(attention_transfer([maps], [5 * torch.cat([maps, maps], 1)]), torch.zeros((), dtype=torch.float64))
    with pytest.raises(ValueError, match="equally many maps, found 1 and 2"):
        attention_transfer([maps], [maps, maps])


# --- OFD --------------------------------------------------------------------------------------------------


def test_margins_are_the_references() -> None:
    e = entry("ofd/margin_from_bn")
    weights, biases = tensor(e["inputs"]["bn_weight"]), tensor(e["inputs"]["bn_bias"])
    expected = tensor(e["outputs"]["margin_float64_formula"])
    for weight, bias, margin in zip(weights, biases, expected, strict=True):
        close(margin_from_batch_norm(weight, bias)[0, :, 0, 0], margin, rtol=1e-10, atol=1e-10)


def test_a_margin_is_the_mean_of_the_negative_part() -> None:
    source = torch.Generator().manual_seed(0)
    x = 0.5 + 2 * torch.randn(400_000, generator=source, dtype=torch.float64)
    found = margin_from_batch_norm(torch.tensor([-2.0]), torch.tensor([0.5])).item()
    assert found == pytest.approx(x[x < 0].mean().item(), abs=0.02)
    assert margin_from_batch_norm(torch.tensor([0.1]), torch.tensor([9.0])).item() == pytest.approx(-0.3)
    assert margin_from_batch_norm(torch.tensor([0.0]), torch.tensor([1.0])).isfinite().all()


def test_margin_distance_is_the_references() -> None:
    e = entry("ofd/feat_loss")
    student, teacher, margin = inputs(e, "feat_student", "feat_teacher_preact", "margin")
    assert_golden(e, margin_distance(student, teacher, margin), {"feat_student": student})


def test_connectors_are_the_references() -> None:
    e = entry("ofd/ofd_loss_two_stages")
    student, teacher = stages(e, "feat_student"), stages(e, "feat_teacher_preact")
    connectors = Connectors([2, 3], [4, 4]).double()
    for place, stage in enumerate(connectors.stages):
        stage[0].weight.data = tensor(e["inputs"][f"connector_{place}.conv.weight"])
        stage[1].weight.data = tensor(e["inputs"][f"connector_{place}.bn.weight"])
        stage[1].bias.data = tensor(e["inputs"][f"connector_{place}.bn.bias"])
    loss = connectors(student, teacher, stages(e, "margin"))
    assert_golden(e, loss, named(student, "feat_student", e))


def test_what_the_teacher_leaves_inactive_may_stay_so() -> None:
    teacher, margin = torch.full((1, 1, 2, 2), -3.0), torch.full((1, 1, 1, 1), -1.0)
    assert margin_distance(torch.full((1, 1, 2, 2), -7.0), teacher, margin) == 0
    assert margin_distance(torch.full((1, 1, 2, 2), 0.0), teacher, margin) == 4


# --- ReviewKD ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("hcl/"))
def test_hierarchical_context_is_the_references(name: str) -> None:
    e = entry(name)
    student, teacher = stages(e, "feat_student"), stages(e, "feat_teacher")
    assert_golden(e, hierarchical_context(student, teacher), named(student, "feat_student", e))


@pytest.mark.parametrize("name", names("abf/"))
def test_fusion_is_the_references(name: str) -> None:
    e = entry(name)
    hyper, given = e["hyper"], e["inputs"]
    fusion = Fusion(hyper["in"], hyper["mid"], hyper["out"], fuses=hyper["fuse"]).double()
    layers = {"conv1.0": "reduce.0", "conv1.1": "reduce.1", "conv2.0": "expand.0", "conv2.1": "expand.1"}
    layers["att_conv.0"] = "attend.0"
    for theirs, ours in layers.items():
        for part in ("weight", "bias"):
            if f"param.{theirs}.{part}" in given:
                fusion.get_parameter(f"{ours}.{part}").data = tensor(given[f"param.{theirs}.{part}"])
    (x,) = inputs(e, "x")
    behind = tensor(given["y_residual"]) if hyper["fuse"] else None
    out, residual = fusion(x, behind, hyper["shape"] or 1, hyper["out_shape"])
    close(out, tensor(e["outputs"]["out"]), rtol=1e-10, atol=1e-10)
    close(residual, tensor(e["outputs"]["residual"]), rtol=1e-10, atol=1e-10)
    scalar = out.square().sum() + residual.square().sum()
    expected = tensor(e["outputs"]["scalar_for_grad_sum_of_squares"])
    close(scalar, expected, rtol=1e-10, atol=1e-10)
    close(torch.autograd.grad(scalar, x)[0], tensor(e["outputs"]["grad_x_of_scalar"]), rtol=1e-9, atol=1e-10)


def test_review_takes_networks_of_any_shapes() -> None:
    student = [torch.rand(2, c, side, side, requires_grad=True) for c, side in [(4, 16), (6, 8), (8, 4), (8, 1)]]
    teacher = [torch.rand(2, c, side, side) for c, side in [(5, 8), (7, 8), (9, 2), (10, 1)]]
    review = Review([4, 6, 8, 8], [5, 7, 9, 10], [16, 8, 4, 1], [8, 8, 2, 1])
    loss = review(student, teacher)
    assert loss > 0
    for gradient in torch.autograd.grad(loss, student):
        assert gradient.abs().max() > 0  # every stage learns


# --- CRD --------------------------------------------------------------------------------------------------


def test_contrast_is_the_references() -> None:
    e = entry("crd/contrast_loss")
    (scores,) = inputs(e, "scores")
    assert_golden(e, contrast(scores, e["hyper"]["n_data"]), {"scores": scores})


@pytest.mark.parametrize("name", names("crd/memory"))
def test_the_memory_is_the_references(name: str) -> None:
    e = entry(name)
    hyper = e["hyper"]
    memory = Contrast(
        3, 3, hyper["n_data"], width=4, temperature=hyper["tau"], momentum=hyper["momentum"]
    ).double()
    memory.memory_student_ND = tensor(e["inputs"]["memory_student_v1"])
    memory.memory_teacher_ND = tensor(e["inputs"]["memory_teacher_v2"])
    if "Z_student" in hyper:
        memory.partition_2 = torch.tensor([hyper["Z_student"], hyper["Z_teacher"]], dtype=torch.float64)
    s, t, index, candidates = inputs(e, "v_student", "v_teacher", "index", "contrast_index")
    loss = memory.compare(s, t, candidates)
    assert_golden(e, loss, {"v_student": s, "v_teacher": t})
    memory.remember(s, t, index)
    expected = e["outputs"]
    if "Z_student" in expected:
        close(memory.partition_2, tensor([expected["Z_student"], expected["Z_teacher"]]), rtol=1e-10, atol=0)
    close(memory.memory_student_ND, tensor(expected["memory_student_after"]), rtol=1e-10, atol=1e-10)
    close(memory.memory_teacher_ND, tensor(expected["memory_teacher_after"]), rtol=1e-10, atol=1e-10)


def test_the_memory_survives_a_checkpoint() -> None:
    source = torch.Generator().manual_seed(0)
    memory, other = (Contrast(5, 6, 20, width=4, generator=source) for _ in range(2))
    index, candidates = torch.tensor([3, 4]), torch.tensor([[3, 1, 2], [4, 0, 9]])
    features = torch.rand(2, 5, generator=source), torch.rand(2, 6, generator=source)

    def learn(contrast: Contrast) -> torch.Tensor:
        embedded = contrast.embed(*features)
        loss = contrast.compare(*embedded, candidates)
        contrast.remember(*embedded, index)
        return loss

    learn(memory)
    other.load_state_dict(memory.state_dict())
    for _ in range(2):
        close(learn(other), learn(memory), rtol=0, atol=0)


def test_negatives_are_of_other_classes_and_all_equally_often() -> None:
    labels = torch.tensor([2, 0, 1, 0, 0, 2])
    drawn = Negatives(labels).draw(labels, 20_000, torch.Generator().manual_seed(0))
    for label, places in zip(labels, drawn, strict=True):
        found, counts = places.unique(return_counts=True)
        assert found.tolist() == (labels != label).nonzero()[:, 0].tolist()
        close(counts / 20_000, torch.full((len(found),), 1 / len(found)), rtol=0.05, atol=0)


def test_negatives_need_a_second_class() -> None:
    with pytest.raises(ValueError, match="all 3 training images are of one class"):
        Negatives(torch.tensor([1, 1, 1]))
