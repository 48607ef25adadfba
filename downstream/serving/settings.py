"""How the service is started, and where its things lie."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated

import tyro

from core_mri.errors import ConfigError, CoreMRIError, RunError, ServingError
from core_mri.runs import locked, writing
from downstream.reconstruction.config import names_weights
from downstream.serving.limits import Limits
from downstream.serving.neighbors import Neighbors, check_reach
from downstream.serving.sources import SOLVERS, is_solver
from downstream.serving.tokens import is_loopback

_MEMORY = Path("/dev/shm")
"""A file system in memory, on Linux."""
_held: list[IO[str] | None] = []
"""Locks of this process, open as long as it lives."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Take raw data and scans over HTTP, give reconstructions and masks back; with a page.

    Only this machine can reach it unless --host says otherwise, which demands tokens. Uploads lie
    encrypted with a key of their own until their job ends; results are erased after --keep-h.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """zero-filled, cg-sense, tv, wavelet, or weights of a reconstruction network, a segmenter or a
    mask decoder; the first that takes a file is used where a job names none."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs --token-file."""
    port: int = 8000
    """0 takes a free one."""
    token_file: Path | None = None
    """Lines NAME:TOKEN, mode 600; each name sees its own jobs only."""
    data_dir: Path = Path("core-mri-serve")
    """Queue, sealed uploads, results, and the key of the pseudonyms; mode 700."""
    leaderboards: tuple[Path, ...] = ()
    """Folders of `core-mri leaderboard create`."""
    workers: int = 1
    """Jobs at once; each uses all cores of its machine for slices of raw data."""
    device: str = "auto"
    """Where networks run: auto, cpu, cuda or cuda:N."""
    ray: str | None = None
    """Run on a Ray cluster (extra `serve-ray`): auto, HOST:PORT, ray://HOST:PORT, or local, which
    starts one on this machine. --workers is then the largest number of replicas; --data-dir must be
    one file system, under the same path, for this command and all nodes."""
    neighbors: Annotated[Neighbors, tyro.conf.arg(name="")] = field(default_factory=Neighbors)
    """MRD and DIMSE; not with --ray."""
    limits: Annotated[Limits, tyro.conf.arg(name="")] = field(default_factory=Limits)
    """What a user may ask."""

    def __post_init__(self) -> None:
        if not (self.sources or self.leaderboards):
            raise ConfigError(
                "CONFIG-01", "SOURCE: give at least one, such as wavelet, or --leaderboards."
            )
        for source in self.sources:
            if not (is_solver(source) or names_weights(source)):
                raise ConfigError(
                    "CONFIG-01",
                    f"SOURCE {source!r}: must be one of {', '.join(SOLVERS)}, a folder of weights "
                    "or FAMILY:FILE, such as sam:FILE.",
                )
        if self.workers < 1:
            raise ConfigError("CONFIG-01", f"--workers {self.workers}: must be 1 or more.")
        if not 0 <= self.port < 65536:
            raise ConfigError("CONFIG-01", f"--port {self.port}: must be 0 to 65535.")
        if self.token_file is None and not is_loopback(self.host):
            raise ConfigError(
                "SERVE-01",
                f"--host {self.host}: others could reach the service, which needs tokens.",
                fix="Give --token-file FILE with lines NAME:TOKEN, and put a proxy with TLS before "
                "it.",
            )
        check_reach(self.neighbors, self.host)
        if self.ray and (self.neighbors.mrd or self.neighbors.dimse):
            raise ConfigError(
                "CONFIG-05",
                "--mrd and --dimse: these doors open in one process, not with --ray.",
                fix="Start another `core-mri serve` for them, without --ray, with a --data-dir of "
                "its own. DICOMweb works on Ray.",
            )


@dataclass(frozen=True)
class Places:
    """Folders of a running service.

    Args:
        root: The data folder.
        scratch: Unsealed files of running jobs: in memory where the system has a place there.
    """

    root: Path
    scratch: Path

    @classmethod
    def open(cls, root: Path) -> tuple[Places, IO[str] | None]:
        """Make the folders; the lock must be kept open.

        Raises:
            ServingError: SERVE-02 when another service uses them.
            DataError: DATA-07 when they cannot be written.
        """
        lock = _locked(root)
        root = root.absolute()
        shutil.rmtree(root / "work", ignore_errors=True)  # of a service that was killed
        with writing(root):
            places = cls(root, own_scratch(root))
            for folder in (places.work, places.results):
                folder.mkdir(mode=0o700, exist_ok=True)
        return places, lock

    @classmethod
    def unused(cls, root: Path) -> Path:
        """Make the data folder, where no service uses it yet; its absolute path.

        Raises:
            ServingError: SERVE-02 when one does.
            DataError: DATA-07 when it cannot be written.
        """
        lock = _locked(root)
        if lock is not None:
            lock.close()
        return root.absolute()

    @property
    def database(self) -> Path:
        """The queue."""
        return self.root / "jobs.sqlite"

    @property
    def spool(self) -> Path:
        """Sealed uploads."""
        return self.root / "spool"

    @property
    def results(self) -> Path:
        """What jobs left, a folder each."""
        return self.root / "results"

    @property
    def work(self) -> Path:
        """Results that are being written."""
        return self.root / "work"

    @property
    def key(self) -> Path:
        """Of the pseudonyms."""
        return self.root / "deidentification.key"


def own_scratch(root: Path) -> Path:
    """A folder for unsealed files of this process, until it ends; those of killed ones go.

    Args:
        root: The data folder.
    """
    memory = _MEMORY if _MEMORY.is_dir() else root
    prefix = f"core-mri-{hashlib.sha256(str(root).encode()).hexdigest()[:16]}-"
    for folder in memory.glob(f"{prefix}*"):
        # Whoever lives holds its lock; another process may be throwing it away just now.
        with contextlib.suppress(CoreMRIError), locked(folder) or contextlib.nullcontext():
            shutil.rmtree(folder, ignore_errors=True)
    own = Path(tempfile.mkdtemp(prefix=prefix, dir=memory))
    _held.append(locked(own))
    return own


def _locked(root: Path) -> IO[str] | None:
    with writing(root):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
    try:
        return locked(root)
    except RunError:
        raise ServingError(
            "SERVE-02",
            f"{root}: another service uses this folder.",
            fix="Stop it, or choose another --data-dir.",
        ) from None
