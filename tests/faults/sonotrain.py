"""Run by each rank of a job: the command, in a world where what FAULTS tells happens to this rank.

FAULTS is JSON: {"rank": R, "nan": [...], "signals": {step: [number, ...]}, "disk": {"at": folder, "size": "16m"}}. The
network's outputs are not a number in these forward passes in training, counted from 1; the process sends itself these
signals in others; and a small file system of its own lies at the folder. All of it is optional but the rank.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_hook

from launch.cli import main
from trainer.networks import UNet

NO_MOUNT = 77
"""The exit status where this machine lets no user mount a file system."""

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000


class Faults:
    """A forward hook that counts the network's passes in training."""

    def __init__(self, nan: list[int], signals: dict[str, list[int]]) -> None:
        self.nan, self.signals, self.passes = nan, signals, 0

    def __call__(self, module: torch.nn.Module, _: object, output: list[torch.Tensor]) -> list[torch.Tensor] | None:
        if not (isinstance(module, UNet) and module.training) or output[0].is_meta:  # the latter counts FLOPs
            return None
        self.passes += 1
        for number in self.signals.get(str(self.passes), ()):
            os.kill(os.getpid(), number)
        return [logits * float("nan") for logits in output] if self.passes in self.nan else None


def mount(at: str, size: str) -> None:
    """Mount a file system in memory that this process alone sees, or end with NO_MOUNT."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        sys.exit(NO_MOUNT)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    if libc.mount(b"tmpfs", at.encode(), b"tmpfs", 0, f"size={size}".encode()):
        sys.exit(NO_MOUNT)


if __name__ == "__main__":
    faults = json.loads(os.environ.get("FAULTS", "{}"))
    if str(faults.get("rank")) == os.environ["RANK"]:
        if "disk" in faults:
            mount(**faults["disk"])
        register_module_forward_hook(Faults(faults.get("nan", []), faults.get("signals", {})))
    main()
