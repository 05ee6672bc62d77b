"""Everything but models and data: schedules, hyp files, checkpoints, metrics, plots, devices."""
