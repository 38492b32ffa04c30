"""Sphinx extension: what the whole book needs beside its questions and quizzes.

- MathJax from node_modules instead of another host: one file, copied into the book.
- A Colab button on every notebook, if `repository: url:` in _config.yml says where the notebooks are; none otherwise.
- The book's own style sheet.
"""
import shutil
from pathlib import Path

from course import ROOT

MATHJAX = ROOT / "node_modules/mathjax/es5/tex-svg.js"
STYLE = Path(__file__).with_name("site.css")


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
    options = config.html_theme_options
    if options.get("repository_url"):
        options.setdefault("launch_buttons", {})["colab_url"] = "https://colab.research.google.com"
        options["launch_buttons"]["notebook_interface"] = "jupyterlab"
    else:
        options["launch_buttons"] = {}


def setup(app):
    app.connect("config-inited", configure, priority=900)
    app.add_css_file("site.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
