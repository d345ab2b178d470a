"""Prints stages of the Dockerfile as one shell script, for deploy/check_image.sh: dockerfile_steps.py STAGE...

The script runs as root in a Debian root with the build's context at /context. Its last line is a comment with the
last stage's command; `USER` is left to who runs it.

Knows the instructions that our Dockerfile uses, and says so where it meets another one.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

_DOCKERFILE = Path(__file__).parent.parent / "Dockerfile"
_NOT_RUN = {"FROM", "ARG", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK"}


def instructions(stage: str) -> list[tuple[str, str]]:
    """The stage's own instructions with their arguments, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", _DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stages = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)
    found = [part for part in stages if re.match(rf"FROM \S+ AS {re.escape(stage)}\n", part)]
    if not found:
        raise SystemExit(f"error: the Dockerfile has no stage {stage!r}")
    lines = [line.strip() for line in found[0].splitlines() if line.strip()]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


def shell(stage: str) -> Iterator[str]:
    """The stage's steps as lines of a shell script; `CMD` becomes a comment."""
    for name, rest in instructions(stage):
        match name:
            case "RUN":
                yield from _run(rest)
            case "COPY":
                *sources, target = rest.split()
                yield f"mkdir -p {target}"
                for (
                    source
                ) in sources:  # of a folder the content is copied, as Docker does; a pattern may match nothing
                    yield f'for each in /context/{source}; do if [ -d "$each" ]; then cp -r "$each"/. {target}/; '
                    yield f'elif [ -e "$each" ]; then cp "$each" {target}/; fi; done'
            case "ENV":
                yield f"export {' '.join(shlex.quote(word) for word in shlex.split(rest))}"
            case "WORKDIR":
                yield f"mkdir -p {rest}; cd {rest}"
            case "CMD":
                yield f"# CMD {shlex.join(json.loads(rest))}"
            case _ if name not in _NOT_RUN:
                raise SystemExit(f"error: dockerfile_steps.py does not know the instruction {name}; teach it")


def _run(rest: str) -> Iterator[str]:
    """A RUN with its mounts: files of the context are copied to where they would be mounted, caches left out."""
    while mount := re.match(r"--mount=(\S+)\s+", rest):
        options = dict(option.split("=", 1) for option in mount[1].split(","))
        rest = rest[mount.end() :]
        if options.get("type") == "cache" or "from" in options:  # all stages share one root here
            continue
        yield f"cp -r /context/{options['source']} {options['target']}"
    yield f"( {rest} )"


if __name__ == "__main__":
    print("set -eux")
    for asked in sys.argv[1:]:
        print(f"# --- {asked}")
        print("\n".join(shell(asked)))
