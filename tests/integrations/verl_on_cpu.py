"""A plugin for verl: its FSDP worker on a CPU. verl has none for one; a test of the real worker needs it."""

from types import SimpleNamespace

from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import PlatformRegistry


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformCUDA):
    device_name = vendor_name = "cpu"
    device_module = SimpleNamespace(
        is_available=lambda: False,
        empty_cache=lambda: None,
        synchronize=lambda: None,
        memory_allocated=lambda: 0,
        memory_reserved=lambda: 0,
        max_memory_allocated=lambda: 0,
        max_memory_reserved=lambda: 0,
        mem_get_info=lambda: (0, 0),
        get_device_name=lambda: "CPU",
    )

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return False  # VERL_PLATFORM=cpu alone chooses it

    def current_device(self):
        return "cpu"

    def communication_backend_name(self):
        return "gloo"
