"""The evaluations: autoattack-DATASET-NORM and corruptions-DATASET. No torch."""

from dkl.catalog.entries import DIGITS_LINF, LINF_8, Named
from dkl.documents import ThreatModel
from dkl.protocols import CorruptionProtocol, Protocol

JUDGES: dict[str, Named] = {
    "autoattack-digits-linf": Named(
        Protocol(dataset="digits", threat=DIGITS_LINF, images=100),
        "AutoAttack standard on 100 handwritten digits, Linf 0.2.",
    ),
    "autoattack-cifar10-linf": Named(
        Protocol(dataset="cifar10", threat=LINF_8),
        "RobustBench's protocol for CIFAR-10 Linf: AutoAttack standard, eps 8/255, all 10,000 test images.",
    ),
    "autoattack-cifar10-l2": Named(
        Protocol(dataset="cifar10", threat=ThreatModel(norm="L2", eps=0.5)),
        "RobustBench's protocol for CIFAR-10 L2: AutoAttack standard, eps 0.5, all 10,000 test images.",
    ),
    "autoattack-cifar100-linf": Named(
        Protocol(dataset="cifar100", threat=LINF_8),
        "RobustBench's protocol for CIFAR-100 Linf: AutoAttack standard, eps 8/255, all 10,000 test images.",
    ),
    "corruptions-cifar10": Named(
        CorruptionProtocol(dataset="cifar10"),
        "RobustBench's protocol for CIFAR-10-C: 15 common corruptions at 5 severities, all 10,000 test images.",
    ),
    "corruptions-cifar100": Named(
        CorruptionProtocol(dataset="cifar100"),
        "RobustBench's protocol for CIFAR-100-C: 15 common corruptions at 5 severities, all 10,000 test images.",
    ),
    "corruptions-digits": Named(
        CorruptionProtocol(
            dataset="digits",
            source="generated",
            corruptions=("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast"),
        ),
        "The five common corruptions that images of 8 x 8 pixels allow, at 5 severities, generated here.",
    ),
}
