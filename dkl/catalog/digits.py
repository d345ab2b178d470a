"""Every objective on handwritten digits of 8 x 8 pixels: each trains in half a minute on a laptop. No torch.

They show that something works, not which objective is better: nothing is tuned.
"""

from dkl.architectures import CNN
from dkl.catalog.entries import DIGITS_LINF, Named
from dkl.objectives import AWP, GKL, IKL, MART, PGD, PGDAT, TRADES, Natural, Objective
from dkl.recipes import SGD, Train


def _digits(objective: Objective, attack: PGD, awp: AWP | None = None) -> Train:
    return Train(
        dataset="digits",
        model=CNN(),
        objective=objective,
        threat=DIGITS_LINF,
        attack=attack,
        awp=awp,
        augmentation=None,
        epochs=30,
        optimizer=SGD(lr=0.1),
    )


DIGITS: dict[str, Named] = {
    "natural-digits": Named(
        Train(
            dataset="digits",
            model=CNN(),
            objective=Natural(),
            augmentation=None,
            epochs=15,
            optimizer=SGD(lr=0.1),
        ),
        "A small CNN trained on clean handwritten digits; accurate, and defenceless.",
    ),
    "ikl-at-digits": Named(
        _digits(IKL(), PGD(loss="ikl"), AWP()),
        "The same CNN trained adversarially with IKL-AT: half a minute on a laptop, and it stands.",
    ),
    "gkl-at-digits": Named(
        _digits(GKL(gamma=0.4, prior_temperature=1.0), PGD(loss="ikl"), AWP()),
        "The same CNN with GKL-AT, smoothed as in the authors' CIFAR-100 script.",
    ),
    "trades-digits": Named(_digits(TRADES(), PGD(loss="kl")), "The same CNN with TRADES, beta 6."),
    "pgd-at-digits": Named(_digits(PGDAT(), PGD(loss="ce")), "The same CNN with PGD adversarial training."),
    "mart-digits": Named(_digits(MART(), PGD(loss="ce")), "The same CNN with MART, beta 6."),
}
