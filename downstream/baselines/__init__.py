"""What a pretrained encoder must beat: nets trained from scratch, and programs of others."""
