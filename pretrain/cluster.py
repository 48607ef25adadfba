"""Where a run shall be, and what it costs there: the input of `pretrain.cost`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.config_views import require
from pretrain.hardware import GPUS


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where a run shall be, and what it costs there."""

    price: float
    """Price of one GPU for one hour, in your currency; there is no default."""
    gpu: str = ""
    """Name in the table of `pretrain.hardware`; empty takes the device of `calibration`, or the
    numbers below."""
    peak_tflops: float | None = None
    """Dense bfloat16 TFLOP/s of a GPU, in place of the table's."""
    memory_gb: float | None = None
    """Memory of a GPU, 10^9 bytes, in place of the table's."""
    bandwidth_gb_s: float | None = None
    """Its memory bandwidth, 10^9 bytes a second, in place of the table's."""
    link_gb_s: float | None = None
    """What a GPU sends to others of its node, 10^9 bytes a second, in place of the table's."""
    gpus: int = 8
    """GPUs, over all nodes."""
    gpus_per_node: int = 8
    """GPUs of a node; `gpus` is fewer, or a multiple."""
    cores: int = 8
    """Processor cores that read slices, for each GPU; no more than `loader_workers` are used."""
    slices_per_core: float | None = None
    """Slices that a core reads in a second; left out, what `calibration` measured, else 1000."""
    slice_kb: float = 178.0
    """Stored slice, 10^3 bytes: 320 x 320 to 384 x 384 int16, LZ4."""
    storage_mb_s: float = 1000.0
    """What storage gives a node, 10^6 bytes a second."""
    network_gbit_s: float = 100.0
    """Network of a node, 10^9 bits a second."""
    slices: int | None = None
    """Slices of the corpus: with `epochs` they replace the steps of the configuration."""
    epochs: float = 1.0
    """How often each slice is seen, on average."""
    mfu: float | None = None
    """Part of the peak that steps reach, in place of that of another group's run."""
    calibration: tuple[Path, ...] = ()
    """Files of ``core-mri pretrain bench CONFIG --json``, made on such a device; two or more, of
    other widths and prototypes, fit better than one."""

    def __post_init__(self) -> None:
        for name in ("gpus", "gpus_per_node", "cores"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, got {value}.")
        require(self.price >= 0, f"price must not be negative, got {self.price}.")
        for name in (
            *("peak_tflops", "memory_gb", "bandwidth_gb_s", "link_gb_s", "slices_per_core"),
            *("slice_kb", "storage_mb_s", "network_gbit_s", "slices", "epochs"),
        ):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be positive, got {value}.")
        require(
            self.mfu is None or 0 < self.mfu <= 1,
            f"mfu is a part of the peak, in (0, 1], got {self.mfu}.",
        )
        require(
            self.mfu is None or not self.calibration,
            "mfu and calibration both say how fast steps are.",
            fix="Give one of them.",
        )
        require(
            self.gpus <= self.gpus_per_node or self.gpus % self.gpus_per_node == 0,
            f"{self.gpus} GPUs are no whole nodes of gpus_per_node {self.gpus_per_node}.",
        )
        require(
            self.gpu in ("", *GPUS),
            f"no GPU {self.gpu!r} in the table; choose one of {', '.join(GPUS)}.",
            fix="Or leave gpu out and give peak_tflops.",
        )
