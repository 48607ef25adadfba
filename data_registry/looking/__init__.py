"""Looking at a registry: lists, counts, cohorts and pictures. Nothing here changes a volume."""
