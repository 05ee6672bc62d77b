"""Data sets: reading them (`formats`), samples of them (`dataset`, `augment`, `sampler`), the built-in one (`shapes`)."""
