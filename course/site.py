"""Sphinx extension: what the whole book needs beside its questions and quizzes.

- MathJax from node_modules instead of another host: one file, copied into the book.
- A Colab button on every notebook, if `repository: url:` in _config.yml says where the notebooks are; none otherwise.
- The book's own style sheet and icon.
- A solution's title begins with "Solution:", although its source is the exercise.
- Repairs of the theme's pages: what a screen reader cannot name, what a phone cannot show, scripts for other hosts.
"""
import re
import shutil
from pathlib import Path

from course import ROOT

HERE = Path(__file__).parent
MATHJAX = ROOT / "node_modules/mathjax/es5/tex-svg.js"
STYLE = HERE / "site.css"
ICON = HERE / "favicon.svg"


def configure(app, config):
    from sphinx.errors import ExtensionError
    if not MATHJAX.exists():
        raise ExtensionError(f"{MATHJAX.relative_to(ROOT)} is missing: run `make book`, which installs it with npm")
    static = Path(app.outdir).parent / "static-of-the-course"
    for source, target in ((MATHJAX, static / "mathjax/tex-svg.js"), (STYLE, static / "site.css")):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copyfile(source, target)
    config.html_static_path.append(str(static))
    config.mathjax_path = "mathjax/tex-svg.js"
    config.html_favicon = config.html_favicon or str(ICON)
    config.html_context.setdefault("default_mode", "auto")  # without it the theme's script logs an error on a first visit
    options = config.html_theme_options
    options.setdefault("collapse_navbar", True)  # a page lists its own chapter's pages: else each page grows with the book
    if options.get("repository_url"):
        options.setdefault("launch_buttons", {})["colab_url"] = "https://colab.research.google.com"
        options["launch_buttons"]["notebook_interface"] = "jupyterlab"
    else:
        options["launch_buttons"] = {}


def without_thebe(app):
    """Jupyter Book loads sphinx-thebe into every page, twice: for cells that run on another host. No page here has any."""
    for listeners in app.events.listeners.values():
        listeners[:] = [listener for listener in listeners if listener.handler.__module__ != "sphinx_thebe"]
    app.registry.css_files[:] = [file for file in app.registry.css_files if file[0] != "sphinx-thebe.css"]


def name_solution(app, doctree):
    from docutils import nodes
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is not None and app.env.docname.startswith("solutions/") and title.astext().startswith("Exercise: "):
        first = next(iter(title.findall(nodes.Text)))
        first.parent.replace(first, nodes.Text(first.replace("Exercise: ", "Solution: ", 1)))


def name_pictures(app, doctree):
    """A picture that a cell drew says what the text before the cell says, where its cell's metadata says nothing."""
    from docutils import nodes
    for picture in doctree.findall(nodes.image):
        at = picture
        while at is not None and "cell" not in at.get("classes", ()):
            at = at.parent
        if at is not None and not picture.get("alt"):
            before = at.parent.children[: at.parent.index(at)]
            text = next((node.astext() for node in reversed(before) if isinstance(node, nodes.paragraph)), "")
            picture["alt"] = "Drawn by the cell above. " + " ".join(text.split()).rstrip(":") if text else "Drawn by the cell above"


def breakable(code):
    """Inline code in which a long dotted name may go on in the next line, after a dot (not that of `trt.` or `np.`)."""
    return re.sub(r"(?<=\w{4})\.(?=\w)", ".<wbr>", code[0])


REPAIRS = (
    # The arrow that folds a chapter has no name.
    (re.compile(r'(<a class="[^"]*reference internal" href="[^"]*">(?P<title>[^<]*)</a><details[^>]*>)<summary>'),
     r'\1<summary aria-label="Pages of: \g<title>">'),
    # The book's name stands outside every landmark.
    (re.compile(r'<div class="sidebar-primary-item">(?=\s*<a class="navbar-brand)'),
     '<div class="sidebar-primary-item" role="navigation" aria-label="Book">'),
    # A rubric's table has no header: Markdown cannot say so and makes an empty one.
    (re.compile(r'<thead>\s*<tr[^>]*>(\s*<th class="head"><p></p></th>)+\s*</tr>\s*</thead>'), ""),
    # The button shows "Search Ctrl+K" and is called "Search"; the icons' titles are not in the name of the other one.
    (re.compile(r'(<button class="[^"]*search-button-field[^"]*"[^>]*?) aria-label="Search"'), r"\1"),
    (re.compile(r'(<i class="theme-switch [^>]*?) +title="[^"]*"'), r"\1"),
    # Drawings and names keep a size that can be read: the one scrolls, the other breaks. The theme's script lets a box of
    # this class have the focus, so that keys scroll it.
    (re.compile(r'(?<!drawing">)<svg [^>]*role="img".*?</svg>', re.DOTALL),
     r'<div class="pst-scrollable-table-container drawing">\g<0></div>'),
    (re.compile(r'(?<=<span class="pre">)[^<]+'), breakable),
)


def repair(app, problem):
    if problem or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        if "_static" not in page.parts:
            old = new = page.read_text(encoding="utf-8")
            for pattern, replacement in REPAIRS:  # a second time, on a page that is not built anew, they change nothing
                new = pattern.sub(replacement, new)
            if new != old:
                page.write_text(new, encoding="utf-8")


def setup(app):
    app.connect("config-inited", configure, priority=900)
    app.connect("builder-inited", without_thebe, priority=1)
    app.connect("doctree-read", name_solution, priority=1)
    app.connect("doctree-read", name_pictures)
    app.connect("build-finished", repair)
    app.add_css_file("site.css")
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
