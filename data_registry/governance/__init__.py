"""What a steward must answer: may we, who agreed, who did what, take this patient out."""
