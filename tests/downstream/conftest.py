"""A small registry of synthetic abdomens, ingested once, and a micro encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from core_mri import save_model, write_volume
from core_mri.config import load_config
from core_mri.models.encoder import Encoder
from core_mri.models.registry import EncoderConfig
from core_mri.physics.phantoms import LABELS, phantom_volume
from core_mri.volume import Volume
from data_registry.catalogue import Registry
from data_registry.ingest import IngestConfig, ingest
from data_registry.source_list import Source
from downstream.config import FinetuneConfig, SuiteConfig, Task
from downstream.evaluation.results import Outcome, Score
from downstream.recipe import Recipe
from downstream.reconstruction.suite import ReconstructionSuite
from downstream.reconstruction.training.config import ReconstructionConfig
from downstream.reconstruction.training.study_config import ReconstructionStudy
from tests.downstream.leaderboard_files import Hall, knee_board, tissue_board
from tests.downstream.serving_client import Client, Reply, ServerProcess

if TYPE_CHECKING:
    from tests.downstream.dicom_service import DicomServer
    from tests.downstream.mrd_service import MrdServer

SIZE = 32
ALICE, BOB = "alice-token-of-some-length", "bob-token-of-another-length"
NUM_SUBJECTS = 24
SEQUENCES = ("T1", "T2")


def write_abdomens(folder: Path, num_subjects: int, *, shift_labels_mm: float = 0.0) -> None:
    """`folder`/{T1,T2}/s00.nii.gz and `folder`/labels/s00.nii.gz."""
    for name in (*SEQUENCES, "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for subject in range(num_subjects):
        for sequence in SEQUENCES:
            image, label = phantom_volume(
                "abdomen", subject, sequence, size=SIZE, num_slices=6, seed=0
            )
            write_volume(image, folder / sequence / f"s{subject:02d}.nii.gz")
        affine = np.array(label.affine)
        affine[0, 3] += shift_labels_mm
        moved = Volume(label.array, affine, kind="label")
        write_volume(moved, folder / "labels" / f"s{subject:02d}.nii.gz")


def ingest_abdomens(folder: Path, registry: Path) -> Registry:
    """One source `phantoms`; a fixed key makes the splits the same in every test run."""
    key = registry.with_name("fixed.key")
    key.write_text("5a" * 32 + "\n")
    key.chmod(0o600)
    facts = {
        "name": "phantoms",
        "licence": "CC0-1.0",
        "synthetic": True,
        "region": "abdomen",
        "subject": "(?P<subject>s[0-9]+)",
    }
    sources = [Source(root=str(folder / s), sequence=s, **facts) for s in SEQUENCES]
    sources.append(Source(root=str(folder / "labels"), role="label", **facts))
    Registry.create(registry, fractions=(0.4, 0.2, 0.4))
    ingest(IngestConfig(registry=registry, sources=tuple(sources), key_file=key, jobs=1))
    return Registry.open(registry)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole runs need no fine intervals."""
    for module in ("summary", "classified"):
        monkeypatch.setattr(f"downstream.evaluation.{module}.NUM_RESAMPLES", 50)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("abdomens")
    write_abdomens(folder / "files", NUM_SUBJECTS)
    return ingest_abdomens(folder / "files", folder / "registry")


@pytest.fixture
def make_registry(tmp_path: Path) -> Callable[..., Registry]:
    """Ingest another registry of a few subjects; keyword arguments as `write_abdomens`."""

    def make(num_subjects: int, **changes: float) -> Registry:
        write_abdomens(tmp_path / "files", num_subjects, **changes)
        return ingest_abdomens(tmp_path / "files", tmp_path / "registry")

    return make


@pytest.fixture
def organs() -> Task:
    return Task(
        name="organs",
        kind="segmentation",
        where="sequence = 'T1'",
        labels={name: value for value, name in LABELS["abdomen"].items()},
    )


@pytest.fixture
def prompting(organs: Task) -> Task:
    """The liver is tested; it is never prompted in training."""
    return Task(
        name="liver",
        kind="prompting",
        where=organs.where,
        labels={"liver": organs.labels["liver"]},
        train_labels={name: organs.labels[name] for name in ("spleen", "right kidney", "aorta")},
        other_labels="background",
    )


@pytest.fixture
def sequences() -> Task:
    return Task(name="sequence", kind="classification", target="sequence")


@pytest.fixture(scope="session")
def micro() -> Encoder:
    """Random weights too, but not those of any twin in these tests."""
    import torch

    torch.manual_seed(1234)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32}
    return Encoder(EncoderConfig(**sizes, layer_scale=0.0)).eval()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, micro: Encoder) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "micro"
    return save_model(micro, folder, {"subjects": ["somebody-else"]})


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        image_size=32,
        num_validation=2,
        validate_every=2,
        batch_size=4,
        num_levels=2,
        head_width=16,
        augmented_copies=1,
    )


@pytest.fixture
def finetune_config(registry, weights, organs, recipe, tmp_path, few_resamples):
    """Build a FinetuneConfig of a few steps; keyword arguments change it."""

    def make(**changes) -> FinetuneConfig:
        values = {
            "registry": registry.path,
            "out": tmp_path / "run",
            "weights": str(weights),
            "task": organs,
            "k": 2,
            "steps": 4,
            "device": "cpu",
            "recipe": recipe,
        }
        return FinetuneConfig(**(values | changes))

    return make


@pytest.fixture
def suite_config(registry, weights, organs, sequences, recipe, tmp_path, few_resamples):
    """Build a SuiteConfig of two tasks; keyword arguments change it."""

    def make(**changes) -> SuiteConfig:
        values = {
            "registry": registry.path,
            "out": tmp_path / "suite",
            "weights": {"micro": str(weights)},
            "tasks": (organs, sequences),
            "k": (1, 2),
            "draws": 2,
            "steps": 2,
            "device": "cpu",
            "recipe": recipe,
        }
        return SuiteConfig(**(values | changes))

    return make


@pytest.fixture(scope="session")
def reconstructor(registry: Registry, weights: Path, tmp_path_factory) -> Path:
    """The run of an unrolled network with the micro encoder inside: two steps, no test patients."""
    from downstream.reconstruction.training.finetune import finetune_reconstruction

    values = {
        "registry": str(registry.path),
        "out": str(tmp_path_factory.mktemp("reconstructor") / "run"),
        "where": "sequence = 'T1' AND split <> 'test'",
        "steps": 2,
        "device": "cpu",
        "network": {"steps": 2, "channels": 4, "pools": 2},
        "encoder": {"weights": str(weights), "num_levels": 2},
        "simulation": {"size": SIZE, "coils": 4},
        "undersampling": {"accelerations": [2, 3], "center_fractions": [0.3, 0.25]},
        "fitting": {"validate_every": 2, "num_validation": 3},
    }
    return finetune_reconstruction(load_config(ReconstructionConfig, values))


@pytest.fixture(scope="session")
def like_scans(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Raw data of patients whom neither training nor threshold saw."""
    from core_mri.files import write_kspace
    from downstream.reconstruction.training.config import Simulation
    from downstream.reconstruction.training.slices import SimulatedSlices
    from tests.downstream.test_reconstruct import make_scan

    slices = SimulatedSlices(registry, "test", "sequence = 'T1'", Simulation(size=SIZE, coils=4))
    folder = tmp_path_factory.mktemp("scans")
    paths = []
    for name in dict.fromkeys(slices.volumes):
        own = [i for i, volume in enumerate(slices.volumes) if volume == name]
        samples = [slices.read(i, np.random.default_rng(i)).kspace.numpy() for i in own]
        paths.append(folder / f"{name}.h5")
        write_kspace(make_scan(np.stack(samples)), paths[-1])
    return paths


@pytest.fixture(scope="session")
def unlike_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data of a knee with strong noise."""

    import torch

    from core_mri.files import write_kspace
    from core_mri.physics.fourier import fft2c
    from tests.downstream.test_reconstruct import make_scan

    knee = phantom_volume("knee", 3, size=SIZE, num_slices=6)[0].array
    images = knee.transpose(2, 0, 1)[:, None] / knee.max()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, len(images), 4, *images.shape[2:])) * 0.5
    coils = torch.from_numpy(images + noise[0] + 1j * noise[1])
    path = tmp_path_factory.mktemp("stranger") / "knee.h5"
    write_kspace(make_scan(fft2c(coils).numpy().astype(np.complex64)), path)
    return path


@pytest.fixture(scope="session")
def packaged():
    """Every packaged configuration with its class."""
    from downstream.cli import CONFIGS

    classes = {
        "reconstruction": ReconstructionSuite,
        "reconstruction_networks": ReconstructionStudy,
    }
    found = [
        (path, ReconstructionConfig if path.stem.startswith("un") else FinetuneConfig)
        for path in sorted(CONFIGS.glob("*.yaml"))
    ]
    for path in sorted((CONFIGS / "suites").glob("*.yaml")):
        found.append((path, classes.get(path.stem, SuiteConfig)))
    return [(path, load_config(cls, path)) for path, cls in found]


@pytest.fixture(scope="session")
def segmented():
    def make(values, weights="ours", against="twin", draw=0, task="organs") -> Outcome:
        """A segmentation cell of `values`: patient -> structure -> Dice."""
        common = {"task": task, "weights": weights, "k": 5, "draw": draw}
        scores = tuple(
            Score(
                **common, twin=not against, method="frozen", seed=0, patient=patient,
                structure=structure, metric="dice", value=value, unit="1",
            )
            for patient, by_structure in values.items()
            for structure, value in by_structure.items()
        )  # fmt: skip
        return Outcome(key=f"{weights}{draw}", against=against, scores=scores, **common)

    return make


@pytest.fixture(scope="session")
def random_values():
    def make(num_patients, seed, better=0.0):
        rng = np.random.default_rng(seed)
        return {
            f"p{i}": {s: float(rng.uniform(0.2, 0.6) + better) for s in ("liver", "spleen")}
            for i in range(num_patients)
        }

    return make


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """`core-mri serve` for two users."""
    folder = tmp_path_factory.mktemp("serve")
    tokens = folder / "tokens"
    tokens.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    tokens.chmod(0o600)
    process = ServerProcess(
        folder, "wavelet", "zero-filled", "--token-file", str(tokens), "--job-gb", "1"
    )
    yield process
    process.stop()


@pytest.fixture(scope="session")
def client(serving: ServerProcess) -> Client:
    return Client(serving.url, ALICE)


@pytest.fixture(scope="session")
def bob(serving: ServerProcess) -> Client:
    return Client(serving.url, BOB)


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A service without tokens that grants little."""
    process = ServerProcess(
        tmp_path_factory.mktemp("tight"), "wavelet", "--jobs", "2", "--requests-per-s", "5",
        "--job-s", "0.001", "--upload-gb", "0.002", "--chunk-mb", "1", "--body-s", "1.5",
    )  # fmt: skip
    yield Client(process.url)
    process.stop()


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A fastMRI file of three slices, undersampled, with a reference."""
    from core_mri.files import write_kspace
    from tests.downstream.test_reconstruct import line_mask, make_samples, make_scan

    path = tmp_path_factory.mktemp("raw") / "raw.h5"
    write_kspace(make_scan(make_samples(), line_mask()), path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def long_raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A fastMRI file that keeps a worker busy for a minute."""
    from core_mri.files import write_kspace
    from tests.downstream.test_reconstruct import line_mask, make_samples, make_scan

    path = tmp_path_factory.mktemp("raw") / "long.h5"
    write_kspace(make_scan(np.tile(make_samples(), (100, 1, 1, 1)), line_mask()), path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def released(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights: `random` answers prompts, `network` reconstructs, `organs` segments.

    The latter know what they saw: the abdomens of the registry.
    """
    import torch

    import core_mri
    from core_mri.__main__ import main
    from tests.core_mri.test_segment_verb import DECODERS, release

    folder = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    core_mri.save_model(core_mri.create_model("sam_vit_micro"), folder / "random")
    core_mri.save_model(core_mri.create_model("varnet_micro"), folder / "network")
    release(folder / "organs", next(iter(DECODERS)))
    words = ("--registry", str(registry.path), "--where", "sequence = 'T1'", "--device", "cpu")
    assert main(["data", "statistics", str(folder / "organs"), *words]) == 0
    return folder


@pytest.fixture(scope="session")
def networks(
    released: Path, reconstructor: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A service of weights; slow to start."""
    sources = [released / "random", released / "network", released / "organs", reconstructor]
    process = ServerProcess(
        tmp_path_factory.mktemp("networks"), "wavelet", *map(str, sources), "--device", "cpu"
    )
    yield process
    process.stop()


@pytest.fixture
def knees(tmp_path: Path) -> Hall:
    (tmp_path / "knees").mkdir()
    return Hall(tmp_path / "knees", *knee_board(tmp_path / "knees"))


@pytest.fixture
def tissue(tmp_path: Path) -> Hall:
    (tmp_path / "tissue").mkdir()
    return Hall(tmp_path / "tissue", *tissue_board(tmp_path / "tissue"))


@pytest.fixture(scope="session")
def mrd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MrdServer]:
    """A service that takes three MRD streams at once, for short pauses and sizes."""
    from tests.downstream.mrd_service import IDLE_S, MrdServer

    process = MrdServer(
        tmp_path_factory.mktemp("mrd"), "wavelet", "zero-filled", "--mrd-idle-s", str(IDLE_S),
        "--mrd-clients", "3", "--upload-gb", "0.05",
    )  # fmt: skip
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="session")
def mrd_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes of three slices, undersampled, with a position."""
    from core_mri.files import KSpace, write_kspace
    from tests.downstream.test_reconstruct import LPS_AFFINE, line_mask, make_samples, make_scan

    samples = np.stack([make_samples(3), make_samples(3) * 0.5])
    mask = line_mask()
    one = make_scan(samples[0], mask, affine=LPS_AFFINE)
    both = KSpace.from_slices(
        header=one.header, shape=one.shape, mask=mask, num_volumes=2,
        read_slice=lambda i, volume: samples[volume, i] * mask,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("scan") / "scan.h5"
    write_kspace(both, path, layout="ismrmrd")
    return path


@pytest.fixture(scope="session")
def dicom_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DicomServer]:
    """A service of Alice and Bob with doors for DICOM."""
    from tests.downstream.dicom_service import DicomServer

    process = DicomServer(tmp_path_factory.mktemp("dicom"))
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="session")
def alice(dicom_server: DicomServer) -> Client:
    return Client(dicom_server.url, ALICE)


@pytest.fixture(scope="session")
def dicom_bob(dicom_server: DicomServer) -> Client:
    return Client(dicom_server.url, BOB)


@pytest.fixture(scope="session")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """DICOM files of a phantom."""
    from tests.downstream.dicom_service import make_series

    return make_series(tmp_path_factory.mktemp("series") / "s", "first")


@pytest.fixture(scope="session")
def study(dicom_server: DicomServer, alice: Client, series: list[Path]) -> str:
    """Stored by Alice: the new study UID."""
    import pydicom

    from tests.downstream.dicom_service import post

    answer = post(alice, [path.read_bytes() for path in series])
    assert answer.status == 200, answer.body
    return dicom_server.new_uid(str(pydicom.dcmread(series[0]).StudyInstanceUID))


@pytest.fixture(scope="session")
def mixed(dicom_bob: Client, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reply]:
    """Of Bob: a slice, a capture, and a slice in a transfer syntax that is not read."""
    from tests.downstream.dicom_service import MPEG4, changed, make_series, post

    first, second, third, _ = make_series(tmp_path_factory.mktemp("mixed") / "s", "mixed")
    capture = changed(second, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    return first, post(dicom_bob, [first.read_bytes(), capture, changed(third, MPEG4)])
