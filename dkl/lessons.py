"""What a student may minimise, as documents. No torch here; `dkl.distillation` and `dkl.features` do the sums.

Every objective is label_weight * CE(student, y) plus what the teacher teaches, which grows linearly over the first
`warmup` epochs. Whatever the objective learns beside the student is thrown away at the end.
"""

from typing import Annotated, Literal

from pydantic import Field

from dkl.documents import Count, Decay, Document, Fraction, NonNegative, Positive


class KD(Document):
    """weight * T^2 * KL(teacher || student) of predictions softened by T: Hinton et al., arXiv:1503.02531."""

    kind: Literal["kd"] = "kd"
    label_weight: NonNegative = 0.1
    weight: NonNegative = 0.9
    temperature: Positive = 4.0
    warmup: Count = 1


class DKD(Document):
    """T^2 * (target_weight * TCKD + non_target_weight * NCKD): Zhao et al., arXiv:2203.08679.

    The paper calls target_weight alpha and non_target_weight beta.
    """

    kind: Literal["dkd"] = "dkd"
    label_weight: NonNegative = 1.0
    target_weight: NonNegative = 1.0
    non_target_weight: NonNegative = 8.0
    temperature: Positive = 4.0
    warmup: Count = 20


Prior = Literal["previous-epoch", "teacher", "none"]


class IKLKD(Document):
    """wmse_weight * wMSE + ce_weight * soft cross-entropy, teacher against student: arXiv:2305.13948, Eq. 10.

    The paper calls wmse_weight alpha and ce_weight beta; the authors' code has them the other way round.
    """

    kind: Literal["ikl-kd"] = "ikl-kd"
    label_weight: NonNegative = 1.0
    wmse_weight: NonNegative = 8.0
    """Factor in front of the 1/4 form of the weighted MSE."""
    ce_weight: NonNegative = 1.0
    """Factor in front of the soft-label cross-entropy."""
    temperature: Positive = 4.0
    """Of the soft-label cross-entropy; there is no factor temperature**2."""
    prior: Prior = "previous-epoch"
    """What weighs the classes in the wMSE. previous-epoch: what the teacher said on average to images of the
    label in the epoch before, as in the papers; uniform in the first. teacher: the same from the first epoch on,
    computed once, as the teacher never changes. none: what the teacher says to the image itself."""
    prior_temperature: Positive = 100.0
    """Softens the predictions that these weights are made of."""
    warmup: Count = 20


class GKLKD(Document):
    """IKL-KD with smoother weights: to the power gamma, normalised over the batch. Source: arXiv:2503.08038."""

    kind: Literal["gkl-kd"] = "gkl-kd"
    label_weight: NonNegative = 1.0
    wmse_weight: NonNegative = 8.0
    ce_weight: NonNegative = 1.0
    temperature: Positive = 4.0
    prior: Prior = "previous-epoch"
    prior_temperature: Positive = 4.0
    gamma: Fraction = 0.2
    """1 leaves the weights as they are, which is IKL-KD; 0 weighs all classes alike."""
    warmup: Count = 20


class AT(Document):
    """weight * distance of attention maps after every stage but the stem: arXiv:1612.03928."""

    kind: Literal["at-kd"] = "at-kd"
    label_weight: NonNegative = 1.0
    weight: NonNegative = 1000.0
    warmup: Count = 1


class OFD(Document):
    """weight * partial L2 distance of pre-activations, through a connector per stage: arXiv:1904.01866."""

    kind: Literal["ofd"] = "ofd"
    label_weight: NonNegative = 1.0
    weight: NonNegative = 1e-3
    warmup: Count = 1


class CRD(Document):
    """weight * contrastive loss of embeddings against a memory of the training set: arXiv:1910.10699."""

    kind: Literal["crd"] = "crd"
    label_weight: NonNegative = 1.0
    weight: NonNegative = 0.8
    negatives: Count = 16384
    """Per image, drawn from other classes with replacement."""
    width: Count = 128
    """Of the embeddings."""
    temperature: Positive = 0.07
    momentum: Decay = 0.5
    """Of the memory: the share that an old embedding keeps."""
    warmup: Count = 1


class ReviewKD(Document):
    """weight * distance of the student's fused maps to the teacher's: arXiv:2104.09044."""

    kind: Literal["reviewkd"] = "reviewkd"
    label_weight: NonNegative = 1.0
    weight: NonNegative = 5.0
    before_activation: bool = False
    """Whether the student's maps are taken before their activation, as the teacher's always are. The published
    runs on ImageNet do that, those on CIFAR-100 do not."""
    warmup: Count = 20


LogitLesson = KD | DKD | IKLKD | GKLKD
FeatureLesson = AT | OFD | CRD | ReviewKD
Lesson = Annotated[KD | DKD | IKLKD | GKLKD | AT | OFD | CRD | ReviewKD, Field(discriminator="kind")]
