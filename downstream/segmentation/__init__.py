"""Few-shot segmentation: an encoder, a light decoder, a handful of labelled scans."""
