"""The bill of a run in advance: speed, bottleneck, hours, money, memory. A prediction, no promise.

For n GPUs, each with B images of a step:

- compute: with a calibration the seconds of `Calibration.seconds`, else
  ``operations / (peak x MFU)``, where MFU is at most what memory bandwidth allows:
  ``t / (t + 36 D tokens depth / bandwidth)``, t being the time of the blocks' forward products at
  peak (18 numbers of 2 bytes for each of a token's D and block);
- all-reduce of gradients by a ring: ``2 (n - 1) / n x r P / link``, r 4 bytes or 2
  (`reduce_dtype`), link that between GPUs of a node, or the network of a node when there are
  several; DistributedDataParallel hides it behind backward, at least half of the compute. With
  divided networks (`sharding`) what `pretrain.memory_need.traffic` counts goes round instead, as
  much of it hidden;
- data loading: ``B x reads / (readers x slices a second and core)``, readers the smaller of cores
  and ``loader_workers``;
- storage: ``B x reads x bytes of a slice x GPUs of a node / throughput of a node``.

Slices are read ahead, so a step takes the longest of ``compute + visible all-reduce``, loading and
storage; with ``loader_workers: 0`` nothing is read ahead, and loading adds to compute. Reads are 2
with adjacent slices, else 1. Checkpoints, probes and restarts are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from core_mri.config import to_mapping
from core_mri.errors import ConfigError
from pretrain.calibration import Calibration, load_calibration
from pretrain.cluster import Cluster
from pretrain.config import PretrainConfig
from pretrain.config_views import require
from pretrain.flops import encoder_config, encoder_flops, step_flops, step_work
from pretrain.hardware import GPUS, Gpu, known_gpu
from pretrain.memory_need import RESERVED, MemoryNeed, largest_batch, memory_need, traffic
from pretrain.sampler import check_batch
from pretrain.stages import stages_of

PEER_MFU = 0.185
_PEER = (
    "what DINOv3's reference run did (its README: ViT-L/16, 125,000 steps of 2,048 images in about "
    "14 hours on 32 H100; drop path 0.3); never measured by us on a GPU"
)
_COMPUTE, _NETWORK, _LOADING, _STORAGE = "compute", "network", "data loading", "storage"


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Steps of one size. Seconds are for one step."""

    steps: int
    batch_size: int
    images_per_second: float
    seconds: float
    bottleneck: str
    """``compute``, ``network``, ``data loading`` or ``storage``."""
    compute: float
    all_reduce: float
    visible_all_reduce: float
    loading: float
    storage: float
    scaling: float
    """Images a second / those of one GPU with its share of the batch, of storage and cores x n."""
    hours: float
    memory: MemoryNeed
    """Of one GPU."""
    largest_batch: int | None
    """Images of a step that the memory holds; None when it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes."""

    images: int
    images_per_second: float
    """Mean over the run."""
    hours: float
    gpu_hours: float
    money: float
    """``gpu_hours x price``."""
    gpus: int
    memory_gb: float | None
    """Of a GPU."""
    stages: tuple[StageCost, ...]
    assumptions: tuple[str, ...]
    """What was taken, and from where."""


def estimate(config: PretrainConfig, cluster: Cluster) -> Cost:
    """Predict what a run takes.

    Args:
        config: Of the run; its precision ``auto`` means the calibration's, else bfloat16.
        cluster: Where.

    Raises:
        ConfigError: CONFIG-05 when the batch does not divide, the memory is too small (with the
            largest batch that fits), the objective has no formula, or a calibration is of another
            device; what `load_calibration` raises.
    """
    require(
        config.objective.name == "distillation",
        f"the cost of {config.objective.name!r} is not known, only that of 'distillation'.",
        fix="Time some steps: core-mri pretrain bench CONFIG.",
    )
    calibration = load_calibration(cluster.calibration) if cluster.calibration else None
    speed = _Speed(config, cluster, calibration)
    config = _with_steps(config, cluster)
    stages = tuple(
        speed.stage(stage.config, steps)
        for stage, steps in zip(stages_of(config), _lengths(config), strict=True)
    )
    images = sum(stage.steps * stage.batch_size for stage in stages)
    hours = sum(stage.hours for stage in stages)
    return Cost(
        images=images,
        images_per_second=images / hours / 3600,
        hours=hours,
        gpu_hours=hours * cluster.gpus,
        money=hours * cluster.gpus * cluster.price,
        gpus=cluster.gpus,
        memory_gb=speed.gpu.memory and speed.gpu.memory / 1e9,
        stages=stages,
        assumptions=tuple(speed.assumptions()),
    )


class _Speed:
    """How fast a step is on a cluster."""

    def __init__(
        self, config: PretrainConfig, cluster: Cluster, calibration: Calibration | None
    ) -> None:
        self.cluster = cluster
        self.calibration = calibration
        self.gpu = _gpu(cluster, calibration)
        self.precision = calibration.precision if calibration else "bfloat16"
        require(
            config.precision in ("auto", self.precision),
            f"precision is {config.precision}, but the speed is known for {self.precision}.",
            fix="Calibrate with that precision.",
        )
        self.slices_per_core = cluster.slices_per_core or 1000.0
        if cluster.slices_per_core is None and calibration and calibration.slice_:
            self.slices_per_core = 1 / calibration.slice_
        self.link = self.gpu.link
        if cluster.gpus > cluster.gpus_per_node:
            self.link = cluster.network_gbit_s / 8 * 1e9

    def stage(self, config: PretrainConfig, steps: int) -> StageCost:
        """Steps of one size, over all GPUs."""
        gpus, corpus = self.cluster.gpus, self.cluster.slices or config.batch_size
        check_batch(corpus, config.batch_size, gpus, config.objective.koleo_group)
        group = config.objective.koleo_group
        share = -(-config.batch_size // group // gpus) * group  # of the busiest worker
        own = replace(config, batch_size=share)
        held = replace(config, batch_size=min(share, config.micro_batch or share))
        need, largest = memory_need(held, self.precision, gpus), None
        if self.gpu.memory is not None:
            largest = gpus * largest_batch(config, self.precision, self.gpu.memory, gpus)
            _check_memory(config, self.gpu.memory, need, largest)
        parts = self._parts(own, gpus)
        longest = max(parts, key=lambda name: parts[name])
        seconds = parts[longest]
        compute, all_reduce = self._compute(own, gpus), self._all_reduce(own, gpus)
        if longest == _COMPUTE and all_reduce > compute:
            longest = _NETWORK
        alone = max(self._parts(own, 1).values())
        return StageCost(
            steps=steps,
            batch_size=config.batch_size,
            images_per_second=config.batch_size / seconds,
            seconds=seconds,
            bottleneck=longest,
            compute=compute,
            all_reduce=all_reduce,
            visible_all_reduce=max(0.0, all_reduce - compute / 2),
            loading=parts[_LOADING],
            storage=parts[_STORAGE],
            scaling=alone / seconds,
            hours=steps * seconds / 3600,
            memory=need,
            largest_batch=largest,
        )

    def _parts(self, own: PretrainConfig, gpus: int) -> dict[str, float]:
        """Seconds of what goes on at the same time, for `own` images of each GPU."""
        cluster, compute = self.cluster, self._compute(own, gpus)
        reads = own.batch_size * (2 if own.views.adjacent_slices else 1)
        node_bytes = reads * cluster.slice_kb * 1e3 * min(gpus, cluster.gpus_per_node)
        readers = min(cluster.cores, max(own.loader_workers, 1))
        loading = reads / (readers * self.slices_per_core)
        visible = max(0.0, self._all_reduce(own, gpus) - compute / 2)
        return {
            _COMPUTE: compute + visible + (0 if own.loader_workers else loading),
            _LOADING: loading,
            _STORAGE: node_bytes / (cluster.storage_mb_s * 1e6),
        }

    def _compute(self, own: PretrainConfig, gpus: int) -> float:
        if self.calibration is not None:
            work = step_work(own, attention_matrix=self.calibration.device == "cpu")
            if own.sharded(gpus):  # as are the optimizer's
                work = replace(work, parameters=work.parameters / gpus)
            return self.calibration.seconds(work)
        return step_flops(own).kept / (self.gpu.peak * self._mfu(own))

    def _mfu(self, own: PretrainConfig) -> float:
        return min(self.cluster.mfu or PEER_MFU, bandwidth_ceiling(own, self.gpu))

    def _all_reduce(self, own: PretrainConfig, gpus: int) -> float:
        return ring_seconds(traffic(own, self.precision, gpus) / 2, gpus, self.link)

    def assumptions(self) -> Iterator[str]:
        """What was taken, and from where."""
        cluster, found = self.cluster, self.calibration
        if found is not None:
            yield (
                f"speed measured on {found.device}, {found.precision}: {', '.join(found.files)}; "
                f"MFU {found.mfu_kept:.1%} of {found.peak_flops / 1e12:.3g} TFLOP/s "
                f"({found.peak_source}), heads {found.head_share:.1%} of a step"
            )
            if len(found.files) == 1:
                yield "one measurement: two of different widths foretell other settings better"
        else:
            mfu, origin = cluster.mfu or PEER_MFU, "as given" if cluster.mfu else _PEER
            yield f"MFU {mfu:.1%} of {self.gpu.peak / 1e12:.4g} TFLOP/s: {origin}"
            yield f"GPU: {self.gpu.source}"
        if cluster.slices_per_core:
            reading = "as given"
        elif found and found.slice_:
            reading = "as measured with the calibration, files in the page cache or not as there"
        else:
            reading = "a default; measure yours with a calibration of loader_workers 0"
        yield f"reading: {self.slices_per_core:,.0f} slices/s and core, {reading}"
        yield (
            f"{cluster.cores} cores for each GPU, slices of {cluster.slice_kb:g} kB, storage "
            f"{cluster.storage_mb_s:,.0f} MB/s a node, gradients at {self.link / 1e9:.4g} GB/s"
        )
        yield f"price: {cluster.price:g} for a GPU-hour, as given"


def bandwidth_ceiling(config: PretrainConfig, gpu: Gpu) -> float:
    """Highest part of the peak that blocks can reach when nothing is fused; 1 when unknown."""
    if gpu.bandwidth is None:
        return 1.0
    encoder, side = encoder_config(config), config.views.global_size
    tokens = (side // encoder.patch_size) ** 2 + 1 + encoder.num_registers
    products = encoder_flops(encoder, side)[1] / gpu.peak
    traffic = 36 * encoder.embed_dim * tokens * encoder.depth / gpu.bandwidth
    return products / (products + traffic)


def ring_seconds(num_bytes: float, gpus: int, link: float) -> float:
    """Time of a ring all-reduce: ``2 (n - 1) / n x bytes / link`` (Patarasuk and Yuan, 2009)."""
    return 2 * (gpus - 1) / gpus * num_bytes / link


def to_json(cost: Cost) -> dict[str, object]:
    """Plain values; bytes of memory with their sum."""
    plain = to_mapping(cost)
    for stage, row in zip(cost.stages, plain["stages"], strict=True):
        row["memory"]["total"] = stage.memory.total
    return plain


def _gpu(cluster: Cluster, calibration: Calibration | None) -> Gpu:
    measured = known_gpu(calibration.device) if calibration else None
    if calibration is not None and cluster.gpu not in ("", measured):
        raise ConfigError(
            "CONFIG-05",
            f"the calibration was measured on {calibration.device!r}, the plan is for "
            f"{cluster.gpu!r}.",
            fix="Run `core-mri pretrain bench` on such a GPU, or leave calibration out.",
        )
    if name := cluster.gpu or measured:
        gpu = GPUS[name]
    elif calibration is not None:
        gpu = Gpu(
            peak=calibration.peak_flops,
            memory=None,
            bandwidth=None,
            link=cluster.network_gbit_s / 8 * 1e9,
            source=calibration.peak_source,
        )
    else:
        require(
            cluster.peak_tflops is not None and cluster.memory_gb is not None,
            "no GPU is named: gpu, or peak_tflops and memory_gb, or a calibration is needed.",
            fix=f"The table has {', '.join(GPUS)}.",
        )
        gpu = Gpu(peak=0, memory=None, bandwidth=None, link=64e9, source="")
    given = {
        "peak": cluster.peak_tflops and cluster.peak_tflops * 1e12,
        "memory": cluster.memory_gb and cluster.memory_gb * 1e9,
        "bandwidth": cluster.bandwidth_gb_s and cluster.bandwidth_gb_s * 1e9,
        "link": cluster.link_gb_s and cluster.link_gb_s * 1e9,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        return gpu
    told = ", ".join(part for part in (gpu.source, f"{', '.join(changed)} as given") if part)
    return replace(gpu, **changed, source=told)


def _with_steps(config: PretrainConfig, cluster: Cluster) -> PretrainConfig:
    if cluster.slices is None:
        return config
    require(
        not config.stages,
        "slices and epochs count steps of one size, but the configuration has stages.",
        fix="Leave slices out and set steps and stages.",
    )
    steps = max(1, round(cluster.slices * cluster.epochs / config.batch_size))
    # The schedules, which must fit into a run, cost nothing.
    return replace(
        config,
        steps=steps,
        optimizer=replace(config.optimizer, warmup_steps=0),
        objective=replace(
            config.objective,
            teacher_temperature_warmup=0,
            gram_start=min(config.objective.gram_start, steps - 1),
        ),
    )


def _lengths(config: PretrainConfig) -> list[int]:
    later = [stage.steps for stage in config.stages]
    return [config.steps - sum(later), *later]


def _check_memory(config: PretrainConfig, memory: float, need: MemoryNeed, largest: int) -> None:
    require(
        need.total <= (1 - RESERVED) * memory,
        f"batch_size {config.batch_size} needs {need.total / 1e9:.1f} GB of each GPU, which has "
        f"{memory / 1e9:.0f} GB, a tenth of it reserved.",
        fix=f"The largest batch_size that fits is {largest}."
        if largest
        else "Not even one KoLeo group of each GPU fits: take a smaller model, fewer views or "
        "prototypes.",
    )
