"""A DICOM peer of its own: `dicomweb-client` and `pynetdicom` alone, nothing of core-mri.

    python dicom_peer.py web URL TOKEN FOLDER FILE...    store, search, fetch into FOLDER
    python dicom_peer.py dimse HOST:PORT TITLE store FILE... | find LEVEL KEYWORD=VALUE...
                                                | propose SYNTAX...

One JSON document on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pydicom


def web(url: str, token: str, out: str, *files: str) -> Any:
    import requests
    from dicomweb_client.api import DICOMwebClient

    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token}"
    client = DICOMwebClient(f"{url}/dicomweb", session=session)
    stored = client.store_instances([pydicom.dcmread(path) for path in files])
    study = stored.RetrieveURL.rpartition("/")[2]
    objects = client.retrieve_study(study)
    for number, one in enumerate(objects):
        one.save_as(Path(out) / f"{number:04d}.dcm")
    series, last = str(objects[0].SeriesInstanceUID), str(objects[0].SOPInstanceUID)
    (frame,) = client.retrieve_instance_frames(study, series, last, [1])
    return {
        "stored": stored.to_json_dict(),
        "studies": client.search_for_studies(search_filters={"StudyInstanceUID": study}),
        "series": client.search_for_series(study),
        "instances": client.search_for_instances(study, series),
        "metadata": client.retrieve_series_metadata(study, series),
        "same": client.retrieve_instance(study, series, last) == objects[0],
        "frame": frame == objects[0].PixelData[: len(frame)],
    }


def dimse(address: str, title: str, verb: str, *words: str) -> Any:
    from pynetdicom import AE, build_context
    from pynetdicom.sop_class import (
        MRImageStorage,
        StudyRootQueryRetrieveInformationModelFind,
        Verification,
    )

    host, _, port = address.rpartition(":")
    entity = AE(ae_title="PEER")
    entity.add_requested_context(Verification)
    for syntax in words if verb == "propose" else ["1.2.840.10008.1.2.1"]:
        entity.requested_contexts = [
            *entity.requested_contexts,
            build_context(MRImageStorage, syntax),
        ]
    entity.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    association = entity.associate(host, int(port), ae_title=title)
    if not association.is_established:
        return {"established": False}
    found: dict[str, Any] = {"established": True, "echo": association.send_c_echo().Status}
    found["accepted"] = [
        str(one.transfer_syntax[0])
        for one in association.accepted_contexts
        if one.abstract_syntax == MRImageStorage
    ]
    if verb == "store":
        found["statuses"] = [
            association.send_c_store(path).get("Status", -1)
            for path in words
            if association.is_established
        ]
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
