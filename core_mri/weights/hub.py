"""Weights folders on the Hugging Face hub, or on a server that speaks as it does.

Nothing here is called unless a source begins with ``hf:`` or `push` is asked for. The files of a
weights folder travel, no others: ``config.json``, ``model.safetensors``, ``README.md`` and, where
there is one, ``statistics.safetensors``; the hash in the first is checked against the second after
they arrived. A commit hash as revision is looked up in the local
cache first, and needs no network when it is there.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core_mri.errors import WeightsError
from core_mri.training_statistics import STATISTICS
from core_mri.weights.folder import CARD, CONFIG, TENSORS, read_config, read_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEME = "hf:"
_SOURCE = re.compile(r"(?:hf:)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")


class HubSource(NamedTuple):
    """A repository at a revision."""

    repo: str
    """``owner/name``."""
    revision: str | None
    """Branch, tag or commit hash; None is the newest of the main branch."""


def parse_source(source: str) -> HubSource:
    """Read ``hf:owner/name`` or ``hf:owner/name@revision``.

    Raises:
        WeightsError: WEIGHTS-03 for anything else.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise WeightsError(
            "WEIGHTS-03",
            f"{source!r} names no repository.",
            fix="Write hf:OWNER/NAME or hf:OWNER/NAME@REVISION.",
        )
    return HubSource(found["repo"], found["revision"])


def pull(source: str, *, folder: str | Path | None = None, endpoint: str | None = None) -> Path:
    """Fetch a weights folder.

    Args:
        source: ``hf:owner/name`` with an optional ``@revision``.
        folder: Where to put the files; the cache of huggingface_hub when None.
        endpoint: Address of the server; that of the environment (``HF_ENDPOINT``) when None.

    Returns:
        The folder.

    Raises:
        WeightsError: WEIGHTS-03 when there is no such repository or revision, or no server answers;
            WEIGHTS-01 when what arrived is no weights folder or does not match its hash.
    """
    from huggingface_hub import snapshot_download

    wanted = parse_source(source)
    with _hub_errors(source):
        path = snapshot_download(
            wanted.repo,
            revision=wanted.revision,
            local_dir=folder,
            endpoint=endpoint,
            allow_patterns=[CONFIG, TENSORS, CARD, STATISTICS],
        )
    read_tensors(Path(path), read_config(Path(path))["sha256"])
    return Path(path)


def push(
    folder: str | Path, repo: str, *, private: bool = True, endpoint: str | None = None
) -> str:
    """Publish a weights folder; a repository is made when there is none.

    Args:
        folder: A whole weights folder; it is checked before anything leaves.
        repo: ``owner/name``.
        private: Whether a new repository is seen by its owner only.
        endpoint: As for `pull`.

    Returns:
        Hash of the commit; ``hf:owner/name@hash`` loads exactly this.

    Raises:
        WeightsError: WEIGHTS-01 when the folder is incomplete or does not match its hash, or has
            no card; WEIGHTS-03 when the server refuses or does not answer.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    wanted = parse_source(repo)
    config = read_config(folder)
    read_tensors(folder, config["sha256"])
    if not (folder / CARD).is_file():
        raise WeightsError("WEIGHTS-01", f"{folder / CARD}: no such file; weights need a card.")
    api = HfApi(endpoint=endpoint)
    with _hub_errors(repo):
        api.create_repo(wanted.repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=wanted.repo,
            folder_path=folder,
            allow_patterns=[CONFIG, TENSORS, CARD, STATISTICS],
            commit_message="Weights folder of core-mri",
            revision=wanted.revision,
        )
    return str(commit.oid)


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Errors of the server, the network and the cache, as ours."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise WeightsError(
            "WEIGHTS-03",
            f"{source}: {lines[0] if lines else type(error).__name__}",
            fix="Look at name, revision, network and token (hf auth login; HF_TOKEN).",
        ) from None
