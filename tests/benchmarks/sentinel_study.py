"""Do the alarms ring for every kind of collapse, and only then?

    python tests/benchmarks/sentinel_study.py run --seeds 1000-1019 --out pretrain/reports/sentinel
    python tests/benchmarks/sentinel_study.py overhead

Seven rows of settings, two healthy and five that collapse in five ways, after section 7 of the
project's research notes: 10 synthetic regions, a ViT of three blocks, K = 256, 260 steps, DINO on
class tokens. The trainer, the losses and the alarms are those of `pretrain`, with the default
limits, which were fixed before; the toy was made to work on seeds below 100. A collapsing
run ends at its first alarm, or unflagged after step 100; a healthy one goes on to its end. One line
for each run is added to ``runs.csv``; runs that are there are not done again.
"""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import tyro

import pretrain.student_teacher
from core_mri.config import load_config
from core_mri.models.registry import MODELS, EncoderConfig
from data_registry.slices import SliceSample, StoredSlice
from pretrain.config import PretrainConfig
from pretrain.config_views import ViewsConfig
from pretrain.health.anchor import Anchor
from pretrain.health_config import HealthConfig
from pretrain.probe import probe_set
from pretrain.train import Trainer

MODELS["vit_toy"] = EncoderConfig(embed_dim=64, depth=3, num_heads=4, patch_size=8, image_size=32)

FLAG_BY = 100
STEPS = 260
ROWS: dict[str, tuple[bool, dict[str, Any]]] = {
    "Sinkhorn T .02, KoLeo": (True, {}),
    "softmax center T .02, KoLeo": (True, {"centering": "softmax"}),
    "no centering": (False, {"centering": "none", "koleo_weight": 0.0}),
    "no sharpening": (
        False,
        {"centering": "softmax", "koleo_weight": 0.0, "teacher_temperature": [0.1, 0.1]},
    ),
    "softmax center T .05, no KoLeo": (
        False,
        {"centering": "softmax", "koleo_weight": 0.0, "teacher_temperature": [0.05, 0.05]},
    ),
    "Sinkhorn T .05, no KoLeo": (
        False,
        {"koleo_weight": 0.0, "teacher_temperature": [0.05, 0.05]},
    ),
    "no centering, KoLeo": (False, {"centering": "none"}),
}
"""Name: whether it is healthy, and what it changes of the objective of `toy_config`."""
_USED = ("gamma_probability", "contrast_probability")


@dataclasses.dataclass(frozen=True)
class _Volume:
    volume_id: str
    subject_id: str
    region: str


class ToySlices:
    """Ten regions, each a texture within ellipses that every subject bends a little.

    Args:
        seed: Another population.
        subjects: Of each region.
        num_slices: Of each subject.
        size: Side of a slice, px.
    """

    def __init__(
        self, seed: int, *, subjects: int = 8, num_slices: int = 4, size: int = 40
    ) -> None:
        rng = np.random.default_rng([seed, 7])
        self.volumes: list[_Volume] = []
        self._images: list[npt.NDArray[np.float32]] = []
        for region in range(10):
            parts = np.concatenate(
                [rng.uniform(-0.6, 0.6, (6, 2)), rng.uniform(0.1, 0.4, (6, 2)),
                 rng.uniform(0.2, 1.0, (6, 1))], axis=1
            )  # fmt: skip
            for subject in range(subjects):
                name = f"{region}-{subject}"
                self.volumes.append(_Volume(name, name, str(region)))
                bent = parts * rng.normal(1, 0.08, parts.shape)
                for _ in range(num_slices):
                    drawn = _ellipses(bent * rng.normal(1, 0.04, parts.shape), size)
                    drawn = (0.5 + 0.5 * drawn) * _waves(region, rng, size)
                    noisy = drawn + rng.normal(0, 0.02, (size, size))
                    self._images.append(noisy.clip(0, 1).astype(np.float32))
        self._per_volume = num_slices

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> SliceSample:
        row = self.volume_of(position)
        index = position % self._per_volume
        return SliceSample(
            self._images[position], row.volume_id, index, row.subject_id, row.region, "T1", "axial"
        )

    def stored(self, position: int) -> StoredSlice:
        """The slice as training reads it."""
        row = self.volume_of(position)
        index = position % self._per_volume
        return StoredSlice(
            self._images[position], 0.0, 1.0, row.volume_id, index, row.region, "axial"
        )

    def volume_of(self, position: int) -> _Volume:
        """The volume of a slice."""
        return self.volumes[position // self._per_volume]

    def volume_numbers(self) -> npt.NDArray[np.int64]:
        """Of each slice, the position of its volume."""
        return np.arange(len(self)) // self._per_volume

    def strata(self) -> npt.NDArray[np.int64]:
        """Of each volume, its region."""
        return np.array([int(row.region) for row in self.volumes])


def toy_config(seed: int, objective: dict[str, Any], health: dict[str, Any]) -> PretrainConfig:
    """A run of the study; the limits of the alarms are the defaults but for those in `health`."""
    return load_config(
        PretrainConfig,
        {
            "registry": "unused", "out": "unused", "seed": seed, "steps": STEPS, "batch_size": 32,
            "model": "vit_toy", "drop_path": 0.0, "layer_scale": 0.0, "device": "cpu",
            "health": {"every": 10, "probe_every": 0} | health,
            "views": {
                "global_size": 32, "global_scale": [0.7, 1.0], "local_size": 24,
                "local_scale": [0.4, 0.8], "num_local": 2, "gamma": [0.5, 2.0],
                "brightness": 0.1, "contrast": 0.2,
            } | {
                name: 0.3 if name in _USED else 0.0
                for name in ViewsConfig.__dataclass_fields__ if name.endswith("_probability")
            },
            "objective": {
                "ibot_weight": 0.0, "koleo_group": 8, "num_prototypes": 256, "head_hidden": 128,
                "head_bottleneck": 64, "teacher_temperature": [0.02, 0.02],
                "teacher_temperature_warmup": 0,
            } | objective,
            "optimizer": {
                "learning_rate": 2e-3, "warmup_steps": 40, "freeze_prototypes_steps": 0,
                "weight_decay": [0.04, 0.04], "teacher_momentum": [0.99, 1.0],
            },
        },
    )  # fmt: skip


def do_run(name: str, seed: int, health: dict[str, Any]) -> dict[str, Any]:
    """One run of one row, and what its alarms said."""
    healthy, changes = ROWS[name]
    trainer = Trainer(toy_config(seed, changes, health), ToySlices(seed))  # type: ignore[arg-type]
    started = time.process_time()
    alarms: dict[str, int] = {}
    numbers: dict[str, float] = {}
    for step in range(STEPS if healthy else FLAG_BY):
        numbers |= trainer.step(step)
        for alarm in trainer.alarms:
            alarms.setdefault(alarm.finding.figure, step + 1)
        if alarms and not healthy:
            break
    first = min(alarms, key=lambda figure: alarms[figure], default="")
    shown = ("loss", "dino_information", "ibot_information", "dino_kl", "rank", "mean_cosine")
    return {
        "row": name, "healthy": healthy, "seed": seed, "first_alarm_step": alarms.get(first, ""),
        "first_alarm": first, "all_alarms": " ".join(sorted(alarms)), "steps": step + 1,
        **{key: f"{numbers[key]:.4g}" for key in shown},
        "cpu_seconds": f"{time.process_time() - started:.2f}",
    }  # fmt: skip


def run(
    seeds: Annotated[str, tyro.conf.arg(metavar="FIRST-LAST")],
    out: Path,
    rows: str = "",
    prototype_use: float = HealthConfig.prototype_use,
) -> None:
    """Do the runs that are missing, then print the table.

    Args:
        seeds: Of the runs of each row.
        out: Folder of ``runs.csv``.
        rows: Only rows with this in their name.
        prototype_use: Limit of the alarm on the use of prototypes.
    """
    torch.set_num_threads(1)
    first, last = map(int, seeds.split("-"))
    path = out / "runs.csv"
    out.mkdir(parents=True, exist_ok=True)
    done = {(line["row"], int(line["seed"])) for line in _read(path)}
    for seed in range(first, last + 1):
        for name in ROWS:
            if rows in name and (name, seed) not in done:
                line = do_run(name, seed, {"prototype_use": prototype_use})
                new = not path.exists()
                with path.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, list(line))
                    if new:
                        writer.writeheader()
                    writer.writerow(line)
    table(path)


def table(path: Path) -> None:
    """Print how many runs of each row were flagged."""
    lines = _read(path)
    print(f"{'row':32} {'kind':10} {'runs':>4} {'flagged by 100':>14} {'median step':>11}")
    for name, (healthy, _) in ROWS.items():
        own = [line for line in lines if line["row"] == name]
        steps = [int(line["first_alarm_step"]) for line in own if line["first_alarm_step"]]
        flagged = sum(step <= FLAG_BY for step in steps)
        told = f"{flagged}" if not healthy else f"{len(steps)} false"
        median = f"{np.median(steps):.0f}" if steps else "-"
        kind = "healthy" if healthy else "collapse"
        print(f"{name:32} {kind:10} {len(own):4} {told:>14} {median:>11}")
    print(f"CPU-seconds in all: {sum(float(line['cpu_seconds']) for line in lines):.0f}")


def overhead(steps: int = 4, batch: int = 16) -> None:
    """CPU time of the figures beside that of a real step: ViT-Ti/16, 2 x 224 + 8 x 96, K 65,536.

    Args:
        steps: Measured, after one to warm up.
        batch: Slices of a step.
    """
    torch.set_num_threads(1)
    config = load_config(
        PretrainConfig,
        {
            "registry": "unused", "out": "unused", "steps": 10000, "batch_size": batch,
            "model": "vit_tiny_patch16", "device": "cpu", "precision": "float32",
            "optimizer": {"warmup_steps": 100}, "health": {"every": 1},
            "objective": {"teacher_temperature_warmup": 100},
        },
    )  # fmt: skip
    slices = ToySlices(0, size=320)
    trainer = Trainer(config, slices)  # type: ignore[arg-type]
    trainer.health.watch(Anchor(probe_set(config, slices, slices, online=True)))  # type: ignore[arg-type]
    spent: dict[str, float] = dict.fromkeys(
        ("head_statistics", "measure", "dear", "judge", "probe"), 0.0
    )
    _time(spent, "head_statistics", pretrain.student_teacher, "head_statistics")
    _time(spent, "measure", trainer.health, "measure")
    _time(spent, "judge", trainer.health, "judge")
    _time(spent, "probe", trainer.health, "probe")
    trainer.step(0)
    probed = spent["probe"]
    spent.update(dict.fromkeys(spent, 0.0))
    started = time.process_time()
    for step in range(1, steps + 1):
        trainer.step(step)
    total = (time.process_time() - started) / steps
    dear = spent["measure"] / steps
    cheap = (spent["head_statistics"] + spent["judge"]) / steps
    real = dataclasses.replace(config.health, every=50)
    step_seconds = total - dear - cheap
    parts = {
        "targets of both heads and alarms, each step": cheap,
        f"spectrum, gradients, duplicates, each {real.every} steps": dear / real.every,
        f"probes and patches, each {real.probe_every} steps": probed / real.probe_every,
    }
    print(f"a step without figures: {step_seconds:.2f} CPU-s")
    for name, seconds in parts.items():
        print(f"{name}: {seconds * 1e3:.2f} CPU-ms a step, {seconds / step_seconds:.3%}")
    print(f"together: {sum(parts.values()) / step_seconds:.3%} (bar 0.5 %)")


def _time(spent: dict[str, float], key: str, owner: object, name: str) -> None:
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        result = function(*arguments, **named)
        spent[key] += time.process_time() - started
        return result

    setattr(owner, name, timed)


def _ellipses(parts: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Sum of ellipses (y, x, half axes, intensity), on [-1, 1]^2, clipped to [0, 1]."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.zeros((size, size))
    for top, left, high, wide, bright in parts:
        image += bright * (((y - top) / high) ** 2 + ((x - left) / wide) ** 2 < 1)
    return image.clip(0, 1)


def _waves(region: int, rng: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """A wave in [0, 1] whose direction and length are those of the region, its phase by chance."""
    y, x = np.mgrid[:size, :size]
    angle = np.pi * (region % 5) / 5 + rng.normal(0, 0.05)
    period = (4.5, 10.0)[region // 5] * rng.normal(1, 0.05)  # px
    along = np.cos(angle) * x + np.sin(angle) * y
    return 0.5 + 0.5 * np.sin(2 * np.pi * (along / period + rng.random()))


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "overhead": overhead})
