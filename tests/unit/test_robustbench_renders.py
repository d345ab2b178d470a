"""RobustBench's own generate_leaderboard makes its table of the files that we write."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.in_print import packaged_documents
from service.model_info import of_row
from service.model_info_folder import write_dir
from service.rows import Board, Row

FOUND = importlib.util.find_spec("robustbench")
pytestmark = pytest.mark.skipif(
    FOUND is None or not FOUND.submodule_search_locations,
    reason="robustbench is not installed: pip install --no-deps robustbench==1.1.1",
)
TEMPLATE = """<table>{% for model in models %}
<tr><td>{{ loop.index }}</td><td><a href="{{ model.link }}">{{ model.name }}</a>
{%- if model.footnote is defined and model.footnote != None %}<span>{{ model.footnote }}</span>{% endif %}</td>
<td>{{ model.clean_acc }}%</td><td>{{ model[acc_field] }}%</td>
{%- if threat_model != "corruptions" %}
<td>{{ model.external if model.external is defined and model.external else model[acc_field] }}%</td>
<td>{{ "Unknown" if model.unreliable is not defined else model.unreliable }}</td>{% endif %}
<td>{{ model.additional_data }}</td><td>{{ model.architecture }}</td><td>{{ model.venue }}</td></tr>
{% endfor %}</table>
"""
"""With all that RobustBench's own one shows; the wheel comes without it."""
PROGRAM = """
import sys, types
for name in ("gdown", "torchdiffeq", "geotorch"):  # imported beside the leaderboard, and not used by it
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchdiffeq"].odeint_adjoint = None
from robustbench.leaderboard.template import generate_leaderboard
generate_leaderboard(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed package with a template, and without its __init__, which needs what nobody installs."""
    assert FOUND is not None
    assert FOUND.submodule_search_locations
    (installed,) = FOUND.submodule_search_locations
    package = tmp_path_factory.mktemp("site") / "robustbench"
    (package / "leaderboard").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "leaderboard" / "leaderboard.html.j2").write_text(TEMPLATE)
    for name in ("model_zoo", "utils.py", "leaderboard/__init__.py", "leaderboard/template.py"):
        (package / name).symlink_to(Path(installed) / name)
    return package.parent


def table(library: Path, folder: Path, dataset: str, threat_model: str) -> list[list[str]]:
    """The cells of the rows that RobustBench prints."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, dataset, threat_model, str(folder)]
    environment = {"PYTHONPATH": str(library), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=250)
    assert answer.returncode == 0, answer.stderr
    return [
        re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr>.*?</tr>", answer.stdout, re.DOTALL)
    ]


@pytest.mark.long
def test_generate_leaderboard_ranks_what_we_write(library: Path, tmp_path: Path) -> None:
    mine = Row(
        entry="0123456789ab",
        name="ikl-at & <co>",
        source="measured",
        board=Board(dataset="cifar10", threat_model="Linf", eps=8 / 255),
        eps=8 / 255,
        architecture="WRN-34-10",
        clean_accuracy=0.95,
        robust_accuracy=0.7001,
        best_known_accuracy=0.7001,
        images=10_000,
        suite="AutoAttack standard",
        unreliable=False,
        engine="dkl-bench 0.1.0",
    )
    write_dir(tmp_path, [*packaged_documents(), of_row(mine, "https://bench.example.org")])
    rows = table(library, tmp_path, "cifar10", "Linf")
    assert len(rows) == 100
    assert [row[0] for row in rows] == [str(rank) for rank in range(1, 101)]
    best = [float(row[4].rstrip("%")) for row in rows]
    assert best == sorted(best, reverse=True)
    (ours,) = (row for row in rows if "entries/0123456789ab" in row[1])
    assert ours[1].startswith(
        '<a href="https://bench.example.org/entries/0123456789ab">ikl-at &amp; &lt;co&gt;</a>'
    )
    assert ours[2:6] == ["95.00%", "70.01%", "70.01%", "False"]
    (xiao,) = (row for row in rows if "k-Winners-Take-All" in row[1])
    assert xiao[2:6] == ["79.28%", "18.50%", "7.40%", "True"]
