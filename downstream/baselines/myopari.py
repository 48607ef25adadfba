"""The heart model that the package `myopari` ships, as its plugin applies it.

Source: myopari (MIT), its net TIRAMISU_ACDC as ONNX. Image scaling, cropping and the way back are
the package's own functions; only its plugin for napari is left out. The plugin drops pieces of
fewer than 800 voxels, which in a stack removes crumbs and in a single picture the whole ventricle,
so single pictures keep all pieces.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

VALUES = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
"""What the net tells apart, by the names a task must use."""
MIN_VOXELS = 800
"""Of a piece of a stack, as in the plugin."""


def version() -> str:
    """Of the installed package; empty when it is not installed."""
    try:
        return importlib.metadata.version("myopari")
    except importlib.metadata.PackageNotFoundError:
        return ""


def unable(structures: Sequence[str], num_sequences: int = 1) -> str:
    """Why it cannot segment these structures of cases of so many sequences; empty when it can."""
    if not version():
        return "myopari is not installed: pip install --no-deps myopari onnxruntime"
    if num_sequences > 1:
        return f"myopari reads one sequence, not {num_sequences}"
    unknown = [name for name in structures if name not in VALUES]
    return f"myopari knows {', '.join(VALUES)}, not {', '.join(unknown)}" if unknown else ""


class Myopari:
    """The released net.

    Args:
        structures: Names of the classes from 1 on, out of `VALUES`.
    """

    def __init__(self, structures: Sequence[str]) -> None:
        import onnxruntime

        folder = _folder()
        self.structures = list(structures)
        self.functions = _functions(folder / "processors" / "functions_utils.py")
        self.session = onnxruntime.InferenceSession(
            str(folder / "Resources" / "tiramisu_acdc_fp32.onnx"),
            providers=["CPUExecutionProvider"],
        )

    def segment(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Class indices [S, H, W] of an image [S, H, W] in [0, 1]."""
        data = self.functions.preprocess_data_array(image.transpose(1, 2, 0))
        found = self.functions.predict_data_model(
            data,
            self.session,
            min_size_remove=MIN_VOXELS if len(image) > 1 else 0,
            onnx=True,
        ).transpose(2, 0, 1)
        classes = np.zeros(image.shape, dtype=np.uint8)
        for index, name in enumerate(self.structures, start=1):
            classes[found == VALUES[name]] = index
        return classes


def _folder() -> Path:
    spec = importlib.util.find_spec("myopari")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _functions(path: Path) -> ModuleType:
    """The functions of the package without its user interface, which needs napari."""
    spec = importlib.util.spec_from_file_location("myopari_functions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
