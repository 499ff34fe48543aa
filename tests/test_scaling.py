"""The scaling report: collectives read from compiled programs, and the model of a step on paper."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from lagrangian_jax import parallel


def test_collectives_are_read_from_the_program_s_text():
    text = """
      %a = f32[8,4]{1,0} all-reduce(%y), channel_id=1, replica_groups={{0,1}}
      %b = (f32[2]{0}, bf16[3]{0}, s32[]) all-reduce-start(%p, %q), channel_id=2
      %c = (f32[2]{0}, bf16[3]{0}, s32[]) all-reduce-done(%b)
      ROOT %d = u8[16]{0} all-gather(%z), dimensions={0}
      %e = f32[64]{0} fusion(%d), calls=%all-reduce.1
    """
    assert scaling.collectives(text) == {
        "all-reduce": {"count": 2, "bytes": 4 * 32 + 4 * 2 + 2 * 3 + 4},
        "all-gather": {"count": 1, "bytes": 16},
    }


def test_collectives_of_a_compiled_program():
    def function(x):
        return jax.lax.psum(x, parallel.AXIS), jax.lax.all_gather(x, parallel.AXIS)

    mesh = parallel.mesh()
    run = jax.jit(parallel.per_device(function, mesh, (P(),), (P(), P())))
    found = scaling.collectives(run.lower(np.zeros((5, 7), np.float32)).as_text("hlo"))
    assert found["all-reduce"] == {"count": 1, "bytes": 140}
    assert found["all-gather"] == {"count": 1, "bytes": 140 * mesh.size}


@pytest.mark.parametrize("hardware", scaling.HARDWARE, ids=lambda hardware: hardware.name)
def test_the_smallest_efficient_batch(hardware):
    operations, sent, count = 14.45e9, 44.7e6, 60
    batch = scaling.smallest_efficient_batch(hardware, operations, sent, count)

    def share(batch):
        times = scaling.modelled(hardware, operations, sent, count, batch)
        return times["compute"] / (times["compute"] + times["all-reduce"])

    assert batch % hardware.devices == 0
    assert share(batch) >= 0.8
    assert batch == hardware.devices or share(batch - hardware.devices) < 0.8


def test_the_model_by_hand():
    """4 devices, 2 images each; a ring sends 2 x 3/4 of 8 GB at 1 GB/s, and each of the 5 sums takes 1 ms besides."""
    hardware = scaling.Hardware("paper", 4, 1e12, 0.5, 1e9, 1e-3, 100.0)
    times = scaling.modelled(hardware, operations=1e9, sent=8e9, count=5, batch=8)
    assert times == pytest.approx({"compute": 2 * 1e9 / 0.5e12, "all-reduce": 12.005, "input": 0.08})
