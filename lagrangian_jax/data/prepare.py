"""Downloads and prepares a data set once, in a form that can be read without TensorFlow.

    python -m lagrangian_jax.data.prepare cifar10 --dir ~/tensorflow_datasets

Only this step needs TensorFlow: ``pip install 'lagrangian_jax[prepare]'``. An archive that is already in the folder
``--archives`` is not downloaded: cifar-10-binary.tar.gz for CIFAR-10. Those of ImageNet, ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, must be in it, since ImageNet's site requires an account.
"""

import argparse
import importlib.util
import os
import pathlib
import sys

from lagrangian_jax.data import records
from lagrangian_jax.names import unknown

NAMES = {
    "cifar10": "cifar10",
    "cifar10_three_classes": "cifar10",
    "imagenet100": "imagenet2012",
    "imagenet2012": "imagenet2012",
}


def prepare(name: str, directory: str, archives: str | None = None) -> str:
    """Prepares a data set as ``array_record`` files and returns their directory.

    Args:
      name: one of `NAMES`.
      directory: the directory of TFDS data sets.
      archives: a directory of archives that need not be downloaded.

    Raises:
      ValueError: for an unknown name, or if the directory holds the data set in another format.
      ModuleNotFoundError: without TensorFlow.
    """
    if name not in NAMES:
        raise unknown("data set", name, NAMES)
    records.readable(NAMES[name], pathlib.Path(directory).expanduser())
    if importlib.util.find_spec("tensorflow") is None:
        raise ModuleNotFoundError(
            "preparing a data set needs TensorFlow (reading it does not): pip install 'lagrangian_jax[prepare]'"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(NAMES[name], data_dir=os.path.expanduser(directory), file_format="array_record")
    manual = os.path.expanduser(archives) if archives else None
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    return str(builder.data_dir)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lagrangian_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=", ".join(NAMES))
    parser.add_argument(
        "--dir", default=os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), help="default: %(default)s"
    )
    parser.add_argument("--archives", help="folder of archives that are already downloaded")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.name, arguments.dir, arguments.archives))
    except Exception as error:  # from TFDS and its downloader: no common class
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
