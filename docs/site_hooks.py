"""Hooks of the site's build, named in mkdocs.yml: pages that lie elsewhere, and links to them.

Documents link to each other and to files of the checkout by paths, so that a code host shows them
as well. In the site, files of the checkout that a page links to are copies under files/.
Tested in tests/site_test.py.
"""

import os
import pathlib
import posixpath
import re

import generate_reference

ROOT = pathlib.Path(__file__).parents[1]
# Pages that are files at the top of the checkout.
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"(?<=\]\()[^)#\s]+")


def place(page: str, link: str) -> str:
    """Where in the site the file is that a page links to; the link itself where there is none."""
    source = ROOT / ELSEWHERE.get(page, f"docs/{page}")
    path = pathlib.Path(os.path.normpath(source.parent / link))
    if not path.is_file() or not path.is_relative_to(ROOT):
        return link
    name = path.relative_to(ROOT).as_posix()
    pages = {"README.md": "index.md"} | {file: page for page, file in ELSEWHERE.items()}
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return pages.get(name, f"files/{name}")


def on_files(files, config):
    """Adds the pages that are made from the code, those from the top, and all that is linked to."""
    from mkdocs.structure.files import File

    def add(page, **source):
        files.append(File.generated(config, page, **source))

    for name, write in generate_reference.PAGES.items():
        add(f"reference/{name}", content=write())
    for page, name in ELSEWHERE.items():
        add(page, abs_src_path=str(ROOT / name))
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            found = place(file.src_uri, link)
            if found.startswith("files/") and found not in files.src_uris:
                add(found, abs_src_path=str(ROOT / found.removeprefix("files/")))
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links to files of the checkout into links within the site.

    A bar in the code of a table's cell loses its backslash, which only code hosts take away.
    """
    uri = page.file.src_uri

    def within(link):
        found = place(uri, link[0])
        return link[0] if found == link[0] else posixpath.relpath(found, posixpath.dirname(uri))

    bare = CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)
    return LINK.sub(within, bare)
