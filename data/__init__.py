"""Datasets: data.yaml files, formats, images, augmented samples, their order."""
