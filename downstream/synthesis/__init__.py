"""Synthetic MRI from label maps, with lesions placed at will, and the proof of what it is worth."""
