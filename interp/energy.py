"""Energy counters of this machine: what was used between two readings, or why nobody can tell.

Two are known: the GPU's own (NVML, through the module `pynvml` of the package nvidia-ml-py) and the
processor's (RAPL, as Linux shows it under /sys/class/powercap). Both count everything that the GPU
or the processor does, its idle share and other processes included; nothing is subtracted. Where
there is no counter there is no number: power times time, or a table of typical powers, would be an
estimate.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
MICRO, MILLI = 1e-6, 1e-3
COUNTED = ("package", "dram")
"""RAPL domains that add up: cores and graphics are parts of a package, psys holds packages."""


@dataclass
class Counter:
    """A number of joules that only grows, but may begin anew at `wraps`.

    Attributes:
        name: what it counts, for people.
        read: joules at this moment.
        wraps: joules at which it starts from 0 again, or None. Between two readings it must not
            wrap twice (a processor's takes minutes at full power).
    """

    name: str
    read: Callable[[], float]
    wraps: float | None = None

    def between(self, before: float, after: float) -> float:
        """Joules from one reading to a later one."""
        used = after - before
        if used < 0 and self.wraps is not None:
            used += self.wraps
        return used


@dataclass
class Meter:
    """All counters of what a job uses. Without any, `reasons` says why."""

    counters: Sequence[Counter] = ()
    reasons: Sequence[str] = ()
    _begun: list[float] = field(default_factory=list)

    @property
    def measures(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.counters)

    def start(self) -> None:
        """Take the first reading."""
        self._begun = [counter.read() for counter in self.counters]

    def stop(self) -> float | None:
        """Joules since `start`; None where nothing counts, or a counter was set back."""
        if not self.counters:
            return None
        used = [
            counter.between(before, counter.read())
            for counter, before in zip(self.counters, self._begun, strict=True)
        ]
        return sum(used) if min(used) >= 0 else None

    def describe(self) -> str:
        """What is counted, or why nothing can be."""
        if self.counters:
            return "energy: " + ", ".join(counter.name for counter in self.counters)
        return "energy: not measurable here (" + "; ".join(self.reasons) + ")"


def find_meter(device: Any, powercap: Path = POWERCAP) -> Meter:
    """The counters of what a job on this torch device uses.

    On a GPU both the GPU's and the processor's count where both are there; the processor's alone
    would leave out most of what is used, so that without the GPU's there is no meter.
    """
    rapl, no_rapl = find_rapl(powercap)
    if device.type == "cpu":
        return Meter(rapl, [no_rapl] if no_rapl else [])
    gpu, no_gpu = find_nvml(device)
    return Meter((*gpu, *rapl), []) if gpu else Meter((), [no_gpu])


def find_rapl(powercap: Path = POWERCAP) -> tuple[list[Counter], str]:
    """The processor's counters, packages and memory; or none and why."""
    found: list[Counter] = []
    for domain in sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []:
        try:
            name = (domain / "name").read_text().strip()
            if not name.startswith(COUNTED):
                continue
            wraps = int((domain / "max_energy_range_uj").read_text()) * MICRO
            int((domain / "energy_uj").read_text())
        except PermissionError:
            return [], (
                f"{domain / 'energy_uj'} may be read by root only; run as root, or let a group "
                "read it"
            )
        except (OSError, ValueError):
            continue
        found.append(Counter(f"RAPL {domain.name} {name}", _reader(domain / "energy_uj"), wraps))
    return found, "" if found else f"no RAPL counters under {powercap}"


def _reader(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) * MICRO


def find_nvml(device: Any) -> tuple[list[Counter], str]:
    """The counter of one GPU, or none and why.

    NVML keeps it from Volta on, in steps of tens of milliseconds; MIG slices have none.
    """
    if device.type != "cuda":
        return [], f"no energy counter is known for a device {device.type!r}"
    if importlib.util.find_spec("pynvml") is None:
        return [], "the GPU's counter is read with pynvml: pip install nvidia-ml-py"
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = _handle(nvml, device)
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        name = nvml.nvmlDeviceGetName(handle)
    except Exception as error:  # NVML's own kinds, all of which mean that it cannot tell
        return [], f"NVML does not tell ({type(error).__name__}: {error})"
    name = name.decode() if isinstance(name, bytes) else name

    def read() -> float:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * MILLI

    return [Counter(f"NVML {name}", read)], ""


def _handle(nvml: Any, device: Any) -> Any:
    """By identity: torch counts only the GPUs it may see, NVML all of them."""
    import torch

    uuid = str(torch.cuda.get_device_properties(device).uuid)
    uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except TypeError:  # older bindings take bytes
        return nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
