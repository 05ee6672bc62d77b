"""train.py, announcing what it is doing, so that a test can kill it at that very moment.

Into the file `$ANNOUNCE.RANK` go the process's number and its phase, into `$ANNOUNCE.RANK.samples` the keys of the
samples it makes (without loader processes). Nothing else is changed.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
import utils.run_dir

announce = f"{os.environ['ANNOUNCE']}.{os.environ.get('RANK', '0')}"
file = os.open(announce, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
samples = os.open(f"{announce}.samples", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


phases = []  # those under way, the innermost last


def say(phase):
    os.pwrite(file, f"{os.getpid()} {phase}".ljust(40).encode(), 0)


def enter(phase):
    phases.append(phase)
    say(phase)


def announced(phase, function):
    def announcing(*arguments, **options):
        enter(phase)
        try:
            return function(*arguments, **options)
        finally:
            phases.pop()
            say(phases[-1])

    return announcing


def seeded(*place, seed=train.seed_everything):
    phases.clear()
    enter("training" if place[1] >= 3 else "warm-up")
    seed(*place)


def note(*key):
    os.write(samples, f"{' '.join(map(str, key))}\n".encode())


def made(self, index, make=train.ValSet.__getitem__):
    note(index)
    return make(self, index)


def made_together(self, keys, make=train.TrainSet.__getitems__):
    for epoch, place, indices, _ in keys:
        note(epoch, place, *indices)
    return make(self, keys)


enter("starting")
train.seed_everything = seeded
train.run_inference = announced("validation", train.run_inference)
train.TrainSet.__getitems__ = made_together
train.ValSet.__getitem__ = made
utils.run_dir.save_checkpoint = announced("saving", utils.run_dir.save_checkpoint)
if __name__ == "__main__":
    sys.exit(train.main())
