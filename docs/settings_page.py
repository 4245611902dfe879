"""Writes docs/reference/settings.md from `jobs.settings.Settings`; `make docs` runs it."""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from jobs.settings import Settings

PAGE = Path(__file__).parent / "reference" / "settings.md"

HEAD = """# Settings

Every setting is an environment variable, read when a process starts: run `tuneyard down` first to change one for the
local stack. Lists are separated by commas, except those marked as JSON lists. `tuneyard doctor` checks the machine.

| variable | default | meaning |
|---|---|---|
"""

FOOT = """
## Variables that others read

| variable | default | meaning |
|---|---|---|
| `TUNEYARD_URL` | `http://127.0.0.1:23478` | The service that the command line talks to. |
| `TUNEYARD_API_KEY` | unset | The API key that the command line sends. |
| `PROMETHEUS_MULTIPROC_DIR` | unset | An empty folder that API processes share; each `/metrics` shows the sum. |
"""


def render() -> str:
    """The page as Markdown."""
    return HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items()) + FOOT


def _row(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    variable = str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"TUNEYARD_{name.upper()}"
    description = (field.description or "").replace("|", "\\|")
    return f"| `{variable}` | {_default(name, field)} | {description} |\n"


def _default(name: str, field: FieldInfo) -> str:
    if name == "home":
        return "`.tuneyard` in the checkout, else `~/.local/share/tuneyard`"
    value: Any = field.default
    if value is None or value == ():
        return "unset"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
