"""`Predictor`: a scan in; embeddings, a mask, a class or a reconstruction out, geometry kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from core_mri.automatic import AutomaticMasks
from core_mri.devices import select_precision
from core_mri.errors import ConfigError, GeometryError, WeightsError
from core_mri.files.kspace import KSpace
from core_mri.models.classifier import Classifier
from core_mri.models.encoder import Encoder
from core_mri.models.generator import Generator
from core_mri.models.neck import NeckedEncoder
from core_mri.models.promptable import PromptableSegmenter
from core_mri.models.reconstruction import Reconstructor
from core_mri.models.sam import SamEncoder
from core_mri.models.segmenter import Segmenter
from core_mri.models.unrolled import Unrolled
from core_mri.off_distribution import Judgement, judged_slices
from core_mri.preprocess import Prepared, Preprocess, percentile_window
from core_mri.prompting import PromptedVolume
from core_mri.prompts import Boxes, Points
from core_mri.slice_grid import image_to_square, patch_grid
from core_mri.slice_inference import segment_slices
from core_mri.training_statistics import TrainingStatistics
from core_mri.volume import Volume

log = logging.getLogger(__name__)


class Embedding(NamedTuple):
    """Frozen features of a volume; S slices across its plane of acquisition."""

    cls: npt.NDArray[np.float32]
    """[S, D], one vector a slice."""
    patches: npt.NDArray[np.float32]
    """[S, h, w, D], on the padded square of each slice; [S, 0, 0, D] when not asked for."""
    affine: npt.NDArray[np.float64]
    """[4, 4], index (slice, row, column) to RAS+ mm."""
    patch_affine: npt.NDArray[np.float64]
    """[4, 4], index (slice, row, column of a patch) to RAS+ mm of its center."""
    shape: tuple[int, int, int]
    """Slices, rows and columns."""


class Classification(NamedTuple):
    """Classes with their calibrated probabilities."""

    classes: tuple[str, ...]
    """Names, C of them."""
    probabilities: npt.NDArray[np.float32]
    """[C]; of a classifier of slices [S, C]."""


class Predictor:
    """Runs a model over volumes; geometry is kept.

    Weights that tell what they saw (`core_mri.training_statistics`) make it log a warning for a
    volume that is unlike it; `judge` gives the score itself, ``judgement`` is that of the last
    volume that was embedded, segmented or reconstructed.

    Args:
        model: An `Encoder`, a `SamEncoder`, a `Segmenter`, a `Classifier`, a
            `PromptableSegmenter` or a `Reconstructor`.
        image_size: Side of the square each slice is resized to, pixels; by default the side the
            model was trained at.
        batch_size: Slices at a time; bounds the memory.
        precision: Of `embed`: ``float32``, ``bfloat16`` (autocast), or ``auto``, bfloat16 on CUDA
            devices that have it.
        compiled: Let `torch.compile` build the encoder of `embed`: a minute at first, then faster.

    Raises:
        ConfigError: CONFIG-01 for another precision, CONFIG-05 when `image_size` is no multiple of
            the patch size.
        WeightsError: WEIGHTS-03 for a generator.
    """

    def __init__(
        self,
        model: Encoder
        | Segmenter
        | Classifier
        | SamEncoder
        | PromptableSegmenter
        | Reconstructor
        | Generator,
        *,
        image_size: int | None = None,
        batch_size: int = 16,
        precision: str = "auto",
        compiled: bool = False,
    ) -> None:
        if isinstance(model, Generator):
            raise WeightsError(
                "WEIGHTS-03",
                "these weights are a generator: they make scans and read none.",
                fix="Use `core-mri synthesize sample`, or give an encoder or a segmenter.",
            )
        self.model = model.eval()
        self._prompted: PromptedVolume | None = None
        self._encoder: Encoder | SamEncoder | None = None
        self.statistics: TrainingStatistics | None = None
        self.judgement: Judgement | None = None
        self._judging: Encoder | SamEncoder | None = None
        statistics: TrainingStatistics | None = getattr(model, "statistics", None)
        if isinstance(model, Reconstructor):
            inside = model.context if isinstance(model, Unrolled) else None
            self._judging = None if inside is None else inside.encoder
            if inside is not None and statistics is not None:
                self.image_size = image_size or inside.encoder.config.image_size
                fits = statistics.image_size == self.image_size
                self.statistics = statistics if fits else None
            return
        if isinstance(model, PromptableSegmenter):
            own = cast("NeckedEncoder | SamEncoder", model.image_encoder)
            self._encoder = own.encoder if isinstance(own, NeckedEncoder) else own
            trained = model.image_size
        elif isinstance(model, Segmenter | Classifier):
            self._encoder, trained = model.encoder, model.image_size
        else:
            self._encoder, trained = model, model.config.image_size
        self.image_size = image_size or trained
        self.batch_size = batch_size
        if self.image_size % self.encoder.patch_size:
            raise ConfigError(
                "CONFIG-05",
                f"image_size {self.image_size} is no multiple of the patch size "
                f"{self.encoder.patch_size}.",
            )
        device = next(model.parameters()).device
        self.precision = select_precision(device, precision).precision
        self._encode = torch.compile(self.encoder) if compiled else self.encoder
        self._judging = self._encoder
        fits = statistics is not None and statistics.image_size == self.image_size
        if fits:
            self.statistics = statistics

    def judge(self, volume: Volume) -> Judgement | None:
        """How a volume compares with what the weights saw.

        Args:
            volume: Three-dimensional image; for a network that reconstructs, what it gave: columns,
                rows and slices, which it looked at as they are, not as they are displayed.

        Returns:
            None when the weights do not tell, or for another image size than they were trained at.

        Raises:
            DataError: As :meth:`embed`.
            GeometryError: As :meth:`embed`.
        """
        if self.statistics is None:
            return None
        if isinstance(self.model, Reconstructor):
            slices = np.asarray(volume.array, np.float32).transpose(2, 1, 0)
            low, high = percentile_window(slices)
            return self._judge(np.clip((slices - low) / (high - low), 0, 1))
        return self._judge(Preprocess().apply(volume).array)

    @torch.inference_mode()
    def _judge(self, array: npt.NDArray[np.generic]) -> Judgement | None:
        if self.statistics is None or self._judging is None:
            return None
        slices = cast("npt.NDArray[np.float32]", array)
        chosen = slices[judged_slices(slices)]
        device = next(self._judging.parameters()).device
        cls = self._judging(image_to_square(chosen, self.image_size).to(device)).cls
        return self.statistics.judge(cls.float().cpu().numpy())

    def _warn(self, judgement: Judgement | None) -> None:
        self.judgement = judgement
        if judgement is not None and judgement.unlike:
            log.warning("a scan %s: do not rely on the answer without looking", judgement)

    @property
    def encoder(self) -> Encoder | SamEncoder:
        """The encoder of the model.

        Raises:
            WeightsError: WEIGHTS-02 when the model takes k-space, not images.
        """
        if self._encoder is None:
            raise WeightsError(
                "WEIGHTS-02",
                f"these weights ({type(self.model).__name__}) reconstruct k-space, they take no "
                "images.",
                fix="Use core-mri reconstruct.",
            )
        return self._encoder

    @torch.inference_mode()
    def embed(self, volume: Volume, *, patches: bool = True) -> Embedding:
        """Features of every slice, slices ordered as `core_mri.volume.SLICE_ORIENTATION` says.

        Args:
            volume: Three-dimensional image; its slices are padded to squares and resized.
            patches: Keep the patch tokens, by far the larger part.

        Raises:
            DataError: DATA-04 or DATA-05 when voxels are not finite or all equal.
            GeometryError: GEOMETRY-02 when the volume has a fourth dimension.
            WeightsError: WEIGHTS-02 when the model takes k-space.
        """
        patch_size = self.encoder.patch_size
        prepared = Preprocess().apply(volume)
        cls, tokens = [], []
        for images in self._batches(prepared):
            with torch.autocast(
                images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
            ):
                features = self._encode(images)
            kept = features.patches if patches else features.patches[:, :0, :0]
            cls.append(features.cls.float().cpu())
            tokens.append(kept.float().cpu())
        slices, rows, columns = prepared.array.shape
        vectors = torch.cat(cls).numpy()
        if self.statistics is not None:
            judged = judged_slices(cast("npt.NDArray[np.float32]", prepared.array))
            self._warn(self.statistics.judge(vectors[judged]))
        grid = patch_grid(rows, columns, self.image_size, patch_size)
        return Embedding(
            vectors,
            torch.cat(tokens).numpy(),
            prepared.affine,
            prepared.affine @ grid,
            (slices, rows, columns),
        )

    @torch.inference_mode()
    def segment(
        self,
        volume: Volume,
        *,
        boxes: Boxes = (),
        points: Points = (),
        mask: Volume | None = None,
        automatic: bool | AutomaticMasks = False,
        sequences: Sequence[Volume] = (),
    ) -> Volume:
        """The class of every voxel, or the prompted objects, on the grid of `volume`.

        The slices of the last volume stay embedded: a second prompt only runs the mask decoder.

        Args:
            volume: Three-dimensional image.
            boxes: (i0, j0, k0, i1, j1, k1), half-open, 0-based voxel indices of ``volume.array``;
                each is an object of its own and prompts every slice that it crosses. A mapping
                gives the boxes by the number of their object, for boxes on several slices.
            points: (i, j, k, 1 inside or 0 outside), all of one object, that of the box if given;
                or a mapping, by the number of the object.
            mask: An earlier answer on the same grid. With points or boxes, the slices these lie on
                are answered anew, from the mask too, and the others keep it.
            automatic: Every object that a grid of points finds, the largest first; no prompts.
            sequences: The further sequences of a model of several, on the grid of `volume` and in
                the order of ``predictor.model.sequences``.

        Returns:
            A label volume, uint8: class indices, named by ``predictor.model.labels``, or the number
            of the object from 1. Between and beyond prompted slices an object is followed, unless a
            box or mask over several slices says where it ends.

        Raises:
            WeightsError: WEIGHTS-02 when the model has no segmentation head,
                WEIGHTS-08 when prompts are given to a model that takes none, WEIGHTS-09 when it
                takes another number of sequences.
            ConfigError: CONFIG-05 when prompts lie outside the volume, or are missing for a
                promptable model.
            GeometryError: GEOMETRY-03 when `mask` or a sequence is on another grid.
            DataError: As :meth:`embed`.
        """
        prompted = bool(len(boxes) or len(points) or mask is not None)
        if prompted and automatic:
            raise ConfigError("CONFIG-05", "automatic takes no boxes, points or mask.")
        scans = [volume, *sequences]
        if not isinstance(self.model, Encoder):
            _check_sequences(getattr(self.model, "sequences", [""]), scans)
        if isinstance(self.model, PromptableSegmenter):
            if self._prompted is None or self._prompted.volume is not volume:
                self._prompted = PromptedVolume(self.model, volume, self.image_size)
                self._warn(self.judge(volume))
            if automatic:
                settings = AutomaticMasks() if automatic is True else automatic
                return self._prompted.segment_all(settings)
            return self._prompted.segment(boxes, points, mask)
        if prompted or automatic:
            raise WeightsError(
                "WEIGHTS-08",
                f"{type(self.model).__name__}: these weights have no decoder of prompts.",
                fix="Train one on labelled scans: core-mri finetune prompting --weights WEIGHTS "
                "--registry REGISTRY; or use promptable weights such as SAM's.",
            )
        if not isinstance(self.model, Segmenter):
            raise WeightsError(
                "WEIGHTS-02",
                f"these weights ({type(self.model).__name__}) hold no segmentation head.",
                fix="Fine-tune it first: core-mri finetune CONFIG.",
            )
        prepared = [Preprocess().apply(scan) for scan in scans]
        self._warn(self._judge(prepared[0].array))
        arrays = [cast("npt.NDArray[np.float32]", one.array) for one in prepared]
        spacing = np.linalg.norm(prepared[0].affine[:3, :3], axis=0).tolist()
        classes = segment_slices(
            self.model,
            np.stack(arrays),
            spacing,
            image_size=self.image_size,
            batch_size=self.batch_size,
        )
        return prepared[0].restore(classes)

    @torch.inference_mode()
    def classify(self, volumes: Volume | Sequence[Volume]) -> Classification:
        """The class of a patient, a volume or its slices, as the model was trained.

        Args:
            volumes: One volume; all volumes of a patient for a classifier of patients.

        Raises:
            WeightsError: WEIGHTS-02 when the model is no classifier.
            ConfigError: CONFIG-05 when several volumes are given to one of volumes or slices, or
                none.
            DataError: As :meth:`embed`.
        """
        if not isinstance(self.model, Classifier):
            raise WeightsError(
                "WEIGHTS-02",
                f"these weights ({type(self.model).__name__}) hold no classifier.",
                fix="Train one first: core-mri finetune CONFIG, with a classification task.",
            )
        given = [volumes] if isinstance(volumes, Volume) else list(volumes)
        if not given or (len(given) > 1 and self.model.level != "patient"):
            raise ConfigError(
                "CONFIG-05",
                f"this classifier takes one {self.model.level} at a time, got {len(given)} "
                "volumes.",
            )
        bags = [
            torch.cat([self.encoder(images).cls for images in self._batches(prepared)])
            for prepared in map(Preprocess().apply, given)
        ]
        found = self.model.probabilities(bags).float().cpu().numpy()
        return Classification(self.model.classes, found)

    def reconstruct(self, kspace: KSpace | npt.NDArray[np.complex64], *, volume: int = 0) -> Volume:
        """Slices of undersampled raw data, by the mask of the file.

        Args:
            kspace: An open scan (`core_mri.files.read_kspace`), or samples [slices, coils, readout,
                phase], zero where not measured.
            volume: Which, where the scan has several.

        Returns:
            Magnitudes (columns, rows, slices), float32, in the scale of the samples, with the
            geometry of the scan where it states one.

        Raises:
            WeightsError: WEIGHTS-10 when the model does not reconstruct, WEIGHTS-11 for an image
                too small for it, WEIGHTS-12 for another number of coils.
            DataError: DATA-03 or DATA-14 for an array of another kind, DATA-04 for samples that are
                not finite, DATA-21 without the center that coil maps need.
            ConfigError: CONFIG-05 when there is no such volume.
        """
        from core_mri.files.numpy_kspace import array_kspace
        from core_mri.kspace_inference import reconstruct_scan

        scan = array_kspace(np.asarray(kspace)) if not isinstance(kspace, KSpace) else kspace
        found = reconstruct_scan(self.model, scan, volume=volume)
        self._warn(self.judge(found) if found.array.any() else None)
        return found

    def _batches(self, prepared: Prepared) -> Iterator[Tensor]:
        """Images [B, 1, N, N] in [0, 1] on the model's device."""
        slices = cast("npt.NDArray[np.float32]", prepared.array)
        device = next(self.encoder.parameters()).device
        for start in range(0, len(slices), self.batch_size):
            batch = slices[start : start + self.batch_size]
            yield image_to_square(batch, self.image_size).to(device)


def _check_sequences(names: Sequence[str], scans: Sequence[Volume]) -> None:
    if len(scans) != len(names):
        raise WeightsError(
            "WEIGHTS-09",
            f"these weights segment {len(names)} sequences together ({', '.join(names)}), got "
            f"{len(scans)}."
            if len(names) > 1
            else f"these weights segment one sequence, got {len(scans)}.",
            fix="Give one volume for each, on one grid and in this order.",
        )
    for scan in scans[1:]:
        if not scan.same_grid(scans[0]):
            raise GeometryError(
                "GEOMETRY-03", f"{scan} does not lie on the grid of the first one, {scans[0]}."
            )
