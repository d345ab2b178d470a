"""Robust distillation: an adversarially trained WRN-34-10 into a small student that meets adversarial images.

The frame is that of RSLAD (Zi et al., arXiv:2108.07969), after ARD (Goldblum et al., arXiv:1905.09747): no labels,
the teacher's word on clean images is what the student should say about adversarial ones. IKL and GKL in this
place are ours: no paper reports the combination, and no weight is tuned. (On digits a wMSE weight of 4 at this
learning rate ruins the student.) No torch.
"""

from dkl.architectures import MobileNetV2, Model, ResNet
from dkl.catalog.entries import LINF_8, Named
from dkl.lessons import GKLKD, IKLKD, KD, Lesson
from dkl.objectives import PGD
from dkl.recipes import SGD, Distillation, Steps

_STUDENTS: dict[str, Model] = {"resnet-18": ResNet(), "mobilenetv2": MobileNetV2()}
_LESSONS: dict[str, Lesson] = {
    "kd-rd": KD(label_weight=0.0, weight=5 / 6, temperature=1.0),
    "ikl-rd": IKLKD(
        label_weight=0.0, wmse_weight=1.0, ce_weight=1.0, temperature=1.0, prior_temperature=4.0, warmup=20
    ),
    "gkl-rd": GKLKD(
        label_weight=0.0,
        wmse_weight=1.0,
        ce_weight=1.0,
        temperature=1.0,
        prior_temperature=4.0,
        gamma=0.2,
        warmup=20,
    ),
}
_ABOUT = {
    "kd-rd": (
        "Robust soft labels (RSLAD, arXiv:2108.07969) with its weights, 5/6 for adversarial and 1/6 for clean "
        "images, and its schedule. Its code divides the divergence by the number of classes besides."
    ),
    "ikl-rd": "IKL in the frame of RSLAD (arXiv:2108.07969). The weights are ours and not tuned.",
    "gkl-rd": "GKL in the frame of RSLAD (arXiv:2108.07969). The weights are ours and not tuned.",
}


def _recipe(dataset: str, student: Model, objective: Lesson) -> Distillation:
    """Ten steps of 2/255 on KL, from x plus normal noise; 300 epochs, a tenth after 215, 260 and 285."""
    return Distillation(
        dataset=dataset,
        model=student,
        objective=objective,
        threat=LINF_8,
        attack=PGD(loss="kl", steps=10, relative_step_size=0.25, eps_schedule="constant"),
        clean_weight=0.2,
        epochs=300,
        batch_size=128,
        optimizer=SGD(lr=0.1, weight_decay=2e-4, schedule=Steps(epochs=(216, 261, 286))),
    )


def _about(method: str, dataset: str) -> str:
    return (
        f"{_ABOUT[method]} The teacher is a robust WRN-34-10, such as ikl-at-{dataset}-wrn-34-10's. No paper "
        "reports this combination."
    )


ROBUST_DISTILLATION: dict[str, Named] = {
    f"{method}-{dataset}-wrn-34-10-{name}": Named(_recipe(dataset, student, lesson), _about(method, dataset))
    for dataset in ("cifar10", "cifar100")
    for name, student in _STUDENTS.items()
    for method, lesson in _LESSONS.items()
}
