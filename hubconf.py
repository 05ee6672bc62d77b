"""For `torch.hub.load(REPOSITORY, "custom", "best.pt")`: a trained detector in a program that has not cloned this repository."""

from models import load as custom  # noqa: F401 - the name by which it is asked for

dependencies = ["torch", "torchvision", "numpy", "pydantic", "yaml"]
