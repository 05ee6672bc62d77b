"""Accelerate and Lightning take the schedulers as they are: real loops, the planned rates, and resuming in the warm-up."""

import accelerate
import lightning
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from utils.schedulers import AnnealingLR, CosineAnnealingWarmbootingLR, plan

EPOCHS, BATCHES, SIZE = 5, 6, 4
MAKERS = {
    "cawb": lambda o: CosineAnnealingWarmbootingLR(
        o, EPOCHS, steps=[3], batchs=BATCHES, warmup_epoch=2, lf="lambda x, y: 1 - x / y"
    ),
    "poly": lambda o: AnnealingLR(
        o, "poly", 0.01, 0.5, batch_size=SIZE, batchs=BATCHES, warmup_epoch=2
    ),
}


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCHES * SIZE, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=SIZE)


def planned(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return list(plan(MAKERS[name](optimizer), EPOCHS, [SIZE] * BATCHES)[0])


@pytest.mark.parametrize("name", MAKERS)
def test_accelerate(name, tmp_path):
    def run(accelerator, batches, resume=False, stop=None):
        """The loop that Accelerate's documentation teaches, with the scheduler's two calls."""
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = MAKERS[name](optimizer)
        model, optimizer, loader, prepared = accelerator.prepare(
            model, optimizer, data(), scheduler
        )
        assert prepared.scheduler is scheduler
        first = 0
        if resume:
            accelerator.load_state(tmp_path)
            first = batches
        seen = []
        for epoch in range(first // BATCHES, EPOCHS):
            for i, (x, y) in enumerate(loader):
                place = epoch * BATCHES + i
                if place < first:
                    continue
                if i == 0:
                    scheduler.step(epoch)
                scheduler.step_batch()
                seen.append(prepared.get_last_lr()[0])
                assert seen[-1] == optimizer.param_groups[0]["lr"]
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(x), y))
                    optimizer.step()
                    optimizer.zero_grad()
                if place + 1 == stop:
                    accelerator.save_state(tmp_path)
        return seen, accelerator.unwrap_model(model).state_dict()

    rates, weights = run(accelerate.Accelerator(cpu=True), None, stop=8)
    assert rates == planned(name)
    rest, resumed = run(accelerate.Accelerator(cpu=True), 8, resume=True)
    assert rest == planned(name)[8:]
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)


def test_accelerate_with_accumulation():
    """Accelerate counts the scheduler's steps that accumulation skips in an attribute of torch's own."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    # Its plugin's default, by the documentation; some versions lose it on the way here.
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
    """A user's module: the scheduler is handed over in `configure_optimizers`, and asked before each epoch and each batch."""

    def __init__(self, name, stop=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.name, self.stop, self.seen = nn.Linear(3, 1), name, stop, []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [MAKERS[self.name](optimizer)]

    def on_train_epoch_start(self):
        self.lr_schedulers().step(self.current_epoch)

    def on_train_batch_start(self, batch, batch_idx):
        self.lr_schedulers().step_batch()

    def training_step(self, batch, batch_idx):
        self.seen.append(self.optimizers().param_groups[0]["lr"])
        x, y = batch
        return nn.functional.mse_loss(self.layer(x), y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MAKERS)
def test_lightning(name, tmp_path):
    def trainer(epochs):
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip

    whole = Module(name)
    trainer(EPOCHS).fit(whole, data())
    assert whole.seen == planned(name)

    begun = Module(name)
    first = trainer(1)
    first.fit(begun, data())
    first.save_checkpoint(tmp_path / "in_warmup.ckpt")
    assert begun.seen == planned(name)[:BATCHES]
    resumed = Module(name)
    trainer(EPOCHS).fit(resumed, data(), ckpt_path=tmp_path / "in_warmup.ckpt")
    assert resumed.seen == planned(name)[BATCHES:]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
