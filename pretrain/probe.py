"""Does the encoder know what a slice shows? Simple probes on labels that come with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from core_mri.metrics.intervals import bootstrap_interval, holm, paired_permutation
from core_mri.models.encoder import Encoder
from core_mri.training.probes import knn_probe, linear_probe
from data_registry.slices import SliceSample
from pretrain.config import PretrainConfig
from pretrain.crops import crop_resize
from pretrain.data import Slices, slice_order
from pretrain.views import MIN_SIDE, pad_slices

TASKS = ("region", "sequence", "plane")
"""Labels of a slice that come free with the data."""
METHODS = ("knn", "linear")
PIXELS = "pixels"
"""In place of weights: the slices themselves, averaged to 16 x 16. An encoder should know more."""
NEIGHBORS = 10
MIN_PATIENTS_FOR_P = 8
"""Below this a table is descriptive: no p-values."""
_BATCH = 64
_PIXEL_GRID = 16

Row = dict[str, str | int | float | bool | None]


@dataclass(frozen=True)
class ProbeResult:
    """Scores of all tasks and encoders."""

    cells: list[Row]
    """One for each task, method, encoder and patient."""
    summary: list[Row]
    """Means over patients with intervals; p compares the pretrained encoder with its twin."""
    notes: list[str]
    """What was compared, and what could not be."""


@dataclass(frozen=True)
class _Task:
    """Which of the slices have a label that both sides know."""

    bank: list[int]
    truth: Tensor
    """[len(bank)] class numbers."""
    queries: list[int]
    answers: list[int]
    """[len(queries)] class numbers."""


class ProbeSet:
    """Fixed slices of whole size: a bank with labels, and queries that are judged.

    The bank holds training slices. Queries come from validation patients, else from every second
    training patient (whose images, not labels, the encoder has seen). Slices are drawn evenly over
    volumes and resized to the size of a global view.

    Args:
        train: Training slices.
        validation: Slices of validation patients, None without any.
        num_slices: Slices at most on each side.
        size: Side of a slice as the encoder sees it, px.
    """

    def __init__(
        self, train: Slices, validation: Slices | None, *, num_slices: int, size: int
    ) -> None:
        bank = _draw(train, num_slices)
        self.from_validation = validation is not None
        if validation is not None:
            queries, origin = _draw(validation, num_slices), "validation patients"
        else:
            patients = sorted({(sample.region, sample.subject_id) for sample in bank})
            known = {patient for _, patient in patients[::2]}
            queries = [sample for sample in bank if sample.subject_id not in known]
            bank = [sample for sample in bank if sample.subject_id in known]
            origin = "training patients whose labels were held back"
        self.notes = [
            f"{len(bank)} training slices as neighbors, {len(queries)} slices of {origin}, "
            f"k = {NEIGHBORS}."
        ]
        self.subjects = [sample.subject_id for sample in queries]
        # Half floats: these stay in memory for the whole run.
        self.bank, self.queries = (
            whole_slices([sample.image for sample in samples], size) for samples in (bank, queries)
        )
        self.tasks: dict[str, _Task] = {}
        for task in TASKS:
            found = _find(bank, queries, task)
            if found is None:
                self.notes.append(
                    f"{task}: not scored, fewer than two known labels or nothing to judge."
                )
            else:
                self.tasks[task] = found

    @property
    def patients(self) -> dict[str, int]:
        """Patients judged, by task."""
        return {
            name: len({self.subjects[i] for i in task.queries}) for name, task in self.tasks.items()
        }

    def told_patients(self) -> str:
        """`patients` in words."""
        counts = ", ".join(f"{n} for {task}" for task, n in self.patients.items()) or "none"
        return counts if self.from_validation else f"none ({counts} of training)"

    def embed(self, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """Class tokens [N, D] and [M, D], on the CPU, of bank and queries."""
        return embed(encoder, self.bank), embed(encoder, self.queries)

    def pixels(self) -> tuple[Tensor, Tensor]:
        """The slices themselves as features, [N, 256] and [M, 256]."""
        bank, queries = (
            functional.adaptive_avg_pool2d(images.float(), _PIXEL_GRID).flatten(1)
            for images in (self.bank, self.queries)
        )
        return bank, queries

    def scores(self, features: tuple[Tensor, Tensor], method: str) -> dict[str, dict[str, float]]:
        """Accuracy of every task by patient.

        Args:
            features: What is judged, of bank and queries: what `embed` or `pixels` gave.
            method: ``knn`` (weighted nearest neighbors) or ``linear`` (logistic regression).
        """
        bank, queries = features
        classify = {"knn": _knn, "linear": linear_probe}[method]
        result = {}
        for name, task in self.tasks.items():
            guess = classify(bank[task.bank], task.truth, queries[task.queries]).argmax(1)
            hits: dict[str, list[bool]] = {}
            for i, label, answer in zip(task.queries, guess.tolist(), task.answers, strict=True):
                hits.setdefault(self.subjects[i], []).append(label == answer)
            result[name] = {patient: float(np.mean(right)) for patient, right in hits.items()}
        return result


def probe_set(
    config: PretrainConfig, train: Slices, validation: Slices | None, *, online: bool = False
) -> ProbeSet:
    """The slices of the probe at the end of a run, or of those while it goes on."""
    return ProbeSet(
        train,
        validation,
        num_slices=config.health.probe_slices if online else config.probe_slices,
        size=config.views.global_size,
    )


def probe(
    encoders: dict[str, Encoder], slices: ProbeSet, *, seed: int, twin: str = "random"
) -> ProbeResult:
    """Accuracy of simple probes on region, sequence and plane, a mean over patients.

    Args:
        encoders: Name to encoder; the first is judged against the second. A third row, `PIXELS`,
            tells what the slices themselves are worth.
        slices: The slices.
        seed: Of bootstrap and permutations.
        twin: Name of the encoder that is the twin.
    """
    cells: list[Row] = []
    summary: list[Row] = []
    features = {name: slices.embed(encoder) for name, encoder in encoders.items() if slices.tasks}
    if slices.tasks:
        features[PIXELS] = slices.pixels()
    for method in METHODS:
        by_name = {name: slices.scores(found, method) for name, found in features.items()}
        for task in slices.tasks:
            scores = {name: found[task] for name, found in by_name.items()}
            cells += [
                {
                    "task": task, "weights": name, "twin": name == twin, "method": method,
                    "k": NEIGHBORS if method == "knn" else None, "draw": 0, "seed": seed,
                    "patient": patient, "structure": "", "metric": "accuracy", "value": value,
                    "unit": "1",
                }
                for name, by_patient in scores.items()
                for patient, value in sorted(by_patient.items())
            ]  # fmt: skip
            summary += _summarize(task, method, scores, seed)
    tested = [(row, p) for row in summary if isinstance(p := row["p"], float)]
    for (row, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
        row["p_holm"] = float(adjusted)
    return ProbeResult(cells, summary, list(slices.notes))


@torch.no_grad()
def embed(encoder: Encoder, images: Tensor) -> Tensor:
    """Class tokens [N, D], on the CPU, of images [N, 1, S, S]."""
    device = next(encoder.parameters()).device
    if not len(images):
        return torch.zeros(0, encoder.embed_dim)
    rows = [encoder(part.to(device).float()).cls.float().cpu() for part in images.split(_BATCH)]
    return torch.cat(rows)


def whole_slices(slices: Sequence[npt.NDArray[np.float32]], size: int) -> Tensor:
    """Whole slices resized to squares of `size` px: float16 [N, 1, size, size] in [0, 1]."""
    rows = [torch.zeros(0, 1, size, size, dtype=torch.float16)]
    for start in range(0, len(slices), _BATCH):
        images = slices[start : start + _BATCH]
        boxes = torch.tensor([[[0, 0, *image.shape]] for image in images])
        rows.append(crop_resize(pad_slices(images), boxes, size).half())
    return torch.cat(rows)


def _knn(train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
    return knn_probe(train_x, train_y, test_x, k=NEIGHBORS)


def _find(bank: Sequence[SliceSample], queries: Sequence[SliceSample], task: str) -> _Task | None:
    known = sorted({_label(sample, task) for sample in bank} - {"unknown"})
    judged = [i for i, sample in enumerate(queries) if _label(sample, task) in known]
    if len(known) < 2 or not judged:
        return None
    labeled = [i for i, sample in enumerate(bank) if _label(sample, task) in known]
    truth = torch.tensor([known.index(_label(bank[i], task)) for i in labeled])
    return _Task(labeled, truth, judged, [known.index(_label(queries[i], task)) for i in judged])


def _draw(dataset: Slices, num_slices: int) -> list[SliceSample]:
    """Up to `num_slices` different slices, evenly over volumes; always the same ones."""
    wanted = min(num_slices, len(dataset))
    chosen = slice_order(dataset, 0)(0, wanted)
    samples = [dataset[int(position)] for position in np.unique(chosen)]
    return [sample for sample in samples if min(sample.image.shape) >= MIN_SIDE]


def _label(sample: SliceSample, task: str) -> str:
    return {"region": sample.region, "sequence": sample.sequence, "plane": sample.plane}[task]


def _summarize(task: str, method: str, scores: dict[str, dict[str, float]], seed: int) -> list[Row]:
    """A row for each encoder, and one for the paired difference of the first two."""
    first, second = list(scores)[:2]
    patients = sorted(scores[first])
    values = {name: [found[patient] for patient in patients] for name, found in scores.items()}
    pairs = zip(values[first], values[second], strict=True)
    values[f"{first} minus {second}"] = [ours - theirs for ours, theirs in pairs]
    rows: list[Row] = []
    for name, per_patient in values.items():
        interval = bootstrap_interval(per_patient, seed=seed)
        many = interval.n > 1
        rows.append(
            {
                "task": task, "weights": name, "method": method,
                "k": NEIGHBORS if method == "knn" else None, "metric": "accuracy",
                "mean": interval.mean, "n": interval.n,
                "ci_low": interval.low if many else None,
                "ci_high": interval.high if many else None, "p": None, "p_holm": None,
            }
        )  # fmt: skip
    if len(patients) >= MIN_PATIENTS_FOR_P:
        rows[0]["p"] = paired_permutation(values[first], values[second], seed=seed)
    return rows
