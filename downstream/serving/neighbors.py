"""Protocols of scanners and archives beside HTTP: MRD and DIMSE, which know no tokens."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from core_mri.errors import ConfigError, ServingError
from downstream.serving.tokens import LOCAL, is_loopback

_MAX_TITLE = 16  # PS3.8


@dataclass(frozen=True, kw_only=True)
class Neighbors:
    """Doors for scanners and archives, closed unless they are asked for."""

    mrd: bool = False
    """Reconstruct MRD streams that come over TCP; nothing of them is kept."""
    mrd_port: int = 9002
    """0 takes a free one."""
    mrd_clients: int = 4
    """Streams at once."""
    mrd_idle_s: float = 60.0
    """Seconds that a client may send or take nothing; a pause of the scanner counts too."""
    dimse: bool = False
    """Take DICOM objects by C-STORE and answer C-FIND (extra `dimse`)."""
    dimse_port: int = 11112
    """0 takes a free one."""
    dimse_title: str = "CORE-MRI"
    """Application entity title that peers must call."""
    dimse_user: str = LOCAL
    """Whose the objects are that come by C-STORE; C-FIND shows those of the same user."""
    allow: tuple[str, ...] = ()
    """Addresses or networks (10.1.0.0/16) that may use MRD and DIMSE beside this machine."""

    def __post_init__(self) -> None:
        for name in ("mrd_port", "dimse_port"):
            if not 0 <= getattr(self, name) < 65536:
                flag = name.replace("_", "-")
                raise ConfigError(
                    "CONFIG-01", f"--{flag} {getattr(self, name)}: must be 0 to 65535."
                )
        if self.mrd_clients < 1 or not self.mrd_idle_s > 0:
            raise ConfigError("CONFIG-01", "--mrd-clients and --mrd-idle-s must be above 0.")
        if not (0 < len(self.dimse_title) <= _MAX_TITLE and self.dimse_title.isascii()):
            raise ConfigError(
                "CONFIG-01", f"--dimse-title {self.dimse_title!r}: must be 1 to 16 ASCII letters."
            )
        for network in self.allow:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ConfigError(
                    "CONFIG-01", f"--allow {network!r}: must be an address or a network.",
                    fix="Write 10.1.2.3 or 10.1.0.0/16.",
                ) from None  # fmt: skip


def check_reach(neighbors: Neighbors, host: str) -> None:
    """Refuse doors without tokens that everybody could reach.

    Raises:
        ConfigError: SERVE-01.
    """
    if (neighbors.mrd or neighbors.dimse) and not is_loopback(host) and not neighbors.allow:
        raise ConfigError(
            "SERVE-01",
            f"--host {host}: others could reach MRD and DIMSE, which know no tokens.",
            fix="Name those who may with --allow ADDRESS...",
        )


def is_allowed(neighbors: Neighbors, address: str) -> bool:
    """Whether a peer may come: this machine, and whom --allow names."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback or any(
        found in ipaddress.ip_network(network) for network in neighbors.allow
    )


def listening(host: str, port: int, flag: str) -> socket.socket:
    """A socket that listens.

    Raises:
        ServingError: SERVE-02 when the port is taken or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServingError(
            "SERVE-02", f"{host}:{port} cannot be listened at ({error.strerror}).",
            fix=f"Choose another {flag}; 0 takes a free one.",
        ) from None  # fmt: skip
