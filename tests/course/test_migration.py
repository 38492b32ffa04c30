"""What changed between releases, as book/03_tensorrt/api_changes.md shows it: nothing lost, nothing twice, nothing untrue."""

from __future__ import annotations

import json
import re

import pytest

from course import ROOT, apinames, migration
from course.pages import fences

STEPS = (("8.6", "10.0"), ("10.0", "10.16"), ("10.16", "11.4"), ("11.4", "RTX"))
PAGE = ROOT / "book/03_tensorrt/api_changes.md"


def flat(release):
    """Every name and member of a release, read off its file and nothing else."""
    names = json.loads((ROOT / "inventories" / apinames._FILES[release]).read_text(encoding="utf-8"))["names"]
    return {name for name in names} | {f"{name}.{member}" for name, entry in names.items() for member in entry.get("members", {})}


@pytest.mark.parametrize(("one", "other", "gone", "came"), [("8.6", "10.0", 211, 309), ("10.0", "10.16", 1, 518), ("10.16", "11.4", 487, 29)])
def test_the_inventories_differ_as_their_readme_says(one, other, gone, came):
    assert (len(flat(one) - flat(other)), len(flat(other) - flat(one))) == (gone, came)


def shown(side, release):
    """What a table of that side tells a reader: names whole with their members, members, and those of ILayer for each layer class."""
    told = set(side.whole) | {f"{name}.{member}" for name in side.whole for member in migration.members(release, name)}
    told |= {f"{name}.{member}" for name, found in side.parts.items() for member in found}
    return told | {f"{name}.{member}" for name in migration.layers(release) - side.whole.keys() for member in side.parts.get("ILayer", ())}


@pytest.mark.parametrize(("one", "other"), [*STEPS, *((b, a) for a, b in STEPS)])
def test_the_tables_of_a_step_tell_every_name_that_differs(one, other):
    side = migration.only_in(one, other)
    public = {name for name in flat(one) - flat(other) if not re.search(r"(^|\.)__", name)}
    assert shown(side, one) == public
    assert side.count + len(side.whole) < len(public) / 2 or not side.inherited  # what layers inherit is not said for each of them


def test_what_layers_inherit_is_said_once():
    side = migration.only_in("10.16", "11.4")
    assert side.inherited > 40 and "precision" in side.parts["ILayer"]
    assert "IActivationLayer" not in side.parts and side.parts["INormalizationLayer"] == ["compute_precision"]
    assert "IConvolutionLayer" in migration.layers("8.6") and "ITensor" not in migration.layers("8.6")


@pytest.mark.parametrize("name", migration.changed())
def test_a_history_says_what_the_inventories_say(name):
    rows = migration.history(name)
    assert rows
    for member, row in rows.items():
        for release, here in zip(migration.RELEASES, row, strict=True):
            assert here == (apinames.has(release, f"{name}.{member}") if apinames.has(release, name) else None), (member, release)
    there = [release for release in migration.RELEASES if apinames.has(release, name)]
    for member in set().union(*(migration.members(release, name) for release in there)) - rows.keys():
        always = all(apinames.has(release, f"{name}.{member}") for release in there)
        assert always or name in migration.layers(there[-1]) and member in migration.history("ILayer"), member


def test_the_page_shows_every_step_once_and_every_class_that_changed_once():
    found = list(fences(PAGE.read_text(encoding="utf-8")))
    assert [tuple(fence.argument.split()) for fence in found if fence.name == "api-changes"] == list(STEPS)
    named = [name for fence in found if fence.name == "api-history" for name in fence.argument.split()]
    assert sorted(named) == list(migration.changed())


def test_a_step_is_counted_in_words():
    assert migration.changes_text("10.0", "10.16").startswith("::::{dropdown} What went from 10.0 to 10.16: 1 member of 1 class or enum\n")
    text = migration.changes_text("10.16", "11.4")
    assert "| `ILayer` and " in text and "| enums, whole | `CalibrationAlgoType`, `QuantizationFlag` |" in text
    assert "nothing" in migration.changes_text("8.6", "8.6") and "|" not in migration.changes_text("8.6", "8.6")


def build(folder, page):
    sphinx = pytest.importorskip("sphinx.application", reason="the book's tools are not installed here")
    import io

    from sphinx.util.docutils import docutils_namespace, patch_docutils

    (folder / "conf.py").write_text('extensions = ["myst_nb", "sphinx_design", "course.migration"]\nnb_execution_mode = "off"\n'
                                    'myst_enable_extensions = ["colon_fence"]\nhtml_theme = "basic"\nroot_doc = "index"\n')
    (folder / "index.md").write_text(page)
    warnings = io.StringIO()
    with patch_docutils(str(folder)), docutils_namespace():
        app = sphinx.Sphinx(str(folder), str(folder), str(folder / "out"), str(folder / "tree"), "html", status=None, warning=warnings, freshenv=True)
        app.build()
    return (folder / "out/index.html").read_text(encoding="utf-8"), warnings.getvalue()


def test_the_directives_draw_folded_tables(tmp_path):
    html, warnings = build(tmp_path, "# Page\n\n```{api-changes} 10.16 11.4\n```\n\n```{api-history} ITensor Runtime\n```\n")
    assert warnings == "" and html.count("<details") == 4 and html.count("<table") == 4
    assert re.search(r"What went from 10\.16 to 11\.4: 12 classes, 2 enums; 51 members", html)
    assert re.search(r"<td><p><code[^>]*><span class=\"pre\">dynamic_range</span></code></p></td>\s*(<td><p>yes</p></td>\s*){3}(<td><p>–</p></td>\s*){2}", html)


@pytest.mark.parametrize(("written", "said"), [
    ("```{api-changes} 10.16 12.0\n```", "12.0 has no inventory; the releases are 8.6"),
    ("```{api-history} ITensor Nothing\n```", "Nothing is no class that changed"),
])
def test_what_no_inventory_knows_is_a_warning(tmp_path, written, said):
    _, warnings = build(tmp_path, f"# Page\n\n{written}\n")
    assert said in warnings and "index.md:3" in warnings
