"""The label of an Open Recon container: JSON in Base64 on a Docker image.

Keys and values as published labels have them (neurodesk/openrecon); validated against a schema of
ours, `open_recon_schema.json`. No scanner has read a label of ours.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from core_mri.errors import ConfigError
from core_mri.runs import write_atomically, writing
from core_mri.version import __version__
from downstream.serving.results import NOT_DIAGNOSTIC
from downstream.serving.sources import is_solver, name_of

KEY = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
PORT = 9002
_MEMORY_MB = 8192
_NOTICE = f"Research use only, {NOT_DIAGNOSTIC}."


def make_label(sources: Sequence[str]) -> dict[str, Any]:
    """A label that offers these sources.

    Args:
        sources: As `core-mri serve` takes them; the first is the default.

    Raises:
        ConfigError: CONFIG-05 for a label that does not fit the schema.
    """
    names = [source if is_solver(source) else name_of(source) for source in sources]
    version = ".".join(part for part in __version__.split(".")[:3] if part.isdigit())
    label = {
        "general": {
            "name": {"en": "core-mri"},
            "version": version,
            "vendor": "core-mri",
            "information": {"en": f"Accelerated reconstruction of Cartesian raw data. {_NOTICE}"},
            "id": "core-mri",
            "regulatory_information": {
                "device_trade_name": "core-mri",
                "production_identifier": version,
                "manufacturer_address": "",
                "made_in": "",
                "manufacture_date": "",
                "material_number": f"core-mri_{version}",
                "gtin": "",
                "udi": "",
                "safety_advices": _NOTICE,
                "special_operating_instructions": _NOTICE,
                "additional_relevant_information": "",
            },
        },
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": PORT,
            "emitter": "raw",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": not all(map(is_solver, sources)),
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_required_memory": _MEMORY_MB,
            "min_count_required_cpu_cores": 2,
            "content_qualification_type": "RESEARCH",
        },
        "parameters": [
            _choice("config", "Method", names),
            _choice("datatype", "Pixels", ["uint16", "float32"]),
        ],
    }
    check_label(label)
    return label


def check_label(label: object) -> None:
    """Hold a label against the schema.

    Raises:
        ConfigError: CONFIG-05 naming the first place that does not fit; CONFIG-06 without the extra
            `serve`.
    """
    try:
        import jsonschema
    except ModuleNotFoundError as error:
        raise ConfigError(
            "CONFIG-06", f"{error.name} is not installed.", fix="pip install 'core-mri[serve]'."
        ) from None
    schema = json.loads((files("downstream.serving.mrd") / "open_recon_schema.json").read_text())
    found = jsonschema.Draft202012Validator(schema).iter_errors(label)
    for problem in sorted(found, key=lambda p: p.json_path):
        raise ConfigError(
            "CONFIG-05", f"the Open Recon label at {problem.json_path}: {problem.message[:200]}."
        )


def write_label(path: Path, sources: Sequence[str]) -> dict[str, Any]:
    """Write `make_label` as JSON.

    Raises:
        ConfigError: As `make_label`.
        DataError: DATA-07 when it cannot be written.
    """
    label = make_label(sources)
    with writing(path):
        write_atomically(path, (json.dumps(label, indent=2) + "\n").encode())
    return label


def docker_line(label: dict[str, Any]) -> str:
    """The instruction that puts a label on an image."""
    content = base64.b64encode(json.dumps(label).encode()).decode()
    return f'LABEL "{KEY}"="{content}"'


def _choice(identity: str, label: str, values: Sequence[str]) -> dict[str, Any]:
    return {
        "id": identity,
        "label": {"en": label},
        "type": "choice",
        "values": [{"id": value, "name": {"en": value}} for value in values],
        "default": values[0],
    }
