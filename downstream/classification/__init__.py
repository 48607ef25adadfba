"""Classification of volumes from frozen features."""
