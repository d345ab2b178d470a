"""A recipe and what its run might say, for tests of everything around the library."""

from dkl.catalog import resolve
from dkl.events import Epoch, EvaluateResult, Finished, Progress, StageResult, TrainResult

TRAIN = resolve("natural-digits", {})
EPOCH = Epoch(
    epoch=1, epochs=2, loss=0.5, clean_accuracy=0.9, adversarial_accuracy=None, eps=None, lr=0.1, seconds=1.0
)
PROGRESS = Progress(phase="epoch 1 of 2", done=1, total=2, rate=10, eta_seconds=3)
TRAINED = Finished(
    result=TrainResult(checkpoint_sha256="a" * 64, parameters=10, epochs=2, clean_accuracy=0.95, seconds=2.0)
)
JUDGED = Finished(
    result=EvaluateResult(
        images=2,
        clean_accuracy=1.0,
        robust_accuracy=0.5,
        robust_interval=(0.1, 0.9),
        stages=(StageResult(name="clean", accuracy=1.0, seconds=0.1),),
        class_robust_accuracy=(0.5,),
        rejected=0,
        warnings=(),
        checkpoint_sha256="a" * 64,
        architecture="CNN-32",
        engine="pyautoattack 0.2.0",
        seconds=1.0,
    )
)
