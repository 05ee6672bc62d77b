"""Data sets: reading them (`formats`), making samples of them (`dataset`, `augment`, `sampler`), and the built-in one (`shapes`)."""
