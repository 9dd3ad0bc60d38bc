"""The site, built as `make docs` builds it."""

import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import keras_llm

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GUIDES = ROOT / "examples" / "guides"
SECTIONS = "Args|Attributes|Call arguments|Examples?|Raises|Returns"
# Reading a page fetches what stands there; a link is only followed.
FETCHED = {"script": "src", "img": "src", "source": "srcset", "iframe": "src", "link": "href"}

pytestmark = [pytest.mark.torch_only, pytest.mark.slow]


class Page(HTMLParser):
    """What a page fetches, where it links to, and where it can be linked to."""

    def __init__(self, html):
        super().__init__()
        self.fetched, self.links, self.anchors, self.tags = [], [], set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.anchors.add(attrs.get("id"))
        if url := attrs.get(FETCHED.get(tag)):
            self.fetched.append(url)
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])


def run(*command, **environment):
    """A finished process."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"} | environment,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("docs")
    pages = run(DOCS / "pages.py", folder / "pages")
    assert pages.returncode == 0, pages.stderr
    # mkdocs.yml has it stop at a warning.
    built = run(
        "-m", "mkdocs", "build", "--quiet", "-d", folder / "site", DOCS_PAGES=str(folder / "pages")
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site):
    """Each page by its path."""
    # The page for what is missing is for servers.
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path: Page(path.read_text()) for path in paths}


def packages():
    """The packages whose `__init__` says what is public; `backend` is nobody's to call."""
    for found in pkgutil.walk_packages(keras_llm.__path__, "keras_llm."):
        if found.ispkg and not found.name.startswith("keras_llm.backend"):
            package = importlib.import_module(found.name)
            if hasattr(package, "__all__"):
                yield package
    yield keras_llm


def test_every_public_name_has_an_entry(pages):
    anchors = set.union(*(page.anchors for path, page in pages.items() if path.parts[-2] == "api"))
    public = {
        f"{package.__name__}.{name}"
        for package in packages()
        for name in package.__all__
        if not isinstance(getattr(package, name), ModuleType)
    }
    assert len(public) > 30
    assert public <= anchors, public - anchors
    # The least of what an entry could be: the words of its docstring.
    losses = "\n".join(path.read_text() for path in pages if path.name == "losses.html")
    assert inspect.getdoc(keras_llm.losses.TokenLoss).splitlines()[0] in losses


def test_docstrings_are_read_in_sections(pages):
    """A section that was missed stands as text: its title is a paragraph, its `>>>` quotations."""
    for path, page in pages.items():
        assert "blockquote" not in page.tags, path
        missed = re.search(rf"<p>({SECTIONS}):", path.read_text())
        assert missed is None, (path, missed)


@pytest.mark.parametrize("folder, scripts", [("learn", GUIDES), ("ogren", GUIDES / "tr")])
def test_every_guide_has_its_page(site, folder, scripts):
    names = sorted(path.stem for path in GUIDES.glob("[0-9]*_*.py"))
    assert len(names) == 10
    for name in names:
        script, html = (scripts / f"{name}.py").read_text(), (site / folder / f"{name}.html")
        text = re.sub(r"<[^>]+>", "", html.read_text())
        title = script.splitlines()[1].removeprefix("# # ").replace("`", "")
        assert title in text
        assert "examples/guides/" in text
        for heading in re.findall(r"^# ## (.*)", script, flags=re.MULTILINE):
            assert heading.replace("`", "") in text
        # What the code prints stands below it, without the marks of the file.
        printed = re.findall(r"^# -> (\S.*)", script, flags=re.MULTILINE)
        assert len(printed) > 2
        assert all(unescape(line) in unescape(text) for line in printed)
        assert not re.search(r"^# -> ", unescape(text), flags=re.MULTILINE)


def test_nothing_is_fetched_from_the_network(site, pages):
    assert sum(len(page.fetched) for page in pages.values()) > 100
    for path, page in pages.items():
        for url in page.fetched:
            parts = urlsplit(url)
            assert not parts.scheme and not parts.netloc, (path, url)
            assert (path.parent / unquote(parts.path)).is_file(), (path, url)
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), style


def test_links_lead_somewhere(pages):
    checked = 0
    for path, page in pages.items():
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), (path, url)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in pages[target].anchors, (path, url)
                checked += 1
    assert checked > 100


def test_a_picture_for_each_palette(site):
    pictures = (ROOT / "README.md").read_text().count("<picture>")
    home = (site / "index.html").read_text()
    assert pictures > 0
    assert home.count("-dark.png#only-dark") == home.count(".png#only-light") == pictures
