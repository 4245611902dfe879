"""Names that a dataset which a user adds must not have: those of the configured registry and of the data root."""

from jobs.errors import NameTaken
from jobs.preflight.dataset_registry import find_view
from jobs.settings import Settings
from sft.files.places import follow


def refuse_known_name(name: str, settings: Settings) -> None:
    """Raise NameTaken for the name of a dataset of the configured registry, or of a file below the data root."""
    view = find_view(settings, True)
    if view is not None and view.has(name):
        raise NameTaken(f"name {name!r} is a dataset in the registry {view.folder}; choose another name")
    place = follow(name, settings.data_root)
    if place is not None and place.exists():
        raise NameTaken(f"name {name!r} is a file or folder in the data root {settings.data_root}; choose another name")
