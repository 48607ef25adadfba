"""Who competes, on which cells: encoders, their random twins, and what must hold before a start."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from core_mri.devices import select_device
from core_mri.errors import ConfigError, CoreMRIError
from core_mri.models.registry import EncoderConfig, SamConfig
from core_mri.weights import load_model
from core_mri.weights.fingerprint import weights_fingerprint
from data_registry.catalogue import Registry
from downstream.adapt import architecture, random_twin, sizes_of, start_of
from downstream.classification.examples import Examples
from downstream.clustering.scores import ClusterData
from downstream.cohort import fingerprint
from downstream.config import FinetuneConfig, SuiteConfig, Task
from downstream.evaluation.cells import Cell, Contender, TaskData, prepare
from downstream.recipe import Recipe
from downstream.segmentation.data import Pairs

READ_BY_ATTENTION = (
    "validate_every", "batch_size", "learning_rate", "encoder_learning_rate", "layer_decay",
    "adapter_learning_rate", "adapter_ratio", "lora_rank", "lora_alpha", "weight_decay",
    "warmup_fraction", "patience", "slices_per_example",
)  # fmt: skip
"""Fields of a recipe with an effect on a classifier by attention, besides image_size."""


@dataclass(frozen=True)
class Failed:
    """A task or an encoder that could not be set up; its cells fail with this error."""

    name: str
    error: Exception
    optional: bool = False
    """Whether too few patients leave its cells empty (`Task.optional`)."""


def as_suite(config: FinetuneConfig) -> SuiteConfig:
    """The suite of one encoder and one task; the encoder is called after its folder."""
    parts = [part for part in Path(config.weights).parts if part not in ("weights", "/", ".", "..")]
    name = parts[-1] if parts else config.weights
    return SuiteConfig(
        registry=config.registry,
        out=config.out,
        weights={name: config.weights},
        tasks=(config.task,),
        k=(config.k,),
        per_class=(config.per_class,),
        draws=config.draws,
        seed=config.seed,
        steps=config.steps,
        adaptation=config.adaptation,
        recipe=config.recipe,
        device=config.device,
        allow_overlap=config.allow_overlap,
    )


def prepared(config: SuiteConfig, registry: Registry) -> list[TaskData | Failed]:
    """The scans of every task, or why there are none."""
    found: list[TaskData | Failed] = []
    for task in config.tasks:
        try:
            found.append(prepare(registry, task))
        except CoreMRIError as error:
            found.append(Failed(task.name, error, task.optional))
    return found


def contenders(config: SuiteConfig) -> Iterator[Contender | Failed]:
    """Each encoder, then the random twin of each architecture, one at a time in memory."""
    twins: dict[EncoderConfig | SamConfig, Contender] = {}
    prompts = all(task.kind == "prompting" for task in config.tasks)
    for name, source in config.weights.items():
        try:
            model = load_model(source, device=str(select_device(config.device)))
        except CoreMRIError as error:
            yield Failed(name, error)
            continue
        start = start_of(model, prompts=prompts)
        sizes = sizes_of(start)
        twin_name = f"random {architecture(start)}"
        if sizes not in twins and any(t.name == twin_name for t in twins.values()):
            twin_name += f" of {name}"
        elif sizes in twins:
            twin_name = twins[sizes].name
        card = getattr(model, "card", {})
        patients = card.get("subjects")
        yield Contender(
            name,
            twin_name,
            start,
            weights_fingerprint(start),
            None if patients is None else frozenset(patients),
            card,
        )
        if sizes not in twins:
            twin = random_twin(start, config.seed)
            twins[sizes] = Contender(twin_name, "", twin, weights_fingerprint(twin), frozenset())
    yield from twins.values()


def cells_of(config: SuiteConfig, contender: Contender, data: TaskData) -> list[Cell]:
    """The cells of one encoder on one task.

    Segmentation: every k and draw; clustering: every number of clusters and start; classification:
    every number per class and draw, and one cell with all training examples.
    """
    given = {
        "task": data.task,
        "weights": contender.name,
        "against": contender.against,
        "fingerprint": contender.fingerprint,
        "scans": data.scans,
        "seed": config.seed,
    }
    if isinstance(data.data, Examples):
        given |= _classification_settings(config, data.task)
        return [
            Cell(**given, k=count, draw=number)  # type: ignore[arg-type]
            for count in config.per_class
            for number in range(config.draws if count else 1)
        ]
    counts = data.task.k or config.k
    if isinstance(data.data, ClusterData):
        counts = config.clusters
        given["recipe"] = Recipe(image_size=config.recipe.image_size)
    else:
        recipe = config.recipe
        given |= {"steps": config.steps, "adaptation": config.adaptation, "tuning": config.tuning}
        if data.task.kind == "prompting":  # whole single slices, as users prompt them
            recipe = replace(recipe, pixel_mm=0.0, neighbours=0)
            if recipe.regions and isinstance(data.data, Pairs):
                given["images"] = fingerprint(data.data.images)
        else:
            recipe = replace(recipe, regions=0)
            given["protocol"] = config.protocol
        if recipe.synthetic_share and isinstance(data.data, Pairs):
            pairs = data.data.generated
            given["synthetic"] = fingerprint([row for pair in pairs for row in pair.volumes])
        given["recipe"] = recipe
    return [
        Cell(**given, k=k, draw=number)  # type: ignore[arg-type]
        for k in counts
        for number in range(config.draws)
    ]


def _classification_settings(config: SuiteConfig, task: Task) -> dict[str, object]:
    """Of the recipe, only what has an effect."""
    recipe = Recipe(image_size=config.recipe.image_size)
    if "attention" not in task.methods:
        return {"recipe": recipe}
    effective = {name: getattr(config.recipe, name) for name in READ_BY_ATTENTION}
    return {
        "recipe": replace(recipe, **effective),
        "steps": config.steps,
        "adaptation": config.adaptation,
    }


def check_leakage(contender: Contender, data: TaskData, allow_overlap: str) -> str:
    """What is known about test patients among the pretraining patients, one sentence.

    Raises:
        ConfigError: CONFIG-05 when some are, and no reason to allow it was given.
    """
    if not contender.against:
        return "Random weights have seen nobody."
    test = {row.subject_id for row in data.rows if row.split == "test"}
    return seen_before(
        contender.pretraining_patients, test, contender.name, data.task.name, allow_overlap
    )


def seen_before(
    seen: Collection[str] | None, test: Collection[str], name: str, task: str, allow_overlap: str
) -> str:
    """What is known about test patients among those that weights were trained on, one sentence.

    Args:
        seen: Pseudonyms that the card of the weights lists; None when it lists none.
        test: Those of the test patients.
        name: Of the weights.
        task: What is tested.
        allow_overlap: Why some may be both; empty refuses it.

    Raises:
        ConfigError: CONFIG-05 when some are, and no reason to allow it was given.
    """
    if seen is None:
        return "Not checked: the card of the weights lists no pretraining patients."
    both = sorted(set(test) & set(seen))
    if not both:
        return (
            f"Checked: none of the {len(test)} test patients is among the "
            f"{len(seen)} pretraining patients."
        )
    if not allow_overlap:
        raise ConfigError(
            "CONFIG-05",
            f"task {task}: {len(both)} of {len(test)} test patients were pretraining "
            f"patients of {name}, such as {both[0]}.",
            fix="Pretrain without the test split, or give a reason with allow_overlap.",
        )
    return (
        f"OVERLAP: {len(both)} of {len(test)} test patients were seen in pretraining; allowed: "
        f"{allow_overlap}"
    )


def describe(found: TaskData | Failed) -> str:
    """Volumes and patients of a task by split, one line."""
    if isinstance(found, Failed):
        return f"task {found.name}: {found.error}"
    by_split = {"train": 0, "val": 0, "test": 0}
    patients: dict[str, set[str]] = {split: set() for split in by_split}
    for row in found.rows:
        by_split[row.split] += 1
        patients[row.split].add(row.subject_id)
    counts = ", ".join(
        f"{split} {count} volumes of {len(patients[split])} patients"
        for split, count in by_split.items()
    )
    synthetic = " (synthetic)" if all(row.synthetic for row in found.rows) else ""
    return f"task {found.task.name}: {counts}{synthetic}"
