"""Data sets that other packages register with detectron2's catalogs, MESS among them.

MESS ("What a MESS: Multi-Domain Evaluation of Zero-Shot Semantic Segmentation", NeurIPS 2023) is
registered by its own toolkit: pip install "cat-seg[mess]".
"""

from __future__ import annotations

import importlib

from detectron2.data import DatasetCatalog, MetadataCatalog

from cat_seg.errors import CATSegError

# Registered name -> title and domain, as the benchmark averages them. PAXRay's four stand for one.
MESS = {
    "bdd100k_sem_seg_val": ("BDD100K", "General"),
    "dark_zurich_sem_seg_val": ("Dark Zurich", "General"),
    "mhp_v1_sem_seg_test": ("MHP v1", "General"),
    "foodseg103_sem_seg_test": ("FoodSeg103", "General"),
    "atlantis_sem_seg_test": ("ATLANTIS", "General"),
    "dram_sem_seg_test": ("DRAM", "General"),
    "isaid_sem_seg_val": ("iSAID", "Earth Monitoring"),
    "isprs_potsdam_sem_seg_test_irrg": ("ISPRS Potsdam", "Earth Monitoring"),
    "worldfloods_sem_seg_test_irrg": ("WorldFloods", "Earth Monitoring"),
    "floodnet_sem_seg_test": ("FloodNet", "Earth Monitoring"),
    "uavid_sem_seg_val": ("UAVid", "Earth Monitoring"),
    "kvasir_instrument_sem_seg_test": ("Kvasir-Instrument", "Medical Sciences"),
    "chase_db1_sem_seg_test": ("CHASE DB1", "Medical Sciences"),
    "cryonuseg_sem_seg_test": ("CryoNuSeg", "Medical Sciences"),
    "paxray_sem_seg_test_lungs": ("PAXRay-4 lungs", "Medical Sciences"),
    "paxray_sem_seg_test_bones": ("PAXRay-4 bones", "Medical Sciences"),
    "paxray_sem_seg_test_mediastinum": ("PAXRay-4 mediastinum", "Medical Sciences"),
    "paxray_sem_seg_test_diaphragm": ("PAXRay-4 diaphragm", "Medical Sciences"),
    "corrosion_cs_sem_seg_test": ("Corrosion CS", "Engineering"),
    "deepcrack_sem_seg_test": ("DeepCrack", "Engineering"),
    "pst900_sem_seg_test": ("PST900", "Engineering"),
    "zerowaste_sem_seg_test": ("ZeroWaste-f", "Engineering"),
    "suim_sem_seg_test": ("SUIM", "Agriculture and Biology"),
    "cub_200_sem_seg_test": ("CUB-200", "Agriculture and Biology"),
    "cwfid_sem_seg_test": ("CWFID", "Agriculture and Biology"),
}
# mIoU in percent by domain, from the benchmark's leaderboard; the 2023 models.
MESS_DOMAINS = (
    "General", "Earth Monitoring", "Medical Sciences", "Engineering", "Agriculture and Biology",
)  # fmt: skip
MESS_PUBLISHED = {
    "2023 B": (34.96, 34.57, 41.65, 26.26, 29.32, 33.74),  # the last is the mean of all data sets
    "2023 L": (39.93, 39.85, 48.49, 26.04, 34.06, 38.14),
    "2023 H": (37.98, 37.74, 34.65, 29.04, 37.76, 35.66),
}


def import_plugin(module: str) -> None:
    """Import a module that registers data sets.

    Raises:
        CATSegError: if there is no such module, or it cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        hint = ' `pip install "cat-seg[mess]"` brings it.' if module == "mess.datasets" else ""
        raise CATSegError(f"{module} cannot be imported ({error}).{hint}") from error


def adopt(name: str) -> None:
    """Complete what the metadata of a registered data set lacks for an evaluation.

    Its "vocabulary" becomes its "stuff_classes", its kind semantic segmentation.

    Raises:
        CATSegError: if it has no names of classes, or its files cannot be listed.
    """
    metadata = MetadataCatalog.get(name)
    names = metadata.get("stuff_classes")
    if not names:
        raise CATSegError(
            f"{name} is registered without `stuff_classes`, the names of its classes; it is none "
            "for semantic segmentation."
        )
    missing = {
        "vocabulary": list(names),
        "evaluator_type": "sem_seg",
        "ignore_label": 255,
        "title": MESS.get(name, (name,))[0],
    }
    metadata.set(**{key: value for key, value in missing.items() if metadata.get(key) is None})
    try:
        DatasetCatalog.get(name)
    except (AssertionError, OSError) as error:
        raise CATSegError(f"{name}: its files cannot be listed ({error}).") from error


def mess_datasets() -> list[str]:
    """Register MESS, and list those of its data sets whose files are there.

    Raises:
        CATSegError: if the toolkit is not installed, or not one data set is there.
    """
    import_plugin("mess.datasets")
    found = []
    for name in MESS:
        try:
            adopt(name)
        except CATSegError:
            continue
        found.append(name)
    if not found:
        raise CATSegError(
            "No data set of MESS is there; set DETECTRON2_DATASETS to where they are, and prepare "
            "them by its toolkit (https://github.com/blumenstiel/MESS, DATASETS.md)."
        )
    return found
