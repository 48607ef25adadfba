"""The model card, ``README.md`` of a weights folder: what it is, from what, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core_mri.version import __version__

LIMITS = (
    "Research use only; not a medical device.",
    "Features, masks and images of scans unlike the training data may be wrong without warning.",
)


def model_card(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        config: The content of ``config.json`` with its hash.
        facts: What the run knows. Known keys, each optional: ``summary`` (one sentence), ``data``
            (mapping), ``sources`` (list of {name, licence, volumes}), ``training`` (mapping),
            ``results`` (list of rows), ``evaluations`` (list of rows: results on tasks, written by
            ``core-mri evaluate --update-cards``; no section without them), ``licence`` (SPDX
            expression of the training data), ``statistics`` (mapping: what is kept of the training
            data) and ``similarity`` (list of rows: tasks that were compared), no section without
            them, ``terms`` (mapping: what it permits), ``limits`` (list
            of sentences). A missing one is said to be missing.
            ``subjects`` (pseudonyms of the training patients) stays in ``config.json``, where an
            evaluation looks for its test patients.
    """
    licence = str(facts.get("licence", "not stated"))
    describe = {"reconstructor": _reconstructor, "generator": _generator}.get(config["kind"], _vit)
    tag, needed, network = describe(config)
    parts = [
        "---",
        *_front_matter(licence),
        "library_name: core-mri",
        f"tags: [mri, medical-imaging, {tag}]",
        "---",
        "",
        f"# {config['kind'].capitalize()} trained with core-mri {__version__}",
        "",
        str(facts.get("summary", "No summary was given when these weights were saved.")),
        "",
        "## How to load",
        "",
        "```python",
        "import core_mri",
        "",
        "model = core_mri.load_model(PATH_OF_THIS_FOLDER)",
        "```",
        "",
        "## Input",
        "",
        needed,
        "",
        "## Network",
        "",
        f"{network} SHA-256 of the tensors: `{config['sha256']}`.",
        "",
    ]
    if config["kind"] == "segmenter":
        parts += [
            "Classes: " + ", ".join(f"{k} {v}" for k, v in config["labels"].items()) + ".",
            "",
        ]
    if config["kind"] == "promptable":
        parts += ["Boxes, points and rough masks name what is segmented: `core-mri segment`.", ""]
    if config["kind"] == "classifier":
        parts += [f"Classes of a {config['level']}: {', '.join(config['classes'])}.", ""]
    for key, heading in (
        ("data", "Training data"),
        ("sources", "Sources"),
        ("training", "Training"),
        ("results", "Results"),
        *((("statistics", "What it saw"),) if facts.get("statistics") else ()),
        *((("similarity", "Similarity to tasks"),) if facts.get("similarity") else ()),
        *((("evaluations", "Transfer"),) if facts.get("evaluations") else ()),
    ):
        parts += [f"## {heading}", "", *_section(facts.get(key)), ""]
    parts += ["## Licence", "", f"{licence[:1].upper()}{licence[1:]}.", ""]
    if terms := facts.get("terms"):
        parts += ["Of the training data, the most restrictive terms of all sources:", ""]
        parts += [*_section(terms), ""]
    parts += ["## Limits", "", *(f"- {limit}" for limit in (*LIMITS, *facts.get("limits", ())))]
    return "\n".join(parts) + "\n"


def _vit(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tag, input and network of everything with an encoder."""
    encoder = config["encoder"]
    window = config["input"]["window_percentiles"]
    normalisation = (
        f"mean {encoder['mean']} and standard deviation {encoder['std']} are applied inside"
        if "mean" in encoder
        else "the patch embedding normalises them"
    )
    needed = (
        f"One channel. Intensities of a whole volume are clipped at its {window[0]} and "
        f"{window[1]} percentiles and scaled to [0, 1]; {normalisation}. "
        f"Image sides are multiples of {encoder['patch_size']} px."
    )
    network = (
        f"ViT, {encoder['depth']} blocks of width {encoder['embed_dim']}, "
        f"patch {encoder['patch_size']}."
    )
    return "vision-transformer", needed, network


COILS = {
    "single": "one coil",
    "multi": "several coils",
    "any": "one coil or several (which it was trained on is not known)",
}


def _reconstructor(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tag, input and network of everything that takes k-space."""
    sizes = {key: value for key, value in config["sizes"].items() if key != "coils"}
    needed = (
        f"Undersampled k-space of {COILS[config['sizes']['coils']]}, as it is, and its mask: "
        "`core-mri reconstruct PATH_OF_THIS_FOLDER KSPACE --out FILE`. Scaling, coil maps and "
        "cropping happen inside."
    )
    return "mri-reconstruction", needed, f"`{config['network']}`: {_plain(sizes)}."


def _generator(config: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tag, input and network of a generator of synthetic slices."""
    sizes = config["generator"]
    names = ", ".join(f"{value} {name}" for value, name in config["labels"].items())
    made = ", ".join(name or "one sequence" for name in config["sequences"])
    needed = (
        f"Label maps of {sizes['image_size']} x {sizes['image_size']} px, classes 0 and {names}; "
        f"out come synthetic slices in [0, 1]: {made}. Label maps of other classes are refused."
    )
    network = f"{sizes['kind']}, {sizes['depth']} levels, {sizes['width']} channels at the first."
    return "image-generation", needed, network


def _front_matter(licence: str) -> list[str]:
    """Model hubs know single ids in lower case; every other expression is ``other`` with a name."""
    if licence in {"not stated", "unknown"}:
        return ["license: unknown"]
    if " " in licence or licence.startswith("LicenseRef-"):
        return ["license: other", f"license_name: {licence}"]
    return [f"license: {licence.lower()}"]


def _section(content: object) -> list[str]:
    """A mapping as a list, rows as a table, nothing as a plain statement."""
    if not content:
        return ["Not recorded."]
    if isinstance(content, Mapping):
        return [f"- {key}: {_plain(value)}" for key, value in content.items()]
    if isinstance(content, list | tuple) and all(isinstance(row, Mapping) for row in content):
        columns = list(content[0])
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        return lines + [
            "| " + " | ".join(_plain(row.get(column, "")) for column in columns) + " |"
            for row in content
        ]
    return [_plain(content)]


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "/").replace("\n", " ")
