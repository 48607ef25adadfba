"""`core-mri synthesize sample` and `edit`: pairs of synthetic scans and their labels."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core_mri import read_volume
from core_mri.errors import ConfigError, DataError
from core_mri.runs import Run
from core_mri.volume import SLICE_ORIENTATION, Volume
from data_registry.catalogue import Registry
from data_registry.ingest import IngestConfig, ingest
from data_registry.source_list import load_sources
from downstream.segmentation.examples import mixed
from downstream.synthesis.anatomies import Anatomies, anatomies_of, label_volumes, lesions_of
from downstream.synthesis.cases import Case, licence_of
from downstream.synthesis.config import PHYSICS, Anatomy, EditConfig, LesionPlan, SampleConfig
from downstream.synthesis.copies import copied
from downstream.synthesis.edits import Edit, Edited, change, check_values, heal, insert
from downstream.synthesis.lesions import Shape, draw_shape, find_lesions
from downstream.synthesis.makers import (
    Maker,
    PhysicsMaker,
    Scan,
    TrainedMaker,
    moved,
    on_square,
)
from downstream.synthesis.pairs import pair_folders, write_pair, write_source
from downstream.synthesis.run import on_grid

log = logging.getLogger(__name__)

_TRIES = 5
"""Seeds of an edit, or of a scan that turned out a copy, before the sample fails."""


def sample(
    config: SampleConfig,
    *,
    resume: bool = False,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Path:
    """Make pairs and, if asked to, add them to the registry as a generated source.

    Label maps are those of training patients, taken in turn. A pair depends on (seed, number)
    alone, so an interrupted run continues with the same ones.

    Args:
        config: What to do.
        resume: Demand that the folder holds an unfinished run.
        on_progress: Called with pairs made and pairs in all.

    Returns:
        The folder.

    Raises:
        CoreMRIError: What went wrong, with its code; pairs that are whole are kept.
    """
    registry = Registry.open(config.registry)
    trained = None
    if config.generator != PHYSICS:
        trained = TrainedMaker(config.generator, config.device)
    anatomy = Anatomy(**trained.card.get("anatomy", {})) if trained else config.anatomy
    anatomies = anatomies_of(registry, config, anatomy)
    maker = _maker(config, anatomies, trained)
    factory = Factory(registry, anatomies, maker, config)
    with Run.open(config.out, config, resume=resume) as run:
        done = {folder.name for folder in pair_folders(config.out)}
        for number in range(config.count):
            name = f"{config.source}-{number:05d}"
            if name not in done:
                scan, provenance = factory.make(number)
                values = [anatomies.task.labels.get(n, 0) for n in ("", *anatomies.names.values())]
                write_pair(config.out / name, scan, maker.sequences, provenance, values)
            on_progress(number + 1, config.count)
            if run.stop_requested:
                raise KeyboardInterrupt
        regions = {row.region for row in anatomies.rows}
        source = write_source(
            config.out,
            config.source,
            licence=licence_of([*anatomies.rows, *factory.shape_volumes]),
            sequences=maker.sequences,
            region=regions.pop() if len(regions) == 1 else "unknown",
        )
    if config.ingest:
        ingest(
            IngestConfig(
                registry=config.registry,
                sources=load_sources(source),
                key_file=config.key_file,
                compression=config.compression,
                jobs=1,
            )
        )
    return config.out


class Factory:
    """Makes the pairs of a run, one by one.

    Args:
        registry: The registry.
        anatomies: Label maps.
        maker: What makes scans.
        config: What is asked for.

    Raises:
        ConfigError: CONFIG-05 when a lesion or tissue has no such name.
        DataError: DATA-09 when no label volume has the shapes of the lesions.
    """

    def __init__(
        self, registry: Registry, anatomies: Anatomies, maker: Maker, config: SampleConfig
    ) -> None:
        self.registry, self.anatomies, self.maker = registry, anatomies, maker
        self.config = config
        self._values = {name: value for value, name in anatomies.names.items()}
        plan = config.lesions
        asked = (plan.structure, *plan.inside) if plan.structure else ()
        if unknown := [name for name in asked if name not in self._values]:
            raise ConfigError(
                "CONFIG-05",
                f"lesions: no structure or tissue {', '.join(unknown)}; there are "
                f"{', '.join(self._values)}.",
            )
        self.shape_volumes = label_volumes(registry, plan.shapes) if plan.shapes else []

    def make(self, number: int) -> tuple[Scan, dict[str, Any]]:
        """Pair `number` and its provenance.

        Raises:
            DataError: SYNTH-02 to SYNTH-05 when a lesion fits nowhere, SYNTH-08 when the generator
                makes nothing but copies.
        """
        config = self.config
        seed = mixed(config.seed, number)
        case = self.anatomies.case(number % len(self.anatomies))
        labels = on_square(case.labels, self.maker.side(case.labels))
        if config.deform:
            labels = moved(labels, mixed(seed, 0), config.physics)
        labels, edits = self._edited(labels, case, seed)
        scan, scan_seed = self._scanned(labels, case, seed)
        if number == 0 and scan.labels.plane != case.labels.plane:
            log.warning(
                "pixels of the generator are wider than the slices are apart: the registry will "
                "store these volumes in %s slices, not %s ones",
                scan.labels.plane, case.labels.plane,
            )  # fmt: skip
        parents = {case.subject, *self.maker.subjects, *(e["shape_of"] for e in edits)}
        return scan, {
            "number": number,
            "seed": config.seed,
            "scan_seed": scan_seed,
            "labels_of": case.subject,
            "label_volume": case.label_volume,
            "generated_from": sorted(parents),
            "generator": self.maker.facts,
            "names": {str(value): name for name, value in self.anatomies.task.labels.items()},
            "anatomy": {str(value): name for value, name in self.anatomies.names.items()},
            "deformed": config.deform,
            "edits": edits,
        }

    @functools.cached_property
    def shapes(self) -> list[Shape]:
        """The lesion library: every lesion of the patients that give shapes."""
        structure = self.config.lesions.structure
        if self.shape_volumes:
            return lesions_of(self.registry, self.shape_volumes, structure, 1)
        return self.anatomies.lesions(structure)

    def _edited(self, labels: Volume, case: Case, seed: int) -> tuple[Volume, list[dict[str, Any]]]:
        plan = self.config.lesions
        rng = np.random.default_rng((seed, 2))
        if not plan.structure:
            return labels, []
        value = self._values[plan.structure]
        inside = [self._values[name] for name in plan.inside]
        if plan.clear:
            for shape in find_lesions(labels, [value], case.subject, min_voxels=1):
                labels = heal(labels, shape, inside)
        if rng.random() >= plan.chance:
            return labels, []
        failed: DataError | None = None
        for _ in range(_TRIES):
            edit = Edit(
                seed=int(rng.integers(2**31)),
                volume_ml=_volume(plan, rng),
                mirror=bool(rng.random() < 0.5),
                mass_effect=plan.mass_effect,
            )
            try:
                edited = insert(
                    labels, draw_shape(self.shapes, rng), edit, value=value, inside=inside
                )
            except DataError as error:
                failed = error
                continue
            return edited.labels, [edited.provenance]
        assert failed is not None
        raise failed

    def _scanned(self, labels: Volume, case: Case, seed: int) -> tuple[Scan, int]:
        """A scan that is no copy, and its seed."""
        for attempt in range(_TRIES):
            scan_seed = mixed(seed, attempt)
            scan = self.maker.make(labels, scan_seed)
            if not self.maker.subjects:
                return scan, scan_seed
            own = copied(scan.channels[0], self._training)
            if not len(own):
                return scan, scan_seed
            log.warning("%d slices of a sample were copies; it is made again", len(own))
        raise DataError(
            "SYNTH-08",
            f"the generator copies training patients: {_TRIES} scans of the labels of "
            f"{case.subject} hold slices that do.",
            fix="Train it on more patients, or shorter.",
        )

    @functools.cached_property
    def _training(self) -> npt.NDArray[np.float32]:
        """[M, side, side], the first sequence of every slice that shows a structure.

        They are those of all pairs at hand; what else the generator saw is not in this run.
        """
        parts = []
        for number in range(len(self.anatomies)):
            case = self.anatomies.case(number)
            images, labels = on_grid(case, self.maker.side(case.labels))
            parts.append(images[labels.flatten(1).any(1), 0].numpy())
        return np.concatenate(parts)


def edit(config: EditConfig) -> dict[str, Any]:
    """Change one label map, make a scan of it and write the pair.

    Returns:
        The provenance.

    Raises:
        DataError: SYNTH-01 to SYNTH-06.
        ConfigError: CONFIG-03 when the folder exists.
    """
    if config.out.exists():
        raise ConfigError("CONFIG-03", f"{config.out} exists.", fix="Choose another --out.")
    names = config.values
    given = read_volume(config.labels)
    stored = dataclasses.replace(given, array=np.asarray(given.array), kind="label")
    labels = stored.reorient(SLICE_ORIENTATION[stored.plane])
    check_values(labels, names)
    labels = labels.with_array(labels.array.astype(np.uint8 if max(names) < 256 else np.int16))
    maker: Maker
    if config.generator == PHYSICS:
        maker = PhysicsMaker(config.physics, ("",))
    else:
        maker = TrainedMaker(config.generator, config.device)
        maker.check_labels(names)
    labels = moved(on_square(labels, maker.side(labels)), config.scan_seed, config.physics)
    edited = _edit(labels, config, {name: value for value, name in names.items()})
    scan = maker.make(edited.labels, config.scan_seed)
    facts = {
        "labels_of": config.labels.name,
        "scan_seed": config.scan_seed,
        "generated_from": sorted({*maker.subjects}),
        "generator": maker.facts,
        "names": {str(value): name for value, name in names.items()},
        "edits": [edited.provenance],
    }
    write_pair(config.out, scan, maker.sequences, facts, range(max(names) + 1))
    return facts


def _edit(labels: Volume, config: EditConfig, values: dict[str, int]) -> Edited:
    value, inside = values[config.structure], [values[name] for name in config.inside]
    subject = config.labels.name
    if config.change >= 0:
        return change(
            labels, config.change, config.edit, value=value, inside=inside, subject=subject
        )
    shapes = [
        shape
        for path in config.shapes
        for shape in find_lesions(read_volume(path), [config.shapes_value], path.name)
    ]
    shape = draw_shape(shapes, np.random.default_rng(config.edit.seed))
    return insert(labels, shape, config.edit, value=value, inside=inside)


def _maker(config: SampleConfig, anatomies: Anatomies, trained: TrainedMaker | None) -> Maker:
    sequences = anatomies.task.sequences or ("",)
    if trained is None:
        return PhysicsMaker(config.physics, sequences, anatomies.names, config.signals)
    trained.check_labels(anatomies.names)
    trained.check_sequences(sequences)
    return trained


def _volume(plan: LesionPlan, rng: np.random.Generator) -> float:
    low, high = plan.volume_ml
    return math.exp(rng.uniform(math.log(low), math.log(high))) if low else 0.0
