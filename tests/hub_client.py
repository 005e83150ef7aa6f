"""huggingface_hub turned to a server of the test."""

from huggingface_hub import _snapshot_download, constants, file_download, hf_api


def point_to(address, folder, monkeypatch, offline=False):
    """Make huggingface_hub ask another server, and keep its files elsewhere."""
    settings = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_HUB_OFFLINE": offline,
    }
    for module in (constants, hf_api, file_download, _snapshot_download):
        for key, value in settings.items():
            if hasattr(module, key):  # older clients have copies in each module
                monkeypatch.setattr(module, key, value)
