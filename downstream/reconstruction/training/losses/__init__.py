"""What reconstruction networks are trained by; one idea a file, each with its formula.

All take and give one number a slice, so that slices can be left out of a mean.
"""
