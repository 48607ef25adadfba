"""What pretraining and fine-tuning share: loop, schedules, EMA, probes."""
