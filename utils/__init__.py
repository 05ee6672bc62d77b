"""Parts that know nothing of the models or the data: schedules, hyp files, checkpoints, the average, metrics, pictures."""
