"""DICOM over associations (extra `dimse`): C-ECHO, C-STORE in, C-FIND of the study root.

DIMSE knows no tokens: who may come is told by address, and whose the objects are by --dimse-user.
Objects of one association become one job when it ends. A success of C-STORE therefore says that an
object has arrived; one that de-identification holds back is counted in the report of the job.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from core_mri.errors import ConfigError, CoreMRIError, ServingError
from downstream.serving.dicom import holdings
from downstream.serving.dicom.holdings import Level, Query
from downstream.serving.dicom.syntaxes import supported
from downstream.serving.incoming import Incoming
from downstream.serving.neighbors import Neighbors, is_allowed
from downstream.serving.service import Service

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger(__name__)

_SUCCESS, _PENDING = 0x0000, 0xFF00
_NOT_ALLOWED, _NO_ROOM, _FAILED, _NOT_A_QUERY = 0x0124, 0xA700, 0xC000, 0xA900
"""Statuses of PS3.4 B.2.3 and C.4.1.1.4, PS3.7 C.5.9."""
_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.4.4",
)  # fmt: skip
"""MR Image, Enhanced MR Image, Legacy Converted Enhanced MR Image Storage."""
_LEVELS: dict[str, Level] = {"STUDY": "study", "SERIES": "series", "IMAGE": "instance"}
_MOST = 1000
_ASSOCIATIONS = 8
_COMMANDS_BYTES = 1 << 20
_IDLE_S = 60.0
_NEVER_MATCHED = ("00080052", "00080005", "00080054")
"""QueryRetrieveLevel, SpecificCharacterSet, RetrieveAETitle."""


class Dimse:
    """Answers associations until it is stopped.

    Args:
        service: What holds jobs.
        neighbors: Port, title, user, who may come.
        host: Address to listen at.

    Raises:
        ConfigError: CONFIG-06 without pynetdicom.
        ServingError: SERVE-02 when the port is taken.
    """

    def __init__(self, service: Service, neighbors: Neighbors, host: str) -> None:
        try:
            from pynetdicom import AE, evt
        except ModuleNotFoundError:
            raise ConfigError(
                "CONFIG-06", "pynetdicom is not installed.", fix="pip install 'core-mri[dimse]'."
            ) from None
        self._service, self._neighbors = service, neighbors
        self._open: dict[object, tuple[Incoming, bytes]] = {}
        self._arriving: dict[object, int] = {}
        self._lock = threading.Lock()
        entity = AE(ae_title=neighbors.dimse_title)
        entity.require_called_aet = True
        entity.maximum_associations = _ASSOCIATIONS
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = _IDLE_S
        entity.add_supported_context("1.2.840.10008.1.1")
        for uid in _CLASSES:
            entity.add_supported_context(uid, list(supported()))
        entity.add_supported_context("1.2.840.10008.5.1.4.1.2.2.1")
        handlers: Any = [
            (evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_ECHO, self._echo), (evt.EVT_CONN_CLOSE, self._ended),
            (evt.EVT_DATA_RECV, self._arrived),
        ]  # fmt: skip
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it logs identifiers
        try:
            self._server = entity.start_server(
                (host, neighbors.dimse_port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise ServingError(
                "SERVE-02", f"{host}:{neighbors.dimse_port} cannot be listened at "
                f"({error.strerror}).",
                fix="Choose another --dimse-port; 0 takes a free one.",
            ) from None  # fmt: skip

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.socket.getsockname()[1])

    def stop(self) -> None:
        """Take no more associations and end those that are open."""
        self._server.shutdown()

    def _may(self, event: Any) -> bool:
        return is_allowed(self._neighbors, str(event.assoc.requestor.address))

    def _echo(self, event: Any) -> int:
        return _SUCCESS if self._may(event) else _NOT_ALLOWED

    def _arrived(self, event: Any) -> None:
        """Cut a peer off whose message grows beyond what an upload may have.

        The library keeps a whole message in memory before it asks what to do with it.
        """
        size = self._arriving.get(event.assoc, 0) + len(event.data)
        self._arriving[event.assoc] = size
        if size > self._service.limits.upload_bytes + _COMMANDS_BYTES:
            log.warning("dimse", extra={"facts": {"code": "SERVE-04"}})
            event.assoc.dul.socket.close()

    def _store(self, event: Any) -> int:
        if not self._may(event):
            return _NOT_ALLOWED
        self._arriving[event.assoc] = 0
        try:
            with self._lock:
                incoming = self._open.get(event.assoc)
                if incoming is None:
                    incoming = (
                        Incoming(self._service, self._neighbors.dimse_user),
                        secrets.token_hex(16).encode(),
                    )
                    self._open[event.assoc] = incoming
            upload, boundary = incoming
            head = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n"
            upload.append(head + event.encoded_dataset() + b"\r\n")
        except CoreMRIError as error:
            log.info("c-store", extra={"facts": {"code": error.code}})
            return _NO_ROOM
        except Exception:  # the peer must not take a fault of ours for a success
            log.exception("c-store")
            return _FAILED
        return _SUCCESS

    def _ended(self, event: Any) -> None:
        """Released or aborted: what was told to be stored is stored."""
        self._arriving.pop(event.assoc, None)
        with self._lock:
            upload, boundary = self._open.pop(event.assoc, (None, b""))
        if upload is None:
            return
        try:
            upload.append(b"--" + boundary + b"--\r\n")
            asked = {"boundary": boundary.decode(), "store": True, "source": "", "name": ""}
            job = upload.finish(asked)
            log.info("c-store", extra={"facts": {"job": job.id}})
        except CoreMRIError as error:
            upload.discard()
            log.warning("c-store", extra={"facts": {"code": error.code}})

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        from pydicom.dataset import Dataset

        if not self._may(event):
            yield _NOT_ALLOWED, None
            return
        try:
            asked = event.identifier
            level = _LEVELS[str(asked.get("QueryRetrieveLevel", ""))]
            filters = {
                f"{int(element.tag):08X}": _text(element.value)
                for element in asked
                if element.VR != "SQ"
            }
        except Exception:  # whatever pydicom makes of bytes of a stranger
            yield _NOT_A_QUERY, None
            return
        wanted = {tag: value for tag, value in filters.items() if tag not in _NEVER_MATCHED}
        mine = holdings.instances_of(self._service, self._neighbors.dimse_user)
        for record in holdings.answers(mine, Query(level, wanted))[:_MOST]:
            if event.is_cancelled:
                yield 0xFE00, None
                return
            answer = Dataset.from_json({t: v for t, v in record.items() if t in wanted})
            answer.QueryRetrieveLevel = asked.QueryRetrieveLevel
            answer.RetrieveAETitle = self._neighbors.dimse_title
            answer.SpecificCharacterSet = "ISO_IR 192"
            yield _PENDING, answer


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return "\\".join(map(str, value))
    except TypeError:
        return str(value)
