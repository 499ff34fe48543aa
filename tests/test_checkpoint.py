"""Checkpoints by themselves: tried again, of another state, of another method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lagrangian_jax import parallel
from lagrangian_jax.checkpoint import Checkpoints
from lagrangian_jax.state import TrainState


def _saved(folder, memory, method=None):
    """Saves a checkpoint of a small state with a memory."""
    checkpoints = Checkpoints(folder, 2, method)
    checkpoints.save(_state(memory), {"seconds": 1.0})
    checkpoints.close()
    return _contents(folder)


def _state(memory):
    return TrainState(jnp.int32(3), jax.random.key(0), {"kernel": jnp.ones((2, 3))}, {}, (), (), memory)


def _contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_is_tried_again_whatever_the_first_try_left_fails_with(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save, wait = ocp.CheckpointManager.save, ocp.CheckpointManager.wait_until_finished
    reopen, fails = Checkpoints._open, []

    def saved(self, *arguments, **options):
        save(self, *arguments, **options)
        fails.extend(["wait", "reopen"])

    def out_of_patience(self):
        wait(self)
        if "wait" in fails:
            fails.remove("wait")
            raise TimeoutError

    def opened(self):
        if "reopen" in fails:
            fails.remove("reopen")
            raise RuntimeError("Event loop is closed")
        reopen(self)

    monkeypatch.setattr(ocp.CheckpointManager, "save", saved)
    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", out_of_patience)
    monkeypatch.setattr(Checkpoints, "_open", opened)
    _saved(tmp_path / "last", ())
    monkeypatch.undo()
    assert not fails
    assert Checkpoints(tmp_path / "last", 2).read()[0] == 3


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (jnp.zeros(20), r"memory: 'float32\[24\]' there, 'float32\[20\]' here\."),
        (jnp.zeros(30), r"memory: 'float32\[24\]' there, 'float32\[30\]' here\."),
        (jnp.zeros(24, jnp.int32), r"memory: 'float32\[24\]' there, 'int32\[24\]' here\."),
        ((), r"memory: 'float32\[24\]' there, None here\."),
        ({"lower": jnp.zeros(24)}, r"memory: .* there, None here; memory.lower: None there, 'float32\[24\]' here\."),
        ([jnp.zeros(24)] * 5, r"memory.1: None there, 'float32\[24\]' here; and 3 more\."),
    ],
)
def test_a_checkpoint_of_another_state_is_refused(tmp_path, memory, message):
    """A memory of another length, say, would lose rows or take those of others."""
    before = _saved(tmp_path, jnp.arange(24.0))
    checkpoints = Checkpoints(tmp_path, 2)
    with pytest.raises(ValueError, match=rf"/3 is a checkpoint of another state: .*{message} Remove it") as raised:
        checkpoints.restore(_state(memory), parallel.mesh())
    assert "\n" not in str(raised.value)
    checkpoints.close()
    assert _contents(tmp_path) == before


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    """IAAT's budgets have the shape of MMA's distances."""
    before = _saved(tmp_path, jnp.arange(24.0), "iaat")
    checkpoints = Checkpoints(tmp_path, 2, "mma")
    with pytest.raises(ValueError, match=r"/3 is a checkpoint of the method 'iaat', not of 'mma'\. Remove it"):
        checkpoints.restore(_state(jnp.zeros(24)), parallel.mesh())
    checkpoints.close()
    assert _contents(tmp_path) == before


def test_a_checkpoint_that_does_not_tell_its_method_is_restored(tmp_path):
    """Early versions wrote such checkpoints; the next one saved does name its method."""
    _saved(tmp_path, jnp.arange(24.0))
    checkpoints = Checkpoints(tmp_path, 2, "mma")
    state, position, _ = checkpoints.restore(_state(jnp.zeros(24)), parallel.mesh())
    assert position == {"seconds": 1.0}
    np.testing.assert_array_equal(state.memory, np.arange(24))
    checkpoints.save(state.replace(step=jnp.int32(4)), position)
    assert checkpoints.read()[2] == {"seconds": 1.0, "method": "mma"}
    checkpoints.close()
