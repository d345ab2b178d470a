"""python -m dkl, as a process; its mistakes in this one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dkl.__main__ import main
from dkl.catalog import parse_overrides

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "dkl"]
SMALL = ["natural-digits", "epochs=1", "model.width=2", "images=128"]


def dkl(tmp_path, *words):
    return subprocess.run(
        [*COMMAND, *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def lines(output):
    return [json.loads(line) for line in output.splitlines()]


def sentence(process):
    """What a user reads after a mistake: one line, no traceback, exit code 2."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == "" or lines(process.stdout)[-1]["kind"] == "started"
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.slow  # `dklbench run` does the same in tests/integration/test_cli.py
def test_train_then_judge(tmp_path):
    trained = dkl(tmp_path, *SMALL, "--device", "cpu")
    assert (trained.returncode, trained.stderr) == (0, "")
    events = lines(trained.stdout)
    assert events[0]["kind"] == "started"
    assert events[-1]["kind"] == "finished"
    [workdir] = (tmp_path / "runs").iterdir()
    assert workdir.name.startswith("natural-digits-")
    assert len(workdir.name) == len("natural-digits-") + 8

    judged = dkl(
        tmp_path,
        "autoattack-digits-linf",
        "--checkpoint",
        str(workdir / "model.safetensors"),
        "images=4",
        "threat.eps=4/255",
        'suite=[{"kind": "apgd-ce", "steps": 2}]',
        "--workdir",
        "judged",
        "--data-dir",
        "nowhere",
    )
    assert (judged.returncode, judged.stderr) == (0, "")
    result = lines(judged.stdout)[-1]["result"]
    assert result["images"] == 4
    assert result["checkpoint_sha256"] == events[-1]["result"]["checkpoint_sha256"]
    assert (tmp_path / "judged" / "evidence.safetensors").exists()


@pytest.mark.slow  # tests/integration/test_cli.py and test_plot.py have its parts
def test_a_training_draws_its_curve(tmp_path):
    words = ["ikl-at-digits", "epochs=2", "model.width=2", "images=128", "seed=5", "--plot", "out.svg"]
    trained = dkl(tmp_path, *words)
    assert (trained.returncode, trained.stderr) == (0, "")
    picture = (tmp_path / "out.svg").read_text()
    assert "<!-- ikl-at-digits, Linf 0.2, seed 5 -->" in picture
    assert "<!-- adversarial, training batches -->" in picture


@pytest.mark.long
def test_judging_what_a_function_here_returns(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    attack = 'suite=[{"kind": "apgd-ce", "steps": 2}]'
    judged = dkl(tmp_path, "autoattack-digits-linf", "--model", "mine:net", "images=20", attack)
    assert (judged.returncode, judged.stderr) == (0, "")
    result = lines(judged.stdout)[-1]["result"]
    assert (result["images"], result["architecture"]) == (20, "Sequential")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["natural-digit"], "unknown recipe 'natural-digit'; did you mean natural-digits"),
        (["natural-digits", "epochs"], "'epochs' is no change to a recipe; write PATH=VALUE, such as epochs=2"),
        (["natural-digits", "epochs=many"], "epochs: must be a whole number, found 'many'"),
        (["natural-digits", "speed=2"], "speed: is no field here"),
        (
            ["natural-digits", "--checkpoint", "x"],
            "natural-digits trains a model of its own; leave out --checkpoint",
        ),
        (["autoattack-digits-linf"], "autoattack-digits-linf judges a model: say which with --checkpoint FILE"),
        (["autoattack-digits-linf", "model.job=0123456789ab"], "jobs and stored checkpoints are a service's"),
        (["autoattack-digits-linf", "--zoo", "a", "--timm", "b"], "found --zoo and --timm; say in one way only"),
        (["natural-digits", "--timm", "b"], "natural-digits trains a model of its own; leave out --timm"),
        (["autoattack-cifar10-linf", "--zoo", "Carmon2019"], "model.zoo: unknown zoo model 'Carmon2019'; did you"),
        (["autoattack-digits-linf", "--model", "nowhere:net"], "there is no module 'nowhere' for --model"),
        (["autoattack-digits-linf", "--model", "net"], "model.function: 'net' names no function"),
        (["autoattack-digits-linf", "--checkpoint", "missing"], "there is no file missing"),
        (["autoattack-digits-linf", "--checkpoint", "text"], "text is not a safetensors file"),
        (["natural-digits", "dataset=npz:mine"], "data/mine_train.npz does not exist"),
        (["natural-digits", "--device", "tpu"], "unknown device 'tpu'"),
        (["natural-digits", "--plot", "out"], "--plot out: found the suffix ''; write one of .png, .svg, .pdf"),
        (["natural-digits", "--plot", "no/out.png"], "--plot no/out.png: there is no folder no; make it"),
        (["autoattack-digits-linf", "--plot", "out.png"], "autoattack-digits-linf trains nothing, so it has no"),
        (["natural-digits", "--workdir", "text"], "[Errno 17] File exists: 'text'"),
    ],
)
def test_a_mistake_is_one_sentence(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no weights")
    code = main(words)
    assert sentence(subprocess.CompletedProcess(words, code, *capsys.readouterr())).startswith(expected)


@pytest.mark.long
def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path):
    words = [*SMALL[:2], "epochs=100000", "model.width=2", "--workdir", "work"]
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while json.loads(process.stdout.readline())["kind"] != "epoch":
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped; the same command goes on from what is in work\n"
    assert (tmp_path / "work" / "last.pt").exists()


def test_overrides_are_json_or_text():
    words = ["epochs=2", "threat.eps=4/255", "awp=null", "model.kind=cnn", 'a={"b": [1]}', "c=", "d=x=y", "e=0.5"]
    assert parse_overrides(words) == {
        "epochs": 2,
        "threat.eps": "4/255",
        "awp": None,
        "model.kind": "cnn",
        "a": {"b": [1]},
        "c": "",
        "d": "x=y",
        "e": 0.5,
    }


@pytest.mark.parametrize("word", ["epochs", "=3", "threat.=3", ".eps=3", "a..b=3", ""])
def test_other_words_are_no_overrides(word):
    with pytest.raises(ValueError, match="is no change to a recipe; write PATH=VALUE"):
        parse_overrides([word])
