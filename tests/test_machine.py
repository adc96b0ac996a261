"""What this machine lets a process have: in a container, no more than the container's."""

import os
from pathlib import Path

import pytest

from quarterhour.tune.machine import cpu_count, describe_hardware, device_memory_bytes
from quarterhour.tune.places import plan_resources

INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
VERSION_2 = "0::/pod/box\n"
VERSION_1 = "7:memory:/docker/box\n4:cpu,cpuacct:/docker/box\n1:name=systemd:/\n0::/\n"
NO_LIMIT = {
    "cpu.max": "max 100000",
    "memory.max": "max",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1",
    "cpu,cpuacct/cpu.cfs_period_us": "100000",
    "memory/memory.limit_in_bytes": "9223372036854771712",
}
HALF_A_CORE = {"pod/box/cpu.max": "50000 100000", "cpu.max": "max 100000"}


@pytest.mark.parametrize(
    ("memberships", "files", "cores", "memory"),
    [
        ("", {}, 64, INSTALLED),
        (VERSION_2, NO_LIMIT, 64, INSTALLED),
        (VERSION_1, NO_LIMIT, 64, INSTALLED),
        (
            VERSION_2,
            {"pod/box/cpu.max": "250000 100000", "pod/memory.max": "2000000"},
            2,
            2_000_000,
        ),
        (VERSION_2, NO_LIMIT | {"cpu.max": "200000 100000", "memory.max": "8000"}, 2, 8_000),
        (VERSION_2, HALF_A_CORE, 1, INSTALLED),
        (
            VERSION_1,  # whose path only the host sees
            NO_LIMIT
            | {"cpu,cpuacct/cpu.cfs_quota_us": "300000", "memory/memory.limit_in_bytes": "9000"},
            3,
            9_000,
        ),
    ],
)
def test_cores_and_memory_are_those_of_the_container(
    memberships: str,
    files: dict[str, str],
    cores: int,
    memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "memberships").write_text(memberships)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{content}\n")
    monkeypatch.setattr("quarterhour.tune.machine.MEMBERSHIPS", tmp_path / "memberships")
    monkeypatch.setattr("quarterhour.tune.machine.CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert (cpu_count(), device_memory_bytes("cpu")) == (cores, memory)
    described = describe_hardware("cpu")
    assert (described["cores"], described["memory_bytes"]) == (cores, memory)
    assert plan_resources(None, 0).cpus == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cores_are_those_of_the_affinity():
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cpu_count() == 1
        assert plan_resources(None, 0).cpus == 1
    finally:
        os.sched_setaffinity(0, allowed)
