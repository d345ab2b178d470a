"""AT, attention transfer: the student should look where the teacher looks. Nothing is learnt beside it."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The distance of attention maps, summed over the stages, >= 0.

        AT = sum over stages of mean((A(f_student) - A(f_teacher))^2),      A(f) = normalise(mean over C of f^2)

    A is flattened and has length 1 for each image. Of two maps (B, C, H, W) the larger one is first averaged to
    the size of the smaller; channels need not agree.

    Source: Zagoruyko and Komodakis, arXiv:1612.03928, in the form of the authors' code (the paper sums over
    channels and takes the norm); the usual weight 1000 belongs to this form.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"student and teacher must give equally many maps, found {len(student)} and {len(teacher)}"
        )
    return sum(
        (_stage(s, t.detach()) for s, t in zip(student, teacher, strict=True)), start=student[0].new_zeros(())
    )


def _stage(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    side = min(student_BCHW.shape[2], teacher_BCHW.shape[2])
    gap_BN = _attention(_at_most(student_BCHW, side)) - _attention(_at_most(teacher_BCHW, side))
    return gap_BN.square().mean()


def _attention(feature_BCHW: Tensor) -> Tensor:
    """(B, H * W), of length 1."""
    return normalize(feature_BCHW.square().mean(1).flatten(1))


def _at_most(feature_BCHW: Tensor, side: int) -> Tensor:
    return adaptive_avg_pool2d(feature_BCHW, side) if feature_BCHW.shape[2] > side else feature_BCHW
