"""Every objective on handwritten digits of 8 x 8 pixels: each trains in half a minute on a laptop. No torch.

Students are a quarter as wide as their teachers, natural-digits or ikl-at-digits.

They show that something works, not which objective is better: nothing is tuned.
"""

from dkl.architectures import CNN
from dkl.catalog.entries import DIGITS_LINF, Named
from dkl.lessons import AT, CRD, DKD, GKLKD, IKLKD, KD, OFD, Lesson, ReviewKD
from dkl.objectives import AWP, DAJAT, GKL, IKL, LBGAT, MART, PGD, PGDAT, TRADES, Natural, Objective
from dkl.recipes import SGD, Distillation, Train

_STUDENT = CNN(width=8)


def on_digits(objective: Objective, attack: PGD, awp: AWP | None = None, lr: float = 0.1) -> Train:
    """Adversarial training of a small CNN, in seconds."""
    return Train(
        dataset="digits",
        model=CNN(),
        objective=objective,
        threat=DIGITS_LINF,
        attack=attack,
        awp=awp,
        augmentation=None,
        epochs=30,
        optimizer=SGD(lr=lr),
    )


_TRAINED: dict[str, Named] = {
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
    "natural-digits-cnn-8": Named(
        Train(
            dataset="digits",
            model=_STUDENT,
            objective=Natural(),
            augmentation=None,
            epochs=15,
            optimizer=SGD(lr=0.1),
            averaging=None,
        ),
        "The student of the distillations on digits, trained without a teacher for as long.",
    ),
    "ikl-at-digits": Named(
        on_digits(IKL(), PGD(loss="ikl"), AWP()),
        "The same CNN trained adversarially with IKL-AT: half a minute on a laptop, and it stands.",
    ),
    "gkl-at-digits": Named(
        on_digits(GKL(gamma=0.4, prior_temperature=1.0), PGD(loss="ikl"), AWP()),
        "The same CNN with GKL-AT, smoothed as in the authors' CIFAR-100 script.",
    ),
    "trades-digits": Named(on_digits(TRADES(), PGD(loss="kl")), "The same CNN with TRADES, beta 6."),
    "pgd-at-digits": Named(on_digits(PGDAT(), PGD(loss="ce")), "The same CNN with PGD adversarial training."),
    "mart-digits": Named(on_digits(MART(), PGD(loss="ce")), "The same CNN with MART, beta 6."),
    "lbgat-digits": Named(
        # The squared difference of logits does not stand a larger learning rate with so many inputs per logit.
        on_digits(LBGAT(beta=6.0, teacher=CNN()), PGD(loss="kl"), lr=0.01),
        "The same CNN with LBGAT, beta 6, guided by another one that learns along on clean images.",
    ),
    "dajat-digits": Named(
        on_digits(DAJAT(beta=6.0, consistency=2.0), PGD(loss="kl", steps=2, relative_step_size=1.0), AWP()),
        "The same CNN with DAJAT, two AutoAugment views and AWP.",
    ),
}

# --- distillation -----------------------------------------------------------------------------------------


def _taught(objective: Lesson, method: str) -> Named:
    recipe = Distillation(
        dataset="digits",
        model=_STUDENT,
        objective=objective,
        augmentation=None,
        epochs=15,
        optimizer=SGD(lr=0.1),
    )
    return Named(recipe, f"{method} from natural-digits into a CNN a quarter as wide.")


def _taught_robustly(objective: Lesson, method: str) -> Named:
    recipe = Distillation(
        dataset="digits",
        model=_STUDENT,
        objective=objective,
        threat=DIGITS_LINF,
        attack=PGD(loss="kl", steps=5, eps_schedule="constant"),
        augmentation=None,
        epochs=30,
        optimizer=SGD(lr=0.1),
    )
    return Named(recipe, f"Robust distillation by {method}, from ikl-at-digits into a CNN a quarter as wide.")


_DISTILLED: dict[str, Named] = {
    "kd-digits": _taught(KD(), "KD"),
    "dkd-digits": _taught(DKD(warmup=5), "DKD"),
    "at-kd-digits": _taught(AT(), "AT"),
    "ofd-digits": _taught(OFD(), "OFD"),
    "crd-digits": _taught(CRD(negatives=256), "CRD"),
    "reviewkd-digits": _taught(ReviewKD(weight=1.0, warmup=5), "ReviewKD"),
    "ikl-kd-digits": _taught(IKLKD(wmse_weight=4.0, warmup=5), "IKL-KD"),
    "gkl-kd-digits": _taught(GKLKD(wmse_weight=4.0, warmup=5), "GKL-KD"),
    "kd-rd-digits": _taught_robustly(KD(label_weight=0.0, weight=1.0, temperature=1.0), "KD"),
    "ikl-rd-digits": _taught_robustly(
        IKLKD(label_weight=0.0, wmse_weight=1.0, temperature=1.0, prior_temperature=4.0, warmup=10), "IKL"
    ),
    "gkl-rd-digits": _taught_robustly(
        GKLKD(label_weight=0.0, wmse_weight=1.0, temperature=1.0, prior_temperature=4.0, warmup=10), "GKL"
    ),
}

DIGITS: dict[str, Named] = {**_TRAINED, **_DISTILLED}
