"""The `core-mri` command: a table of verbs, each imported when called.

Errors of this project become one line on stderr and an exit code: 0 done, 1 failed, 2 wrong usage
or configuration, 130 interrupted with the checkpoint kept.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from core_mri.errors import CoreMRIError
from core_mri.version import __version__

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("core_mri.demo:main", "the whole chain on embedded data, ends with a report"),
    "info": ("core_mri.info:main", "versions, device, models"),
    "data": ("data_registry.cli:main", "ingest, de-identify and look at scans"),
    "pretrain": ("pretrain.cli:main", "train an encoder without labels"),
    "finetune": ("downstream.cli:finetune_main", "adapt an encoder to a task with a few labels"),
    "evaluate": ("downstream.cli:evaluate_main", "weights x tasks, with intervals, to a report"),
    "embed": ("downstream.embed_cli:main", "frozen features of scans, to npz or Parquet"),
    "segment": ("core_mri.segment_cli:main", "a mask of a scan, by classes or by prompts"),
    "synthesize": ("downstream.synthesis.cli:synthesize_main", "synthetic scans, lesions at will"),
    "reconstruct": ("downstream.reconstruction.cli:reconstruct_main", "slices from raw data"),
    "serve": ("downstream.serving.cli:main", "take uploads over HTTP, give results back"),
    "leaderboard": ("downstream.leaderboard.cli:main", "tasks with hidden references, ranked"),
    "mrd": ("downstream.serving.mrd.cli:main", "reconstruct an MRD stream from stdin to stdout"),
    "export": ("core_mri.weights.cli:export_main", "weights for SAM's code, TorchScript or ONNX"),
    "push": ("core_mri.weights.cli:push_main", "publish a weights folder on a model hub"),
    "pull": ("core_mri.weights.cli:pull_main", "fetch a weights folder from a model hub"),
}
"""Verb -> ("module:function", one line of help). The function takes the words after the verb."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Words after `core-mri`; those of the process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"core-mri {__version__}")
        return 0
    if words[0] not in VERBS:
        import difflib

        close = difflib.get_close_matches(words[0], VERBS, n=1)
        meant = f" Perhaps you meant {close[0]!r}." if close else ""
        print(f"core-mri: no verb {words[0]!r}.{meant} See core-mri --help.", file=sys.stderr)
        return 2
    return guarded(VERBS[words[0]][0], words[1:])


def guarded(entry: str, words: Sequence[str]) -> int:
    """Call ``"module:function"`` with `words`; its errors become a line and an exit code."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr
    )
    previous = signal.signal(signal.SIGTERM, _terminate)
    module, _, function = entry.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(words))
    except CoreMRIError as error:
        print(f"core-mri: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("core-mri: interrupted; what was complete is kept.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output left (`core-mri ... | head`); keep Python quiet at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:  # tyro: 0 after --help, 2 after a wrong flag
        return leaving.code if isinstance(leaving.code, int) else 1
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            f"core-mri {__version__}: foundation models for magnetic resonance imaging",
            "",
            "usage: core-mri VERB ... (each verb explains itself: core-mri VERB --help)",
            "",
            *lines,
            "",
            "First time here? `core-mri demo` shows everything in five minutes.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
