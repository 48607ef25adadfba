"""The verb `core-mri mrd`."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from core_mri.errors import ConfigError, CoreMRIError
from downstream.reconstruction.config import names_weights
from downstream.serving.sources import SOLVERS, is_solver

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MrdConfig:
    """Reconstruct an MRD stream from standard input to standard output; nothing is kept.

    Over TCP: `core-mri serve SOURCE --mrd`. A configuration in the stream chooses among the
    sources; without one the first is used.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """zero-filled, cg-sense, tv, wavelet, or weights of a reconstruction network."""
    device: str = "auto"
    """Where networks run: auto, cpu, cuda or cuda:N."""
    most_gb: float = 16.0
    """Longest stream."""
    label: Path | None = None
    """Write the label of an Open Recon container of these sources here instead, and print the line
    for its Dockerfile."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("CONFIG-01", "SOURCE: give at least one, such as wavelet.")
        for source in self.sources:
            if not (is_solver(source) or names_weights(source)):
                raise ConfigError(
                    "CONFIG-01",
                    f"SOURCE {source!r}: must be one of {', '.join(SOLVERS)}, a folder of weights "
                    "or FAMILY:FILE, such as fastmri-varnet:FILE.",
                )
        if not self.most_gb > 0:
            raise ConfigError("CONFIG-01", f"--most-gb {self.most_gb}: must be > 0.")


def main(arguments: Sequence[str]) -> int:
    """Answer one stream, or write a label.

    Returns:
        0 when the images are out.

    Raises:
        CoreMRIError: What `converse` raises, after the client was told.
    """
    config = tyro.cli(MrdConfig, prog="core-mri mrd", args=list(arguments))
    if config.label is not None:
        from downstream.serving.mrd.open_recon import docker_line, write_label

        print(docker_line(write_label(config.label, config.sources)))
        return 0
    # Whatever a library prints must not get into the stream.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from downstream.serving.mrd.conversation import converse
    from downstream.serving.mrd.protocol import MessageReader, error_message
    from downstream.serving.sources import check_names, describe, reconstructing, solver

    sources = tuple(
        solver(source) if is_solver(source) else describe(source, config.device)
        for source in config.sources
    )
    check_names(sources)
    sources = reconstructing(sources)
    logging.getLogger("downstream.serving").setLevel(logging.INFO)
    scratch = Path(tempfile.mkdtemp(prefix="core-mri-mrd-"))
    with out:
        try:
            reader = MessageReader(sys.stdin.buffer.read, int(config.most_gb * 1e9))
            facts = converse(reader, out.write, sources, scratch, config.device)
            log.info("%d images of %d acquisitions", facts["images"], facts["acquisitions"])
        except CoreMRIError as error:
            out.write(error_message(error.code, error.message, error.fix))
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0
