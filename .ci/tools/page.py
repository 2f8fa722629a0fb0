"""The deployment guide's blocks, as they are printed. docs/deployment.md is the one place that has them: what tests the
metrics, the dashboard's queries or the commands takes them from there."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/deployment.md"


def blocks(page=PAGE):
    """Kind and text of each block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", Path(page).read_text(), re.M | re.S)


def paragraphs(page=PAGE):
    """Kind and text of what is between blank lines in the blocks; then the commands that lists name in passing."""
    found = [(kind, part.strip("\n")) for kind, text in blocks(page) for part in re.split(r"\n\n+", text)]
    commands = re.findall(r"^- .*?`([a-z]\S* [^`]+)`$", Path(page).read_text(), re.M)
    return found + [("inline", command) for command in commands]


def without_comments(text):
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def queries(page=PAGE):
    return without_comments("\n".join(text for kind, text in paragraphs(page) if kind == "promql")).splitlines()


def metrics(page=PAGE):
    return without_comments("\n".join(text for kind, text in paragraphs(page) if kind == "")).splitlines()
