"""Maximum lengths of a job's texts and lists: more than anybody needs, less than any other part can hold.

Prefect accepts parameters of 512 KiB in total, a file system paths of 4096 bytes.
"""

from typing import Annotated

from pydantic import Field

NAME_CHARACTERS = 250
PATH_CHARACTERS = 4096
LIST_ENTRIES = 4096
JOB_BYTES = 256 * 1024  # of a job, or of a saved configuration, as JSON

Name = Annotated[str, Field(max_length=NAME_CHARACTERS)]
PathText = Annotated[str, Field(max_length=PATH_CHARACTERS)]
ModuleNames = Annotated[
    tuple[Annotated[str, Field(max_length=NAME_CHARACTERS)], ...], Field(max_length=LIST_ENTRIES)
]  # names, ends of names and patterns
