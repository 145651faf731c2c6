from pathlib import Path

from layerroute.lab.report.html import environment, inline_svg, tokens_view, with_code
from layerroute.lab.report.style import GDN, INK
from layerroute.lab.runs import TokenRoutes


def test_inline_svg_takes_the_pages_colours_and_owns_its_ids(tmp_path: Path) -> None:
    file = tmp_path / "figure-3.svg"
    file.write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "x" "http://www.w3.org/x.dtd">\n'
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="7in" height="5in" viewBox="0 0 504 360" '
        'xmlns="http://www.w3.org/2000/svg" version="1.1">\n<metadata><x>y</x></metadata>\n'
        f'<defs><path id="g1" d="M 0 0" style="fill: {INK}"/></defs>'
        f'<g id="axes_1" clip-path="url(#c9)"><use xlink:href="#g1" style="stroke: {GDN}"/></g>'
        '<clipPath id="c9"/></svg>'
    )
    text = str(inline_svg(file))
    assert text.startswith('<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 504 360"')
    assert "DOCTYPE" not in text
    assert "metadata" not in text
    assert "7in" not in text
    assert 'id="f3-g1"' in text
    assert 'xlink:href="#f3-g1"' in text
    assert "url(#f3-c9)" in text
    assert 'id="f3-c9"' in text
    assert "var(--ink)" in text
    assert "var(--gdn)" in text
    assert INK not in text


def test_html_is_escaped_and_unknown_names_are_errors() -> None:
    template = environment().from_string("{{ x }}")
    assert template.environment.autoescape is not False
    page = environment().get_template("index.html.j2")
    assert page.environment.autoescape("index.html.j2") is True  # type: ignore[operator]
    assert page.environment.autoescape("paper.md.j2") is False  # type: ignore[operator]


def test_code_is_code_and_everything_else_is_text() -> None:
    assert with_code("by `layerroute bench <CASE>` & more") == (
        "by <code>layerroute bench &lt;CASE&gt;</code> &amp; more"
    )
    assert with_code("one ` alone") == "one ` alone"


def test_token_views() -> None:
    sentence = (("a", " b\n", ""), ((0, 1), (1, 1), (0, 0)), ((0.1, 0.9), (0.5, 1.0), (0.0, 0.0)))
    routes = TokenRoutes(
        sites=("layer1.mixer", "layer2.mixer"), paths=("gdn", "softmax"), sentences=(sentence,)
    )
    ((first, second, empty),) = tokens_view(routes)["sentences"]
    assert (first["text"], first["choices"], first["shares"]) == ("a", "0 1", "10 90")
    assert (second["text"], second["breaks"]) == (" b⏎", True)
    assert empty["text"] == "∅"
    assert first["bands"] == "linear-gradient(rgba(47,111,183,0.85) 0% 50%,rgba(224,123,26,0.85) 50% 100%)"
