"""DICOM objects in and out for viewers and archives: DICOMweb (PS3.18) and DIMSE (PS3.4, PS3.7).

What comes in is an upload as any other; what goes out are the DICOM results of a user's jobs.
"""
