"""The service: raw data or scans come in over HTTP, reconstructions and masks go back."""
