"""`dklbench verify` and `dklbench compare` as a user types them, on evidence that a short attack leaves."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from samples import JUDGED
from torch.nn.functional import cross_entropy
from trials import cnn, evaluation, write_images

from dkl.architectures import CNN
from dkl.batches import as_pixels
from dkl.datasets import load
from dkl.documents import ThreatModel
from dkl.engine import run
from dkl.events import Finished
from dkl.evidence import About, EvidenceStage, data_sha256, pictured, read_evidence, write_evidence
from dkl.packing import of_clean_pass, pack
from dkl.recipes import fingerprint
from dkl.tally import Finding, Tally
from dkl.verify import predict, verify
from dkl.weights import save_checkpoint
from service import claims, files, jobs, verifications
from service.app import create_app
from service.cli import main
from service.db import migrate
from service.settings import Settings
from service.state import State

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
    gradient = torch.autograd.grad(cross_entropy(model(x), y), x)[0]
    x = x.detach()
    tally = Tally(np.arange(IMAGES), arrays.labels, seed=0)
    tally.add(0, of_clean_pass(np.arange(IMAGES), predict(model, x), y, (1, 8, 8)))
    for stage, eps in enumerate(EPS, start=1):
        tally.begin_radius()
        threat = ThreatModel(norm="Linf", eps=eps)
        x_adv = (x + eps * gradient.sign()).clamp(0, 1)
        rows = torch.from_numpy(tally.standing())
        rows = rows[verify(model, x[rows], x_adv[rows], y[rows], threat).broken]
        in_8_bits, rounded, of_rounded = pack(model, x[rows], x_adv[rows], y[rows], threat)
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
                predicted=of_rounded.where(in_8_bits, predict(model, x_adv[rows])).numpy().astype(np.int32),
            ),
        )
    checkpoint = folder / f"model{seed}.safetensors"
    sha256 = save_checkpoint(
        checkpoint, model, architecture=CNN(width=4), channels=1, classes=10, dataset="npz:tiny"
    )
    recipe = evaluation(eps=EPS[1], curve=[EPS[0]])
    of_data = data_sha256(arrays, np.arange(IMAGES))
    about = About(
        recipe=recipe.model_dump(mode="json"),
        fingerprint=fingerprint(recipe),
        checkpoint_sha256=sha256,
        data_sha256=of_data,
        stages=[
            EvidenceStage(name="clean", phase="clean", eps=0.0),
            *(EvidenceStage(name="fgsm", phase="suite", eps=eps) for eps in EPS),
        ],
        engine="one step",
        versions={},
    )
    rows_clean = pictured(of_data, IMAGES, (1, 8, 8))
    evidence = tally.evidence(about, rows_clean, arrays.images[rows_clean].transpose(0, 3, 1, 2))
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


# --- an entry of a service --------------------------------------------------------------------------------


@dataclass
class Served:
    """A service in this process."""

    url: str
    state: State

    def entry(self, judged: Judged) -> str:
        """An evaluation that left this evidence of this checkpoint."""
        db, store = self.state.db, self.state.artifacts
        stored = {
            f"{role}_sha256": files.keep(db, store, path, key_id=None)
            for role, path in (("evidence", judged.evidence), ("checkpoint", judged.checkpoint))
        }
        job = jobs.create(db, evaluation())
        claim = claims.claim(db, job.id, worker="w", lease_seconds=60)
        assert claim is not None
        claims.finish(db, claim, Finished(result=JUDGED.result.model_copy(update={"images": IMAGES, **stored})))
        return job.id


@pytest.fixture
def anonymous() -> str:
    """What one may do at the service without a key."""
    return "submit"


@pytest.fixture
def served(settings: Settings, anonymous: str) -> Iterator[Served]:
    app = create_app(settings.model_copy(update={"anonymous": anonymous}))
    state: State = app.state.dkl
    migrate(state.db)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", state)
        state.streams.close()
        server.should_exit = True
        thread.join(20)


def entry_words(served: Served, job_id: str, judged: Judged) -> list[object]:
    return ["verify", job_id, "--url", served.url, "--data-dir", judged.data_dir, "--device", "cpu"]


def test_what_came_out_for_an_entry_is_recorded(dklbench: Run, served: Served, tmp_path: Path) -> None:
    judged = judge(tmp_path, 0)
    job_id, evidence = served.entry(judged), read_evidence(judged.evidence)
    code, printed, _ = dklbench(*entry_words(served, job_id, judged), "--no-report")
    assert (code, "every claim holds" in printed, "recorded" in printed) == (0, True, False)
    assert verifications.latest(served.state.db, job_id) is None
    code, printed, _ = dklbench(*entry_words(served, job_id, judged))
    assert (code, f"the outcome is recorded with job {job_id}" in printed) == (0, True)
    recorded = verifications.latest(served.state.db, job_id)
    assert recorded is not None
    assert (recorded.images, recorded.adversarial) == (IMAGES, len(evidence.rows8) + len(evidence.rows32))
    assert (recorded.faults, recorded.sentences, recorded.actor, recorded.device) == (0, [], "anonymous", "cpu")
    assert recorded.versions["torch"] == version("torch")


def test_a_lie_in_an_entry_is_recorded(dklbench: Run, served: Served, tmp_path: Path) -> None:
    judged = judge(tmp_path, 0)
    evidence = read_evidence(judged.evidence)
    predicted = np.where(evidence.clean_correct, evidence.predicted, 11).astype(np.int32)
    x_clean = evidence.x_clean.copy()
    x_clean[2] += 1
    write_evidence(judged.evidence, replace(evidence, predicted=predicted, x_clean=x_clean))
    job_id = served.entry(judged)
    code, printed, _ = dklbench(*entry_words(served, job_id, judged))
    recorded = verifications.latest(served.state.db, job_id)
    assert recorded is not None
    assert recorded.faults == 1 + (~evidence.clean_correct).sum()
    assert (
        f"image {evidence.rows_clean[2]} has a clean picture that is not the data set's image"
        in recorded.sentences
    )
    assert (code, "the outcome is recorded" in printed) == (1, True)


@pytest.mark.parametrize("anonymous", ["read"])
def test_whoever_may_not_report_proves_all_the_same(dklbench: Run, served: Served, tmp_path: Path) -> None:
    judged = judge(tmp_path, 0)
    job_id = served.entry(judged)
    code, printed, _ = dklbench(*entry_words(served, job_id, judged))
    assert (code, "every claim holds" in printed) == (0, True)
    assert "the outcome was not recorded: this needs an API key with scope submit" in printed
    assert verifications.latest(served.state.db, job_id) is None


@pytest.mark.parametrize("name", ["Wang2023Better_WRN-70-16", "ikl-at-cifar100-wrn34-10", "0123456789abc"])
def test_a_published_row_has_nothing_to_verify(dklbench: Run, name: str) -> None:
    code, _, said = dklbench("verify", name)
    assert code == 1
    assert f"error: {name} is no file and no evaluation's id; published results have no evidence here" in said


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
