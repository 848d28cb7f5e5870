"""Makes the small PyTorch files beside it, which the tests of `torch` read.

    python make_torch.py

They were made with PyTorch 2.15 and NumPy 2.4. Run it again only to add a file: the tests name the values.
"""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import torch

here = pathlib.Path(__file__).parent


def ramp(*shape, dtype=torch.float32):
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape).to(dtype)


# Every element type, as 0 1 2 3 (bool: 0 1 1 1).
names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 bool complex64".split()
torch.save({name: ramp(4, dtype=getattr(torch, name)) for name in names}, here / "dtypes.pt")

# Views: each of the same storage of 0..24.
base = ramp(2, 3, 4)
views = {
    "base": base,
    "transposed": base.transpose(0, 2),
    "permuted": base.permute(1, 2, 0),
    "column": base[:, :, 1],
    "tail": base[1],
    "strided": base[:, ::2, ::3],
    "expanded": base[0, 0].expand(3, 4),
    "scalar": base[1, 2, 3],
    "empty": base[:, :0],
}
torch.save(views, here / "views.pt")

# What a training program saves, with the oddities around the weights that real ones have.
torch.manual_seed(0)


class Strange:
    """An object of a class that no reader knows."""

    def __init__(self):
        self.attribute = base


model = torch.nn.Linear(3, 2)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1, total_steps=10)
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
scheduler.step()
with torch.no_grad():
    model.weight.copy_(ramp(2, 3))
    model.bias.copy_(torch.tensor([-1.0, 1.0]))
checkpoint = {
    "model": model.state_dict(),
    "optimizer": optimizer.state_dict(),
    "scheduler": {
        **scheduler.state_dict(),
        # As PyTorch up to 2.0 keeps it: a bound function, pickled as getattr(class, name).
        "anneal_func": torch.optim.lr_scheduler.OneCycleLR._annealing_cos,
        "strange": Strange(),
        "partial": __import__("functools").partial(print, 1),
        "milestones": collections.Counter([1, 2, 2]),
        "default": collections.defaultdict(list, {"a": [1]}),
        "array": np.arange(100),
    },
    "itr": 7,
    "scalars": {
        "float": np.float64(1.5),
        "single": np.float32(-0.25),
        "int": np.int64(-3),
        "bool": np.bool_(True),
        "large": 2**70,
        "negative": -(2**40),
        "set": {1},
        "none": None,
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "size": torch.Size([2, 3]),
        "bytes": b"\x00\xff",
        "text": "\u00e9",
    },
    "parameter": torch.nn.Parameter(ramp(2)),
}
for protocol in range(2, 6):
    torch.save(checkpoint, here / f"checkpoint{protocol}.pt", pickle_protocol=protocol)

# From before PyTorch 1.6.
torch.save({"w": ramp(2)}, here / "legacy.pt", _use_new_zipfile_serialization=False)


class Attack:
    def __reduce__(self):
        return os.system, ("touch /tmp/a-checkpoint-ran-this",)


# An attack beside good weights, at both protocols that name functions differently.
for protocol in (2, 4):
    torch.save({"model": {"w": ramp(2)}, "x": Attack()}, here / f"attack{protocol}.pt", pickle_protocol=protocol)

# A good checkpoint, compressed: a megabyte of zeros in a few kilobytes.
stored = io.BytesIO()
torch.save({"w": torch.zeros(1 << 18)}, stored)
with zipfile.ZipFile(stored) as old, zipfile.ZipFile(here / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as new:
    for name in old.namelist():
        new.writestr(name, old.read(name))
