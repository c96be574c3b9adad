"""What a node computes with: GPUs, cores and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from launch.cores import usable_cores
from launch.doctor.finding import Finding, Wanted
from launch.doctor.needs import RUNTIME, needs
from trainer.engines import computes_bf16
from trainer.feasible import GIGABYTE

DRIVER_SECONDS = 10.0
"""A driver that says nothing for so long is broken."""

OF_OTHERS = 10**9
"""Bytes of a GPU above which somebody else uses it."""

_LIMITS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)


def look_at_device(wanted: Wanted) -> Finding:
    """GPUs as the driver and as torch see them, or a CPU; and whether it computes in bf16."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finding = _gpus(wanted) if device.type == "cuda" else _no_gpu()
    native = computes_bf16(device)
    told = f"{finding.found}, {'with' if native else 'without'} bf16"
    finding = replace(finding, found=told, values={**finding.values, "bf16": native})
    if finding.state == "ok" and wanted.config.training.precision == "bf16" and not native:
        return replace(finding, state="warning", advice="set training.precision=auto: bf16 is slower than fp32 here")
    return finding


def _no_gpu() -> Finding:
    driver = _driver()
    if not driver:
        return Finding("device", "ok", "no GPU: trains on the CPU", values={"gpus": 0})
    told = f"the driver shows {len(driver)} GPUs ({driver[0]}), torch {torch.__version__} none: trains on the CPU"
    advice = "install torch for CUDA, for a version that the driver takes, and see that CUDA_VISIBLE_DEVICES names them"
    return Finding("device", "failed", told, advice, {"gpus": 0})


def _gpus(wanted: Wanted) -> Finding:
    count = torch.cuda.device_count()
    memory = [torch.cuda.mem_get_info(number) for number in range(count)]
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    taken = [number for number, (free, total) in enumerate(memory) if total - free > OF_OTHERS]
    driver = ", ".join({line.rpartition(", ")[2] for line in _driver()}) or "unknown"
    told = f"{count} x {' and '.join(dict.fromkeys(names))} of {memory[0][1] / GIGABYTE:.0f} GB, driver {driver}"
    values = {"gpus": count, "names": names, "memory": [total for _, total in memory], "driver": driver}
    if wanted.processes > count:
        told += f"; each of {wanted.processes} processes needs one"
        return Finding("device", "failed", told, f"start at most {count} on a host: --procs {count}", values)
    needed = needs(wanted)
    if needed and needed.on_gpu > min(total for _, total in memory):
        told += f"; a process needs {needed.on_gpu / GIGABYTE:.0f} GB"
        advice = "set training.precision=bf16, training.accumulation, or a smaller training.batch or data.size"
        return Finding("device", "failed", told, advice, values)
    if len(set(names)) > 1:
        return Finding("device", "warning", told, "use GPUs of one kind: the slowest keeps the others waiting", values)
    if taken:
        told += f"; others use memory of GPU {', '.join(map(str, taken))}"
        return Finding("device", "warning", told, "see with nvidia-smi whose processes these are, and end them", values)
    return Finding("device", "ok", told, values=values)


def look_at_cores(wanted: Wanted) -> Finding:
    """Cores that may be used, by affinity and by a container's quota, for the processes of a node."""
    count, there = usable_cores().count, os.cpu_count() or 0
    told = f"{count} of {there} cores may be used" if count < there else f"{count} cores"
    values = {"cores": count, "of": there}
    if wanted.processes > count:
        advice = f"start at most {count} processes on a node (--procs {count}), or allow more cores"
        return Finding("cores", "failed", f"{told}; {wanted.processes} processes need one each", advice, values)
    return Finding("cores", "ok", told, values=values)


def look_at_memory(wanted: Wanted) -> Finding:
    """Free memory, of the machine or of what a container may have, for the processes and the scans they keep."""
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    for limit, used in _LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()) != "max" and int(text) < total:
            total = int(text)
            free = min(free, total - int(used.read_text()))
    needed = needs(wanted)
    of_process = RUNTIME if needed is None else needed.beside_gpu if torch.cuda.is_available() else needed.on_cpu
    processes = wanted.processes * of_process + (needed.checkpoint if needed else 0)
    resident = int(wanted.config.data.resident_gb * GIGABYTE)
    told = (
        f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free; processes need about {processes / GIGABYTE:.1f} GB"
    )
    values = {"free": free, "total": total, "needed": processes, "resident": resident}
    if free < processes:
        advice = (
            "start fewer processes on a host, or set training.accumulation or a smaller training.batch or data.size"
        )
        return Finding("memory", "failed", told, advice, values)
    if free < processes + resident:
        left = (free - processes) / GIGABYTE
        advice = f"set data.resident_gb={left:.1f} or less, for which there is memory beside the processes"
        return Finding("memory", "warning", told, advice, values)
    return Finding("memory", "ok", told, values=values)


def _driver() -> list[str]:
    """A line for each GPU that NVIDIA's driver shows: its name and the driver's version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()
