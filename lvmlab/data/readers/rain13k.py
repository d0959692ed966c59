"""Rain13K (Zamir et al. 2021, arXiv 2102.02808): rainy pictures and clean ones, as folders or lmdb."""

from pathlib import Path

from lvmlab.data.readers.base import Broken, Reader, check_alike, picture
from lvmlab.data.readers.folders import paired_folder


def rain13k(root: str | Path, *, split: str = "train") -> Reader:
    """Rain13K: the folders input/ and target/, or input.lmdb and target.lmdb with the keys in meta_info.txt.

    Raises:
        ModuleNotFoundError: an lmdb is there and the extra lmdb is not installed.
        FileNotFoundError: meta_info.txt is missing.
    """
    root = Path(root).expanduser()
    if not (root / "input.lmdb").is_dir():
        return paired_folder(root, "derain", inputs="input", labels="target", kind="pictures", split=split)
    try:
        import lmdb
    except ImportError as error:
        raise ModuleNotFoundError("reading an lmdb needs the extra: pip install lvmlab[lmdb]") from error
    try:
        stores = {
            side: lmdb.open(str(root / f"{side}.lmdb"), readonly=True, lock=False)
            for side in ("input", "target")
        }
    except lmdb.Error as error:
        raise ValueError(f"{root} has an lmdb that cannot be opened ({error}): copy it again") from error
    names = (root / "input.lmdb" / "meta_info.txt").read_text(encoding="utf-8").splitlines()
    keys = [line.split(" ")[0].removesuffix(".png") for line in names if line]

    def read(key: str, least: int) -> dict:
        pictures = []
        for side, store in stores.items():
            with store.begin() as transaction:
                data = transaction.get(key.encode())
            if data is None:
                raise Broken(f"{side}.lmdb does not hold it")
            pictures.append(picture(bytes(data)))
        return {key: (check_alike(*pictures), "")}

    return Reader(
        "derain",
        keys,
        read,
        split=split,
        files=lambda key: [key, *(root / f"{side}.lmdb" / "data.mdb" for side in stores)],
        root=root,
        origin={"labels": "pictures"},
    )
