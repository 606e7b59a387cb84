"""The container file: this project, at the pinned versions, with the TPU's run time."""

# Python 3.11 is what the pins were resolved and the programs compiled ahead of time with.
_PYTHON = "python:3.11-slim"
_FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_FOLDERS = ("tml_jax", "pallas_kernels", "launch", "configs")


def dockerfile() -> str:
    """Its text; the folder of the project is the context of the build.

    The project is installed where it lies, so that commands find ``configs/`` as they do in a checkout.
    """
    copies = [f"COPY {folder} {folder}" for folder in _FOLDERS]
    return "\n".join(
        [
            f"FROM {_PYTHON}",
            "WORKDIR /opt/tml_jax",
            f"COPY {' '.join(_FILES)} ./",
            *copies,
            "RUN pip install --no-cache-dir -c constraints.txt -e '.[tpu]'",
            "",
        ]
    )
