"""The program that trains, as XLA compiles it: what the attack's loop holds, what leaves the device, what is reused."""

import re
from collections import Counter

import jax
import numpy as np
import optax
import pytest

from lagrangian_jax import methods, parallel
from lagrangian_jax.models.resnet import ResNet
from lagrangian_jax.state import initial_state
from lagrangian_jax.step import resident_steps, training_step

# No activation has a kernel's shape: batch, height, width and channels are unlike a kernel's 3 x 3 and its features.
STEPS, ATTACK_STEPS, BATCH, SIZE, EXAMPLES = 3, 4, 6, 16, 24
# A narrow network, and one whose first block a CPU computes by Winograd's convolutions, six for one.
CONVOLUTIONS = {5: 6, 32: 6 + 2 * 5 if jax.default_backend() == "cpu" else 6}


class Program:
    """The text of a program for XLA: its computations by name, each a list of instructions."""

    def __init__(self, text: str):
        self.header, *lines = text.splitlines()
        self.computations: dict[str, list[str]] = {}
        for line in lines:
            if line.endswith("{") and line[0] not in " }":
                instructions = self.computations[line.removeprefix("ENTRY ").split()[0].lstrip("%")] = []
            elif " = " in line:
                instructions.append(re.sub(r", metadata=\{.*?\}", "", line))

    def reached(self, name: str) -> list[str]:
        """The instructions of a computation and of all that it calls."""
        found, waiting, seen = [], [name], set()
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                found += self.computations[name]
                for line in self.computations[name]:
                    waiting += re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)", line)
                    for branches in re.findall(r"branch_computations=\{(.*?)\}", line):
                        waiting += re.findall(r"[\w.-]+", branches)
        return found

    def loops(self) -> list[list[str]]:
        """The instructions that each loop that evaluates the network runs; inner loops last."""
        lines = [line for instructions in self.computations.values() for line in instructions if " while(" in line]
        bodies = [self.reached(match[1]) for line in lines if (match := re.search(r"body=%?([\w.-]+)", line))]
        return sorted((body for body in bodies if shapes(body)), key=len, reverse=True)


def shapes(instructions: list[str]) -> list[tuple[int, ...]]:
    """The shapes of the results of convolutions and matrix products, each sorted, since axes may be in any order."""
    found = re.findall(r" = \(?\w+\[([\d,]*)\]\S* (?:convolution|dot|custom-call)\(", "\n".join(instructions))
    return [tuple(sorted(int(size) for size in dims.split(",") if size != "")) for dims in found]


def collectives(instructions: list[str]) -> int:
    kinds = r" (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("
    return len(re.findall(kinds, "\n".join(instructions)))


def transfers(text: str) -> int:
    return len(re.findall(r" (?:infeed|outfeed|send|recv)\(|custom_call_target=\"[^\"]*callback", text))


def arguments(width):
    network = ResNet(stages=(1, 1), num_classes=7, width=width)
    method, optimizer = methods.create("lagrangian", steps=ATTACK_STEPS), optax.sgd(0.1, 0.9)
    augmentation = dict(padding=1, mode="reflect", flip=True)
    step = training_step(network, method, optimizer, augmentation, STEPS, 0.9)
    mesh = parallel.mesh()
    state = initial_state(jax.random.key(1), network, (SIZE, SIZE, 3), optimizer, average=True)
    images, labels = np.zeros((EXAMPLES, SIZE, SIZE, 3), np.uint8), np.zeros(EXAMPLES, np.int32)
    index = np.arange(STEPS * BATCH, dtype=np.int32).reshape(STEPS, BATCH)
    return resident_steps(step, mesh), parallel.replicate((state, images, labels, index), mesh)


@pytest.fixture(scope="module", params=CONVOLUTIONS)
def width(request):
    return request.param


@pytest.fixture(scope="module")
def lowered(width):
    run, given = arguments(width)
    return run.lower(*given)


@pytest.fixture(scope="module")
def compiled(lowered):
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)  # as in training
    yield lowered.compile()
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def program(compiled):
    return Program(compiled.as_text())


def test_one_program_holds_all_steps_and_the_attack_is_a_loop_in_it(program):
    epoch, attack = program.loops()
    assert set(attack) < set(epoch)
    lines = [line for instructions in program.computations.values() for line in instructions if " while(" in line]
    rounds = re.findall(r'"known_trip_count":\{"n":"(\d+)"', "\n".join(lines))
    assert (rounds.count(str(STEPS)), rounds.count(str(ATTACK_STEPS))) == (1, 1)


def test_the_attack_s_loop_has_no_collective(lowered):
    """In the program as it is lowered: on a single device the compiler drops every one of them."""
    epoch, attack = Program(lowered.as_text("hlo")).loops()
    assert collectives(attack) == 0
    assert collectives(epoch) > 0


def test_the_attack_s_loop_computes_no_gradient_of_a_weight(program, width):
    kernels = Counter(
        tuple(sorted(leaf.shape)) for leaf in jax.tree.leaves(arguments(width)[1][0].params) if len(leaf.shape) > 1
    )
    epoch, attack = program.loops()
    assert not set(kernels) & set(shapes(attack))
    outside = Counter(shapes(epoch)) - Counter(shapes(attack))
    assert {shape: outside[shape] for shape in kernels} == kernels  # the update's, one a weight


def test_the_attack_evaluates_the_network_forwards_and_backwards_once_a_step(program, width):
    """Every convolution and the linear layer once to compute logits, once for the gradient by the images."""
    _, attack = program.loops()
    assert sum(len(shape) == 4 for shape in shapes(attack)) == 2 * CONVOLUTIONS[width]
    assert shapes(attack).count((BATCH, 7)) == 1


def test_nothing_crosses_to_the_host(compiled):
    assert transfers(compiled.as_text()) == 0

    def told(x):
        jax.debug.callback(lambda x: None, x)
        return x

    assert transfers(jax.jit(told).lower(1.0).compile().as_text()) == 1


def test_the_state_is_updated_in_place(compiled, width):
    _, (state, *data) = arguments(width)
    leaves = len(jax.tree.leaves(state))
    header = compiled.as_text().splitlines()[0]
    aliases = re.findall(r"\{(\d+)\}: \((\d+), \{\}, may-alias\)", header)
    assert [(int(output), int(argument)) for output, argument in aliases] == [(i, i) for i in range(leaves)]

    def address(tree):
        return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]

    before = address((state.params, state.opt_state))
    after, _ = compiled(state, *data)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert address((after.params, after.opt_state)) == before
