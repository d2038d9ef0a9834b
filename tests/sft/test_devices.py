from types import SimpleNamespace

import pytest

from genrec_rl.errors import ConfigError
from genrec_rl.sft import devices
from genrec_rl.sft.devices import check_devices


def arguments(*, n_gpu=0, fsdp=None):
    return SimpleNamespace(n_gpu=n_gpu, fsdp=fsdp)


def test_one_device_a_process_is_accepted():
    check_devices(arguments())
    check_devices(arguments(n_gpu=1))


def test_several_gpus_in_one_process_are_refused():
    with pytest.raises(ConfigError, match="2 GPUs in one process; start one process each"):
        check_devices(arguments(n_gpu=2))


def test_fsdp_is_refused_by_argument_and_by_launcher(monkeypatch):
    with pytest.raises(ConfigError, match=r"FSDP is not supported yet.*use DDP or ZeRO-2"):
        check_devices(arguments(fsdp=["full_shard"]))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP is not supported yet"):
        check_devices(arguments())


def test_zero_3_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="ZeRO-3 is not supported yet"):
        check_devices(arguments())
