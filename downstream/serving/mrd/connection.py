"""What runs in the process of one MRD client: the only place that reads what the client sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from core_mri.errors import ServingError
from downstream.serving.mrd.conversation import converse
from downstream.serving.mrd.protocol import MessageReader
from downstream.serving.orders import MrdWork

_PIECE = 1 << 16


def do_mrd(
    work: MrdWork, tell: Callable[[dict[str, Any]], None], _hear: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Answer one client.

    Raises:
        ServingError: SERVE-04 for a client that is too slow, SERVE-31 for one that left, and what
            `converse` raises.
        CoreMRIError: What reconstructing the scan raises.
    """
    torch.set_num_threads(1)
    client = work.client
    client.settimeout(work.idle_s)  # it did not come along

    def write(content: bytes) -> None:
        # In pieces, so that the time limit is one of pauses, not of the whole.
        view = memoryview(content)
        for start in range(0, len(view), _PIECE):
            client.sendall(view[start : start + _PIECE])

    try:
        return converse(
            MessageReader(client.recv, work.limit), write, work.sources, work.scratch, work.device,
            sending=lambda begun: tell({"sending": begun}),
        )  # fmt: skip
    except TimeoutError:
        raise ServingError(
            "SERVE-04",
            f"nothing was sent or taken within {work.idle_s:g} s.",
            fix="Send without pauses, or ask whoever runs the service for more --mrd-idle-s.",
        ) from None
    except ConnectionError:
        raise ServingError("SERVE-31", "the client left in the middle of a stream.") from None
