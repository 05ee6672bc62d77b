"""Accelerate and Lightning accept the schedulers: real loops, planned rates, resumed warm-up."""

import accelerate
import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from utils.plan import plan
from utils.schedulers import AnnealingLR, CosineAnnealingWarmbootingLR

EPOCHS, BATCHES, SIZE = 5, 6, 4
BUILDERS = {
    "cawb": lambda o: CosineAnnealingWarmbootingLR(
        o, EPOCHS, steps=[3], batchs=BATCHES, warmup_epoch=2, lf="lambda x, y: 1 - x / y"
    ),
    "cawb per batch": lambda o: CosineAnnealingWarmbootingLR(
        o, EPOCHS, steps=[3], batchs=BATCHES, warmup_epoch=2, per_batch=True
    ),
    "poly": lambda o: AnnealingLR(
        o, "poly", 0.01, 0.5, batch_size=SIZE, batchs=BATCHES, warmup_epoch=2
    ),
}


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES * SIZE, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=SIZE)


def planned_lrs(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return list(plan(BUILDERS[name](optimizer), EPOCHS, [SIZE] * BATCHES)[0])


@pytest.mark.parametrize("name", BUILDERS)
def test_accelerate_follows_and_resumes(name, tmp_path):
    def run(accelerator, batches, resume=False, stop=None):
        """The loop that Accelerate's documentation teaches, with the scheduler's two calls."""
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = BUILDERS[name](optimizer)
        model, optimizer, loader, prepared = accelerator.prepare(
            model, optimizer, data(), scheduler
        )
        assert prepared.scheduler is scheduler
        first = 0
        if resume:
            accelerator.load_state(tmp_path)
            first = batches
        lrs = []
        for epoch in range(first // BATCHES, EPOCHS):
            for i, (x, y) in enumerate(loader):
                position = epoch * BATCHES + i
                if position < first:
                    continue
                if i == 0:
                    scheduler.step(epoch)
                scheduler.step_batch()
                lrs.append(prepared.get_last_lr()[0])
                assert lrs[-1] == optimizer.param_groups[0]["lr"]
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                if position + 1 == stop:
                    accelerator.save_state(tmp_path)
        return lrs, accelerator.unwrap_model(model).state_dict()

    lrs, weights = run(accelerate.Accelerator(cpu=True), None, stop=8)
    assert lrs == planned_lrs(name)
    rest, resumed = run(accelerate.Accelerator(cpu=True), 8, resume=True)
    assert rest == planned_lrs(name)[8:]
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


def test_accelerate_with_accumulation():
    """Accelerate counts the steps that accumulation skips in an attribute of torch's schedulers."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    # The default of its plugin by the documentation; some versions lose it.
    accelerator.gradient_state.plugin_kwargs["adjust_scheduler"] = True
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=20)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, data(), scheduler)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert scheduler.scheduler.iters == BATCHES // 2 - 1


class Module(lightning.LightningModule):
    """A user's module: the scheduler from `configure_optimizers` is called in two hooks."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.name = name
        self.lrs = []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [BUILDERS[self.name](optimizer)]

    def on_train_epoch_start(self):
        self.lr_schedulers().step(self.current_epoch)

    def on_train_batch_start(self, batch, batch_idx):
        self.lr_schedulers().step_batch()

    def training_step(self, batch, batch_idx):
        self.lrs.append(self.optimizers().param_groups[0]["lr"])
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUILDERS)
def test_lightning_follows_and_resumes(name, tmp_path):
    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )

    whole = Module(name)
    trainer(EPOCHS).fit(whole, data())
    assert whole.lrs == planned_lrs(name)

    interrupted = Module(name)
    first = trainer(1)
    first.fit(interrupted, data())
    first.save_checkpoint(tmp_path / "in_warmup.ckpt")
    assert interrupted.lrs == planned_lrs(name)[:BATCHES]
    resumed = Module(name)
    trainer(EPOCHS).fit(resumed, data(), ckpt_path=tmp_path / "in_warmup.ckpt")
    assert resumed.lrs == planned_lrs(name)[BATCHES:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
