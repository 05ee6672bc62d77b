"""An optimizer step that was skipped, because its loss or gradient is not finite."""

from pathlib import Path

from torch import Tensor

from utils.errors import UserError
from utils.log import warning
from utils.progress import Progress

MAX_CONSECUTIVE_SKIPS = 10  # after which a run ends


def report_skip(
    progress: Progress, batch: int, loss: Tensor, grad_norm: Tensor, images: str, run_dir: Path
) -> None:
    """Warn of the step after `batch`, the last one that `progress` has counted as skipped.

    `images` are the names of those it was made of. Raises UserError after
    `MAX_CONSECUTIVE_SKIPS`.
    """
    warning(
        f"epoch {progress.epoch}, batch {batch}: loss {loss:.3g} or gradient norm "
        f"{grad_norm:.3g} is not finite: skipped the optimizer step "
        f"({progress.skipped_steps} so far); images: {images}"
    )
    if progress.consecutive_skips == MAX_CONSECUTIVE_SKIPS:
        raise UserError(
            f"{run_dir}: {MAX_CONSECUTIVE_SKIPS} consecutive steps were not finite, "
            f"up to epoch {progress.epoch}, batch {batch} (last.pt is from before them; "
            "--detect-anomaly finds the first module)"
        )
