"""Folders as RobustBench keeps its model_info: DATASET/THREAT_MODEL/KEY.json."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from dkl.explain import explain
from dkl.files import replacing
from service.model_info import ModelInfo

MOST_FILES = 10_000
MOST_BYTES = 65_536
"""Of one file; RobustBench's largest has 900."""


class Remark(NamedTuple):
    of: str
    """The file's path in the folder: "cifar10/Linf/KEY.json"."""
    sentence: str


class FolderRead(NamedTuple):
    entries: list[ModelInfo]
    refused: list[Remark]
    """Files that were not read, and why."""
    remarks: list[Remark]
    """What is odd about files that were read all the same."""


def read_dir(folder: Path) -> FolderRead:
    """Every FOLDER/DATASET/THREAT_MODEL/KEY.json, RobustBench's layout; files that say nothing are refused.

    Whatever lies outside of the folder is not read, links included. ValueError where the folder has no such file.
    """
    found = FolderRead([], [], [])
    for path in _files(folder):
        shown = path.relative_to(folder).as_posix()
        try:
            info, remark = _read_file(folder, path)
        except ValueError as error:
            found.refused.append(Remark(shown, str(error)))
            continue
        found.entries.append(info)
        if remark:
            found.remarks.append(Remark(shown, remark))
    return found


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.glob("*/*/*.json") if path.parts[-3] != "..")
    if not paths:
        below = folder / "model_info"
        hint = f"did you mean {below}?" if below.is_dir() else "give a folder like RobustBench's model_info"
        raise ValueError(f"there is no DATASET/THREAT_MODEL/NAME.json in {folder}; {hint}")
    if len(paths) > MOST_FILES:
        raise ValueError(f"{folder} has {len(paths):,} files, the most is {MOST_FILES:,}; import them in parts")
    return paths


def _read_file(folder: Path, path: Path) -> tuple[ModelInfo, str | None]:
    """The file's content, and what is odd about it; ValueError says why it cannot be read."""
    content = _content(folder, path)
    dataset, threat = path.parts[-3:-1]
    document = {**content, "dataset": dataset, "threat_model": threat, "key": path.stem}
    try:
        info = ModelInfo.model_validate(document)
    except ValidationError as error:
        faults = explain(error.errors(include_url=False), document, ModelInfo)
        raise ValueError("; ".join(map(str, faults))) from None
    return info, _oddity(info, content.get("dataset"))


def _content(folder: Path, path: Path) -> dict[str, Any]:
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError("it is a link that leads out of the folder")
        if not path.is_file():
            raise ValueError("it is no file")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 1024} KiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is no JSON document in UTF-8") from None
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _oddity(info: ModelInfo, dataset: object) -> str | None:
    robust = info.corruptions_acc if info.threat_model == "corruptions" else info.autoattack_acc
    if info.clean_acc is not None and robust is not None and robust > info.clean_acc:
        return f"the robust accuracy {robust:g} is higher than the clean one {info.clean_acc:g}"
    if dataset not in {None, info.dataset}:
        return f"it says dataset {dataset!r}; the folder's, {info.dataset}, is taken"
    return None


def write_dir(folder: Path, documents: list[ModelInfo]) -> None:
    """Write each one to its place in the folder, as RobustBench has it; files that are there are replaced."""
    for info in documents:
        path = folder / info.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((json.dumps(info.document(), indent=2, ensure_ascii=False) + "\n").encode())
