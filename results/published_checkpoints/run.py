"""Attacks published PyTorch checkpoints of CIFAR-10 ResNet-32 networks and writes ``<checkpoint>/results.json`` here.

    python results/published_checkpoints/run.py FOLDER

FOLDER holds ``<checkpoint>.resnet32.pt``; CIFAR-10 comes from TFDS (``TFDS_DATA_DIR``). A stopped run goes on where it
was: rows of finished attacks stay in ``runs/published_checkpoints``.
"""

import functools
import json
import pathlib
import sys
import types

import lagrangian_jax as lj
from lagrangian_jax import data
from lagrangian_jax.models.forward import apply

HERE = pathlib.Path(__file__).resolve().parent
IMAGES = 600
COLUMNS = ("clean", "linf", "recolor", "stadv")


def main(folder: pathlib.Path) -> None:
    dataset = data.load(types.SimpleNamespace(name="cifar10"))
    test = dataset.test.take(slice(IMAGES))
    network = lj.models.create("resnet32", normalisation="imagenet")
    rows = [row for row in lj.evaluation.suites.get("cifar10_table1") if row.column in COLUMNS]
    for file in sorted(folder.glob("*.resnet32.pt")):
        name = file.name.removesuffix(".resnet32.pt")
        result = lj.evaluation.run(
            functools.partial(apply, network),
            test.images,
            test.labels,
            suite=rows,
            index=test.indices,
            variables=lj.interop.load(file, network),
            workdir=pathlib.Path("runs", "published_checkpoints", name),
        )
        print(f"\n{name}\n{result}", flush=True)
        results = result.to_json()
        results["data"] |= {"name": dataset.name, "split": "test", "remark": dataset.remark, "classes": dataset.classes}
        results["network"] |= {"name": "resnet32", "normalisation": "imagenet", "precision": "float32"}
        target = HERE / name / "results.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
