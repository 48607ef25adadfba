"""A DICOM peer of its own: `dicomweb-client` and `pynetdicom` alone, nothing of core-mri.

    python dicom_peer.py web URL TOKEN store FILE... | search | fetch STUDY FOLDER
    python dicom_peer.py dimse HOST:PORT TITLE store FILE... | find LEVEL KEYWORD=VALUE...
                                                | propose SYNTAX

One JSON document on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pydicom


def web(url: str, token: str, verb: str, *words: str) -> Any:
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    client = DICOMwebClient(f"{url}/dicomweb", session=session)
    if verb == "store":
        return client.store_instances([pydicom.dcmread(path) for path in words]).to_json_dict()
    if verb == "search":
        return {
            "studies": client.search_for_studies(),
            "series": client.search_for_series(),
            "instances": client.search_for_instances(),
        }
    study, folder = words[0], Path(words[1])
    objects = client.retrieve_study(study)
    for number, one in enumerate(objects):
        one.save_as(folder / f"{number:04d}.dcm")
    series, last = str(objects[0].SeriesInstanceUID), str(objects[0].SOPInstanceUID)
    single = client.retrieve_instance(study, series, last)
    (frame,) = client.retrieve_instance_frames(study, series, last, [1])
    return {
        "number": len(objects),
        "same": single == objects[0],
        "frame": frame == objects[0].PixelData[: len(frame)],
        "metadata": client.retrieve_series_metadata(study, series),
    }


def dimse(address: str, title: str, verb: str, *words: str) -> Any:
    from pynetdicom import AE
    from pynetdicom.sop_class import (
        MRImageStorage,
        StudyRootQueryRetrieveInformationModelFind,
        Verification,
    )

    host, _, port = address.rpartition(":")
    entity = AE(ae_title="PEER")
    entity.add_requested_context(Verification)
    entity.add_requested_context(
        MRImageStorage, words[0] if verb == "propose" else ["1.2.840.10008.1.2.1"]
    )
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate(host, int(port), ae_title=title)
    if not association.is_established:
        return {"established": False}
    found: dict[str, Any] = {"established": True, "echo": association.send_c_echo().Status}
    found["accepted"] = [str(one.abstract_syntax) for one in association.accepted_contexts]
    if verb == "store":
        found["statuses"] = [association.send_c_store(path).Status for path in words]
    if verb == "find":
        query = pydicom.Dataset()
        query.QueryRetrieveLevel = words[0]
        for word in words[1:]:
            keyword, _, value = word.partition("=")
            setattr(query, keyword, value)
        answers = association.send_c_find(query, StudyRootQueryRetrieveInformationModelFind)
        answers = list(answers)
        found["statuses"] = [status.Status for status, _ in answers]
        found["answers"] = [one.to_json_dict() for _, one in answers if one is not None]
    association.release()
    return found


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    print(json.dumps(web(*rest) if kind == "web" else dimse(*rest)))
