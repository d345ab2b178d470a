"""CITATION.cff is valid and true; the licence is what the package says; what belongs to others is noted."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_follows_the_schema_and_the_package() -> None:
    schema = json.loads((ROOT / "tests/data/citation-file-format-1.2.0.json").read_text())
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    jsonschema.validate(cited, schema, jsonschema.Draft7Validator)
    assert (cited["version"], cited["license"]) == (PROJECT["version"], PROJECT["license"])


def test_the_licence_is_the_one_that_is_declared() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text.split()) > 1500


def test_the_notice_names_files_that_are_there() -> None:
    notice = (ROOT / "NOTICE").read_text()
    named = re.findall(r"^((?:[\w.-]+/)[\w./*-]+)", notice, re.MULTILINE)
    assert len(named) >= 8
    for pattern in named:
        assert any(ROOT.glob(pattern)), pattern
    for lock in ("service/web/static/vendor", "docs_theme/assets/javascripts", "tests/data/axe"):
        for entry in tomllib.loads((ROOT / lock / "vendor.lock").read_text())["file"]:
            assert entry["name"].partition(".")[0].lower() in notice.lower(), entry["name"]
