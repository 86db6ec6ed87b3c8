"""StableSR's files as they are published: in the envelope of a training that nobody needs to have installed."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor


def envelope(path: Path, weights: Mapping[str, Tensor]) -> Path:
    """A PyTorch Lightning 1.4 checkpoint, whose callbacks are kept by a class of a module that is not there to read."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    modules = {name: types.ModuleType(name) for name in names}
    vars(modules[names[-1]])["ModelCheckpoint"] = kind
    moments = {place: {"step": 3, "exp_avg": torch.ones(2, 3)} for place in range(4)}
    with mock.patch.dict(sys.modules, modules):
        torch.save(
            {
                "epoch": 117,
                "global_step": 16500,
                "pytorch-lightning_version": "1.4.2",
                "state_dict": dict(weights),
                "callbacks": {kind: {"monitor": "val/loss_simple_ema", "best_model_score": torch.tensor(0.1)}},
                "optimizer_states": [{"state": moments, "param_groups": [{"lr": 5e-5, "params": [0, 1, 2, 3]}]}],
                "lr_schedulers": [],
                "hyper_parameters": {"kind": kind},
            },
            path,
        )
    return path
