"""The pretraining step against the step of lightly's DINOv2 example, in one run.

Both have the same ViT-Tiny/16, 2 x 96 + 8 x 48 px crops, masks, prototypes (two heads), batch 32,
LayerScale 1e-5, drop path 0.3, softmax centering, AdamW, moving teacher; one thread. Steps of the
contestants take turns; printed are medians of CPU-seconds. First the losses of both, with the same
weights and without stochastic depth.

lightly's side is examples/pytorch/dinov2.py of lightly 1.6 (separate heads, one channel): its
modules, its losses, its drop path, its optimizer and EMA calls, in its order. Ours is what
`pretrain.train.Trainer` does with a batch, clipping and the statistics of health included.

    python tests/benchmarks/bench_step.py [--repeats 7] [--prototypes 8192 65536] [--compile]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core_mri.config import load_config
from pretrain.config import PretrainConfig
from pretrain.objectives import Batch, create_objective
from pretrain.optimization import Optimization

BATCH, LOCALS, GLOBAL, LOCAL, DROP_PATH = 32, 8, 96, 48, 0.3
TEMPERATURE, MOMENTUM, MEAN, STD = 0.04, 0.99, 0.25, 0.25
NOW = {
    "learning_rate": 1e-4, "weight_decay": 0.04, "teacher_momentum": MOMENTUM,
    "teacher_temperature": TEMPERATURE,
    "koleo_weight": 0.2,  # ours is the mean over two views, lightly's example sums 0.1 of each
}  # fmt: skip


class Lightly:
    """The step of lightly's example."""

    def __init__(self, num_prototypes: int, drop_path: float, precision: torch.dtype) -> None:
        from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
        from lightly.models.modules import DINOv2ProjectionHead, MaskedVisionTransformerTIMM
        from lightly.models.utils import update_drop_path_rate
        from timm.models.vision_transformer import vit_tiny_patch16_224

        vit = vit_tiny_patch16_224(
            img_size=GLOBAL, in_chans=1, num_classes=0, pos_embed="learn", dynamic_img_size=True,
            init_values=1e-5,
        )  # fmt: skip
        self.teacher = MaskedVisionTransformerTIMM(vit=vit, pos_embed_initialization="skip")
        self.student = copy.deepcopy(self.teacher)
        if drop_path:
            update_drop_path_rate(self.student.vit, drop_path_rate=drop_path, mode="uniform")
        self.heads, self.teacher_heads = (
            nn.ModuleDict(
                {
                    name: DINOv2ProjectionHead(input_dim=192, output_dim=num_prototypes)
                    for name in ("dino", "ibot")
                }
            )
            for _ in range(2)
        )
        for module in (self.teacher, self.teacher_heads):
            module.requires_grad_(False).eval()
        self.dino, self.ibot = DINOLoss(num_prototypes), IBOTPatchLoss(num_prototypes)
        self.koleo, self.precision = KoLeoLoss(), precision
        self.optimizer = torch.optim.AdamW(
            [*self.student.parameters(), *self.heads.parameters()], lr=1e-4
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        globals_ = (batch.global_views.transpose(0, 1).flatten(0, 1) - MEAN) / STD
        locals_ = (batch.local_views.transpose(0, 1).flatten(0, 1) - MEAN) / STD
        block_mask = batch.masks.transpose(0, 1).flatten(0, 1)
        mask = globals_.new_zeros((len(globals_), self.teacher.sequence_length), dtype=torch.bool)
        mask[:, 1:] = block_mask.flatten(1)
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            with torch.no_grad():
                features = self.teacher.encode(globals_)
                teacher_cls = self.teacher_heads["dino"](features[:, 0])
                teacher_masked = self.teacher_heads["ibot"](features[mask])
            features = self.student.encode(globals_, mask=mask)
            cls = features[:, 0]
            global_out = self.heads["dino"](cls)
            masked = self.heads["ibot"](features[mask])
            local_out = self.heads["dino"](self.student.encode(locals_, mask=None)[:, 0])
            dino = self.dino(
                teacher_out=teacher_cls.chunk(2),
                student_out=torch.cat([global_out, local_out]).chunk(2 + LOCALS),
                teacher_temp=TEMPERATURE,
            )
            ibot = self.ibot(
                teacher_out=teacher_masked, student_out=masked, mask=block_mask,
                teacher_temp=TEMPERATURE,
            )  # fmt: skip
            koleo = 0.1 * sum(self.koleo(view) for view in cls.chunk(2))
        return {"loss": dino + ibot + koleo, "dino": dino, "ibot": ibot}

    def step(self, batch: Batch) -> None:
        from lightly.models.utils import update_momentum

        self.losses(batch)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        update_momentum(self.student, self.teacher, m=MOMENTUM)
        update_momentum(self.heads, self.teacher_heads, m=MOMENTUM)


class Ours:
    """The step of `pretrain.train.Trainer`."""

    def __init__(
        self, num_prototypes: int, drop_path: float, precision: torch.dtype, *, compiled: bool
    ) -> None:
        config = load_config(
            PretrainConfig,
            {
                "registry": "-", "out": "-", "steps": 1000, "batch_size": BATCH,
                "model": "vit_tiny_patch16", "drop_path": drop_path, "layer_scale": 1e-5,
                "compile": compiled,
                "views": {"global_size": GLOBAL, "local_size": LOCAL, "num_local": LOCALS},
                "objective": {
                    "num_prototypes": num_prototypes, "centering": "softmax", "koleo_group": BATCH,
                    "teacher_temperature_warmup": 0,
                },
                "optimizer": {"warmup_steps": 0, "freeze_prototypes_steps": 0},
            },
        )  # fmt: skip
        self.model = create_objective(config).train()
        self.optimization = Optimization(self.model, config.optimizer)
        self.precision, self.steps = precision, 0

    def losses(self, batch: Batch, **changes: float) -> dict[str, Tensor]:
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            return self.model(batch, NOW | changes)

    def step(self, batch: Batch) -> None:
        self.optimization.clear()
        self.losses(batch)["loss"].backward()
        self.optimization.update(self.steps, NOW)
        self.steps += 1


class TorchProducts(Ours):
    """The same with torch's own products of float32 matrices (MKL) instead of oneDNN's."""

    def step(self, batch: Batch) -> None:
        with _without_onednn():
            super().step(batch)


class Row(NamedTuple):
    name: str
    seconds: float


@contextmanager
def _without_onednn() -> Iterator[None]:
    import pretrain.linear

    kept = pretrain.linear.onednn_takes
    pretrain.linear.onednn_takes = lambda _x: False
    try:
        yield
    finally:
        pretrain.linear.onednn_takes = kept


def same_weights(theirs: Lightly, ours: Ours) -> None:
    """Copy lightly's student, of which its teacher is a copy, to our student and teacher."""
    encoder = {f"vit.{name}": value for name, value in theirs.student.vit.state_dict().items()}
    encoder["mask_token"] = theirs.student.mask_token.detach().flatten()
    theirs.teacher_heads.load_state_dict(theirs.heads.state_dict())
    for network in (ours.model.student, ours.model.teacher):
        network["encoder"].load_state_dict(encoder)
        for name in ("dino", "ibot"):
            linears = [m for m in theirs.heads[name].layers if isinstance(m, nn.Linear)]
            own = [m for m in network[name].mlp if isinstance(m, nn.Linear)]
            for layer, source in zip(own, linears, strict=True):
                layer.load_state_dict(source.state_dict())
            network[name].prototypes.weight.data.copy_(theirs.heads[name].last_layer.weight_v)


def batch_of(seed: int = 0) -> Batch:
    from lightly.models.utils import random_block_mask

    torch.manual_seed(seed)
    side = GLOBAL // 16
    masks = random_block_mask((2 * BATCH, side, side), min_num_masks_per_block=1)
    return Batch(
        torch.rand(BATCH, 2, 1, GLOBAL, GLOBAL),
        torch.rand(BATCH, LOCALS, 1, LOCAL, LOCAL),
        masks.unflatten(0, (2, BATCH)).transpose(0, 1),
    )


def print_parity(num_prototypes: int) -> None:
    theirs = Lightly(num_prototypes, 0.0, torch.float32)
    ours = Ours(num_prototypes, 0.0, torch.float32, compiled=False)
    same_weights(theirs, ours)
    batch = batch_of()
    # Each once, since the centers move; without KoLeo, which is rounding at this LayerScale.
    expected, got = theirs.losses(batch), ours.losses(batch, koleo_weight=0.0)
    for name in ("dino", "ibot"):
        a, b = float(got[name]), float(expected[name])
        print(f"  {name}: ours {a:.7f}, lightly {b:.7f}, relative difference {abs(a / b - 1):.1e}")
    (expected["dino"] + expected["ibot"]).backward()
    got["loss"].backward()
    own = dict(ours.model.student["encoder"].named_parameters())
    worst = max(
        float((own[f"vit.{name}"].grad - p.grad).abs().max() / p.grad.abs().max())
        for name, p in theirs.student.vit.named_parameters()
    )
    print(f"  gradients of the encoder: largest difference {worst:.1e} of a tensor's largest entry")


def measure(contestants: dict[str, Callable[[Batch], None]], repeats: int) -> list[Row]:
    batch = batch_of()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, step in contestants.items():
            started = time.process_time()
            step(batch)
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - started)
    return [Row(name, statistics.median(values)) for name, values in seconds.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--prototypes", type=int, nargs="+", default=[8192, 65536])
    parser.add_argument("--drop-path", type=float, default=DROP_PATH)
    parser.add_argument("--compile", action="store_true", help="our step with compiled blocks too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("losses without stochastic depth, same weights, float32, K = 512")
    print_parity(512)
    for num_prototypes in arguments.prototypes:
        for precision in (torch.float32, torch.bfloat16):
            made = num_prototypes, arguments.drop_path, precision
            contestants = {
                "lightly": Lightly(*made).step,
                "ours": Ours(*made, compiled=False).step,
            }
            if precision == torch.float32:
                contestants["ours, torch's products"] = TorchProducts(*made, compiled=False).step
            if arguments.compile:
                contestants["ours, compiled"] = Ours(*made, compiled=True).step
            print(f"K {num_prototypes}, {precision}, drop path {arguments.drop_path}")
            rows = measure(contestants, arguments.repeats)
            for row in rows:
                print(
                    f"  {row.name:24} {row.seconds:6.3f} CPU-s  {BATCH / row.seconds:5.1f} images/s"
                    f"  ratio {rows[0].seconds / row.seconds:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
