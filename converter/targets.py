"""What a kind of device can carry, for `target_device` and `--target`: budgets, and what int8 is worth on its cores.

Budgets are a tenth of the memory that the board has, because the daemon, its windows and the system want theirs.
The arithmetic comes from Arm's own core manuals: Cortex-A53 and A72 lack the dot-product instructions that A76 has.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of device."""

    words: str
    file_bytes: int
    dot_product: bool


TARGETS = {
    "zero2w": Target("Raspberry Pi Zero 2 W (Cortex-A53, 512 MB)", 48 << 20, dot_product=False),
    "pi3": Target("Raspberry Pi 3 (Cortex-A53, 1 GB)", 96 << 20, dot_product=False),
    "pi4": Target("Raspberry Pi 4 (Cortex-A72, 1 GB or more)", 96 << 20, dot_product=False),
    "pi5": Target("Raspberry Pi 5 (Cortex-A76, 2 GB or more)", 192 << 20, dot_product=True),
}


def warnings_for(target: str | None, size: int, method: str) -> list[str]:
    """What the owner of such a device should know about a model, as sentences.

    Args:
        target: one of `TARGETS`, or None.
        size: of the model in bytes. onnxruntime needs about twice that to load it.
        method: how it was quantised.
    """
    if target is None:
        return []
    device = TARGETS[target]
    found = []
    if 2 * size > device.file_bytes:
        found.append(
            f"{device.words}: {size:,} bytes need about twice that to load, more than its budget of "
            f"{device.file_bytes >> 20} MB"
        )
    if method in ("int8", "dynamic") and not device.dot_product:
        found.append(
            f"{device.words}: its cores have no int8 dot products, so int8 saves memory but may be slower "
            "than float32: measure on the device"
        )
    return found
