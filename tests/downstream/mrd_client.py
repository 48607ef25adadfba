"""An MRD client of its own: the `ismrmrd` package alone, nothing of core-mri.

    python mrd_client.py FILE HOST:PORT|-|decode OUT.npz [--config NAME] [--text JSON] [--waveforms]

`-` writes the stream to standard output, `decode` reads one from FILE. OUT holds pixels
``[images, y, x]``, headers, attributes and texts.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
from typing import Any, BinaryIO

import ismrmrd  # noqa: TID253
import numpy as np
from ismrmrd.serialization import (  # noqa: TID253
    ConfigFile,
    ConfigText,
    ProtocolDeserializer,
    ProtocolSerializer,
)


def send(stream: BinaryIO, path: str, config: str | None, text: str | None, waves: bool) -> None:
    out = ProtocolSerializer(stream)
    if config is not None:
        out.serialize(ConfigFile(config))
    if text is not None:
        out.serialize(ConfigText(text))
    dataset = ismrmrd.Dataset(path, "dataset", create_if_needed=False)
    # The package would rewrite the document; scanners send theirs.
    xml = bytes(dataset.read_xml_header())
    stream.write(b"\x03\x00" + len(xml).to_bytes(4, "little") + xml)
    for number in range(dataset.number_of_acquisitions()):
        out.serialize(dataset.read_acquisition(number))
        if waves and number % 10 == 0:
            out.serialize(ismrmrd.Waveform.from_array(np.arange(20, dtype=np.uint32)[None]))
    out.close()
    stream.flush()


def receive(stream: BinaryIO) -> tuple[list[Any], list[str]]:
    images, texts = [], []
    for item in ProtocolDeserializer(stream).deserialize():
        if isinstance(item, ismrmrd.Image):
            images.append(item)
        else:
            texts.append(str(item))
    return images, texts


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("address")
    parser.add_argument("out")
    parser.add_argument("--config")
    parser.add_argument("--text")
    parser.add_argument("--waveforms", action="store_true")
    words = parser.parse_args()
    if words.address == "-":
        send(sys.stdout.buffer, words.file, words.config, words.text, words.waveforms)
        return 0
    if words.address == "decode":
        with open(words.file, "rb") as file:  # noqa: PTH123
            images, texts = receive(file)
    else:
        host, _, port = words.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=120) as connection:
            stream = connection.makefile("rwb")
            sent = (stream, words.file, words.config, words.text, words.waveforms)
            sender = threading.Thread(target=send, args=sent)
            sender.start()
            images, texts = receive(stream)
            sender.join()
    heads = np.frombuffer(
        b"".join(bytes(image.getHead()) for image in images), ismrmrd.hdf5.image_header_dtype
    )
    np.savez(
        words.out,
        pixels=np.array([image.data[0, 0] for image in images]),
        heads=heads.view(np.uint8),
        attributes=np.array([image.attribute_string for image in images]),
        texts=np.array(texts),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
