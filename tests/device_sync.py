"""Run the training loop on a device that computes nothing, and print where it waits for the device.

    python device_sync.py MODEL OPTIMIZER [OPTIMIZER ...]      MODEL: a name, or name+backbone

An OPTIMIZER may also be `validation`, which is a batch of validation with its losses.
For each optimizer a line of JSON: what waited in one step, and which line of whom caused it. Exits
with status 3, and a sentence, where torch lacks the private functions this needs; fails with
torch's error when an operation mixes tensors of the device with tensors on the CPU.

The device is called `nodevice`, a Python backend of torch's PrivateUse1. Its tensors are
FakeTensors, which have shapes, dtypes and a device, but no numbers. Tensors on the CPU are real.
"""

import json
import sys
import traceback
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
DEVICE = "nodevice"
LIBRARIES = ("torchvision", "transformers")
STEPS = 2  # the last one is looked at: the state of the optimizer is there, and caches are filled

try:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )

    lift_on_cpu, lifts_on_cpu = torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors
except (ImportError, AttributeError) as error:
    print(f"torch {torch.__version__} has no Python device: {error}")
    sys.exit(3)

aten = torch.ops.aten
# The size of their output depends on numbers, which have to come from the device: rows of it for
# an input of n elements, and its other dimensions.
SIZED_BY_NUMBERS = {
    "nonzero": lambda x: (x.numel() // 2, x.ndim),
    "masked_select": lambda x, mask: (x.numel() // 2,),
    "nms": lambda boxes, *_: (len(boxes) // 2,),
}


class Amp(_DummyBackendModule):
    """What `torch.autocast` and `torch.manual_seed` ask a device for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass


class Fake(FakeTensorMode):
    """Never copies a constant to the device, on which nothing can be computed."""

    avoid_device_init = True


@cache
def fake_mode() -> Fake:
    """Return the one mode of all steps: transformers caches constants on the device."""
    return Fake(allow_non_fake_inputs=True)


class Watch(TorchDispatchMode):
    """Runs operations of the device on FakeTensors and records in `waits` those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = fake_mode()
        self.waits: list[tuple[str, str]] = []  # what, and the line

    def __enter__(self) -> "Watch":
        self._lifts_on_cpu = lifts_on_cpu()
        lift_on_cpu(True)  # torch.tensor(..., device=...) as a copy from the CPU, as it is on CUDA
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        lift_on_cpu(self._lifts_on_cpu)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target).type == DEVICE
        if not on_device and not to_device:
            return func(*args, **kwargs)  # on the CPU
        if func is aten._local_scalar_dense.default:
            line = self.wait("item")
            # transformers asks if all numbers are finite, torchvision if any box is empty.
            is_true = args[0].dtype == torch.bool and line.startswith("transformers/")
            return torch.full((), is_true, dtype=args[0].dtype).item()
        if func in (aten._to_copy.default, aten.copy_.default):
            return self.copy(func, args, kwargs, tensors)
        if func is aten.equal.default:
            self.wait("equal")
            return True
        name = func.overloadpacket.__name__
        if name in SIZED_BY_NUMBERS:
            self.wait(name)
            dtype = args[0].dtype if name == "masked_select" else torch.long
            return self.empty(args[0], SIZED_BY_NUMBERS[name](*args), dtype)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            mask = next((i for i in args[1] if i is not None and i.dtype == torch.bool), None)
            if mask is not None:
                return self.masked(name, args, mask)
        if name == "_fused_sgd_":  # has no implementation for FakeTensors
            return None
        with self.fake:
            return func(*args, **kwargs)

    def copy(self, func, args, kwargs, tensors):
        source = tensors[-1]
        from_device = isinstance(source, FakeTensor)
        if func is aten.copy_.default:
            to_cpu = not isinstance(args[0], FakeTensor)
            non_blocking = len(args) > 2 and args[2]
        else:
            target = kwargs.get("device")
            to_cpu = target is not None and torch.device(target).type == "cpu"
            non_blocking = kwargs.get("non_blocking")
        if from_device and to_cpu:
            self.wait("copy to the CPU")
            if func is aten.copy_.default:
                return args[0]
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if not from_device and source.ndim and not non_blocking:
            self.wait("copy from the CPU without non_blocking")
        with self.fake:
            return func(*args, **kwargs)

    def masked(self, name, args, mask):
        if name != "index":
            if args[2].numel() != 1:  # a single value is written by masked_fill
                self.wait("assignment by a mask")
            return args[0]
        self.wait("index by a mask")
        return self.empty(args[0], (mask.numel() // 2, *args[0].shape[mask.ndim :]), args[0].dtype)

    def empty(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with self.fake:
            return like.new_empty(shape, dtype=dtype)

    def wait(self, what: str) -> str:
        """Record and return the innermost line of this project, or of one of `LIBRARIES`."""
        line = "backward pass"
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            library = next((name for name in LIBRARIES if name in path.parts), None)
            if library is not None:
                line = f"{library}/{path.name}:{frame.lineno} {frame.line}"
                break
            if path.is_relative_to(ROOT) and path != Path(__file__).resolve():
                line = f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"
                break
        self.waits.append((what, line))
        return line


class Sampler:
    """`STEPS` batches of two images."""

    batch_size = 2

    def __len__(self) -> int:
        return STEPS


def waits_in_a_step(model_name: str, optimizer: str) -> list[tuple[str, str]]:
    """Run `train_one_epoch` and return what waited for the device in the last step."""
    import train
    from models import build_model
    from utils.amp import LossScaler
    from utils.distributed import DistributedContext
    from utils.ema import EMA
    from utils.hyp import Hyp
    from utils.optimizers import build_optimizer
    from utils.plan import build_checked_scheduler
    from utils.progress import Progress

    watch, run, counts = Watch(), train.Run(), []
    name, _, backbone = model_name.partition("+")
    targets = [
        {
            "boxes": torch.tensor([[4.0, 6, 40, 50], [30, 10, 90, 60]]),
            "labels": torch.tensor([0, 2]),
            "color": torch.eye(3),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "color": torch.eye(3)},
    ]

    def batches():
        for _ in range(STEPS):
            counts.append(len(watch.waits))
            yield torch.zeros(2, 3, 96, 96, dtype=torch.uint8), targets

    hyp = run.hyp = Hyp(optimizer=optimizer)
    run.args = SimpleNamespace(epochs=1, seed=0, model=name)
    run.dist, run.frozen_modules = DistributedContext(), []
    run.device, run.dtype = torch.device(DEVICE), torch.float32
    run.scaler = LossScaler(torch.device("cpu"), run.dtype)  # of float32 it does nothing
    run.loaders = SimpleNamespace(train=batches(), sampler=Sampler())
    run.checkpointer = SimpleNamespace(after_step=lambda: None)
    run.model = run.ddp_model = build_model(name, 3, backbone or None)
    with watch:
        run.model.to(DEVICE, memory_format=torch.channels_last)
        run.optimizer = build_optimizer(run.model, hyp)
        run.scheduler, run.lr_plan, _ = build_checked_scheduler(
            hyp, Path("hyp.yaml"), run.optimizer, 1, [2] * STEPS, 2
        )
        run.ema, run.progress = EMA(run.model, hyp.ema_decay), Progress()
        run.progress.start_timer()
        train.train_one_epoch(run, run.progress)
    # A restored state is on the device, too: a resumed run must end with the same files.
    for state in run.optimizer.state.values():
        on_cpu = [key for key, value in state.items() if not isinstance(value, FakeTensor)]
        assert not on_cpu, f"on the CPU: {on_cpu}"
    return watch.waits[counts[-1] :]


def waits_in_validation(model_name: str) -> list[tuple[str, str]]:
    """Run `run_inference` with losses and return what waited for the device in the last batch."""
    from models import build_model
    from utils.inference import run_inference
    from utils.val_loss import LossTotals

    watch, model, counts = Watch(), build_model(model_name, 3), []
    target = {
        "boxes": torch.tensor([[4.0, 6, 40, 50], [30, 10, 90, 60]]),
        "labels": torch.tensor([0, 2]),
        "crowd": torch.tensor([False, True]),
        "image_id": torch.tensor(0),
        "size": torch.tensor([96, 96]),
        "scale": torch.ones(2),
    }

    def batches():
        for _ in range(STEPS):
            counts.append(len(watch.waits))
            yield torch.zeros(2, 3, 96, 96, dtype=torch.uint8), [target, target]

    with watch:
        model.to(DEVICE, memory_format=torch.channels_last)
        run_inference(model, batches(), torch.device(DEVICE), torch.float32, losses=LossTotals())
    return watch.waits[counts[-1] :]


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE, Amp())
    for optimizer in sys.argv[2:]:
        if optimizer == "validation":
            waits = waits_in_validation(sys.argv[1])
        else:
            waits = waits_in_a_step(sys.argv[1], optimizer)
        print(json.dumps({"optimizer": optimizer, "waits": waits}))
