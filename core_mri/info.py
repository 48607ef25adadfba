"""`core-mri info`: what a bug report needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from core_mri.devices import environment, select_device, select_precision
from core_mri.models import list_models


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Versions, device and models of this installation."""

    json: bool = False
    """Print JSON."""


def facts() -> dict[str, object]:
    """The environment, the device that `auto` takes with its reason, and the model names."""
    choice = select_precision(select_device())
    device = {
        "device": str(choice.device),
        "precision": choice.precision,
        "reason": choice.reason,
    }
    return environment() | device | {"models": list_models()}


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    import tyro

    options = tyro.cli(InfoOptions, args=list(arguments), prog="core-mri info")
    found = facts()
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {version}" for key, version in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        print(f"{name:<12} {value}")
    return 0
