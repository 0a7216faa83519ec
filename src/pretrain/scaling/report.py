"""One HTML page of a study: figures inline, tables, and how each number came about."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from pretrain.config import Mistake

Picture = tuple[str, str, bytes]
"""File name, caption, PNG."""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: 1rem; font-size: 13px; line-height: 1.4; }}
figure {{ margin: 2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; }}
</style>
<h1>{title}</h1>
{sections}
{figures}
</html>
"""


def write(
    directory: Path, title: str, sections: Iterable[tuple[str, str]], pictures: Iterable[Picture]
) -> list[Path]:
    """`index.html`, whole in itself, and the pictures beside it; the files written.

    Raises Mistake where they cannot be written.
    """
    texts = "\n".join(
        f"<h2>{html.escape(name)}</h2>\n<pre>{html.escape(text)}</pre>" for name, text in sections
    )
    figures, files = [], []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, caption, png in pictures:
            data = base64.b64encode(png).decode()
            words = html.escape(caption)
            figures.append(
                f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
                f"<figcaption>{words}</figcaption></figure>"
            )
            (directory / name).write_bytes(png)
            files.append(directory / name)
        page = directory / "index.html"
        page.write_text(
            PAGE.format(title=html.escape(title), sections=texts, figures="\n".join(figures))
        )
    except OSError as error:
        raise Mistake(
            f"{directory} cannot be written ({error.strerror}): choose another --out."
        ) from None
    return [*files, page]
