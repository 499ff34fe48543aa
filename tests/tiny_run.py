"""A whole run on a tiny network, in a process of its own, for the tests of reliability and of several processes."""

import os
import subprocess
import sys
import textwrap

FIELDS = [
    "--config.network.name=tiny",
    "--config.data.validation=32",
    "--config.train.epochs=3",
    "--config.train.steps=4",
    "--config.train.batch_size=16",
    "--config.train.log_steps=1",
    "--config.train.checkpoint_steps=1",
    "--config.train.average=0.9",
    "--config.validation.steps=2",
    "--config.evaluation.checkpoint=best",
    "--config.evaluation.examples=24",
    "--config.evaluation.batch_size=8",
    "--config.deterministic=true",
]
PROGRAM = textwrap.dedent("""
    import functools, sys
    from lagrangian_jax import main, models
    from lagrangian_jax.evaluation import work
    from lagrangian_jax.models.resnet import ResNet
    work.SAVE_SECONDS = 0.0  # unfinished attacks are saved after every batch
    models.MODELS["tiny"] = functools.partial(ResNet, stages=(1,), width=4)
""")
RUN = "\nsys.exit(main.main(sys.argv[1:]))\n"


def start(workdir, log, *fields, method="lagrangian", before="", wrapper=(), **environment):
    """Starts the run. ``before`` is Python code to run first, ``wrapper`` a command that starts it and chooses its own
    work directory, ``environment`` holds environment variables."""
    arguments = [f"--config=digits:{method},smoke", *FIELDS, *fields, *[f"--workdir={workdir}"] * (not wrapper)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(workdir.parent / "cache"),  # compiled programs, too
        **environment,
    }
    program = PROGRAM + textwrap.dedent(before) + RUN
    with log.open("ab") as output:
        return subprocess.Popen(
            [*wrapper, sys.executable, "-c", program, *arguments], env=environment, stdout=output, stderr=output
        )
