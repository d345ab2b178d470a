"""The `dklbench` command as a user types it."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from commands import Answer, Command
from processes import BIN, Processes, ends, wait_until

from service.client import Client, ServiceError
from service.settings import Settings

SMALL = ["natural-digits", "epochs=1", "model.width=2"]


def started(*words: str, settings: Settings, cwd: Path | None = None) -> Answer:
    """A process of its own, as a shell starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **settings.as_environment()}
    command = [str(BIN / "dklbench"), *words]
    done = subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=280
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "ikl-at-digit"], "did you mean ikl-at-digits"),
        (["run", "natural-digits", "epochs"], "write PATH=VALUE"),
        (["run", "natural-digits", "epochs=ten"], "epochs: must be a whole number, found 'ten'"),
        (["run", "natural-digits", "--device", "tpu"], "unknown device 'tpu'"),
        (["run", "natural-digits", "dataset=npz:mine"], "put it there"),
        (["run", "autoattack-digits-linf"], "say which with --checkpoint FILE"),
        (
            ["run", "natural-digits", "--plot", "curve.gif"],
            "found the suffix '.gif'; write one of .png, .svg, .pdf",
        ),
        (["run", "autoattack-digits-linf", "--plot", "curve.png"], "has no training curve; leave out --plot"),
        (["recipes", "cifar1000"], "no recipe has 'cifar1000' in its name"),
        (["evaluate"], "say which model to judge, in one way: FILE, --zoo"),
        (["evaluate", "m.safetensors", "--zoo", "cifar10/Linf/x"], "say which model to judge, in one way"),
        (["evaluate", "m.safetensors"], "there is no file m.safetensors"),
        (["evaluate", "autoattack-digits-linf"], "dklbench run autoattack-digits-linf --checkpoint FILE"),
        (["evaluate", "--zoo", "cifar10/Linf/Carmon"], "did you mean cifar10/Linf/Carmon2019Unlabeled"),
        (["evaluate", "--timm", "resnet18"], "say by which recipe to judge resnet18, such as: --recipe"),
        (["evaluate", "--timm", "resnet18", "--recipe", "natural-digits"], "trains a model of its own; name an"),
        (["run", "autoattack-digits-linf", "images=3"], "say which with --checkpoint FILE, --model MODULE:NAME"),
        (["run", "natural-digits", "--timm", "x"], "trains a model of its own; leave out --timm"),
        (["submit", "ikl-at-digit"], "did you mean ikl-at-digits"),
        (["submit", "natural-digits", "--then", "autoattack"], "did you mean autoattack-"),
        (["upload", "no.pt"], "there is no file no.pt"),
        (["watch", "0123456789ab", "--url", "bench.example.org"], "is no address of a service; write http://"),
        (["convert", "no.pt", "o.safetensors", "--architecture", "{wrn", "--dataset", "digits"], "is not JSON"),
        (
            ["convert", "no.pt", "o.safetensors", "--architecture", '{"kind": "wrn"}', "--dataset", "digits"],
            "--architecture: kind must be 'cnn', 'resnet', ",
        ),
        (
            ["convert", "no.pt", "o.safetensors", "--architecture", '{"kind": "cnn"}', "--dataset", "digits"],
            "there is no file no.pt",
        ),
        (
            ["verify", "evidence.safetensors"],
            "say which model evidence.safetensors is about with --checkpoint FILE",
        ),
        (["up", "--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], sentence: str, dklbench: Command) -> None:
    code, out, err = dklbench(*words)
    assert (code, out) == (1, "")
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_and_recipes(dklbench: Command, settings: Settings) -> None:
    assert "Adversarial robustness benchmarking" in started("--help", settings=settings).stdout
    assert "ikl-at-cifar100-wrn-34-10" in dklbench("recipes").stdout
    some = dklbench("recipes", "CIFAR100").stdout
    assert re.search(r"ikl-at-cifar100-wrn-34-10 +65\.76% +31\.91% ", some)
    assert "digits" not in some
    one = dklbench("recipes", "ikl-at-cifar100-wrn-34-10").stdout
    assert "published: 65.76% clean, 31.91% under AutoAttack; " in one
    assert "others with this in their name: ikl-at-cifar100-wrn-34-10-" in one


@pytest.mark.long
def test_run_trains_and_judges_without_a_service(dklbench: Command, settings: Settings, tmp_path: Path) -> None:
    trained = started("run", *SMALL, "--plot", "curve.svg", settings=settings, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "trained" in trained.stdout
    assert re.search(r"\n +1/1 +\d\.\d{4} +[\d.]+% ", trained.stdout)
    [model] = tmp_path.glob("runs/*/model.safetensors")
    assert f"the checkpoint is {model.relative_to(tmp_path)}" in trained.stdout
    assert "<!-- natural-digits, seed 0 -->" in (tmp_path / "curve.svg").read_text()
    judged = dklbench(
        "run", "autoattack-digits-linf", "images=8", 'suite=[{"kind": "apgd-ce", "steps": 5}]',
        "--checkpoint", str(model),
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert "robust" in judged.stdout


def test_weights_of_others_are_converted_and_judged(dklbench: Command, tmp_path: Path) -> None:
    import torch

    from dkl.architectures import CNN
    from dkl.models import build

    theirs = build(CNN(width=4), channels=1, classes=10).state_dict()
    theirs |= {"mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}
    torch.save({"state_dict": {f"module.{name}": w for name, w in theirs.items()}}, tmp_path / "theirs.pt")
    converted = dklbench(
        "convert", "theirs.pt", "ours.safetensors",
        "--architecture", "cnn width=4", "--dataset", "digits",
    )  # fmt: skip
    assert converted.returncode == 0, converted.stderr
    assert re.search(r"ours.safetensors is a checkpoint with sha256 [0-9a-f]{64}\n", converted.stdout)
    assert (
        """note: these weights are for normalised pixels; evaluate them with \
'model.preprocessing={"mean": [0.5], "std": [0.25]}'"""
        in converted.stdout
    )
    judged = dklbench(
        "run", "autoattack-digits-linf", "images=8", 'suite=[{"kind": "apgd-ce", "steps": 2}]',
        "--checkpoint", "ours.safetensors", 'model.preprocessing={"mean": [0.5], "std": [0.25]}',
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert "robust" in judged.stdout


@pytest.mark.long
def test_a_function_in_the_current_directory_is_judged(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nnet = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    judged = started(
        "run", "autoattack-digits-linf", "images=8", 'suite=[{"kind": "apgd-ce", "steps": 2}]',
        "--model", "mine:net", settings=settings, cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    assert "robust" in judged.stdout


@pytest.mark.long
def test_ctrl_c_keeps_the_work_and_says_how_to_go_on(
    processes: Processes, settings: Settings, tmp_path: Path
) -> None:
    workdir = tmp_path / "work"
    words = ["run", "natural-digits", "epochs=100000", "--workdir", str(workdir)]
    running = processes.start(str(BIN / "dklbench"), *words, environment=settings.as_environment())
    wait_until((workdir / "last.pt").exists, what="the first epoch")
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=30) == 130
    assert "the same command goes on" in processes.output()


@pytest.mark.long
def test_submit_watch_list_cancel(shared_embedded: tuple[Settings, Client], dklbench: Command) -> None:
    _, client = shared_embedded
    here = ["--url", client.url]
    watched = dklbench("submit", *SMALL, "--watch", *here)
    assert watched.returncode == 0, watched.stderr
    [job_id] = re.findall(r"job ([0-9a-f]{12}) is queued", watched.stdout)
    assert "trained" in watched.stdout
    assert "trained" in dklbench("watch", job_id, *here).stdout
    assert job_id in dklbench("jobs", *here).stdout
    endless = client.submit("natural-digits", {"epochs": 100_000}).id
    assert "cancel" in dklbench("cancel", endless, *here).stdout
    ends(client, endless, "canceled")
    late = dklbench("cancel", job_id, *here)
    assert (late.returncode, "already succeeded" in late.stderr) == (1, True)
    assert "CIFAR-10" in dklbench("leaderboard", "--dataset", "cifar10", *here).stdout


@pytest.mark.long
def test_an_evaluation_is_stopped_and_verified(
    shared_embedded: tuple[Settings, Client], dklbench: Command, tmp_path: Path
) -> None:
    _, client = shared_embedded
    here = ["--url", client.url]
    model = client.submit("natural-digits", {"epochs": 1, "model.width": 2})
    quick = [
        "autoattack-digits-linf",
        f"model.job={model.id}",
        "images=20",
        'suite=[{"kind": "apgd-ce", "steps": 5}]',
    ]
    first = dklbench("submit", *quick, "--top", "1", "--watch", *here)
    assert first.returncode == 0, first.stderr
    assert "its board has fewer than 1 rows, so nothing stops it" in first.stdout
    assert re.search(r"[\d.]+% clean, [\d.]+% robust, custom", first.stdout)
    [job_id] = re.findall(r"job ([0-9a-f]{12}), autoattack-digits-linf, is queued", first.stdout)
    [row] = client.leaderboard(dataset="digits").rows
    second = dklbench("submit", *quick, "--top", "1", "seed=1", *here)
    assert f"it stops once its robust accuracy is certain to be below {row.robust_accuracy:.2%}" in second.stdout

    saved = dklbench("evidence", job_id, *here)
    assert saved.returncode == 0, saved.stderr
    assert (tmp_path / f"{job_id}-evidence.safetensors").exists()
    proved = dklbench("verify", job_id, *here)
    assert (proved.returncode, "every claim holds" in proved.stdout) == (0, True), proved.stderr
    with pytest.raises(ServiceError, match="trains a model"):
        model.download("evidence", tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [f"{job_id}-evidence.safetensors"]


@pytest.mark.long
def test_the_demo_tells_the_true_story_and_a_second_start_finds_it(settings: Settings) -> None:
    first = started("demo", "--exit", settings=settings)
    assert first.returncode == 0, first.stderr
    ranked = re.findall(r"(\d) +(ikl-at|natural)-digits(?: CNN-32)? +([\d.]+) +([\d.]+) ", first.stdout)
    assert [(rank, name) for rank, name, _, _ in ranked] == [("1", "ikl-at"), ("2", "natural")]
    robust = {name: float(value) for _, name, _, value in ranked}
    clean = {name: float(value) for _, name, value, _ in ranked}
    assert robust["natural"] < 20
    assert robust["ikl-at"] > 45
    assert min(clean.values()) > 90
    second = started("demo", "--exit", settings=settings)
    tables = [re.findall(r"\d+\.\d\d", run.stdout.split("Handwritten")[1]) for run in (first, second)]
    assert tables[0] == tables[1]
