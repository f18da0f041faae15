"""What a command does once its options are found good, before it imports the engine."""

import gc
import sys


def import_torch() -> None:
    """Import torch and timm while Python's garbage collector stands still, and have it leave them alone from then on.

    None of the million objects that they make is garbage, and to find that out again and again takes a fifth of the
    time of their import; and later 20 ms each time that a command has made enough objects of its own.
    """
    if "timm" in sys.modules:
        return
    gc.disable()
    try:
        import timm  # noqa: F401  # and with it torch and torchvision
    finally:
        gc.freeze()
        gc.enable()


def prepare(device: str | None, runs_networks: bool = True) -> None:
    """Import torch, and set this process up where it runs networks. Raises RecastError without such a device."""
    import_torch()
    from recast_cli.engine.runtime.device import choose_device, tune_process

    chosen = choose_device(device)
    if runs_networks:
        tune_process(chosen)
