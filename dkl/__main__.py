"""python -m dkl RECIPE [PATH=VALUE ...]: run a named recipe here and print its events, one JSON line each."""

import argparse
import sys
from pathlib import Path

from dkl.extras import what_to_install
from dkl.local import InterruptedRunError, Judged, prepare, teacher_called

INVALID, INTERRUPTED = 2, 130


def main(words: list[str] | None = None) -> int:
    """The exit code: 0, 2 with a sentence on stderr for what the caller can mend, 130 after Ctrl-C."""
    arguments = _parser().parse_intermixed_args(words)
    try:
        judged = Judged(
            arguments.checkpoint, arguments.model, arguments.zoo, arguments.timm, arguments.torchvision
        )
        run = prepare(
            arguments.recipe,
            arguments.changes,
            judged=judged,
            teacher=teacher_called(arguments.teacher),
            workdir=arguments.workdir,
            plot=arguments.plot,
        )
        for event in run.events(device=arguments.device, data_dir=arguments.data_dir):
            print(event.model_dump_json(), flush=True)
    except ModuleNotFoundError as error:
        if (sentence := what_to_install(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return INVALID
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID
    except InterruptedRunError as error:
        print(error, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dkl", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="a name from the catalogue (dkl/catalog.py)")
    parser.add_argument("changes", metavar="PATH=VALUE", nargs="*", help="threat.eps=4/255, epochs=2, ...")
    parser.add_argument("--workdir", type=Path, help="where results go; default runs/RECIPE-FINGERPRINT")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the training curve: .png, .svg or .pdf")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where data sets lie (default: data)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--teacher",
        metavar="FILE|NAME",
        help="the teacher of a distillation: a checkpoint, MODULE:NAME, or a zoo, timm or torchvision name",
    )
    judged = parser.add_argument_group("the model that an evaluation judges, one of")
    judged.add_argument("--checkpoint", type=Path, metavar="FILE", help="a checkpoint of ours")
    judged.add_argument("--model", metavar="MODULE:NAME", help="a function here that returns an nn.Module")
    judged.add_argument("--zoo", metavar="NAME", help="of RobustBench: cifar10/Linf/Wang2023Better_WRN-28-10")
    judged.add_argument("--timm", metavar="NAME", help="of timm: resnet18.a1_in1k")
    judged.add_argument("--torchvision", metavar="NAME", help="of torchvision: resnet18.IMAGENET1K_V1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
