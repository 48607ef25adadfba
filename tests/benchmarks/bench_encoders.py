"""How fast images are encoded and clicks answered, beside segment-anything and timm.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_encoders.py [--device cuda] [--repeats 3]

Every implementation runs in a process of its own with the same seeded weights and images, float32,
one thread; the number is images per second of processor time on the CPU (fastest of the repeats),
of wall time on CUDA. Memory is the growth of the peak resident size (CUDA: peak allocated) during
the forward passes. The difference is between the outputs of the two, which must be float32 noise.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import core_mri

CASES = ("sam_vit_b 1024", "vit_base_patch16 224", "vit_base_patch16 512", "click 1024")
MEASURED = ("reference", "ours", "ours bfloat16")


def randomized(model: nn.Module) -> nn.Module:
    """Weights that no table leaves at zero; same names, same numbers."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            generator = torch.Generator().manual_seed(len(name))
            scale = 0.05 if parameter.ndim == 1 or "pos" in name else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def peak_resident() -> int:
    """Peak resident size in KiB since it was reset (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def workload(case: str, implementation: str, device: str) -> Callable[[], Tensor]:
    """What is timed, and its output."""
    name, size = case.split()
    images = torch.rand(1, 1, int(size), int(size), generator=torch.Generator().manual_seed(0))
    images = images.to(device)
    if name == "vit_base_patch16":
        encoder = randomized(core_mri.create_model(name, image_size=int(size), mean=0, std=1))
        encoder = encoder.to(device)
        if implementation != "reference":
            return lambda: encoder(images).patches
        import timm

        vit = timm.create_model(
            "vit_base_patch16_224", img_size=int(size), in_chans=1, num_classes=0
        )
        vit.load_state_dict(encoder.vit.state_dict())
        vit = vit.eval().to(device)
        return lambda: vit.forward_features(images)[:, 1:].unflatten(1, (int(size) // 16, -1))
    model = randomized(core_mri.create_model("sam_vit_b")).to(device)
    points = (torch.tensor([[[300.0, 400.0]]], device=device), torch.ones(1, 1, device=device))
    embedding = torch.rand(1, 256, 64, 64, generator=torch.Generator().manual_seed(1)).to(device)
    if implementation != "reference":
        if name == "click":
            return lambda: model.decode(embedding, points, multimask=True).logits
        return lambda: model.embed_image(images)
    from segment_anything import sam_model_registry

    sam = sam_model_registry["vit_b"]()
    sam.image_encoder.patch_embed.proj = nn.Conv2d(1, 768, 16, stride=16)
    sam.load_state_dict(model.state_dict())
    sam = sam.eval().to(device)
    if name == "sam_vit_b":
        return lambda: sam.image_encoder(images)

    def click() -> Tensor:
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
        return sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )[0]

    return click


@torch.inference_mode()
def measure(case: str, implementation: str, device: str, repeats: int, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)  # for SAM's random frequencies, which are no parameter
    torch.backends.cuda.matmul.allow_tf32 = False
    run = workload(case, implementation, device)
    cuda = device.startswith("cuda")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, without the loading
    before = peak_resident()
    seconds = []
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled="bfloat16" in implementation):
        run()
        for _ in range(repeats):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter() if cuda else time.process_time()
            output = run()
            if cuda:
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() if cuda else time.process_time()) - start)
    peak = torch.cuda.max_memory_allocated() / 1024 if cuda else peak_resident() - before
    torch.save(output.float().cpu(), out / "output.pt")
    (out / "facts.json").write_text(json.dumps({"seconds": min(seconds), "mib": peak / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "IMPLEMENTATION", "OUT"))
    given = parser.parse_args()
    if given.one:
        case, implementation, out = given.one
        measure(case, implementation, given.device, given.repeats, Path(out))
        return
    print(f"torch {torch.__version__}, {given.device}, fastest of {given.repeats}", flush=True)
    print("case                  who             per image    ratio   memory   difference")
    for case in given.cases:
        reference = None
        for implementation in MEASURED:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--device", given.device]
                command += ["--repeats", str(given.repeats), "--one", case, implementation, folder]
                subprocess.run(command, check=True)
                facts = json.loads((Path(folder) / "facts.json").read_text())
                output = torch.load(Path(folder) / "output.pt", weights_only=True)
            if reference is None:
                reference = facts["seconds"], output
            ratio = reference[0] / facts["seconds"]
            difference = float((output - reference[1]).abs().max() / reference[1].abs().max())
            print(
                f"{case:21} {implementation:14} {1000 * facts['seconds']:8.1f} ms {ratio:6.2f} x "
                f"{facts['mib']:6.0f} MiB   {difference:.1e} of the largest",
                flush=True,
            )


if __name__ == "__main__":
    main()
