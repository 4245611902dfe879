"""Print the requirements of pyproject.toml in this folder with those of the extras that are named, one a line."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = [extra for extra in sys.argv[1].split(",") if extra]
lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
sys.stdout.write("\n".join(lines) + "\n")
