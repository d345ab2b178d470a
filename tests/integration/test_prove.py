"""`dklbench verify` and `dklbench compare` as a user types them, on evidence that a short attack leaves."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from trials import cnn, evaluation, write_images

from dkl.architectures import CNN
from dkl.batches import as_pixels
from dkl.datasets import load
from dkl.documents import ThreatModel
from dkl.engine import run
from dkl.evidence import About, EvidenceStage, data_sha256, read_evidence, write_evidence
from dkl.packing import pack
from dkl.recipes import fingerprint
from dkl.tally import Finding, Tally
from dkl.verify import classify, verify
from dkl.weights import save_checkpoint
from service.cli import main

IMAGES, EPS = 24, (0.02, 0.05)


@dataclass(frozen=True)
class Judged:
    """A small model, what an attack of one step found, and the data they are about."""

    evidence: Path
    checkpoint: Path
    data_dir: Path


def judge(folder: Path, seed: int, *, data_of: int = 0) -> Judged:
    model = cnn(seed=seed)
    data_dir = folder / f"data{data_of}"
    data_dir.mkdir(parents=True, exist_ok=True)
    write_images(data_dir, cnn(seed=data_of), IMAGES)
    arrays = load("npz:tiny", "test", data_dir)
    x, y = torch.from_numpy(arrays.images).permute(0, 3, 1, 2), torch.from_numpy(arrays.labels)
    x = as_pixels(x).requires_grad_()
    correct, _ = classify(model, x, y)
    gradient = torch.autograd.grad(cross_entropy(model(x), y), x)[0]
    x = x.detach()
    tally = Tally(np.arange(IMAGES), arrays.labels, seed=0)
    tally.clean_correct = correct.numpy()
    for stage, eps in enumerate(EPS, start=1):
        tally.begin_radius()
        threat = ThreatModel(norm="Linf", eps=eps)
        x_adv = (x + eps * gradient.sign()).clamp(0, 1)
        rows = torch.from_numpy(tally.standing())
        rows = rows[verify(model, x[rows], x_adv[rows], y[rows], threat).broken]
        in_8_bits, rounded = pack(model, x[rows], x_adv[rows], y[rows], threat)
        count = len(rows)
        tally.add(
            stage,
            Finding(
                rows=rows.numpy(),
                broken=np.ones(count, np.bool_),
                restart=np.zeros(count, np.int16),
                target=np.full(count, -1, np.int16),
                step=np.ones(count, np.int32),
                margin=np.full(count, -1, np.float32),
                flat=np.zeros(count, np.bool_),
                x8=rounded[in_8_bits].numpy(),
                x32=x_adv[rows][~in_8_bits].numpy(),
                in_8_bits=in_8_bits.numpy(),
            ),
        )
    checkpoint = folder / f"model{seed}.safetensors"
    sha256 = save_checkpoint(
        checkpoint, model, architecture=CNN(width=4), channels=1, classes=10, dataset="npz:tiny"
    )
    recipe = evaluation(eps=EPS[1], curve=[EPS[0]])
    about = About(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        checkpoint_sha256=sha256,
        data_sha256=data_sha256(arrays, np.arange(IMAGES)),
        stages=[
            EvidenceStage(name="clean", phase="clean", eps=0.0),
            *(EvidenceStage(name="fgsm", phase="suite", eps=eps) for eps in EPS),
        ],
        engine="one step",
        versions={},
    )
    evidence = tally.evidence(about, (1, 8, 8))
    assert 0 < len(evidence.rows8) < IMAGES
    assert set(evidence.broken_at) == {-1, 0, 1}
    write_evidence(folder / f"evidence{seed}.safetensors", evidence)
    return Judged(folder / f"evidence{seed}.safetensors", checkpoint, data_dir)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dklbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, stdout, stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dklbench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def verify_words(judged: Judged) -> list[object]:
    return ["verify", judged.evidence, "--checkpoint", judged.checkpoint, "--data-dir", judged.data_dir]


def test_an_honest_evaluation_is_proved(dklbench: Run, tmp_path: Path) -> None:
    judged = judge(tmp_path, 0)
    code, printed, _ = dklbench(*verify_words(judged), "--device", "cpu")
    evidence = read_evidence(judged.evidence)
    assert "every claim holds" in printed
    assert f"robust accuracy, Linf 0.05  {evidence.standing(1).mean():.2%}" in printed
    assert f"{len(evidence.rows8) + len(evidence.rows32)}, {len(evidence.rows8)} of them in 8 bits" in printed
    assert "AutoAttack standard, one step" in printed
    assert code == 0


def test_a_lie_is_told_and_fails(dklbench: Run, tmp_path: Path) -> None:
    judged = judge(tmp_path, 0)
    evidence = read_evidence(judged.evidence)
    x8 = evidence.x8.copy()
    x8[0] = 0
    write_evidence(judged.evidence, replace(evidence, x8=x8))
    code, printed, _ = dklbench(*verify_words(judged))
    assert "not proved: 1 claims do not hold" in printed
    assert f"image {evidence.images[evidence.rows8[0]]} has an adversarial image that is farther" in printed
    assert code == 1


def test_another_checkpoint_other_data_and_no_evidence_are_one_sentence(dklbench: Run, tmp_path: Path) -> None:
    judged, other = judge(tmp_path, 0), judge(tmp_path, 5, data_of=5)
    for words, sentence in [
        (verify_words(replace(judged, checkpoint=other.checkpoint)), "the evidence is about the checkpoint"),
        (verify_words(replace(judged, data_dir=other.data_dir)), "give the data directory"),
        (verify_words(replace(judged, evidence=judged.checkpoint)), "the metadata of"),
        (verify_words(replace(judged, evidence=tmp_path / "none")), "none"),
        (["compare", judged.evidence, other.evidence], "only results on the same images can be compared"),
    ]:
        code, _, said = dklbench(*words)
        assert code == 1
        assert said.startswith("error: ")
        assert sentence in said


def test_the_model_is_asked_with_the_preprocessing_it_was_judged_with(dklbench: Run, tmp_path: Path) -> None:
    write_images(tmp_path, cnn(), IMAGES)
    checkpoint = tmp_path / "model.safetensors"
    sha256 = save_checkpoint(
        checkpoint, cnn(), architecture=CNN(width=4), channels=1, classes=10, dataset="npz:tiny"
    )
    source = {"checkpoint": sha256, "preprocessing": {"mean": [0.9], "std": [0.2]}}
    recipe = evaluation(model=source, suite=[{"kind": "apgd-ce", "steps": 3}])
    for _ in run(recipe, tmp_path / "work", device="cpu", data_dir=tmp_path, fetch=lambda _: checkpoint):
        pass
    judged = Judged(tmp_path / "work" / "evidence.safetensors", checkpoint, tmp_path)
    assert not read_evidence(judged.evidence).clean_correct.all()  # it matters
    code, printed, _ = dklbench(*verify_words(judged), "--device", "cpu")
    assert (code, "every claim holds" in printed) == (0, True)


def test_two_models_side_by_side(dklbench: Run, tmp_path: Path) -> None:
    a, b = judge(tmp_path, 0), judge(tmp_path, 1)
    code, printed, _ = dklbench("compare", a.evidence, b.evidence)
    assert code == 0
    assert "24 images of tiny" in printed
    rows = [line.split() for line in printed.splitlines()]
    [clean] = [row for row in rows if row[:1] == ["clean"]]
    robust = [row for row in rows if row[:1] == ["Linf"]]
    assert clean[1] == "100.00%"
    assert [row[1] for row in robust] == ["0.02", "0.05"]
    standing = [read_evidence(judged.evidence).standing(0) for judged in (a, b)]
    counts = [x & y for x in (standing[0], ~standing[0]) for y in (standing[1], ~standing[1])]
    assert robust[0][4] == "/".join(str(count.sum()) for count in counts)
    assert "note:" not in printed
