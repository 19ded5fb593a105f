"""What a benchmark ran on."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from tl_sparse.checkpoints import versions

_ENVIRONMENT = ("OMP_", "MKL_", "GOMP_", "KMP_", "MALLOC_", "PYTORCH_", "TORCH_")


def machine(device: torch.device) -> dict[str, Any]:
    """Give hardware, load, threads, versions, commit and what of the environment sets speed."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cpu": cpu_name(),
        "n_cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_before": load,
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "platform": platform.platform(),
        "versions": versions(),
        "commit": commit(),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)
        },
    }


def cpu_name() -> str:
    """Give the CPU's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Give the commit of the code, marked where files were changed; None in an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        # Without optional locks: a look must not get into another git command's way.
        changed = _git(root, "--no-optional-locks", "status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+changes" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
