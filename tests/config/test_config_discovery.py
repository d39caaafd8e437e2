"""GPUs and memory, on machines that are made of files."""

import pynvml
import pytest

from blitzgw.core.instance import DeviceKind, DeviceSpec
from blitzgw.worker import discovery

GIB = 1 << 30


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("", 0),
        ("0", 1),
        ("2,0", 2),
        (" 1 , 2 ", 2),
        ("0,7,1", 1),
        ("-1,0", 0),
        ("GPU-b", 1),
        ("GPU-b1,GPU-a", 2),
        ("GPU-", 0),
        ("GPU-x,0", 0),
        ("MIG-1,MIG-2", 1),
    ],
)
def test_the_environment_hides_gpus_as_cuda_does(visible, count):
    assert discovery.count_visible(["GPU-a1", "GPU-b1", "GPU-c1"], visible) == count


def test_no_driver_is_no_gpus(monkeypatch):
    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert discovery.discover() == []


def test_gpus_are_numbered_as_torch_does(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(discovery, "_gpu_uuids", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(discovery, "torch_cuda_version", lambda: "13.0")
    assert discovery.discover() == [
        DeviceSpec("cuda0", DeviceKind.CUDA, 0),
        DeviceSpec("cuda1", DeviceKind.CUDA, 1),
    ]


def test_gpus_are_of_no_use_to_a_torch_without_cuda(monkeypatch, caplog):
    monkeypatch.setattr(discovery, "_gpu_uuids", lambda: ["GPU-a"])
    monkeypatch.setattr(discovery, "torch_cuda_version", lambda: None)
    assert discovery.discover() == []
    assert "gpus_unused count=1" in caplog.text


def test_torch_tells_its_cuda_without_being_imported():
    torch = pytest.importorskip("torch")
    assert discovery.torch_cuda_version() == torch.version.cuda


@pytest.fixture
def machine(tmp_path):
    """Return a function that writes files below a root."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


MEMINFO = "MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n"


def test_memory_is_the_machines_without_limits(machine):
    assert discovery.available_memory_bytes(machine(proc__meminfo=MEMINFO)) == 16 * GIB


def test_memory_is_below_each_cgroup_limit_version_2(machine):
    root = machine(proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b\n")
    group = root / "sys/fs/cgroup/a"
    (group / "b").mkdir(parents=True)
    (group / "b" / "memory.max").write_text("max\n")
    (group / "b" / "memory.current").write_text(f"{GIB}\n")
    (group / "memory.max").write_text(f"{8 * GIB}\n")
    (group / "memory.current").write_text(f"{5 * GIB}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {2 * GIB}\n")
    assert discovery.available_memory_bytes(root) == 5 * GIB


def test_memory_is_below_the_cgroup_limit_version_1_in_a_container(machine):
    root = machine(
        proc__meminfo=MEMINFO, proc__self__cgroup="9:cpu:/\n4:hugetlb,memory:/docker/1f\n"
    )
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{3 * GIB}\n")
    (group / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {GIB}\n")
    assert discovery.available_memory_bytes(root) == 2 * GIB


def test_memory_is_never_negative(machine):
    root = machine(proc__meminfo=MEMINFO, proc__self__cgroup="0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text("10")
    (root / "sys/fs/cgroup/memory.current").write_text("11")
    assert discovery.available_memory_bytes(root) == 0


def test_this_machine_has_memory():
    assert discovery.available_memory_bytes() > 0
