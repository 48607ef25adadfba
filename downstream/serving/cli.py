"""The verb `core-mri serve`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from core_mri.errors import ConfigError
from downstream.serving.settings import ServeConfig


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Returns:
        0 after it was stopped.

    Raises:
        ConfigError: CONFIG-06 without the extra `serve` or, for --ray, `serve-ray`; and what
            `serve` and `serve_on_ray` raise.
    """
    config = tyro.cli(ServeConfig, prog="core-mri serve", args=list(arguments))
    extra = "serve-ray" if config.ray else "serve"
    try:
        if config.ray:
            from downstream.serving.ray_app import load_ray_serve
            from downstream.serving.ray_app import serve_on_ray as serve

            load_ray_serve()
        else:
            from downstream.serving.server import serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            "CONFIG-06", f"{error.name} is not installed.", fix=f"pip install 'core-mri[{extra}]'."
        ) from None
    out = sys.stdout  # the address alone: Ray prints to it too, and is sent elsewhere
    serve(config, started=lambda url: print(url, file=out, flush=True))
    return 0
