"""MRD streams: raw data in and images out over TCP or standard input and output.

Source: the ISMRMRD streaming protocol as `ismrmrd.serialization` and Gadgetron speak it: a 16-bit
message number, then the message; all numbers little endian.
"""
