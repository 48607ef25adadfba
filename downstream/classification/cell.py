"""One cell of a classification task: every method on one draw of labelled examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from core_mri.metrics import auprc, auroc, balanced_accuracy, brier, calibration_error
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.slice_grid import image_to_square
from core_mri.training.probes import LinearMap
from downstream.classification.attention import AttentionTrainer, Bag
from downstream.classification.calibration import fit_temperature, with_temperature
from downstream.classification.examples import Example, Examples, draw_examples
from downstream.classification.features import Tokens
from downstream.classification.probe import probe
from downstream.cohort import read_image
from downstream.evaluation.results import Probed

if TYPE_CHECKING:
    from data_registry.catalogue import Registry
    from downstream.evaluation.cells import Cell

Parts = dict[str, tuple[Example, ...]]
"""Split to the examples that are used."""


@dataclass(frozen=True)
class Classified:
    """What a cell finds."""

    used: Parts
    probed: tuple[Probed, ...]
    """What every method says of every test example."""
    scores: dict[tuple[str, str], float]
    """(method, metric) to value over all test examples."""
    notes: tuple[str, ...]
    curve: tuple[tuple[int, float, float | None], ...]
    """Attention: (step, loss, balanced accuracy on the validation examples where taken)."""
    model: Classifier | None
    """The classifier by attention, else the linear probe."""


@dataclass(frozen=True)
class _Fitted:
    """Probabilities of one method before calibration."""

    method: str
    val: Tensor
    test: Tensor
    note: str
    model: Classifier | None = None


def classify(
    cell: Cell,
    examples: Examples,
    tokens: Tokens,
    registry: Registry,
    *,
    seed: int,
    train: Callable[[AttentionTrainer], None],
) -> Classified:
    """Fit on the drawn examples, calibrate on the validation examples, score the test examples.

    Args:
        cell: What is asked; ``cell.k`` examples of each class, 0 for all of them.
        examples: Of the task.
        tokens: Of the encoder.
        registry: Where the voxels are.
        seed: Of attention, head and batches.
        train: Takes all steps of a trainer, with checkpoints.

    Raises:
        DataError: DATA-09 when a class has too few training examples.
    """
    used = _drawn(cell, examples)
    truth = {s: torch.tensor([examples.index(e) for e in own]).long() for s, own in used.items()}
    curve: tuple[tuple[int, float, float | None], ...] = ()
    fitted: list[_Fitted] = []
    for method in cell.task.methods:
        if method == "attention":
            trainer = _trainer(cell, examples, used, tokens, registry, seed)
            train(trainer)
            fitted.append(_attended(trainer, _bags(used["test"], examples, tokens, registry)))
            curve = tuple(map(astuple, trainer.best.curve))
            continue
        features = {split: tokens.means(own) for split, own in used.items()}
        found = probe(
            method,
            (features["train"], truth["train"]),
            (features["val"], truth["val"]),
            features["test"],
        )
        model = (
            _linear_classifier(tokens.encoder, found.fitted, examples, cell.recipe.image_size)
            if found.fitted is not None
            else None
        )
        fitted.append(_Fitted(method, found.val, found.test, found.note, model))
    probed: list[Probed] = []
    scores: dict[tuple[str, str], float] = {}
    notes = [_counts(used, examples)]
    for one in fitted:
        temperature = fit_temperature(one.val, truth["val"])
        if one.model is not None:
            one.model.temperature.fill_(temperature)
        rows = _probed(one, temperature, used["test"], examples)
        probed += rows
        scores |= {(one.method, metric): value for metric, value in metrics(rows).items()}
        chosen = f"temperature {temperature:.3g}" if len(used["val"]) else "not calibrated"
        notes.append(f"{one.method}: {one.note}; {chosen}")
    if not used["val"]:
        notes.append("no validation example: nothing was chosen or calibrated on patients")
    if examples.left_out:
        notes.append(f"left out, as not in both training and test split: {examples.left_out}")
    models = [one.model for one in fitted if one.model is not None]
    attended = [model for model in models if model.attention]
    kept = next(iter((*attended, *models)), None)
    return Classified(used, tuple(probed), scores, tuple(notes), curve, kept)


def metrics(rows: Sequence[Probed]) -> dict[str, float]:
    """Every score of one method; ``ece`` and ``brier`` of calibrated probabilities."""
    truth = [row.truth for row in rows]
    scores = torch.tensor([row.scores for row in rows]).numpy()
    calibrated = torch.tensor([row.calibrated for row in rows]).numpy()
    return {
        "balanced_accuracy": balanced_accuracy(truth, scores.argmax(1)),
        "auroc": auroc(truth, scores),
        "auprc": auprc(truth, scores),
        "ece": calibration_error(truth, calibrated),
        "ece_uncalibrated": calibration_error(truth, scores),
        "brier": brier(truth, calibrated),
    }


def _drawn(cell: Cell, examples: Examples) -> Parts:
    def some(own: tuple[Example, ...], *, fewer: bool) -> tuple[Example, ...]:
        return draw_examples(
            own,
            examples.classes,
            cell.k,
            seed=cell.seed,
            draw=cell.draw,
            task=cell.task.name,
            fewer=fewer,
        )

    return {
        "train": some(examples.train, fewer=False),
        "val": some(examples.val, fewer=True),
        "test": examples.test,
    }


def _trainer(
    cell: Cell, examples: Examples, used: Parts, tokens: Tokens, registry: Registry, seed: int
) -> AttentionTrainer:
    return AttentionTrainer(
        tokens.encoder,
        _bags(used["train"], examples, tokens, registry),
        _bags(used["val"], examples, tokens, registry),
        classes=examples.classes,
        level=cell.task.level,
        adaptation=cell.adaptation,
        recipe=cell.recipe,
        steps=cell.steps,
        seed=seed,
    )


def _bags(
    chosen: Sequence[Example], examples: Examples, tokens: Tokens, registry: Registry
) -> list[Bag]:
    def images(example: Example) -> list[Tensor]:
        found = []
        for row in example.rows:
            slices = read_image(registry, row)
            if example.slice_index is not None:
                slices = slices[example.slice_index][None]
            found.append(image_to_square(slices, tokens.image_size))
        return found

    return [
        Bag(examples.index(e), tokens.bags(e), lambda own=e: images(own))  # type: ignore[misc]
        for e in chosen
    ]


def _attended(trainer: AttentionTrainer, test: Sequence[Bag]) -> _Fitted:
    model = trainer.finish()
    done = trainer.best.curve[-1].step
    note = f"step {trainer.best.step} of {done} kept"
    if done < trainer.steps:
        note += f" (stopped early, {trainer.steps} were allowed)"
    if trainer.validation:
        note += f", best of {len(trainer.validation)} validation examples"
    method = f"attention-{trainer.adaptation}"
    val = trainer.probabilities(trainer.validation)
    return _Fitted(method, val, trainer.probabilities(test), note, model)


def _linear_classifier(
    encoder: Encoder, fitted: LinearMap, examples: Examples, image_size: int
) -> Classifier:
    model = Classifier(
        encoder,
        classes=examples.classes,
        level=examples.level,
        image_size=image_size,
        attention=0,
    ).eval()
    with torch.no_grad():
        model.mean.copy_(fitted.mean)
        model.std.copy_(fitted.std)
        model.head.weight.copy_(fitted.weight)
        model.head.bias.copy_(fitted.bias)
    return model.to(encoder.mask_token.device)


def _probed(
    one: _Fitted, temperature: float, test: Sequence[Example], examples: Examples
) -> list[Probed]:
    calibrated = with_temperature(one.test, temperature)
    return [
        Probed(
            method=one.method,
            patient=example.subject_id,
            example=example.name,
            truth=examples.index(example),
            scores=tuple(one.test[place].tolist()),
            calibrated=tuple(calibrated[place].tolist()),
        )
        for place, example in enumerate(test)
    ]


def _counts(used: Parts, examples: Examples) -> str:
    """Examples of each class, split by split."""
    parts = []
    for split, own in used.items():
        counts = Counter(example.label for example in own)
        parts.append(f"{split} " + ", ".join(f"{counts[c]} {c}" for c in examples.classes))
    return f"{examples.level}s: {'; '.join(parts)}"
